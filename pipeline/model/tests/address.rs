//! What of templates and rows is refused (S8), and that what passes reaches one row's copies only.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use proptest::prelude::*;
use tombstream_model::{Address, AddressError, AddressTemplate, Row, Template, TemplateError};

fn template(text: &str) -> Template {
    Template::parse(text).unwrap()
}

fn object(text: &str) -> AddressTemplate {
    AddressTemplate::Object { bucket: "docs".into(), key: template(text) }
}

fn prefix(text: &str) -> AddressTemplate {
    AddressTemplate::Prefix { bucket: "docs".into(), prefix: template(text) }
}

fn document(text: &str, routing: Option<&str>) -> AddressTemplate {
    let routing = routing.map(template);
    AddressTemplate::Document { index: "docs".into(), id: template(text), routing }
}

fn field(text: &str) -> AddressTemplate {
    AddressTemplate::Field {
        index: "chunks".into(),
        field: "document_id".into(),
        value: template(text),
        routing: None,
    }
}

/// The text that identifies, of the row with these columns.
fn resolve(address: &AddressTemplate, row: &[(&str, &str)]) -> Result<String, AddressError> {
    let columns: Vec<&str> = row.iter().map(|(name, _)| *name).collect();
    let values: Vec<Option<&str>> = row.iter().map(|(_, value)| Some(*value)).collect();
    Ok(match address.resolve(Row { columns: &columns, values: &values })? {
        Address::Object { key, .. } => key,
        Address::Prefix { prefix, .. } => prefix,
        Address::Document { id, .. } => id,
        Address::Field { value, .. } => value,
        Address::Item { id, .. } => id,
        Address::Row { columns, .. } => format!("{columns:?}"),
    })
}

fn row(columns: &[(&str, &str)]) -> AddressTemplate {
    let columns = columns.iter().map(|(name, text)| ((*name).to_owned(), template(text))).collect();
    AddressTemplate::Row { table: "public.copies".into(), columns }
}

fn item(text: &str) -> AddressTemplate {
    AddressTemplate::Item { collection: "contacts".into(), id: template(text) }
}

#[test]
fn a_template_prints_the_text_it_was_read_from() {
    for text in ["", "{id}", "{tenant_id}/{id}/original", "{{{id}}}", "a{{b}}c{d e}", "é{ü}/}}{{"]
    {
        assert_eq!(template(text).to_string(), text);
    }
    assert_eq!(resolve(&object("{{{id}}}"), &[("id", "7")]), Ok("{7}".to_owned()));
}

#[test]
fn unbalanced_and_empty_braces_are_refused() {
    for text in ["{", "}", "{}", "{id", "id}", "a{{}b", "{a{b}}", "{id}}", "{{id}", "{a{{b}"] {
        let refused = Template::parse(text);
        assert_eq!(refused, Err(TemplateError::Braces(text.to_owned())), "{text}");
    }
}

#[test]
fn a_template_without_the_whole_key_is_refused() {
    for address in [
        object("{tenant}/original"),
        prefix("{tenant}/"),
        document("{tenant}", Some("{id}")),
        field("{tenant}"),
    ] {
        let refused = address.check(&["tenant", "id"]).unwrap_err();
        assert!(
            matches!(&refused, TemplateError::KeyColumn { column, .. } if column == "id"),
            "{refused}"
        );
        assert!(refused.to_string().ends_with("add {id}"), "{refused}");
        assert_eq!(address.check(&["tenant"]), Ok(()));
    }
}

