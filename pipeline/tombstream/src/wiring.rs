//! From the configuration to what runs: connectors, ledger, dataflow, api.
//!
//! A new store is one arm in [`connect_store`] and one in `check`.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use sqlx::PgPool;
use tombstream_api::{ApiConfig, ApiRelation, Tokens};
use tombstream_connectors as connectors;
use tombstream_connectors::elasticsearch::{
    self, ElasticsearchConfig, ElasticsearchListing, ElasticsearchSink,
};
use tombstream_connectors::files::{self, FilesConfig, FilesSource};
use tombstream_connectors::kafka::{self, KafkaConfig, KafkaPublisher, KafkaSource};
use tombstream_connectors::object_store::{ObjectStoreConfig, ObjectStoreListing, ObjectStoreSink};
use tombstream_connectors::postgres::{
    self, Audit, AuditConfig, LedgerConfig, LedgerStore, Letters, PgLedger, PgPositions,
    PostgresSource, ReplicationConfig, Scope, Sweep, SweepBell, SweepConfig,
};
use tombstream_connectors::postgres_table::{
    PostgresTableConfig, PostgresTableListing, PostgresTableSink,
};
use tombstream_connectors::s3::{self, S3Config, S3Listing, S3Sink};
#[cfg(feature = "embedded")]
use tombstream_connectors::tantivy::{TantivyConfig, TantivyListing, TantivySink};
use tombstream_connectors::webhook::{WebhookConfig, WebhookSink};
use tombstream_dataflow::reconcile::{ErasedListing, ReconcileStore};
use tombstream_dataflow::{ErasedSink, ErasedSource, Pipeline, ServerClock, StageConfig, Store};
use tombstream_model::{AddressTemplate, KeyedHash, Listed, StoreId};
use tracing::{error, info, warn};

#[cfg(feature = "embedded")]
use crate::config::TantivySection;
use crate::config::{
    ArchiveSection, CaptureSection, Checksum, Conditional, Config, DatabaseConfig,
    ElasticsearchCredentials, ElasticsearchSection, Erase, FilesSection, KafkaSection,
    ObjectStoreSection, PostgresSection, PostgresTableSection, ReceiptKeys, S3Section, Secret,
    SecretRef, Setting, StoreConfig, StoreKind, Verify, Version, WebhookSection,
};
use crate::telemetry::Metrics;

/// A store's connector, before its kind is forgotten.
pub(crate) enum Connected {
    S3(Arc<S3Sink>),
    ObjectStore(Arc<ObjectStoreSink>),
    Elasticsearch(Arc<ElasticsearchSink>),
    #[cfg(feature = "embedded")]
    Tantivy(Arc<TantivySink>),
    Webhook(Arc<WebhookSink>),
    PostgresTable(Arc<PostgresTableSink>),
}

/// The text of a secret. That it is there was checked when the file was read.
fn resolve(secret: &SecretRef) -> anyhow::Result<Secret> {
    secret.resolve().map_err(|wrong| anyhow::anyhow!("{}; {}", wrong.what, wrong.fix))
}

/// Opens the relations' database.
pub(crate) async fn connect(database: &DatabaseConfig, who: &str) -> anyhow::Result<PgPool> {
    let url = resolve(&database.url)?;
    let pool_max = database.pool_max.get();
    postgres::connect(url.expose(), pool_max, database.prepared_statements, who)
        .await
        .with_context(|| unreached(url.expose()))
}

/// The same, of a ledger that this binary knows: a newer one may mean by its rows what this one does not
/// know.
pub(crate) async fn connect_ledger(database: &DatabaseConfig, who: &str) -> anyhow::Result<PgPool> {
    let pool = connect(database, who).await?;
    postgres::check_version(&pool).await?;
    Ok(pool)
}

/// What to do about a database that can't be reached, and where it was looked for.
fn unreached(url: &str) -> String {
    let advice = "is database.url right, and does it listen?";
    match url.parse::<sqlx::postgres::PgConnectOptions>() {
        Ok(options) => {
            let (host, port) = (options.get_host(), options.get_port());
            format!("the database at {host}:{port} can't be reached: {advice}")
        }
        Err(_) => format!("the database can't be reached: {advice}"),
    }
}

