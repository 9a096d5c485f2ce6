//! The database's last guard: roles that may do no more than their process must, and triggers that
//! look at every removal of the pipeline's.
//!
//! Invariant (S1, S3): a deliberately wrong finalizing statement removes no living row, and no row
//! whose deletion is not claimed; `a_wrong_finalizing_statement_removes_nothing`. It holds for logins that
//! are members of [`PIPELINE_ROLE`], and binds neither superusers nor the table's owner, who could drop
//! the trigger as well. All other logins pay one look at their memberships.

use sqlx::{AssertSqlSafe, Executor, PgConnection, PgPool};

use tombstream_model::Relation;

use super::check::Finding;
use super::guard::{InstallError, bounded};
use super::statement::whole;
use super::table::{Table, ident, literal};

/// The group role of logins that `tombstream run` connects as.
pub const PIPELINE_ROLE: &str = "tombstream_pipeline";
/// The group role of logins that `tombstream api` connects as.
pub const API_ROLE: &str = "tombstream_api";

/// The SQLSTATE with which the last guard refuses.
pub(super) const UNCLAIMED_SQLSTATE: &str = "TS002";

/// It looks before the guard of the flag, which would write into the ledger.
pub(super) const TRIGGER: &str = "zz_tombstream_a_last_guard";

/// What the api serves of a relation, as far as its role needs rights for it.
#[derive(Clone, Copy, Debug)]
pub struct ApiRights<'a> {
    /// The columns that it shows.
    pub columns: &'a [String],
    /// The columns that it may set in new rows; none: it makes no rows.
    pub create: Option<&'a [String]>,
}

/// A table of the ledger, and what each role may do with it.
struct Grant {
    table: &'static str,
    pipeline: &'static str,
    api: &'static str,
}

const fn grant(table: &'static str, pipeline: &'static str, api: &'static str) -> Grant {
    Grant { table, pipeline, api }
}

/// Everything in the ledger, by name: what is new has to be judged
/// (`every_table_of_the_ledger_is_judged`).
const LEDGER: [Grant; 33] = [
    grant("migration", "select", "select"),
    grant(
        "deletion",
        "select, insert, update",
        "select, update (state, closed_at, reason, targets, attempts, due_at, lease_until, \
         approved_at, waived)",
    ),
    grant("deletion_archive", "select", "select"),
    grant("deletion_all", "select", "select"),
    grant("receipt", "select, insert", "select"),
    grant("receipt_closed", "select, insert", ""),
    grant("receipt_block", "select, insert", ""),
    grant("receipt_entry", "usage, select", ""),
    grant("hold", "select", "select, insert, update (until, released_at, released_by)"),
    grant("dead_letter", "select, insert, update", "select, update (redrive_at)"),
    grant("flip", "select", "select, insert"),
    grant("pause", "select, insert, delete", "select"),
    grant("absent_share", "select, insert, update, delete", ""),
    grant("generation", "select, insert, update", ""),
    grant("slot", "select, insert, update, delete", ""),
    grant("file_position", "select, insert, update", ""),
    grant("rehydrate", "select, insert, update", "select, insert, update (done_at, done_by)"),
    grant(
        "breaker",
        "select, insert, update",
        "select, update (tripped_at, reason, row_count, counted_at)",
    ),
    grant("breaker_spent", "select, insert, update, delete", "select, delete"),
    grant("operator_order", "select, insert", "select, insert"),
    grant("store", "select, insert, update", ""),
    grant("former_address", "select, delete", ""),
    grant("moved_key", "select", ""),
    grant("truncation", "select, insert", ""),
    grant("audit_pass", "select, insert, update", "select"),
    grant("audit_again", "select, insert, update, delete", "select"),
    grant("job", "select, insert, update, delete", "select"),
    grant("job_range", "select, insert, update, delete", "select"),
    grant("archive_event", "select, insert, delete", ""),
    grant("archive_writer", "select, update", ""),
    grant("re_erasure", "select", "select"),
    grant("schedule", "select, insert, update", "select"),
    grant("lease_token", "usage", ""),
];

