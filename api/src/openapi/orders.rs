//! The routes of what operators order.

use serde_json::{Value, json};
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema, Type};
use utoipa::openapi::{HttpMethod, PathItem, RefOr, Required};

use super::{Described, EXAMPLE_TIME, EXAMPLE_UUID, answer, json_content, nullable, plain, time};

/// Every such route of a relation.
pub(super) fn paths(of: &Described<'_>, row_path: &str) -> Vec<(String, PathItem)> {
    let path = &of.api.path;
    let get = |operation| PathItem::new(HttpMethod::Get, operation);
    let post = |operation| PathItem::new(HttpMethod::Post, operation);
    let mut holds = get(list_holds(of));
    holds.merge_operations(post(set_hold(of)));
    vec![
        (format!("{row_path}/holds"), holds),
        (
            format!("{row_path}/holds/{{hold_number}}"),
            PathItem::new(HttpMethod::Delete, release_hold(of)),
        ),
        (format!("/{path}/parked"), get(list_parked(of))),
        (format!("/{path}/parked/{{id}}/retry"), post(retry(of))),
        (format!("/{path}/parked/{{id}}/waive"), post(waive(of))),
        (format!("/{path}/breaker"), get(breaker(of))),
        (
            format!("/{path}/breaker/approve"),
            post(decide(of, "approve", "Lets what was kept back go on")),
        ),
        (
            format!("/{path}/breaker/reject"),
            post(decide(of, "reject", "Restores the rows of what was kept back")),
        ),
        (
            format!("/{path}/bulk/delete"),
            post(bulk(of, "bulk_delete", "Flags up to 1,000 rows in one transaction", "flagged")),
        ),
        (
            format!("/{path}/bulk/restore"),
            post(bulk(
                of,
                "bulk_restore",
                "Restores up to 1,000 rows in one transaction",
                "restored",
            )),
        ),
        (format!("/{path}/rehydrations"), get(list_rehydrations(of))),
        (format!("/{path}/rehydrations/{{id}}/done"), post(done(of))),
    ]
}

/// What a deletion waits for.
pub(super) fn waits() -> ArrayBuilder {
    ArrayBuilder::new().items(
        ObjectBuilder::new()
            .property("what", plain(Type::String))
            .required("what")
            .property("since", time(true))
            .property("until", time(true))
            .property("says", plain(Type::String))
            .required("says"),
    )
}

/// What happened to it.
pub(super) fn events() -> ArrayBuilder {
    ArrayBuilder::new().items(
        ObjectBuilder::new()
            .property("at", time(false))
            .required("at")
            .property("what", plain(Type::String))
            .required("what")
            .property("by", nullable(Type::String)),
    )
}

fn set_hold(of: &Described<'_>) -> Operation {
    let about = "Keeps the row and its copies, whatever the flag says; `claimed` tells that copies may be gone";
    let schema = ObjectBuilder::new()
        .property("case", plain(Type::String))
        .required("case")
        .property("until", time(true));
    let mut example = example_hold();
    example["claimed"] = json!(false);
    example["says"] =
        json!("the row and its copies are kept while the hold lasts, whatever its flag says");
    let operation = of
        .keyed("set_hold", about)
        .request_body(Some(body(schema, json!({"case": "case 7", "until": null}))))
        .response("201", answer("The hold", json_content(plain(Type::Object), example)));
    of.answers(operation, &[400, 404, 408, 413, 415, 422]).build()
}

fn list_holds(of: &Described<'_>) -> Operation {
    let example = json!({"holds": [example_hold()]});
    let operation = of
        .keyed("holds", "The row's holds, newest first, also those that are over")
        .response("200", answer("The holds", json_content(plain(Type::Object), example)));
    of.answers(operation, &[400]).build()
}

fn release_hold(of: &Described<'_>) -> Operation {
    let operation = of
        .keyed("release_hold", "Ends a hold; the deletion goes on when no other is left")
        .parameter(number("hold_number", "The hold's number"))
        .response("200", answer("The hold", json_content(plain(Type::Object), example_hold())));
    of.answers(operation, &[400, 404, 409]).build()
}

fn list_parked(of: &Described<'_>) -> Operation {
    let example = json!({
        "parked": [{
            "id": 7, "relation": &*of.api.relation.name, "key": [EXAMPLE_UUID], "claimed": true,
            "reason": "store originals refuses: object lock", "attempts": 1, "first_seen": EXAMPLE_TIME,
            "claimed_at": EXAMPLE_TIME,
            "targets": [{"store": "originals", "address": {}, "verdict": "refused", "said": "object lock"}],
            "waived": {}, "next_step": "mend what the store refuses …",
        }],
        "next_cursor": null,
    });
    let operation = paged(of.operation("parked", "Deletions that need a person, oldest first"))
        .response("200", answer("A page", json_content(plain(Type::Object), example)));
    of.answers(operation, &[400]).build()
}

fn retry(of: &Described<'_>) -> Operation {
    let operation = of
        .operation(
            "retry",
            "Lets a parked deletion go on: anew before its claim, with its targets after it",
        )
        .parameter(number("id", "The deletion's number"))
        .response("200", went(of, "claimed"));
    of.answers(operation, &[404, 409]).build()
}

