//! Dead letters: messages that could not be decoded, and how much of them is kept.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::{Event, Origin};

/// A message that could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it stood.
    pub origin: Origin,
    /// The topic that it was written to, where that is not where it stood.
    pub topic: Option<Arc<str>>,
    /// What its bytes are.
    pub form: LetterForm,
    /// Why it can't be decoded.
    pub reason: String,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// How much of its key and value is here.
    pub kept: Kept,
    /// How many bytes key and value had when they came.
    pub bytes: u64,
}

/// What the bytes of a dead letter are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterForm {
    /// A message of a topic: it can be decoded again.
    Message,
    /// A row of Postgres's own log. The session that read it knew its columns; alone it can't be decoded.
    Row,
}

/// How much of a dead letter is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Every byte.
    Whole,
    /// The first bytes, up to a limit; and the digest of all.
    Cut([u8; 32]),
    /// None; the digest alone.
    Redacted([u8; 32]),
}

/// How much is kept of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterLimits {
    /// Most bytes of key and value together. 1 MiB: what Kafka's brokers take by default.
    pub bytes_max: usize,
    /// No bytes at all, since they may hold what is to be deleted: a digest tells whether a message at
    /// hand is the one.
    pub redact: bool,
}

impl Default for LetterLimits {
    fn default() -> Self {
        Self { bytes_max: 1 << 20, redact: false }
    }
}

impl DeadLetter {
    /// `event`, which could not be decoded, as far as `limits` let it be kept.
    pub fn new(event: Event, form: LetterForm, reason: String, limits: LetterLimits) -> Self {
        let Event { origin, topic, key, value } = event;
        let bytes = length(key.as_ref()) + length(value.as_ref());
        let letter = Self { origin, topic, form, reason, key, value, kept: Kept::Whole, bytes };
        if limits.redact {
            let kept = Kept::Redacted(letter.digest());
            return Self { key: None, value: None, kept, ..letter };
        }
        if usize::try_from(bytes).is_ok_and(|bytes| bytes <= limits.bytes_max) {
            return letter;
        }
        let kept = Kept::Cut(letter.digest());
        let key = letter.key.as_ref().map(|key| cut(key, limits.bytes_max));
        let rest = limits.bytes_max - key.as_ref().map_or(0, Bytes::len);
        let value = letter.value.as_ref().map(|value| cut(value, rest));
        Self { key, value, kept, ..letter }
    }

    /// Of the key's length (eight bytes, big-endian; all ones where there is no key), the key, the value.
    fn digest(&self) -> [u8; 32] {
        let length = self.key.as_ref().map_or(u64::MAX, |key| key.len() as u64);
        let mut digest = Sha256::new();
        digest.update(length.to_be_bytes());
        for part in [&self.key, &self.value].into_iter().flatten() {
            digest.update(part);
        }
        digest.finalize().into()
    }
}

fn length(bytes: Option<&Bytes>) -> u64 {
    bytes.map_or(0, |bytes| bytes.len() as u64)
}

/// Copied, not borrowed: what is left out is not held on to.
fn cut(bytes: &Bytes, max: usize) -> Bytes {
    Bytes::copy_from_slice(&bytes[..bytes.len().min(max)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(
        key: Option<&'static [u8]>,
        value: &'static [u8],
        limits: LetterLimits,
    ) -> DeadLetter {
        let event = Event {
            origin: Origin { topic: "t".into(), partition: 0, offset: 1 },
            topic: None,
            key: key.map(Bytes::from_static),
            value: Some(Bytes::from_static(value)),
        };
        DeadLetter::new(event, LetterForm::Message, "no".into(), limits)
    }

    #[test]
    fn a_letter_is_whole_up_to_the_limit_and_not_one_byte_more() {
        let limits = LetterLimits { bytes_max: 6, redact: false };
        assert_eq!(letter(Some(b"abc"), b"def", limits).kept, Kept::Whole);
        let cut = letter(Some(b"abc"), b"defg", limits);
        assert!(matches!(cut.kept, Kept::Cut(_)));
        assert_eq!((cut.key.unwrap(), cut.value.unwrap()), ("abc".into(), "def".into()));
        let cut = letter(Some(b"abcdefgh"), b"x", limits);
        assert_eq!((cut.key.unwrap(), cut.value.unwrap()), ("abcdef".into(), "".into()));
        assert_eq!(cut.bytes, 9);
    }

    #[test]
    fn of_a_redacted_letter_no_byte_is_kept_and_the_digest_tells_key_from_value() {
        let limits = LetterLimits { redact: true, ..LetterLimits::default() };
        let one = letter(Some(b"ab"), b"c", limits);
        assert_eq!((&one.key, &one.value, one.bytes), (&None, &None, 3));
        let digests =
            [one.kept, letter(Some(b"a"), b"bc", limits).kept, letter(None, b"abc", limits).kept];
        assert!(digests[0] != digests[1] && digests[1] != digests[2] && digests[0] != digests[2]);
        assert_eq!(one.kept, letter(Some(b"ab"), b"c", limits).kept);
    }
}
