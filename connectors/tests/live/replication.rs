//! The source that reads the log straight, on a real server.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _};
use tokio::time::{sleep, timeout};
use tombstream_connectors::Secret;
use tombstream_connectors::postgres::{
    Gap, GapReason, Makes, PostgresSource, ReplicationConfig, Scope, Severity, check_capture,
    fix_capture, migrate,
};
use tombstream_model::decode::{Decoded, Decoder, RowDecoder, Skipped};
use tombstream_model::wal::{RowMessage, Value, WalRow};
use tombstream_model::{
    Change, Disposition, Mark, Op, Origin, Polled, Records, Relation, Source, SourceError,
};
use tombstream_testing::conformance::source::{self as conformance, SourceFixture};

use crate::support::server::OwnServer;
use crate::support::{Database, documents};

const BOUND: Duration = Duration::from_secs(60);

/// A database with the table `documents`, and a slot of its own.
struct Scene {
    database: Database,
    slot: String,
    gaps: Arc<Mutex<Vec<Gap>>>,
}

impl Scene {
    async fn new() -> Self {
        let scene = Self::on(Database::with_documents(false).await);
        scene.fix().await;
        scene
    }

    /// On a server of the test's own.
    async fn on_server(server: &OwnServer) -> Self {
        let database = Database::empty_on(&server.url()).await;
        migrate(&database.pool).await.unwrap();
        database.make_documents(false).await;
        let scene = Self::on(database);
        scene.fix().await;
        scene
    }

    fn on(database: Database) -> Self {
        let slot = format!("test_{}", uuid::Uuid::new_v4().simple());
        Self { database, slot, gaps: Arc::default() }
    }

    fn config(&self) -> ReplicationConfig {
        let url = Secret::new(self.database.url());
        let mut config = ReplicationConfig::new(url, &*self.slot, "tombstream");
        config.acknowledge_every = Duration::from_millis(50);
        config
    }

    async fn fix(&self) {
        fix_capture(&self.database.pool, &self.config(), &[documents()], Makes::Both)
            .await
            .unwrap();
    }

    fn source(&self) -> PostgresSource {
        self.source_with(|_| {})
    }

    fn source_with(&self, change: impl FnOnce(&mut ReplicationConfig)) -> PostgresSource {
        let mut config = self.config();
        change(&mut config);
        let gaps = Arc::clone(&self.gaps);
        let on_gap = move |gap: &Gap| gaps.lock().unwrap().push(gap.clone());
        let scope = Scope::Relations(Arc::from([documents()]));
        PostgresSource::new(config, self.database.pool.clone(), scope, on_gap).unwrap()
    }

    fn gaps(&self) -> Vec<GapReason> {
        self.gaps.lock().unwrap().iter().map(|gap| gap.reason).collect()
    }

    async fn sql(&self, sql: &str) {
        self.database.pool.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
    }

    async fn insert(&self, names: impl IntoIterator<Item = String>) {
        for name in names {
            sqlx::query("insert into documents values (gen_random_uuid(), $1, null, now())")
                .bind(name)
                .execute(&self.database.pool)
                .await
                .unwrap();
        }
    }

    async fn scalar(&self, sql: &str) -> String {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.database.pool)
            .await
            .unwrap()
    }

    /// Bytes of log that the server keeps for the slot.
    async fn behind(&self) -> i64 {
        let sql = format!(
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint::text \
             from pg_replication_slots where slot_name = '{}'",
            self.slot
        );
        self.scalar(&sql).await.parse().unwrap()
    }

    async fn end(self) {
        self.drop_slot().await;
        self.database.drop_database().await;
    }

    async fn drop_slot(&self) {
        let drop = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
             where slot_name = '{}' and not active",
            self.slot
        );
        let there = format!(
            "select count(*)::text from pg_replication_slots where slot_name = '{}'",
            self.slot
        );
        let gone = async {
            while self.scalar(&there).await != "0" {
                self.sql(&drop).await;
            }
        };
        timeout(BOUND, gone).await.expect("nobody reads the slot any more");
    }
}

