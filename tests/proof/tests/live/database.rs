//! A database of its own, with the ledger, one relation, and a ledger for each age of a flag, with and without room in
//! the breaker.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor};

use tombstream_connectors::postgres::{
    LedgerConfig, LedgerStore, PgLedger, connect, install_relation, migrate,
};
use tombstream_model::{
    AddressTemplate, BreakerLimits, Flag, FlagKind, KeyColumn, KeyKind, OnHardDelete, Relation,
    StoreId, TargetTemplate, Template,
};
use tombstream_proof::reference::{Age, Budget};

const LONG: Duration = Duration::from_secs(3_600);

pub(crate) struct Database {
    pub(crate) pool: PgPool,
    left: Ages,
    spent: Ages,
    name: String,
    admin: PgPool,
}

/// A ledger for each age of a flag.
struct Ages {
    young: PgLedger,
    hide_over: PgLedger,
    grace_over: PgLedger,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let base = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL").expect(
            "TOMBSTREAM_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`",
        );
        let admin = connect(&base, 2, true, "test").await.expect("the test server answers");
        let name = format!("tombstream_proof_{}", uuid::Uuid::new_v4().simple());
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let (server, _) = base.rsplit_once('/').expect("the url names a database");
        let pool = connect(&format!("{server}/{name}"), 4, true, "test").await.unwrap();
        migrate(&pool).await.unwrap();
        for sql in [
            "create table documents (id uuid primary key, deleted_at timestamptz)",
            // What one row's trigger refuses must not undo the others of a batch.
            "create function attempt(statement text, key uuid) returns text language plpgsql as $$ \
             begin execute statement using key; return 'done'; \
             exception when sqlstate 'TS001' then return 'refused'; end $$",
        ] {
            pool.execute(sql).await.unwrap();
        }
        install_relation(&pool, &documents(Duration::ZERO, None)).await.unwrap();
        let ages = |breaker: Option<BreakerLimits>| {
            let ledger = |grace, hide| {
                let relation = Relation { breaker: breaker.clone(), ..documents(grace, hide) };
                ledger(&pool, relation)
            };
            Ages {
                young: ledger(2 * LONG, Some(LONG)),
                hide_over: ledger(2 * LONG, Some(Duration::ZERO)),
                grace_over: ledger(Duration::ZERO, None),
            }
        };
        Self {
            left: ages(None),
            // It grants nothing, and so is tripped by the first that asks.
            spent: ages(Some(BreakerLimits {
                claims_max: Some(0),
                window: LONG,
                share_max: None,
                rate_max: None,
            })),
            pool: pool.clone(),
            name,
            admin,
        }
    }

    pub(crate) fn ledger(&self, age: Age, budget: Budget) -> &PgLedger {
        let ages = match budget {
            Budget::Left => &self.left,
            Budget::Spent => &self.spent,
        };
        match age {
            Age::Young => &ages.young,
            Age::HideOver => &ages.hide_over,
            Age::GraceOver => &ages.grace_over,
        }
    }

    pub(crate) async fn drop(self) {
        self.pool.close().await;
        let drop = format!("drop database if exists {} with (force)", self.name);
        self.admin.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}

fn ledger(pool: &PgPool, relation: Relation) -> PgLedger {
    let store = |name: &str| LedgerStore { name: name.into(), absent_share_max: 1.0 };
    let config = LedgerConfig {
        owner: "test".to_owned(),
        // Leases end, and what is owed is due, when a history says so.
        lease: LONG,
        owed_wait_min: LONG,
        owed_wait_max: LONG,
        stores: vec![store("originals"), store("search")],
        prepared_statements: true,
    };
    PgLedger::new(pool.clone(), Arc::from([relation]), config)
}

fn documents(grace: Duration, hide: Option<Duration>) -> Relation {
    let template = |text| Template::parse(text).expect("a template");
    Relation {
        name: "documents".into(),
        schema: "public".to_owned(),
        table: "documents".to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Uuid }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: vec![
            TargetTemplate {
                store: StoreId(0),
                address: AddressTemplate::Object {
                    bucket: "documents".into(),
                    key: template("{id}/original"),
                },
                is_hidden_first: false,
            },
            TargetTemplate {
                store: StoreId(1),
                address: AddressTemplate::Document {
                    index: "documents".into(),
                    id: template("{id}"),
                    routing: None,
                },
                is_hidden_first: true,
            },
        ],
        grace,
        hide,
        breaker: None,
        on_hard_delete: OnHardDelete::Destroy,
        key_reuse_forbidden: false,
        topics: Vec::new(),
        allow_cascade: Vec::new(),
    }
}
