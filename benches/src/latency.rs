//! From the flip to the row's end at a steady rate, beside the sum of the parts that no way round avoids, each
//! timed alone in the same run: until a plain reader of the log sees the flip, one claim, the slowest store, one
//! finalizing transaction.
//!
//! The pipeline reads the log itself, and destroys in a real bucket and a real index as its defaults have it. The
//! flip is a statement of the application's own session; its moment and that of the finalizing are Postgres's
//! clock. Percentiles of a sum are not the sum of percentiles: the sum is the larger, so it flatters nobody but us
//! at p99.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;
use tombstream_connectors::Secret;
use tombstream_connectors::elasticsearch::{ElasticsearchConfig, ElasticsearchSink};
use tombstream_connectors::postgres::{
    PgLedger, PostgresSource, ReplicationConfig, Scope, Sweep, SweepConfig,
};
use tombstream_connectors::s3::S3Sink;
use tombstream_dataflow::{Config, ErasedSink, Pipeline, Store, StoreConfig, Verify};
use tombstream_e2e::{Bucket, Index, Servers};
use tombstream_model::{
    AddressTemplate, Ending, FlagState, FlagValue, Ledger as _, Relation, Source as _, StoreId,
    Target, TargetTemplate, Template, Verdict,
};

use crate::direct::Decoders;
use crate::figures::Times;
use crate::scene::{DOCUMENTS, Scene, candidate, settled};
use crate::server::{self, execute};
use crate::slot;

#[derive(Args)]
pub(crate) struct Options {
    /// Flips a second
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how long, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// How often each part is timed alone
    #[arg(long, default_value_t = 500)]
    alone: usize,
    /// `linger` of claims, stores and finalizing, in milliseconds [default: the product's]
    #[arg(long)]
    linger: Option<u64>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let servers = Servers::from_env()?;
    let name = server::new_name("bench-");
    let bucket = Bucket::make(&servers, &name).await?;
    let index = Index::make(&servers.elasticsearch, &name).await?;
    let relation = relation(&name)?;
    let scene = Scene::new(&relation, "uuid").await?;
    let run = Run { options, servers, name, bucket, index, relation, scene };
    let done = run.measure().await;
    run.remove().await?;
    done
}

/// A document in two stores.
fn relation(name: &str) -> Result<Relation> {
    let key = || Template::parse("{id}").map_err(|error| anyhow::anyhow!("{error}"));
    let object = AddressTemplate::Object { bucket: name.into(), key: key()? };
    let document = AddressTemplate::Document { index: name.into(), id: key()?, routing: None };
    let target = |store, address| TargetTemplate { store, address, is_hidden_first: false };
    Ok(Relation {
        targets: vec![target(StoreId(0), object), target(StoreId(1), document)],
        key_reuse_forbidden: true,
        ..slot::relation()?
    })
}

struct Run {
    options: Options,
    servers: Servers,
    name: String,
    bucket: Bucket,
    index: Index,
    relation: Relation,
    scene: Scene,
}

impl Run {
    async fn remove(self) -> Result<()> {
        for slot in [self.slot("ours"), self.slot("plain")] {
            let sql = format!(
                "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{slot}'"
            );
            execute(&self.scene.pool, &sql).await?;
        }
        self.scene.remove().await?;
        self.bucket.remove().await?;
        self.index.remove().await
    }

    fn slot(&self, of: &str) -> String {
        format!("{}_{of}", self.scene.name)
    }

    fn sinks(&self) -> Result<[Arc<dyn ErasedSink>; 2]> {
        let s3 = server::s3_config(&self.name)?;
        let search = ElasticsearchConfig::new(self.servers.elasticsearch.clone(), &self.name);
        Ok([Arc::new(S3Sink::new(s3)?), Arc::new(ElasticsearchSink::new(search)?)])
    }

    fn set_linger(&self, linger: &mut Duration) {
        *linger = self.options.linger.map_or(*linger, Duration::from_millis);
    }

