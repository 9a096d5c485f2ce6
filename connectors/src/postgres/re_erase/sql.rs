//! The statements over one relation's rows that are back.

use tombstream_model::{FlagKind, Relation};

use super::super::table::{Table, ident, literal};

/// A relation's statements.
#[derive(Clone, Debug)]
pub(super) struct Sql {
    pub(super) lock: String,
    pub(super) look: String,
    pub(super) flag: String,
    pub(super) open: String,
    pub(super) first: String,
    pub(super) next: String,
}

/// How long the application's lock on a row is waited for; then the page is tried again.
pub(super) const BEGIN: &str =
    "begin isolation level read committed; set local lock_timeout = '5s'";
/// Of a dry run, and of reading keys.
pub(super) const READ: &str = "begin isolation level read committed read only";

impl Sql {
    /// `created`: the column that tells when a row came to be.
    pub(super) fn new(relation: &Relation, created: Option<&str>) -> Self {
        let table = Table::new(relation);
        let order = table.key_list("t");
        let bounds: Vec<String> = relation
            .key
            .iter()
            .zip(2..)
            .map(|(column, n)| format!("${n}::text::{}", column.kind.sql_type()))
            .collect();
        let page = |after: &str| {
            format!(
                "select {} from {} t{after} order by {order} limit $1",
                table.key("t"),
                table.name()
            )
        };
        Self {
            lock: format!(
                "select 1 from {name} t join {keys} on {matches} order by {order} for no key update of t",
                name = table.name(),
                keys = table.unnest_keys(1),
                matches = table.matches_keys("t"),
            ),
            look: look_sql(relation, created),
            flag: flag_sql(relation),
            open: open_sql(relation),
            first: page(""),
            next: page(&format!(" where ({order}) > ({})", bounds.join(", "))),
        }
    }
}

/// The columns of a key `k` as the ledger has it.
fn ledger_key(relation: &Relation) -> String {
    let columns: Vec<_> = (0..relation.key.len()).map(|n| format!("k.k{n}")).collect();
    format!("array[{}]", columns.join(", "))
}

/// What is known of each row that is there. The keys come first, an array a column; then, of the receipt: the deletion,
/// the entry, the transaction, the flag, when it was finalized, and the key's hash.
///
/// A row's transaction has 32 bits: it is taken for the newest one that it can be, which shows less, never more.
fn look_sql(relation: &Relation, created: Option<&str>) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let count = relation.key.len();
    let keys: Vec<_> = (1..=count).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<_> = (0..count).map(|n| format!("k{n}")).collect();
    let bound = |n: usize| count + n;
    let has_its_flag = match relation.flag.kind {
        FlagKind::Boolean => "false".to_owned(),
        FlagKind::TimestampTz | FlagKind::Timestamp { .. } => {
            format!("coalesce({} = {}, false)", table.flag("t"), table.flag_value("k.flag"))
        }
    };
    format!(
        "with now as materialized ( \
             select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next \
         ) \
         select k.n, coalesce({is_set}, false) as is_flagged, {has_its_flag} as has_its_flag, \
             {created} as created, \
             now.next - ((now.next - t.xmin::text::bigint) & 4294967295) as written_by, \
             exists (select from tombstream.receipt r where r.deletion_id = k.deletion \
                 and r.entry = k.entry and r.transaction_id::text = k.transaction \
                 and r.finalized_at = k.finalized_at and not r.imported) as is_known, \
             exists (select from tombstream.receipt r where r.relation = {name} \
                 and (r.key = {key} or r.hashed and r.key = array[k.hashed]) \
                 and r.finalized_at > k.finalized_at and not r.imported) as was_removed_since, \
             exists (select from tombstream.deletion_all d where d.relation = {name} and d.key = {key} \
                 and d.cause = 're_erase' and d.state = 'cancelled') as was_taken_back, \
             exists (select from tombstream.deletion d where d.relation = {name} and d.key = {key} \
                 and d.cause = 're_erase' and d.state in ('pending', 'hidden', 'claimed', 'parked')) as is_under_way \
         from now cross join \
             unnest({arrays}, ${deletion}::bigint[], ${entry}::bigint[], ${transaction}::text[], ${flag}::text[], \
                 ${finalized}::timestamptz[], ${hashed}::text[]) with ordinality \
                 as k({names}, deletion, entry, transaction, flag, finalized_at, hashed, n) \
         join {table} t on {matches} order by k.n",
        is_set = table.is_set("t"),
        created = created.map_or_else(
            || "null::timestamptz".to_owned(),
            |column| format!("t.{}", ident(column))
        ),
        key = ledger_key(relation),
        arrays = keys.join(", "),
        names = names.join(", "),
        deletion = bound(1),
        entry = bound(2),
        transaction = bound(3),
        flag = bound(4),
        finalized = bound(5),
        hashed = bound(6),
        table = table.name(),
        matches = table.matches_keys("t"),
    )
}

/// Sets the flag that was claimed; of a row that had none, the time of its claim. The keys come first, then the flags
/// and those times.
fn flag_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let count = relation.key.len();
    let keys: Vec<_> = (1..=count).map(|n| format!("${n}::text[]")).collect();
    let names: Vec<_> = (0..count).map(|n| format!("k{n}")).collect();
    let value = match &relation.flag.kind {
        FlagKind::TimestampTz => "coalesce(k.flag::timestamptz, k.claimed_at)".to_owned(),
        FlagKind::Timestamp { zone } => {
            format!("coalesce(k.flag::timestamp, k.claimed_at at time zone {})", literal(zone))
        }
        FlagKind::Boolean => "true".to_owned(),
    };
    format!(
        "update {table} t set {column} = {value} \
         from unnest({arrays}, ${flag}::text[], ${claimed}::timestamptz[]) as k({names}, flag, claimed_at) \
         where {matches} and not coalesce({is_set}, false) returning {key}",
        table = table.name(),
        column = ident(&relation.flag.column),
        arrays = keys.join(", "),
        flag = count + 1,
        claimed = count + 2,
        names = names.join(", "),
        matches = table.matches_keys("t"),
        is_set = table.is_set("t"),
        key = table.key("t"),
    )
}

/// Writes the deletions down, with their cause: `$1` keys as JSON, `$2` when they were claimed before, `$3` why. They
/// had their grace then: the first sight is of that time. Behind the flag, whose guard closes what is open of a key
/// that gets one.
fn open_sql(relation: &Relation) -> String {
    format!(
        "insert into tombstream.deletion as d (relation, key, state, cause, first_seen, reason) \
         select {name}, array(select jsonb_array_elements_text(i.key::jsonb)), 'pending', 're_erase', \
             least(i.claimed_at, now()), i.reason \
         from unnest($1::text[], $2::timestamptz[], $3::text[]) as i(key, claimed_at, reason) \
         order by 2 \
         on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked') \
         do update set cause = excluded.cause, reason = excluded.reason, \
             first_seen = least(d.first_seen, excluded.first_seen) \
             where d.claimed_at is null and d.removed is null and d.state in ('pending', 'hidden')",
        name = literal(&relation.name),
    )
}
