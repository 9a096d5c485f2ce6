//! What no section can say alone: rules between sections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tombstream_model::{AddressTemplate, KeyKind, StoreId, TargetTemplate};

use super::database::DatabaseConfig;
use super::document::{Place, Section, nearest};
use super::pipeline::PipelineConfig;
use super::relation::{RelationConfig, Shape, TargetConfig};
use super::source::PostgresSection;
use super::store::{Holds, StoreConfig, StoreKind};
use super::value::Wrong;

/// The lease outlasts the slowest store and the finalizing after it. A shorter one would be over
/// while its own destroys are still on their way.
pub(super) fn lease(section: &Section<'_, '_>, pipeline: &PipelineConfig, stores: &[StoreConfig]) {
    let Some(slowest) = stores.iter().max_by_key(|store| store.deadline) else { return };
    let least = slowest.deadline + pipeline.transaction_timeout;
    if pipeline.lease <= least {
        let text = |duration: Duration| humantime::format_duration(duration).to_string();
        section.problem(
            pipeline.lease_place.clone(),
            format!(
                "{} is over before store {:?} (deadline {}) and the finalizing \
                 (transaction_timeout {}) are done",
                text(pipeline.lease),
                slowest.name,
                text(slowest.deadline),
                text(pipeline.transaction_timeout)
            ),
            format!("write more than {}, or shorten `{}`", text(least), slowest.deadline_place.key),
        );
    }
}

/// Two relations must not share a path, a topic or a table: nobody could tell whose row is meant.
pub(super) fn apart(section: &Section<'_, '_>, relations: &[RelationConfig]) {
    let mut paths = BTreeMap::new();
    let mut topics = BTreeMap::new();
    let mut tables = BTreeMap::new();
    let mut in_order: Vec<&RelationConfig> = relations.iter().collect();
    in_order.sort_by_key(|relation| relation.place.line);
    for relation in in_order {
        let clash = |other: Option<&str>, place: &Place, what: String, fix: &str| {
            if let Some(other) = other {
                let what = format!("{what} is relation {other:?}'s already");
                section.problem(place.clone(), what, fix);
            }
        };
        if let Some(api) = &relation.api {
            let other = paths.insert(api.path.as_str(), relation.name.as_str());
            clash(other, &api.place, format!("path {:?}", api.path), "give each its own path");
        }
        for (place, topic) in &relation.topics {
            let other = topics.insert(topic.as_str(), relation.name.as_str());
            let fix = "name a topic once; Debezium writes one for each table";
            clash(other, place, format!("topic {topic:?}"), fix);
        }
        let table = (relation.table.schema.as_str(), relation.table.name.as_str());
        let other = tables.insert(table, relation.name.as_str());
        let what = format!("table {}.{}", table.0, table.1);
        clash(other, &relation.place, what, "a table is one relation; put all targets there");
    }
}

/// Topics need someone who reads them, and a reader needs topics.
pub(super) fn topics(
    section: &Section<'_, '_>,
    kafka: Option<&Place>,
    fluvio: Option<&Place>,
    has_files: bool,
    relations: &[RelationConfig],
) {
    let named: Vec<&Place> =
        relations.iter().flat_map(|relation| &relation.topics).map(|(place, _)| place).collect();
    if let (Some(_), Some(place)) = (kafka, fluvio) {
        section.problem(
            place.clone(),
            "would read the same topics as [source.kafka]",
            "leave one of the two out: each reads every topic of every relation",
        );
    }
    let readers = [(kafka, "kafka", "app.public.documents"), (fluvio, "fluvio", "app-documents")];
    let mut readers = readers
        .into_iter()
        .filter_map(|(place, name, topic)| place.map(|place| (place, name, topic)));
    match readers.next() {
        // A line of a file may name its table, so that files alone need no topics.
        None if has_files => {}
        None => {
            for place in named {
                section.problem(
                    place.clone(),
                    "names topics, but nothing reads Kafka, Fluvio or files",
                    "add [source.kafka], [source.fluvio] or [source.files], or leave topics out: the \
                     sweep finds the flags",
                );
            }
        }
        Some((place, name, topic)) if named.is_empty() && !relations.is_empty() => section.problem(
            place.clone(),
            "there is nothing to read: no relation names a topic",
            format!("write topics = [{topic:?}] in a relation, or leave [source.{name}] out"),
        ),
        Some(_) => {}
    }
}

/// A pooler that takes no prepared statements does not stream the log either.
pub(super) fn streams(
    section: &Section<'_, '_>,
    database: Option<&DatabaseConfig>,
    postgres: Option<&PostgresSection>,
) {
    let (Some(database), Some(postgres)) = (database, postgres) else { return };
    if !database.prepared_statements && postgres.url.is_none() {
        section.problem(
            postgres.place.clone(),
            "the log can't be read through a pooler, and prepared_statements = false says that \
             database.url is one",
            "write url = { env = \"DIRECT_DATABASE_URL\" } here, the server's own address",
        );
    }
}

/// The relation's targets as the model has them.
pub(super) fn targets(
    section: &Section<'_, '_>,
    relation: &RelationConfig,
    names: &[String],
    stores: &[StoreConfig],
) -> Option<Vec<TargetTemplate>> {
    declared(section, relation, stores);
    let mut all = Some(Vec::new());
    for target in &relation.targets {
        let read = self::target(section, relation, target, names, stores);
        all = all.zip(read).map(|(mut all, read)| {
            all.push(read);
            all
        });
    }
    all
}