#[test]
fn a_template_that_could_reach_beyond_its_row_is_refused() {
    let whole = |text: &str| text.to_owned();
    for (address, refused) in [
        (object("original"), TemplateError::Literal(whole("original"))),
        (prefix("docs/"), TemplateError::Literal(whole("docs/"))),
        (field("all"), TemplateError::Literal(whole("all"))),
        (prefix("docs/{id}"), TemplateError::PrefixEnd(whole("docs/{id}"))),
        (prefix("docs/{id}-"), TemplateError::PrefixEnd(whole("docs/{id}-"))),
        (object("{id}/../x"), TemplateError::DotSegment(whole("{id}/../x"))),
        (object("./{id}"), TemplateError::DotSegment(whole("./{id}"))),
        (prefix("{id}/./"), TemplateError::DotSegment(whole("{id}/./"))),
        (object("{id}\u{1}"), TemplateError::Unsendable(whole("{id}\\u{1}"))),
        (
            object("{id}{id}"),
            TemplateError::Joined {
                template: whole("{id}{id}"),
                left: whole("id"),
                right: whole("id"),
            },
        ),
    ] {
        assert_eq!(address.check(&["id"]), Err(refused));
    }
    let joined = object("x/{tenant}{id}").check(&["tenant", "id"]).unwrap_err();
    assert!(joined.to_string().contains("joins `tenant` and `id`"), "{joined}");
    for fine in ["{id}", "/{id}", "a//{id}", "..{id}", "{id}.", "v1.0/{id}/..."] {
        assert_eq!(object(fine).check(&["id"]), Ok(()), "{fine}");
    }
}

#[test]
fn names_that_stand_for_several_are_refused() {
    let named = |index: &str, field: &str| AddressTemplate::Field {
        index: index.into(),
        field: field.into(),
        value: template("{id}"),
        routing: None,
    };
    for name in ["docs-*", "doc?", "a,b", "<docs-{now/d}>", "-docs", "_all"] {
        let index =
            AddressTemplate::Document { index: name.into(), id: template("{id}"), routing: None };
        let refused = Err(TemplateError::Wildcard(name.to_owned()));
        assert_eq!(index.check(&["id"]), refused);
        assert_eq!(named(name, "f").check(&["id"]), refused);
    }
    assert_eq!(named("docs", "f.*").check(&["id"]), Err(TemplateError::Wildcard("f.*".to_owned())));
    assert_eq!(named("docs-2026.01_a", "chunk.document_id").check(&["id"]), Ok(()));
    assert_eq!(named("", "f").check(&["id"]), Err(TemplateError::Unnamed("index")));
    assert_eq!(named("docs", "").check(&["id"]), Err(TemplateError::Unnamed("field")));
    let bucket = |address: fn(Arc<str>, Template) -> AddressTemplate| {
        address("".into(), template("{id}/")).check(&["id"])
    };
    for refused in [
        bucket(|bucket, key| AddressTemplate::Object { bucket, key }),
        bucket(|bucket, prefix| AddressTemplate::Prefix { bucket, prefix }),
    ] {
        assert_eq!(refused, Err(TemplateError::Unnamed("bucket")));
    }
}

#[test]
fn every_column_is_named_once() {
    let address = document("{tenant}/{id}/{tenant}", Some("{shard}-{id}"));
    assert_eq!(address.columns(), ["tenant", "id", "shard"]);
}

#[test]
fn a_key_goes_out_byte_for_byte() {
    for value in [
        "foo//bar",
        "/foo",
        "foo/",
        "a%2Fb",
        "a b+c",
        "it's \"quoted\"",
        "a\tb\nc\rd",
        "🗂 文書",
        "*?",
        "<&>",
        "e\u{301}",
        "é",
        "...",
        "a..b",
        "{id}",
        "\u{fffd}",
        "\\",
    ] {
        let expected = Ok(format!("docs/{value}/original"));
        assert_eq!(resolve(&object("docs/{id}/original"), &[("id", value)]), expected, "{value}");
    }
}

#[test]
fn an_address_has_all_its_parts() {
    let row = Row { columns: &["id", "tenant"], values: &[Some("7"), Some("a/b")] };
    assert_eq!(
        document("{id}", Some("{tenant}/{id}")).resolve(row),
        Ok(Address::Document {
            index: "docs".into(),
            id: "7".to_owned(),
            routing: Some("a/b/7".to_owned()),
        })
    );
    assert_eq!(
        field("{id}").resolve(row),
        Ok(Address::Field {
            index: "chunks".into(),
            field: "document_id".into(),
            value: "7".to_owned(),
            routing: None,
        })
    );
    assert_eq!(
        object("{id}").resolve(row),
        Ok(Address::Object { bucket: "docs".into(), key: "7".to_owned() })
    );
    assert_eq!(
        prefix("{id}/").resolve(row),
        Ok(Address::Prefix { bucket: "docs".into(), prefix: "7/".to_owned() })
    );
}

