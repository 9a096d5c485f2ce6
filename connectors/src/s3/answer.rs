//! What an answer proves. Pure: no request is made here, and no clock is read.
//!
//! S3 answers 200 with errors inside, lists only errors when asked to be quiet (so it never is),
//! calls a missing key deleted, and calls a delete marker deleted too, which erases nothing.
//! Listings of versions and uploads are read in `listing.rs`.

use std::collections::HashMap;
use std::time::Duration;

use tombstream_model::{Outcome, Presence, SinkError, Verdict};

use super::xml::Element;

/// An answer as it came.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// `x-amz-delete-marker: true`.
    pub(super) delete_marker: bool,
    pub(super) etag: Option<String>,
    pub(super) body: Vec<u8>,
}

/// A key that was asked to be deleted, and what a probe had found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) key: &'a str,
    /// One version of it, or marker; else whatever a read of the key would find.
    pub(super) version: Option<&'a str>,
    /// None where nobody looked.
    pub(super) probed: Option<Presence>,
}

/// Whether a bucket keeps what is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Versioning {
    /// A delete erases.
    Off,
    /// A delete leaves a marker, and the data stays.
    Enabled,
    /// As enabled, but for what was written since.
    Suspended,
    /// The store did not say, for this reason.
    Unknown(String),
}

/// Whether objects of a bucket can be locked against deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectLock {
    /// No object can be locked.
    Off,
    /// Some objects may refuse to be deleted until their retention ends.
    On,
    /// The store did not say, for this reason.
    Unknown(String),
}

/// What a `DeleteObjects` was answered.
#[derive(Debug)]
pub(super) struct Deleted {
    /// In the order of what was asked.
    pub(super) outcomes: Vec<Outcome>,
    /// Whether a key was refused because there were too many.
    pub(super) throttled: bool,
}

/// What a delete without a version proves where it left a marker: that the bucket is versioned.
pub(super) const VERSIONED: &str =
    "the bucket is versioned: a delete marker erases nothing, so its versions are asked for";

/// The body of an answer that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("http {status}, {code}")]
struct Failure {
    status: u16,
    code: String,
}

/// What an answer says that speaks for its whole request.
pub(super) fn failure(reply: &Reply) -> SinkError {
    let element = Element::parse(&reply.body).ok().filter(|element| element.name == "Error");
    let code = element.as_ref().and_then(|error| error.child("Code")).unwrap_or("no code");
    let message = element.as_ref().and_then(|error| error.child("Message")).unwrap_or("");
    let status = reply.status;
    let said = || format!("http {status}, {}", excerpt(&format!("{code}: {message}")));
    if code == "NoSuchBucket" {
        return SinkError::Missing(said());
    }
    if matches!(status, 429 | 503) || is_throttling(code) {
        return SinkError::Throttled { retry_after: reply.retry_after };
    }
    match status {
        408 | 500 | 502 | 504 => unavailable(status, code),
        _ if is_passing(code) => unavailable(status, code),
        401 | 403 => SinkError::Denied(said()),
        _ => SinkError::Protocol(said()),
    }
}

fn unavailable(status: u16, code: &str) -> SinkError {
    SinkError::Unavailable(Box::new(Failure { status, code: excerpt(code) }))
}

pub(super) fn is_throttling(code: &str) -> bool {
    matches!(
        code,
        "SlowDown"
            | "ServiceUnavailable"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequests"
            | "Busy"
    )
}

fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "InternalError" | "RequestTimeout" | "OperationAborted" | "ConditionalRequestConflict"
    )
}