/// What a store can't guard by itself must be declared, once for the relation.
fn declared(section: &Section<'_, '_>, relation: &RelationConfig, stores: &[StoreConfig]) {
    let missing = |key: &str, what: String, fix: &str| {
        let key = format!("{}.{key}", relation.place.key);
        section.problem(Place { line: relation.place.line, key }, what, fix);
    };
    let unfenced = relation
        .targets
        .iter()
        .filter_map(|target| stores.iter().find(|store| store.name == target.store))
        .find(|store| !store.kind.tells_lives_apart());
    if let (Some(store), false) = (unfenced, relation.key_reuse_forbidden) {
        missing(
            "key_reuse",
            format!(
                "missing: store {:?} can't tell the copy of a row that used the key again from the \
                 deleted one's",
                store.name
            ),
            "write key_reuse = \"forbidden\" if no key is ever used again, as with uuids and \
             sequences; else this store can't be used",
        );
    }
    let prefix = relation.targets.iter().any(|it| matches!(it.shape, Shape::Prefix { .. }));
    let text = relation.key.iter().find(|column| column.kind == KeyKind::Text);
    if let (true, Some(column), false) = (prefix, text, relation.key_slashes_forbidden) {
        missing(
            "key_slashes",
            format!(
                "missing: the key column {:?} is text, and a prefix of the key \"1\" reaches the copies \
                 of a key \"1/2\"",
                column.name
            ),
            "write key_slashes = \"forbidden\" if no key holds a slash (a check constraint keeps it \
             so); else name the objects with `key`",
        );
    }
}

fn target(
    section: &Section<'_, '_>,
    relation: &RelationConfig,
    target: &TargetConfig,
    names: &[String],
    stores: &[StoreConfig],
) -> Option<TargetTemplate> {
    if !names.contains(&target.store) {
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let fix = match known.as_slice() {
            [] => format!("add a section [store.{}]", target.store),
            known => nearest(&target.store, known),
        };
        let what = format!("there is no store {:?}", target.store);
        section.problem(target.store_place.clone(), what, fix);
        return None;
    }
    // A store that is there and wrong was spoken of already.
    let index = stores.iter().position(|store| store.name == target.store)?;
    let store = &stores[index];
    let address = address(section, target, store)?;
    let key: Vec<&str> = relation.key.iter().map(|column| column.name.as_str()).collect();
    if let Err(error) = address.check(&key) {
        let place = Place {
            line: target.place.line,
            key: format!("{}.{}", target.place.key, target.shape.name()),
        };
        let columns = key.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>();
        let usual = format!("name the whole key, each column apart: {}", columns.join("/"));
        let Wrong { what, fix } = Wrong::split(&error.to_string(), &usual);
        section.problem(place, what, fix);
        return None;
    }
    Some(TargetTemplate {
        store: StoreId(u16::try_from(index).expect("fewer than 65,536 stores")),
        address,
        is_hidden_first: false,
    })
}

fn address(
    section: &Section<'_, '_>,
    target: &TargetConfig,
    store: &StoreConfig,
) -> Option<AddressTemplate> {
    let routed = match &target.shape {
        Shape::Document { routing, .. } | Shape::Field { routing, .. } => routing.is_some(),
        Shape::Object { .. } | Shape::Prefix { .. } | Shape::Item { .. } | Shape::Row { .. } => {
            false
        }
    };
    let holds = store.kind.holds();
    if routed && holds == Holds::Documents && !store.kind.has_routing() {
        section.problem(
            Place { line: target.place.line, key: format!("{}.routing", target.place.key) },
            format!(
                "store {:?}, whose kind is {:?}, has no routing",
                store.name,
                store.kind.name()
            ),
            "leave routing out",
        );
        return None;
    }
    let kind = &store.kind;
    let address = match (target.shape.clone(), holds) {
        (Shape::Object { key }, Holds::Objects) => {
            AddressTemplate::Object { bucket: container(kind), key }
        }
        (Shape::Prefix { prefix }, Holds::Objects) => {
            AddressTemplate::Prefix { bucket: container(kind), prefix }
        }
        (Shape::Document { id, routing }, Holds::Documents) => {
            AddressTemplate::Document { index: container(kind), id, routing }
        }
        (Shape::Field { field, value, routing }, Holds::Documents) => {
            AddressTemplate::Field { index: container(kind), field: field.into(), value, routing }
        }
        (Shape::Item { id }, Holds::Items) => {
            AddressTemplate::Item { collection: container(kind), id }
        }
        (Shape::Row { columns }, Holds::Rows) => {
            AddressTemplate::Row { table: container(kind), columns }
        }
        (shape, holds) => {
            let fix = match holds {
                Holds::Objects => "write key = \"{id}/original\" or prefix = \"{id}/\"",
                Holds::Documents => {
                    "write id = \"{id}\", or field = \"document_id\" with value = \"{id}\""
                }
                Holds::Items => "write item = \"{id}\"",
                Holds::Rows => "write row = { document_id = \"{id}\" }",
            };
            section.problem(
                target.place.clone(),
                format!(
                    "`{}` is no address in store {:?}, whose kind is {:?}",
                    shape.name(),
                    store.name,
                    kind.name()
                ),
                fix,
            );
            return None;
        }
    };
    Some(address)
}

/// The bucket, index, collection or table that every address in the store is in.
fn container(kind: &StoreKind) -> Arc<str> {
    match kind {
        StoreKind::S3(s3) => s3.bucket.as_str().into(),
        StoreKind::ObjectStore(store) => store.url.as_str().into(),
        StoreKind::Elasticsearch(elasticsearch) => elasticsearch.index.as_str().into(),
        StoreKind::Tantivy(tantivy) => tantivy.path.as_str().into(),
        StoreKind::Webhook(webhook) => webhook.collection.as_str().into(),
        StoreKind::PostgresTable(table) => table.shown().into(),
    }
}
