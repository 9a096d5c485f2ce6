//! `[relation.NAME]`: a table under care, and where the copies of its rows are.

use std::collections::BTreeMap;
use std::time::Duration;

use tombstream_model::{
    BreakerLimits, Flag, FlagKind, KeyColumn, KeyKind, OnHardDelete, Relation, TargetTemplate,
    Template,
};
use toml::de::DeValue;

use super::document::{Place, Section};
use super::value::{Leaf, Wrong, word};
use super::waiting;

/// A relation as the file describes it. Stores are still names here.
#[derive(Clone, Debug)]
pub(crate) struct RelationConfig {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) table: Table,
    pub(crate) key: Vec<KeyColumn>,
    pub(crate) flag: Flag,
    /// How long a flag must stand before the claim, where a target has no grace of its own. 0: soft-deleted is meant to be gone; who wants
    /// time for second thoughts says how much.
    pub(crate) grace: Duration,
    /// What trips its breaker. None: as much is claimed as is flagged.
    pub(crate) breaker: Option<BreakerLimits>,
    /// What a hard delete of a living row means. `ignore`: whoever removed the row looks after its
    /// copies, since nobody can ask the row any more.
    pub(crate) on_hard_delete: OnHardDelete,
    /// Whether it was declared that no key is ever used again. Object stores have no fence against a
    /// newer life's copy at the same address (S5), so there it must be.
    pub(crate) key_reuse_forbidden: bool,
    /// Whether it was declared that no text key holds a slash. A prefix reaches everything below it,
    /// and the key `1/2` is below the key `1` (S8).
    pub(crate) key_slashes_forbidden: bool,
    /// The column that tells when a row came to be. None: after a restored backup nothing tells a row that is back from
    /// one that was created anew, but the server's own transactions.
    pub(crate) created: Option<String>,
    /// The topics that carry its changes. Empty: the sweep alone finds its flags.
    pub(crate) topics: Vec<(Place, String)>,
    /// Child tables that a removed row may take along. Empty: none may.
    pub(crate) allow_cascade: Vec<String>,
    pub(crate) targets: Vec<TargetConfig>,
    /// The routes. None: the api does not serve this relation.
    pub(crate) api: Option<RouteConfig>,
}

/// A table's name as it is stored in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) schema: String,
    pub(crate) name: String,
}

/// One target: a store's name and what its address is made of.
#[derive(Clone, Debug)]
pub(crate) struct TargetConfig {
    pub(crate) place: Place,
    pub(crate) store_place: Place,
    pub(crate) store: String,
    pub(crate) shape: Shape,
    /// The grace of its store. None: the relation's.
    pub(crate) grace: Option<Duration>,
}

/// What a target's address is made of.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Object { key: Template },
    Prefix { prefix: Template },
    Document { id: Template, routing: Option<Template> },
    Field { field: String, value: Template, routing: Option<Template> },
    Item { id: Template },
    Row { columns: BTreeMap<String, Template> },
}

impl Shape {
    /// The key of the file that decides what it is.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Object { .. } => "key",
            Self::Prefix { .. } => "prefix",
            Self::Document { .. } => "id",
            Self::Field { .. } => "field",
            Self::Item { .. } => "item",
            Self::Row { .. } => "row",
        }
    }
}

/// What the api serves of a relation.
#[derive(Clone, Debug)]
pub(crate) struct RouteConfig {
    pub(crate) place: Place,
    /// The first segment of its routes: `documents` gives `DELETE /documents/{id}`.
    pub(crate) path: String,
    /// The columns that GET shows.
    pub(crate) columns: Vec<String>,
    /// The columns that POST may set. None: there is no POST.
    pub(crate) create: Option<Vec<String>>,
}

