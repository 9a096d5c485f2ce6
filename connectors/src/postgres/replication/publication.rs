//! The publication and the slot, looked at and made: `tombstream check --live` and `--fix`.
//!
//! A table joins a publication only if its updates can be published: of one without a replica identity
//! Postgres would refuse every update from then on, the application's first.

use super::super::statement::whole;
use serde_json::Value as Json;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, PgPool, Row as _};
use tombstream_model::Relation;

use super::config::ReplicationConfig;
use crate::postgres::check::Finding;
use crate::postgres::statement::BEGIN;
use crate::postgres::table::{Table, ident};

/// Which relations' tables the publication does not hold.
pub(super) async fn unpublished(
    connection: &mut PgConnection,
    publication: &str,
    relations: &[Relation],
) -> Result<Vec<String>, sqlx::Error> {
    let published = tables(connection, publication).await?;
    let is_missing = |relation: &&Relation| find(&published, relation).is_none();
    Ok(relations.iter().filter(is_missing).map(|relation| relation.name.to_string()).collect())
}

/// The publication's tables, as `pg_publication_tables` of this version has them.
async fn tables(
    connection: &mut PgConnection,
    publication: &str,
) -> Result<Vec<Json>, sqlx::Error> {
    sqlx::query_scalar(
        "select to_jsonb(p) from pg_catalog.pg_publication_tables p where p.pubname = $1",
    )
    .persistent(false)
    .bind(publication)
    .fetch_all(connection)
    .await
}

fn find<'a>(published: &'a [Json], relation: &Relation) -> Option<&'a Json> {
    published.iter().find(|table| {
        table["schemaname"] == *relation.schema && table["tablename"] == *relation.table
    })
}

/// Says whether the log can be read straight: the role, the publication, each relation's replica
/// identity, the slot. Changes nothing.
pub async fn check_capture(
    pool: &PgPool,
    config: &ReplicationConfig,
    relations: &[Relation],
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut transaction = whole(pool, "begin").await?;
    let mut findings = vec![server(&mut transaction).await?];
    findings.extend(publication(&mut transaction, config, relations).await?);
    for relation in relations {
        findings.extend(identity(&mut transaction, relation).await?);
    }
    findings.push(slot(&mut transaction, config).await?);
    transaction.rollback().await?;
    Ok(findings)
}

/// What [`fix_capture`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Makes {
    /// The publication and the slot.
    Both,
    /// The publication: the slot is made together with its snapshot.
    Publication,
}

/// Makes the publication and the slot, or adds what they lack, and says what was done. What can't be
/// mended so is left to [`check_capture`] to say.
pub async fn fix_capture(
    pool: &PgPool,
    config: &ReplicationConfig,
    relations: &[Relation],
    makes: Makes,
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut done = Vec::new();
    let mut fit = Vec::new();
    let mut transaction = whole(pool, BEGIN).await?;
    let (exists, via_root): (bool, bool) = sqlx::query_as(
        "select count(*) > 0, coalesce(bool_and(pubviaroot), true) \
         from pg_catalog.pg_publication where pubname = $1",
    )
    .persistent(false)
    .bind(&config.publication)
    .fetch_one(&mut *transaction)
    .await?;
    let published = tables(&mut transaction, &config.publication).await?;
    for relation in relations {
        let is_fit = identity(&mut transaction, relation).await?.is_none();
        if is_fit && find(&published, relation).is_none() {
            fit.push(Table::new(relation).name());
        }
    }
    let name = ident(&config.publication);
    let mut statements = Vec::new();
    if !exists && !fit.is_empty() {
        statements.push(format!(
            "create publication {name} for table {} with (publish_via_partition_root = true)",
            fit.join(", ")
        ));
    } else if exists {
        if !via_root {
            statements
                .push(format!("alter publication {name} set (publish_via_partition_root = true)"));
        }
        // One that was added by its root meanwhile is not missing any more; adding it again says so.
        if !fit.is_empty() {
            statements.push(format!("alter publication {name} add table {}", fit.join(", ")));
        }
    }
    for statement in statements {
        transaction.execute(AssertSqlSafe(statement.clone())).await?;
        done.push(Finding::good(format!("done: {statement}")));
    }
    transaction.commit().await?;
    if makes == Makes::Publication {
        return Ok(done);
    }
    // A transaction that has written can't make a slot.
    let mut transaction = whole(pool, BEGIN).await?;
    let there: bool = sqlx::query_scalar(
        "select exists (select from pg_catalog.pg_replication_slots where slot_name = $1)",
    )
    .persistent(false)
    .bind(&config.slot)
    .fetch_one(&mut *transaction)
    .await?;
    if !there {
        sqlx::query("select pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')")
            .persistent(false)
            .bind(&config.slot)
            .execute(&mut *transaction)
            .await?;
        done.push(Finding::good(format!("done: slot {} made", config.slot)));
    }
    transaction.commit().await?;
    Ok(done)
}

async fn server(connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
    let (level, may): (String, bool) = sqlx::query_as(
        "select current_setting('wal_level'), rolreplication or rolsuper \
         from pg_catalog.pg_roles where rolname = current_user",
    )
    .persistent(false)
    .fetch_one(connection)
    .await?;
    Ok(match (level.as_str(), may) {
        ("logical", true) => Finding::good("the log can be read by this role"),
        ("logical", false) => Finding::warning(
            "this role may not read the log, unless the provider allows it in a way of its own: run \
             `alter role … replication` as a superuser",
        ),
        (level, _) => Finding::error(format!(
            "wal_level is {level}, so the log tells no rows: run `alter system set wal_level = \
             logical` and start the server again"
        )),
    })
}

