//! The OpenAPI 3.1 document, made from the configured relations.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use serde_json::{Value, json};
use tombstream_model::{FlagKind, KeyKind, State, Verdict};
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{
    ArrayBuilder, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ComponentsBuilder, ContentBuilder, HeaderBuilder, HttpMethod, InfoBuilder,
    KnownFormat, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Ref, RefOr, Required, Response,
    ResponseBuilder,
};

use crate::config::{ApiConfig, ApiRelation};
use crate::key;
use crate::routes::row_path;

mod orders;

/// A row's id in the examples.
const EXAMPLE_UUID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const EXAMPLE_TIME: &str = "2026-11-23T10:00:00.123456Z";

/// The route that shows `document`, which needs a token as the relations' own routes do: it names
/// their columns.
pub(crate) fn routes(document: &OpenApi) -> Router {
    let text: Arc<str> =
        document.to_json().expect("an OpenAPI document has no map with odd keys").into();
    let answer = async move || ([(header::CONTENT_TYPE, "application/json")], text.to_string());
    Router::new().route("/openapi.json", get(answer))
}

/// Describes every route of `config`.
pub(crate) fn document(config: &ApiConfig) -> OpenApi {
    let about = "Flags rows for deletion, restores them until the deletion is claimed, and says what \
                 became of every copy. Errors are problem documents of RFC 9457.";
    let info = InfoBuilder::new()
        .title("Tombstream")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(about))
        .build();
    let mut paths = PathsBuilder::new();
    for (path, about) in [
        ("/", "Whether the process answers"),
        ("/healthz", "Whether the process answers"),
        ("/readyz", "Whether flips can be written: 503 without the database or the ledger"),
    ] {
        let operation = OperationBuilder::new().tag("process").summary(Some(about)).response(
            "200",
            answer("It is", json_content(plain(Type::Object), json!({"status": "ok"}))),
        );
        paths =
            paths.path(path, PathItem::new(HttpMethod::Get, problems(operation, &[503]).build()));
    }
    let mut components = components();
    for api in &config.relations {
        let described = Described { api, secured: config.tokens.is_some() };
        components = components.schema(described.schema_name(), described.row_schema());
        for (path, item) in described.paths() {
            paths = paths.path(path, item);
        }
    }
    if config.tokens.is_some() {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token whose hash is in the server's file of tokens"))
            .build();
        components = components.security_scheme("bearer", SecurityScheme::Http(bearer));
    }
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components.build())).build()
}

/// One relation's part of the document.
struct Described<'a> {
    api: &'a ApiRelation,
    secured: bool,
}