/// What the answer to a `DeleteObjects` proves of each key, in the order of `asked`.
///
/// Invariant (S6): a key is confirmed only by an entry of its own, in an answer that is whole and
/// names no key that was not asked for. One that does answers another request, and proves nothing
/// of any key. `a_key_that_the_answer_leaves_out_is_unknown`,
/// `an_answer_to_another_request_proves_nothing`, `an_answer_cut_anywhere_proves_nothing`.
pub(super) fn deleted(asked: &[Asked<'_>], reply: &Reply) -> Result<Deleted, SinkError> {
    if reply.status != 200 {
        return Err(failure(reply));
    }
    let unknown = |why: String| {
        let outcomes = vec![Outcome::new(Verdict::Unknown, why); asked.len()];
        Ok(Deleted { outcomes, throttled: false })
    };
    let root = match Element::parse(&reply.body) {
        Ok(root) => root,
        Err(why) => return unknown(format!("an answer that does not parse: {}", excerpt(&why))),
    };
    match root.name.as_str() {
        "DeleteResult" => {}
        // S3 may find out too late that it fails: the 200 is on its way already.
        "Error" => return Err(failure(reply)),
        other => return unknown(format!("an answer of another kind: {}", excerpt(other))),
    }
    let mut places: HashMap<(&str, Option<&str>), usize> = HashMap::new();
    for (place, asked) in asked.iter().enumerate() {
        places.insert((asked.key, asked.version), place);
    }
    let mut outcomes: Vec<Option<Outcome>> = vec![None; asked.len()];
    let mut throttled = false;
    for entry in &root.children {
        let outcome = match entry.name.as_str() {
            "Deleted" => None,
            "Error" => {
                let code = entry.child("Code").unwrap_or("");
                if code == "NoSuchBucket" {
                    return Err(SinkError::Missing("http 200, NoSuchBucket for a key".into()));
                }
                throttled |= is_throttling(code);
                Some(refused_key(code, entry.child("Message").unwrap_or("")))
            }
            _ => continue,
        };
        // An entry speaks for the version that it names, and for no other of its key. Some servers
        // leave the version out of an error: that is true of whichever was meant.
        let Some(key) = entry.child("Key") else {
            return unknown("an answer with an entry without key".into());
        };
        let version = entry.child("VersionId").filter(|version| !version.is_empty());
        let at = places.get(&(key, version)).or_else(|| places.get(&(key, None)));
        let Some(&place) = at else {
            let of_key = |(place, asked): (usize, &Asked<'_>)| (asked.key == key).then_some(place);
            let meant: Vec<usize> = asked.iter().enumerate().filter_map(of_key).collect();
            match outcome {
                Some(error) if version.is_none() && !meant.is_empty() => {
                    for place in meant {
                        outcomes[place].get_or_insert_with(|| error.clone());
                    }
                    continue;
                }
                _ => return unknown("an answer that names what was not asked for".into()),
            }
        };
        let outcome = outcome.unwrap_or_else(|| deleted_key(entry, &asked[place]));
        let said_twice = outcomes[place].is_some();
        outcomes[place] = Some(if said_twice {
            Outcome::new(Verdict::Unknown, "the answer names the key twice")
        } else {
            outcome
        });
    }
    let missing = || Outcome::new(Verdict::Unknown, "the answer leaves the key out");
    let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect();
    Ok(Deleted { outcomes, throttled })
}

/// What the answer to a `DeleteObject` proves of its key.
pub(super) fn deleted_one(asked: &Asked<'_>, reply: &Reply) -> Result<Outcome, SinkError> {
    match reply.status {
        200 | 204 if asked.version.is_none() && reply.delete_marker => {
            Ok(Outcome::new(Verdict::Busy, VERSIONED))
        }
        200 | 204 => Ok(deleted_probed(asked.probed, reply.status)),
        status => match code(reply).as_deref() {
            Some(code @ ("NoSuchKey" | "NoSuchVersion")) => {
                Ok(Outcome::new(Verdict::Absent, format!("{status} {code}")))
            }
            Some("PreconditionFailed") => Ok(changed()),
            _ => Err(failure(reply)),
        },
    }
}

/// The code of an answer that did not succeed.
pub(super) fn code(reply: &Reply) -> Option<String> {
    let element = Element::parse(&reply.body).ok().filter(|element| element.name == "Error")?;
    element.child("Code").map(str::to_owned)
}

/// Whether a server says that it takes no `DeleteObjects`.
pub(super) fn is_not_offered(reply: &Reply) -> bool {
    let named = || matches!(code(reply).as_deref(), Some("NotImplemented" | "MethodNotAllowed"));
    matches!(reply.status, 405 | 501) || (reply.status >= 400 && named())
}

/// Whether a server may have refused a request for its kind of checksum.
pub(super) fn is_checksum_refused(reply: &Reply) -> bool {
    let codes = ["InvalidRequest", "InvalidArgument", "MissingContentMD5", "InvalidDigest"];
    reply.status == 400 && code(reply).is_some_and(|code| codes.contains(&code.as_str()))
}

/// Whether one locked object had a whole request refused, as some servers do.
pub(super) fn is_locked_as_a_whole(reply: &Reply) -> bool {
    let message = Element::parse(&reply.body)
        .ok()
        .and_then(|error| error.child("Message").map(str::to_lowercase));
    matches!(reply.status, 400 | 403) && message.is_some_and(|text| text.contains("object lock"))
}

/// What is said of a key whose condition did not hold. It is looked at again, and judged then.
pub(super) const CHANGED: &str = "PreconditionFailed: it changed since it was looked at";

fn changed() -> Outcome {
    Outcome::new(Verdict::Busy, CHANGED)
}

fn deleted_key(entry: &Element, asked: &Asked<'_>) -> Outcome {
    let marker = entry.child("DeleteMarker").is_some_and(|text| text.trim() == "true")
        || entry.child("DeleteMarkerVersionId").is_some();
    // Where a version was named, it is the marker that was deleted.
    if marker && asked.version.is_none() {
        return Outcome::new(Verdict::Busy, VERSIONED);
    }
    deleted_probed(asked.probed, 200)
}

fn deleted_probed(probed: Option<Presence>, status: u16) -> Outcome {
    if status != 200 {
        return match probed {
            Some(Presence::Absent) => Outcome::new(Verdict::Absent, "204, was not there"),
            Some(Presence::Unknown) => {
                Outcome::new(Verdict::Unknown, "204, but a delete marker stood before it")
            }
            Some(Presence::Present) => Outcome::new(Verdict::Deleted, "204, was there"),
            None => Outcome::new(Verdict::Deleted, "204, not probed"),
        };
    }
    match probed {
        Some(Presence::Present) => Outcome::new(Verdict::Deleted, "200 Deleted, was there"),
        Some(Presence::Absent) => Outcome::new(Verdict::Absent, "200 Deleted, was not there"),
        Some(Presence::Unknown) => {
            Outcome::new(Verdict::Unknown, "200 Deleted, but a delete marker stood before it")
        }
        None => Outcome::new(Verdict::Deleted, "200 Deleted, not probed"),
    }
}

/// What an error inside a 200 proves of its key.
fn refused_key(code: &str, message: &str) -> Outcome {
    let verdict = match code {
        "NoSuchKey" | "NoSuchVersion" => Verdict::Absent,
        "PreconditionFailed" => return changed(),
        _ if is_throttling(code) || is_passing(code) => Verdict::Busy,
        "AccessDenied"
        | "InvalidObjectState"
        | "InvalidRequest"
        | "KeyTooLongError"
        | "MethodNotAllowed"
        | "ObjectLocked"
        | "ObjectLockedByBucketPolicy" => Verdict::Refused,
        // Nobody knows whether it passes, so nobody may call it final.
        _ => Verdict::Unknown,
    };
    let code = if code.is_empty() { "no code" } else { code };
    Outcome::new(verdict, format!("200 Error {}", excerpt(&format!("{code}: {message}"))))
}

/// What the answer to a HEAD of a key proves. That its bucket exists must be known otherwise.
pub(super) fn head(reply: &Reply) -> Result<Presence, SinkError> {
    match reply.status {
        200 => Ok(Presence::Present),
        404 | 405 if reply.delete_marker => Ok(Presence::Unknown),
        404 => Ok(Presence::Absent),
        403 => Err(SinkError::Denied(
            "http 403 to a HEAD: wrong credentials, or no s3:GetObject and s3:ListBucket, without \
             which S3 does not tell an absent key from a forbidden one"
                .into(),
        )),
        _ => Err(failure(reply)),
    }
}

/// The keys of a page of objects that begin with `prefix`.
pub(super) fn listing(bucket: &str, prefix: &str, reply: &Reply) -> Result<Vec<String>, SinkError> {
    objects(bucket, prefix, reply).map(|(_, keys)| keys)
}

/// The page itself, too, which says how it goes on.
pub(super) fn objects(
    bucket: &str,
    prefix: &str,
    reply: &Reply,
) -> Result<(Element, Vec<String>), SinkError> {
    let (root, text) = listed(bucket, "Name", prefix, reply, &["ListBucketResult"])?;
    let protocol = |why: &str| SinkError::Protocol(format!("a listing {why}"));
    let mut keys = Vec::new();
    for entry in root.children.iter().filter(|entry| entry.name == "Contents") {
        let key = entry.child("Key").ok_or_else(|| protocol("with an entry without key"))?;
        let key = text.read(key)?;
        if !key.starts_with(prefix) {
            return Err(protocol("with a key outside of its prefix"));
        }
        keys.push(key);
    }
    if is_truncated(&root)? && keys.is_empty() {
        return Err(protocol("that is empty and not whole"));
    }
    Ok((root, keys))
}

/// How the texts of a listing are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    encoded: bool,
}

impl Text {
    pub(super) fn read(self, text: &str) -> Result<String, SinkError> {
        match self.encoded {
            true => decode(text).ok_or_else(|| {
                SinkError::Protocol("a listing with a key that does not decode".into())
            }),
            false => Ok(text.to_owned()),
        }
    }
}

/// A listing of one of `names`, of this bucket and this prefix.
pub(super) fn listed(
    bucket: &str,
    bucket_in: &str,
    prefix: &str,
    reply: &Reply,
    names: &[&str],
) -> Result<(Element, Text), SinkError> {
    if reply.status != 200 {
        return Err(failure(reply));
    }
    let protocol = |why: &str| SinkError::Protocol(format!("a listing {why}"));
    let root = Element::parse(&reply.body)
        .map_err(|why| protocol(&format!("that does not parse: {}", excerpt(&why))))?;
    match root.name.as_str() {
        name if names.contains(&name) => {}
        "Error" => return Err(failure(reply)),
        _ => return Err(protocol("of another kind")),
    }
    let text = Text { encoded: root.child("EncodingType") == Some("url") };
    if root.child(bucket_in) != Some(bucket) {
        return Err(protocol("of another bucket"));
    }
    if let Some(echo) = root.child("Prefix")
        && text.read(echo)? != prefix
        && echo != prefix
    {
        return Err(protocol("of another prefix"));
    }
    Ok((root, text))
}

/// Whether a listing goes on.
pub(super) fn is_truncated(root: &Element) -> Result<bool, SinkError> {
    match root.child("IsTruncated") {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(SinkError::Protocol("a listing that does not say whether it is whole".to_owned())),
    }
}

/// Undoes `encoding-type=url`, in which AWS and others write a space as `+`.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                rest = &tail[2..];
                u8::from_str_radix(digits, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// What `GET ?versioning` says.
pub(super) fn versioning(reply: &Reply) -> Result<Versioning, SinkError> {
    match setting(reply, "VersioningConfiguration", &[])? {
        Ok(root) => Ok(match root.child("Status") {
            None | Some("") => Versioning::Off,
            Some("Enabled") => Versioning::Enabled,
            Some("Suspended") => Versioning::Suspended,
            Some(other) => Versioning::Unknown(excerpt(other)),
        }),
        Err(why) => Ok(Versioning::Unknown(why)),
    }
}

/// What `GET ?object-lock` says.
pub(super) fn object_lock(reply: &Reply) -> Result<ObjectLock, SinkError> {
    let unset = ["ObjectLockConfigurationNotFoundError"];
    match setting(reply, "ObjectLockConfiguration", &unset)? {
        Ok(root) if root.child("ObjectLockEnabled") == Some("Enabled") => Ok(ObjectLock::On),
        Ok(_) => Ok(ObjectLock::Off),
        Err(why) => Ok(ObjectLock::Unknown(why)),
    }
}

/// A bucket's setting, or the reason why it is not known. What is unset reads as empty.
pub(super) fn setting(
    reply: &Reply,
    root: &str,
    unset: &[&str],
) -> Result<Result<Element, String>, SinkError> {
    let element = Element::parse(&reply.body).unwrap_or_default();
    match (reply.status, element.name.as_str()) {
        (200, name) if name == root => return Ok(Ok(element)),
        (200, _) => return Err(SinkError::Protocol(format!("no {root} in the answer"))),
        (_, "Error") if element.child("Code").is_some_and(|code| unset.contains(&code)) => {
            return Ok(Ok(Element::default()));
        }
        _ => {}
    }
    match failure(reply) {
        // Servers that do not know the setting, and credentials that may not ask, still delete.
        SinkError::Denied(why) | SinkError::Protocol(why) => Ok(Err(why)),
        error @ (SinkError::Throttled { .. }
        | SinkError::Unavailable(_)
        | SinkError::Missing(_)) => Err(error),
    }
}

/// What a store said, short and without line breaks: it goes into logs and receipts.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(200).collect()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