#[test]
fn an_empty_value_is_parked() {
    let templates = [object("x/{id}"), prefix("{id}/"), document("{id}", None), field("{id}")];
    for address in &templates {
        for value in [None, Some("")] {
            let row = Row { columns: &["id"], values: &[value] };
            assert_eq!(address.resolve(row), Err(AddressError::Empty("id".to_owned())));
        }
        let row = Row { columns: &["other"], values: &[Some("x")] };
        assert_eq!(address.resolve(row), Err(AddressError::Unread("id".to_owned())));
    }
    let row = Row { columns: &["id", "tenant"], values: &[Some("7"), None] };
    let routed = document("{id}", Some("{tenant}"));
    assert_eq!(routed.resolve(row), Err(AddressError::Empty("tenant".to_owned())));
}

#[test]
fn a_placeholder_is_parked() {
    for value in ["__debezium_unavailable_value", "x-__debezium_unavailable_value-y"] {
        for address in [object("{id}"), prefix("{id}/"), document("{id}", None), field("{id}")] {
            let refused = Err(AddressError::Placeholder("id".to_owned()));
            assert_eq!(resolve(&address, &[("id", value)]), refused);
        }
        let routed = document("{id}", Some("{tenant}"));
        let refused = Err(AddressError::Placeholder("tenant".to_owned()));
        assert_eq!(resolve(&routed, &[("id", "7"), ("tenant", value)]), refused);
    }
}

#[test]
fn a_value_with_a_delimiter_is_parked_where_columns_are_joined() {
    let joined = object("{a}/{b}");
    let parked = |column: &str, delimiter| {
        Err(AddressError::Delimiter { column: column.to_owned(), delimiter })
    };
    assert_eq!(resolve(&joined, &[("a", "a/b"), ("b", "c")]), parked("a", '/'));
    assert_eq!(resolve(&joined, &[("a", "a"), ("b", "b/c")]), parked("b", '/'));
    assert_eq!(resolve(&joined, &[("a", "a"), ("b", "b-c")]), Ok("a/b-c".to_owned()));
    // Each character of a longer delimiter: `a-` + `--` + `b` would be `a` + `--` + `-b`.
    assert_eq!(resolve(&object("{a}--{b}"), &[("a", "a-"), ("b", "b")]), parked("a", '-'));
    assert_eq!(resolve(&object("{a}--{b}"), &[("a", "a"), ("b", "-b")]), parked("b", '-'));
    // Only what stands between columns delimits.
    assert_eq!(
        resolve(&object("x/{a}-{b}/y"), &[("a", "1/2"), ("b", "3/4")]),
        Ok("x/1/2-3/4/y".into())
    );
    assert_eq!(resolve(&object("docs/{id}/x"), &[("id", "a/b")]), Ok("docs/a/b/x".to_owned()));
}

#[test]
fn a_slash_is_parked_in_every_prefix() {
    for (address, row) in [
        (prefix("docs/{a}/"), &[("a", "1/2")][..]),
        (prefix("{a}-{b}/"), &[("a", "1/2"), ("b", "3")]),
        (prefix("{b}-{a}-x/"), &[("b", "1"), ("a", "2/")]),
    ] {
        let parked = Err(AddressError::Delimiter { column: "a".to_owned(), delimiter: '/' });
        assert_eq!(resolve(&address, row), parked);
    }
}