/// What is looked after beside a pipeline that runs.
pub(crate) struct Watched {
    pub(crate) ledger: Arc<PgLedger>,
    pub(crate) server: ServerClock,
    pub(crate) bell: SweepBell,
    /// The stores' sinks, in their order: the audit looks at them beside the pipeline.
    pub(crate) sinks: Vec<Arc<dyn ErasedSink>>,
}

/// Everything that `tombstream run` runs.
pub(crate) async fn pipeline(
    config: &Config,
    pool: PgPool,
) -> anyhow::Result<(Pipeline<PgLedger>, Watched)> {
    let relations = Arc::clone(&config.relations);
    let ledger = ledger(config, ledger_config(config), pool.clone())?;
    let ledger = if config.archive.is_some() { ledger.with_archive() } else { ledger };
    let stores = stores(config)?;
    let sinks = stores.iter().map(|store| Arc::clone(&store.sink)).collect();
    let sweep = &config.source.sweep;
    let sweep = SweepConfig {
        interval: sweep.interval,
        page_max: sweep.page_max.get(),
        after: sweep.after,
        rate_max: sweep.rate_max.get(),
        prepared_statements: config.database.prepared_statements,
    };
    let sweep = Sweep::new(pool.clone(), Arc::clone(&relations), sweep);
    let bell = sweep.bell();
    let watch_bell = sweep.bell();
    let letters = Letters::new(
        pool.clone(),
        topics(config),
        config.source.files.is_some(),
        config.source.sweep.interval,
        config.database.prepared_statements,
    );
    let mut sources: Vec<Box<dyn ErasedSource>> = vec![Box::new(sweep), Box::new(letters)];
    if let Some(section) = &config.source.kafka {
        let bell = bell.clone();
        let on_gap = move |gap: &kafka::Gap| {
            bell.ring();
            error!(
                topic = gap.topic,
                partition = gap.partition,
                committed = gap.committed,
                low = gap.low,
                high = gap.high,
                "events are missing from the log; the sweep looks for their flags now"
            );
        };
        let source = KafkaSource::new(&kafka_config(section), &topics(config), on_gap)
            .context("source.kafka")?;
        sources.push(Box::new(source));
    }
    #[cfg(feature = "fluvio")]
    if let Some(section) = &config.source.fluvio {
        let on_gap = |gap: &connectors::fluvio::Gap| {
            error!(
                topic = gap.topic,
                partition = gap.partition,
                committed = gap.committed,
                low = gap.low,
                high = gap.high,
                "events are missing from the log; the sweep finds their flags"
            );
        };
        let topics = topics(config);
        let source = connectors::fluvio::FluvioSource::new(&section.config, &topics, on_gap)
            .context("source.fluvio")?;
        sources.push(Box::new(source));
    }
    let seen = ledger.generation().await.context("the ledger's generation")?;
    if let Some(section) = &config.source.files {
        sources.push(Box::new(files_source(config, section, pool.clone(), bell.clone())?));
    }
    if let Some(section) = &config.source.postgres {
        let on_gap = move |gap: &postgres::Gap| {
            match gap.reason {
                postgres::GapReason::New => info!("{gap}"),
                _ => warn!("{gap}"),
            }
            bell.ring();
        };
        let scope = Scope::Relations(Arc::clone(&relations));
        let source = replication_config(&config.database, section)
            .and_then(|config| Ok(PostgresSource::new(config, pool, scope, on_gap)?))
            .context("source.postgres")?;
        sources.push(Box::new(source));
    }
    let server = ServerClock::default();
    server.set(seen.generation, seen.written);
    let limits = tombstream_dataflow::Config { server: server.clone(), ..limits(config) };
    let ledger = Arc::new(ledger);
    let watched = Watched { ledger: Arc::clone(&ledger), server, bell: watch_bell, sinks };
    let pipeline = Pipeline { config: limits, relations, ledger, stores, sources };
    Ok((pipeline, watched))
}

/// The configured stores, with their limits. Sends nothing yet.
pub(crate) fn stores(config: &Config) -> anyhow::Result<Vec<Store>> {
    let mut stores = Vec::new();
    for (store, id) in config.stores.iter().zip(0..) {
        let sink = store_sink(store)?;
        let name = store.name.as_str().into();
        stores.push(Store { id: StoreId(id), name, sink, config: store_limits(config, store) });
    }
    Ok(stores)
}

