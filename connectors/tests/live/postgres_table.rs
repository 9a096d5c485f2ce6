//! The sink over a table of another database, on a real Postgres.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "postgres_table/proxy.rs"]
mod proxy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proxy::Proxy;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _};
use tombstream_connectors::Secret;
use tombstream_connectors::postgres_table::{
    PostgresTableConfig, PostgresTableListing, PostgresTableSink,
};
use tombstream_model::{
    Address, DeletionId, Fence, Listed, Listing as _, ListingError, ListingPart as _, Outcome,
    Presence, Sink, SinkError, StoreId, Target, Verdict,
};
use tombstream_testing::conformance::sink::{self as conformance, SinkFixture};

/// A database of a test's own, as it is looked at past the sink.
struct Database {
    pool: PgPool,
    url: String,
    name: String,
    admin: PgPool,
}

const COPIES: &str = "create table copies (tenant bigint not null, id text not null, body text, \
                      primary key (tenant, id))";

impl Database {
    async fn new(tables: &str) -> Self {
        let base = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL").expect(
            "TOMBSTREAM_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`",
        );
        let open = async |url: &str| {
            PgPoolOptions::new().max_connections(4).connect(url).await.expect("the server answers")
        };
        let admin = open(&base).await;
        let name = format!("tombstream_test_{}", uuid::Uuid::new_v4().simple());
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let (server, _) = base.rsplit_once('/').expect("the url names a database");
        let url = format!("{server}/{name}");
        let database = Self { pool: open(&url).await, url, name, admin };
        database.run(tables).await;
        database
    }

    async fn run(&self, sql: &str) {
        self.pool.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    async fn count(&self, what: &str) -> i64 {
        let sql = AssertSqlSafe(format!("select count(*) from {what}"));
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    fn config(&self) -> PostgresTableConfig {
        PostgresTableConfig::new(Secret::new(self.url.as_str()), "public", "copies")
    }

    fn sink(&self) -> PostgresTableSink {
        PostgresTableSink::new(self.config()).unwrap()
    }

    /// The same, as a role of its own with these grants; its name is in place of `$role`.
    async fn as_role(&self, grants: &str) -> (PostgresTableConfig, String) {
        let role = format!("role_{}", uuid::Uuid::new_v4().simple());
        self.run(&format!("create role {role} login password 'hunter2'")).await;
        self.run(&grants.replace("$role", &role)).await;
        let (_, place) = self.url.rsplit_once('@').expect("the url names a user");
        let url = format!("postgresql://{role}:hunter2@{place}");
        (PostgresTableConfig::new(Secret::new(url), "public", "copies"), role)
    }

    async fn drop_role(&self, role: &str) {
        self.run(&format!("drop owned by {role}; drop role {role}")).await;
    }

    async fn remove(self) {
        self.pool.close().await;
        let sql = format!("drop database {} with (force)", self.name);
        self.admin.execute(AssertSqlSafe(sql)).await.unwrap();
    }
}

fn target(columns: &[(&str, &str)]) -> Target {
    let columns: BTreeMap<String, String> =
        columns.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Target {
        deletion: DeletionId(1),
        store: StoreId(0),
        address: Address::Row { table: Arc::from("public.copies"), columns },
        fence: Fence { token: 1, until: Instant::now() + Duration::from_secs(300) },
        lsn: None,
    }
}

fn copy(tenant: i64, id: &str) -> Target {
    target(&[("id", id), ("tenant", &tenant.to_string())])
}

async fn one(sink: &PostgresTableSink, target: Target) -> (Verdict, String) {
    let outcome = sink.destroy(&[target]).await.unwrap().remove(0);
    (outcome.verdict, outcome.said.into_owned())
}

fn verdicts(outcomes: &[Outcome]) -> Vec<Verdict> {
    outcomes.iter().map(|outcome| outcome.verdict).collect()
}

struct Rows {
    database: Database,
    sink: PostgresTableSink,
    /// How many rows each address has.
    many: usize,
}

impl SinkFixture for Rows {
    type Sink = PostgresTableSink;

    fn sink(&self) -> &Self::Sink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        for part in 0..self.many {
            let sql = "insert into copies (tenant, id, body) values (7, $1, $2)";
            let insert = sqlx::query(sql).bind(name).bind(format!("part {part}"));
            insert.execute(&self.database.pool).await.unwrap();
        }
        copy(7, name)
    }

    async fn never(&self, name: &str) -> Target {
        copy(7, name)
    }

    async fn exists(&self, target: &Target) -> bool {
        let Address::Row { columns, .. } = &target.address else { panic!("{target:?}") };
        let sql = "select exists (select from copies where tenant = 7 and id = $1)";
        sqlx::query_scalar(sql).bind(&columns["id"]).fetch_one(&self.database.pool).await.unwrap()
    }
}

