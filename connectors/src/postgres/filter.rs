//! A condition that an operator gives, such as `tenant_id = 7 and name like 'tmp/%'`, taken for what it says
//! and nothing else.
//!
//! The text never reaches the database. It is parsed, only what is listed here is understood, and what was
//! understood is written anew with every name and value quoted: a comment, a second statement or a quoting trick
//! has no way to differ from what was judged. Functions are those of a list, none of them volatile
//! (`every_function_of_a_filter_is_there_and_not_volatile`), called by their schema; subqueries, parameters and
//! everything else that looks beyond the row are refused. What Postgres has to say (types, columns) is asked by
//! `explain`, which runs nothing, in a read-only transaction whose search path is `pg_catalog`.
//!
//! Owned here: the grammar and its spelling. Left to others: when a filter is applied (`backfill.rs`).

use sqlparser::ast::{
    BinaryOperator, CaseWhen, CastKind, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArguments, Ident, InTarget, ObjectNamePart, UnaryOperator, Value,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Token, Tokenizer};

use super::table::{ident, literal};

/// Longest text.
const TEXT_MAX: usize = 4_000;
/// Most words and signs. A chain of operators is as deep as it is long, and is walked.
const TOKENS_MAX: usize = 500;
/// Deepest nesting that is understood.
const DEPTH_MAX: usize = 100;

/// Functions of `pg_catalog` that look at nothing but their arguments (and the session's time zone, which is UTC).
pub const FUNCTIONS: [&str; 30] = [
    "abs",
    "btrim",
    "ceil",
    "ceiling",
    "char_length",
    "date_part",
    "date_trunc",
    "floor",
    "jsonb_typeof",
    "left",
    "length",
    "lower",
    "ltrim",
    "md5",
    "mod",
    "octet_length",
    "replace",
    "right",
    "round",
    "rtrim",
    "sign",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "timezone",
    "to_timestamp",
    "trunc",
    "upper",
    "uuid_hash",
];
/// What looks like a function and is syntax.
const SYNTAX: [&str; 4] = ["coalesce", "greatest", "least", "nullif"];
/// Types that may be cast to, as they may be written and as they are.
const TYPES: [(&str, &str); 20] = [
    ("bigint", "int8"),
    ("bool", "bool"),
    ("boolean", "bool"),
    ("date", "date"),
    ("double precision", "float8"),
    ("float8", "float8"),
    ("int", "int4"),
    ("int4", "int4"),
    ("int8", "int8"),
    ("integer", "int4"),
    ("jsonb", "jsonb"),
    ("numeric", "numeric"),
    ("smallint", "int2"),
    ("text", "text"),
    ("timestamp", "timestamp"),
    ("timestamp with time zone", "timestamptz"),
    ("timestamp without time zone", "timestamp"),
    ("timestamptz", "timestamptz"),
    ("uuid", "uuid"),
    ("varchar", "text"),
];

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the filter {0}")]
pub struct FilterError(String);

type Said = Result<String, FilterError>;

fn refused<T>(why: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError(why.into()))
}

/// What `text` says of one row, as SQL over the table's alias `t`. `columns` are those that the table has.
///
/// Invariant (S1): what is returned reads the row and nothing else, and changes nothing;
/// `what_is_no_filter_is_refused`.
pub(super) fn filter_sql(text: &str, columns: &[String]) -> Said {
    if text.len() > TEXT_MAX {
        return refused(format!("is longer than {TEXT_MAX} bytes"));
    }
    let syntax = |error: ParserError| FilterError(format!("can't be read: {error}"));
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, text).tokenize();
    let tokens = tokens.map_err(|error| syntax(error.into()))?;
    if tokens.iter().filter(|token| !matches!(token, Token::Whitespace(_))).count() > TOKENS_MAX {
        return refused(format!("has more than {TOKENS_MAX} words and signs"));
    }
    let mut parser = Parser::new(&dialect).with_recursion_limit(DEPTH_MAX).with_tokens(tokens);
    let expression = parser.parse_expr().map_err(syntax)?;
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return refused(format!("is one condition, and ends before `{rest}`"));
    }
    Spelling { columns }.expression(&expression, 0)
}

struct Spelling<'a> {
    columns: &'a [String],
}

