//! Listings of versions and of unfinished uploads: what is there, byte for byte. Pure.

use tombstream_model::SinkError;

use super::answer::{self, Reply};
use super::xml::Element;

/// One version of a key, or one marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) key: String,
    /// `null` where the bucket was not versioned, or suspended, when it was written.
    pub(super) id: String,
    pub(super) is_marker: bool,
    pub(super) is_latest: bool,
}

impl Version {
    /// Whether a read of its key finds it.
    pub(super) fn is_current(&self) -> bool {
        self.is_latest && !self.is_marker
    }
}

/// An upload in parts that nobody completed: its parts are stored, though no listing of objects has
/// them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) id: String,
}

/// One page of a listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<T> {
    pub(super) entries: Vec<T>,
    /// Where the next page begins, if there is one.
    pub(super) next: Option<Marker>,
}

/// Behind which key, and which of its versions or uploads, a page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) key: String,
    pub(super) id: String,
}

/// A page of versions and markers of keys that begin with `prefix`.
pub(super) fn versions(
    bucket: &str,
    prefix: &str,
    reply: &Reply,
) -> Result<Page<Version>, SinkError> {
    page(
        bucket,
        prefix,
        reply,
        "ListVersionsResult",
        "Name",
        "NextVersionIdMarker",
        |entry, key| {
            let is_marker = match entry.name.as_str() {
                "Version" => false,
                "DeleteMarker" => true,
                _ => return None,
            };
            let latest = entry.child("IsLatest");
            let id = entry.child("VersionId").filter(|id| !id.is_empty());
            Some(id.map(|id| Version {
                key,
                id: id.to_owned(),
                is_marker,
                is_latest: latest == Some("true"),
            }))
        },
    )
}

/// A page of unfinished uploads of keys that begin with `prefix`.
pub(super) fn uploads(
    bucket: &str,
    prefix: &str,
    reply: &Reply,
) -> Result<Page<Upload>, SinkError> {
    let root = "ListMultipartUploadsResult";
    page(bucket, prefix, reply, root, "Bucket", "NextUploadIdMarker", |entry, key| {
        if entry.name != "Upload" {
            return None;
        }
        let id = entry.child("UploadId").filter(|id| !id.is_empty());
        Some(id.map(|id| Upload { key, id: id.to_owned() }))
    })
}

/// Invariant (S8): a listing that names a key outside of what was asked for is not acted on;
/// `a_listing_of_something_else_is_refused`.
fn page<T>(
    bucket: &str,
    prefix: &str,
    reply: &Reply,
    name: &str,
    bucket_in: &str,
    id_marker: &str,
    read: impl Fn(&Element, String) -> Option<Option<T>>,
) -> Result<Page<T>, SinkError> {
    let (root, text) = answer::listed(bucket, bucket_in, prefix, reply, &[name])?;
    let protocol = |why: &str| SinkError::Protocol(format!("a listing {why}"));
    let mut entries = Vec::new();
    for entry in &root.children {
        let Some(key) = entry.child("Key") else { continue };
        let key = text.read(key)?;
        let within = key.starts_with(prefix);
        match read(entry, key) {
            None => {}
            Some(_) if !within => return Err(protocol("with a key outside of its prefix")),
            Some(None) => return Err(protocol("with an entry that can't be named")),
            Some(Some(entry)) => entries.push(entry),
        }
    }
    if !answer::is_truncated(&root)? {
        return Ok(Page { entries, next: None });
    }
    let key = root.child("NextKeyMarker").map(|key| text.read(key)).transpose()?;
    let id = root.child(id_marker).unwrap_or_default().to_owned();
    match key.filter(|key| !key.is_empty()) {
        Some(key) if !entries.is_empty() => Ok(Page { entries, next: Some(Marker { key, id }) }),
        _ => Err(protocol("that is not whole and does not say how it goes on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(body: &str) -> Reply {
        Reply { status: 200, body: body.as_bytes().to_vec(), ..Reply::default() }
    }

    /// As versitygw 1.8.0 answers, shortened; AWS orders the elements otherwise and encodes keys.
    const PAGE: &str = "<ListVersionsResult><EncodingType></EncodingType><IsTruncated>true</IsTruncated>\
        <Name>b</Name><NextKeyMarker>k 1</NextKeyMarker><NextVersionIdMarker>02</NextVersionIdMarker>\
        <Prefix>k</Prefix><Version><IsLatest>false</IsLatest><Key>k 1</Key><VersionId>02</VersionId>\
        </Version><DeleteMarker><IsLatest>true</IsLatest><Key>k 1</Key><VersionId>03</VersionId>\
        </DeleteMarker></ListVersionsResult>";

    #[test]
    fn versions_and_markers_are_read_with_their_ids() {
        let page = versions("b", "k", &reply(PAGE)).unwrap();
        let version = |id: &str, is_marker| Version {
            key: "k 1".into(),
            id: id.into(),
            is_marker,
            is_latest: is_marker,
        };
        assert_eq!(page.entries, [version("02", false), version("03", true)]);
        assert_eq!(page.next, Some(Marker { key: "k 1".into(), id: "02".into() }));
        let encoded = PAGE.replace("<EncodingType>", "<EncodingType>url").replace("k 1", "k+1");
        assert_eq!(versions("b", "k", &reply(&encoded)).unwrap(), page);
    }

    #[test]
    fn uploads_are_read_with_their_ids() {
        let body = "<ListMultipartUploadsResult><Bucket>b</Bucket><Prefix></Prefix>\
            <IsTruncated>false</IsTruncated><Upload><Key>k</Key><UploadId>u1</UploadId></Upload>\
            </ListMultipartUploadsResult>";
        let page = uploads("b", "", &reply(body)).unwrap();
        assert_eq!(page.entries, [Upload { key: "k".into(), id: "u1".into() }]);
        assert_eq!(page.next, None);
    }

    #[test]
    fn a_listing_of_something_else_is_refused() {
        for (from, to) in [
            ("<Name>b</Name>", "<Name>c</Name>"),
            ("<Prefix>k</Prefix>", "<Prefix>l</Prefix>"),
            ("<Key>k 1</Key><VersionId>02", "<Key>l 1</Key><VersionId>02"),
            ("<VersionId>02</VersionId>", ""),
            ("<NextKeyMarker>k 1</NextKeyMarker>", ""),
            ("<IsTruncated>true</IsTruncated>", ""),
            ("ListVersionsResult>", "ListBucketResult>"),
        ] {
            let body = PAGE.replace(from, to);
            assert_ne!(body, PAGE);
            let error = versions("b", "k", &reply(&body)).unwrap_err();
            assert!(matches!(error, SinkError::Protocol(_)), "{from}: {error}");
        }
        for cut in 0..PAGE.len() {
            assert!(versions("b", "k", &reply(&PAGE[..cut])).is_err());
        }
    }
}
