//! Dead letters: what could not be decoded is kept whole, so that nothing is lost (S7).

use tombstream_model::{DeadLetter, LedgerError};

use super::ledger::PgLedger;
use super::pool::ledger_error;

impl PgLedger {
    pub(super) async fn bury_batch(&self, batch: &[DeadLetter]) -> Result<(), LedgerError> {
        let topics: Vec<&str> = batch.iter().map(|letter| &*letter.origin.topic).collect();
        let partitions: Vec<i32> = batch.iter().map(|letter| letter.origin.partition).collect();
        let offsets: Vec<i64> = batch.iter().map(|letter| letter.origin.offset).collect();
        // Postgres has no text with a zero byte.
        let reasons: Vec<String> =
            batch.iter().map(|letter| letter.reason.replace('\0', "\u{fffd}")).collect();
        let keys: Vec<Option<&[u8]>> = batch.iter().map(|letter| letter.key.as_deref()).collect();
        let values: Vec<Option<&[u8]>> =
            batch.iter().map(|letter| letter.value.as_deref()).collect();
        let query = self.statements.query(
            "insert into tombstream.dead_letter (topic, partition, \"offset\", reason, key, value) \
             select * from unnest($1::text[], $2::integer[], $3::bigint[], $4::text[], $5::bytea[], \
                 $6::bytea[]) on conflict (topic, partition, \"offset\") do nothing",
        );
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        query
            .bind(topics)
            .bind(partitions)
            .bind(offsets)
            .bind(reasons)
            .bind(keys)
            .bind(values)
            .execute(&mut *session)
            .await
            .map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)
    }
}