/// The same pipeline over one source that ends.
pub(crate) async fn job(
    config: &Config,
    pool: PgPool,
    source: Box<dyn ErasedSource>,
) -> anyhow::Result<Pipeline<PgLedger>> {
    let ledger = ledger(config, ledger_config(config), pool)?;
    let seen = ledger.generation().await.context("the ledger's generation")?;
    let server = ServerClock::default();
    server.set(seen.generation, seen.written);
    Ok(Pipeline {
        config: tombstream_dataflow::Config { server, ..limits(config) },
        relations: Arc::clone(&config.relations),
        ledger: Arc::new(ledger),
        stores: stores(config)?,
        sources: vec![source],
    })
}

/// The database's two sides of a comparison, and the way to ask it about single keys.
pub(crate) fn listings(
    config: &Config,
    pool: PgPool,
) -> (postgres::RowListing, postgres::DeletionListing, postgres::PgRegistry) {
    let names: Vec<Arc<str>> =
        config.stores.iter().map(|store| store.name.as_str().into()).collect();
    let prepared = config.database.prepared_statements;
    postgres::listings(pool, Arc::clone(&config.relations), &names, prepared)
}

/// A store, to be listed and looked at. Sends nothing yet.
pub(crate) fn reconcile_store(
    config: &Config,
    place: usize,
    may_be_empty: bool,
) -> anyhow::Result<ReconcileStore> {
    let store = &config.stores[place];
    let id = StoreId(u16::try_from(place).expect("there are few stores"));
    let (listing, sink): (Arc<dyn ErasedListing<Listed>>, Arc<dyn ErasedSink>) =
        match connect_store(store)? {
            Connected::S3(sink) => (Arc::new(S3Listing::new(Arc::clone(&sink))), sink),
            Connected::ObjectStore(sink) => {
                (Arc::new(ObjectStoreListing::new(Arc::clone(&sink))), sink)
            }
            Connected::Elasticsearch(sink) => {
                let names = searched(config, id);
                (Arc::new(ElasticsearchListing::new(Arc::clone(&sink), names)), sink)
            }
            #[cfg(feature = "embedded")]
            Connected::Tantivy(sink) => {
                let fields = searched(config, id).into_values().flatten();
                (Arc::new(TantivyListing::new(Arc::clone(&sink), fields)), sink)
            }
            Connected::Webhook(_) => bail!(not_listed(&store.name, "what a webhook tells of")),
            Connected::PostgresTable(sink) => {
                let shapes = shapes(config, id);
                (Arc::new(PostgresTableListing::new(Arc::clone(&sink), shapes)), sink)
            }
        };
    Ok(ReconcileStore {
        id,
        name: store.name.as_str().into(),
        listing,
        sink,
        // 1 says that many rows have no copy there.
        expects_all: store.absent_share_max < 1.0,
        may_be_empty,
    })
}

fn not_listed(store: &str, what: &str) -> String {
    format!(
        "store {store}: {what} can't be listed yet; leave it out by naming the others with --store"
    )
}

/// The names under which a store's documents are found, each with the fields that are compared.
fn searched(config: &Config, id: StoreId) -> BTreeMap<Arc<str>, Vec<Arc<str>>> {
    let mut names: BTreeMap<Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
    let targets = config.relations.iter().flat_map(|relation| &relation.targets);
    for target in targets.filter(|target| target.store == id) {
        match &target.address {
            AddressTemplate::Document { index, .. } => {
                names.entry(Arc::clone(index)).or_default();
            }
            AddressTemplate::Field { index, field, .. } => {
                let fields = names.entry(Arc::clone(index)).or_default();
                if !fields.contains(field) {
                    fields.push(Arc::clone(field));
                }
            }
            AddressTemplate::Object { .. }
            | AddressTemplate::Prefix { .. }
            | AddressTemplate::Item { .. }
            | AddressTemplate::Row { .. } => {}
        }
    }
    names
}

