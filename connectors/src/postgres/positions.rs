//! How far the files of a source were read, kept in the ledger's database.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{PgPool, Row as _};

use super::statement::Statements;
use crate::positions::{Position, Positions, PositionsError};

/// The positions of one source's files, in `tombstream.file_position`.
#[derive(Clone, Debug)]
pub struct PgPositions {
    statements: Statements,
    source: String,
}

impl PgPositions {
    /// The positions of the source of this name. `prepared_statements`: see `LedgerConfig`.
    pub fn new(pool: PgPool, source: impl Into<String>, prepared_statements: bool) -> Self {
        let statements = Statements::new(pool, prepared_statements);
        Self { statements, source: source.into() }
    }

    async fn read(&self) -> Result<BTreeMap<String, Position>, sqlx::Error> {
        let query = self.statements.query(
            "select file, next, tail, whole from tombstream.file_position where source = $1",
        );
        let mut session = self.statements.session().await?;
        let rows = query.bind(&self.source).fetch_all(&mut *session).await?;
        session.end().await?;
        let position = |row: &sqlx::postgres::PgRow| {
            let next = u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or_default();
            let position = Position { next, tail: row.try_get(2)?, whole: row.try_get(3)? };
            Ok((row.try_get(0)?, position))
        };
        rows.iter().map(position).collect()
    }

    async fn write(&self, positions: &[(Arc<str>, Position)]) -> Result<(), sqlx::Error> {
        // In the order of their keys, so that two processes wait for each other in one order.
        let mut positions: Vec<_> = positions.iter().collect();
        positions.sort_by(|one, other| one.0.cmp(&other.0));
        let files: Vec<&str> = positions.iter().map(|(file, _)| &**file).collect();
        let next = positions.iter().map(|(_, position)| position.next);
        let next: Vec<i64> = next.map(|next| i64::try_from(next).unwrap_or(i64::MAX)).collect();
        let tails: Vec<&str> = positions.iter().map(|(_, position)| &*position.tail).collect();
        let whole: Vec<Option<&str>> =
            positions.iter().map(|(_, position)| position.whole.as_deref()).collect();
        let query = self.statements.query(
            "insert into tombstream.file_position as p (source, file, next, tail, whole) \
             select $1, * from unnest($2::text[], $3::bigint[], $4::text[], $5::text[]) \
             on conflict (source, file) do update \
             set next = excluded.next, tail = excluded.tail, whole = excluded.whole, at = now() \
             where excluded.next > p.next or (excluded.next = p.next and excluded.whole is not null)",
        );
        let mut session = self.statements.session().await?;
        query
            .bind(&self.source)
            .bind(files)
            .bind(next)
            .bind(tails)
            .bind(whole)
            .execute(&mut *session)
            .await?;
        session.end().await
    }
}

fn unavailable(error: sqlx::Error) -> PositionsError {
    PositionsError::Unavailable(Box::new(error))
}

impl Positions for PgPositions {
    async fn load(&self) -> Result<BTreeMap<String, Position>, PositionsError> {
        self.read().await.map_err(unavailable)
    }

    async fn store(&self, positions: &[(Arc<str>, Position)]) -> Result<(), PositionsError> {
        self.write(positions).await.map_err(unavailable)
    }

    fn forgetting(&self, file: &str) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        format!(
            "delete from tombstream.file_position where source = {} and file = {}",
            quoted(&self.source),
            quoted(file)
        )
    }
}