impl RelationConfig {
    pub(super) fn read(name: &str, section: &mut Section<'_, '_>) -> Option<Self> {
        let place = section.here();
        if !is_name(name) {
            section.problem(
                section.here(),
                format!("{name:?} is no name of a relation"),
                "use lower-case letters, digits, - and _, beginning with a letter",
            );
        }
        let table = section.need("table", "write table = \"public.documents\"");
        let key = read_key(section);
        let flag = read_flag(section);
        let grace = section.or("grace", Duration::ZERO);
        let breaker = section.table("breaker", waiting::read_breaker).flatten();
        let OnHardDeleteLeaf(on_hard_delete) =
            section.or("on_hard_delete", OnHardDeleteLeaf(OnHardDelete::Ignore));
        let key_reuse_forbidden = section.get::<Forbidden>("key_reuse").is_some();
        let key_slashes_forbidden = section.get::<Forbidden>("key_slashes").is_some();
        let created_place = section.place("created");
        let created: Option<String> = section.get("created");
        if let (Some(created), Some(flag)) = (&created, &flag)
            && *created == flag.column
        {
            section.problem(
                created_place,
                format!("{created:?} is the flag"),
                "name a timestamptz column that is set when a row is inserted, and never later; or leave it out",
            );
        }
        let topics_place = section.place("topics");
        let topics: Vec<String> = section.or("topics", Vec::new());
        let topics = topics.into_iter().map(|topic| (topics_place.clone(), topic)).collect();
        let allow_cascade = section.or("allow_cascade", Vec::new());
        let named = section.place("targets");
        let read: Vec<Option<TargetConfig>> = section.list("targets", TargetConfig::read);
        if read.is_empty() {
            section.problem(
                named,
                "a relation needs at least one target",
                "write targets = [{ store = \"originals\", key = \"{id}/original\" }]; \
                 without a copy there is nothing to destroy",
            );
        }
        let create_place =
            Place { key: format!("{}.create", section.join("api")), ..section.place("api") };
        let api = section.table("api", RouteConfig::read).flatten();
        let creates = api.as_ref().and_then(|api| api.create.as_ref());
        if let Some(flag) = &flag
            && creates.is_some_and(|columns| columns.contains(&flag.column))
        {
            section.problem(
                create_place,
                format!("{:?} is the flag: a row is created alive", flag.column),
                "leave it out; DELETE sets it",
            );
        }
        Some(Self {
            name: name.to_owned(),
            place,
            table: table?,
            key: key?,
            flag: flag?,
            grace,
            breaker,
            on_hard_delete,
            key_reuse_forbidden,
            key_slashes_forbidden,
            created,
            topics,
            allow_cascade,
            targets: read.into_iter().collect::<Option<_>>()?,
            api,
        })
    }
}

impl RelationConfig {
    /// The relation as the rest of Tombstream knows it. Its rows are claimed after `grace`, and their
    /// recoverable copies hidden after `hide`.
    pub(super) fn into_model(
        self,
        targets: Vec<TargetTemplate>,
        (grace, hide): (Duration, Option<Duration>),
    ) -> Relation {
        Relation {
            name: self.name.into(),
            schema: self.table.schema,
            table: self.table.name,
            key: self.key,
            flag: self.flag,
            targets,
            grace,
            hide,
            breaker: self.breaker,
            on_hard_delete: self.on_hard_delete,
            key_reuse_forbidden: self.key_reuse_forbidden,
            topics: self.topics.into_iter().map(|(_, topic)| topic).collect(),
            allow_cascade: self.allow_cascade,
        }
    }
}

fn read_key(section: &mut Section<'_, '_>) -> Option<Vec<KeyColumn>> {
    let place = section.place("key");
    let fix = "write key = [{ column = \"id\", type = \"uuid\" }]";
    let columns = section.list("key", |column| {
        let name = column.need("column", "write column = \"id\"");
        let kind: Option<KeyKindLeaf> = column.need("type", "write type = \"uuid\"");
        Some(KeyColumn { name: name?, kind: kind?.0 })
    });
    if columns.is_empty() {
        section.problem(place.clone(), "a relation needs a key", fix);
    }
    let columns: Vec<KeyColumn> = columns.into_iter().collect::<Option<_>>()?;
    for (index, column) in columns.iter().enumerate() {
        if columns[..index].iter().any(|other| other.name == column.name) {
            section.problem(
                place.clone(),
                format!("names the column {:?} twice", column.name),
                "name each column once",
            );
        }
    }
    Some(columns)
}