fn waive(of: &Described<'_>) -> Operation {
    let schema = ObjectBuilder::new()
        .property("store", plain(Type::String))
        .required("store")
        .property("reason", plain(Type::String))
        .required("reason");
    let example = json!({"store": "originals", "reason": "the bucket is gone"});
    let operation = of
        .operation("waive", "Says that a store's part of a parked deletion needs no proof; the receipt tells who and why")
        .parameter(number("id", "The deletion's number"))
        .request_body(Some(body(schema, example)))
        .response("200", went(of, "claimed"));
    of.answers(operation, &[400, 404, 408, 409, 413, 415, 422]).build()
}

fn breaker(of: &Described<'_>) -> Operation {
    let example = json!({
        "relation": &*of.api.relation.name, "tripped_at": EXAMPLE_TIME, "reason": "claims_max is 10",
        "waiting": 250, "up_to": 4711, "spent": 10,
        "minutes": [{"minute": "2026-11-23T10:00Z", "rows": 250}], "without_time": 0,
    });
    let operation = of
        .operation("breaker", "Whether the breaker is tripped, and what it keeps back")
        .response("200", answer("The breaker", json_content(plain(Type::Object), example)));
    of.answers(operation, &[]).build()
}

fn decide(of: &Described<'_>, verb: &str, about: &str) -> Operation {
    let schema = ObjectBuilder::new()
        .property("up_to", nullable(Type::Integer))
        .property("from", time(true))
        .property("to", time(true))
        .property("all", plain(Type::Boolean));
    let example = json!({
        "decided": 250, "cancelled": 0, "refused": 0, "refusal": null, "waiting": 0, "reset": true,
        "complete": true,
    });
    let operation = of
        .operation(verb, about)
        .description(Some(
            "Those with an id up to `up_to`, whose row's flag lies in [`from`, `to`); or `all`. Where `complete` is \
             false the time of one request was over: ask the same again.",
        ))
        .request_body(Some(body(schema, json!({"up_to": 4711}))))
        .response("200", answer("How far it came", json_content(plain(Type::Object), example)));
    of.answers(operation, &[400, 408, 413, 415, 422]).build()
}

fn bulk(of: &Described<'_>, verb: &str, about: &str, became: &str) -> Operation {
    let schema = ObjectBuilder::new()
        .property(
            "keys",
            ArrayBuilder::new()
                .items(RefOr::T(super::any()))
                .min_items(Some(1))
                .max_items(Some(1000)),
        )
        .required("keys");
    let operation = of
        .operation(verb, about)
        .request_body(Some(body(schema, json!({"keys": [of.example_id()]}))))
        .response(
            "200",
            answer(
                "What became of each, in the order of the request",
                json_content(
                    plain(Type::Object),
                    json!({"keys": [{"key": of.example_id(), "became": became}]}),
                ),
            ),
        );
    of.answers(operation, &[400, 408, 409, 413, 415, 422]).build()
}

fn list_rehydrations(of: &Described<'_>) -> Operation {
    let example = json!({"rehydrations": [example_rehydration(of)], "next_cursor": null});
    let about = "Restored rows whose hidden copies are to be made again, oldest first";
    let operation = paged(of.operation("rehydrations", about))
        .parameter(
            ParameterBuilder::new()
                .name("open")
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some("Only those that are ready and not done"))
                .schema(Some(plain(Type::Boolean))),
        )
        .response("200", answer("A page", json_content(plain(Type::Object), example)));
    of.answers(operation, &[400]).build()
}

fn done(of: &Described<'_>) -> Operation {
    let operation = of
        .operation("rehydrated", "Notes that the copies are there again; again is harmless")
        .parameter(number("id", "The rehydration's number"))
        .response("200", answer("It", json_content(plain(Type::Object), example_rehydration(of))));
    of.answers(operation, &[404, 409]).build()
}

fn went(of: &Described<'_>, state: &str) -> utoipa::openapi::Response {
    let example = json!({"id": 7, "relation": &*of.api.relation.name, "state": state});
    answer("How it goes on", json_content(plain(Type::Object), example))
}

fn body(schema: ObjectBuilder, example: Value) -> utoipa::openapi::request_body::RequestBody {
    let schema: RefOr<Schema> = Schema::from(schema.build()).into();
    RequestBodyBuilder::new()
        .required(Some(Required::True))
        .content("application/json", json_content(schema, example))
        .build()
}

fn number(name: &str, about: &str) -> ParameterBuilder {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(about))
        .schema(Some(plain(Type::Integer)))
}

fn paged(operation: OperationBuilder) -> OperationBuilder {
    let query = |name: &str, about: &str, schema: Schema| {
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Query)
            .required(Required::False)
            .description(Some(about))
            .schema(Some(schema))
    };
    operation
        .parameter(query(
            "limit",
            "Most of the page: 1 to 500, 50 unless asked for",
            plain(Type::Integer),
        ))
        .parameter(query("cursor", "`next_cursor` of the page before", plain(Type::String)))
}

fn example_hold() -> Value {
    json!({
        "id": 3, "case": "case 7", "actor": "legal", "set_at": EXAMPLE_TIME, "until": null,
        "released_at": null, "released_by": null, "active": true,
    })
}

fn example_rehydration(of: &Described<'_>) -> Value {
    json!({
        "id": 4, "deletion_id": 7, "relation": &*of.api.relation.name, "key": [EXAMPLE_UUID], "targets": [],
        "restored_at": EXAMPLE_TIME, "ready_at": EXAMPLE_TIME, "published_at": null, "done_at": null,
        "done_by": null,
    })
}