impl Described<'_> {
    /// Paths are unique and hold only what a schema's name may hold, but `~`.
    fn schema_name(&self) -> String {
        format!("Row.{}", self.api.path.replace('~', "_"))
    }

    fn row_ref(&self) -> RefOr<Schema> {
        Ref::from_schema_name(self.schema_name()).into()
    }

    fn operation(&self, verb: &str, summary: &str) -> OperationBuilder {
        let operation = OperationBuilder::new()
            .tag(&*self.api.path)
            .operation_id(Some(format!("{verb}.{}", self.api.path)))
            .summary(Some(summary));
        if self.secured {
            operation.security(SecurityRequirement::new("bearer", Vec::<String>::new()))
        } else {
            operation
        }
    }

    /// An operation on one row.
    fn keyed(&self, verb: &str, summary: &str) -> OperationBuilder {
        let names = key::segment_names(&self.api.relation);
        let segments = names.into_iter().zip(&self.api.relation.key);
        segments.fold(self.operation(verb, summary), |operation, (name, column)| {
            operation.parameter(
                ParameterBuilder::new()
                    .name(name)
                    .parameter_in(ParameterIn::Path)
                    .required(Required::True)
                    .description(Some(format!("Key column `{}`, percent-encoded", column.name)))
                    .schema(Some(key_schema(column.kind)))
                    .example(Some(example_key(column.kind))),
            )
        })
    }

    fn paths(&self) -> Vec<(String, PathItem)> {
        let row_path = row_path(self.api);
        let mut paths = vec![
            (row_path.clone(), self.row_item()),
            (format!("{row_path}/restore"), PathItem::new(HttpMethod::Post, self.restore())),
            (format!("{row_path}/deletion"), PathItem::new(HttpMethod::Get, self.status())),
            (format!("/{}/deletions", self.api.path), PathItem::new(HttpMethod::Get, self.list())),
        ];
        paths.extend(orders::paths(self, &row_path));
        if let Some(create) = &self.api.create {
            let item = PathItem::new(HttpMethod::Post, self.create(create));
            paths.push((format!("/{}/", self.api.path), item));
        }
        paths
    }

    fn row_item(&self) -> PathItem {
        let read = self
            .keyed("read", "The row, while it is alive")
            .response("200", answer("The row", self.row_content()));
        let deleted = json!({
            "status": "file soft-deleted",
            "id": self.example_id(),
        });
        let delete =
            self.keyed("delete", "Flags the row for deletion; again is harmless").response(
                "202",
                with_location(
                    answer("Flagged, now or before", json_content(plain(Type::Object), deleted)),
                    "Where to ask what became of it",
                ),
            );
        let mut item = PathItem::new(HttpMethod::Get, self.answers(read, &[400, 404]).build());
        item.merge_operations(PathItem::new(
            HttpMethod::Delete,
            self.answers(delete, &[400, 404, 409]).build(),
        ));
        item
    }

    fn restore(&self) -> Operation {
        let restore = self
            .keyed("restore", "Unsets the flag, unless the deletion is claimed; again is harmless")
            .response("200", answer("The living row", self.row_content()));
        self.answers(restore, &[400, 404, 409]).build()
    }

    fn status(&self) -> Operation {
        let example = json!({
            "relation": &*self.api.relation.name,
            "row": "gone",
            "id": 7,
            "key": self.example_id(),
            "state": "finalized",
            "flag": self.example_flag(),
            "first_seen": EXAMPLE_TIME,
            "claimed_at": EXAMPLE_TIME,
            "closed_at": EXAMPLE_TIME,
            "due_at": null,
            "attempts": 1,
            "reason": null,
            "flip_lsn": "16/B374D848",
            "targets": [example_target()],
            "receipt": {
                "finalized_at": EXAMPLE_TIME,
                "transaction_id": "4711",
                "row_gone": false,
                "targets": [example_target()],
            },
            "waits_for": [],
            "can": [],
            "happened": [{"at": EXAMPLE_TIME, "what": "deletion 7 finalized", "by": null}],
        });
        let content = json_content(Ref::from_schema_name("Deletion"), example);
        let status = self
            .keyed("deletion", "What became of the row's newest deletion")
            .response("200", answer("State, what each store answered, receipt", content));
        self.answers(status, &[400, 404]).build()
    }

    fn list(&self) -> Operation {
        let query = |name: &str, about: &str, schema: Schema| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(about))
                .schema(Some(schema))
        };
        let limit = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(500))
            .default(Some(json!(50)))
            .build();
        let schema = ObjectBuilder::new()
            .property("deletions", ArrayBuilder::new().items(Ref::from_schema_name("Entry")))
            .required("deletions")
            .property("next_cursor", nullable(Type::String))
            .required("next_cursor");
        let example = json!({
            "deletions": [{
                "id": 7, "key": self.example_id(), "state": "pending", "flag": null,
                "first_seen": EXAMPLE_TIME, "claimed_at": null, "closed_at": null, "due_at": null,
                "attempts": 0, "reason": null,
            }],
            "next_cursor": null,
        });
        let list = self
            .operation("deletions", "The ledger's deletions, newest first")
            .description(Some(
                "A flagged row has an entry once it waits or is claimed. Other parameters are refused.",
            ))
            .parameter(query("state", "Only those in this state", state_schema(false)))
            .parameter(query("limit", "Most deletions of the page", limit.into()))
            .parameter(query("cursor", "`next_cursor` of the page before", plain(Type::String)))
            .response("200", answer("A page", json_content(Schema::from(schema.build()), example)));
        self.answers(list, &[400]).build()
    }

    fn create(&self, create: &[String]) -> Operation {
        let mut schema = ObjectBuilder::new();
        let mut example = serde_json::Map::new();
        for column in create {
            schema = schema.property(column, any());
            example.insert(column.clone(), "example".into());
        }
        let body = RequestBodyBuilder::new()
            .description(Some("What is left out gets its default; nothing else may be set"))
            .required(Some(Required::True))
            .content(
                "application/json",
                json_content(Schema::from(schema.build()), example.into()),
            );
        let create = self
            .operation("create", "Makes a row")
            .request_body(Some(body.build()))
            .response("201", with_location(answer("The row", self.row_content()), "The row"));
        self.answers(create, &[400, 408, 409, 413, 415, 422]).build()
    }

    /// The problems of `statuses`, and those of every route.
    fn answers(&self, operation: OperationBuilder, statuses: &[u16]) -> OperationBuilder {
        let operation = problems(operation, statuses);
        let operation = problems(operation, &[500, 503, 504]);
        if self.secured { problems(operation, &[401]) } else { operation }
    }

    fn row_schema(&self) -> Schema {
        let object = self.api.columns.iter().fold(ObjectBuilder::new(), |object, column| {
            let key = self.api.relation.key.iter().find(|key| key.name == *column);
            let schema = match key {
                Some(key) => key_schema(key.kind),
                None => any(),
            };
            object.property(column, schema).required(column)
        });
        object.description(Some("Values are spelled as Postgres's `to_json` spells them")).into()
    }

    fn row_content(&self) -> utoipa::openapi::Content {
        let flag = &self.api.relation.flag;
        let example: serde_json::Map<_, _> = self
            .api
            .columns
            .iter()
            .map(|column| {
                let key = self.api.relation.key.iter().find(|key| key.name == *column);
                let value = match (key, &flag.kind) {
                    (Some(key), _) => example_key(key.kind),
                    (None, FlagKind::Boolean) if *column == flag.column => json!(false),
                    (None, _) if *column == flag.column => Value::Null,
                    (None, _) => json!("example"),
                };
                (column.clone(), value)
            })
            .collect();
        json_content(self.row_ref(), example.into())
    }

    fn example_id(&self) -> Value {
        let mut values: Vec<_> = self.api.relation.key_kinds().map(example_key).collect();
        if values.len() == 1 { values.remove(0) } else { Value::Array(values) }
    }

    fn example_flag(&self) -> Value {
        match self.api.relation.flag.kind {
            FlagKind::Boolean => json!(true),
            FlagKind::TimestampTz | FlagKind::Timestamp { .. } => json!(EXAMPLE_TIME),
        }
    }
}