impl SourceFixture for Scene {
    type Source = PostgresSource;

    async fn open(&self) -> PostgresSource {
        self.source()
    }

    async fn append(&self, values: &[String]) {
        self.insert(values.iter().cloned()).await;
    }

    fn values(&self, polled: &Polled) -> Vec<(Origin, String)> {
        rows(polled).iter().map(|row| (row.origin.clone(), name(row))).collect()
    }

    /// One log for all tables, so one mark for all.
    fn covers(&self, mark: &Mark, origin: &Origin) -> bool {
        *mark.topic == *self.slot && mark.next > origin.offset
    }
}

fn rows(polled: &Polled) -> &[WalRow] {
    match &polled.records {
        Records::Rows(rows) => rows,
        other => panic!("the log brings rows, not {other:?}"),
    }
}

/// The second column of the row after.
fn name(row: &WalRow) -> String {
    let (RowMessage::Insert { new } | RowMessage::Update { new, .. }) = row.read().unwrap() else {
        return "gone".to_owned();
    };
    match new.values().nth(1) {
        Some(Value::Text(text)) => String::from_utf8(text.to_vec()).unwrap(),
        other => format!("{other:?}"),
    }
}

/// The next poll; what is unavailable for a moment is tried again.
async fn next(source: &mut PostgresSource) -> Polled {
    let tried = async {
        loop {
            match source.next().await {
                Ok(polled) => return polled,
                Err(error) if error.disposition() == Disposition::Retry => {
                    eprintln!("{}", chain(&error));
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("the source can't be read: {error}"),
            }
        }
    };
    timeout(BOUND, tried).await.expect("something comes in time")
}

/// Polls until `count` rows have come, with every mark on the way.
async fn read(source: &mut PostgresSource, count: usize) -> (Vec<WalRow>, Vec<Mark>) {
    let (mut all, mut marks) = (Vec::new(), Vec::new());
    while all.len() < count {
        let polled = next(source).await;
        all.extend_from_slice(rows(&polled));
        marks.extend(polled.marks);
    }
    (all, marks)
}

async fn names(source: &mut PostgresSource, count: usize) -> Vec<String> {
    read(source, count).await.0.iter().map(name).collect()
}

/// Begins to read, and waits until the session streams: nothing comes of an idle database.
async fn begin(scene: &Scene, source: &mut PostgresSource) {
    scene.insert(["first".to_owned()]).await;
    assert_eq!(names(source, 1).await, ["first"]);
}

fn decoded(rows: &[WalRow], relation: &Relation) -> Vec<Decoded> {
    let mut decoder = RowDecoder::new(Decoder::new(std::slice::from_ref(relation)));
    rows.iter().map(|row| decoder.decode(row).unwrap()).collect()
}

fn changes(rows: &[WalRow]) -> Vec<Change> {
    let change = |decoded| match decoded {
        Decoded::Change(change) => Some(change),
        Decoded::Truncate { .. } | Decoded::Skipped(_) => None,
    };
    decoded(rows, &documents()).into_iter().filter_map(change).collect()
}

fn id(n: u32) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

macro_rules! conformance {
    ($($check:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $check() {
            let scene = Scene::new().await;
            conformance::$check(&scene).await;
            scene.end().await;
        }
    )*};
}
conformance!(
    everything_comes_with_marks,
    what_is_not_committed_comes_again,
    what_is_committed_does_not_come_again,
    a_commit_covers_no_more_than_its_marks,
    dropping_next_loses_nothing
);

/// F10.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_never_comes() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    scene
        .sql(
            "begin; insert into documents values (gen_random_uuid(), 'rolled back'); rollback; \
             begin; insert into documents values (gen_random_uuid(), 'kept'); savepoint here; \
             insert into documents values (gen_random_uuid(), 'aborted'); rollback to here; \
             insert into documents values (gen_random_uuid(), 'last'); commit",
        )
        .await;
    assert_eq!(names(&mut source, 2).await, ["kept", "last"]);
    source.close().await;
    scene.end().await;
}

