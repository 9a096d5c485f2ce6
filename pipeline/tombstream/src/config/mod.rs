//! The configuration: one TOML file, typed to the leaf.
//!
//! Unknown keys are refused, every mistake is collected with its line, key and a fix, every default
//! gives its reason beside its field, and a secret is a type that can't be printed. What a
//! connection would show is left to `check --live`.

mod api;
mod archive;
mod audit;
mod capture;
mod database;
mod document;
mod files;
mod fluvio;
mod jobs;
mod ledger;
mod pipeline;
mod postgres_table;
mod receipts;
mod rehydrate;
mod relation;
mod rules;
mod secret;
mod source;
mod store;
mod value;
mod waiting;
mod webhook;

use std::path::Path;
use std::sync::Arc;

use tombstream_model::Relation;

pub(crate) use api::ApiSection;
pub(crate) use archive::ArchiveSection;
pub(crate) use audit::AuditSection;
pub(crate) use capture::{Broker, CaptureSection};
pub(crate) use database::DatabaseConfig;
pub(crate) use document::{Place, Problem, Problems};
pub(crate) use files::FilesSection;
pub(crate) use jobs::{JobsSection, ReauditJob, ReconcileJob};
pub(crate) use ledger::{DeadLettersSection, LedgerSection};
pub(crate) use pipeline::PipelineConfig;
pub(crate) use postgres_table::PostgresTableSection;
pub(crate) use receipts::{ReceiptKeys, ReceiptsSection};
pub(crate) use rehydrate::RehydrateSection;
pub(crate) use relation::RouteConfig;
pub(crate) use secret::{Secret, SecretRef};
pub(crate) use source::{KafkaSection, PostgresSection, Setting, SourceConfig};
#[cfg(feature = "embedded")]
pub(crate) use store::TantivySection;
pub(crate) use store::{
    Checksum, Conditional, ElasticsearchCredentials, ElasticsearchSection, Erase,
    ObjectStoreSection, S3Section, StoreConfig, StoreKind, Verify, Version,
};
pub(crate) use webhook::WebhookSection;

use document::{Document, Section};
use relation::RelationConfig;

/// The whole file.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where it was read from.
    pub(crate) file: String,
    pub(crate) database: DatabaseConfig,
    pub(crate) pipeline: PipelineConfig,
    pub(crate) ledger: LedgerSection,
    pub(crate) dead_letters: DeadLettersSection,
    pub(crate) audit: AuditSection,
    pub(crate) jobs: JobsSection,
    pub(crate) receipts: ReceiptsSection,
    /// None: change events are not archived.
    pub(crate) archive: Option<ArchiveSection>,
    pub(crate) api: ApiSection,
    pub(crate) source: SourceConfig,
    /// None: nothing is captured to a broker.
    pub(crate) capture: Option<CaptureSection>,
    /// None: rehydrate notices stay in the ledger.
    pub(crate) rehydrate: Option<RehydrateSection>,
    /// In the order of their names; the index is the `StoreId`.
    pub(crate) stores: Vec<StoreConfig>,
    /// In the order of their names; the index is the `RelationId`.
    pub(crate) relations: Arc<[Relation]>,
    /// What the api serves of each relation, in the same order.
    pub(crate) routes: Vec<Option<RouteConfig>>,
    /// The column that tells when a row of each relation came to be, in the same order.
    pub(crate) created: Vec<Option<String>>,
}

/// Which secrets a command needs. The api and the operator's commands hold no store's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Everything,
    Database,
    Capture,
    Receipts,
}

