//! `tombstream check`: every mistake in the configuration, and with `--live` what the real systems
//! say of it.
//!
//! Mistakes are collected while the file is read; this prints findings, one line each, `ok`,
//! `warning` or `error`, with what to do. Nothing is changed anywhere, but by `--fix`: it makes what
//! reading the log needs, the publication and the slot.

use sqlx::PgPool;
use tombstream_api::Tokens;
use tombstream_connectors::elasticsearch::{ElasticsearchSink, Uses};
use tombstream_connectors::positions::NoPositions;
use tombstream_connectors::positions::Positions as _;
use tombstream_connectors::postgres::{self, Finding, Makes, ReplicationConfig, Severity};
use tombstream_connectors::postgres_table::PostgresTableSink;
#[cfg(feature = "embedded")]
use tombstream_connectors::tantivy::TantivySink;
use tombstream_connectors::{files, kafka, s3};
use tombstream_model::{AddressTemplate, FlagKind, Relation, SinkError, StoreId, encode};

use super::{Failure, chain};
use crate::config::{Broker, CaptureSection, Config, Problem, Problems, StoreConfig};
use crate::wiring::{self, Connected};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Try every connection, and look at tables, triggers, buckets, indices and topics.
    #[arg(long)]
    live: bool,
    /// Make the publication and the slot of [source.postgres], or add what they lack; then look.
    #[arg(long)]
    fix: bool,
}

/// What was looked at, and what was found.
#[derive(Debug, Default)]
struct Report {
    errors: usize,
    warnings: usize,
}

impl Report {
    fn say(&mut self, severity: Severity, about: &str, text: &str) {
        match severity {
            Severity::Good => {}
            Severity::Warning => self.warnings += 1,
            Severity::Error => self.errors += 1,
        }
        println!("{:<7} {about}: {text}", severity.to_string());
    }

    fn good(&mut self, about: &str, text: &str) {
        self.say(Severity::Good, about, text);
    }

    fn warning(&mut self, about: &str, text: &str) {
        self.say(Severity::Warning, about, text);
    }

    fn error(&mut self, about: &str, text: &str) {
        self.say(Severity::Error, about, text);
    }

    fn add(&mut self, about: &str, findings: Vec<Finding>) {
        for finding in findings {
            self.say(finding.severity, about, &finding.text);
        }
    }
}

pub(super) async fn check(config: Config, args: Args) -> Result<(), Failure> {
    tokens(&config)?;
    println!(
        "ok      {}: {} relations, {} stores",
        config.file,
        config.relations.len(),
        config.stores.len()
    );
    if !args.live && !args.fix {
        return Ok(());
    }
    let mut report = Report::default();
    database(&config, args.fix, &mut report).await;
    for (store, id) in config.stores.iter().zip(0..) {
        self::store(&config, StoreId(id), store, &mut report).await;
    }
    if let Some(section) = &config.capture {
        published(&config, section, &mut report).await;
    }
    if let Some(section) = &config.source.kafka {
        brokers(&wiring::kafka_config(section), &wiring::topics(&config), &mut report).await;
    }
    #[cfg(feature = "fluvio")]
    if let Some(section) = &config.source.fluvio {
        fluvio(&section.config, &wiring::topics(&config), &mut report).await;
    }
    println!("{} errors, {} warnings", report.errors, report.warnings);
    if report.errors > 0 { Err(Failure::Said) } else { Ok(()) }
}

/// The file of tokens is part of the configuration.
fn tokens(config: &Config) -> Result<(), Problems> {
    let Some(path) = &config.api.tokens_file else { return Ok(()) };
    let Err(error) = Tokens::read(path) else { return Ok(()) };
    let problem = Problem {
        place: config.api.tokens_place.clone(),
        what: chain(&error),
        fix: "write lines of `tombstream token NAME` there, readable by the api's user".into(),
    };
    Err(Problems { file: config.file.clone(), list: vec![problem] })
}