/// F9: pieces, and no mark before the transaction has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_in_pieces_and_its_mark_at_the_end() {
    let scene = Scene::new().await;
    let small = |config: &mut ReplicationConfig| {
        config.items_max = NonZeroUsize::new(500).unwrap();
    };
    let mut source = scene.source_with(small);
    begin(&scene, &mut source).await;
    scene
        .sql("insert into documents select gen_random_uuid(), n::text, null, now() from generate_series(1, 5000) n")
        .await;
    let (mut count, mut pieces) = (0, 0);
    while count < 5_000 {
        let polled = next(&mut source).await;
        let first = rows(&polled).first().map(|row| row.transaction.commit_lsn.0);
        count += rows(&polled).len();
        pieces += usize::from(!rows(&polled).is_empty());
        assert!(rows(&polled).len() <= 500);
        if count < 5_000
            && let (Some(commit), Some(mark)) = (first, polled.marks.first())
        {
            assert!(mark.next.cast_unsigned() <= commit, "a mark in the middle: {mark:?}");
        }
    }
    assert!(pieces >= 10, "{pieces}");
    // Nothing of it was marked before its end, so a source that dies there reads all of it again.
    drop(source);
    let mut source = scene.source_with(small);
    let (again, marks) = read(&mut source, 5_001).await;
    assert_eq!(again.len(), 5_001);
    source.commit(marks).await.unwrap();
    source.close().await;
    scene.end().await;
}

/// Rows of one `copy` share their place in the log, and are told apart all the same.
#[tokio::test(flavor = "multi_thread")]
async fn rows_with_one_lsn_have_origins_of_their_own() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    let lines: String = (0..100).map(|n| format!("{}\tcopied {n}\t\\N\t\\N\n", id(n))).collect();
    let mut connection = scene.database.pool.acquire().await.unwrap();
    let mut copy = connection.copy_in_raw("copy documents from stdin").await.unwrap();
    copy.send(lines.into_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    drop(connection);
    let (rows, _) = read(&mut source, 100).await;
    let mut places: Vec<_> =
        rows.iter().map(|row| (row.origin.offset, row.origin.partition)).collect();
    let lsns = places.iter().map(|place| place.0).collect::<std::collections::BTreeSet<_>>().len();
    assert!(lsns < 100, "they share some: {lsns}");
    assert!(places.is_sorted());
    places.dedup();
    assert_eq!(places.len(), 100);
    source.close().await;
    scene.end().await;
}

/// WAL of others does not pile up behind a quiet table.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_table_on_a_busy_server_lets_the_log_go() {
    let scene = Scene::new().await;
    scene.sql("create table busy (n bigint)").await;
    let mut source = scene.source_with(|config| config.heartbeat = Duration::ZERO);
    begin(&scene, &mut source).await;
    let read = async {
        loop {
            let polled = source.next().await.unwrap();
            assert!(rows(&polled).is_empty(), "the table is quiet");
            source.commit(polled.marks).await.unwrap();
        }
    };
    let written = async {
        for _ in 0..20 {
            scene.sql("insert into busy select generate_series(1, 5000)").await;
        }
        assert!(scene.behind().await > 0 || scene.behind().await == 0);
        let let_go = async { while scene.behind().await > 10_000 {} };
        timeout(BOUND, let_go).await.expect("the slot follows the log");
    };
    tokio::select! { () = read => {}, () = written => {} }
    source.close().await;
    scene.end().await;
}

/// The heartbeat alone moves a slot on an idle server.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_come_back_as_marks_without_rows() {
    let scene = Scene::new().await;
    let mut source = scene.source_with(|config| config.heartbeat = Duration::from_millis(50));
    begin(&scene, &mut source).await;
    for _ in 0..3 {
        let polled = next(&mut source).await;
        assert_eq!((rows(&polled).len(), polled.marks.len()), (0, 1));
    }
    source.close().await;
    scene.end().await;
}