#[test]
fn what_the_protocol_cannot_carry_is_parked() {
    for (value, refused) in [
        ("a\u{1}", AddressError::Unsendable(1)),
        ("\u{b}", AddressError::Unsendable(0xb)),
        ("\u{1f}", AddressError::Unsendable(0x1f)),
        ("\u{fffe}", AddressError::Unsendable(0xfffe)),
        ("\u{ffff}", AddressError::Unsendable(0xffff)),
        (".", AddressError::DotSegment),
        ("..", AddressError::DotSegment),
    ] {
        let row = &[("id", value)];
        assert_eq!(resolve(&object("docs/{id}/x"), row).as_ref(), Err(&refused));
        assert_eq!(resolve(&prefix("docs/{id}/"), row).as_ref(), Err(&refused));
        assert_eq!(resolve(&document("{id}", None), row).as_deref(), Ok(value));
    }
    for value in ["a/./b", "../x", "x/.."] {
        let refused = Err(AddressError::DotSegment);
        assert_eq!(resolve(&object("{id}"), &[("id", value)]), refused, "{value}");
    }
}

#[test]
fn what_is_longer_than_the_store_holds_is_parked() {
    for (address, bytes_max) in [
        (object("{id}"), 1_024),
        (prefix("{id}/"), 1_023),
        (document("{id}", None), 512),
        (field("{id}"), 32_766),
    ] {
        let longest = "é".repeat(bytes_max / 2) + &"x".repeat(bytes_max % 2);
        assert!(resolve(&address, &[("id", &longest)]).is_ok(), "{bytes_max}");
        let refused = resolve(&address, &[("id", &(longest + "x"))]);
        assert!(matches!(refused, Err(AddressError::Long { .. })), "{bytes_max}");
    }
}

/// Every row whose copy an application that knows nothing of what is parked would have written at
/// `written`: all ways to take it apart.
fn writers(template: &str, written: &str) -> Vec<[String; 3]> {
    fn go(template: &str, rest: &str, row: [Option<&str>; 3], found: &mut Vec<[String; 3]>) {
        if let Some(after) = template.strip_prefix('{') {
            let (name, after) = after.split_once('}').unwrap();
            let index = ["a", "b", "c"].iter().position(|column| *column == name).unwrap();
            let ends = (0..=rest.len()).filter(|end| rest.is_char_boundary(*end));
            for (value, rest) in ends.map(|end| rest.split_at(end)) {
                if row[index].is_none_or(|earlier| earlier == value) {
                    let mut row = row;
                    row[index] = Some(value);
                    go(after, rest, row, found);
                }
            }
        } else if let Some(literal) = template.chars().next() {
            if let Some(rest) = rest.strip_prefix(literal) {
                go(&template[literal.len_utf8()..], rest, row, found);
            }
        } else if rest.is_empty() {
            found.push(row.map(|value| value.unwrap_or_default().to_owned()));
        }
    }
    let mut found = Vec::new();
    go(template, written, [None; 3], &mut found);
    found
}

fn rows() -> impl Strategy<Value = [String; 3]> {
    // Few characters, and those of the templates, so that values often hold a delimiter.
    ["[ax/.-]{0,4}", "[ax/.-]{0,4}", "[ax/.-]{0,4}"]
}