    async fn measure(&self) -> Result<()> {
        let pool = &self.scene.pool;
        execute(pool, "create publication bench for table documents").await?;
        for of in ["ours", "plain"] {
            let slot = self.slot(of);
            execute(
                pool,
                &format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')"),
            )
            .await?;
        }
        let ledger = Arc::new(self.scene.ledger(&self.relation, &["originals", "search"]));
        let stores = self.sinks()?.into_iter().zip(["originals", "search"]).enumerate();
        let verify = [Verify::Sample { one_in: 100 }, Verify::ReadBack];
        let stores = stores.map(|(at, (sink, name))| {
            let mut config = StoreConfig { verify: verify[at], ..StoreConfig::default() };
            self.set_linger(&mut config.stage.linger);
            Store { id: StoreId(at as u16), name: name.into(), sink, config }
        });
        let mut config = Config::default();
        self.set_linger(&mut config.claim.linger);
        self.set_linger(&mut config.finalize.linger);
        let relations: Arc<[_]> = Arc::from([self.relation.clone()]);
        let pipeline = Pipeline {
            config,
            relations: Arc::clone(&relations),
            ledger: Arc::clone(&ledger),
            stores: stores.collect(),
            sources: vec![Box::new(self.source("ours")?), Box::new(self.sweep())],
        };
        let running = pipeline.start(Handle::current())?;
        // A first second fills caches and opens connections; its flips are not counted.
        self.flips(self.options.rate).await?;
        let rows = self.options.rate * self.options.seconds;
        self.flips(rows).await?;
        let whole = Times::new(
            sqlx::query_scalar(
                "select extract(epoch from finalized_at - flag::timestamptz)::float8 from tombstream.receipt \
                 order by finalized_at offset $1",
            )
            .bind(i64::from(self.options.rate))
            .fetch_all(pool)
            .await?,
        );
        ensure!(whole.count() == rows as usize, "{} of {rows} have a receipt", whole.count());
        running.stop(Duration::from_secs(10)).await?;
        let stages = self.stages().await?;
        let seen = self.plain().await?;
        let [claim, slowest, finalize] = self.alone(&ledger).await?;
        let parts =
            [("seen", &seen), ("claim", &claim), ("store", &slowest), ("finalize", &finalize)];
        let sum = |share: f64| parts.iter().map(|(_, times)| times.at(share)).sum::<f64>();
        let (p50, p99) = (whole.at(0.5) / sum(0.5), whole.at(0.99) / sum(0.99));
        if self.options.json {
            let map = |of: Vec<(&str, &Times)>| -> serde_json::Map<String, _> {
                of.into_iter().map(|(name, times)| (name.to_owned(), times.json())).collect()
            };
            let parts = map(parts.into());
            let stages = map(stages.iter().map(|(name, times)| (*name, times)).collect());
            let line = json!({
                "bench": "latency", "flips_per_s": self.options.rate, "seconds": self.options.seconds,
                "whole": whole.json(), "stages": stages, "parts": parts, "p50": p50, "p99": p99,
            });
            println!("{line}");
        } else {
            println!("flip to gone: {}; ÷ its parts: {p50:.2} and {p99:.2}", whole.json());
            for (name, times) in parts {
                println!("{name} alone: {}", times.json());
            }
            for (name, times) in stages {
                println!("to {name}: {}", times.json());
            }
        }
        Ok(())
    }

    /// Where the time went, by what the receipts tell: from the flip to the claim, from there to each store's word,
    /// from the slower to the transaction that removes the row.
    async fn stages(&self) -> Result<Vec<(&'static str, Times)>> {
        let rows: Vec<(f64, f64, f64, f64)> = sqlx::query_as(
            "select extract(epoch from r.claimed_at - r.flag::timestamptz)::float8, \
                 extract(epoch from o.at - r.claimed_at)::float8, extract(epoch from e.at - r.claimed_at)::float8, \
                 extract(epoch from r.finalized_at - greatest(o.at, e.at))::float8 \
             from tombstream.receipt r, \
                 lateral (select (r.targets #>> '{0,outcome,at}')::timestamptz as at) o, \
                 lateral (select (r.targets #>> '{1,outcome,at}')::timestamptz as at) e \
             order by r.finalized_at offset $1",
        )
        .bind(i64::from(self.options.rate))
        .fetch_all(&self.scene.pool)
        .await?;
        let of =
            |pick: fn(&(f64, f64, f64, f64)) -> f64| Times::new(rows.iter().map(pick).collect());
        Ok(vec![
            ("claim", of(|row| row.0)),
            ("objects", of(|row| row.1)),
            ("documents", of(|row| row.2)),
            ("finalize", of(|row| row.3)),
        ])
    }

    fn source(&self, of: &str) -> Result<PostgresSource> {
        let mut config =
            ReplicationConfig::new(Secret::new(self.scene.url()), self.slot(of), "bench");
        config.heartbeat = Duration::ZERO;
        let scope = Scope::Relations(Arc::from([self.relation.clone()]));
        Ok(PostgresSource::new(config, self.scene.pool.clone(), scope, |_| {})?)
    }

    /// For a flip that the log tells before its commit is seen by others: the claim does not see the flag yet.
    fn sweep(&self) -> Sweep {
        let config = SweepConfig {
            interval: Duration::from_secs(1),
            page_max: 1_000,
            after: Duration::from_secs(5),
            rate_max: 20_000,
            prepared_statements: true,
        };
        Sweep::new(self.scene.pool.clone(), [self.relation.clone()].into(), config)
    }

