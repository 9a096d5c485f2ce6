//! `tombstream migrate`: the ledger's schema, and each relation's triggers and index.

use anyhow::Context as _;
use tombstream_connectors::postgres;
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
        return Ok(());
    }
    let pool = wiring::connect(&config.database, "tombstream-migrate").await?;
    postgres::migrate(&pool).await?;
    println!("ledger: migrated");
    for relation in relations {
        postgres::install_relation(&pool, relation)
            .await
            .with_context(|| format!("relation {}", relation.name))?;
        println!("relation {}: triggers and index are in place", relation.name);
    }
    Ok(())
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