/// What of it are sequences.
const SEQUENCES: [&str; 2] = ["lease_token", "receipt_entry"];

/// The statements that give `relation` its last guard. Each may be run again.
pub(super) fn last_guard_sql(relation: &Relation) -> [String; 3] {
    let table = Table::new(relation).name();
    let function = format!("tombstream.{}", ident(&bounded("last_guard_", &relation.name)));
    let trigger = ident(TRIGGER);
    [
        last_guard_function(relation, &function),
        // A missing role has no number, and the condition is not true.
        format!(
            "create or replace trigger {trigger} before update or delete on {table} for each row \
             when (pg_catalog.pg_has_role(current_user, \
                 pg_catalog.to_regrole('{PIPELINE_ROLE}')::oid, 'usage')) \
             execute function {function}()"
        ),
        format!("alter table {table} enable always trigger {trigger}"),
    ]
}

/// Runs with the rights of who deletes: nobody else pays for reading the ledger, and who may not read it
/// removes nothing.
fn last_guard_function(relation: &Relation, function: &str) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let message = |text: &str| literal(&format!("{text} of {}", relation.name));
    let body = format!(
        r#"
begin
    if (select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user)
        or exists (select from pg_catalog.pg_class c where c.oid = tg_relid
            and pg_catalog.pg_has_role(current_user, c.relowner, 'usage'))
    then
        return case tg_op when 'DELETE' then old else new end;
    end if;
    if tg_op = 'UPDATE' then
        raise exception using errcode = '{UNCLAIMED_SQLSTATE}', message = {updates},
            hint = 'it may lock rows; whoever flags or restores is no member of {PIPELINE_ROLE}';
    end if;
    if exists (select from tombstream.deletion d where d.relation = {name} and d.key = {key}
        and d.state = 'claimed' and {claimed_flag} = {flag})
    then
        return old;
    end if;
    raise exception using errcode = '{UNCLAIMED_SQLSTATE}', message = {unclaimed};
end
"#,
        updates = message("the pipeline updates no row"),
        unclaimed = message(
            "no claimed deletion has this key and this flag: the pipeline removes no such row"
        ),
        key = table.key("old"),
        claimed_flag = table.flag_value("d.flag"),
        flag = table.flag("old"),
    );
    let quote = super::guard::dollar_quote(&body);
    format!(
        "create or replace function {function}() returns trigger \
         language plpgsql volatile set search_path = '' as {quote}{body}{quote}"
    )
}

/// The statements that make the two roles, where they are missing, and give them what they need of the
/// ledger and nothing else. Each may be run again.
pub fn role_sql() -> Vec<String> {
    let mut statements: Vec<String> = [PIPELINE_ROLE, API_ROLE].map(make_role).into();
    for role in [PIPELINE_ROLE, API_ROLE] {
        statements.push(format!("revoke all on all tables in schema tombstream from {role}"));
        statements.push(format!("grant usage on schema tombstream to {role}"));
    }
    for Grant { table, pipeline, api } in LEDGER {
        let kind = if SEQUENCES.contains(&table) { "sequence" } else { "table" };
        for (role, rights) in [(PIPELINE_ROLE, pipeline), (API_ROLE, api)] {
            if !rights.is_empty() {
                statements.push(format!("grant {rights} on {kind} tombstream.{table} to {role}"));
            }
        }
    }
    for function in ["archive_closed(interval, bigint)", "drop_archive(interval)"] {
        statements
            .push(format!("grant execute on function tombstream.{function} to {PIPELINE_ROLE}"));
    }
    statements
}

/// A role is the whole server's: another database may make it at this moment.
fn make_role(role: &str) -> String {
    format!(
        "do $$ begin \
             if to_regrole('{role}') is null then create role {role} nologin; end if; \
         exception when duplicate_object or unique_violation then null; \
         end $$"
    )
}