impl Spelling<'_> {
    fn expression(&self, expression: &Expr, depth: usize) -> Said {
        if depth > DEPTH_MAX {
            return refused(format!("is nested deeper than {DEPTH_MAX}"));
        }
        let of = |inner: &Expr| self.expression(inner, depth + 1);
        let list = |items: &[Expr]| -> Said {
            Ok(items.iter().map(of).collect::<Result<Vec<_>, _>>()?.join(", "))
        };
        let is = |inner: &Expr, what: &str| Ok(format!("({} is {what})", of(inner)?));
        let not = |negated: bool| if negated { "not " } else { "" };
        match expression {
            Expr::Identifier(name) => self.column(name),
            Expr::Nested(inner) => of(inner),
            Expr::Value(value) => constant(&value.value),
            Expr::IsNull(inner) => is(inner, "null"),
            Expr::IsNotNull(inner) => is(inner, "not null"),
            Expr::IsTrue(inner) => is(inner, "true"),
            Expr::IsNotTrue(inner) => is(inner, "not true"),
            Expr::IsFalse(inner) => is(inner, "false"),
            Expr::IsNotFalse(inner) => is(inner, "not false"),
            Expr::IsUnknown(inner) => is(inner, "unknown"),
            Expr::IsNotUnknown(inner) => is(inner, "not unknown"),
            Expr::IsDistinctFrom(one, other) => {
                Ok(format!("({} is distinct from {})", of(one)?, of(other)?))
            }
            Expr::IsNotDistinctFrom(one, other) => {
                Ok(format!("({} is not distinct from {})", of(one)?, of(other)?))
            }
            Expr::Between { expr, negated, low, high } => {
                let (low, high) = (of(low)?, of(high)?);
                Ok(format!("({} {}between {low} and {high})", of(expr)?, not(*negated)))
            }
            Expr::In { expr, target: InTarget::List(items), negated, global: false } => {
                Ok(format!("({} {}in ({}))", of(expr)?, not(*negated), list(items)?))
            }
            Expr::Like { negated, any: false, expr, pattern, escape_char: None } => {
                Ok(format!("({} {}like {})", of(expr)?, not(*negated), of(pattern)?))
            }
            Expr::ILike { negated, any: false, expr, pattern, escape_char: None } => {
                Ok(format!("({} {}ilike {})", of(expr)?, not(*negated), of(pattern)?))
            }
            Expr::BinaryOp { left, op, right } => {
                Ok(format!("({} {} {})", of(left)?, operator(op)?, of(right)?))
            }
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => Ok(format!("(not {})", of(expr)?)),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr } => Ok(format!("(- {})", of(expr)?)),
            Expr::UnaryOp { op: UnaryOperator::Plus, expr } => of(expr),
            Expr::Cast {
                kind: CastKind::Cast | CastKind::DoubleColon,
                expr,
                data_type,
                format: None,
            } => cast(of(expr)?, &data_type.to_string()),
            Expr::TypedString(typed) if !typed.uses_odbc_syntax => {
                cast(constant(&typed.value.value)?, &typed.data_type.to_string())
            }
            Expr::AtTimeZone { timestamp, time_zone } => {
                Ok(format!("pg_catalog.timezone({}, {})", of(time_zone)?, of(timestamp)?))
            }
            Expr::Extract { field, expr, .. } => {
                let field = literal(&field.to_string().to_lowercase());
                Ok(format!("pg_catalog.date_part({field}, {})", of(expr)?))
            }
            Expr::Position { expr, r#in } => {
                Ok(format!("pg_catalog.strpos({}, {})", of(r#in)?, of(expr)?))
            }
            Expr::Substring { expr, substring_from: Some(from), substring_for, .. } => {
                let length = substring_for.as_deref().map(of).transpose()?;
                let length = length.map(|length| format!(", {length}")).unwrap_or_default();
                Ok(format!("pg_catalog.substr({}, {}{length})", of(expr)?, of(from)?))
            }
            Expr::Trim { trim_where: None, trim_what: None, expr, trim_characters: None } => {
                Ok(format!("pg_catalog.btrim({})", of(expr)?))
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                let mut sql = "(case".to_owned();
                if let Some(operand) = operand {
                    sql += &format!(" {}", of(operand)?);
                }
                for CaseWhen { condition, result } in conditions {
                    sql += &format!(" when {} then {}", of(condition)?, of(result)?);
                }
                if let Some(result) = else_result {
                    sql += &format!(" else {}", of(result)?);
                }
                Ok(sql + " end)")
            }
            Expr::Function(function) => self.function(function, depth),
            Expr::CompoundIdentifier(_) => {
                refused(format!("names its columns bare: `{expression}`"))
            }
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::In { .. } => {
                refused("looks at one row: no subqueries")
            }
            // Much else can be written, and most of it is of other databases.
            _ => refused(format!("may not use `{expression}`")),
        }
    }

    /// Bare names are folded as Postgres folds them.
    fn column(&self, name: &Ident) -> Said {
        let column = match name.quote_style {
            None => name.value.to_lowercase(),
            Some('"') => name.value.clone(),
            Some(_) => return refused(format!("may not use `{name}`")),
        };
        if !self.columns.contains(&column) {
            return refused(format!("names a column that the table does not have: `{column}`"));
        }
        Ok(format!("t.{}", ident(&column)))
    }

    fn function(&self, function: &Function, depth: usize) -> Said {
        let called = match function.name.0.as_slice() {
            [ObjectNamePart::Identifier(name)] if name.quote_style.is_none() => {
                name.value.to_lowercase()
            }
            _ => return refused(format!("calls its functions bare: `{}`", function.name)),
        };
        let schema = match &*called {
            name if SYNTAX.contains(&name) => "",
            name if FUNCTIONS.contains(&name) => "pg_catalog.",
            _ => {
                return refused(format!(
                    "may not call `{called}`, but {} and {}",
                    SYNTAX.join(", "),
                    FUNCTIONS.join(", ")
                ));
            }
        };
        let is_plain = !function.uses_odbc_syntax
            && matches!(function.parameters, FunctionArguments::None)
            && function.within_group.is_empty()
            && function.filter.is_none()
            && function.null_treatment.is_none()
            && function.over.is_none();
        let FunctionArguments::List(given) = &function.args else {
            return refused(format!("may not use `{function}`"));
        };
        if !is_plain || given.duplicate_treatment.is_some() || !given.clauses.is_empty() {
            return refused(format!("calls a function with arguments alone: `{function}`"));
        }
        let arguments = given.args.iter().map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => {
                self.expression(expression, depth + 1)
            }
            FunctionArg::Unnamed(_) | FunctionArg::Named { .. } | FunctionArg::ExprNamed { .. } => {
                refused(format!("may not use `{argument}` as an argument"))
            }
        });
        Ok(format!("{schema}{called}({})", arguments.collect::<Result<Vec<_>, _>>()?.join(", ")))
    }
}