/// The columns by which a store's rows are found, as each target names them.
fn shapes(config: &Config, id: StoreId) -> Vec<Vec<String>> {
    let targets = config.relations.iter().flat_map(|relation| &relation.targets);
    let of_store = targets.filter(|target| target.store == id);
    let shape = of_store.filter_map(|target| match &target.address {
        AddressTemplate::Row { columns, .. } => Some(columns.keys().cloned().collect()),
        AddressTemplate::Object { .. }
        | AddressTemplate::Prefix { .. }
        | AddressTemplate::Document { .. }
        | AddressTemplate::Field { .. }
        | AddressTemplate::Item { .. } => None,
    });
    shape.collect()
}

/// Files, with their positions in the ledger.
fn files_source(
    config: &Config,
    section: &FilesSection,
    pool: PgPool,
    bell: SweepBell,
) -> anyhow::Result<FilesSource<PgPositions>> {
    let on_gap = move |gap: &files::Gap| {
        bell.ring();
        error!(
            file = gap.file,
            next = gap.next,
            "a file is gone that was not read to its end; the sweep looks for its flags now"
        );
    };
    let positions = file_positions(config, section, pool);
    files_config(section)
        .and_then(|files| Ok(FilesSource::new(&files, positions, on_gap)?))
        .context("source.files")
}

/// The archive's place, as files are opened.
pub(crate) fn archive_place(section: &ArchiveSection) -> anyhow::Result<FilesConfig> {
    let mut config = FilesConfig::new(section.path.as_str());
    config.options = section.options.iter().map(option).collect::<anyhow::Result<_>>()?;
    Ok(config)
}

/// Files that are read once, from their beginning. Credentials are those of `[source.files]`, if it is of the same
/// bucket; else those of the environment.
pub(crate) fn replayed_place(
    config: &Config,
    url: &str,
    topic: Option<&str>,
) -> anyhow::Result<FilesConfig> {
    let mut files = FilesConfig::new(url);
    let bucket = |url: &str| url.splitn(4, '/').take(3).map(str::to_owned).collect::<Vec<_>>();
    if let Some(section) = &config.source.files {
        files.line_bytes_max = section.line_bytes_max;
        files.topic = section.topic.clone();
        if bucket(&section.path) == bucket(url) && !url.starts_with("file:") {
            files.options = section.options.iter().map(option).collect::<anyhow::Result<_>>()?;
        }
    }
    if let Some(topic) = topic {
        files.topic = topic.to_owned();
    }
    Ok(files)
}

/// How far the files were read, as the ledger keeps it.
pub(crate) fn file_positions(config: &Config, section: &FilesSection, pool: PgPool) -> PgPositions {
    PgPositions::new(pool, section.name.as_str(), config.database.prepared_statements)
}

/// The files as their connector takes them.
pub(crate) fn files_config(section: &FilesSection) -> anyhow::Result<FilesConfig> {
    let mut config = FilesConfig::new(section.path.as_str());
    config.topic = section.topic.clone();
    config.follow = section.follow;
    config.poll = section.poll;
    config.items_max = section.items_max;
    config.line_bytes_max = section.line_bytes_max;
    config.options = section.options.iter().map(option).collect::<anyhow::Result<_>>()?;
    Ok(config)
}

/// An option of a store, its secret read.
fn option((name, setting): &(String, Setting)) -> anyhow::Result<(String, String)> {
    let text = match setting {
        Setting::Plain(text) => text.clone(),
        Setting::Secret(secret) => resolve(secret)?.expose().to_owned(),
    };
    Ok((name.clone(), text))
}

/// The slot as its connector takes it.
pub(crate) fn replication_config(
    database: &DatabaseConfig,
    section: &PostgresSection,
) -> anyhow::Result<ReplicationConfig> {
    let url = resolve(section.url.as_ref().unwrap_or(&database.url))?;
    let url = connectors::Secret::new(url.expose());
    let mut config = ReplicationConfig::new(url, &*section.slot, &*section.publication);
    config.items_max = section.items_max;
    config.bytes_max = section.bytes_max;
    config.heartbeat = section.heartbeat;
    Ok(config)
}

/// What `tombstream capture` reads.
pub(crate) fn capture_config(
    database: &DatabaseConfig,
    section: &CaptureSection,
) -> anyhow::Result<ReplicationConfig> {
    let url = resolve(section.url.as_ref().unwrap_or(&database.url))?;
    Ok(section.replication(connectors::Secret::new(url.expose())))
}