/// The statements that give the two roles what they need of `relation`, and nothing else: the pipeline's
/// reads, locks and removes; the api's reads what it shows and sets the flag, and inserts where `api`
/// says so. To lock a row takes the right to update a column of it, which the last guard takes back.
pub fn relation_role_sql(relation: &Relation, api: Option<ApiRights<'_>>) -> Vec<String> {
    let table = Table::new(relation).name();
    let schema = ident(&relation.schema);
    let flag = ident(&relation.flag.column);
    let mut statements = vec![
        format!("revoke all on table {table} from {PIPELINE_ROLE}, {API_ROLE}"),
        format!("grant usage on schema {schema} to {PIPELINE_ROLE}, {API_ROLE}"),
        format!("grant select, delete, update ({flag}) on table {table} to {PIPELINE_ROLE}"),
    ];
    let Some(api) = api else { return statements };
    let keys: Vec<String> = relation.key.iter().map(|column| ident(&column.name)).collect();
    let mut shown = keys.clone();
    shown.push(flag.clone());
    shown.extend(api.columns.iter().map(|column| ident(column)));
    shown.sort_unstable();
    shown.dedup();
    statements.push(format!(
        "grant select ({}), update ({flag}) on table {table} to {API_ROLE}",
        shown.join(", ")
    ));
    let Some(create) = api.create else { return statements };
    // A row of nothing but defaults needs the right to insert one column, whichever.
    let set: Vec<String> = match create {
        [] => keys.into_iter().take(1).collect(),
        columns => columns.iter().map(|column| ident(column)).collect(),
    };
    statements.push(format!("grant insert ({}) on table {table} to {API_ROLE}", set.join(", ")));
    statements.push(format!(
        "do $grant$ declare s text; begin \
             for s in select d.objid::regclass::text from pg_catalog.pg_depend d \
                 join pg_catalog.pg_class c on c.oid = d.objid and c.relkind = 'S' \
                 where d.refobjid = to_regclass({name}) and d.deptype = 'a' \
             loop execute format('grant usage on sequence %s to {API_ROLE}', s); end loop; \
         end $grant$",
        name = literal(&table),
    ));
    statements
}

/// Runs `statements` in one transaction: whoever works as one of the roles sees no moment without its
/// rights.
pub async fn run_role_sql(pool: &PgPool, statements: &[String]) -> Result<(), InstallError> {
    let failed = |statement: &str, source| InstallError { statement: statement.to_owned(), source };
    let begin = "begin; set local lock_timeout = '5s'; \
        select pg_advisory_xact_lock(hashtextextended('tombstream.roles', 0))";
    let mut transaction = whole(pool, begin).await.map_err(|error| failed("begin", error))?;
    for statement in statements {
        let sql = sqlx::raw_sql(AssertSqlSafe(statement.clone())); // Identifiers and literals quoted.
        transaction.execute(sql).await.map_err(|error| failed(statement, error))?;
    }
    transaction.commit().await.map_err(|error| failed("commit", error))
}

/// What one login may do.
struct Login {
    name: String,
    is_pipeline: bool,
    is_api: bool,
    is_superuser: bool,
}

/// Whether this login may do what its process does: as the api if it is a member of [`API_ROLE`] alone,
/// else as the pipeline.
pub async fn check_rights(
    pool: &PgPool,
    relations: &[Relation],
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut connection = whole(pool, "begin").await?;
    let (name, is_superuser, is_pipeline, is_api): (String, bool, bool, bool) = sqlx::query_as(
        "select current_user::text, r.rolsuper, \
             coalesce(pg_has_role(current_user, to_regrole($1)::oid, 'usage'), false), \
             coalesce(pg_has_role(current_user, to_regrole($2)::oid, 'usage'), false) \
         from pg_catalog.pg_roles r where r.rolname = current_user",
    )
    .bind(PIPELINE_ROLE)
    .bind(API_ROLE)
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let login = Login { name, is_pipeline, is_api, is_superuser };
    let mut findings = Vec::new();
    let missing = login.missing(&mut connection, relations).await?;
    let role = login.role();
    if let Some(first) = missing.first() {
        let more = match missing.len() {
            1 => String::new(),
            count => format!(" ({} more rights are missing)", count - 1),
        };
        findings.push(Finding::error(format!(
            "the login {} may not {first}{more}: run `tombstream migrate --roles` as the tables' \
             owner, then `grant {role} to {}`",
            login.name,
            ident(&login.name),
        )));
    } else {
        findings.push(Finding::good(format!("the login {} has the rights it needs", login.name)));
    }
    if role == PIPELINE_ROLE {
        findings.extend(login.unbound(&mut connection, relations).await?);
    }
    Ok(findings)
}

