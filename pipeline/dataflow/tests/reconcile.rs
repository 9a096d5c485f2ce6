//! The comparison, with every side in memory: what is planted is found, and nothing else; what is not whole
//! says nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tombstream_dataflow::reconcile::{
    Finding, Reconcile, ReconcileConfig, ReconcileError, ReconcileStore, Tally, Wrong,
};
use tombstream_model::{
    Address, AddressTemplate, DeletionId, Flag, FlagKind, Key, KeyColumn, KeyKind, Listed,
    ListedDeletion, ListedRow, OnHardDelete, Relation, RelationId, Row, Standing, State, StoreId,
    TargetTemplate, Template,
};
use tombstream_testing::memory::{MemoryListing, MemoryRegistry, MemorySink};

const RELATION: RelationId = RelationId(0);
const OBJECTS: StoreId = StoreId(0);
const SEARCH: StoreId = StoreId(1);

fn template(text: &str) -> Template {
    Template::parse(text).unwrap()
}

fn object(text: &str) -> AddressTemplate {
    AddressTemplate::Object { bucket: "bucket".into(), key: template(text) }
}

fn relation(targets: Vec<(StoreId, AddressTemplate, bool)>) -> Relation {
    let target =
        |(store, address, is_hidden_first)| TargetTemplate { store, address, is_hidden_first };
    Relation {
        name: "documents".into(),
        schema: "public".to_owned(),
        table: "documents".to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Bigint }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: targets.into_iter().map(target).collect(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: Vec::new(),
        allow_cascade: Vec::new(),
    }
}

/// An object, a document, and the chunks of a row, which a field tells.
fn usual() -> Relation {
    let document = AddressTemplate::Document {
        index: "docs".into(),
        id: template("{tenant}-{id}"),
        routing: Some(template("{tenant}")),
    };
    let chunks = AddressTemplate::Field {
        index: "chunks".into(),
        field: "doc".into(),
        value: template("{id}"),
        routing: None,
    };
    relation(vec![
        (OBJECTS, object("{tenant}/{id}/original"), false),
        (SEARCH, document, true),
        (SEARCH, chunks, true),
    ])
}

/// Everything that is there.
struct World {
    relation: Relation,
    rows: Vec<ListedRow>,
    deletions: Vec<ListedDeletion>,
    copies: [Vec<Listed>; 2],
    sinks: [Arc<MemorySink>; 2],
    registry: MemoryRegistry,
    allow_empty: bool,
    breaks: Option<&'static str>,
    folder: TempDir,
}