async fn database(config: &Config, fix: bool, report: &mut Report) {
    let pool = match wiring::connect(&config.database, "tombstream-check").await {
        Ok(pool) => pool,
        Err(error) => return report.error("database", &chain(error.as_ref())),
    };
    report.good("database", "it answers");
    if fix {
        make(config, &pool, report).await;
    }
    match postgres::check_ledger(&pool).await {
        Ok(findings) => report.add("database", findings),
        Err(error) => report.error("database", &format!("the ledger can't be looked at: {error}")),
    }
    match postgres::check_rights(&pool, &config.relations).await {
        Ok(findings) => report.add("database", findings),
        Err(error) => report.error("database", &format!("its rights can't be looked at: {error}")),
    }
    for relation in config.relations.iter() {
        let about = format!("relation {}", relation.name);
        match postgres::check(&pool, relation, &config.relations).await {
            Ok(findings) => report.add(&about, findings),
            Err(error) => report.error(&about, &format!("it can't be looked at: {error}")),
        }
        if let FlagKind::Timestamp { zone } = &relation.flag.kind {
            zone_is_known(&pool, zone, &about, report).await;
        }
    }
    for (about, replication, _) in logs(config, report) {
        match postgres::check_capture(&pool, &replication, &config.relations).await {
            Ok(findings) => report.add(about, findings),
            Err(error) => report.error(about, &format!("it can't be looked at: {}", chain(&error))),
        }
    }
    source_files(config, &pool, report).await;
    archive(config, report).await;
}

/// Whether the archive's place can be listed. Whether it takes files shows with the first one: nothing is written here.
async fn archive(config: &Config, report: &mut Report) {
    let about = "archive";
    let Some(section) = &config.archive else { return };
    let place = match wiring::archive_place(section) {
        Ok(place) => place,
        Err(error) => return report.error(about, &chain(error.as_ref())),
    };
    match files::check(&place, &NoPositions).await {
        Ok(_) => report.good(about, &format!("{} can be listed", section.path)),
        Err(error) => report.error(about, &chain(&error)),
    }
}

/// Whether the files can be listed, and what is left to read.
async fn source_files(config: &Config, pool: &PgPool, report: &mut Report) {
    let about = "source files";
    let Some(section) = &config.source.files else { return };
    let positions = wiring::file_positions(config, section, pool.clone());
    let files = match wiring::files_config(section) {
        Ok(files) => files,
        Err(error) => return report.error(about, &chain(error.as_ref())),
    };
    let facts = match files::check(&files, &positions).await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &chain(&error)),
    };
    if facts.files == 0 {
        let text = format!(
            "there is no file at {} whose name ends in .jsonl, .ndjson or .json, plain, .gz or .zst",
            section.path
        );
        report.warning(about, &text);
    }
    let files::FilesFacts { files, bytes, files_left, bytes_left, shrunk } = facts;
    report.good(
        about,
        &format!(
            "{files} files of {bytes} bytes; {bytes_left} bytes of {files_left} are left to read"
        ),
    );
    for file in shrunk {
        let text = format!(
            "{file} is shorter than what was read of it: it was cut or replaced, and reading ends there; \
             give a new file a new name, or forget the old one: {}",
            positions.forgetting(&file)
        );
        report.error(about, &text);
    }
}

/// Everything that reads the log, and what `--fix` makes for it. The slot of a capture is made with its
/// snapshot, by `tombstream capture`.
fn logs(config: &Config, report: &mut Report) -> Vec<(&'static str, ReplicationConfig, Makes)> {
    let (database, mut all) = (&config.database, Vec::new());
    let source = config.source.postgres.as_ref();
    let source = source.map(|section| wiring::replication_config(database, section));
    let capture = config.capture.as_ref();
    let capture = capture.map(|section| wiring::capture_config(database, section));
    for (about, read, makes) in
        [("source postgres", source, Makes::Both), ("capture", capture, Makes::Publication)]
    {
        match read {
            Some(Ok(replication)) => all.push((about, replication, makes)),
            Some(Err(error)) => report.error(about, &chain(error.as_ref())),
            None => {}
        }
    }
    all
}

/// Makes what reading the log needs. What it can't mend is said by the look that follows.
async fn make(config: &Config, pool: &PgPool, report: &mut Report) {
    let logs = logs(config, report);
    if logs.is_empty() {
        let text = "there is no [source.postgres] and no [capture], so there is nothing to make";
        report.warning("check --fix", text);
    }
    for (about, replication, makes) in logs {
        match postgres::fix_capture(pool, &replication, &config.relations, makes).await {
            Ok(done) => report.add(about, done),
            Err(error) => report.error(about, &format!("it can't be made: {}", chain(&error))),
        }
    }
}

