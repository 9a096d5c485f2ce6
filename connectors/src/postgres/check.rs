//! What `tombstream check --live` says of the database and of each relation.
//!
//! Each look is one transaction of unnamed statements, as a pooler needs it. It ends with a rollback.

use std::fmt;

use sqlx::{PgConnection, PgPool, Row as _};

use tombstream_model::{FlagKind, OnHardDelete, Relation};

use super::guard::{index_name, trigger_name};
use super::migrate::known_migrations;
use super::statement::whole;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Good,
    /// It works, but less is promised.
    Warning,
    /// It must be mended first.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What was found, and what to do about it.
    pub text: String,
}

impl Finding {
    pub(super) fn good(text: impl Into<String>) -> Self {
        Self { severity: Severity::Good, text: text.into() }
    }

    pub(super) fn warning(text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, text: text.into() }
    }

    pub(super) fn error(text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, text: text.into() }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Looks at the server and the ledger.
pub async fn check_ledger(pool: &PgPool) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    let mut connection = whole(pool, "begin").await?;
    let (version, wal_level): (String, String) = sqlx::query_as(
        "select current_setting('server_version_num'), current_setting('wal_level')",
    )
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    let version: i32 = version.parse().unwrap_or(0);
    findings.push(if version >= 140_000 {
        Finding::good(format!("Postgres {}", version / 10_000))
    } else {
        Finding::error("Postgres 14 or newer is needed (create or replace trigger)")
    });
    if wal_level != "logical" {
        findings.push(Finding::warning(format!(
            "wal_level is {wal_level}: change capture needs `alter system set wal_level = logical` \
             and a restart; until then only the sweep finds flags"
        )));
    }
    let readable = super::version::is_readable(&mut connection).await?;
    if readable == Some(false) {
        findings.push(Finding::error(super::version::UNREADABLE));
        return Ok(findings);
    }
    let applied: Vec<i64> = if readable.is_some() {
        sqlx::query_scalar(
            "select version from tombstream.migration where success order by version",
        )
        .persistent(false)
        .fetch_all(&mut *connection)
        .await?
    } else {
        Vec::new()
    };
    let known: Vec<i64> = known_migrations().collect();
    findings.push(match (applied.last(), known.last()) {
        (applied, known) if applied == known => Finding::good("the ledger is migrated"),
        (Some(applied), Some(known)) if applied > known => Finding::error(format!(
            "the ledger is newer than this binary (migration {applied}): run the newer tombstream"
        )),
        _ => Finding::error("the ledger is not migrated: run `tombstream migrate`"),
    });
    Ok(findings)
}

/// Looks at one relation: its columns, key, replica identity, publication, triggers, index, and who
/// references it.
pub async fn check(
    pool: &PgPool,
    relation: &Relation,
    relations: &[Relation],
) -> Result<Vec<Finding>, sqlx::Error> {
    let mut connection = whole(pool, "begin").await?;
    let shown = format!("{}.{}", relation.schema, relation.table);
    let Some(row) = sqlx::query(
        "select c.oid::bigint, c.relreplident::text, c.relkind::text from pg_class c \
         join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')",
    )
    .bind(&relation.schema)
    .bind(&relation.table)
    .persistent(false)
    .fetch_optional(&mut *connection)
    .await?
    else {
        return Ok(vec![Finding::error(format!(
            "there is no table {shown}: is `table` right, and is this the right database?"
        ))]);
    };
    let table: i64 = row.try_get(0)?;
    let mut findings = columns(&mut connection, relation, table).await?;
    findings.push(unique_key(&mut connection, relation, table).await?);
    findings.push(match row.try_get::<String, _>(1)?.as_str() {
        "f" => Finding::good("replica identity is full"),
        _ => Finding::warning(format!(
            "replica identity is not full: a changed key, a moved copy and a hard delete of a flagged \
             row are not noticed; run `alter table {shown} replica identity full`"
        )),
    });
    findings.push(published(&mut connection, relation).await?);
    findings.extend(guards_of(&mut connection, relation).await?);
    findings.push(index(&mut connection, relation).await?);
    findings.extend(references_to(&mut connection, relation, relations).await?);
    Ok(findings)
}