impl Login {
    fn role(&self) -> &'static str {
        if self.is_api && !self.is_pipeline { API_ROLE } else { PIPELINE_ROLE }
    }

    /// Rights that it lacks, as `delete from public.documents`.
    async fn missing(
        &self,
        connection: &mut PgConnection,
        relations: &[Relation],
    ) -> Result<Vec<String>, sqlx::Error> {
        let of_api = self.role() == API_ROLE;
        let (mut schemas, mut tables, mut rights) = (Vec::new(), Vec::new(), Vec::new());
        let mut needs = |schema: &str, table: &str, right: &str| {
            schemas.push(schema.to_owned());
            tables.push(table.to_owned());
            rights.push(right.to_owned());
        };
        for relation in relations {
            for right in if of_api { &["update"][..] } else { &["select", "delete", "update"] } {
                needs(&relation.schema, &relation.table, right);
            }
        }
        for Grant { table, pipeline, api } in LEDGER {
            // A list of columns is left out: any of them will do here.
            let granted = if of_api { api } else { pipeline };
            for right in granted.split(", ").filter_map(|right| right.split(' ').next()) {
                if ["select", "insert", "update", "delete", "usage"].contains(&right) {
                    needs("tombstream", table, right);
                }
            }
        }
        // Looked up in the catalog: a name in a schema without the right to use it is an error.
        sqlx::query_scalar(
            "select case when has_schema_privilege(n.oid, 'usage') \
                 then case i.want when 'usage' then 'use' else i.want end || ' ' else 'use the schema of ' end || i.schema || '.' || i.name \
             from unnest($1::text[], $2::text[], $3::text[]) with ordinality \
                 as i(schema, name, want, n) \
             join pg_catalog.pg_namespace n on n.nspname = i.schema \
             join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = i.name \
             where not has_schema_privilege(n.oid, 'usage') or not case \
                 when c.relkind = 'S' then has_sequence_privilege(c.oid, i.want) \
                 when i.want = 'delete' then has_table_privilege(c.oid, i.want) \
                 else has_any_column_privilege(c.oid, i.want) end \
             order by i.n",
        )
        .bind(schemas)
        .bind(tables)
        .bind(rights)
        .persistent(false)
        .fetch_all(connection)
        .await
    }

    /// Why the last guard does not bind this login, if it does not.
    async fn unbound(
        &self,
        connection: &mut PgConnection,
        relations: &[Relation],
    ) -> Result<Option<Finding>, sqlx::Error> {
        let (schemas, tables): (Vec<&str>, Vec<&str>) = relations
            .iter()
            .map(|relation| (relation.schema.as_str(), relation.table.as_str()))
            .unzip();
        let owned: Option<String> = sqlx::query_scalar(
            "select i.schema || '.' || i.name from unnest($1::text[], $2::text[]) as i(schema, name) \
             join pg_catalog.pg_namespace n on n.nspname = i.schema \
             join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = i.name \
             where pg_has_role(current_user, c.relowner, 'usage') order by 1 limit 1",
        )
        .bind(schemas)
        .bind(tables)
        .persistent(false)
        .fetch_optional(connection)
        .await?;
        let why = match owned {
            _ if self.is_superuser => "it is a superuser".to_owned(),
            Some(table) => format!("it owns {table}"),
            None if !self.is_pipeline => format!("it is no member of {PIPELINE_ROLE}"),
            None => return Ok(None),
        };
        Ok(Some(Finding::warning(format!(
            "the last guard does not bind the login {} ({why}): run `tombstream migrate --roles`, and \
             the pipeline as a login of its own with `grant {PIPELINE_ROLE} to` it",
            self.name
        ))))
    }
}
