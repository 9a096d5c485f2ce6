//! Rows, range by range of their key.

use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row as _};

use tombstream_model::{Key, ListedRow, ListingError, ListingPart, Relation, RelationId, Standing};

use super::super::guard::is_guarded;
use super::super::moved::{former_in_order, former_sql};
use super::super::pool::ledger_error;
use super::super::table::{Table, interval, is_held, literal};
use super::{PAGE, Shared};

/// A range of a relation's keys.
#[derive(Debug)]
pub struct RowPart {
    shared: Arc<Shared>,
    relation: RelationId,
    after: Option<Vec<String>>,
    upto: Option<Vec<String>>,
    has_ended: bool,
}

/// Where a row's columns begin in what is selected.
const COLUMNS: usize = 3;

/// What is selected of a row, and from what: key, standing, former columns, the columns of the templates.
/// `$1` is the settle window in seconds; `rows` the source of the rows `t`.
///
/// A row is due by the claim's own rules (`decide.rs`): grace over since the later of flag and first sight, no
/// hold, no pause, not kept back. What was flagged within the window waits.
fn select(relation: &Relation, rows: &str) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let is_set = format!("coalesce({}, false)", table.is_set("t"));
    let in_grace = match relation.hide {
        None => "1".to_owned(),
        Some(hide) => format!("case when s.since <= now() - {} then 2 else 1 end", interval(hide)),
    };
    format!(
        "select {key}, \
             case when not {is_set} then 0 \
                 when s.is_kept or s.flagged > now() - make_interval(secs => $1) then 1 \
                 when s.since > now() - {grace} then {in_grace} \
                 else 3 end as standing, \
             {former}{columns} \
         from {rows} \
         left join lateral ( \
             select d.first_seen, d.kept_back_at is not null and d.approved_at is null as kept_back, \
                 d.removed is not null or d.state = 'parked' \
                     and {claimed_flag} is distinct from {flag} as outlived \
             from tombstream.deletion d where {is_set} and d.relation = {name} and d.key = {key} \
                 and d.state in ('pending', 'hidden', 'claimed', 'parked') \
         ) d on {is_set} \
         left join lateral ( \
             select greatest({flag_at}, coalesce(case when not d.outlived then d.first_seen end, \
                     case when not (select {vouched}) or {flag_at} is null then now() end)) as since, \
                 coalesce({flag_at}, d.first_seen, '-infinity') as flagged, \
                 {held} or not d.outlived and d.kept_back \
                     or exists (select from tombstream.pause p where p.relation = {name}) as is_kept \
             where {is_set} \
         ) s on {is_set}",
        key = table.key("t"),
        grace = interval(relation.grace),
        former = former_sql(relation, &table.key("t")),
        columns = table.template_columns("t"),
        claimed_flag = table.flag_value("d.flag"),
        flag = table.flag("t"),
        flag_at = table.flag_at("t"),
        vouched = is_guarded(relation, "before"),
        held = is_held(&name, &table.key("t")),
    )
}

/// A page of a range; `$2` is the limit, then the columns of the bounds that there are.
fn page_sql(relation: &Relation, has_after: bool, has_upto: bool) -> String {
    let table = Table::new(relation);
    let list = table.key_list("t");
    let mut next = 3;
    let mut bound = |than: &str| {
        let columns: Vec<_> = relation
            .key
            .iter()
            .map(|column| {
                next += 1;
                format!("${}::text::{}", next - 1, column.kind.sql_type())
            })
            .collect();
        format!("({list}) {than} ({})", columns.join(", "))
    };
    let mut bounds = Vec::new();
    if has_after {
        bounds.push(bound(">"));
    }
    if has_upto {
        bounds.push(bound("<="));
    }
    let within = match bounds.is_empty() {
        true => String::new(),
        false => format!(" where {}", bounds.join(" and ")),
    };
    let rows = format!(
        "(select t.* from {name} t{within} order by {list} limit $2) t",
        name = table.name()
    );
    format!("{} order by {list}", select(relation, &rows))
}

/// The rows of some keys.
pub(super) fn by_key_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let rows = format!(
        "(select t.* from {keys} join {name} t on {matches}) t",
        keys = table.unnest_keys(2),
        name = table.name(),
        matches = table.matches_keys("t"),
    );
    select(relation, &rows)
}

