//! The rows that are there when a slot begins, as the log would have told them; and each table's
//! primary key, which the log tells only under REPLICA IDENTITY DEFAULT.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};
use tombstream_model::encode::Snapshot;
use tombstream_model::wal::{
    ReplicaIdentity, RowMessage, WalColumn, WalRow, WalTable, WalTransaction,
};
use tombstream_model::{Generation, Lsn, Origin};

use super::super::statement::whole;
use super::source::topic;
use crate::postgres::table::{ident, literal};

/// Rows that are handed on together.
const ROWS: usize = 1_000;

/// Reads every row of the publication's tables in `snapshot`, each with its place in the whole, and
/// hands them to `give` in pieces. All are said to stand at `lsn`, as Debezium has it.
pub async fn read_snapshot<E: From<sqlx::Error>>(
    pool: &PgPool,
    publication: &str,
    slot: &str,
    snapshot: &str,
    (generation, lsn): (Generation, Lsn),
    mut give: impl AsyncFnMut(Vec<(WalRow, Snapshot)>) -> Result<(), E>,
) -> Result<u64, E> {
    let begin = "begin isolation level repeatable read read only";
    let mut transaction = whole(pool, begin).await.map_err(E::from)?;
    // The name is the server's own; it is quoted all the same.
    let set = format!("set transaction snapshot {}", literal(snapshot));
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *transaction).await.map_err(E::from)?;
    let (xid, now): (i64, i64) = sqlx::query_as(
        "select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text::bigint, \
             (extract(epoch from now()) * 1000000)::bigint",
    )
    .persistent(false)
    .fetch_one(&mut *transaction)
    .await
    .map_err(E::from)?;
    let about = Arc::new(WalTransaction {
        xid: u32::try_from(xid & 0xffff_ffff).unwrap_or_default(),
        commit_lsn: lsn,
        committed_micros: now,
    });
    let mut piece = Piece { rows: Vec::with_capacity(ROWS), count: 0 };
    for (schema, name) in published(&mut transaction, publication).await.map_err(E::from)? {
        let table = Arc::new(describe(&mut transaction, &schema, &name).await.map_err(E::from)?);
        let topic = topic(slot, &table);
        let before = piece.count;
        let columns: Vec<String> = table.columns.iter().map(|column| ident(&column.name)).collect();
        let copy = format!(
            "copy (select {} from {}.{}) to stdout",
            columns.join(", "),
            ident(&schema),
            ident(&name)
        );
        let mut stream = transaction.copy_out_raw(&copy).await.map_err(E::from)?;
        let mut rest = BytesMut::new();
        while let Some(bytes) = stream.try_next().await.map_err(E::from)? {
            rest.extend_from_slice(&bytes);
            while let Some(end) = memchr::memchr(b'\n', &rest) {
                let line = rest.split_to(end + 1);
                let row = WalRow {
                    origin: Origin {
                        topic: Arc::clone(&topic),
                        partition: i32::try_from(piece.count).unwrap_or(i32::MAX),
                        offset: lsn.0.cast_signed(),
                    },
                    generation,
                    table: Arc::clone(&table),
                    transaction: Arc::clone(&about),
                    message: message(table.oid, &line[..end]),
                };
                piece.push(row, before, &mut give).await?;
            }
        }
        drop(stream);
        piece.end_table(before);
    }
    if let Some((_, place)) = piece.rows.last_mut() {
        *place = Snapshot::Last;
    }
    let count = piece.count;
    give(piece.rows).await?;
    transaction.rollback().await.map_err(E::from)?;
    Ok(count)
}

/// Rows that wait to be handed on. The last one stays back until it is known whether more come.
struct Piece {
    rows: Vec<(WalRow, Snapshot)>,
    count: u64,
}

