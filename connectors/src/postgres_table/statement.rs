//! The two statements, as texts: how many rows each address means, and their delete. Pure.

use super::catalogue::Column;

/// The statements for addresses over the same columns. Each takes one array of texts for each column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statements {
    /// Gives `n` (from 1), whether the values are spelled as Postgres spells them, and how many rows there
    /// are: none, one, or two for any more.
    pub(super) count: String,
    /// Gives `n` and how many rows went, where any did.
    pub(super) delete: String,
}

/// An identifier, quoted so that any name is one.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Statements {
    pub(super) fn new(schema: &str, table: &str, many: bool, columns: &[Column]) -> Self {
        let table = format!("{}.{}", ident(schema), ident(table));
        let each = || columns.iter().enumerate();
        let joined = |parts: Vec<String>, by: &str| parts.join(by);
        let arrays = joined(each().map(|(n, _)| format!("${}::text[]", n + 1)).collect(), ", ");
        let names = joined(each().map(|(n, _)| format!("k{n}")).collect(), ", ");
        let keys =
            format!("with k as (select * from unnest({arrays}) with ordinality as k({names}, n))");
        // Two spellings of one value would be two addresses of one row (S8).
        let exact = each().map(|(n, it)| format!("k.k{n}::{kind}::text = k.k{n}", kind = it.kind));
        let exact = joined(exact.collect(), " and ");
        let matches = |alias: &str| {
            let one = |(n, it): (usize, &Column)| {
                format!("{alias}.{} = k.k{n}::{}", ident(&it.name), it.kind)
            };
            joined(each().map(one).collect(), " and ")
        };
        let rows = |alias: &str| {
            let matches = matches(alias);
            format!(
                "(select count(*) from (select from {table} {alias} where {matches} limit 2) few)"
            )
        };
        // Counted in the delete's own snapshot: a second row may have come since the first look.
        let only = if many { String::new() } else { format!(" and {} = 1", rows("o")) };
        Self {
            count: format!("{keys} select k.n, {exact}, {} from k order by k.n", rows("t")),
            delete: format!(
                "{keys}, gone as (delete from {table} t using k where {}{only} returning k.n) \
                 select n, count(*) from gone group by n",
                matches("t")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_quoted_and_nothing_else_is_in_the_text() {
        let column = Column { name: "a\"; drop".to_owned(), kind: "uuid" };
        let made = Statements::new("s\"", "t.u", true, &[column]);
        let quoted = made
            .delete
            .contains("\"s\"\"\".\"t.u\" t using k where t.\"a\"\"; drop\" = k.k0::uuid");
        assert!(quoted && !made.delete.contains("= 1"), "{}", made.delete);
        assert!(made.count.contains("k.k0::uuid::text = k.k0"), "{}", made.count);
    }
}
