//! Buckets, listed whole: page by page, several ranges of keys side by side. Of a versioned bucket every version,
//! since a copy behind a delete marker is there; of others the objects.
//!
//! A range begins behind a key and ends with one, so the server must list in the order of its keys' bytes, as S3
//! does; one that does not is refused where ranges are used, and listed in one piece else. Unfinished uploads are
//! not listed.

use std::sync::Arc;

use tombstream_model::{Address, Listed, Listing, ListingError, ListingPart};

use super::answer::{self, Reply};
use super::listing::{self, Marker};
use super::sink::S3Sink;

/// Entries of a page: the most that S3 gives.
const PAGE: usize = 1_000;

/// The buckets of a store, as a listing.
#[derive(Clone, Debug)]
pub struct S3Listing {
    sink: Arc<S3Sink>,
}

/// A range of a bucket's keys.
#[derive(Debug)]
pub struct S3Part {
    sink: Arc<S3Sink>,
    bucket: Arc<str>,
    is_versioned: bool,
    is_range: bool,
    upto: Option<String>,
    /// Where the next page begins; none behind the last one.
    next: Option<Next>,
    /// The last key that was seen: that of the range, at first.
    last: Option<String>,
    /// The last key that was given: of its versions the first one counts.
    given: Option<String>,
}

/// Where a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// Behind a key, or at the beginning.
    Behind(Option<String>),
    /// Where the server says.
    Token(String),
    Version(Marker),
}

/// One page: each key, and whether a copy is under it rather than a marker.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    keys: Vec<(String, bool)>,
    next: Option<Next>,
}

impl S3Listing {
    /// A listing of what `sink` may destroy.
    pub fn new(sink: Arc<S3Sink>) -> Self {
        Self { sink }
    }
}

impl Listing for S3Listing {
    type Item = Listed;
    type Part = S3Part;

    async fn parts(&self, count: usize, sample: &[Address]) -> Result<Vec<S3Part>, ListingError> {
        let mut parts = Vec::new();
        for bucket in self.sink.config.declared() {
            let is_versioned = self.sink.is_versioned(&bucket).await?;
            let mut keys: Vec<&str> = sample
                .iter()
                .filter_map(|address| match address {
                    Address::Object { bucket: of, key } if **of == *bucket => Some(&**key),
                    Address::Prefix { bucket: of, prefix } if **of == *bucket => Some(&**prefix),
                    _ => None,
                })
                .filter(|key| key.starts_with(&self.sink.config.prefix))
                .collect();
            keys.sort_unstable();
            keys.dedup();
            let count = count.min(keys.len() / 10).max(1);
            let bounds = (1..count).map(|nth| keys[nth * keys.len() / count].to_owned());
            let mut after: Option<String> = None;
            let bucket: Arc<str> = bucket.into();
            for upto in bounds.map(Some).chain([None]) {
                let last = std::mem::replace(&mut after, upto.clone());
                parts.push(S3Part {
                    sink: Arc::clone(&self.sink),
                    bucket: Arc::clone(&bucket),
                    is_versioned,
                    is_range: count > 1,
                    upto,
                    next: Some(Next::Behind(last.clone())),
                    last,
                    given: None,
                });
            }
        }
        Ok(parts)
    }
}

impl S3Part {
    async fn page(&self, next: &Next) -> Result<Page, ListingError> {
        let prefix = &self.sink.config.prefix;
        let requests = &self.sink.requests;
        if self.is_versioned {
            let from = match next {
                Next::Version(marker) => marker.clone(),
                Next::Behind(key) => {
                    Marker { key: key.clone().unwrap_or_default(), id: String::new() }
                }
                Next::Token(_) => return Err(not_whole("the bucket became versioned meanwhile")),
            };
            let reply = requests.list_versions(&self.bucket, prefix, &from, PAGE).await?;
            let page = listing::versions(&self.bucket, prefix, &reply)?;
            let keys = page.entries.into_iter().map(|version| (version.key, !version.is_marker));
            return Ok(Page { keys: keys.collect(), next: page.next.map(Next::Version) });
        }
        let (after, token) = match next {
            Next::Behind(key) => (key.as_deref(), None),
            Next::Token(token) => (None, Some(token.as_str())),
            Next::Version(_) => return Err(not_whole("the bucket is versioned no more")),
        };
        let reply = requests.list_page(&self.bucket, prefix, PAGE, after, token).await?;
        page(&self.bucket, prefix, &reply)
    }
}

