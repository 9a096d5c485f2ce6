//! What a relation gets from `tombstream migrate`: the guard triggers (S2) and the flag's index.
//!
//! The trigger *writes* the deletion's ledger row, so that it and the claim meet on one unique index:
//! a restorer under REPEATABLE READ or SERIALIZABLE then gets 40001 instead of deciding on an old
//! snapshot. The row that it inserts is an open one, else the partial index would see no conflict.

use sqlx::{AssertSqlSafe, Executor, PgPool};

use tombstream_model::{FlagKind, Relation};

use super::arrival::arrival_sql;
use super::moved::moved_sql;
use super::statement::whole;
use super::table::{Table, ident, literal};

/// The SQLSTATE with which the guard refuses to touch a claimed row.
pub(super) const CLAIMED_SQLSTATE: &str = "TS001";

/// Why a relation's triggers or index could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{statement}")]
pub struct InstallError {
    /// The statement that failed.
    pub statement: String,
    /// What Postgres said.
    #[source]
    pub source: sqlx::Error,
}

/// The statements that give `relation` its guard triggers and its partial index, in their order. Each
/// may be run again. The index is made concurrently, except where the table is partitioned.
pub fn relation_sql(relation: &Relation, partitioned: bool) -> Vec<String> {
    let table = Table::new(relation).name();
    let function = format!("tombstream.{}", ident(&guard_name(relation)));
    let mut statements = vec![guard_function(relation, &function)];
    for (timing, condition) in
        [("before", touches_flag(relation)), ("after", revives_or_moves(relation))]
    {
        let name = ident(&trigger_name(timing));
        statements.push(format!(
            "create or replace trigger {name} {timing} update on {table} for each row \
             when ({condition}) execute function {function}()"
        ));
        statements.push(format!("alter table {table} enable always trigger {name}"));
    }
    statements.extend(arrival_sql(relation));
    statements.extend(moved_sql(relation));
    statements.extend(super::roles::last_guard_sql(relation));
    statements.push(flag_index(relation, partitioned));
    statements
}

/// Runs [`relation_sql`]. Waits at most five seconds for a lock that others would queue behind, so that
/// a busy table is not blocked. An index made concurrently blocks nobody while it waits, and giving up
/// would leave it invalid: it waits as long as it takes. It is a simple query outside any transaction.
pub async fn install_relation(pool: &PgPool, relation: &Relation) -> Result<(), InstallError> {
    let lookup = |source| InstallError { statement: "look up the table".to_owned(), source };
    let partitioned = is_partitioned(pool, relation).await.map_err(lookup)?;
    let concurrent_index = (!partitioned).then(|| flag_index(relation, false));
    for statement in relation_sql(relation, partitioned) {
        let concurrently = concurrent_index.as_ref() == Some(&statement);
        let ran = run(pool, &statement, concurrently).await;
        ran.map_err(|source| InstallError { statement, source })?;
    }
    Ok(())
}

async fn run(pool: &PgPool, statement: &str, concurrently: bool) -> Result<(), sqlx::Error> {
    let sql = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())); // Identifiers and literals quoted.
    if concurrently {
        pool.execute(sql).await?;
        return Ok(());
    }
    let mut transaction = whole(pool, "begin; set local lock_timeout = '5s'").await?;
    transaction.execute(sql).await?;
    transaction.commit().await
}

async fn is_partitioned(pool: &PgPool, relation: &Relation) -> Result<bool, sqlx::Error> {
    let mut transaction = whole(pool, "begin").await?;
    let partitioned: Option<bool> = sqlx::query_scalar(
        "select c.relkind = 'p' from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2",
    )
    .persistent(false)
    .bind(&relation.schema)
    .bind(&relation.table)
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(partitioned.unwrap_or(false))
}

/// The name of a relation's trigger function in the schema `tombstream`.
pub(super) fn guard_name(relation: &Relation) -> String {
    bounded("guard_", &relation.name)
}