async fn columns(
    connection: &mut PgConnection,
    relation: &Relation,
    table: i64,
) -> Result<Vec<Finding>, sqlx::Error> {
    let known: Vec<(String, String)> = sqlx::query_as(
        "select attname::text, format_type(atttypid, null) from pg_attribute \
         where attrelid = $1::oid and attnum > 0 and not attisdropped",
    )
    .bind(table)
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    let type_of =
        |name: &str| known.iter().find(|(known, _)| known == name).map(|(_, kind)| &**kind);
    let mut findings = Vec::new();
    let mut expect = |name: &str, allowed: &[&str]| match type_of(name) {
        None => findings.push(Finding::error(format!("there is no column {name}"))),
        Some(kind) if !allowed.is_empty() && !allowed.contains(&kind) => {
            findings.push(Finding::error(format!(
                "column {name} is {kind}, not {}: correct its `type`",
                allowed.join(" or ")
            )));
        }
        Some(_) => {}
    };
    for column in &relation.key {
        expect(
            &column.name,
            match column.kind {
                tombstream_model::KeyKind::Uuid => &["uuid"],
                tombstream_model::KeyKind::Bigint => &["bigint", "integer", "smallint"],
                tombstream_model::KeyKind::Text => &["text", "character varying"],
            },
        );
    }
    expect(
        &relation.flag.column,
        match relation.flag.kind {
            FlagKind::TimestampTz => &["timestamp with time zone"],
            FlagKind::Timestamp { .. } => &["timestamp without time zone"],
            FlagKind::Boolean => &["boolean"],
        },
    );
    for column in relation.template_columns() {
        expect(column, &[]);
    }
    if findings.is_empty() {
        findings.push(Finding::good("its columns are as configured"));
    }
    Ok(findings)
}

async fn unique_key(
    connection: &mut PgConnection,
    relation: &Relation,
    table: i64,
) -> Result<Finding, sqlx::Error> {
    let names: Vec<&str> = relation.key.iter().map(|column| column.name.as_str()).collect();
    // Partial and expression indexes prove nothing of the whole table.
    let unique: bool = sqlx::query_scalar(
        "select exists (select from pg_index i where i.indrelid = $1::oid and i.indisunique \
             and i.indisvalid and i.indpred is null and i.indexprs is null \
             and (select array_agg(a.attname::text) from pg_attribute a \
                 where a.attrelid = i.indrelid \
                 and a.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1])) <@ $2::text[])",
    )
    .bind(table)
    .bind(&names)
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    Ok(if unique {
        Finding::good("its key is unique")
    } else {
        Finding::error(format!(
            "no unique index covers the key ({}): one key must name one row",
            names.join(", ")
        ))
    })
}

async fn published(
    connection: &mut PgConnection,
    relation: &Relation,
) -> Result<Finding, sqlx::Error> {
    let publications: Vec<String> = sqlx::query_scalar(
        "select pubname::text from pg_publication_tables where schemaname = $1 and tablename = $2",
    )
    .bind(&relation.schema)
    .bind(&relation.table)
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    Ok(if publications.is_empty() {
        Finding::warning(
            "no publication contains it: no events come, and only the sweep finds its flags (Debezium \
             makes one when its connector starts)",
        )
    } else {
        Finding::good(format!("published by {}", publications.join(", ")))
    })
}

/// Whether the triggers of `tombstream migrate` are installed, and fire for every session (S2). An error is
/// one without which less is kept than promised; what is good is said of the two that guard a restore.
pub async fn guards(pool: &PgPool, relation: &Relation) -> Result<Vec<Finding>, sqlx::Error> {
    guards_of(&mut *whole(pool, "begin").await?, relation).await
}

async fn guards_of(
    connection: &mut PgConnection,
    relation: &Relation,
) -> Result<Vec<Finding>, sqlx::Error> {
    let enabled: Vec<(String, String)> = sqlx::query_as(
        "select g.tgname::text, g.tgenabled::text from pg_trigger g \
         join pg_class c on c.oid = g.tgrelid join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2",
    )
    .bind(&relation.schema)
    .bind(&relation.table)
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    let finding = |wanted: WantedTrigger| {
        let found = enabled.iter().find(|(name, _)| *name == wanted.name);
        let WantedTrigger { what, without, .. } = wanted;
        match found.map(|(_, enabled)| enabled.as_str()) {
            Some("A") => Finding::good(format!("the {what} is installed")),
            Some(_) => Finding::error(format!(
                "the {what} is not `enable always`: run `tombstream migrate`"
            )),
            None => Finding::error(format!(
                "the {what} is missing, so {without}: run `tombstream migrate`"
            )),
        }
    };
    Ok(wanted_triggers(relation).into_iter().map(finding).collect())
}