fn read_flag(section: &mut Section<'_, '_>) -> Option<Flag> {
    let fix = "write flag = { column = \"deleted_at\", type = \"timestamptz\" }";
    if !section.has("flag") {
        section.problem(section.place("flag"), "missing", fix);
    }
    section.table("flag", |flag| {
        let column: Option<String> = flag.need("column", "write column = \"deleted_at\"");
        let kind = flag.need("type", "write type = \"timestamptz\", \"timestamp\" or \"boolean\"");
        let has_zone = flag.has("zone");
        let zone: Option<Zone> = flag.get("zone");
        let kind = match kind? {
            FlagWord::Timestamp if !has_zone => {
                flag.problem(
                    flag.place("zone"),
                    "a flag of type \"timestamp\" has no zone of its own",
                    "say which zone the application writes: zone = \"UTC\" or \"Europe/Berlin\"; \
                     there is no default, since a wrong one shortens the grace by hours",
                );
                return None;
            }
            FlagWord::Timestamp => FlagKind::Timestamp { zone: zone?.0 },
            word @ (FlagWord::TimestampTz | FlagWord::Boolean) => {
                if has_zone {
                    flag.problem(
                        flag.place("zone"),
                        "only a flag of type \"timestamp\" has a zone",
                        "leave zone out",
                    );
                }
                match word {
                    FlagWord::Boolean => FlagKind::Boolean,
                    FlagWord::Timestamp | FlagWord::TimestampTz => FlagKind::TimestampTz,
                }
            }
        };
        Some(Flag { column: column?, kind })
    })?
}

impl TargetConfig {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let place = section.here();
        let store = section.need_at("store", "name a store: store = \"originals\"");
        let grace = section.get("grace");
        let fix = "write one of key = \"{id}/original\", prefix = \"{id}/\", id = \"{id}\", \
                   field = \"document_id\" with value = \"{id}\", item = \"{id}\", or row = { id = \"{id}\" }";
        let shapes: Vec<&str> = ["key", "prefix", "id", "field", "item", "row"]
            .into_iter()
            .filter(|shape| section.has(shape))
            .collect();
        let key = section.get::<TemplateLeaf>("key");
        let prefix = section.get::<TemplateLeaf>("prefix");
        let id = section.get::<TemplateLeaf>("id");
        let field = section.get::<String>("field");
        let item = section.get::<TemplateLeaf>("item");
        let row = section.table("row", |row| {
            let columns = row.rest::<TemplateLeaf>().into_iter();
            columns.map(|(name, _, template)| (name, template.0)).collect::<BTreeMap<_, _>>()
        });
        let shape = match shapes.as_slice() {
            ["key"] => Shape::Object { key: key?.0 },
            ["prefix"] => Shape::Prefix { prefix: prefix?.0 },
            ["item"] => Shape::Item { id: item?.0 },
            ["row"] => Shape::Row { columns: row? },
            ["id"] => Shape::Document { id: id?.0, routing: read_routing(section) },
            ["field"] => {
                let value: Option<TemplateLeaf> = section.need("value", "write value = \"{id}\"");
                let routing = read_routing(section);
                Shape::Field { field: field?, value: value?.0, routing }
            }
            [] => {
                section.problem(section.here(), "does not say where in the store the copy is", fix);
                return None;
            }
            several => {
                let what = format!("is more than one address: {}", several.join(" and "));
                section.problem(section.here(), what, "write a target of its own for each");
                return None;
            }
        };
        let (store_place, store) = store?;
        Some(Self { place, store_place, store, shape, grace })
    }
}

fn read_routing(section: &mut Section<'_, '_>) -> Option<Template> {
    section.get::<TemplateLeaf>("routing").map(|template| template.0)
}

/// Routes of the process itself.
const RESERVED: [&str; 4] = ["healthz", "readyz", "metrics", "openapi.json"];

impl RouteConfig {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let place = section.place("path");
        let path: Option<String> = section.need("path", "write path = \"documents\"");
        let columns_place = section.place("columns");
        let columns: Option<Vec<String>> =
            section.need("columns", "list what GET may show: columns = [\"id\", \"name\"]");
        let create_place = section.place("create");
        let create: Option<Vec<String>> = section.get("create");
        for (place, names) in [
            (columns_place, columns.as_deref().unwrap_or_default()),
            (create_place, create.as_deref().unwrap_or_default()),
        ] {
            let twice = (1..names.len()).find(|index| names[..*index].contains(&names[*index]));
            if let Some(index) = twice {
                let what = format!("names the column {:?} twice", names[index]);
                section.problem(place, what, "name each column once");
            }
        }
        let path = path?;
        if RESERVED.contains(&path.as_str()) {
            section.problem(
                place,
                format!("{path:?} is a route of the process itself"),
                format!("choose another path; taken are {}", RESERVED.join(", ")),
            );
            return None;
        }
        if !is_name(&path) {
            section.problem(
                place,
                format!("{path:?} is no path segment"),
                "use lower-case letters, digits, - and _, beginning with a letter, no slashes",
            );
            return None;
        }
        Some(Self { place, path, columns: columns?, create })
    }
}

/// A name that is safe in routes, metrics and logs.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}

struct TemplateLeaf(Template);

