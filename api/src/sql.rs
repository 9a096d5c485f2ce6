//! The statements of one relation, made once at start.
//!
//! Identifiers are quoted; values are bound. A key is one parameter, `$1`: the text of each key
//! column in one array, cast to the column's type where it is compared, so that indexes serve.

use std::sync::Arc;

use crate::orders::explain;
use tombstream_model::{FlagKind, KeyColumn, Relation};

/// The statements of one relation.
///
/// Those that show a row give `row_values` and `row_types`, which [`crate::row::Row`] reads.
pub(crate) struct Sql {
    /// `$1` key. The living row.
    pub(crate) read: Arc<str>,
    /// `$1` key, `$2` relation, `$3` actor. Gives what became of it, one of `flagged`, `was_flagged`,
    /// `gone`, `missing` and `contended`.
    pub(crate) flag: Arc<str>,
    /// `$1` keys as JSON, each once, `$2` relation, `$3` an actor for each. Gives the `key` and what became of it, as
    /// [`Self::flag`] does; what somebody else has locked is `contended`, and not waited for.
    pub(crate) flag_many: Arc<str>,
    /// `$1` key. Locks the row and gives it, and whether it is flagged.
    pub(crate) lock: Arc<str>,
    /// `$1` key, `$2` relation, `$3` actor. Decides on a fresh snapshot whether it is claimed, and if
    /// not unsets the flag and gives the row.
    pub(crate) restore: Arc<str>,
    /// `$1` key. The row, the newest deletion of its key, and the receipt.
    pub(crate) status: Arc<str>,
    /// The parts of the inserting statement, which depends on the columns that are given.
    create: CreateSql,
}

struct CreateSql {
    table: String,
    key: String,
    row: String,
}

/// `$1` key, `$2` relation. Cancels what the restored row's deletion was, before its claim; gives those of which
/// copies were hidden.
///
/// The guard trigger has done so already where it is installed.
pub(crate) const CANCEL: &str = "\
with cancelled as (
    update tombstream.deletion
    set state = 'cancelled', closed_at = clock_timestamp()
    where relation = $2 and key = $1 and claimed_at is null
        and state in ('pending', 'hidden', 'parked')
    returning id, hidden_at
)
select id from cancelled where hidden_at is not null";

/// `$1` cancelled deletions of which copies were hidden. A statement of its own: it needs a right that who has the
/// guard can do without.
pub(crate) const REHYDRATE: &str = "\
insert into tombstream.rehydrate (deletion_id, relation, key, targets, ready_at, lease_token)
select id, relation, key, targets, greatest(lease_until, clock_timestamp()), lease_token
from tombstream.deletion where id = any($1)";

/// `$1` key, `$2` relation. Whether the newest deletion of a key without a row was claimed.
pub(crate) const GONE: &str = "\
select claimed_at is not null and state in ('claimed', 'parked', 'finalized') as claimed
from tombstream.deletion_all
where relation = $2 and key = $1
order by id desc
limit 1";

/// `$1` relation, `$2` state or null, `$3` id or null, `$4` limit.
pub(crate) const LIST: &str = "\
select id, key, state, flag, first_seen, claimed_at, closed_at, due_at, attempts, reason
from tombstream.deletion_all
where relation = $1 and ($2::text is null or state = $2) and ($3::bigint is null or id < $3)
order by id desc
limit $4";

/// Whether the ledger is there and may be used.
pub(crate) const READY: &str = "\
select coalesce(has_table_privilege(to_regclass('tombstream.deletion')::oid, 'select'), false)
    and coalesce(has_table_privilege(to_regclass('tombstream.receipt')::oid, 'select'), false)
    and coalesce(has_table_privilege(to_regclass('tombstream.flip')::oid, 'insert'), false) as ready";

/// The states in which a deletion of a key without a row is still true.
pub(crate) const TRUE_WITHOUT_ROW: &str = "'pending', 'hidden', 'claimed', 'parked', 'finalized'";