/// F5.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_is_made_anew_and_reported() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    let (before, _) = source.start().unwrap();
    source.close().await;
    scene.drop_slot().await;
    scene.insert(["lost".to_owned()]).await;
    let mut source = scene.source();
    source.open().await.unwrap();
    scene.insert(["told".to_owned()]).await;
    assert_eq!(names(&mut source, 1).await, ["told"]);
    assert_eq!(scene.gaps(), [GapReason::New, GapReason::Missing]);
    let (after, _) = source.start().unwrap();
    assert!(after > before, "positions of the new one are newer: {before:?}, {after:?}");
    source.close().await;
    scene.end().await;
}

/// F6: Postgres gives no error.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_advanced_by_hand_is_reported() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    source.close().await;
    // On disk, so that the slot can be advanced over it.
    scene
        .sql(
            "begin; set local synchronous_commit = on; \
             insert into documents values (gen_random_uuid(), 'skipped', null, now()); commit",
        )
        .await;
    let advance =
        format!("select pg_replication_slot_advance('{}', pg_current_wal_lsn())", scene.slot);
    // The server notices that a session has ended a moment later.
    let advanced = async {
        while scene.database.pool.execute(AssertSqlSafe(advance.clone())).await.is_err() {}
    };
    timeout(BOUND, advanced).await.expect("the slot is left alone");
    let mut source = scene.source();
    source.open().await.unwrap();
    scene.insert(["told".to_owned()]).await;
    assert_eq!(names(&mut source, 1).await, ["told"]);
    assert_eq!(scene.gaps(), [GapReason::New, GapReason::Moved]);
    source.close().await;
    // Left as it was, it is no gap.
    let mut source = scene.source();
    let opened = async { while source.open().await.is_err() {} };
    timeout(BOUND, opened).await.expect("the slot is left alone");
    assert_eq!(scene.gaps().len(), 2);
    source.close().await;
    scene.end().await;
}

/// F4, on a server of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_log_was_removed_is_made_anew_and_reported() {
    let server = OwnServer::new("max_slot_wal_keep_size = 16MB\nmin_wal_size = 32MB").await;
    let scene = Scene::on_server(&server).await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    source.close().await;
    scene.sql("create table filler (text text)").await;
    let lost = format!(
        "select coalesce(wal_status, '') from pg_replication_slots where slot_name = '{}'",
        scene.slot
    );
    let fill = async {
        while scene.scalar(&lost).await != "lost" {
            scene
                .sql("insert into filler select repeat('x', 500) from generate_series(1, 20000)")
                .await;
            scene.sql("select pg_switch_wal()").await;
            scene.sql("checkpoint").await;
        }
    };
    timeout(BOUND, fill).await.expect("the slot is lost");
    let findings = check_capture(&scene.database.pool, &scene.config(), &[documents()]).await;
    assert!(findings.unwrap().iter().any(|it| it.text.contains("is lost")));
    let mut source = scene.source();
    source.open().await.unwrap();
    scene.insert(["told".to_owned()]).await;
    assert_eq!(names(&mut source, 1).await, ["told"]);
    assert_eq!(scene.gaps(), [GapReason::New, GapReason::Lost]);
    source.close().await;
    scene.end().await;
}

/// F8: a standby without the slot is promoted.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_is_another_life_of_the_log() {
    let server = OwnServer::new("").await;
    let scene = Scene::on_server(&server).await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    let (before, _) = source.start().unwrap();
    source.close().await;
    let standby = server.promoted_standby().await;
    drop(server);

    let there = Scene {
        database: scene.database.on(&standby.url()).await,
        slot: scene.slot.clone(),
        gaps: Arc::clone(&scene.gaps),
    };
    let mut source = there.source();
    source.open().await.unwrap();
    there.insert(["told".to_owned()]).await;
    assert_eq!(names(&mut source, 1).await, ["told"]);
    assert_eq!(there.gaps(), [GapReason::New, GapReason::OtherServer]);
    let (after, _) = source.start().unwrap();
    assert!(after > before, "lower places on a new timeline are not old: {before:?}, {after:?}");
    source.close().await;
    there.end().await;
}