/// Whether this server has the zone: its names come with Postgres or with the system it runs on.
async fn zone_is_known(pool: &PgPool, zone: &str, about: &str, report: &mut Report) {
    let known = sqlx::query_scalar::<_, bool>(
        "select exists (select from pg_catalog.pg_timezone_names where name = $1)",
    );
    let look = async || {
        let mut transaction = pool.begin().await?; // As a pooler needs it.
        known.persistent(false).bind(zone).fetch_one(&mut *transaction).await
    };
    match look().await {
        Ok(true) => report.good(about, &format!("the server knows the zone {zone}")),
        Ok(false) => report.error(
            about,
            &format!("the server knows no zone {zone}: see pg_timezone_names for its names"),
        ),
        Err(error) => report.error(about, &format!("zones can't be looked up: {error}")),
    }
}

async fn store(config: &Config, id: StoreId, store: &StoreConfig, report: &mut Report) {
    let about = format!("store {}", store.name);
    match wiring::connect_store(store) {
        Err(error) => report.error(&about, &chain(error.as_ref())),
        Ok(Connected::S3(sink)) => buckets(&sink, &about, report).await,
        Ok(Connected::Elasticsearch(sink)) => {
            let fields = fields(&config.relations, id);
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            let unrouted = has_unrouted(&config.relations, id);
            documents(&sink, Uses { fields: &fields, unrouted }, &about, report).await;
        }
        #[cfg(feature = "embedded")]
        Ok(Connected::Tantivy(sink)) => {
            let fields = fields(&config.relations, id);
            let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
            embedded(&sink, &fields, &about, report).await;
        }
        Ok(Connected::Webhook(sink)) => match sink.check().await {
            Ok(facts) => {
                report.good(&about, "the service answers, and knows the secret");
                if !facts.looks {
                    let text = "it can't be asked whether a thing is there (there is no look_url): its word \
                                is taken, as the receipts say, and nothing is found that comes back";
                    report.warning(&about, text);
                }
            }
            Err(error) => report.error(&about, &explain(&error)),
        },
        Ok(Connected::PostgresTable(sink)) => {
            let sets = row_columns(&config.relations, id);
            rows(&sink, &sets, &about, report).await;
        }
        Ok(Connected::ObjectStore(sink)) => match sink.check().await {
            Ok(()) => report.good(&about, "it answers"),
            Err(error) => report.error(&about, &explain(&error)),
        },
    }
}

async fn buckets(sink: &s3::S3Sink, about: &str, report: &mut Report) {
    let facts = match sink.check().await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &explain(&error)),
    };
    for facts in facts.buckets {
        let bucket = &facts.bucket;
        let is_versioned =
            matches!(facts.versioning, s3::Versioning::Enabled | s3::Versioning::Suspended);
        match (facts.versioning, sink.erases()) {
            (s3::Versioning::Off, _) => report.good(about, &format!("bucket {bucket} answers")),
            (s3::Versioning::Enabled | s3::Versioning::Suspended, s3::Erase::AllVersions) => report
                .good(
                    about,
                    &format!(
                        "bucket {bucket} is versioned: every version, delete marker and unfinished \
                         upload of a key is erased"
                    ),
                ),
            (s3::Versioning::Enabled | s3::Versioning::Suspended, s3::Erase::Current) => report
                .warning(
                    about,
                    &format!(
                        "bucket {bucket} is versioned, and erase = \"current\" leaves older \
                         versions there: the receipts say how many"
                    ),
                ),
            (s3::Versioning::Unknown(why), _) => report.warning(
                about,
                &format!(
                    "bucket {bucket} does not say whether it is versioned ({why}); its first \
                     delete marker tells"
                ),
            ),
        }
        match (facts.conditions, sink.conditional()) {
            (Some(s3::Conditions::Bulk), _) => {
                report.good(about, "conditional deletes are heeded, many at a time");
            }
            (Some(s3::Conditions::OneByOne), _) => report.warning(
                about,
                "conditional deletes are heeded one by one only, and required: a request for each \
                 object",
            ),
            (Some(s3::Conditions::Ignored), _) => report.error(
                about,
                "conditional = \"required\", but the server deletes whatever If-Match says: write \
                 conditional = \"auto\", or use another server",
            ),
            (None, s3::Conditional::Auto) if !is_versioned => report.good(
                about,
                "whether conditional deletes are heeded is learned from the first one (to know now: \
                 conditional = \"required\", which writes an object)",
            ),
            // A version is named by its id.
            (None, _) => {}
        }
        match facts.object_lock {
            s3::ObjectLock::Off => {}
            s3::ObjectLock::On => report.warning(
                about,
                &format!("bucket {bucket} can lock objects: those wait parked until it ends"),
            ),
            s3::ObjectLock::Unknown(why) => report.warning(
                about,
                &format!("bucket {bucket} does not say whether it can lock objects ({why})"),
            ),
        }
    }
}