/// A trigger that `tombstream migrate` installs.
struct WantedTrigger {
    name: String,
    what: &'static str,
    /// What happens where it is missing.
    without: &'static str,
}

fn wanted_triggers(relation: &Relation) -> Vec<WantedTrigger> {
    let wanted =
        |kind: &str, what, without| WantedTrigger { name: trigger_name(kind), what, without };
    let restores = "plain SQL can restore a claimed row";
    let mut triggers = vec![
        wanted("before", "before guard", restores),
        wanted("after", "after guard", restores),
        wanted(
            "arrived",
            "guard over arriving rows",
            match relation.on_hard_delete {
                OnHardDelete::Ignore => "a row that is inserted with an old flag skips its grace",
                OnHardDelete::Destroy => "no hard delete is claimed",
            },
        ),
    ];
    if relation.on_hard_delete == OnHardDelete::Destroy {
        triggers.push(wanted("moved", "guard over changed keys", "no hard delete is claimed"));
    }
    if super::moved::is_tracked(relation) {
        let without = "copies at an address that a row has left are never destroyed";
        triggers.push(wanted("address", "note of former addresses", without));
    }
    triggers.push(WantedTrigger {
        name: super::roles::TRIGGER.to_owned(),
        what: "last guard",
        without: "a wrong statement of the pipeline's own role could remove living rows",
    });
    triggers
}

async fn index(connection: &mut PgConnection, relation: &Relation) -> Result<Finding, sqlx::Error> {
    let valid: Option<bool> = sqlx::query_scalar(
        "select i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid \
         join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and c.relname = $2",
    )
    .bind(&relation.schema)
    .bind(index_name(relation))
    .persistent(false)
    .fetch_optional(&mut *connection)
    .await?;
    Ok(match valid {
        Some(true) => Finding::good("the flag's index is there"),
        Some(false) => Finding::error(format!(
            "the flag's index is invalid (its creation was interrupted): drop {} and run `tombstream \
             migrate`",
            index_name(relation)
        )),
        None => Finding::warning(
            "the flag's index is missing, so each sweep reads the whole table: run `tombstream migrate`",
        ),
    })
}

/// Who references the relation in a way that a removed row would touch. An error is a child that
/// `allow_cascade` does not name: a finalized parent must not take living children along (S3).
///
/// A child that is itself one of `relations`, with `on_hard_delete = "destroy"`, is looked after: the rows that go
/// along are deletions of their own.
pub async fn references(
    pool: &PgPool,
    relation: &Relation,
    relations: &[Relation],
) -> Result<Vec<Finding>, sqlx::Error> {
    references_to(&mut *whole(pool, "begin").await?, relation, relations).await
}

async fn references_to(
    connection: &mut PgConnection,
    relation: &Relation,
    relations: &[Relation],
) -> Result<Vec<Finding>, sqlx::Error> {
    let children: Vec<(String, String, String)> = sqlx::query_as(
        "select n.nspname || '.' || c.relname, f.conname::text, f.confdeltype::text \
         from pg_constraint f join pg_class c on c.oid = f.conrelid \
         join pg_namespace n on n.oid = c.relnamespace \
         join pg_class p on p.oid = f.confrelid join pg_namespace pn on pn.oid = p.relnamespace \
         where f.contype = 'f' and pn.nspname = $1 and p.relname = $2 and f.conparentid = 0 \
             and f.confdeltype in ('c', 'n', 'd') order by 1, 2",
    )
    .bind(&relation.schema)
    .bind(&relation.table)
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    Ok(children
        .into_iter()
        .map(|(child, constraint, action)| {
            let action = match action.as_str() {
                "c" => "on delete cascade",
                "n" => "on delete set null",
                _ => "on delete set default",
            };
            let own = relations.iter().find(|it| format!("{}.{}", it.schema, it.table) == child);
            if own.is_some_and(|it| it.on_hard_delete == OnHardDelete::Destroy) {
                Finding::warning(format!(
                    "{child} goes along ({constraint}, {action}); its copies are destroyed, as a relation's"
                ))
            } else if relation.allow_cascade.contains(&child) {
                Finding::warning(format!("{child} goes along ({constraint}, {action}), as allowed"))
            } else {
                Finding::error(format!(
                    "{child} references it with {action} ({constraint}): removing the row would touch \
                     living children; name it in `allow_cascade` if that is wanted"
                ))
            }
        })
        .collect())
}