fn pairs(row: &[String; 3]) -> [(&'static str, &str); 3] {
    [("a", &row[0]), ("b", &row[1]), ("c", &row[2])]
}

const JOINED: [&str; 9] = [
    "{a}/{b}/{c}",
    "{a}-{b}/{c}",
    "{a}/{b}-{c}",
    "{a}--{b}-/-{c}",
    "{a}-x-{b}x{c}",
    "x/{a}/{b}/{c}/x",
    "{c}/{a}/{b}/{a}",
    "{a}a{b}-{c}.",
    "{a}.{b}/{c}",
];

const PREFIXES: [&str; 6] =
    ["{a}/", "docs/{a}/", "{a}-x/", "{a}-{b}/", "{a}/{b}/{c}/", "{a}/{b}-x/y/"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_048, ..ProptestConfig::default() })]

    /// Stronger than injective: an address that is sent is not what any *other* row has written, even
    /// one that would itself be parked.
    #[test]
    fn an_address_is_one_rows_alone(text in prop::sample::select(&JOINED[..]), row in rows()) {
        let address = object(text);
        prop_assert_eq!(address.check(&["a", "b", "c"]), Ok(()));
        if let Ok(sent) = resolve(&address, &pairs(&row)) {
            prop_assert_eq!(writers(text, &sent), [row]);
        }
    }

    /// What a template may have given to a key is known by the key alone, and is no other key's.
    #[test]
    fn an_address_tells_whether_it_could_be_a_keys(
        text in prop::sample::select(&JOINED[..]),
        row in rows(),
        other in rows(),
    ) {
        let address = object(text);
        let key = |row: &[String; 3]| {
            let columns = ["a", "b"];
            let values = [Some(row[0].as_str()), Some(row[1].as_str())];
            let gives = |sent: &str| {
                let sent = Address::Object { bucket: "docs".into(), key: sent.to_owned() };
                address.could_give(&sent, Row { columns: &columns, values: &values })
            };
            resolve(&address, &pairs(row)).ok().map(|sent| (gives(&sent), sent))
        };
        if let (Some((gives, sent)), Some((_, another))) = (key(&row), key(&other)) {
            prop_assert!(gives);
            let columns = ["a", "b"];
            let values = [Some(row[0].as_str()), Some(row[1].as_str())];
            let row_key = Row { columns: &columns, values: &values };
            let another = Address::Object { bucket: "docs".into(), key: another };
            if row[..2] != other[..2] {
                prop_assert!(!address.could_give(&another, row_key));
            }
            let elsewhere = Address::Object { bucket: "others".into(), key: sent };
            prop_assert!(!address.could_give(&elsewhere, row_key));
        }
    }

    /// The other row's values go on where this one's end, as `10` does after `1`.
    #[test]
    fn a_prefix_is_never_the_prefix_of_another_rows(
        text in prop::sample::select(&PREFIXES[..]),
        one in rows(),
        tail in rows(),
    ) {
        let address = prefix(text);
        let named = address.columns().len();
        let other: [String; 3] = std::array::from_fn(|index| format!("{}{}", one[index], tail[index]));
        if let (Ok(shorter), Ok(longer)) =
            (resolve(&address, &pairs(&one)), resolve(&address, &pairs(&other)))
        {
            prop_assert_eq!(longer.starts_with(&shorter), one[..named] == other[..named]);
        }
    }

    #[test]
    fn a_template_gives_back_any_text(text in ".{0,20}") {
        if let Ok(template) = Template::parse(&text) {
            prop_assert_eq!(template.to_string(), text);
        }
    }

    #[test]
    fn any_row_gives_an_answer(text in "[{}a-c/.*]{0,12}", a in any::<String>(), b in any::<String>()) {
        if let Ok(key) = Template::parse(&text) {
            let address = AddressTemplate::Object { bucket: "docs".into(), key };
            let _checked = address.check(&["a"]);
            if let Err(refused) = resolve(&address, &[("a", &a), ("b", &b), ("c", "c")]) {
                prop_assert!(refused.to_string().len() < 200);
            }
        }
    }
}