/// Where `tombstream capture` publishes to, if it is Kafka.
pub(crate) fn kafka_publisher(settings: &[(String, Setting)]) -> anyhow::Result<KafkaPublisher> {
    KafkaPublisher::new(publisher_config(settings)).context("capture.kafka")
}

/// The producer of rehydrate notices.
pub(crate) fn rehydrate_publisher(
    settings: &[(String, Setting)],
) -> anyhow::Result<KafkaPublisher> {
    KafkaPublisher::new(publisher_config(settings)).context("rehydrate")
}

/// The producer as its connector takes it. Its secrets are read there.
pub(crate) fn publisher_config(settings: &[(String, Setting)]) -> kafka::KafkaPublisherConfig {
    let mut config = kafka::KafkaPublisherConfig::new("");
    config.settings = kafka_settings(settings);
    config
}

/// The audit of the configured relations and stores.
pub(crate) fn audit(config: &Config, pool: PgPool) -> Audit {
    let names = config.stores.iter().map(|store| store.name.as_str().into()).collect();
    let mut limits = AuditConfig::new(owner(), config.audit.after.clone());
    limits.rate_max = config.audit.rate.get();
    // A page is renewed before its lease is over.
    limits.page_max = limits.page_max.min(limits.rate_max.saturating_mul(5));
    limits.wait = config.audit.wait;
    limits.prepared_statements = config.database.prepared_statements;
    Audit::new(pool, Arc::clone(&config.relations), names, limits)
}

/// The ledger of the configured relations and stores.
pub(crate) fn ledger(
    config: &Config,
    of_process: LedgerConfig,
    pool: PgPool,
) -> anyhow::Result<PgLedger> {
    let ledger = PgLedger::new(pool, Arc::clone(&config.relations), of_process);
    Ok(match config.receipts.keys {
        ReceiptKeys::Plain => ledger,
        ReceiptKeys::Hashed => match keyed_hash(config)? {
            Some(keyed) => ledger.with_hashed_receipts(keyed),
            None => bail!("receipts.keys is \"hashed\" and receipts.secret is not set"),
        },
    })
}

/// What hashes keys on receipts, if there is a secret.
pub(crate) fn keyed_hash(config: &Config) -> anyhow::Result<Option<KeyedHash>> {
    let Some(secret) = &config.receipts.secret else { return Ok(None) };
    let secret = secret.resolve().map_err(|wrong| anyhow!("{}: {}", wrong.what, wrong.fix))?;
    let keyed = KeyedHash::new(secret.expose().as_bytes());
    let keyed = keyed.with_context(|| {
        format!(
            "receipts.secret is shorter than {} bytes: it can be tried out",
            KeyedHash::SECRET_MIN
        )
    })?;
    Ok(Some(keyed))
}

/// Notes the stores of this configuration in the ledger; says what stands against those that were there and
/// are not any more.
pub(crate) async fn former_stores(config: &Config, pool: &PgPool) -> anyhow::Result<Vec<String>> {
    let names: Vec<Arc<str>> =
        config.stores.iter().map(|store| store.name.as_str().into()).collect();
    let former = postgres::note_stores(pool, &config.relations, &names).await;
    let former = former.context("the stores of the ledger can't be looked at")?;
    Ok(former
        .into_iter()
        .map(|it| {
            format!(
                "relation {}: store {} held copies of its rows and is no target any more, so they would stay \
                 ({} open deletions owe it something): put it back, or say that nothing is there any more with \
                 `tombstream stores waive {} --relation {} --reason …`",
                it.relation, it.store, it.owed, it.store, it.relation
            )
        })
        .collect())
}

/// The topics of all relations.
pub(crate) fn topics(config: &Config) -> Vec<String> {
    config.relations.iter().flat_map(|relation| relation.topics.iter().cloned()).collect()
}

/// One name a process, for people to read.
pub(crate) fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "tombstream" } else { host.trim() };
    format!("{host}/{}", std::process::id())
}