/// F1, and what a session is: encrypted, with the certificate and the password checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_read_on_and_every_way_in_is_checked() {
    let mut server = OwnServer::new("synchronous_commit = on").await;
    let scene = Scene::on_server(&server).await;
    let with = |query: &str| {
        // A certificate is of a name, not of an address.
        let url = scene.database.url().replace("127.0.0.1", "localhost");
        let url = format!("{url}?{query}");
        scene.source_with(|config| config.url = Secret::new(url))
    };
    let authority = server.authority().display().to_string();
    let verified = format!("sslmode=verify-full&sslrootcert={authority}");
    let mut source = with(&verified);
    begin(&scene, &mut source).await;
    let encrypted = "select string_agg(s.ssl::text, ',') from pg_stat_ssl s \
                     join pg_stat_activity a using (pid) where a.backend_type = 'walsender'";
    assert_eq!(scene.scalar(encrypted).await, "true");

    server.kill();
    let error = timeout(BOUND, async {
        loop {
            if let Err(error) = source.next().await {
                return error;
            }
        }
    });
    assert!(matches!(error.await.unwrap(), SourceError::Unavailable(_)));
    server.start();
    let back = async { while scene.database.pool.acquire().await.is_err() {} };
    timeout(BOUND, back).await.expect("the pool connects again");
    scene.insert(["after".to_owned()]).await;
    let told = timeout(BOUND, async {
        loop {
            if names(&mut source, 1).await.iter().any(|name| name == "after") {
                return;
            }
        }
    });
    told.await.expect("it reads on");
    source.close().await;

    let mut unknown = with("sslmode=verify-full");
    let said = chain(&timeout(BOUND, unknown.next()).await.unwrap().unwrap_err());
    assert!(said.contains("certificate"), "{said}");
    let wrong = scene.database.url().replace(":postgres@", ":wrong@");
    let mut wrong = scene.source_with(|config| config.url = Secret::new(wrong));
    let said = chain(&timeout(BOUND, wrong.next()).await.unwrap().unwrap_err());
    assert!(said.contains("password authentication failed"), "{said}");
    scene.end().await;
}