#[test]
fn a_row_is_named_by_the_whole_key() {
    let whole = row(&[("kind", "document"), ("tenant", "{tenant_id}"), ("id", "{id}")]);
    whole.check(&["tenant_id", "id"]).unwrap();
    assert_eq!(whole.columns(), ["id", "tenant_id"]);
    let told = resolve(&whole, &[("tenant_id", "1-2"), ("id", "3")]).unwrap();
    assert_eq!(told, r#"{"id": "3", "kind": "document", "tenant": "1-2"}"#);
    row(&[("ref", "{tenant_id}-{id}")]).check(&["tenant_id", "id"]).unwrap();

    let said = |columns: &[(&str, &str)]| row(columns).check(&["tenant_id", "id"]).unwrap_err();
    let lacks = said(&[("id", "{id}"), ("kind", "document")]);
    assert!(matches!(&lacks, TemplateError::KeyColumn { column, .. } if column == "tenant_id"));
    assert!(matches!(said(&[("kind", "document")]), TemplateError::Literal(_)));
    assert!(matches!(said(&[]), TemplateError::Literal(_)));
    assert!(matches!(said(&[("ref", "{tenant_id}{id}")]), TemplateError::Joined { .. }));
    let unnamed = said(&[("", "{tenant_id}/{id}")]);
    assert_eq!(unnamed, TemplateError::Unnamed("column"));
}

#[test]
fn a_row_or_an_item_whose_value_could_be_anothers_is_parked() {
    for joined in [row(&[("ref", "{tenant_id}-{id}")]), item("{tenant_id}-{id}")] {
        let refused = resolve(&joined, &[("tenant_id", "1-2"), ("id", "3")]);
        assert!(
            matches!(refused, Err(AddressError::Delimiter { delimiter: '-', .. })),
            "{refused:?}"
        );
        assert!(matches!(
            resolve(&joined, &[("tenant_id", ""), ("id", "3")]),
            Err(AddressError::Empty(_))
        ));
    }
    // Each column has a value of its own, so nothing is joined there.
    let apart = row(&[("tenant", "{tenant_id}"), ("id", "{id}")]);
    resolve(&apart, &[("tenant_id", "1-2"), ("id", "3/4")]).unwrap();
    item("{id}").check(&["id"]).unwrap();
    assert!(matches!(item("{id}").check(&["id", "part"]), Err(TemplateError::KeyColumn { .. })));
    let long = resolve(&item("{id}"), &[("id", &"x".repeat(1_025))]);
    assert!(matches!(long, Err(AddressError::Long { bytes_max: 1_024, .. })), "{long:?}");
}

#[test]
fn an_address_is_spelled_in_json_as_in_the_ledger() {
    let row = Address::Row {
        table: "public.copies".into(),
        columns: [("id".to_owned(), "7".to_owned())].into(),
    };
    let json = r#"{"kind":"row","table":"public.copies","columns":{"id":"7"}}"#;
    assert_eq!(serde_json::to_string(&row).unwrap(), json);
    assert_eq!(serde_json::from_str::<Address>(json).unwrap(), row);
    let item = Address::Item { collection: "contacts".into(), id: "7".into() };
    let json = r#"{"kind":"item","collection":"contacts","id":"7"}"#;
    assert_eq!(serde_json::to_string(&item).unwrap(), json);
}

fn listed_object(key: &str) -> tombstream_model::Listed {
    let address = Address::Object { bucket: "docs".into(), key: key.to_owned() };
    tombstream_model::Listed { address, fields: Vec::new() }
}

fn key_columns(names: &[&str]) -> Vec<tombstream_model::KeyColumn> {
    let column = |name: &&str| tombstream_model::KeyColumn {
        name: (*name).to_owned(),
        kind: tombstream_model::KeyKind::Text,
    };
    names.iter().map(column).collect()
}

#[test]
fn a_copy_is_traced_to_no_row_that_could_not_have_written_it() {
    use tombstream_model::{KeyColumn, KeyKind, Listed};
    let id = [KeyColumn { name: "id".to_owned(), kind: KeyKind::Bigint }];
    let in_bucket = |text: &str| match object(text) {
        AddressTemplate::Object { key, .. } => {
            AddressTemplate::Object { bucket: "docs".into(), key }
        }
        other => other,
    };
    let traced = |text: &str, key: &str| in_bucket(text).trace(&listed_object(key), &id).len();
    assert_eq!(traced("{tenant}/{id}", "a/7"), 1);
    for (text, key) in [
        ("{tenant}/{id}", "a/007"),
        ("{tenant}/{id}", "a/x"),
        ("{tenant}/{id}", "a/b/7"),
        ("{tenant}/{id}", "/7"),
        ("{tenant}/{id}", "a/"),
        ("{tenant}/{id}", "7"),
        ("{id}/{tenant}/{id}", "7/a/8"),
        ("{id}/original", "7/Original"),
        ("{id}/original", "7/original/x"),
    ] {
        assert_eq!(traced(text, key), 0, "{text} {key}");
    }
    // Of another bucket, and of another kind.
    let elsewhere = AddressTemplate::Object { bucket: "other".into(), key: template("{id}") };
    assert_eq!(elsewhere.trace(&listed_object("7"), &id), []);
    assert_eq!(document("{id}", None).trace(&listed_object("7"), &id), []);
    // A document's routing is part of where it is.
    let listed = |routing: Option<&str>| Listed {
        address: Address::Document {
            index: "documents".into(),
            id: "t-7".to_owned(),
            routing: routing.map(str::to_owned),
        },
        fields: Vec::new(),
    };
    let routed = AddressTemplate::Document {
        index: "documents".into(),
        id: template("{tenant}-{id}"),
        routing: Some(template("{tenant}")),
    };
    assert_eq!(routed.trace(&listed(Some("t")), &id).len(), 1);
    assert_eq!(routed.trace(&listed(Some("u")), &id), []);
    assert_eq!(routed.trace(&listed(None), &id), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_048, ..ProptestConfig::default() })]

    /// Whatever a row's address is, a copy there leads back to that row and that address.
    #[test]
    fn a_copy_is_traced_to_its_row(text in prop::sample::select(&JOINED[..]), row in rows()) {
        let address = AddressTemplate::Object { bucket: "docs".into(), key: template(text) };
        let columns = ["a", "b", "c"];
        let values = [Some(&*row[0]), Some(&*row[1]), Some(&*row[2])];
        if let Ok(sent) = address.resolve(Row { columns: &columns, values: &values }) {
            let Address::Object { key, .. } = &sent else { unreachable!() };
            let traced = address.trace(&listed_object(key), &key_columns(&columns));
            let whose = tombstream_model::Key::from_postgres(row.clone());
            prop_assert_eq!(traced, [(sent, whose)]);
        }
    }

    /// So is every object below a row's prefix.
    #[test]
    fn an_object_is_traced_to_its_prefix(
        text in prop::sample::select(&PREFIXES[..]),
        row in rows(),
        below in "[ax/]{0,4}",
    ) {
        let address = AddressTemplate::Prefix { bucket: "docs".into(), prefix: template(text) };
        let names = address.columns().iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let columns: Vec<&str> = names.iter().map(String::as_str).collect();
        let values: Vec<Option<&str>> = row.iter().take(columns.len()).map(|it| Some(&**it)).collect();
        if let Ok(sent) = address.resolve(Row { columns: &columns, values: &values }) {
            let Address::Prefix { prefix, .. } = &sent else { unreachable!() };
            let listed = listed_object(&format!("{prefix}{below}"));
            let traced = address.trace(&listed, &key_columns(&columns));
            prop_assert_eq!(traced.len(), 1);
            prop_assert_eq!(&traced[0].0, &sent);
        }
    }
}