pub(crate) fn ledger_config(config: &Config) -> LedgerConfig {
    LedgerConfig {
        owner: owner(),
        lease: config.pipeline.lease,
        stores: config
            .stores
            .iter()
            .map(|store| LedgerStore {
                name: store.name.as_str().into(),
                absent_share_max: store.absent_share_max,
            })
            .collect(),
        owed_wait_min: config.pipeline.owed_wait_min,
        owed_wait_max: config.pipeline.owed_wait_max,
        prepared_statements: config.database.prepared_statements,
    }
}

pub(crate) fn limits(config: &Config) -> tombstream_dataflow::Config {
    let pipeline = &config.pipeline;
    let stage = StageConfig {
        items_max: pipeline.batch_max.get(),
        linger: pipeline.linger,
        in_flight_max: pipeline.transactions_max.get(),
        timeout: pipeline.transaction_timeout,
        ..StageConfig::ledger()
    };
    // Takeovers and dead letters stay below live traffic.
    let small =
        StageConfig { items_max: stage.items_max.min(100), in_flight_max: 1, ..stage.clone() };
    tombstream_dataflow::Config {
        workers: pipeline.workers.get(),
        in_flight_max: pipeline.in_flight_max.get(),
        epoch_wait: pipeline.epoch_wait,
        dedupe_keys_max: pipeline.dedupe_keys_max.get(),
        claim: stage.clone(),
        resume: small.clone(),
        finalize: stage.clone(),
        owe: stage,
        bury: small,
        letters: config.dead_letters.limits,
        ..tombstream_dataflow::Config::default()
    }
}

fn store_limits(config: &Config, store: &StoreConfig) -> tombstream_dataflow::StoreConfig {
    tombstream_dataflow::StoreConfig {
        stage: StageConfig {
            items_max: store.batch_max.get(),
            linger: config.pipeline.linger,
            in_flight_max: store.in_flight_max.get(),
            timeout: store.timeout,
            deadline: store.deadline,
            ..StageConfig::store()
        },
        unavailable_after: store.unavailable_after,
        probe_wait: store.probe_wait,
        verify: match store.verify {
            Verify::ReadBack => tombstream_dataflow::Verify::ReadBack,
            Verify::Sample => {
                tombstream_dataflow::Verify::Sample { one_in: store.sample_one_in.get() }
            }
            Verify::Trust => tombstream_dataflow::Verify::Trust,
        },
    }
}

/// A store's sink, its kind forgotten.
pub(crate) fn store_sink(store: &StoreConfig) -> anyhow::Result<Arc<dyn ErasedSink>> {
    Ok(match connect_store(store)? {
        Connected::S3(sink) => sink,
        Connected::ObjectStore(sink) => sink,
        Connected::Elasticsearch(sink) => sink,
        #[cfg(feature = "embedded")]
        Connected::Tantivy(sink) => sink,
        Connected::Webhook(sink) => sink,
        Connected::PostgresTable(sink) => sink,
    })
}

/// Makes a store's connector. Sends nothing yet.
pub(crate) fn connect_store(store: &StoreConfig) -> anyhow::Result<Connected> {
    let connected = match &store.kind {
        StoreKind::S3(section) => s3_sink(store, section).map(|sink| Connected::S3(Arc::new(sink))),
        StoreKind::ObjectStore(section) => {
            object_store_sink(store, section).map(|sink| Connected::ObjectStore(Arc::new(sink)))
        }
        StoreKind::Elasticsearch(section) => {
            elasticsearch_sink(store, section).map(|sink| Connected::Elasticsearch(Arc::new(sink)))
        }
        #[cfg(feature = "embedded")]
        StoreKind::Tantivy(section) => {
            tantivy_sink(store, section).map(|sink| Connected::Tantivy(Arc::new(sink)))
        }
        #[cfg(not(feature = "embedded"))]
        StoreKind::Tantivy(_) => {
            Err(anyhow::anyhow!("its kind is not in this build of tombstream"))
        }
        StoreKind::Webhook(section) => {
            webhook_sink(store, section).map(|sink| Connected::Webhook(Arc::new(sink)))
        }
        StoreKind::PostgresTable(section) => {
            table_sink(store, section).map(|sink| Connected::PostgresTable(Arc::new(sink)))
        }
    };
    connected.with_context(|| format!("store.{}", store.name))
}