impl Piece {
    async fn push<E>(
        &mut self,
        row: WalRow,
        before: u64,
        give: &mut impl AsyncFnMut(Vec<(WalRow, Snapshot)>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.rows.len() >= ROWS {
            let full = std::mem::replace(&mut self.rows, Vec::with_capacity(ROWS));
            let mut full = full;
            self.rows.extend(full.pop());
            give(full).await?;
        }
        let place = match (self.count, self.count == before) {
            (0, _) => Snapshot::First,
            (_, true) => Snapshot::FirstOfTable,
            (_, false) => Snapshot::Within,
        };
        self.rows.push((row, place));
        self.count += 1;
        Ok(())
    }

    fn end_table(&mut self, before: u64) {
        if self.count > before
            && let Some((_, place)) = self.rows.last_mut()
        {
            *place = Snapshot::LastOfTable;
        }
    }
}

async fn published(
    connection: &mut PgConnection,
    publication: &str,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(
        "select schemaname::text, tablename::text from pg_catalog.pg_publication_tables \
         where pubname = $1 order by 1, 2",
    )
    .persistent(false)
    .bind(publication)
    .fetch_all(connection)
    .await
}

/// The table as the log would describe it.
async fn describe(
    connection: &mut PgConnection,
    schema: &str,
    name: &str,
) -> Result<WalTable, sqlx::Error> {
    let rows = sqlx::query(
        "select c.oid::bigint, a.attname::text, a.atttypid::bigint, a.atttypmod \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         join pg_catalog.pg_attribute a on a.attrelid = c.oid \
         where n.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped \
             and a.attgenerated = '' order by a.attnum",
    )
    .persistent(false)
    .bind(schema)
    .bind(name)
    .fetch_all(connection)
    .await?;
    let oid = |row: &sqlx::postgres::PgRow, at: usize| {
        row.try_get::<i64, _>(at).map(|oid| u32::try_from(oid).unwrap_or_default())
    };
    let mut table = WalTable {
        oid: rows.first().map(|row| oid(row, 0)).transpose()?.unwrap_or_default(),
        schema: schema.into(),
        name: name.into(),
        identity: ReplicaIdentity::Default,
        columns: Box::default(),
    };
    let column = |row: &sqlx::postgres::PgRow| {
        Ok::<_, sqlx::Error>(WalColumn {
            name: row.try_get::<String, _>(1)?.into(),
            type_oid: oid(row, 2)?,
            type_modifier: row.try_get(3)?,
            is_identity: false,
        })
    };
    table.columns = rows.iter().map(column).collect::<Result<_, _>>()?;
    Ok(table)
}

/// A line of `copy` in its text format, as an insert.
fn message(table: u32, line: &[u8]) -> Bytes {
    let values: Vec<Option<Vec<u8>>> = line
        .split(|byte| *byte == b'\t')
        .map(|field| (field != b"\\N").then(|| plain(field)))
        .collect();
    RowMessage::insert(table, values.iter().map(Option::as_deref))
}

/// A field without its escapes, as the chapter on `copy` has them.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.iter().copied();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 11,
                Some(other) => other,
                None => byte,
            },
            byte => byte,
        });
    }
    plain
}

/// The places of each table's primary key, looked up once for each description of it.
#[derive(Debug, Default)]
pub struct PrimaryKeys(Vec<(Arc<WalTable>, Arc<[usize]>)>);

impl PrimaryKeys {
    /// Where the columns of the table's primary key stand in it, in the key's order. Without one those
    /// of its replica identity, unless that is the whole row; else none.
    pub async fn of(
        &mut self,
        pool: &PgPool,
        table: &Arc<WalTable>,
    ) -> Result<Arc<[usize]>, sqlx::Error> {
        if let Some((_, places)) = self.0.iter().find(|(known, _)| Arc::ptr_eq(known, table)) {
            return Ok(Arc::clone(places));
        }
        let mut transaction = whole(pool, "begin").await?;
        let names: Vec<String> = sqlx::query_scalar(
            "select a.attname::text from pg_catalog.pg_index i \
             join pg_catalog.pg_class c on c.oid = i.indrelid \
             join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
             cross join unnest(i.indkey::int2[]) with ordinality k(attnum, place) \
             join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum \
             where n.nspname = $1 and c.relname = $2 and i.indisprimary order by k.place",
        )
        .persistent(false)
        .bind(&*table.schema)
        .bind(&*table.name)
        .fetch_all(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        let mut places: Vec<usize> = names.iter().filter_map(|name| table.place(name)).collect();
        if places.is_empty() && table.identity != ReplicaIdentity::Full {
            let columns = table.columns.iter().enumerate();
            places = columns.filter(|(_, it)| it.is_identity).map(|(place, _)| place).collect();
        }
        let places: Arc<[usize]> = places.into();
        if self.0.len() >= 1_000 {
            self.0.clear();
        }
        self.0.push((Arc::clone(table), Arc::clone(&places)));
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use tombstream_model::wal::Value;

    use super::*;

    #[test]
    fn a_line_of_copy_is_the_row_that_it_was() {
        let message = message(7, b"a\\tb\\n\\\\\t\\N\t\t\\\\N");
        let RowMessage::Insert { new } = RowMessage::read(&message).unwrap() else {
            panic!("an insert")
        };
        let values: Vec<_> = new.values().collect();
        assert_eq!(
            values,
            [Value::Text(b"a\tb\n\\"), Value::Null, Value::Text(b""), Value::Text(b"\\N")]
        );
    }
}