#[test]
fn a_row_of_a_table_is_traced_by_all_of_its_columns_together() {
    use tombstream_model::{Key, KeyColumn, KeyKind, Listed};
    let id = [KeyColumn { name: "id".to_owned(), kind: KeyKind::Bigint }];
    let row = |columns: &[(&str, &str)]| AddressTemplate::Row {
        table: "public.copies".into(),
        columns: columns.iter().map(|(name, it)| ((*name).to_owned(), template(it))).collect(),
    };
    let listed = |columns: &[(&str, &str)]| Listed {
        address: Address::Row {
            table: "public.copies".into(),
            columns: columns.iter().map(|(name, it)| ((*name).into(), (*it).into())).collect(),
        },
        fields: Vec::new(),
    };
    let note = row(&[("kind", "note"), ("note", "{id}")]);
    let copy = listed(&[("kind", "note"), ("note", "7")]);
    let key = Key::from_postgres(["7".to_owned()]);
    assert_eq!(note.trace(&copy, &id), [(copy.address.clone(), key)]);
    for other in [
        &[("kind", "other"), ("note", "7")][..],
        &[("note", "7")],
        &[("kind", "note"), ("id", "7")],
        // No row has such a key.
        &[("kind", "note"), ("note", "07")],
        &[("kind", "note"), ("note", "x")],
    ] {
        assert_eq!(note.trace(&listed(other), &id), [], "{other:?}");
    }
    let twice = row(&[("a", "{id}"), ("b", "x{id}")]);
    assert_eq!(twice.trace(&listed(&[("a", "7"), ("b", "x7")]), &id).len(), 1);
    assert_eq!(twice.trace(&listed(&[("a", "7"), ("b", "x8")]), &id), []);
}
