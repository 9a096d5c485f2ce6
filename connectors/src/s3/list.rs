//! Buckets, listed whole: `ListObjectsV2`, page by page, several ranges of keys side by side.
//!
//! A range begins behind a key (`start-after`) and ends with one, so the server must list in the order of its
//! keys' bytes, as S3 does; one that does not is refused where ranges are used, and listed in one piece else.
//! Versions behind the newest one, delete markers and unfinished uploads are not listed.

use std::collections::VecDeque;
use std::sync::Arc;

use tombstream_model::{Address, Listed, Listing, ListingError, ListingPart, SinkError};

use super::answer::{self, Reply};
use super::sink::S3Sink;
use super::xml::Element;

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
    /// Behind this key: that of the range, or the last one that was listed.
    after: Option<String>,
    upto: Option<String>,
    token: Option<String>,
    has_ended: bool,
}

/// One page of objects.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    keys: Vec<String>,
    /// None: it is the last one.
    token: Option<String>,
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
            let mut after = None;
            let bucket: Arc<str> = bucket.into();
            for upto in bounds.map(Some).chain([None]) {
                parts.push(S3Part {
                    sink: Arc::clone(&self.sink),
                    bucket: Arc::clone(&bucket),
                    after: std::mem::replace(&mut after, upto.clone()),
                    upto,
                    token: None,
                    has_ended: false,
                });
            }
        }
        Ok(parts)
    }
}

impl S3Part {
    fn is_range(&self) -> bool {
        self.after.is_some() || self.upto.is_some()
    }
}

impl ListingPart for S3Part {
    type Item = Listed;

    async fn next(&mut self) -> Result<Option<Vec<Listed>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let prefix = &self.sink.config.prefix;
        let (after, token) = (self.after.as_deref(), self.token.as_deref());
        let reply = self.sink.requests.list_page(&self.bucket, prefix, after, token).await?;
        let page = page(&self.bucket, prefix, &reply)?;
        if page.token.is_some() && page.token == self.token {
            return Err(not_whole("the server gives the same page again"));
        }
        let mut keys: VecDeque<String> = page.keys.into();
        if self.is_range() {
            let mut last = self.after.as_deref();
            for key in &keys {
                if last.is_some_and(|last| last.as_bytes() >= key.as_bytes()) {
                    return Err(not_whole(
                        "the server does not list in the order of its keys: list it in one piece (--parts 1)",
                    ));
                }
                last = Some(key);
            }
        }
        let mut is_past = false;
        if let Some(upto) = &self.upto {
            while keys.back().is_some_and(|key| key.as_bytes() > upto.as_bytes()) {
                keys.pop_back();
                is_past = true;
            }
        }
        // Invariant (S6): a part ends with the server's word that nothing follows, or past its last key;
        // `a_page_without_its_token_is_no_end`.
        self.has_ended = is_past || page.token.is_none();
        self.token = page.token;
        if self.is_range()
            && let Some(last) = keys.back()
        {
            self.after = Some(last.clone());
        }
        let bucket = &self.bucket;
        let listed = keys.into_iter().map(|key| Listed {
            address: Address::Object { bucket: Arc::clone(bucket), key },
            fields: Vec::new(),
        });
        Ok(Some(listed.collect()))
    }
}

fn not_whole(why: &str) -> ListingError {
    ListingError::NotWhole(why.to_owned())
}

/// Reads a page. One that says that more follows, and not where, is no page.
fn page(bucket: &str, prefix: &str, reply: &Reply) -> Result<Page, ListingError> {
    let listing = answer::listing(bucket, prefix, reply)?;
    if !listing.truncated {
        return Ok(Page { keys: listing.keys, token: None });
    }
    let root = Element::parse(&reply.body)
        .map_err(|_| SinkError::Protocol("a listing that does not parse".to_owned()))?;
    match root.child("NextContinuationToken") {
        Some(token) if !token.is_empty() => {
            Ok(Page { keys: listing.keys, token: Some(token.to_owned()) })
        }
        _ => Err(not_whole("the server says that more follows, and not where")),
    }
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
        assert_eq!(last, Page { keys: vec!["a".to_owned()], token: None });
        let more =
            "<IsTruncated>true</IsTruncated><NextContinuationToken>x+/=</NextContinuationToken>";
        assert_eq!(read(more).unwrap().token.as_deref(), Some("x+/="));
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