/// A name as Postgres takes it whatever it holds.
pub(crate) fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as a literal, whatever it holds and whatever `standard_conforming_strings` says.
pub(crate) fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

impl Sql {
    /// Makes the statements.
    pub(crate) fn new(relation: &Relation, columns: &[String]) -> Self {
        let shared = Table::new(relation);
        let told = explain::selected(relation);
        let at = explain::bounded_at(&shared);
        let matches = shared.matches("$1::text[]");
        let matches_k = shared.matches("k.key");
        let Table {
            name: table, key, key_list, column, is_set, is_unset, set, unset, value, ..
        } = shared;
        let columns: Vec<_> =
            columns.iter().map(|column| format!("r.{}", quote_ident(column))).collect();
        let row = format!(
            "{} as row_values, {} as row_types",
            array(columns.iter().map(|column| format!("to_json({column})::text"))),
            array(columns.iter().map(|column| format!("pg_typeof({column})::text"))),
        );
        let read = format!("select {row}\nfrom {table} as r\nwhere {matches} and {is_unset}");

        // Invariant (S2): no 202 without a flag that is committed. A row that is alive in this
        // statement's snapshot and was not updated was changed by another at this moment, or kept by
        // a trigger: `contended`, to be asked again; a_trigger_that_keeps_the_row_is_not_hidden.
        let flag = format!(
            "with flipped as (
    update {table} as r set {column} = {set}
    where {matches} and {is_unset}
    returning {key} as key
), noted as (
    insert into tombstream.flip (relation, key, action, actor)
    select $2, flipped.key, 'flag', $3 from flipped
)
select case
    when exists (select from flipped) then 'flagged'
    when exists (select from {table} as r where {matches} and {is_set}) then 'was_flagged'
    when exists (select from {table} as r where {matches}) then 'contended'
    when (
        select d.state from tombstream.deletion_all as d
        where d.relation = $2 and d.key = $1 order by d.id desc limit 1
    ) in ({TRUE_WITHOUT_ROW}) then 'gone'
    else 'missing'
end as became"
        );