fn s3_sink(store: &StoreConfig, section: &S3Section) -> anyhow::Result<S3Sink> {
    let mut config = S3Config::new(section.region.as_str(), section.bucket.as_str());
    config.endpoint = section.endpoint.clone();
    config.prefix = section.prefix.clone().unwrap_or_default();
    config.path_style = Some(section.path_style);
    config.keys_max = s3::KeysMax::try_from(store.batch_max.get().min(1_000))
        .map_err(|reason| anyhow::anyhow!("batch_max: {reason}"))?;
    config.probe = if section.probe { s3::Probe::Head } else { s3::Probe::None };
    config.in_flight_max = section.probes_max;
    config.erase = match section.erase {
        Erase::AllVersions => s3::Erase::AllVersions,
        Erase::Current => s3::Erase::Current,
    };
    config.checksum = match section.checksum {
        Checksum::Auto => s3::Checksum::Auto,
        Checksum::Crc32 => s3::Checksum::Crc32,
        Checksum::Md5 => s3::Checksum::Md5,
    };
    config.conditional = match section.conditional {
        Conditional::Auto => s3::Conditional::Auto,
        Conditional::Never => s3::Conditional::Never,
        Conditional::Required => s3::Conditional::Required,
    };
    config.rate_per_prefix = section.rate_per_prefix;
    config.rate_depth = section.rate_depth;
    config.connect_timeout = section.connect_timeout;
    config.request_timeout = store.timeout;
    if let Some(credentials) = &section.credentials {
        let secret =
            |secret: &SecretRef| resolve(secret).map(|s| connectors::Secret::new(s.expose()));
        config.credentials = Some(s3::S3Credentials {
            access_key_id: secret(&credentials.access_key_id)?,
            secret_access_key: secret(&credentials.secret_access_key)?,
            session_token: credentials.session_token.as_ref().map(secret).transpose()?,
        });
    }
    Ok(S3Sink::new(config)?)
}

fn object_store_sink(
    store: &StoreConfig,
    section: &ObjectStoreSection,
) -> anyhow::Result<ObjectStoreSink> {
    let mut config = ObjectStoreConfig::new(section.url.as_str(), section.url.as_str());
    config.prefix = section.prefix.clone().unwrap_or_default();
    config.in_flight_max = section.requests_max;
    config.connect_timeout = section.connect_timeout;
    config.request_timeout = store.timeout;
    config.options = section.options.iter().map(option).collect::<anyhow::Result<_>>()?;
    Ok(ObjectStoreSink::new(config)?)
}

fn elasticsearch_sink(
    store: &StoreConfig,
    section: &ElasticsearchSection,
) -> anyhow::Result<ElasticsearchSink> {
    let mut config = ElasticsearchConfig::new("", section.index.as_str());
    config.url = elasticsearch::OneOrMany::Many(section.url.clone());
    let secret = |secret: &SecretRef| resolve(secret).map(|s| connectors::Secret::new(s.expose()));
    config.auth = match &section.credentials {
        None => elasticsearch::Auth::None,
        Some(ElasticsearchCredentials::Basic { username, password }) => {
            elasticsearch::Auth::Basic { user: username.clone(), password: secret(password)? }
        }
        Some(ElasticsearchCredentials::ApiKey(key)) => {
            elasticsearch::Auth::ApiKey { key: secret(key)? }
        }
        Some(ElasticsearchCredentials::Bearer(token)) => {
            elasticsearch::Auth::Bearer { token: secret(token)? }
        }
    };
    config.ca_file = section.ca_file.clone();
    config.version = match section.version {
        Version::SeqNo => elasticsearch::Versioning::SeqNo,
        Version::Lsn => elasticsearch::Versioning::Lsn,
    };
    config.timeout = store.timeout;
    config.items_max = store.batch_max;
    Ok(ElasticsearchSink::new(config)?)
}

#[cfg(feature = "embedded")]
fn tantivy_sink(store: &StoreConfig, section: &TantivySection) -> anyhow::Result<TantivySink> {
    let mut config = TantivyConfig::new(section.path.as_str());
    config.id_field = section.id_field.clone();
    config.purge = section.purge;
    config.purge_wait = section.purge_wait;
    config.timeout = store.timeout;
    config.items_max = store.batch_max;
    Ok(TantivySink::new(config)?)
}