impl ListingPart for S3Part {
    type Item = Listed;

    async fn next(&mut self) -> Result<Option<Vec<Listed>>, ListingError> {
        let Some(next) = self.next.clone() else { return Ok(None) };
        let page = self.page(&next).await?;
        if page.next.as_ref() == Some(&next) {
            return Err(not_whole("the server gives the same page again"));
        }
        let mut last = self.last.clone();
        let mut given = self.given.clone();
        let mut listed = Vec::with_capacity(page.keys.len());
        let mut is_past = false;
        for (key, is_copy) in page.keys {
            // Several versions of a key follow each other.
            let is_behind = |last: &String| match self.is_versioned {
                true => last.as_bytes() > key.as_bytes(),
                false => last.as_bytes() >= key.as_bytes(),
            };
            if self.is_range && last.as_ref().is_some_and(is_behind) {
                return Err(not_whole(
                    "the server does not list in the order of its keys: list it in one piece (--parts 1)",
                ));
            }
            if self.upto.as_ref().is_some_and(|upto| key.as_bytes() > upto.as_bytes()) {
                is_past = true;
                break;
            }
            last = Some(key.clone());
            if is_copy && given.as_ref() != Some(&key) {
                given = Some(key.clone());
                let address = Address::Object { bucket: Arc::clone(&self.bucket), key };
                listed.push(Listed { address, fields: Vec::new() });
            }
        }
        // Invariant (S6): a part ends with the server's word that nothing follows, or past its last key;
        // `a_page_without_its_token_is_no_end`.
        self.next = if is_past { None } else { page.next };
        (self.last, self.given) = (last, given);
        Ok(Some(listed))
    }
}

fn not_whole(why: &str) -> ListingError {
    ListingError::NotWhole(why.to_owned())
}

/// Reads a page of objects. One that says that more follows, and not where, is no page.
fn page(bucket: &str, prefix: &str, reply: &Reply) -> Result<Page, ListingError> {
    let (root, keys) = answer::objects(bucket, prefix, reply)?;
    let next = match (answer::is_truncated(&root)?, root.child("NextContinuationToken")) {
        (false, _) => None,
        (true, Some(token)) if !token.is_empty() => Some(Next::Token(token.to_owned())),
        (true, _) => return Err(not_whole("the server says that more follows, and not where")),
    };
    Ok(Page { keys: keys.into_iter().map(|key| (key, true)).collect(), next })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<Page, ListingError> {
        let body = format!(
            "<ListBucketResult><Name>docs</Name><Prefix></Prefix>{more}\
             <Contents><Key>a</Key></Contents></ListBucketResult>"
        );
        let reply = Reply { status: 200, body: body.into_bytes(), ..Reply::default() };
        page("docs", "", &reply)
    }

    #[test]
    fn a_page_without_its_token_is_no_end() {
        let last = read("<IsTruncated>false</IsTruncated>").unwrap();
        assert_eq!(last, Page { keys: vec![("a".to_owned(), true)], next: None });
        let more =
            "<IsTruncated>true</IsTruncated><NextContinuationToken>x+/=</NextContinuationToken>";
        assert_eq!(read(more).unwrap().next, Some(Next::Token("x+/=".to_owned())));
        for wrong in [
            "",
            "<IsTruncated>perhaps</IsTruncated>",
            "<IsTruncated>true</IsTruncated>",
            "<IsTruncated>true</IsTruncated><NextContinuationToken/>",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