        // Rows are locked in the order of their keys, as everywhere; whoever waits here would make all wait.
        // `in` is hashed; a join of what the planner takes for a handful compares each with each.
        let flag_many = format!(
            "with k as materialized (
    select u.key as given, array(select jsonb_array_elements_text(u.key::jsonb)) as key, u.actor
    from unnest($1::text[], $3::text[]) as u(key, actor)
), locked as materialized (
    select {key} as key from {table} as r join k on {matches_k}
    where {is_unset}
    order by {key_list} for no key update of r skip locked
), flipped as (
    update {table} as r set {column} = {set} from k
    where {matches_k} and {is_unset} and exists (select from locked where locked.key = k.key)
    returning k.given, k.key, k.actor, {is_set} as set
), noted as (
    insert into tombstream.flip (relation, key, action, actor)
    select $2, key, 'flag', actor from flipped where set
)
select k.given as key, case
    when k.given in (select given from flipped where set) then 'flagged'
    when exists (select from {table} as r where {matches_k} and {is_set}) then 'was_flagged'
    when exists (select from {table} as r where {matches_k}) then 'contended'
    when (
        select d.state from tombstream.deletion_all as d
        where d.relation = $2 and d.key = k.key order by d.id desc limit 1
    ) in ({TRUE_WITHOUT_ROW}) then 'gone'
    else 'missing'
end as became
from k"
        );

        let lock = format!(
            "select {is_set} as flagged, {row}\nfrom {table} as r\nwhere {matches}\n\
             for no key update of r"
        );

        let restore = format!(
            "with claimed as materialized (
    select from tombstream.deletion as d
    where d.relation = $2 and d.key = $1 and d.claimed_at is not null
        and d.state in ('claimed', 'parked')
), revived as (
    update {table} as r set {column} = {unset}
    where {matches} and {is_set} and not exists (select from claimed)
    returning {key} as key, {is_unset} as alive, {row}
), noted as (
    insert into tombstream.flip (relation, key, action, actor)
    select $2, revived.key, 'restore', $3 from revived where revived.alive
)
select exists (select from claimed) as claimed, revived.alive, revived.row_values, revived.row_types
from (values (1)) as one left join revived on true"
        );

        let status = format!(
            "select r.flagged, r.flag as row_flag,
    d.id, d.key, d.state, d.flag, d.first_seen, d.claimed_at, d.closed_at, d.due_at, d.attempts, d.reason,
    d.flip_lsn::text as flip_lsn, d.targets::text as targets,
    e.finalized_at, e.transaction_id::text as transaction_id, e.row_gone, e.targets::text as evidence,
    {told}
from (values (1)) as one
left join (
    select {is_set} as flagged, {value} as flag, {at} as at from {table} as r where {matches}
) as r on true
left join (
    select * from tombstream.deletion_all as d
    where d.relation = $2 and d.key = $1 order by d.id desc limit 1
) as d on true
left join tombstream.receipt as e on e.deletion_id = d.id"
        );

        Self {
            read: read.into(),
            flag: flag.into(),
            flag_many: flag_many.into(),
            lock: lock.into(),
            restore: restore.into(),
            status: status.into(),
            create: CreateSql { table, key, row },
        }
    }

    /// `$1` a JSON object as text, `$2` relation, `$3` actor. Inserts a row with `columns` of the
    /// object; what is not among them gets its default.
    pub(crate) fn create<'a>(&self, columns: impl Iterator<Item = &'a str>) -> String {
        let CreateSql { table, key, row } = &self.create;
        let columns: Vec<_> = columns.map(quote_ident).collect();
        let (names, source) = if columns.is_empty() {
            (String::new(), "default values".into())
        } else {
            let values: Vec<_> = columns.iter().map(|column| format!("v.{column}")).collect();
            let source = format!(
                "select {} from json_populate_record(null::{table}, $1::text::json) as v",
                values.join(", ")
            );
            (format!("({}) ", columns.join(", ")), source)
        };
        format!(
            "with made as (
    insert into {table} as r {names}{source}
    returning {key} as key, {row}
), noted as (
    insert into tombstream.flip (relation, key, action, actor)
    select $2, made.key, 'create', $3 from made
)
select key, row_values, row_types, $1::text is null as nothing from made"
        )
    }
}

/// A relation in SQL: what every statement over its rows is made of. `r` is the table's alias.
pub(crate) struct Table<'a> {
    relation: &'a Relation,
    /// The table, quoted.
    pub(crate) name: String,
    /// A row's key as the ledger keeps it.
    pub(crate) key: String,
    /// The columns of the key, for `order by`.
    pub(crate) key_list: String,
    /// The flag's column, quoted and bare, as `set` takes it.
    pub(crate) column: String,
    pub(crate) is_set: String,
    pub(crate) is_unset: String,
    /// The value of a flag that is set now.
    pub(crate) set: String,
    /// The value of a flag that is not set.
    pub(crate) unset: &'static str,
    /// The flag's value as text: ISO with an offset, or `true`.
    pub(crate) value: String,
    /// The flag's value as a point in time on Postgres's clock; null where it tells none.
    pub(crate) at: String,
}

