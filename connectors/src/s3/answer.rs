//! What an answer proves. Pure: no request is made here, and no clock is read.
//!
//! S3 answers 200 with errors inside, lists only errors when asked to be quiet (so it never is),
//! calls a missing key deleted, and calls a delete marker deleted too, which erases nothing.

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
    pub(super) body: Vec<u8>,
}

/// A key that was asked to be deleted, and what a probe had found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) key: &'a str,
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

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) keys: Vec<String>,
    /// Delete markers; only a listing of versions has them.
    pub(super) markers: usize,
    pub(super) truncated: bool,
}

/// Why a versioned bucket's objects are refused.
pub(super) const VERSIONED: &str = "versioned bucket: a delete marker erases nothing, and the \
     versions stay; use an unversioned bucket, or a release of Tombstream \
     that erases versions";

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

fn is_throttling(code: &str) -> bool {
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
pub(super) fn deleted(asked: &[Asked<'_>], reply: &Reply) -> Result<Vec<Outcome>, SinkError> {
    if reply.status != 200 {
        return Err(failure(reply));
    }
    let unknown = |why: String| Ok(vec![Outcome::new(Verdict::Unknown, why); asked.len()]);
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
    let places: HashMap<&str, usize> =
        asked.iter().enumerate().map(|(place, asked)| (asked.key, place)).collect();
    let mut outcomes: Vec<Option<Outcome>> = vec![None; asked.len()];
    for entry in &root.children {
        let outcome = match entry.name.as_str() {
            "Deleted" => None,
            "Error" => {
                let code = entry.child("Code").unwrap_or("");
                if code == "NoSuchBucket" {
                    return Err(SinkError::Missing("http 200, NoSuchBucket for a key".into()));
                }
                Some(refused_key(code, entry.child("Message").unwrap_or("")))
            }
            _ => continue,
        };
        let Some(&place) = entry.child("Key").and_then(|key| places.get(key)) else {
            return unknown("an answer that names a key which was not asked for".into());
        };
        let outcome = outcome.unwrap_or_else(|| deleted_key(entry, asked[place].probed));
        let said_twice = outcomes[place].is_some();
        outcomes[place] = Some(if said_twice {
            Outcome::new(Verdict::Unknown, "the answer names the key twice")
        } else {
            outcome
        });
    }
    let missing = || Outcome::new(Verdict::Unknown, "the answer leaves the key out");
    Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect())
}

fn deleted_key(entry: &Element, probed: Option<Presence>) -> Outcome {
    let marker = entry.child("DeleteMarker").is_some_and(|text| text.trim() == "true")
        || entry.child("DeleteMarkerVersionId").is_some();
    if marker {
        return Outcome::new(Verdict::Refused, VERSIONED);
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
        "NoSuchKey" => Verdict::Absent,
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

/// The page of a listing of `prefix` in `bucket`: of objects, or of versions.
pub(super) fn listing(bucket: &str, prefix: &str, reply: &Reply) -> Result<Listing, SinkError> {
    if reply.status != 200 {
        return Err(failure(reply));
    }
    let protocol = |why: &str| SinkError::Protocol(format!("a listing {why}"));
    let root = Element::parse(&reply.body)
        .map_err(|why| protocol(&format!("that does not parse: {}", excerpt(&why))))?;
    match root.name.as_str() {
        "ListBucketResult" | "ListVersionsResult" => {}
        "Error" => return Err(failure(reply)),
        _ => return Err(protocol("of another kind")),
    }
    let encoded = root.child("EncodingType") == Some("url");
    let read = |text: &str| match encoded {
        true => decode(text).ok_or_else(|| protocol("with a key that does not decode")),
        false => Ok(text.to_owned()),
    };
    if root.child("Name") != Some(bucket) {
        return Err(protocol("of another bucket"));
    }
    if let Some(echo) = root.child("Prefix")
        && read(echo)? != prefix
        && echo != prefix
    {
        return Err(protocol("of another prefix"));
    }
    let mut listing = Listing {
        truncated: match root.child("IsTruncated") {
            Some("true") => true,
            Some("false") => false,
            _ => return Err(protocol("that does not say whether it is whole")),
        },
        ..Listing::default()
    };
    for entry in &root.children {
        match entry.name.as_str() {
            "Contents" | "Version" => {
                let key =
                    entry.child("Key").ok_or_else(|| protocol("with an entry without key"))?;
                let key = read(key)?;
                if !key.starts_with(prefix) {
                    return Err(protocol("with a key outside of its prefix"));
                }
                listing.keys.push(key);
            }
            "DeleteMarker" => listing.markers += 1,
            _ => {}
        }
    }
    if listing.truncated && listing.keys.is_empty() && listing.markers == 0 {
        return Err(protocol("that is empty and not whole"));
    }
    Ok(listing)
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
fn setting(
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
fn excerpt(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(200).collect()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