/// `prefix` and `name`, with a hash in place of what Postgres would cut off at 63 bytes: a cut name
/// could meet another relation's.
pub(super) fn bounded(prefix: &str, name: &str) -> String {
    let whole = format!("{prefix}{name}");
    if whole.len() <= 63 {
        return whole;
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let cut = (0..=46).rev().find(|&at| whole.is_char_boundary(at)).unwrap_or(0);
    format!("{}_{hash:016x}", &whole[..cut])
}

/// Triggers of one kind fire in the order of their names; this one wants to be the last before.
pub(super) fn trigger_name(timing: &str) -> String {
    format!("zz_tombstream_guard_{timing}")
}

/// Whether the trigger of this name is on the table and fires for every session.
pub(super) fn is_guarded(relation: &Relation, timing: &str) -> String {
    format!(
        "exists (select from pg_catalog.pg_trigger g where g.tgrelid = to_regclass({}) \
             and g.tgname = {} and g.tgenabled = 'A')",
        literal(&Table::new(relation).name()),
        literal(&trigger_name(timing)),
    )
}

/// The index's name: Postgres puts an index into its table's schema.
pub(super) fn index_name(relation: &Relation) -> String {
    bounded("tombstream_flag_", &relation.name)
}

fn flag_index(relation: &Relation, partitioned: bool) -> String {
    let table = Table::new(relation);
    let concurrently = if partitioned { "" } else { "concurrently " };
    let bare = |columns: String| columns.replace("t.", "");
    let flag = ident(&relation.flag.column);
    let keys: Vec<_> = relation.key.iter().map(|column| ident(&column.name)).collect();
    let columns = match relation.flag.kind {
        FlagKind::TimestampTz | FlagKind::Timestamp { .. } => {
            format!("{flag}, {}", keys.join(", "))
        }
        FlagKind::Boolean => keys.join(", "),
    };
    format!(
        "create index {concurrently}if not exists {} on {} ({columns}) where {}",
        ident(&index_name(relation)),
        table.name(),
        bare(table.is_set("t")),
    )
}

/// Whether the update changes the flag, or the key of a flagged row.
fn touches_flag(relation: &Relation) -> String {
    let table = Table::new(relation);
    format!(
        "{new_flag} is distinct from {old_flag} or ({old_set} and ({old_key}) is distinct from ({new_key}))",
        new_flag = table.flag("new"),
        old_flag = table.flag("old"),
        old_set = table.is_set("old"),
        old_key = row(&table, "old"),
        new_key = row(&table, "new"),
    )
}

/// Whether a row that was flagged ends alive, with another flag, or under another key.
fn revives_or_moves(relation: &Relation) -> String {
    let table = Table::new(relation);
    format!(
        "{old_set} and ({new_flag} is distinct from {old_flag} or ({old_key}) is distinct from ({new_key}))",
        old_set = table.is_set("old"),
        new_flag = table.flag("new"),
        old_flag = table.flag("old"),
        old_key = row(&table, "old"),
        new_key = row(&table, "new"),
    )
}

pub(super) fn row(table: &Table<'_>, alias: &str) -> String {
    format!("row({})", table.key_list(alias))
}

/// Whether the new flag is older than a minute: it skips no grace, but is written down with `first_seen`.
pub(super) fn backdated(relation: &Relation) -> String {
    match relation.flag.kind {
        FlagKind::Boolean => "true".to_owned(),
        FlagKind::TimestampTz | FlagKind::Timestamp { .. } => {
            let at = Table::new(relation).flag_at("new");
            format!("{at} < clock_timestamp() - interval '1 minute'")
        }
    }
}

fn guard_function(relation: &Relation, function: &str) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let old_key = table.key("old");
    let old_set = table.is_set("old");
    let new_set = table.is_set("new");
    let same_key = format!("({} is not distinct from {})", row(&table, "old"), row(&table, "new"));
    let flag = ident(&relation.flag.column);
    let message = literal(&format!(
        "row of {} is being deleted for good: its deletion is past the point of no return",
        relation.name
    ));
    let backdated = backdated(relation);
    // A row that was alive until now begins a life of its own: what is open of an earlier one is over.
    // A claim that is being driven ends by itself, since the flag's value differs; true does not.
    let outlived = match relation.flag.kind {
        FlagKind::Boolean => "'pending', 'hidden', 'parked', 'claimed'",
        FlagKind::TimestampTz | FlagKind::Timestamp { .. } => "'pending', 'hidden', 'parked'",
    };
    let body = format!(
        r#"
declare
    open_deletion bigint;
    claimed timestamptz;
    claimed_flag text;
    sight timestamptz;
    inserted boolean;
    carried boolean;
    restored boolean := not coalesce({new_set}, false);
begin
    if tg_when = 'BEFORE' and coalesce({new_set}, false)
        and not (coalesce({old_set}, false) and {same_key})
    then
        update tombstream.deletion
        set state = 'superseded', closed_at = clock_timestamp(), lease_until = null,
            reason = concat_ws('; ', 'the key was used anew', reason)
        where relation = {name} and key = {new_key} and state in ({outlived});
    end if;
    if not coalesce({old_set}, false) then
        if tg_when = 'BEFORE' and coalesce({new_set}, false) and {backdated} then
            insert into tombstream.deletion (relation, key, state, first_seen)
            values ({name}, {new_key}, 'pending', clock_timestamp())
            on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
            do nothing;
        end if;
        return new;
    end if;
    insert into tombstream.deletion as d (relation, key, state)
    values ({name}, {old_key}, 'pending')
    on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
    do update set state = d.state
    returning d.id, d.claimed_at, d.flag, d.first_seen, d.xmax = 0
    into open_deletion, claimed, claimed_flag, sight, inserted;
    -- Another value was claimed of an earlier life of the key: it is not this row's.
    if claimed is not null and {claimed_value} is not distinct from {old_flag} then
        if tg_when = 'BEFORE' and coalesce({new_set}, false) and {same_key} then
            new.{flag} := old.{flag};
            return new;
        end if;
        raise exception using errcode = '{CLAIMED_SQLSTATE}', message = {message};
    end if;
    if tg_when = 'AFTER' then
        -- The BEFORE trigger has done the work; this one looked at the final row.
        if inserted then
            delete from tombstream.deletion where id = open_deletion;
        elsif claimed is null and not (coalesce({new_set}, false) and {same_key}) then
            {cancel}
        end if;
        return null;
    end if;
    if claimed is null and not (coalesce({new_set}, false) and {same_key}) then
        {cancel}
    end if;
    if coalesce({new_set}, false) and not {same_key} then
        -- What was first seen under the old key was seen then under the new one, too.
        carried := not inserted and claimed is null and {new_flag} is not distinct from {old_flag};
        if carried or ({new_flag} is distinct from {old_flag} and {backdated}) then
            insert into tombstream.deletion (relation, key, state, first_seen)
            values ({name}, {new_key}, 'pending',
                case when carried then sight else clock_timestamp() end)
            on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
            do nothing;
        end if;
    end if;
    return new;
end
"#,
        new_key = table.key("new"),
        old_flag = table.flag("old"),
        new_flag = table.flag("new"),
        claimed_value = table.flag_value("claimed_flag"),
        cancel = CANCEL,
    );
    function_sql(function, &body)
}

/// A trigger's function. It runs as its owner: whoever updates the table needs no rights on the ledger.
pub(super) fn function_sql(function: &str, body: &str) -> String {
    let quote = dollar_quote(body);
    format!(
        "create or replace function {function}() returns trigger \
         language plpgsql volatile security definer set search_path = '' as {quote}{body}{quote}"
    )
}

/// Cancels the open deletion. What was hidden of a row that is alive again must be filled again, once no
/// hide is under way any more.
const CANCEL: &str = "with cancelled as (
                update tombstream.deletion set state = 'cancelled', closed_at = clock_timestamp()
                where id = open_deletion
                returning id, relation, key, targets, hidden_at, lease_until, lease_token
            )
            insert into tombstream.rehydrate
                (deletion_id, relation, key, targets, ready_at, lease_token)
            select id, relation, key, targets,
                greatest(lease_until, clock_timestamp()), lease_token
            from cancelled where restored and hidden_at is not null;";

/// A dollar quote that `body` doesn't hold: names may hold anything.
pub(super) fn dollar_quote(body: &str) -> String {
    (0..)
        .map(|n| format!("$guard{n}$"))
        .find(|quote| !body.contains(quote))
        .expect("a text holds finitely many quotes")
}
