//! The guard over rows that arrive: inserted ones, and those that take another's key.
//!
//! A row that arrives flagged, with an old value, skips no grace (S1). And where hard deletes are deletions,
//! none arrives under a key whose copies are being destroyed (S5): there is no row to lock, so claim and
//! arrival meet on an advisory lock of the key's bucket, which arrivals share.

use tombstream_model::{OnHardDelete, Relation};

use super::guard::{CLAIMED_SQLSTATE, backdated, function_sql, row, trigger_name};
use super::table::{Table, ident, literal};

/// Buckets of keys, a power of two: one lock for each key would run out of shared memory.
const BUCKETS: u32 = 1_024;

/// The statements that give `relation` its triggers over arriving rows. Each may be run again.
pub(super) fn arrival_sql(relation: &Relation) -> Vec<String> {
    let table = Table::new(relation);
    let name = table.name();
    let function =
        format!("tombstream.{}", ident(&super::guard::bounded("arrival_", &relation.name)));
    let destroys = relation.on_hard_delete == OnHardDelete::Destroy;
    let set = table.is_set("new");
    let moved = format!("{} is distinct from {}", row(&table, "old"), row(&table, "new"));
    let mut statements = vec![arrival_function(relation, &function)];
    // What arrives by an update and is flagged is the other guard's.
    let inserted = if destroys { String::new() } else { format!("when ({set}) ") };
    let moved = destroys.then(|| ("moved", "update", format!("when ({moved}) ")));
    for (kind, event, condition) in [("arrived", "insert", inserted)].into_iter().chain(moved) {
        let trigger = ident(&trigger_name(kind));
        statements.push(format!(
            "create or replace trigger {trigger} before {event} on {name} for each row {condition}\
             execute function {function}()"
        ));
        statements.push(format!("alter table {name} enable always trigger {trigger}"));
    }
    if !destroys {
        let trigger = ident(&trigger_name("moved"));
        statements.push(format!("drop trigger if exists {trigger} on {name}"));
    }
    statements
}

/// The advisory lock of a key's bucket: two numbers, of the relation and of the key.
pub(super) fn bucket(relation: &str, key: &str) -> String {
    format!(
        "pg_catalog.hashtext('tombstream.' || {relation}), \
         (pg_catalog.hashtextextended(({key})::text, 0) & {})::integer",
        BUCKETS - 1
    )
}

/// Under the stricter isolation levels the snapshot is older than the lock, so the ledger is not read but
/// written: whoever's snapshot does not hold the claim gets 40001.
fn arrival_function(relation: &Relation, function: &str) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let key = table.key("new");
    let set = table.is_set("new");
    let message = literal(&format!(
        "the copies of an earlier row of {} with this key are being destroyed",
        relation.name
    ));
    let reused = match relation.on_hard_delete {
        OnHardDelete::Ignore => String::new(),
        OnHardDelete::Destroy => format!(
            r#"
    perform pg_catalog.pg_advisory_xact_lock_shared({bucket});
    if current_setting('transaction_isolation') = 'read committed' then
        select d.id, d.claimed_at, d.removed is not null, d.hidden_at is not null
        into open_deletion, claimed, removed, hidden
        from tombstream.deletion d where d.relation = {name} and d.key = {key}
            and d.state in ('pending', 'hidden', 'claimed', 'parked');
    else
        insert into tombstream.deletion as d (relation, key, state)
        values ({name}, {key}, 'pending')
        on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
        do update set state = d.state
        returning d.id, d.claimed_at, d.removed is not null, d.hidden_at is not null, d.xmax = 0
        into open_deletion, claimed, removed, hidden, inserted;
        if inserted then
            delete from tombstream.deletion where id = open_deletion;
        end if;
    end if;
    delete from tombstream.moved_key where relation = {name} and key = {key};
    if tg_op = 'UPDATE' then
        -- Some captures tell a changed key as a delete and an insert: it is neither.
        insert into tombstream.moved_key (relation, key) values ({name}, {old_key})
        on conflict (relation, key) do update set at = now();
    end if;
    -- A row that is still there is not used anew: its key's constraint is met, or an upsert goes on to update
    -- it. One that another hand has removed leaves its claim or its hide behind, which may still destroy.
    is_anew := removed or (claimed is not null or hidden) and not exists (
        select from {table} t where {there} is not distinct from {new_row});
    if is_anew and claimed is not null then
        raise exception using errcode = '{CLAIMED_SQLSTATE}', message = {message},
            hint = 'try again when its deletion is finalized, or use another key';
    end if;
    if is_anew then
        with outlived as (
            update tombstream.deletion
            set state = 'superseded', closed_at = clock_timestamp(),
                reason = concat_ws('; ', 'the key was used anew', reason)
            where id = open_deletion and claimed_at is null
                and state in ('pending', 'hidden', 'parked')
            returning id, relation, key, targets, hidden_at, lease_until, lease_token
        )
        insert into tombstream.rehydrate
            (deletion_id, relation, key, targets, ready_at, lease_token)
        select id, relation, key, targets,
            greatest(lease_until, clock_timestamp()), lease_token
        from outlived where hidden_at is not null;
    end if;
"#,
            bucket = bucket(&name, &key),
            old_key = table.key("old"),
            table = table.name(),
            there = row(&table, "t"),
            new_row = row(&table, "new"),
        ),
    };
    let body = format!(
        r#"
declare
    open_deletion bigint;
    claimed timestamptz;
    removed boolean;
    hidden boolean;
    inserted boolean;
    is_anew boolean;
begin
    {reused}
    if tg_op = 'INSERT' and coalesce({set}, false) and {backdated} then
        insert into tombstream.deletion (relation, key, state, first_seen)
        values ({name}, {key}, 'pending', clock_timestamp())
        on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
        do nothing;
    end if;
    return new;
end
"#,
        backdated = backdated(relation),
    );
    function_sql(function, &body)
}