#[tokio::test]
async fn rows_conform() {
    let database = Database::new(COPIES).await;
    let fixture = Rows { sink: database.sink(), database, many: 1 };
    conformance::all(&fixture).await;
    fixture.database.remove().await;
}

#[tokio::test]
async fn several_rows_of_one_address_conform() {
    let table =
        "create table copies (tenant bigint, id text, body text); create index on copies (id)";
    let database = Database::new(table).await;
    let config = PostgresTableConfig { many: true, ..database.config() };
    let sink = PostgresTableSink::new(config).unwrap();
    let fixture = Rows { sink, database, many: 3 };
    conformance::all(&fixture).await;
    fixture.database.remove().await;
}

#[tokio::test]
async fn rows_of_a_partitioned_table_conform() {
    let table = "create table copies (tenant bigint, id text, body text) partition by hash (id); \
                 create table copies_0 partition of copies for values with (modulus 2, remainder 0); \
                 create table copies_1 partition of copies for values with (modulus 2, remainder 1)";
    let database = Database::new(table).await;
    let fixture = Rows { sink: database.sink(), database, many: 1 };
    conformance::all(&fixture).await;
    fixture.database.remove().await;
}

/// S8: byte for byte, neither a pattern nor an identifier nor anything that is quoted.
#[tokio::test]
async fn exactly_the_rows_asked_for_go() {
    let database = Database::new(COPIES).await;
    let odd = [
        "a", "a ", " a", "A", "á", "a%", "a_", "a'b", "a\"b", "a\\b", "{a}", "a,b", "null", "\n",
        "🪦",
    ];
    let fill =
        "insert into copies select t, id from unnest($1::text[]) id, generate_series(1, 2) t";
    sqlx::query(fill).bind(&odd[..]).execute(&database.pool).await.unwrap();
    let batch: Vec<Target> = odd.iter().map(|id| copy(1, id)).collect();
    let outcomes = database.sink().destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), vec![Verdict::Deleted; odd.len()]);
    assert_eq!(outcomes[0].said, "1 row deleted");
    assert_eq!(database.count("copies where tenant = 1").await, 0);
    assert_eq!(database.count("copies where tenant = 2").await, odd.len() as i64);
    database.remove().await;
}

#[tokio::test]
async fn an_address_that_is_not_this_tables_is_never_sent() {
    let database = Database::new(COPIES).await;
    database.run("insert into copies values (1, 'a')").await;
    let sink = database.sink();
    let mut other = copy(1, "a");
    let Address::Row { table, .. } = &mut other.address else { unreachable!() };
    *table = Arc::from("public.others");
    let mut object = copy(1, "a");
    object.address = Address::Object { bucket: "copies".into(), key: "a".to_owned() };
    let outcomes = sink.destroy(&[other, target(&[]), object]).await.unwrap();
    for outcome in &outcomes {
        assert_eq!(outcome.verdict, Verdict::Refused);
        assert!(outcome.said.starts_with("not sent: "), "{}", outcome.said);
    }
    assert_eq!(database.count("copies").await, 1);
    database.remove().await;
}

/// S8: two spellings of one value would be two addresses of one row.
#[tokio::test]
async fn a_value_that_another_spelling_has_is_refused() {
    let database = Database::new(
        "create table copies (tenant bigint, id uuid); \
         insert into copies values (1, '6f1d2e3c-0000-4000-8000-000000000001')",
    )
    .await;
    let sink = database.sink();
    let row = |tenant: &str, id: &str| target(&[("tenant", tenant), ("id", id)]);
    let id = "6f1d2e3c-0000-4000-8000-000000000001";
    for spelled in [row("01", id), row(" 1", id), row("+1", id), row("1", &id.to_uppercase())] {
        let (verdict, said) = one(&sink, spelled.clone()).await;
        assert_eq!(verdict, Verdict::Refused, "{said}");
        assert!(said.contains("not spelled as its column's type"), "{said}");
        assert_eq!(sink.look(&[spelled]).await.unwrap(), [Presence::Unknown]);
    }
    // One that is no value of the type at all refuses itself alone.
    let outcomes = sink.destroy(&[row("1", "no uuid"), row("x", id), row("1", id)]).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Refused, Verdict::Refused, Verdict::Deleted]);
    assert!(outcomes[0].said.contains("22P02") && !outcomes[0].said.contains("no uuid"));
    database.remove().await;
}