async fn documents(sink: &ElasticsearchSink, uses: Uses<'_>, about: &str, report: &mut Report) {
    let mut facts = match sink.check(uses).await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &explain(&error)),
    };
    report.good(about, &format!("Elasticsearch {} answers", facts.version));
    for index in &facts.indices {
        report.good(about, &format!("index {} stands behind {}", index.index, index.declared));
    }
    for missing in std::mem::take(&mut facts.missing) {
        let text = format!("index {missing} does not exist: create it, or correct `index`");
        report.error(about, &text);
    }
    for field in std::mem::take(&mut facts.fields) {
        let name = &field.field;
        match field.problem {
            Some(problem) => report.error(about, &format!("field {name}: {problem}")),
            None => report.good(about, &format!("field {name} finds exact values")),
        }
    }
    for problem in facts.problems() {
        report.error(about, &problem);
    }
    // What is left works, but less is promised.
    for concern in facts.concerns() {
        report.warning(about, &concern);
    }
}

#[cfg(feature = "embedded")]
async fn embedded(sink: &TantivySink, fields: &[&str], about: &str, report: &mut Report) {
    let facts = match sink.check(fields).await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &explain(&error)),
    };
    let (documents, segments) = (facts.documents, facts.segments);
    report.good(about, &format!("the index answers: {documents} documents in {segments} segments"));
    for field in facts.fields {
        let name = &field.field;
        match field.problem {
            Some(problem) => report.error(about, &format!("field {name}: {problem}")),
            None => report.good(about, &format!("field {name} finds exact values")),
        }
    }
    if facts.locked {
        let text = "another writer holds the index's lock: deletions wait until it is dropped; \
                    whoever feeds the index must drop its writer between its turns";
        report.warning(about, text);
    }
}

async fn rows(sink: &PostgresTableSink, sets: &[Vec<&str>], about: &str, report: &mut Report) {
    let facts = match sink.check(sets).await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &explain(&error)),
    };
    report.good(about, "the table is there");
    facts.problems.iter().for_each(|text| report.error(about, text));
    facts.concerns.iter().for_each(|text| report.warning(about, text));
}

/// Whether the topics are there that the relations' changes are published to.
async fn published(config: &Config, section: &CaptureSection, report: &mut Report) {
    let about = "capture";
    let separator = section.broker.separator();
    let topics = config.relations.iter().map(|relation| {
        let prefix = &section.topic_prefix;
        encode::topic(prefix, &relation.schema, &relation.table, separator).to_string()
    });
    let topics: Vec<String> = topics.collect();
    let found: Vec<(String, Option<String>)> = match &section.broker {
        Broker::Kafka(settings) => {
            let facts = kafka::check_publisher(&wiring::publisher_config(settings), &topics).await;
            match facts {
                Ok(facts) => facts.topics.into_iter().map(|it| (it.topic, it.problem)).collect(),
                Err(error) => return report.error(about, &chain(&error)),
            }
        }
        #[cfg(feature = "fluvio")]
        Broker::Fluvio(target) => {
            let facts = tombstream_connectors::fluvio::check_publisher(&target.config, &topics);
            match facts.await {
                Ok(facts) => facts.topics.into_iter().map(|it| (it.topic, it.problem)).collect(),
                Err(error) => return report.error(about, &chain(&error)),
            }
        }
        #[cfg(not(feature = "fluvio"))]
        Broker::Fluvio(_) => return,
    };
    for (topic, problem) in found {
        match problem {
            None => report.good(about, &format!("topic {topic} can be published to")),
            Some(problem) => report.warning(about, &format!("topic {topic}: {problem}")),
        }
    }
}

