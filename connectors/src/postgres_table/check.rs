//! What `tombstream check --live` wants to know of a table before anything is deleted from it.

use sqlx::PgConnection;
use tombstream_model::SinkError;

use super::answer::Fault;
use super::catalogue;
use super::sink::PostgresTableSink;

/// What a table says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostgresTableFacts {
    /// What keeps rows from being deleted, or would delete more than was meant; a sentence each.
    pub problems: Vec<String>,
    /// What works, with less promised.
    pub concerns: Vec<String>,
}

impl PostgresTableSink {
    /// Looks at the table, and at each set of columns that addresses name. Changes nothing. An error means
    /// that the database can't be asked at all.
    pub async fn check(&self, sets: &[Vec<&str>]) -> Result<PostgresTableFacts, SinkError> {
        let mut facts = PostgresTableFacts::default();
        match self.look_at(sets, &mut facts).await {
            Ok(()) => Ok(facts),
            Err(Fault::Whole(SinkError::Denied(said))) => {
                facts.problems.push(said);
                Ok(facts)
            }
            Err(Fault::Whole(error)) => Err(error),
            Err(Fault::Row(_, said)) => Err(SinkError::Protocol(said)),
        }
    }

    async fn look_at(
        &self,
        sets: &[Vec<&str>],
        facts: &mut PostgresTableFacts,
    ) -> Result<(), Fault> {
        let config = &self.config;
        let mut transaction = self.pool.begin_with("begin isolation level read committed").await?;
        catalogue::prepare(&mut transaction, config, config.statement_timeout).await?;
        let table = catalogue::table(&mut transaction, config).await?;
        let children = catalogue::children(&mut transaction, table).await?;
        facts.problems.extend(catalogue::forbidden(config, &children));
        let allowed = children.iter().filter(|it| config.allow_cascade.contains(&it.table));
        facts.concerns.extend(allowed.map(|it| {
            format!("{} goes along ({}, {}), as allowed", it.table, it.constraint, it.action)
        }));
        rights(&mut transaction, table, facts).await?;
        for names in sets {
            match catalogue::columns(&mut transaction, config, table, names).await {
                Ok(_) => indexes(&mut transaction, table, names, config.many, facts).await?,
                Err(Fault::Whole(SinkError::Missing(said))) => {
                    facts.problems.push(format!("{said} does not exist"));
                }
                Err(Fault::Whole(SinkError::Denied(said))) => facts.problems.push(said),
                Err(fault) => return Err(fault),
            }
        }
        transaction.rollback().await?;
        Ok(())
    }
}

/// Privileges, policies, triggers and rules that stand between a delete and its row.
async fn rights(
    connection: &mut PgConnection,
    table: i64,
    facts: &mut PostgresTableFacts,
) -> Result<(), Fault> {
    let (granted, policies, triggers, rules): (bool, bool, Vec<String>, Vec<String>) =
        sqlx::query_as(
            "select has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'delete'), \
             c.relrowsecurity and not (select r.rolsuper or r.rolbypassrls \
                 or (pg_has_role(c.relowner, 'usage') and not c.relforcerowsecurity) \
                 from pg_catalog.pg_roles r where r.rolname = current_user), \
             array(select t.tgname::text from pg_catalog.pg_trigger t where t.tgrelid = c.oid \
                 and not t.tgisinternal and t.tgtype & 8 <> 0 and t.tgenabled <> 'D' order by 1), \
             array(select r.rulename::text from pg_catalog.pg_rewrite r where r.ev_class = c.oid \
                 and r.ev_type = '4' and r.ev_enabled <> 'D' order by 1) \
         from pg_catalog.pg_class c where c.oid = $1::oid",
        )
        .bind(table)
        .persistent(false)
        .fetch_one(connection)
        .await?;
    if !granted {
        facts.problems.push("its role may not select and delete there: grant both".to_owned());
    }
    if policies {
        let said = "row-level security applies to its role, so rows could be hidden from it and every batch \
                    is refused: give it a role with bypassrls, or its own policy-free table";
        facts.problems.push(said.to_owned());
    }
    for trigger in triggers {
        facts
            .concerns
            .push(format!("trigger {trigger} fires on delete: a row that it keeps is parked"));
    }
    for rule in rules {
        facts
            .problems
            .push(format!("rule {rule} rewrites deletes: drop it, or name another table"));
    }
    Ok(())
}

/// Whether rows are found by an index, and whether an address can mean more than one.
async fn indexes(
    connection: &mut PgConnection,
    table: i64,
    names: &[&str],
    many: bool,
    facts: &mut PostgresTableFacts,
) -> Result<(), Fault> {
    let (found, unique): (bool, bool) = sqlx::query_as(
        "select coalesce(bool_or(i.keys[1] = any($2::text[])), false), \
             coalesce(bool_or(i.indisunique and i.keys <@ $2::text[]), false) \
         from (select x.indisunique, array(select a.attname::text from \
                 unnest((x.indkey::int2[])[0:x.indnkeyatts - 1]) with ordinality as k(attnum, n) \
                 join pg_catalog.pg_attribute a on a.attrelid = x.indrelid and a.attnum = k.attnum \
                 order by k.n) as keys \
             from pg_catalog.pg_index x where x.indrelid = $1::oid and x.indisvalid \
                 and x.indpred is null and x.indexprs is null) i",
    )
    .bind(table)
    .bind(names)
    .persistent(false)
    .fetch_one(connection)
    .await?;
    let shown = names.join(", ");
    if !found {
        let said =
            format!("no index begins with one of {shown}: each address reads the whole table");
        facts.concerns.push(said);
    }
    if !unique && !many {
        facts.concerns.push(format!(
            "nothing makes {shown} unique: where several rows have the same values, they are parked; write \
             many = true if all of them are the row's copies"
        ));
    }
    Ok(())
}