#[tokio::test]
async fn a_column_that_does_not_compare_exactly_is_refused() {
    let database = Database::new(
        "create collation folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         create table copies (n numeric, f float8, padded char(5), folded text collate folded, at date); \
         insert into copies values (1, 1, 'a', 'a', '2026-01-01')",
    )
    .await;
    let sink = database.sink();
    for (column, value) in
        [("n", "1.0"), ("f", "1"), ("padded", "a"), ("folded", "A"), ("at", "2026-01-01")]
    {
        let error = sink.destroy(&[target(&[(column, value)])]).await.unwrap_err();
        assert!(matches!(&error, SinkError::Denied(said) if said.contains(column)), "{error}");
    }
    assert_eq!(database.count("copies").await, 1);
    let error = sink.destroy(&[target(&[("gone", "1")])]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Missing(said) if said.contains("column gone")), "{error}");
    database.remove().await;
}

/// Where one row is expected, two are a mistake of the template or of the table.
#[tokio::test]
async fn more_rows_than_one_stay_unless_many_is_declared() {
    let database = Database::new(
        "create table copies (tenant bigint, id text, part int); \
         insert into copies values (1, 'a', 1), (1, 'a', 2), (1, 'b', 1)",
    )
    .await;
    let batch = [copy(1, "a"), copy(1, "b"), copy(1, "c")];
    let outcomes = database.sink().destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Refused, Verdict::Deleted, Verdict::Absent]);
    assert!(outcomes[0].said.contains("several rows"), "{}", outcomes[0].said);
    assert_eq!(database.count("copies").await, 2);
    let many = PostgresTableConfig { many: true, ..database.config() };
    let outcomes = PostgresTableSink::new(many).unwrap().destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Deleted, Verdict::Absent, Verdict::Absent]);
    assert_eq!(outcomes[0].said, "2 rows deleted");
    database.remove().await;
}

/// S6: what says that it deleted, and did not.
#[tokio::test]
async fn a_row_that_a_trigger_keeps_is_refused() {
    let database = Database::new(COPIES).await;
    database
        .run(
            "insert into copies select 1, id from unnest(array['keep', 'back', 'raise', 'go']) id; \
             create function keep() returns trigger language plpgsql as $$ begin \
                 if old.id = 'keep' then return null; end if; \
                 if old.id = 'raise' then raise exception 'no, %', old.id; end if; \
                 return old; end $$; \
             create trigger keep before delete on copies for each row execute function keep(); \
             create function back() returns trigger language plpgsql as $$ begin \
                 insert into copies select old.*; return null; end $$; \
             create trigger back after delete on copies for each row when (old.id = 'back') \
                 execute function back()",
        )
        .await;
    let sink = database.sink();
    let batch = [copy(1, "keep"), copy(1, "back"), copy(1, "raise"), copy(1, "go")];
    let outcomes = sink.destroy(&batch).await.unwrap();
    let expected = [Verdict::Refused, Verdict::Busy, Verdict::Refused, Verdict::Deleted];
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
    assert!(outcomes[0].said.contains("still there"), "{}", outcomes[0].said);
    assert!(outcomes[2].said.contains("P0001") && !outcomes[2].said.contains("raise"));
    assert_eq!(database.count("copies").await, 3);
    database
        .run("drop trigger keep on copies; create rule r as on delete to copies do instead nothing")
        .await;
    let error = sink.destroy(&batch).await.unwrap_err();
    assert!(matches!(error, SinkError::Denied(_)), "a rule that swallows deletes: {error}");
    database.remove().await;
}