impl Leaf for TemplateLeaf {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        Template::parse(&text).map(Self).map_err(|error| {
            Wrong::split(
                &error.to_string(),
                "write columns of the row in braces, such as \"{tenant_id}/{id}\"",
            )
        })
    }
}

struct KeyKindLeaf(KeyKind);

impl Leaf for KeyKindLeaf {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words = [
            ("uuid", KeyKind::Uuid),
            ("bigint", KeyKind::Bigint),
            ("integer", KeyKind::Bigint),
            ("smallint", KeyKind::Bigint),
            ("text", KeyKind::Text),
            ("varchar", KeyKind::Text),
        ];
        word(value, &words).map(Self)
    }
}

#[derive(Clone, Copy)]
enum FlagWord {
    TimestampTz,
    Timestamp,
    Boolean,
}

impl Leaf for FlagWord {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words = [
            ("timestamptz", Self::TimestampTz),
            ("timestamp", Self::Timestamp),
            ("boolean", Self::Boolean),
        ];
        word(value, &words)
    }
}

struct OnHardDeleteLeaf(OnHardDelete);

impl Leaf for OnHardDeleteLeaf {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words = [("ignore", OnHardDelete::Ignore), ("destroy", OnHardDelete::Destroy)];
        word(value, &words).map(Self)
    }
}

/// What the user declares never to happen. There is no other word: what may happen is not written.
struct Forbidden;

impl Leaf for Forbidden {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        word(value, &[("forbidden", ())]).map(|()| Self)
    }
}

/// A zone of the IANA database. Offsets are refused: Postgres reads `+02` as two hours *west*.
struct Zone(String);

impl Leaf for Zone {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        const AREAS: [&str; 11] = [
            "Africa",
            "America",
            "Antarctica",
            "Arctic",
            "Asia",
            "Atlantic",
            "Australia",
            "Etc",
            "Europe",
            "Indian",
            "Pacific",
        ];
        let text = String::read(value)?;
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-+/".contains(c));
        let known = match text.split_once('/') {
            Some((area, city)) => AREAS.contains(&area) && !city.is_empty(),
            None => text == "UTC",
        };
        if plain && known {
            return Ok(Self(text));
        }
        Err(Wrong::new(
            format!("{text:?} is no zone of the IANA database"),
            "write a name such as \"UTC\" or \"Europe/Berlin\"; offsets and abbreviations are \
             refused, since they know no summer time and their sign is read both ways",
        ))
    }
}

impl Leaf for Table {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let text = String::read(value)?;
        let parts = identifiers(&text).ok_or_else(|| {
            Wrong::new(
                format!("{text:?} is no name of a table"),
                "write \"schema.table\"; a name with a dot in it goes in double quotes, as in SQL",
            )
        })?;
        match parts.as_slice() {
            [schema, name] => Ok(Self { schema: schema.clone(), name: name.clone() }),
            [name] => Err(Wrong::new(
                format!("{text:?} does not name its schema"),
                format!("write \"public.{name}\", or whichever schema it is in"),
            )),
            _ => Err(Wrong::new(
                format!("{text:?} has {} parts", parts.len()),
                "write \"schema.table\"; the database is named by the url",
            )),
        }
    }
}

/// The parts of a dotted name. Quotes work as in SQL; without them the case stays as it is written,
/// since the catalogue's spelling is meant.
fn identifiers(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let mut part = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (inner, after) = quoted.split_once('"')?;
                part.push_str(inner);
                match after.strip_prefix('"') {
                    Some(more) => {
                        part.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            part.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        if part.is_empty() || part.contains(['\0', '\n']) {
            return None;
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Some(parts),
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_tables_are_read_as_sql_reads_them() {
        let odd = identifiers("\"Odd.Schema\".\"a\"\"b\"");
        assert_eq!(odd, Some(vec!["Odd.Schema".into(), "a\"b".into()]));
        assert_eq!(
            identifiers("public.Documents"),
            Some(vec!["public".into(), "Documents".into()])
        );
        assert_eq!(identifiers("public."), None);
        assert_eq!(identifiers("\"open"), None);
        assert_eq!(identifiers("\"a\"b"), None);
    }

    #[test]
    fn zones_are_iana_names() {
        let read = |text: &str| Zone::read(&DeValue::String(text.to_owned().into())).is_ok();
        assert!(read("UTC") && read("Europe/Berlin") && read("America/Argentina/Buenos_Aires"));
        assert!(!read("+02:00") && !read("CEST") && !read("Europe/") && !read("Mars/Base"));
    }
}