/// Some rows from all over the table, in the order of their keys: blocks at random. `$2` is their number.
fn sample_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = table.name();
    let list = table.key_list("t");
    let size = format!(
        "(select greatest(sum(greatest(c.reltuples, 0)), sum(pg_relation_size(c.oid)) / 400, 1) \
             from pg_catalog.pg_class c where c.oid = {oid}::regclass \
                 or c.oid in (select relid from pg_catalog.pg_partition_tree({oid}::regclass)))",
        oid = literal(&name),
    );
    let rows = format!(
        "(select t.* from {name} t tablesample system (least(100, 100 * $2::bigint / {size})) \
             limit 20 * $2::bigint) t"
    );
    format!("{} order by {list}", select(relation, &rows))
}

pub(super) fn read(
    shared: &Shared,
    relation: RelationId,
    row: &PgRow,
) -> Result<ListedRow, sqlx::Error> {
    let standing: i32 = row.try_get(1)?;
    let names = shared.relation(relation).template_columns();
    let columns = (COLUMNS..COLUMNS + names.len()).map(|place| row.try_get(place));
    Ok(ListedRow {
        relation,
        key: Key::from_postgres(row.try_get::<Vec<String>, _>(0)?),
        standing: match standing {
            0 => Standing::Alive,
            1 => Standing::Waiting,
            2 => Standing::HideDue,
            _ => Standing::Due,
        },
        columns: columns.collect::<Result<_, _>>()?,
        former: former_in_order(&names, row, 2)?,
    })
}

pub(super) async fn sample(
    shared: &Arc<Shared>,
    relation: RelationId,
    count: usize,
) -> Result<Vec<ListedRow>, sqlx::Error> {
    let mut session = shared.statements.session().await?;
    let sql = sample_sql(shared.relation(relation));
    let query = shared.statements.query(AssertSqlSafe(sql));
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let rows = query.bind(0_f64).bind(count).fetch_all(&mut *session).await?;
    session.end().await?;
    rows.iter().map(|row| read(shared, relation, row)).collect()
}

/// Ranges of about as many rows each, by a sample of them. Where there are few, one.
pub(super) async fn parts(
    shared: &Arc<Shared>,
    relation: RelationId,
    count: usize,
) -> Result<Vec<RowPart>, sqlx::Error> {
    const SAMPLE: usize = 2_000;
    let sampled = match count {
        0 | 1 => Vec::new(),
        _ => sample(shared, relation, SAMPLE).await?,
    };
    let count = count.min(sampled.len() / 100).max(1);
    let bound = |nth: usize| {
        let row = &sampled[nth * sampled.len() / count];
        row.key.columns().map(str::to_owned).collect::<Vec<_>>()
    };
    let bounds: Vec<Vec<String>> = (1..count).map(bound).collect();
    let mut parts = Vec::with_capacity(count);
    let mut after = None;
    for upto in bounds.into_iter().map(Some).chain([None]) {
        parts.push(RowPart {
            shared: Arc::clone(shared),
            relation,
            after: std::mem::replace(&mut after, upto.clone()),
            upto,
            has_ended: false,
        });
    }
    Ok(parts)
}

impl RowPart {
    async fn page(&self) -> Result<Vec<ListedRow>, sqlx::Error> {
        let relation = self.shared.relation(self.relation);
        let sql = page_sql(relation, self.after.is_some(), self.upto.is_some());
        let mut session = self.shared.statements.session().await?;
        let query = self.shared.statements.query(AssertSqlSafe(sql)).bind(0_f64).bind(PAGE);
        let bounds = self.after.iter().chain(&self.upto).flatten();
        let query = bounds.fold(query, |query, column| query.bind(column.clone()));
        let rows = query.fetch_all(&mut *session).await?;
        session.end().await?;
        rows.iter().map(|row| read(&self.shared, self.relation, row)).collect()
    }
}

impl ListingPart for RowPart {
    type Item = ListedRow;

    async fn next(&mut self) -> Result<Option<Vec<ListedRow>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let page = self.page().await.map_err(ledger_error)?;
        // A statement that succeeds is whole: a page that is not full is the last one.
        self.has_ended = i64::try_from(page.len()).is_ok_and(|rows| rows < PAGE);
        if let Some(last) = page.last() {
            self.after = Some(last.key.columns().map(str::to_owned).collect());
        }
        Ok(Some(page))
    }
}
