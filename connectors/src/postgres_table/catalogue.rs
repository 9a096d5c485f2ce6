//! What the catalogue says of the table, asked anew for each batch: its columns may be altered, and a
//! foreign key may have come that takes living rows along.

use sqlx::PgConnection;
use tombstream_model::SinkError;

use super::answer::{Fault, READ_ONLY};
use super::config::PostgresTableConfig;

/// A column by which rows are found, and the type that its values are cast to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: &'static str,
}

/// A child that a deleted row would touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) table: String,
    pub(super) constraint: String,
    pub(super) action: &'static str,
}

/// The types whose values have one spelling each, and which compare by it.
///
/// Invariant (S8): elsewhere two rows could be equal and not the same (`1` and `1.0`, `A` and `a` under some
/// collations, texts that are padded); `a_column_that_does_not_compare_exactly_is_refused`.
const EXACT: [&str; 6] = ["uuid", "bigint", "integer", "smallint", "text", "character varying"];

/// Sets the transaction's own limits, and refuses a server that takes no writes.
///
/// Invariant (S6): with `row_security` off a policy that would hide rows is an error, not an absence;
/// `a_policy_that_hides_rows_is_no_absence`. An answered delete survives a crash of the server, whatever
/// `synchronous_commit` says elsewhere.
pub(super) async fn prepare(
    connection: &mut PgConnection,
    config: &PostgresTableConfig,
    statement_timeout: std::time::Duration,
) -> Result<(), Fault> {
    let milliseconds = |wait: std::time::Duration| wait.as_millis().max(1).to_string();
    let (is_standby, read_only): (bool, String) = sqlx::query_as(
        "select pg_is_in_recovery(), current_setting('transaction_read_only'), \
             set_config('row_security', 'off', true), set_config('statement_timeout', $1, true), \
             set_config('lock_timeout', $2, true), set_config('synchronous_commit', case \
                 current_setting('synchronous_commit') when 'off' then 'on' \
                 else current_setting('synchronous_commit') end, true)",
    )
    .bind(milliseconds(statement_timeout))
    .bind(milliseconds(config.lock_timeout))
    .persistent(false)
    .fetch_one(connection)
    .await?;
    if is_standby || read_only == "on" {
        return Err(Fault::Whole(SinkError::Unavailable(READ_ONLY.into())));
    }
    Ok(())
}

/// The table's oid, if it is one that rows can be deleted from.
pub(super) async fn table(
    connection: &mut PgConnection,
    config: &PostgresTableConfig,
) -> Result<i64, Fault> {
    let found: Option<(i64, String)> = sqlx::query_as(
        "select c.oid::bigint, c.relkind::text from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2",
    )
    .bind(&config.schema)
    .bind(&config.name)
    .persistent(false)
    .fetch_optional(connection)
    .await?;
    let table = &config.table;
    match found {
        Some((oid, kind)) if matches!(kind.as_str(), "r" | "p") => Ok(oid),
        Some(_) => {
            let said = format!("{table} is no table: name the table that the rows are in");
            Err(Fault::Whole(SinkError::Denied(said)))
        }
        None => Err(Fault::Whole(SinkError::Missing(format!("table {table}")))),
    }
}

/// The columns of these names, in their order.
pub(super) async fn columns(
    connection: &mut PgConnection,
    config: &PostgresTableConfig,
    table: i64,
    names: &[&str],
) -> Result<Vec<Column>, Fault> {
    let known: Vec<(String, String, bool)> = sqlx::query_as(
        "select a.attname::text, pg_catalog.format_type(a.atttypid, null), \
             coalesce(c.collisdeterministic, true) from pg_catalog.pg_attribute a \
         left join pg_catalog.pg_collation c on c.oid = a.attcollation \
         where a.attrelid = $1::oid and a.attnum > 0 and not a.attisdropped",
    )
    .bind(table)
    .persistent(false)
    .fetch_all(connection)
    .await?;
    let column = |name: &&str| {
        let Some((_, kind, exact)) = known.iter().find(|(known, ..)| known == name) else {
            let said = format!("column {name} of table {}", config.table);
            return Err(Fault::Whole(SinkError::Missing(said)));
        };
        match EXACT.iter().find(|exact| *exact == kind) {
            Some(kind) if *exact => Ok(Column { name: (*name).to_owned(), kind }),
            Some(_) | None => Err(Fault::Whole(SinkError::Denied(format!(
                "column {name} ({kind}{}) does not compare exactly: find rows by columns of type uuid, \
                 bigint, integer, smallint, text or varchar, with a deterministic collation",
                if *exact { "" } else { ", under a collation that is not deterministic" },
            )))),
        }
    };
    names.iter().map(column).collect()
}

/// Who references the table, or one that inherits from it or is a part of it, in a way that touches rows
/// elsewhere.
pub(super) async fn children(
    connection: &mut PgConnection,
    table: i64,
) -> Result<Vec<Child>, Fault> {
    let children: Vec<(String, String, String)> = sqlx::query_as(
        "with recursive tree(oid) as (select $1::oid union \
             select i.inhrelid from pg_catalog.pg_inherits i join tree on i.inhparent = tree.oid) \
         select n.nspname || '.' || c.relname, f.conname::text, f.confdeltype::text \
         from pg_catalog.pg_constraint f join pg_catalog.pg_class c on c.oid = f.conrelid \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where f.contype = 'f' and f.confrelid in (select oid from tree) and f.conparentid = 0 \
             and f.confdeltype in ('c', 'n', 'd') order by 1, 2",
    )
    .bind(table)
    .persistent(false)
    .fetch_all(connection)
    .await?;
    let child = |(table, constraint, action): (String, String, String)| Child {
        table,
        constraint,
        action: match action.as_str() {
            "c" => "on delete cascade",
            "n" => "on delete set null",
            _ => "on delete set default",
        },
    };
    Ok(children.into_iter().map(child).collect())
}

/// The children that may not be touched, as a sentence.
pub(super) fn forbidden(config: &PostgresTableConfig, children: &[Child]) -> Option<String> {
    let told: Vec<String> = children
        .iter()
        .filter(|child| !config.allow_cascade.contains(&child.table))
        .map(|child| format!("{} ({}, {})", child.table, child.constraint, child.action))
        .collect();
    (!told.is_empty()).then(|| {
        format!(
            "a deleted row of {} would touch rows of {}: name each in allow_cascade if that is wanted",
            config.table,
            told.join(", ")
        )
    })
}
