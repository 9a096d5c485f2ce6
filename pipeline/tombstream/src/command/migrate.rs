//! `tombstream migrate`: the ledger's schema, each relation's triggers and index, and the roles.

use anyhow::Context as _;
use tombstream_connectors::postgres::{self, ApiRights};
use tombstream_model::Relation;

use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the relations' statements instead of running anything. Needs no connection.
    #[arg(long)]
    print: bool,
    /// With --print: the tables are partitioned, so their index can't be made concurrently.
    #[arg(long, requires = "print")]
    partitioned: bool,
    /// Also make the roles tombstream_api and tombstream_pipeline, and give them what they need.
    #[arg(long)]
    roles: bool,
    /// Only this relation.
    #[arg(long, value_name = "NAME")]
    relation: Option<String>,
}

pub(super) async fn migrate(config: Config, args: Args) -> anyhow::Result<()> {
    let relations = chosen(&config, args.relation.as_deref())?;
    if args.print {
        for relation in relations {
            println!("-- relation {}: {}.{}", relation.name, relation.schema, relation.table);
            for statement in postgres::relation_sql(relation, args.partitioned) {
                println!("{};\n", statement.trim_end().trim_end_matches(';'));
            }
        }
        if args.roles {
            println!("-- roles");
            for statement in role_sql(&config, &chosen(&config, args.relation.as_deref())?) {
                println!("{statement};\n");
            }
        }
        return Ok(());
    }
    let pool = wiring::connect(&config.database, "tombstream-migrate").await?;
    postgres::migrate(&pool).await?;
    println!("ledger: migrated");
    for relation in &relations {
        postgres::install_relation(&pool, relation)
            .await
            .with_context(|| format!("relation {}", relation.name))?;
        println!("relation {}: triggers and index are in place", relation.name);
    }
    if args.roles {
        postgres::run_role_sql(&pool, &role_sql(&config, &relations)).await.context(
            "the roles could not be made: this login must own the tables and may have to create \
             roles; `tombstream migrate --roles --print` prints the statements for whoever may",
        )?;
        println!("roles: {} and {} have their rights", postgres::PIPELINE_ROLE, postgres::API_ROLE);
        println!("    grant {} to the login of `tombstream run`,", postgres::PIPELINE_ROLE);
        println!("    grant {} to that of `tombstream api`", postgres::API_ROLE);
    }
    Ok(())
}

/// The roles, and what they may do with `relations`.
fn role_sql(config: &Config, relations: &[&Relation]) -> Vec<String> {
    let mut statements = postgres::role_sql();
    for (relation, route) in config.relations.iter().zip(&config.routes) {
        if !relations.iter().any(|chosen| chosen.name == relation.name) {
            continue;
        }
        let api = route
            .as_ref()
            .map(|route| ApiRights { columns: &route.columns, create: route.create.as_deref() });
        statements.extend(postgres::relation_role_sql(relation, api));
    }
    statements
}

/// The relations, or the one that is named.
pub(super) fn chosen<'a>(
    config: &'a Config,
    name: Option<&str>,
) -> anyhow::Result<Vec<&'a Relation>> {
    let relations = config.relations.iter();
    let Some(name) = name else { return Ok(relations.collect()) };
    let known: Vec<&str> = config.relations.iter().map(|relation| &*relation.name).collect();
    match relations.into_iter().find(|relation| &*relation.name == name) {
        Some(relation) => Ok(vec![relation]),
        None => anyhow::bail!("there is no relation {name:?}; known are {}", known.join(", ")),
    }
}