/// What all relations share.
fn components() -> ComponentsBuilder {
    let problem = ObjectBuilder::new()
        .description(Some("A problem document of RFC 9457"))
        .property("type", uri_reference())
        .required("type")
        .property("title", plain(Type::String))
        .required("title")
        .property("status", plain(Type::Integer))
        .required("status")
        .property("detail", plain(Type::String))
        .property("instance", uri_reference());
    let target = ObjectBuilder::new()
        .description(Some("One address, and what its store said of it"))
        .property("store", plain(Type::String))
        .required("store")
        .property("address", plain(Type::Object))
        .required("address")
        .property("outcome", Ref::from_schema_name("Outcome"));
    let verdicts = [
        Verdict::Deleted,
        Verdict::Absent,
        Verdict::Superseded,
        Verdict::Busy,
        Verdict::Refused,
        Verdict::Unknown,
        Verdict::Waived,
    ];
    let outcome = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .property(
            "verdict",
            ObjectBuilder::new().schema_type(Type::String).enum_values(Some(
                verdicts.map(|verdict| serde_json::to_value(verdict).expect("a verdict is a text")),
            )),
        )
        .property("said", plain(Type::String))
        .property("verified", plain(Type::String));
    let targets = || {
        ArrayBuilder::new()
            .schema_type(SchemaType::from_iter([Type::Array, Type::Null]))
            .items(Ref::from_schema_name("Target"))
    };
    let receipt = ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::Object, Type::Null]))
        .property("finalized_at", time(false))
        .property("transaction_id", plain(Type::String))
        .property("row_gone", plain(Type::Boolean))
        .property("targets", targets());
    let deletion = entry(true)
        .property("relation", plain(Type::String))
        .required("relation")
        .property(
            "row",
            ObjectBuilder::new()
                .schema_type(Type::String)
                .enum_values(Some(["alive", "flagged", "gone"])),
        )
        .required("row")
        .property("flip_lsn", nullable(Type::String))
        .property("targets", targets())
        .property("receipt", Ref::from_schema_name("Receipt"))
        .property("waits_for", orders::waits())
        .property("can", ArrayBuilder::new().items(RefOr::T(plain(Type::String))))
        .property("happened", orders::events());
    ComponentsBuilder::from(Components::new())
        .schema("Problem", Schema::from(problem.build()))
        .schema("Target", Schema::from(target.build()))
        .schema("Outcome", Schema::from(outcome.build()))
        .schema("Receipt", Schema::from(receipt.build()))
        .schema("Entry", Schema::from(entry(false).build()))
        .schema("Deletion", Schema::from(deletion.build()))
}