/// The log tells a commit before others see it: here it waits for a standby that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_sees_yet_is_not_handed_on_and_holds_up_others_for_a_second() {
    let server =
        OwnServer::new("synchronous_standby_names = 'nobody'\nsynchronous_commit = local").await;
    let scene = Scene::on_server(&server).await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    let commit = async |name: &str| {
        let sql = format!(
            "begin; set local synchronous_commit = on; \
             insert into documents values (gen_random_uuid(), '{name}', null, now()); commit"
        );
        scene.sql(&sql).await;
    };
    // Waits for the standby until somebody cancels that; then it is seen.
    let wait = "select pid::text from pg_stat_activity where wait_event = 'SyncRep'";
    let release = async |after: Duration| {
        let waiting = async {
            loop {
                let pid: Option<String> =
                    sqlx::query_scalar(wait).fetch_optional(&scene.database.pool).await.unwrap();
                match pid {
                    Some(pid) => break pid,
                    None => sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let pid = timeout(BOUND, waiting).await.expect("it waits");
        sleep(after).await;
        scene.sql(&format!("select pg_cancel_backend({pid})")).await;
        std::time::Instant::now()
    };
    let told = async |source: &mut PostgresSource| {
        let names = names(source, 1).await;
        (names, std::time::Instant::now())
    };
    let soon = Duration::from_millis(300);
    let (_, released, (names, at)) = tokio::join!(commit("soon"), release(soon), told(&mut source));
    assert_eq!(names, ["soon"]);
    assert!(at >= released, "handed on while nobody saw it");
    let begun = std::time::Instant::now();
    let late = Duration::from_secs(3);
    let (_, released, (names, at)) = tokio::join!(commit("late"), release(late), told(&mut source));
    assert_eq!(names, ["late"]);
    assert!(at < released && at - begun < late, "{:?}", at - begun);
    source.close().await;
    scene.end().await;
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// F12.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_is_read_by_its_new_description() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    scene
        .sql(&format!(
            "alter table documents add column pages integer not null default 1; \
             insert into documents values ('{}', 'added', null, now(), 7); \
             alter table documents drop column uploaded_at; \
             insert into documents values ('{}', 'dropped', now(), 7); \
             alter table documents alter column name type varchar(50); \
             update documents set deleted_at = 'infinity' where id = '{}'; \
             alter table documents rename column deleted_at to gone_at; \
             insert into documents values ('{}', 'renamed', now(), 7)",
            id(1),
            id(2),
            id(1),
            id(3)
        ))
        .await;
    let (mut rows, _) = read(&mut source, 4).await;
    let renamed = rows.pop().unwrap();
    let keys: Vec<_> = changes(&rows).iter().map(|change| change.key.to_string()).collect();
    assert_eq!(keys, [id(1), id(2), id(1)]);
    let mut decoder = RowDecoder::new(Decoder::new(&[documents()]));
    let error = decoder.decode(&renamed).unwrap_err().to_string();
    assert!(error.contains("deleted_at: relation `documents` has its flag here"), "{error}");
    source.close().await;
    scene.end().await;
}

/// F13.
#[tokio::test(flavor = "multi_thread")]
async fn every_replica_identity_tells_the_right_keys() {
    let scene = Scene::new().await;
    scene.sql("alter table documents alter column name set storage external").await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    let life = |n: u32| {
        format!(
            "insert into documents values ('{0}', repeat('wide', 5000), now(), null); \
             update documents set deleted_at = now() where id = '{0}'; \
             update documents set id = '{1}' where id = '{0}'; \
             delete from documents where id = '{1}'; ",
            id(n),
            id(n + 1)
        )
    };
    scene.sql(&life(10)).await;
    scene.sql("alter table documents replica identity full").await;
    scene.sql(&life(20)).await;
    let (rows, _) = read(&mut source, 8).await;
    for (rows, n) in rows.chunks(4).zip([10, 20]) {
        assert_eq!(decoded(&rows[..1], &documents()), [Decoded::Skipped(Skipped::Alive)]);
        let told: Vec<_> =
            changes(rows).into_iter().map(|it| (it.op, it.key.to_string())).collect();
        assert_eq!(told, [(Op::Update, id(n)), (Op::Update, id(n + 1)), (Op::Delete, id(n + 1))]);
    }
    // Without one Postgres would refuse every update of a published table: it is not published.
    scene
        .sql("alter publication tombstream drop table documents; alter table documents replica identity nothing")
        .await;
    let (pool, config) = (&scene.database.pool, scene.config());
    let done = fix_capture(pool, &config, &[documents()], Makes::Both).await.unwrap();
    assert!(done.is_empty(), "{done:?}");
    let findings = check_capture(pool, &config, &[documents()]).await.unwrap();
    let errors: Vec<_> =
        findings.iter().filter(|it| it.severity == Severity::Error).map(|it| &it.text).collect();
    assert!(errors.iter().any(|text| text.contains("replica identity nothing")), "{errors:?}");
    scene
        .sql(&format!(
            "insert into documents values ('{}', 'alive'); update documents set deleted_at = now()",
            id(30)
        ))
        .await;
    source.close().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_is_told() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    scene.sql("truncate documents").await;
    let (rows, _) = read(&mut source, 1).await;
    assert!(matches!(decoded(&rows, &documents())[..], [Decoded::Truncate { .. }]));
    source.close().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_told_by_its_root() {
    let database = Database::new().await;
    database
        .pool
        .execute(
            "create table documents (id uuid, name text not null, uploaded_at timestamptz, \
             deleted_at timestamptz, primary key (id)) partition by hash (id); \
             create table documents_0 partition of documents for values with (modulus 2, remainder 0); \
             create table documents_1 partition of documents for values with (modulus 2, remainder 1)",
        )
        .await
        .unwrap();
    let scene = Scene::on(database);
    scene.fix().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    scene.insert((0..10).map(|n| n.to_string())).await;
    let (rows, _) = read(&mut source, 10).await;
    assert_eq!(changes(&rows).len(), 10);
    source.close().await;
    scene.end().await;
}

/// Two processes share a slot: one reads, the other waits, and takes over.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_reader_waits_and_takes_over() {
    let scene = Scene::new().await;
    let mut first = scene.source();
    begin(&scene, &mut first).await;
    let mut second = scene.source();
    let said = chain(&timeout(BOUND, second.next()).await.unwrap().unwrap_err());
    assert!(said.contains("it is read by the server's process"), "{said}");
    drop(first);
    scene.insert(["taken over".to_owned()]).await;
    let names = names(&mut second, 2).await;
    assert_eq!(names, ["first", "taken over"], "and what the first had not committed");
    assert_eq!(scene.gaps(), [GapReason::New], "waiting is no gap");
    second.close().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_ended_is_opened_again() {
    let scene = Scene::new().await;
    let mut source = scene.source();
    begin(&scene, &mut source).await;
    scene
        .sql(&format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = '{}'",
            scene.slot
        ))
        .await;
    scene.insert(["second".to_owned()]).await;
    let ended = timeout(BOUND, async {
        loop {
            if let Err(error) = source.next().await {
                return error;
            }
        }
    });
    assert_eq!(ended.await.unwrap().disposition(), Disposition::Retry);
    assert_eq!(names(&mut source, 2).await, ["first", "second"]);
    assert_eq!(scene.gaps(), [GapReason::New]);
    source.close().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_slot_is_refused() {
    let scene = Scene::on(Database::with_documents(false).await);
    let make =
        format!("select pg_create_logical_replication_slot('{}', 'test_decoding')", scene.slot);
    scene.sql(&make).await;
    let error = timeout(BOUND, scene.source().next()).await.unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Fatal(_)), "{error:?}");
    assert!(error.to_string().contains("test_decoding"), "{error}");
    let left = "select count(*)::text from tombstream.slot";
    assert_eq!(scene.scalar(left).await, "0", "nothing was written of it");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_missing_and_fix_makes_it() {
    let scene = Scene::on(Database::with_documents(false).await);
    let (pool, config) = (&scene.database.pool, scene.config());
    let texts = async || {
        let findings = check_capture(pool, &config, &[documents()]).await.unwrap();
        let mut texts: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for finding in findings {
            texts.entry(finding.severity).or_default().push(finding.text);
        }
        texts
    };
    let before = texts().await;
    assert!(
        before[&Severity::Error][0]
            .contains("no publication tombstream: run `tombstream check --fix`")
    );
    assert!(before[&Severity::Warning][0].contains("there is no slot"));
    // A source without a publication says so, and goes on trying.
    let said = chain(
        &timeout(BOUND, async {
            let mut source = scene.source();
            loop {
                scene.insert(["unpublished".to_owned()]).await;
                if let Err(error) = source.next().await {
                    return error;
                }
            }
        })
        .await
        .unwrap(),
    );
    assert!(said.contains("publication \"tombstream\" does not exist"), "{said}");

    let done = fix_capture(pool, &config, &[documents()], Makes::Both).await.unwrap();
    assert!(done[0].text.contains("create publication"), "{done:?}");
    assert_eq!(texts().await.keys().collect::<Vec<_>>(), [&Severity::Good]);
    let again = fix_capture(pool, &config, &[documents()], Makes::Both).await.unwrap();
    assert!(again.is_empty(), "{again:?}");

    scene.sql("alter publication tombstream set (publish = 'insert')").await;
    assert!(texts().await[&Severity::Error][0].contains("leaves out some operations"));
    scene.sql("alter publication tombstream set table documents (id, name)").await;
    let lacking = texts().await[&Severity::Error].clone();
    assert!(lacking.iter().any(|text| text.contains("the column deleted_at")), "{lacking:?}");
    scene.end().await;
}