impl Config {
    /// Reads the file at `path`, or says everything that is wrong with it.
    pub(crate) fn load(path: &Path, needs: Needs) -> Result<Self, Problems> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(file, &text, needs),
            Err(error) => {
                let place = Place { line: 0, key: String::new() };
                let problem = Problem {
                    place,
                    what: format!("can't be read: {error}"),
                    fix: "name the file with --config FILE or TOMBSTREAM_CONFIG; \
                          deploy/tombstream.example.toml is one to begin with"
                        .into(),
                };
                Err(Problems { file, list: vec![problem] })
            }
        }
    }

    fn parse(file: String, text: &str, needs: Needs) -> Result<Self, Problems> {
        let (config, mut list, secrets) = Document::read(text, Self::read);
        for (place, secret) in secrets {
            let of_database = place.key.starts_with("database.");
            let is_needed = match needs {
                // What is captured elsewhere is no business of the pipeline's.
                Needs::Everything => !place.key.starts_with("capture."),
                Needs::Database => of_database,
                Needs::Receipts => of_database || place.key.starts_with("receipts."),
                Needs::Capture => of_database || place.key.starts_with("capture."),
            };
            if !is_needed {
                continue;
            }
            if let Err(wrong) = secret.resolve() {
                list.push(Problem { place, what: wrong.what, fix: wrong.fix });
            }
        }
        list.sort_by(|one, other| one.place.cmp(&other.place));
        match config {
            Some(config) if list.is_empty() => Ok(Self { file, ..config }),
            _ => Err(Problems { file, list }),
        }
    }

    fn read(root: &mut Section<'_, '_>) -> Option<Self> {
        let fix = "add a section [database] with url = { env = \"DATABASE_URL\" }";
        if !root.has("database") {
            root.problem(root.place("database"), "missing", fix);
        }
        let database = root.table("database", DatabaseConfig::read).flatten();
        let pipeline = root.table("pipeline", PipelineConfig::read);
        let pipeline = pipeline.unwrap_or_else(|| root.absent(PipelineConfig::read));
        let ledger = root.table("ledger", LedgerSection::read);
        let ledger = ledger.unwrap_or_else(|| root.absent(LedgerSection::read));
        let dead_letters = root.table("dead_letters", DeadLettersSection::read);
        let dead_letters = dead_letters.unwrap_or_else(|| root.absent(DeadLettersSection::read));
        let audit = root.table("audit", AuditSection::read);
        let audit = audit.unwrap_or_else(|| root.absent(AuditSection::read));
        let jobs = root.table("jobs", JobsSection::read).unwrap_or_default();
        let receipts = root.table("receipts", ReceiptsSection::read).unwrap_or_default();
        let has_archive = root.has("archive");
        let archive = root.table("archive", ArchiveSection::read).flatten();
        let api = root.table("api", ApiSection::read);
        let api = api.unwrap_or_else(|| root.absent(ApiSection::read));
        let source = match root.has("source") {
            true => root.table("source", SourceConfig::read).flatten(),
            false => Some(SourceConfig::default()),
        };
        let has_rehydrate = root.has("rehydrate");
        let rehydrate = root.table("rehydrate", RehydrateSection::read).flatten();
        let has_capture = root.has("capture");
        let capture = root.table("capture", CaptureSection::read).flatten();
        let read = root.tables("store", StoreConfig::read);
        let names: Vec<String> = read.iter().map(|(name, _)| name.clone()).collect();
        let stores: Vec<StoreConfig> =
            read.into_iter().filter_map(|(_, store)| store.flatten()).collect();
        let read = root.tables("relation", RelationConfig::read);
        if read.is_empty() {
            root.problem(
                root.place("relation"),
                "there is no relation",
                "add a section [relation.documents] with table, key, flag and targets",
            );
        }
        let written = read.len();
        let relations: Vec<RelationConfig> =
            read.into_iter().filter_map(|(_, relation)| relation.flatten()).collect();

        rules::lease(root, &pipeline, &stores);
        audit.lasts(root, &ledger);
        rules::apart(root, &relations);
        if let Some(source) = &source {
            let kafka = source.kafka.as_ref().map(|kafka| &kafka.place);
            let fluvio = source.fluvio.as_ref().map(|fluvio| &fluvio.place);
            rules::topics(root, kafka, fluvio, source.files.is_some(), &relations);
            rules::streams(root, database.as_ref(), source.postgres.as_ref());
            fluvio::names(root, source.fluvio.as_ref(), &relations);
        }
        let mut models = Vec::new();
        let mut routes = Vec::new();
        let mut created = Vec::new();
        for relation in relations {
            if let Some(mut targets) = rules::targets(root, &relation, &names, &stores) {
                routes.push(relation.api.clone());
                created.push(relation.created.clone());
                let graces = waiting::graces(root, &relation, &stores, &mut targets);
                models.push(relation.into_model(targets, graces));
            }
        }
        let complete = models.len() == written
            && stores.len() == names.len()
            && rehydrate.is_some() == has_rehydrate
            && capture.is_some() == has_capture
            && archive.is_some() == has_archive;
        let (database, source) = (database?, source?);
        complete.then(|| Self {
            file: String::new(),
            database,
            pipeline,
            ledger,
            dead_letters,
            audit,
            jobs,
            receipts,
            archive,
            api,
            source,
            capture,
            rehydrate,
            stores,
            relations: models.into(),
            routes,
            created,
        })
    }
}

#[cfg(test)]
mod tests;