async fn publication(
    connection: &mut PgConnection,
    config: &ReplicationConfig,
    relations: &[Relation],
) -> Result<Vec<Finding>, sqlx::Error> {
    let name = &config.publication;
    let row = sqlx::query(
        "select pubinsert and pubupdate and pubdelete and pubtruncate \
         from pg_catalog.pg_publication where pubname = $1",
    )
    .persistent(false)
    .bind(name)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else {
        return Ok(vec![Finding::error(format!(
            "there is no publication {name}: run `tombstream check --fix`"
        ))]);
    };
    let mut findings = Vec::new();
    if !row.try_get::<bool, _>(0)? {
        findings.push(Finding::error(format!(
            "publication {name} leaves out some operations: run `alter publication {name} set \
             (publish = 'insert, update, delete, truncate')`"
        )));
    }
    let published = tables(connection, name).await?;
    for relation in relations {
        let shown = format!("{}.{}", relation.schema, relation.table);
        let Some(table) = find(&published, relation) else {
            findings.push(Finding::error(format!(
                "publication {name} does not hold {shown}: run `tombstream check --fix`"
            )));
            continue;
        };
        if table["rowfilter"].is_string() {
            findings.push(Finding::warning(format!(
                "publication {name} filters the rows of {shown}: flags that it leaves out are found \
                 by the sweep alone"
            )));
        }
        let listed = table["attnames"].as_array();
        let mut needed = relation.key.iter().map(|column| &column.name);
        let lacks = |column: &String| {
            listed.is_some_and(|listed| !listed.iter().any(|it| it == column.as_str()))
        };
        let lacking = needed.find(|column| lacks(column));
        if let Some(column) = lacking.or(Some(&relation.flag.column).filter(|it| lacks(it))) {
            findings.push(Finding::error(format!(
                "publication {name} leaves out the column {column} of {shown}, which is needed"
            )));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(format!("publication {name} holds every relation")));
    }
    Ok(findings)
}

/// What is wrong with the relation's replica identity, if its updates can't be published.
async fn identity(
    connection: &mut PgConnection,
    relation: &Relation,
) -> Result<Option<Finding>, sqlx::Error> {
    let row = sqlx::query(
        "select c.relreplident::text, exists (select from pg_catalog.pg_index i \
             where i.indrelid = c.oid and i.indisprimary) \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')",
    )
    .persistent(false)
    .bind(&relation.schema)
    .bind(&relation.table)
    .fetch_optional(connection)
    .await?;
    let shown = format!("{}.{}", relation.schema, relation.table);
    let Some(row) = row else {
        return Ok(Some(Finding::error(format!("there is no table {shown}"))));
    };
    let (identity, has_primary): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    Ok(match identity.as_str() {
        "n" => Some(Finding::error(format!(
            "{shown} has replica identity nothing, and Postgres refuses updates of such a table once \
             it is published: run `alter table {shown} replica identity default` (or full) first"
        ))),
        "d" if !has_primary => Some(Finding::error(format!(
            "{shown} has no primary key, and Postgres refuses updates of such a table once it is \
             published: run `alter table {shown} replica identity full`, or `using index` with that \
             of its key"
        ))),
        _ => None,
    })
}

async fn slot(
    connection: &mut PgConnection,
    config: &ReplicationConfig,
) -> Result<Finding, sqlx::Error> {
    let name = &config.slot;
    let row = sqlx::query(
        "select coalesce(plugin, 'physical replication'), wal_status, active, \
             database is not distinct from current_database(), case when pg_is_in_recovery() then 0 \
             else pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn) \
             end::bigint \
         from pg_catalog.pg_replication_slots where slot_name = $1",
    )
    .persistent(false)
    .bind(name)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else {
        let free: i64 = sqlx::query_scalar(
            "select current_setting('max_replication_slots')::bigint \
                 - (select count(*) from pg_catalog.pg_replication_slots)",
        )
        .persistent(false)
        .fetch_one(connection)
        .await?;
        return Ok(if free > 0 {
            Finding::warning(format!(
                "there is no slot {name}: `tombstream run` makes it, and so does `check --fix`; from \
                 then on the server keeps its log for it"
            ))
        } else {
            Finding::error(format!(
                "there is no slot {name}, and no room for one: raise max_replication_slots and \
                 start the server again, or drop one that nobody reads"
            ))
        });
    };
    let plugin: String = row.try_get(0)?;
    let status: Option<String> = row.try_get(1)?;
    let (active, here): (bool, bool) = (row.try_get(2)?, row.try_get(3)?);
    let retained: Option<i64> = row.try_get(4)?;
    let megabytes = retained.unwrap_or_default() / 1_000_000;
    Ok(match status.as_deref() {
        _ if plugin != "pgoutput" || !here => Finding::error(format!(
            "slot {name} is of {plugin}{}: name another one",
            if here { "" } else { ", in another database" }
        )),
        Some("lost") => Finding::warning(format!(
            "slot {name} is lost: the server removed log that it needed (max_slot_wal_keep_size); \
             `tombstream run` makes it anew, and the sweep finds what it did not tell"
        )),
        Some("unreserved") => Finding::warning(format!(
            "slot {name} is about to be lost: the server keeps {megabytes} MB for it, more than \
             max_slot_wal_keep_size"
        )),
        _ => Finding::good(format!(
            "slot {name} is there, {}; the server keeps {megabytes} MB of its log for it",
            if active { "being read" } else { "not being read" }
        )),
    })
}