fn webhook_sink(store: &StoreConfig, section: &WebhookSection) -> anyhow::Result<WebhookSink> {
    let secret = |secret: &SecretRef| resolve(secret).map(|s| connectors::Secret::new(s.expose()));
    let first = secret(&section.secret)?;
    let mut config = WebhookConfig::new(section.url.as_str(), section.collection.as_str(), first);
    config.secrets.extend(section.previous_secret.as_ref().map(secret).transpose()?);
    config.look_url = section.look_url.clone();
    config.allow_http = section.allow_http;
    config.store = store.name.clone();
    config.ca_file = section.ca_file.clone();
    config.items_max = store.batch_max;
    config.answer_bytes_max = section.answer_bytes_max;
    config.connect_timeout = section.connect_timeout;
    config.request_timeout = store.timeout;
    Ok(WebhookSink::new(config)?)
}

fn table_sink(
    store: &StoreConfig,
    section: &PostgresTableSection,
) -> anyhow::Result<PostgresTableSink> {
    let url = connectors::Secret::new(resolve(&section.url)?.expose());
    let (schema, name) = (section.table.schema.as_str(), section.table.name.as_str());
    let mut config = PostgresTableConfig::new(url, schema, name);
    config.table = section.shown();
    config.many = section.many;
    config.allow_cascade = section.allow_cascade.clone();
    config.pool_max = section.pool_max;
    config.items_max = store.batch_max;
    config.lock_timeout = section.lock_timeout;
    config.statement_timeout = store.timeout;
    config.connect_timeout = section.connect_timeout;
    Ok(PostgresTableSink::new(config)?)
}

/// The consumer as its connector takes it. Its secrets are read there.
pub(crate) fn kafka_config(section: &KafkaSection) -> KafkaConfig {
    let mut config = KafkaConfig::new(section.group.as_str(), "");
    config.items_max = section.items_max;
    config.buffer_bytes_max = section.buffer_bytes_max;
    config.settings = kafka_settings(&section.settings);
    config
}

fn kafka_settings(settings: &[(String, Setting)]) -> BTreeMap<String, kafka::Setting> {
    settings
        .iter()
        .map(|(name, setting)| {
            let setting = match setting {
                Setting::Plain(text) => kafka::Setting::Text(text.clone()),
                Setting::Secret(SecretRef::Env(env)) => {
                    kafka::Setting::Env(kafka::EnvSetting { env: env.clone() })
                }
                Setting::Secret(SecretRef::File(file)) => {
                    kafka::Setting::File(kafka::FileSetting { file: file.clone() })
                }
            };
            (name.clone(), setting)
        })
        .collect()
}

/// What `tombstream api` serves.
pub(crate) fn api(config: &Config, metrics: &Metrics) -> anyhow::Result<ApiConfig> {
    let served = config.relations.iter().zip(&config.routes);
    let relations = served
        .filter_map(|(relation, route)| {
            let route = route.as_ref()?;
            Some(ApiRelation {
                relation: Arc::new(relation.clone()),
                path: route.path.clone(),
                columns: route.columns.clone(),
                create: route.create.clone(),
            })
        })
        .collect();
    let tokens = config.api.tokens_file.as_deref().map(Tokens::read).transpose()?;
    Ok(ApiConfig {
        relations,
        tokens,
        body_max: config.api.body_max.get(),
        timeout: config.api.timeout,
        prepared_statements: config.database.prepared_statements,
        group_flags: config.api.group_flags,
        metrics: Some(metrics.text()),
    })
}

/// The api's own pool: its statements have limits of their own, and are not tried before use.
pub(crate) async fn api_pool(config: &Config) -> anyhow::Result<PgPool> {
    let url = resolve(&config.database.url)?;
    // What the parser complains of may quote the url, and so the password.
    let options: sqlx::postgres::PgConnectOptions = url
        .expose()
        .parse()
        .map_err(|_| anyhow::anyhow!("database.url is no postgresql:// url"))?;
    let options = if config.database.prepared_statements {
        tombstream_api::connect_options(options, config.api.timeout)
    } else {
        postgres::for_a_pooler(options.application_name("tombstream-api"))
    };
    Ok(tombstream_api::pool_options()
        .max_connections(config.database.pool_max.get())
        .connect_lazy_with(options))
}