async fn brokers(config: &kafka::KafkaConfig, topics: &[String], report: &mut Report) {
    let about = "kafka";
    let facts = match kafka::check(config, topics).await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &chain(&error)),
    };
    report.good(about, &format!("{} answer", facts.brokers.join(", ")));
    for topic in facts.topics {
        let name = &topic.topic;
        if let Some(problem) = &topic.problem {
            report.warning(about, &format!("topic {name}: {problem}"));
            continue;
        }
        let lag: i64 = topic.partitions.iter().map(|partition| partition.lag).sum();
        let partitions = topic.partitions.len();
        report.good(about, &format!("topic {name}: {partitions} partitions, lag {lag}"));
        for partition in topic.partitions.iter().filter(|partition| partition.out_of_range) {
            let number = partition.partition;
            let text = format!(
                "topic {name}: what the group committed of partition {number} is not in the log \
                 any more: events are lost, and the sweep finds their flags"
            );
            report.warning(about, &text);
        }
    }
}

#[cfg(feature = "fluvio")]
async fn fluvio(
    config: &tombstream_connectors::fluvio::FluvioConfig,
    topics: &[String],
    report: &mut Report,
) {
    let about = "fluvio";
    let facts = match tombstream_connectors::fluvio::check(config, topics).await {
        Ok(facts) => facts,
        Err(error) => return report.error(about, &chain(&error)),
    };
    report.good(about, &format!("Fluvio {} answers at {}", facts.version, config.endpoint));
    for topic in facts.topics {
        let name = &topic.topic;
        if let Some(problem) = &topic.problem {
            report.warning(about, &format!("topic {name}: {problem}"));
            continue;
        }
        let lag: i64 = topic.partitions.iter().map(|partition| partition.lag).sum();
        let partitions = topic.partitions.len();
        report.good(about, &format!("topic {name}: {partitions} partitions, lag {lag}"));
        for partition in topic.partitions.iter().filter(|partition| partition.out_of_range) {
            let number = partition.partition;
            let text = format!(
                "topic {name}: what the consumer committed of partition {number} is not in the log \
                 any more: events are lost, and the sweep finds their flags"
            );
            report.warning(about, &text);
        }
    }
}

/// What a person can do about it is in the words of the store.
fn explain(error: &SinkError) -> String {
    let said = chain(error);
    match error {
        SinkError::Denied(_) => format!("{said}: correct the credentials or their permissions"),
        SinkError::Missing(_) => format!("{said}: create it, or correct its name"),
        SinkError::Unavailable(_) => format!("{said}: is its address right, and does it run?"),
        SinkError::Throttled { .. } | SinkError::Protocol(_) => said,
    }
}

/// The fields by which chunked documents of a store are found.
fn fields(relations: &[Relation], store: StoreId) -> Vec<String> {
    let targets = relations.iter().flat_map(|relation| &relation.targets);
    let mut fields: Vec<String> = targets
        .filter(|target| target.store == store)
        .filter_map(|target| match &target.address {
            AddressTemplate::Field { field, .. } => Some(field.to_string()),
            AddressTemplate::Object { .. }
            | AddressTemplate::Prefix { .. }
            | AddressTemplate::Document { .. }
            | AddressTemplate::Item { .. }
            | AddressTemplate::Row { .. } => None,
        })
        .collect();
    fields.sort();
    fields.dedup();
    fields
}

/// Whether a document of a store is addressed without routing.
fn has_unrouted(relations: &[Relation], store: StoreId) -> bool {
    let mut targets = relations.iter().flat_map(|relation| &relation.targets);
    targets.any(|target| {
        let unrouted = matches!(target.address, AddressTemplate::Document { routing: None, .. });
        target.store == store && unrouted
    })
}

/// The sets of columns by which rows of a store are found.
fn row_columns(relations: &[Relation], store: StoreId) -> Vec<Vec<&str>> {
    let targets = relations.iter().flat_map(|relation| &relation.targets);
    let mut sets: Vec<Vec<&str>> = targets
        .filter(|target| target.store == store)
        .filter_map(|target| match &target.address {
            AddressTemplate::Row { columns, .. } => {
                Some(columns.keys().map(String::as_str).collect())
            }
            AddressTemplate::Object { .. }
            | AddressTemplate::Prefix { .. }
            | AddressTemplate::Document { .. }
            | AddressTemplate::Field { .. }
            | AddressTemplate::Item { .. } => None,
        })
        .collect();
    sets.sort();
    sets.dedup();
    sets
}