fn entry(of_row: bool) -> ObjectBuilder {
    ObjectBuilder::new()
        .property("id", plain(Type::Integer))
        .property("key", any())
        .required("key")
        .property("state", state_schema(of_row))
        .required("state")
        .property("flag", any())
        .property("first_seen", time(true))
        .property("claimed_at", time(true))
        .property("closed_at", time(true))
        .property("due_at", time(true))
        .property("attempts", plain(Type::Integer))
        .property("reason", nullable(Type::String))
}

/// The ledger's states; of a row also `flagged`, before the ledger has anything of it.
fn state_schema(of_row: bool) -> Schema {
    let states = State::ALL.map(State::as_str).into_iter().chain(of_row.then_some("flagged"));
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(states)).build().into()
}

fn problems(operation: OperationBuilder, statuses: &[u16]) -> OperationBuilder {
    statuses.iter().fold(operation, |operation, status| {
        let title = axum::http::StatusCode::from_u16(*status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Error");
        let example = json!({"type": "about:blank", "title": title, "status": status});
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .example(Some(example));
        let response = ResponseBuilder::new()
            .description(title)
            .content("application/problem+json", content.build());
        operation.response(status.to_string(), response.build())
    })
}

fn answer(description: &str, content: utoipa::openapi::Content) -> Response {
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

fn with_location(mut response: Response, about: &str) -> Response {
    let header =
        HeaderBuilder::new().schema(Some(uri_reference())).description(Some(about)).build();
    response.headers.insert("Location".into(), header.into());
    response
}

fn json_content(schema: impl Into<RefOr<Schema>>, example: Value) -> utoipa::openapi::Content {
    ContentBuilder::new().schema(Some(schema)).example(Some(example)).build()
}

fn plain(kind: Type) -> Schema {
    ObjectBuilder::new().schema_type(kind).build().into()
}

fn nullable(kind: Type) -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([kind, Type::Null])).build().into()
}

fn any() -> Schema {
    ObjectBuilder::new().schema_type(SchemaType::AnyValue).build().into()
}

fn time(or_null: bool) -> Schema {
    let kind = if or_null {
        SchemaType::from_iter([Type::String, Type::Null])
    } else {
        SchemaType::new(Type::String)
    };
    let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
    ObjectBuilder::new().schema_type(kind).format(Some(format)).build().into()
}

fn uri_reference() -> Schema {
    let format = SchemaFormat::Custom("uri-reference".into());
    ObjectBuilder::new().schema_type(Type::String).format(Some(format)).build().into()
}

fn key_schema(kind: KeyKind) -> Schema {
    let (kind, format) = match kind {
        KeyKind::Uuid => (Type::String, Some(KnownFormat::Uuid)),
        KeyKind::Bigint => (Type::Integer, Some(KnownFormat::Int64)),
        KeyKind::Text => (Type::String, None),
    };
    let format = format.map(SchemaFormat::KnownFormat);
    ObjectBuilder::new().schema_type(kind).format(format).build().into()
}