fn cast(sql: String, to: &str) -> Said {
    let to = to.to_lowercase();
    match TYPES.iter().find(|(written, _)| *written == to) {
        Some((_, kind)) => Ok(format!("({sql})::pg_catalog.{kind}")),
        None => refused(format!("may not cast to `{to}`")),
    }
}

fn constant(value: &Value) -> Said {
    match value {
        Value::Number(digits, _)
            if digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b)) =>
        {
            Ok(format!("({digits})"))
        }
        Value::SingleQuotedString(text) if !text.contains('\0') => Ok(literal(text)),
        Value::Boolean(value) => Ok(value.to_string()),
        Value::Null => Ok("null".to_owned()),
        _ => refused(format!("may not use the constant `{value}`")),
    }
}

fn operator(op: &BinaryOperator) -> Result<&'static str, FilterError> {
    Ok(match op {
        BinaryOperator::And => "and",
        BinaryOperator::Or => "or",
        BinaryOperator::Eq => "=",
        BinaryOperator::NotEq => "<>",
        BinaryOperator::Lt => "<",
        BinaryOperator::LtEq => "<=",
        BinaryOperator::Gt => ">",
        BinaryOperator::GtEq => ">=",
        BinaryOperator::Plus => "+",
        BinaryOperator::Minus => "-",
        BinaryOperator::Multiply => "*",
        BinaryOperator::Divide => "/",
        BinaryOperator::Modulo => "%",
        BinaryOperator::StringConcat => "||",
        BinaryOperator::PGRegexMatch => "~",
        BinaryOperator::PGRegexIMatch => "~*",
        BinaryOperator::PGRegexNotMatch => "!~",
        BinaryOperator::PGRegexNotIMatch => "!~*",
        BinaryOperator::Arrow => "->",
        BinaryOperator::LongArrow => "->>",
        BinaryOperator::HashArrow => "#>",
        BinaryOperator::HashLongArrow => "#>>",
        BinaryOperator::AtArrow => "@>",
        BinaryOperator::ArrowAt => "<@",
        other => return refused(format!("may not use the operator `{other}`")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> Said {
        let columns = ["id", "name", "tenant_id", "data", "Odd \" name", "deleted_at", "t"];
        filter_sql(text, &columns.map(str::to_owned))
    }

    #[test]
    fn a_filter_is_written_anew_with_everything_quoted() {
        for (text, written) in [
            ("tenant_id = 7", r#"(t."tenant_id" = (7))"#),
            ("TENANT_ID=7 /* or true */", r#"(t."tenant_id" = (7))"#),
            ("name = 'it''s -- a\\name'", r#"(t."name" = E'it''s -- a\\name')"#),
            (r#""Odd "" name" is not null"#, r#"(t."Odd "" name" is not null)"#),
            (
                "name like 'tmp/%' or not (tenant_id in (1, 2) and data ->> 'kind' <> 'x')",
                r#"((t."name" like 'tmp/%') or (not ((t."tenant_id" in ((1), (2))) and ((t."data" -> 'kind') <> 'x'))))"#,
            ),
            ("lower(name) ~ '^a'", r#"(pg_catalog.lower(t."name") ~ '^a')"#),
            ("coalesce(name, '') = ''", r#"(coalesce(t."name", '') = '')"#),
            ("id::text = 'x'", r#"((t."id")::pg_catalog.text = 'x')"#),
            (
                "deleted_at between timestamptz '2026-01-01' and '2026-02-01'",
                r#"(t."deleted_at" between ('2026-01-01')::pg_catalog.timestamptz and '2026-02-01')"#,
            ),
            ("tenant_id % 4 = -1", r#"((t."tenant_id" % (4)) = (- (1)))"#),
            (
                "case when tenant_id > 1 then true else name is null end",
                r#"(case when (t."tenant_id" > (1)) then true else (t."name" is null) end)"#,
            ),
            (
                "extract(year from deleted_at) < 2020",
                r#"(pg_catalog.date_part('year', t."deleted_at") < (2020))"#,
            ),
        ] {
            let written = written.replace("-> 'kind'", "->> 'kind'");
            assert_eq!(sql(text).as_deref(), Ok(&*written), "{text}");
        }
    }

    /// Each with a word of why.
    #[test]
    fn what_is_no_filter_is_refused() {
        let long = format!("name = '{}'", "x".repeat(TEXT_MAX));
        let deep = format!("{}true{}", "(".repeat(500), ")".repeat(500));
        let chain = format!("tenant_id = 1{}", "+1".repeat(240));
        let many = format!("tenant_id = 1{}", "+1".repeat(1_500));
        for (text, why) in [
            ("", "can't be read"),
            ("true; drop table documents", "ends before `;`"),
            ("true) or (true", "ends before `)`"),
            ("true -- \n; delete from documents", "ends before `;`"),
            ("true union select 1", "ends before `union`"),
            ("true order by 1", "ends before `order`"),
            ("true limit 1", "ends before `limit`"),
            ("true for update", "ends before `for`"),
            ("(select true)", "no subqueries"),
            ("exists (select from tombstream.hold)", ""),
            ("id in (select id from users)", "no subqueries"),
            ("id = any(select id from users)", ""),
            ("pg_sleep(10) is null", "may not call `pg_sleep`"),
            ("pg_catalog.pg_sleep(10) is null", "calls its functions bare"),
            ("public.lower(name) = 'a'", "calls its functions bare"),
            ("\"lower\"(name) = 'a'", "calls its functions bare"),
            ("nextval('s') > 0", "may not call `nextval`"),
            ("random() < 0.5", "may not call `random`"),
            ("now() > deleted_at", "may not call `now`"),
            ("current_timestamp > deleted_at", "may not"),
            ("current_user = 'x'", "may not"),
            ("pg_terminate_backend(1)", "may not call"),
            ("lo_export(1, '/tmp/x') = 1", "may not call"),
            ("pg_read_file('/etc/passwd') = ''", "may not call"),
            ("query_to_xml('delete from documents', true, true, '') is null", "may not call"),
            ("set_config('role', 'postgres', false) = ''", "may not call"),
            ("dblink_exec('', 'drop table documents') = ''", "may not call"),
            ("count(*) > 1", "may not call `count`"),
            ("lower(name) over () = ''", "arguments alone"),
            ("lower(distinct name) = ''", "arguments alone"),
            ("lower(name) filter (where true) = ''", "arguments alone"),
            ("name = $1", "constant"),
            ("name = E'\\x27'", "constant"),
            ("name = U&'\\0027'", "constant"),
            ("name = $$x$$", "constant"),
            ("name = X'00'", "constant"),
            ("name = 'a\0b'", "constant"),
            ("name::regclass = 'x'", "may not cast to `regclass`"),
            ("name::public.evil = 'x'", "may not cast to"),
            ("name operator(public.=) 'x'", ""),
            ("t.name = 'x'", "names its columns bare"),
            ("documents.name = 'x'", "names its columns bare"),
            ("ctid = '(0,1)'", "does not have: `ctid`"),
            ("tableoid = 1", "does not have"),
            ("nothing = 1", "does not have: `nothing`"),
            ("\"Name\" = 'x'", "does not have: `Name`"),
            ("(id, name) = (1, 2)", "may not use"),
            ("array[name] = array['x']", "may not use"),
            (&long, "is longer"),
            (&deep, ""),
            (&chain, "is nested deeper"),
            (&many, "has more than"),
        ] {
            match sql(text) {
                Ok(written) => panic!("{text} was taken for {written}"),
                Err(error) => assert!(error.to_string().contains(why), "{text}: {error}"),
            }
        }
    }
}