    /// Makes documents with their copies, and gives their ids.
    async fn seed(&self, rows: u32) -> Result<Vec<String>> {
        let insert = "insert into documents (id, name) select gen_random_uuid(), 'document ' || n \
            from generate_series(1, $1) n returning id::text";
        let ids: Vec<String> = sqlx::query_scalar(insert)
            .bind(i32::try_from(rows)?)
            .fetch_all(&self.scene.pool)
            .await?;
        self.bucket.put(ids.iter().map(|id| (id.clone(), b"a copy".to_vec()))).await?;
        self.index.put(ids.iter().map(|id| (id.clone(), json!({"title": "a copy"})))).await?;
        Ok(ids)
    }

    /// Flags that many documents at the rate, and waits until all rows are gone.
    async fn flips(&self, rows: u32) -> Result<()> {
        let ids = self.seed(rows).await?;
        self.at_rate(&ids).await?;
        let ends = Instant::now() + Duration::from_secs(60);
        loop {
            let left: i64 = sqlx::query_scalar("select count(*) from documents")
                .fetch_one(&self.scene.pool)
                .await?;
            if left == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < ends, "{left} rows are still there");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn at_rate(&self, ids: &[String]) -> Result<()> {
        let begin = tokio::time::Instant::now();
        let each = Duration::from_secs(1) / self.options.rate;
        for (n, id) in ids.iter().enumerate() {
            tokio::time::sleep_until(begin + each * n as u32).await;
            let flag = "update documents set deleted_at = clock_timestamp() where id = $1::uuid";
            sqlx::query(flag).bind(id).execute(&self.scene.pool).await?;
        }
        Ok(())
    }

    /// From the flip until a plain reader of the log has it, at the same rate, with nothing behind.
    async fn plain(&self) -> Result<Times> {
        let mut source = self.source("plain")?;
        let rows = self.options.rate * 5;
        let ids = self.seed(rows).await?;
        let mut arrived = Vec::new();
        let mut decoders = Decoders::new(&self.relation);
        let read = async {
            // What was flagged before stands in the log, too.
            let wanted: std::collections::HashSet<&str> = ids.iter().map(String::as_str).collect();
            while arrived.len() < ids.len() {
                let polled = tokio::time::timeout(Duration::from_secs(60), source.next()).await;
                let polled = polled.context("no row for 60 s")??;
                let now = UNIX_EPOCH.elapsed()?.as_micros() as i64;
                decoders.flags(&polled.records, |key, flag| {
                    // Table and reader share the machine's clock.
                    if let FlagState::Set(FlagValue::Micros(at)) = flag
                        && key.columns().next().is_some_and(|id| wanted.contains(id))
                    {
                        arrived.push((now - at) as f64 / 1e6);
                    }
                })?;
                source.commit(polled.marks).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::try_join!(self.at_rate(&ids), read)?;
        source.close().await;
        execute(&self.scene.pool, "truncate documents").await?;
        Ok(Times::new(arrived))
    }

    /// One claim, each store's destroy of one copy, one finalizing, one after the other and nothing beside. Of
    /// the stores, the slower.
    async fn alone(&self, ledger: &PgLedger) -> Result<[Times; 3]> {
        let sinks = self.sinks()?;
        let ids = self.seed(self.options.alone as u32).await?;
        execute(&self.scene.pool, "update documents set deleted_at = clock_timestamp()").await?;
        let (mut claims, mut ends) = (Vec::new(), Vec::new());
        let mut destroys = [Vec::new(), Vec::new()];
        for id in ids {
            let begun = Instant::now();
            let claimed = ledger.claim(DOCUMENTS, &[candidate(id)]).await?;
            claims.push(begun.elapsed().as_secs_f64());
            let claimed = claimed.into_iter().next().context("it was not claimed")?;
            let targets: Vec<Target> = claimed.targets.iter().map(|it| it.target.clone()).collect();
            for (at, (sink, target)) in sinks.iter().zip(&targets).enumerate() {
                let begun = Instant::now();
                let outcomes = sink.destroy(std::slice::from_ref(target)).await?;
                destroys[at].push(begun.elapsed().as_secs_f64());
                ensure!(outcomes[0].verdict == Verdict::Deleted, "{:?}", outcomes[0]);
            }
            let gone = [settled(claimed)];
            let begun = Instant::now();
            let endings = ledger.finalize(DOCUMENTS, &gone).await?;
            ends.push(begun.elapsed().as_secs_f64());
            ensure!(endings == [Ending::Finalized], "{endings:?}");
        }
        let [one, other] = destroys.map(Times::new);
        let slowest = if one.at(0.5) > other.at(0.5) { one } else { other };
        Ok([Times::new(claims), slowest, Times::new(ends)])
    }
}