impl World {
    fn new(relation: Relation) -> Self {
        Self {
            relation,
            rows: Vec::new(),
            deletions: Vec::new(),
            copies: Default::default(),
            sinks: Default::default(),
            registry: MemoryRegistry::default(),
            allow_empty: false,
            breaks: None,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn columns(&self, id: usize) -> Vec<Option<String>> {
        let value = |name: &str| match name {
            "id" => id.to_string(),
            _ => format!("t{}", id % 7),
        };
        self.relation.template_columns().iter().map(|name| Some(value(name))).collect()
    }

    fn row(&mut self, id: usize, standing: Standing) {
        let row = ListedRow {
            relation: RELATION,
            key: key(id),
            standing,
            columns: self.columns(id),
            former: Vec::new(),
        };
        self.registry.put(row.clone());
        self.rows.push(row);
    }

    fn addresses(&self, id: usize) -> Vec<(StoreId, Address)> {
        let names = self.relation.template_columns();
        let columns = self.columns(id);
        let values: Vec<Option<&str>> = columns.iter().map(Option::as_deref).collect();
        let row = Row { columns: &names, values: &values };
        let targets = self.relation.targets.iter();
        targets.map(|target| (target.store, target.address.resolve(row).unwrap())).collect()
    }

    fn deletion(&mut self, id: usize, state: State) {
        let deletion = ListedDeletion {
            id: DeletionId(id as i64),
            relation: RELATION,
            key: key(id),
            state,
            is_settled: true,
            addresses: self.addresses(id),
        };
        self.registry.note(deletion.clone());
        self.deletions.push(deletion);
    }

    /// A copy that is there, and listed.
    fn copy(&mut self, store: StoreId, address: Address, fields: &[(&str, String)]) {
        self.sinks[usize::from(store.0)].put(address.clone());
        let fields = fields.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
        self.copies[usize::from(store.0)].push(Listed { address, fields });
    }

    /// Every copy that a row of the usual relation has.
    fn copies(&mut self, id: usize) {
        for (store, address) in self.addresses(id) {
            match address {
                Address::Field { value, .. } => {
                    self.sinks[1].put(self.addresses(id)[2].1.clone());
                    for chunk in 0..2 {
                        let id = format!("{value}#{chunk}");
                        let chunk = Address::Document { index: "chunks".into(), id, routing: None };
                        self.copy(store, chunk, &[("doc", value.clone())]);
                    }
                }
                address => self.copy(store, address, &[]),
            }
        }
    }

    async fn compare(
        &self,
        limits: impl FnOnce(&mut ReconcileConfig),
    ) -> (Result<Tally, ReconcileError>, Vec<Finding>) {
        let mut config = ReconcileConfig::new(self.folder.path().to_owned());
        config.settle = Duration::ZERO;
        limits(&mut config);
        let broken = |what: &str| self.breaks == Some(what);
        let stores = [("objects", OBJECTS), ("search", SEARCH)].into_iter().map(|(name, id)| {
            let place = usize::from(id.0);
            ReconcileStore {
                id,
                name: name.into(),
                listing: Arc::new(listing(&self.copies[place], broken(name))),
                sink: Arc::clone(&self.sinks[place]) as _,
                expects_all: true,
                may_be_empty: self.allow_empty,
            }
        });
        let comparison = Reconcile {
            config,
            relations: vec![self.relation.clone()].into(),
            rows: Arc::new(listing(&self.rows, broken("rows"))),
            deletions: Arc::new(listing(&self.deletions, broken("ledger"))),
            registry: Arc::new(self.registry.clone()),
            stores: stores.collect(),
        };
        let mut findings = Vec::new();
        let tally = comparison
            .run(&mut |finding| {
                findings.push(finding.clone());
                Ok(())
            })
            .await;
        (tally, findings)
    }
}

fn listing<T: Clone>(items: &[T], is_broken: bool) -> MemoryListing<T> {
    let listing = MemoryListing::new(items.to_vec(), 37);
    if is_broken { listing.breaking_at(items.len() / 8) } else { listing }
}

fn key(id: usize) -> Key {
    Key::from_postgres([id.to_string()])
}

/// Kind, key and address of each, in an order.
fn told(findings: &[Finding]) -> BTreeSet<(Wrong, String, String)> {
    let told: BTreeSet<_> = findings
        .iter()
        .map(|it| (it.kind, it.key.to_string(), format!("{:?}", it.address)))
        .collect();
    assert_eq!(told.len(), findings.len(), "each is told once");
    told
}

fn keys(findings: &[Finding], kind: Wrong) -> BTreeSet<usize> {
    let of_kind = findings.iter().filter(|finding| finding.kind == kind);
    of_kind.map(|finding| finding.key.to_string().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planted_is_found_and_nothing_else() {
    let mut world = World::new(usual());
    for id in 0..2_000 {
        match id {
            // Flagged and due: the copies of these should be gone, and of the first hundred are not.
            0..100 => {
                world.row(id, Standing::Due);
                world.copies(id);
            }
            100..200 => world.row(id, Standing::Due),
            // Finalized, and the copies of the first hundred are there again.
            200..300 => {
                world.deletion(id, State::Finalized);
                world.copies(id);
            }
            300..400 => world.deletion(id, State::Finalized),
            // Never heard of.
            400..500 => world.copies(id),
            // Alive, without a copy.
            500..600 => world.row(id, Standing::Alive),
            // Flagged and not due; a key that is used again; a life that was restored.
            600..700 => {
                world.row(id, Standing::Waiting);
                world.copies(id);
            }
            700..800 => {
                world.deletion(id, State::Finalized);
                world.row(id, Standing::Alive);
                world.copies(id);
            }
            _ => {
                world.row(id, Standing::Alive);
                world.copies(id);
            }
        }
    }
    let (tally, findings) = world.compare(|_| {}).await;
    let tally = tally.unwrap();
    assert_eq!(keys(&findings, Wrong::Straggler), (0..100).collect());
    assert_eq!(keys(&findings, Wrong::Zombie), (200..300).collect());
    assert_eq!(keys(&findings, Wrong::Orphan), (400..500).collect());
    assert_eq!(keys(&findings, Wrong::Missing), (500..600).collect());
    // An object, a document and two chunks; of what is missing the chunks are one address.
    let counts = [(Wrong::Straggler, 400), (Wrong::Zombie, 400), (Wrong::Orphan, 400)];
    assert_eq!(tally.found, counts.into_iter().chain([(Wrong::Missing, 300)]).collect());
    assert_eq!((tally.rows, tally.deletions), (1_700, 300));

    // However it is cut and wherever it is kept, it is the same.
    let all = told(&findings);
    for workers in [1, 3] {
        let cut = |config: &mut ReconcileConfig| {
            config.workers = workers;
            config.parts = 3;
            config.in_flight_max = 50;
            config.bucket_bytes_max = 200;
        };
        let (tally, findings) = world.compare(cut).await;
        assert_eq!(told(&findings), all);
        assert_eq!(tally.unwrap().found.values().sum::<u64>(), all.len() as u64);
    }
}

/// What broke says nothing, though all that came before was read: what is left out would be missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_breaks_reports_nothing() {
    let mut world = World::new(usual());
    for id in 0..400 {
        world.row(id, Standing::Alive);
        world.copies(id);
        world.deletion(10_000 + id, State::Finalized);
    }
    let (tally, findings) = world.compare(|_| {}).await;
    assert_eq!((tally.unwrap().suspects, findings.len()), (0, 0));
    for side in ["objects", "search", "rows", "ledger"] {
        world.breaks = Some(side);
        let (tally, findings) = world.compare(|_| {}).await;
        let said = tally.unwrap_err().to_string();
        assert!(said.contains(side) && said.contains("not whole"), "{said}");
        assert!(findings.is_empty(), "{side}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_is_an_error_unless_it_may_be_empty() {
    let mut world = World::new(usual());
    (0..10).for_each(|id| world.row(id, Standing::Alive));
    let (tally, findings) = world.compare(|_| {}).await;
    let said = tally.unwrap_err().to_string();
    assert!(said.contains("--allow-empty objects"), "{said}");
    assert!(findings.is_empty());
    world.allow_empty = true;
    let (tally, _) = world.compare(|_| {}).await;
    assert_eq!(tally.unwrap().found, [(Wrong::Missing, 30)].into());
}

/// The two listings disagree about what moves in between: the second look has the last word.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_wrong_at_both_looks_is_reported() {
    let mut world = World::new(usual());
    // Destroyed since it was listed; indexed since; its row came later; finalized since.
    world.row(1, Standing::Due);
    world.copies(1);
    world.row(2, Standing::Alive);
    world.copies(3);
    world.copies(4);
    world.row(5, Standing::Due);
    world.copies(5);
    world.row(9, Standing::Alive);
    world.copies(9);
    for (store, address) in world.addresses(1) {
        world.sinks[usize::from(store.0)].remove(&address);
    }
    for chunk in 0..2 {
        let id = format!("1#{chunk}");
        let chunk = Address::Document { index: "chunks".into(), id, routing: None };
        world.sinks[1].remove(&chunk);
    }
    for (store, address) in world.addresses(2) {
        world.sinks[usize::from(store.0)].put(address);
    }
    let columns = world.columns(3);
    let row = ListedRow {
        relation: RELATION,
        key: key(3),
        standing: Standing::Alive,
        columns,
        former: Vec::new(),
    };
    world.registry.put(row);
    let mut late = ListedDeletion {
        id: DeletionId(4),
        relation: RELATION,
        key: key(4),
        state: State::Claimed,
        is_settled: false,
        addresses: world.addresses(4),
    };
    world.registry.note(late.clone());
    world.registry.remove(RELATION, &key(5));
    late.id = DeletionId(5);
    late.key = key(5);
    late.state = State::Finalized;
    world.registry.note(late);
    let (tally, findings) = world.compare(|_| {}).await;
    let tally = tally.unwrap();
    assert_eq!(findings, []);
    assert_eq!(tally.suspects, 4 + 3 + 4 + 4 + 4);
}

/// A prefix leads to the same object as a template of its own: what any of them excuses is excused.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_judged_by_every_template_that_leads_to_it() {
    let prefix = AddressTemplate::Prefix { bucket: "bucket".into(), prefix: template("{id}/") };
    let mut world = World::new(relation(vec![
        (OBJECTS, object("{id}/original"), false),
        (OBJECTS, prefix, false),
    ]));
    world.allow_empty = true;
    let put = |world: &mut World, key: &str| {
        let address = Address::Object { bucket: "bucket".into(), key: key.to_owned() };
        world.copy(OBJECTS, address, &[]);
    };
    world.row(1, Standing::Alive);
    world.row(2, Standing::Due);
    world.deletion(3, State::Finalized);
    for id in 1..5 {
        put(&mut world, &format!("{id}/original"));
        put(&mut world, &format!("{id}/thumbnail"));
    }
    world.sinks[0].put(world.addresses(1)[1].1.clone());
    // Nobody's shape, and a key that Postgres spells otherwise.
    put(&mut world, "readme");
    put(&mut world, "007/original");
    let (tally, findings) = world.compare(|_| {}).await;
    let expected = [
        (Wrong::Straggler, 2, "original"),
        (Wrong::Straggler, 2, "thumbnail"),
        (Wrong::Zombie, 3, "original"),
        (Wrong::Zombie, 3, "thumbnail"),
        (Wrong::Orphan, 4, "original"),
        (Wrong::Orphan, 4, "thumbnail"),
    ];
    let expected: BTreeSet<_> = expected
        .into_iter()
        .map(|(kind, id, name)| {
            let key = format!("{id}/{name}");
            let address = Address::Object { bucket: "bucket".into(), key };
            (kind, id.to_string(), format!("{address:?}"))
        })
        .collect();
    assert_eq!(told(&findings), expected);
    assert_eq!(tally.unwrap().stores[0].elsewhere, 2);
}

/// What is hidden first is due first.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_to_be_hidden_leaves_its_objects_alone() {
    let mut world = World::new(usual());
    world.row(1, Standing::HideDue);
    world.copies(1);
    let (tally, findings) = world.compare(|_| {}).await;
    tally.unwrap();
    assert_eq!(findings.len(), 3);
    assert!(findings.iter().all(|it| it.kind == Wrong::Straggler && &*it.store == "search"));
}

/// The ledger remembers a place that no template leads to any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_at_a_former_templates_place_is_known_by_the_ledger() {
    let mut world = World::new(usual());
    world.row(1, Standing::Alive);
    world.copies(1);
    let address = Address::Object { bucket: "bucket".into(), key: "old/7".to_owned() };
    let deletion = ListedDeletion {
        id: DeletionId(7),
        relation: RELATION,
        key: key(7),
        state: State::Finalized,
        is_settled: true,
        addresses: vec![(OBJECTS, address.clone())],
    };
    world.registry.note(deletion.clone());
    world.deletions.push(deletion);
    world.copy(OBJECTS, address, &[]);
    let (tally, findings) = world.compare(|_| {}).await;
    tally.unwrap();
    assert_eq!(keys(&findings, Wrong::Zombie), [7].into());
    assert_eq!(findings.len(), 1);
}

/// A copy where a row's was before its address changed is the row's still.
#[tokio::test(flavor = "multi_thread")]
async fn a_former_address_is_the_rows() {
    let mut world = World::new(usual());
    for (id, standing) in [(1, Standing::Alive), (2, Standing::Due)] {
        world.row(id, standing);
        let former = vec![Some("before".to_owned()), Some(id.to_string())];
        let row = world.rows.last_mut().unwrap();
        row.former.push(former);
        world.registry.put(row.clone());
        let key = format!("before/{id}/original");
        world.copy(OBJECTS, Address::Object { bucket: "bucket".into(), key }, &[]);
    }
    world.copies(1);
    let (tally, findings) = world.compare(|_| {}).await;
    tally.unwrap();
    assert_eq!((keys(&findings, Wrong::Straggler), findings.len()), ([2].into(), 1));
}