fn example_key(kind: KeyKind) -> Value {
    match kind {
        KeyKind::Uuid => EXAMPLE_UUID.into(),
        KeyKind::Bigint => 42.into(),
        KeyKind::Text => "a/b".into(),
    }
}

fn example_target() -> Value {
    json!({
        "store": "originals",
        "address": {"kind": "object", "bucket": "documents", "key": format!("{EXAMPLE_UUID}/original")},
        "outcome": {"verdict": "deleted", "said": "204", "verified": "read_back"},
    })
}

#[cfg(test)]
mod tests {
    use tombstream_model::KeyColumn;

    use super::*;
    use crate::Tokens;
    use crate::config::tests::documents;

    fn described(config: &ApiConfig) -> Value {
        serde_json::to_value(document(config)).unwrap()
    }

    #[test]
    fn every_route_of_a_relation_is_described() {
        let document = described(&ApiConfig { relations: vec![documents()], ..Default::default() });
        assert_eq!(document["openapi"], "3.1.0");
        for (path, method, status) in [
            ("/documents/", "post", "201"),
            ("/documents/{id}", "get", "200"),
            ("/documents/{id}", "delete", "202"),
            ("/documents/{id}/restore", "post", "409"),
            ("/documents/{id}/deletion", "get", "404"),
            ("/documents/deletions", "get", "200"),
            ("/documents/{id}/holds", "post", "201"),
            ("/documents/{id}/holds", "get", "200"),
            ("/documents/{id}/holds/{hold_number}", "delete", "409"),
            ("/documents/parked", "get", "200"),
            ("/documents/parked/{id}/retry", "post", "409"),
            ("/documents/parked/{id}/waive", "post", "422"),
            ("/documents/breaker", "get", "200"),
            ("/documents/breaker/approve", "post", "200"),
            ("/documents/breaker/reject", "post", "422"),
            ("/documents/bulk/delete", "post", "409"),
            ("/documents/bulk/restore", "post", "200"),
            ("/documents/rehydrations", "get", "200"),
            ("/documents/rehydrations/{id}/done", "post", "409"),
            ("/readyz", "get", "503"),
        ] {
            let answer = &document["paths"][path][method]["responses"][status];
            assert!(answer.is_object(), "{method} {path} {status}");
        }
        let deleted = &document["paths"]["/documents/{id}"]["delete"]["responses"]["202"];
        assert!(deleted["headers"]["Location"].is_object());
        assert_eq!(
            deleted["content"]["application/json"]["example"],
            json!({"status": "file soft-deleted", "id": EXAMPLE_UUID})
        );
        assert!(document["components"].get("securitySchemes").is_none());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = described(&ApiConfig { relations: vec![documents()], ..Default::default() });
        let text = document.to_string();
        let references: Vec<_> = text.split("\"#/components/schemas/").skip(1).collect();
        assert!(references.len() > 10);
        for reference in references {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }

    #[test]
    fn tokens_a_composite_key_and_no_create_show() {
        let mut api = documents();
        let mut relation = (*api.relation).clone();
        relation.key.insert(0, KeyColumn { name: "tenant id".into(), kind: KeyKind::Text });
        api.relation = relation.into();
        api.create = None;
        let tokens = Tokens::parse(&format!("ann {}", crate::hash_token("x")), "t").unwrap();
        let config = ApiConfig { relations: vec![api], tokens: Some(tokens), ..Default::default() };
        let document = described(&config);
        let read = &document["paths"]["/documents/{key_1}/{id}"]["get"];
        assert_eq!(read["parameters"].as_array().unwrap().len(), 2);
        assert_eq!(read["security"], json!([{"bearer": []}]));
        assert!(read["responses"]["401"].is_object());
        assert!(document["paths"].get("/documents/").is_none());
        assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
        assert!(document["paths"]["/readyz"]["get"].get("security").is_none());
    }
}
