//! Dead letters: what could not be decoded is kept, so that nothing is lost (S7).

use std::collections::BTreeMap;

use tombstream_model::{DeadLetter, Kept, LedgerError, LetterForm};

use super::ledger::PgLedger;
use super::pool::ledger_error;

/// The same message again is kept once. If it was driven again, or taken for decoded, it stands there as
/// before with the new reason; its bytes are those that were kept at first.
const BURY: &str = "\
    insert into tombstream.dead_letter as l (topic, partition, \"offset\", reason, key, value, \
        written_to, form, kept, bytes, sha256) \
    select * from unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::bytea[], $6::bytea[], \
        $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bytea[]) \
    on conflict (topic, partition, \"offset\") do update set reason = excluded.reason, \
        attempts = l.attempts + 1, redrive_at = null, drive_token = null, driven_until = null, \
        resolved_at = null \
        where l.drive_token is not null or l.resolved_at is not null";

impl PgLedger {
    pub(super) async fn bury_batch(&self, batch: &[DeadLetter]) -> Result<(), LedgerError> {
        // One row is written once by a statement; and in the order of their places, so that two processes
        // wait for each other in one order.
        let batch: BTreeMap<_, _> = batch.iter().map(|letter| (place(letter), letter)).collect();
        let letters = || batch.values();
        let topics: Vec<&str> = letters().map(|letter| &*letter.origin.topic).collect();
        let partitions: Vec<i32> = letters().map(|letter| letter.origin.partition).collect();
        let offsets: Vec<i64> = letters().map(|letter| letter.origin.offset).collect();
        // Postgres has no text with a zero byte.
        let reasons: Vec<String> =
            letters().map(|letter| letter.reason.replace('\0', "\u{fffd}")).collect();
        let keys: Vec<Option<&[u8]>> = letters().map(|letter| letter.key.as_deref()).collect();
        let values: Vec<Option<&[u8]>> = letters().map(|letter| letter.value.as_deref()).collect();
        let written_to: Vec<Option<&str>> =
            letters().map(|letter| letter.topic.as_deref()).collect();
        let forms: Vec<&str> = letters()
            .map(|letter| match letter.form {
                LetterForm::Message => "message",
                LetterForm::Row => "row",
            })
            .collect();
        let kept: Vec<(&str, Option<&[u8]>)> = letters().map(|letter| kept(&letter.kept)).collect();
        let (kept, digests): (Vec<&str>, Vec<Option<&[u8]>>) = kept.into_iter().unzip();
        let bytes: Vec<i64> =
            letters().map(|letter| i64::try_from(letter.bytes).unwrap_or(i64::MAX)).collect();
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        self.statements
            .query(BURY)
            .bind(topics)
            .bind(partitions)
            .bind(offsets)
            .bind(reasons)
            .bind(keys)
            .bind(values)
            .bind(written_to)
            .bind(forms)
            .bind(kept)
            .bind(bytes)
            .bind(digests)
            .execute(&mut *session)
            .await
            .map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)
    }
}

fn place(letter: &DeadLetter) -> (&str, i32, i64) {
    (&letter.origin.topic, letter.origin.partition, letter.origin.offset)
}

fn kept(kept: &Kept) -> (&'static str, Option<&[u8]>) {
    match kept {
        Kept::Whole => ("whole", None),
        Kept::Cut(digest) => ("cut", Some(digest)),
        Kept::Redacted(digest) => ("redacted", Some(digest)),
    }
}