impl<'a> Table<'a> {
    pub(crate) fn new(relation: &'a Relation) -> Self {
        let column = quote_ident(&relation.flag.column);
        let keys = || relation.key.iter().map(|column| format!("r.{}", quote_ident(&column.name)));
        // Not now(): a flip may have waited for a lock, and a value from before the wait looks
        // back-dated.
        let now = "clock_timestamp()";
        let of_time = (format!("r.{column} is not null"), format!("r.{column} is null"));
        let ((is_set, is_unset), set, unset, value, at) = match &relation.flag.kind {
            FlagKind::TimestampTz => (
                of_time,
                now.to_owned(),
                "null",
                format!("to_json(r.{column}) #>> '{{}}'"),
                format!("r.{column}"),
            ),
            FlagKind::Timestamp { zone } => {
                let zone = quote_literal(zone);
                (
                    of_time,
                    format!("{now} at time zone {zone}"),
                    "null",
                    format!("to_json(r.{column} at time zone {zone}) #>> '{{}}'"),
                    // A zone's offset leads out of range at the ends of time, and one such row would fail
                    // the statement.
                    format!(
                        "(case when r.{column} >= '290000-01-01'::timestamp then 'infinity'::timestamptz \
                         when r.{column} < '4000-01-01 BC'::timestamp then '-infinity'::timestamptz \
                         else r.{column} at time zone {zone} end)"
                    ),
                )
            }
            FlagKind::Boolean => (
                (format!("r.{column} is true"), format!("r.{column} is not true")),
                "true".to_owned(),
                "false",
                format!("r.{column}::text"),
                "null::timestamptz".to_owned(),
            ),
        };
        Self {
            relation,
            name: format!("{}.{}", quote_ident(&relation.schema), quote_ident(&relation.table)),
            key: array(keys().map(|column| format!("{column}::text"))),
            key_list: keys().collect::<Vec<_>>().join(", "),
            column,
            is_set,
            is_unset,
            set,
            unset,
            value,
            at,
        }
    }

    /// `r."id" = (array)[1]::uuid and …`, where `array` is a key as the ledger keeps it.
    pub(crate) fn matches(&self, array: &str) -> String {
        let equal = |(number, column): (usize, &KeyColumn)| {
            let name = quote_ident(&column.name);
            format!("r.{name} = ({array})[{number}]::{}", column.kind.sql_type())
        };
        (1..).zip(&self.relation.key).map(equal).collect::<Vec<_>>().join(" and ")
    }
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("array[{}]", items.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::tests::documents;

    #[test]
    fn a_hostile_name_stays_one_name() {
        for (name, quoted) in [
            ("documents", "\"documents\""),
            ("Mixed Case", "\"Mixed Case\""),
            ("we\"ird; drop", "\"we\"\"ird; drop\""),
            ("\"", "\"\"\"\""),
            ("a\\\"b", "\"a\\\"\"b\""),
            ("é😀", "\"é😀\""),
        ] {
            assert_eq!(quote_ident(name), quoted);
        }
    }

    #[test]
    fn a_hostile_text_stays_one_literal() {
        for (text, quoted) in [
            ("Europe/Berlin", "'Europe/Berlin'"),
            ("x'; drop table t; --", "'x''; drop table t; --'"),
            ("\\'", "E'\\\\'''"),
        ] {
            assert_eq!(quote_literal(text), quoted);
        }
    }

    #[test]
    fn every_name_of_the_user_is_quoted_in_every_statement() {
        let mut api = documents();
        let mut relation = Arc::unwrap_or_clone(api.relation);
        relation.schema = "s\"1".into();
        relation.table = "t\"2".into();
        relation.key[0].name = "k\"3".into();
        relation.flag.column = "f\"4".into();
        api.columns = vec!["c\"5".into()];
        let sql = Sql::new(&relation, &api.columns);
        let create = sql.create(["n\"6"].into_iter());
        for statement in
            [&*sql.read, &sql.flag, &sql.flag_many, &sql.lock, &sql.restore, &sql.status, &create]
        {
            assert!(statement.contains("\"s\"\"1\".\"t\"\"2\""), "{statement}");
            for bare in ["s\"1", "t\"2", "k\"3", "f\"4", "c\"5", "n\"6"] {
                assert!(!statement.contains(bare), "{bare} in {statement}");
            }
        }
    }
}
