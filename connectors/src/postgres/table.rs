//! A relation in SQL: quoted identifiers and the fragments that every statement is made of.

use tombstream_model::{FlagKind, Key, Relation};

/// An identifier, quoted so that any name is one.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text, quoted so that any text is one literal, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// The fragments of one relation. `t` is the table's alias, `k` that of a list of keys.
pub(super) struct Table<'a> {
    relation: &'a Relation,
}

impl<'a> Table<'a> {
    pub(super) fn new(relation: &'a Relation) -> Self {
        Self { relation }
    }

    /// `"public"."documents"`.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", ident(&self.relation.schema), ident(&self.relation.table))
    }

    /// The flag's column of `alias`.
    pub(super) fn flag(&self, alias: &str) -> String {
        format!("{alias}.{}", ident(&self.relation.flag.column))
    }

    /// Whether the flag of `alias` is set. The form of the partial index's predicate.
    pub(super) fn is_set(&self, alias: &str) -> String {
        let flag = self.flag(alias);
        match self.relation.flag.kind {
            FlagKind::TimestampTz | FlagKind::Timestamp { .. } => format!("{flag} is not null"),
            FlagKind::Boolean => flag,
        }
    }

    /// The flag's value as a point in time on Postgres's clock; null where it tells none.
    pub(super) fn flag_at(&self, alias: &str) -> String {
        let flag = self.flag(alias);
        match &self.relation.flag.kind {
            FlagKind::TimestampTz => flag,
            // A zone's offset leads out of range at the ends of time, and one such row would fail its batch.
            FlagKind::Timestamp { zone } => format!(
                "(case when {flag} >= '290000-01-01'::timestamp then 'infinity'::timestamptz \
                 when {flag} < '4000-01-01 BC'::timestamp then '-infinity'::timestamptz \
                 else {flag} at time zone {} end)",
                literal(zone)
            ),
            FlagKind::Boolean => "null::timestamptz".to_owned(),
        }
    }

    /// The text of a flag, cast back to the column's type.
    pub(super) fn flag_value(&self, text: &str) -> String {
        let kind = match self.relation.flag.kind {
            FlagKind::TimestampTz => "timestamptz",
            FlagKind::Timestamp { .. } => "timestamp",
            FlagKind::Boolean => "boolean",
        };
        format!("({text})::{kind}")
    }

    /// The key of `alias` as the ledger keeps it: `array[t."id"::text]`.
    pub(super) fn key(&self, alias: &str) -> String {
        let columns: Vec<_> =
            self.key_columns(alias).map(|column| format!("{column}::text")).collect();
        format!("array[{}]", columns.join(", "))
    }

    /// The key's columns of `alias`, separated by commas.
    pub(super) fn key_list(&self, alias: &str) -> String {
        self.key_columns(alias).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn key_columns(&self, alias: &str) -> impl Iterator<Item = String> {
        self.relation.key.iter().map(move |column| format!("{alias}.{}", ident(&column.name)))
    }

    /// `, t."tenant_id"::text, …`: the columns that the templates name, behind others of a select.
    pub(super) fn template_columns(&self, alias: &str) -> String {
        let columns = self.relation.template_columns();
        columns.iter().map(|name| format!(", {alias}.{}::text", ident(name))).collect()
    }

    /// `unnest($n::text[], …) as k(k0, …)`: a list of keys, one array a column, the first being `$first`.
    pub(super) fn unnest_keys(&self, first: usize) -> String {
        let count = self.relation.key.len();
        let arrays: Vec<_> = (first..first + count).map(|n| format!("${n}::text[]")).collect();
        let names: Vec<_> = (0..count).map(|n| format!("k{n}")).collect();
        format!("unnest({}) as k({})", arrays.join(", "), names.join(", "))
    }

    /// The same, with one more text beside each key: `k.NAME`.
    pub(super) fn unnest_keys_with(&self, first: usize, name: &str) -> String {
        let count = self.relation.key.len();
        let arrays: Vec<_> = (first..=first + count).map(|n| format!("${n}::text[]")).collect();
        let names: Vec<_> = (0..count).map(|n| format!("k{n}")).collect();
        format!("unnest({}) as k({}, {name})", arrays.join(", "), names.join(", "))
    }

    /// `t."id" = k.k0::uuid and …`.
    pub(super) fn matches_keys(&self, alias: &str) -> String {
        self.matches(alias, |n| format!("k.k{n}"))
    }

    /// `t."id" = d.key[1]::uuid and …`, where `array` is a key as the ledger keeps it.
    pub(super) fn matches_array(&self, alias: &str, array: &str) -> String {
        self.matches(alias, |n| format!("({array})[{}]", n + 1))
    }

    fn matches(&self, alias: &str, value: impl Fn(usize) -> String) -> String {
        let equal = |(n, column): (usize, &tombstream_model::KeyColumn)| {
            format!("{alias}.{} = {}::{}", ident(&column.name), value(n), column.kind.sql_type())
        };
        self.relation.key.iter().enumerate().map(equal).collect::<Vec<_>>().join(" and ")
    }
}

/// The states of an open deletion, as the index `deletion_open` has them.
pub(super) const OPEN_STATES: &str = "('pending', 'hidden', 'claimed', 'parked')";

/// Ends a subquery that looks an open deletion up by its key, so that it stays one: each key is found by the index.
///
/// The statistics of an index of open rows are those of the last `analyze`, when perhaps none was open. As a join the
/// planner then takes all open ones for one, and compares each key with each of them
/// (`a_key_is_looked_up_by_the_index_whatever_the_statistics_say`).
pub(super) const BY_KEY: &str = "offset 0";

/// A length of time, to the millisecond.
pub(super) fn interval(length: std::time::Duration) -> String {
    format!("interval '{} milliseconds'", length.as_millis())
}

/// Whether a hold keeps the row of `key` (S1). `relation` and `key` are SQL: a literal, or a column.
/// One text, so that claim, finalize, takeover and sweep can't differ in what a hold is.
pub(super) fn is_held(relation: &str, key: &str) -> String {
    format!(
        "exists (select from tombstream.hold h where h.relation = {relation} and h.key = {key} \
             and h.released_at is null and (h.until is null or h.until > now()))"
    )
}

/// Keys turned on their side: one list of texts for each key column, as `unnest` takes them.
pub(super) fn key_arrays<'k>(
    relation: &Relation,
    keys: impl Iterator<Item = &'k Key>,
) -> Vec<Vec<String>> {
    let mut arrays = vec![Vec::new(); relation.key.len()];
    for key in keys {
        for (array, column) in arrays.iter_mut().zip(key.columns()) {
            array.push(column.to_owned());
        }
    }
    arrays
}