/// S6: rows that a policy hides would look like rows that are not there.
#[tokio::test]
async fn a_policy_that_hides_rows_is_no_absence() {
    let database = Database::new(COPIES).await;
    database
        .run(
            "insert into copies values (1, 'a'); alter table copies enable row level security; \
             create policy none on copies using (false)",
        )
        .await;
    let (config, role) = database.as_role("grant select, delete on copies to $role").await;
    let sink = PostgresTableSink::new(config).unwrap();
    let error = sink.destroy(&[copy(1, "a")]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Denied(said) if said.contains("row-level")), "{error}");
    let error = sink.look(&[copy(1, "a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Denied(_)), "{error}");
    let facts = sink.check(&[]).await.unwrap();
    assert!(facts.problems.iter().any(|said| said.contains("row-level")), "{facts:?}");
    // Of its owner it hides nothing.
    assert_eq!(one(&database.sink(), copy(1, "a")).await.0, Verdict::Deleted);
    database.drop_role(&role).await;
    database.remove().await;
}

/// S3: living rows elsewhere.
#[tokio::test]
async fn a_row_whose_children_would_go_along_stays() {
    let database = Database::new(COPIES).await;
    database
        .run(
            "insert into copies values (1, 'a'); create table pages (tenant bigint, id text, \
             constraint of_copy foreign key (tenant, id) references copies on delete cascade); \
             insert into pages values (1, 'a')",
        )
        .await;
    let error = database.sink().destroy(&[copy(1, "a")]).await.unwrap_err();
    assert!(
        matches!(&error, SinkError::Denied(said) if said.contains("public.pages (of_copy")),
        "{error}"
    );
    assert_eq!(database.count("copies").await, 1);
    let mut config = database.config();
    config.allow_cascade = vec!["public.pages".to_owned()];
    let sink = PostgresTableSink::new(config).unwrap();
    let facts = sink.check(&[vec!["id", "tenant"]]).await.unwrap();
    assert!(facts.problems.is_empty() && facts.concerns[0].contains("public.pages"), "{facts:?}");
    assert_eq!(one(&sink, copy(1, "a")).await.0, Verdict::Deleted);
    assert_eq!(database.count("pages").await, 0);
    database.remove().await;
}

/// L2: of a thousand, the ones that are referenced stay, and all others go.
#[tokio::test]
async fn what_a_foreign_key_keeps_is_refused_and_the_others_go() {
    let database = Database::new(COPIES).await;
    database
        .run(
            "insert into copies select 1, n::text from generate_series(1, 1000) n; \
             create table pages (tenant bigint, id text, part int, \
                 constraint of_copy foreign key (tenant, id) references copies); \
             create index on pages (tenant, id); \
             create table late (tenant bigint, id text, constraint late_copy foreign key (tenant, id) \
                 references copies deferrable initially deferred); \
             insert into pages select 1, n::text from unnest(array[1, 500, 501, 1000]) n; \
             insert into late values (1, '77')",
        )
        .await;
    let batch: Vec<Target> = (1..=1000).map(|n| copy(1, &n.to_string())).collect();
    let outcomes = database.sink().destroy(&batch).await.unwrap();
    for (outcome, n) in outcomes.iter().zip(1..) {
        let (verdict, said) = match n {
            1 | 500 | 501 | 1000 => (Verdict::Refused, "(SQLSTATE 23503, constraint of_copy)"),
            // Deferred until the commit, which is refused as well.
            77 => (Verdict::Refused, "(SQLSTATE 23503, constraint late_copy)"),
            _ => (Verdict::Deleted, "1 row deleted"),
        };
        assert_eq!(outcome.verdict, verdict, "{n}: {}", outcome.said);
        assert!(outcome.said.ends_with(said), "{n}: {}", outcome.said);
    }
    assert_eq!(database.count("copies").await, 5);
    database.remove().await;
}

/// L2: a row that an application holds is busy, and no other waits for it.
#[tokio::test]
async fn a_locked_row_is_busy_and_the_others_go() {
    let database = Database::new(COPIES).await;
    database.run("insert into copies select 1, n::text from generate_series(1, 20) n").await;
    let mut application = database.pool.begin().await.unwrap();
    application.execute("select from copies where id = '7' for update").await.unwrap();
    let batch: Vec<Target> = (1..=20).map(|n| copy(1, &n.to_string())).collect();
    let sink = database.sink();
    let outcomes = sink.destroy(&batch).await.unwrap();
    for (outcome, n) in outcomes.iter().zip(1..) {
        let expected = if n == 7 { Verdict::Busy } else { Verdict::Deleted };
        assert_eq!(outcome.verdict, expected, "{n}: {}", outcome.said);
    }
    application.rollback().await.unwrap();
    assert_eq!(one(&sink, copy(1, "7")).await.0, Verdict::Deleted);
    database.remove().await;
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_unavailable() {
    let database = Database::new(COPIES).await;
    database.run("insert into copies values (1, 'a')").await;
    let grants = "grant select, delete on copies to $role; \
                  alter role $role set default_transaction_read_only = on";
    let (config, role) = database.as_role(grants).await;
    let sink = PostgresTableSink::new(config).unwrap();
    let error = sink.destroy(&[copy(1, "a")]).await.unwrap_err();
    let SinkError::Unavailable(source) = &error else { panic!("{error}") };
    assert!(source.to_string().contains("primary"), "{source}");
    // What is not there on a standby may be there on its primary by now.
    let error = sink.look(&[copy(1, "b")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    database.drop_role(&role).await;
    database.remove().await;
}

#[tokio::test]
async fn what_is_not_granted_or_not_there_is_told() {
    let database = Database::new(COPIES).await;
    database.run("insert into copies values (1, 'a')").await;
    let (config, role) = database.as_role("grant select on copies to $role").await;
    let error = PostgresTableSink::new(config).unwrap().destroy(&[copy(1, "a")]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Denied(said) if said.contains("permission")), "{error}");
    let config = PostgresTableConfig { name: "none".to_owned(), ..database.config() };
    let error = PostgresTableSink::new(config).unwrap().destroy(&[copy(1, "a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Missing(_)), "{error}");
    database.run("create view seen as select * from copies").await;
    let config = PostgresTableConfig { name: "seen".to_owned(), ..database.config() };
    let error = PostgresTableSink::new(config).unwrap().destroy(&[copy(1, "a")]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Denied(said) if said.contains("no table")), "{error}");
    database.drop_role(&role).await;
    database.remove().await;
}

#[tokio::test]
async fn a_server_that_is_down_or_hangs_is_unavailable() {
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let down = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [hangs.local_addr().unwrap().port(), down.local_addr().unwrap().port()];
    drop(down);
    for port in ports {
        let url = Secret::new(format!("postgresql://nobody@127.0.0.1:{port}/none"));
        let mut config = PostgresTableConfig::new(url, "public", "copies");
        config.connect_timeout = Duration::from_millis(300);
        let sink = PostgresTableSink::new(config).unwrap();
        let error = sink.destroy(&[copy(1, "a")]).await.unwrap_err();
        assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    }
}

/// F28, F29: the commit was done and its answer is lost; nobody may believe that nothing happened.
#[tokio::test]
async fn a_reply_lost_after_the_commit_is_absent_when_asked_again() {
    let database = Database::new(COPIES).await;
    database.run("insert into copies values (1, 'a')").await;
    let proxy = Proxy::start(&database.url, "COMMIT").await;
    let config = PostgresTableConfig { url: Secret::new(&*proxy.url), ..database.config() };
    let sink = PostgresTableSink::new(config).unwrap();
    let error = sink.destroy(&[copy(1, "a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    proxy.mend();
    assert_eq!(one(&sink, copy(1, "a")).await, (Verdict::Absent, "no such row".to_owned()));
    database.remove().await;
}

/// The session is ended in the middle of the delete: nothing was done, and nothing is confirmed.
#[tokio::test]
async fn a_session_that_is_ended_confirms_nothing() {
    let database = Database::new(COPIES).await;
    database.run("insert into copies values (1, 'a')").await;
    let mut application = database.pool.begin().await.unwrap();
    application.execute("select from copies for update").await.unwrap();
    let config = PostgresTableConfig { lock_timeout: Duration::from_secs(60), ..database.config() };
    let sink = PostgresTableSink::new(config).unwrap();
    let batch = [copy(1, "a")];
    let ended = async {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where \
                   datname = current_database() and application_name = 'tombstream' \
                   and wait_event_type = 'Lock'";
        while sqlx::query_scalar::<_, i64>(end).fetch_one(&database.pool).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    let (destroyed, ()) = tokio::join!(sink.destroy(&batch), ended);
    let error = destroyed.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    application.rollback().await.unwrap();
    assert_eq!(database.count("copies").await, 1);
    database.remove().await;
}

#[tokio::test]
async fn a_check_tells_what_an_operator_should_mend() {
    let database = Database::new(
        "create table copies (id text, tenant bigint, n numeric); create index on copies (tenant); \
         create function keep() returns trigger language plpgsql as 'begin return null; end'; \
         create trigger keep before delete on copies for each row execute function keep(); \
         create rule swallow as on delete to copies do instead nothing",
    )
    .await;
    let sets = [vec!["id"], vec!["n"], vec!["gone"], vec!["id", "tenant"]];
    let facts = database.sink().check(&sets).await.unwrap();
    let told = |list: &[String], words: &str| list.iter().filter(|it| it.contains(words)).count();
    assert_eq!(told(&facts.problems, "rule swallow"), 1, "{facts:?}");
    assert_eq!(told(&facts.problems, "column n (numeric)"), 1, "{facts:?}");
    assert_eq!(told(&facts.problems, "column gone of table public.copies does not exist"), 1);
    assert_eq!(told(&facts.concerns, "trigger keep"), 1, "{facts:?}");
    assert_eq!(told(&facts.concerns, "no index begins"), 1, "{facts:?}");
    assert_eq!(told(&facts.concerns, "unique"), 2, "{facts:?}");
    let sound = Database::new(COPIES).await;
    let facts = sound.sink().check(&[vec!["id", "tenant"]]).await.unwrap();
    assert!(facts.problems.is_empty() && facts.concerns.is_empty(), "{facts:?}");
    sound.remove().await;
    database.remove().await;
}

async fn all(config: PostgresTableConfig, shapes: &[&[&str]]) -> Result<Vec<Listed>, ListingError> {
    let sink = Arc::new(PostgresTableSink::new(config).unwrap());
    let shapes = shapes.iter().map(|shape| shape.iter().map(|it| (*it).to_owned()).collect());
    let mut listed = Vec::new();
    for mut part in PostgresTableListing::new(sink, shapes).parts(4, &[]).await? {
        while let Some(page) = part.next().await? {
            listed.extend(page);
        }
    }
    Ok(listed)
}

/// Of one moment, whatever is written meanwhile; an address of several rows is one place.
#[tokio::test]
async fn every_row_of_a_table_is_listed_once() {
    let database = Database::new(COPIES).await;
    database
        .run("insert into copies select n % 7, 'it''s ' || n, null from generate_series(1, 5000) n")
        .await;
    let listed = all(database.config(), &[&["id", "tenant"]]).await.unwrap();
    assert_eq!(listed.len(), 5_000);
    let of = |tenant: &str, id: &str| {
        let columns = [("id", id), ("tenant", tenant)];
        let columns = columns.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Address::Row { table: "public.copies".into(), columns: columns.into() }
    };
    assert_eq!(listed.iter().filter(|it| it.address == of("3", "it's 4588")).count(), 1);
    let mut many = database.config();
    many.many = true;
    assert_eq!(all(many.clone(), &[&["tenant"]]).await.unwrap().len(), 7);
    assert!(all(many, &[&["body"]]).await.unwrap().is_empty(), "nothing in it is no address");
    // A listing that has begun shows what was there when it began.
    let sink = Arc::new(database.sink());
    let shape = vec!["id".to_owned(), "tenant".to_owned()];
    let mut parts = PostgresTableListing::new(sink, [shape]).parts(1, &[]).await.unwrap();
    let mut seen = parts[0].next().await.unwrap().unwrap().len();
    database.run("delete from copies where tenant < 3").await;
    while let Some(page) = parts[0].next().await.unwrap() {
        seen += page.len();
    }
    assert_eq!(seen, 5_000);
    drop(parts);
    database.remove().await;
}

/// What can't be shown whole is no listing (S6).
#[tokio::test]
async fn a_table_that_does_not_show_all_is_no_listing() {
    let database = Database::new(COPIES).await;
    database
        .run(
            "insert into copies values (1, 'a', 'b'); alter table copies enable row level security",
        )
        .await;
    assert!(all(database.config(), &[&["none"]]).await.is_err());
    let mut missing = database.config();
    missing.name = "nowhere".to_owned();
    assert!(matches!(
        all(missing, &[&["id"]]).await,
        Err(ListingError::Store(SinkError::Missing(_)))
    ));
    let (hidden, role) = database
        .as_role("grant usage on schema public to $role; grant select on copies to $role")
        .await;
    let said = all(hidden, &[&["id", "tenant"]]).await.unwrap_err().to_string();
    assert!(!said.is_empty(), "a policy hides rows: {said}");
    database.drop_role(&role).await;
    database.remove().await;
}
