//! The audit: finalized keys are looked up in their stores again, for what came back.
//!
//! Owned here: the passes over the ledger (`pass.rs`), looking (`look.rs`), what could not be told (`later.rs`),
//! and what follows from a page, in one transaction with how far it is. Left to others: destroying what
//! is found, which the sweep brings to the claim like a hard delete (`again.rs`, `removed.rs`).
//!
//! Design: docs/design/0002-audit.md.

mod barrier;
mod later;
mod look;
mod pass;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::sleep_until;
use tracing::{error, warn};

use tombstream_model::{
    Address, DeletionCause, Fence, Key, Relation, RelationId, Row, Sink, StoreId, Target,
};

use super::again::{Again, Opened, open_again};
use super::statement::{BEGIN, Statements};
use barrier::Barrier;
use look::{Down, Seen};
pub use pass::AuditTally;
use pass::{Held, Item, Page, Part, Place};

/// How the audit goes.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Who owns the leases: one name a process, for people to read.
    pub owner: String,
    /// How long after its closing a deletion is looked at: a pass for each.
    pub lags: Vec<Duration>,
    /// Most targets a second that are looked at in one store.
    pub rate_max: u32,
    /// Most closed deletions of one page.
    pub page_max: u32,
    /// How long what was found rests before it may be claimed.
    pub wait: Duration,
    /// How long a part of a pass is one process's own. It is renewed with each page.
    pub lease: Duration,
    /// The first and the longest wait before what could not be told is looked at again.
    pub again_wait: (Duration, Duration),
    /// Whether statements stay prepared in their session, as in
    /// [`LedgerConfig::prepared_statements`](super::LedgerConfig::prepared_statements).
    pub prepared_statements: bool,
}

impl AuditConfig {
    /// With the usual limits. A page of 500 is two and a half seconds of 200 a second; a lease of half a minute is
    /// longer than a page takes, and whoever is killed is taken over soon; a look that could not tell is tried
    /// after ten seconds, and then less and less often, four times a day in the end.
    pub fn new(owner: String, lags: Vec<Duration>) -> Self {
        Self {
            owner,
            lags,
            rate_max: 200,
            page_max: 500,
            wait: Duration::from_secs(60),
            lease: Duration::from_secs(30),
            again_wait: (Duration::from_secs(10), Duration::from_secs(6 * 3_600)),
            prepared_statements: true,
        }
    }
}

/// Which closed deletions an audit by hand looks at.
#[derive(Clone, Copy, Debug)]
pub struct AuditSpan {
    /// Not those that were closed before this; none: all.
    pub since: Option<DateTime<Utc>>,
    /// Not those that were closed less long ago.
    pub lag: Duration,
}

/// What one round over a store came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditRound {
    /// What was found.
    pub tally: AuditTally,
    /// Whether there is more to look at already.
    pub has_more: bool,
}

/// Why a store is not audited now.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The ledger does not answer, or refuses.
    #[error("the ledger can't be asked")]
    Ledger(#[from] sqlx::Error),
    /// The store can't be looked at. The passes stay where they are.
    #[error("the store can't be looked at: {said}")]
    Store {
        /// What it said.
        said: String,
        /// When it wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
}

impl From<Down> for AuditError {
    fn from(down: Down) -> Self {
        Self::Store { said: down.said, retry_after: down.retry_after }
    }
}

/// Pages of a part in one round, so that a long history holds up no other part.
const PAGES_A_TURN: usize = 20;

/// The audit of the configured relations and stores.
#[derive(Debug)]
pub struct Audit {
    statements: Statements,
    relations: Arc<[Relation]>,
    /// The stores' names; a [`StoreId`] is an index into them.
    stores: Vec<Arc<str>>,
    config: AuditConfig,
    barrier: Mutex<Barrier>,
}

/// A page with what was seen of each address.
struct Looked {
    items: Vec<(Item, Vec<Seen>)>,
    targets: u64,
}

impl Audit {
    /// An audit over `pool`; the ids of relations and stores are indices into the lists.
    pub fn new(
        pool: PgPool,
        relations: Arc<[Relation]>,
        stores: Vec<Arc<str>>,
        config: AuditConfig,
    ) -> Self {
        let statements = Statements::new(pool, config.prepared_statements);
        Self { statements, relations, stores, config, barrier: Mutex::default() }
    }

    /// Looks, in one store, at what is due of each pass. A look waits at most `patience` for its answer.
    ///
    /// Killed at any instruction, a page was done whole or is done again: what it found and how far the pass is
    /// are one transaction (`an_auditor_that_is_killed_misses_nothing_and_finds_nothing_twice`).
    pub async fn round<S: Sink>(
        &self,
        store: StoreId,
        sink: &S,
        patience: Duration,
    ) -> Result<AuditRound, AuditError> {
        let mut round = AuditRound::default();
        let Some(safe) = self.safe().await? else { return Ok(round) };
        for relation in self.relations.iter().filter(|it| has_copies(it, store)) {
            for (place, lag) in self.config.lags.iter().enumerate() {
                let part = self.part(relation, store, *lag);
                let (owner, lease) = (&self.config.owner, self.config.lease);
                let Some(held) = pass::take(&self.statements, &part, owner, lease, safe).await?
                else {
                    continue;
                };
                // What could not be told goes with the first pass.
                let turn = Turn { audit: self, relation, store, sink, patience };
                let ended = turn.go(held.clone(), place == 0, &mut round).await;
                let failure = match &ended {
                    Err(AuditError::Store { said, .. }) => Some(said.as_str()),
                    Ok(()) | Err(AuditError::Ledger(_)) => None,
                };
                pass::release(&self.statements, &held, failure).await?;
                ended?;
            }
        }
        Ok(round)
    }

    /// Looks at all that `span` names of one relation in one store, whatever the passes have seen. They stay
    /// where they are; `progress` is told after each page.
    pub async fn once<S: Sink>(
        &self,
        relation: &str,
        store: StoreId,
        sink: &S,
        (patience, span): (Duration, AuditSpan),
        mut progress: impl FnMut(&AuditTally),
    ) -> Result<AuditTally, AuditError> {
        let mut tally = AuditTally::default();
        let found = self.relations.iter().find(|it| *it.name == *relation);
        let Some(relation) = found.filter(|it| has_copies(it, store)) else { return Ok(tally) };
        let turn = Turn { audit: self, relation, store, sink, patience };
        let part = self.part(relation, store, span.lag);
        let mut at = Place { closed_at: span.since, deletion: 0 };
        let horizon = barrier::ago(&self.statements, span.lag).await?;
        loop {
            let page =
                pass::page(&self.statements, &part, at, horizon, self.config.page_max).await?;
            let (end, is_last) = (page.end, page.is_last);
            let looked = turn.look(page.items).await?;
            tally.add(turn.keep(&part, None, &looked, &[]).await?.unwrap_or_default());
            progress(&tally);
            if is_last {
                return Ok(tally);
            }
            at = end;
        }
    }

    /// Looks, in one store, at the copies of every finalized deletion of these keys, each key once. What is there again is
    /// written down as in a pass; the passes stay where they are.
    pub async fn keys<S: Sink>(
        &self,
        relation: RelationId,
        store: StoreId,
        sink: &S,
        patience: Duration,
        keys: &[Key],
    ) -> Result<AuditTally, AuditError> {
        let relation = &self.relations[usize::from(relation.0)];
        if !has_copies(relation, store) {
            return Ok(AuditTally::default());
        }
        let part = self.part(relation, store, Duration::ZERO);
        let items = pass::of_keys(&self.statements, &part, keys).await?;
        let turn = Turn { audit: self, relation, store, sink, patience };
        let looked = turn.look(items).await?;
        Ok(turn.keep(&part, None, &looked, &[]).await?.unwrap_or_default())
    }

    /// Up to when everything that was closed can be read.
    async fn safe(&self) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
        let waits_for = self.barrier().waits_for();
        let seen = barrier::read(&self.statements, waits_for).await?;
        Ok(self.barrier().pass(seen))
    }

    fn barrier(&self) -> std::sync::MutexGuard<'_, Barrier> {
        self.barrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, relation: &Relation, store: StoreId, lag: Duration) -> Part {
        let store = self.stores[usize::from(store.0)].to_string();
        Part { lag, relation: relation.name.to_string(), store }
    }
}

fn has_copies(relation: &Relation, store: StoreId) -> bool {
    relation.targets.iter().any(|target| target.store == store)
}

/// One relation's copies in one store, being looked at.
struct Turn<'a, S> {
    audit: &'a Audit,
    relation: &'a Relation,
    store: StoreId,
    sink: &'a S,
    patience: Duration,
}

impl<S: Sink> Turn<'_, S> {
    /// Some pages of a part.
    async fn go(
        &self,
        mut held: Held,
        with_later: bool,
        round: &mut AuditRound,
    ) -> Result<(), AuditError> {
        let statements = &self.audit.statements;
        if with_later {
            let page_max = self.audit.config.page_max;
            let (items, gone) = later::due(statements, &held.part, page_max).await?;
            let ids: Vec<i64> = items.iter().map(|item| item.id.0).chain(gone).collect();
            if !ids.is_empty() {
                let looked = self.look(items).await?;
                let at = held.at;
                match self.keep(&held.part, Some((&held, at)), &looked, &ids).await? {
                    Some(tally) => round.tally.add(tally),
                    None => return Ok(()),
                }
            }
        }
        for _ in 0..PAGES_A_TURN {
            let Page { items, end, is_last } = pass::page(
                statements,
                &held.part,
                held.at,
                held.horizon,
                self.audit.config.page_max,
            )
            .await?;
            let looked = self.look(items).await?;
            let kept = self.keep(&held.part, Some((&held, end)), &looked, &[]).await?;
            // Another process has taken the part over: what this one saw is its affair.
            let Some(tally) = kept else { return Ok(()) };
            round.tally.add(tally);
            held.at = end;
            self.gauge(&held);
            if is_last {
                return Ok(());
            }
        }
        round.has_more = true;
        Ok(())
    }

    /// Looks at all addresses of `items`, not faster than the rate.
    async fn look(&self, items: Vec<Item>) -> Result<Looked, Down> {
        let began = tokio::time::Instant::now();
        // A look destroys nothing and asks no fence.
        let fence = Fence { token: 0, until: Instant::now() };
        let targets: Vec<Target> = items
            .iter()
            .flat_map(|item| item.addresses.iter().map(|address| (item.id, address)))
            .map(|(deletion, address)| {
                let address = address.clone();
                Target { deletion, store: self.store, address, fence, lsn: None }
            })
            .collect();
        let mut seen = look::look(self.sink, &targets, self.patience).await?.into_iter();
        let items = items
            .into_iter()
            .map(|item| {
                let of_item = seen.by_ref().take(item.addresses.len()).collect();
                (item, of_item)
            })
            .collect();
        let rate = f64::from(self.audit.config.rate_max.max(1));
        sleep_until(began + Duration::from_secs_f64(targets.len() as f64 / rate)).await;
        Ok(Looked { items, targets: targets.len() as u64 })
    }

    /// Writes down what follows from a page: copies that are there become deletions, what could not be told is
    /// kept, and the pass gets on. `again` are those that were kept before. None: the part is another's.
    async fn keep(
        &self,
        part: &Part,
        held: Option<(&Held, Place)>,
        looked: &Looked,
        again: &[i64],
    ) -> Result<Option<AuditTally>, AuditError> {
        let audit = self.audit;
        let mut tally = AuditTally { looked: looked.targets, ..AuditTally::default() };
        let found = self.found(part, looked);
        let mut unclear: BTreeMap<i64, String> = BTreeMap::new();
        for (item, seen) in &looked.items {
            let reason = seen.iter().find_map(|seen| match seen {
                Seen::Unknown(reason) => Some(reason.replace('\0', "\u{fffd}")),
                Seen::Present | Seen::Absent => None,
            });
            if let Some(reason) = reason {
                unclear.insert(item.id.0, reason);
            }
        }
        let mut transaction = audit.statements.begin(BEGIN).await?;
        let batch: Vec<Again> = found.iter().map(|found| found.again.clone()).collect();
        let cause = DeletionCause::Resurrected;
        let opened =
            open_again(&mut transaction, self.relation, &batch, cause, audit.config.wait).await?;
        for (found, opened) in found.iter().zip(&opened) {
            let copies = found.again.targets.len() as u64;
            match opened {
                Opened::New => {
                    tally.resurrected += copies;
                    tally.parked += if found.again.refusal.is_some() { copies } else { 0 };
                }
                Opened::Known => tally.known += copies,
                Opened::Reused => tally.reused += copies,
                Opened::Waits => {
                    let reason = "a copy is there, and another deletion of its key is open";
                    unclear.extend(found.ids.iter().map(|id| (*id, reason.to_owned())));
                }
            }
        }
        tally.unclear = unclear.len() as u64;
        let settled: Vec<i64> =
            again.iter().copied().filter(|id| !unclear.contains_key(id)).collect();
        later::forget(&audit.statements, &mut transaction, part, &settled).await?;
        let unclear: Vec<(i64, String)> = unclear.into_iter().collect();
        tally.unknown = later::keep(
            &audit.statements,
            &mut transaction,
            part,
            &unclear,
            audit.config.again_wait,
        )
        .await?;
        if let Some((held, to)) = held {
            let (statements, lease) = (&audit.statements, audit.config.lease);
            if !pass::get_on(statements, &mut transaction, held, to, &tally, lease).await? {
                transaction.rollback().await?;
                return Ok(None);
            }
        }
        transaction.commit().await?;
        self.report(&tally);
        Ok(Some(tally))
    }

    /// The copies that are there, by key: two lives of a key may have had the same address.
    fn found(&self, part: &Part, looked: &Looked) -> Vec<Found> {
        let mut by_key: BTreeMap<&Key, Found> = BTreeMap::new();
        for (item, seen) in &looked.items {
            let there = item.addresses.iter().zip(seen).filter(|(_, seen)| **seen == Seen::Present);
            for (address, _) in there {
                let found = by_key.entry(&item.key).or_insert_with(|| Found {
                    again: Again { key: item.key.clone(), targets: Vec::new(), refusal: None },
                    ids: Vec::new(),
                });
                let target = (part.store.clone(), address.clone());
                if !found.again.targets.contains(&target) {
                    found.again.targets.push(target);
                }
                if !self.is_of_key(&item.key, address) {
                    found.again.refusal = Some(NOT_ITS_OWN.to_owned());
                }
                if !found.ids.contains(&item.id.0) {
                    found.ids.push(item.id.0);
                }
            }
        }
        by_key.into_values().collect()
    }

    /// Whether the templates of today give this address to this key and so to no other.
    ///
    /// Invariant (S1, S8): templates may have changed since the address was resolved, and what was this key's
    /// copy then may be another living row's now; `an_address_that_the_templates_do_not_give_is_parked`.
    fn is_of_key(&self, key: &Key, address: &Address) -> bool {
        let columns: Vec<&str> = self.relation.key.iter().map(|it| it.name.as_str()).collect();
        let values: Vec<Option<&str>> = key.columns().map(Some).collect();
        let row = Row { columns: &columns, values: &values };
        let templates = self.relation.targets.iter().filter(|it| it.store == self.store);
        templates.into_iter().any(|template| template.address.could_give(address, row))
    }

    /// What came back is never silent.
    fn report(&self, tally: &AuditTally) {
        let store = self.audit.stores[usize::from(self.store.0)].to_string();
        let relation = self.relation.name.to_string();
        for (name, count) in [
            ("tombstream_audit_looked_total", tally.looked),
            ("tombstream_audit_resurrected_total", tally.resurrected),
            ("tombstream_audit_reused_total", tally.reused),
            ("tombstream_audit_unknown_total", tally.unknown),
        ] {
            metrics::counter!(name, "relation" => relation.clone(), "store" => store.clone())
                .increment(count);
        }
        if tally.parked > 0 {
            metrics::counter!("tombstream_parked_total", "relation" => relation.clone())
                .increment(tally.parked);
        }
        if tally.resurrected > 0 {
            let (copies, parked) = (tally.resurrected, tally.parked);
            warn!(
                relation,
                store,
                copies,
                parked,
                "copies of finalized rows are back: they are destroyed again"
            );
        }
        if tally.unknown > 0 {
            let copies = tally.unknown;
            error!(
                relation,
                store,
                copies,
                "finalized rows can't be audited for long: look with `tombstream status`"
            );
        }
    }

    /// How far a pass is behind.
    fn gauge(&self, held: &Held) {
        let Some(at) = held.at.closed_at else { return };
        let behind = (held.horizon - at).to_std().unwrap_or_default();
        metrics::gauge!(
            "tombstream_audit_behind_seconds",
            "pass" => format!("{}s", held.part.lag.as_secs()),
            "relation" => held.part.relation.clone(),
            "store" => held.part.store.clone()
        )
        .set(behind.as_secs_f64());
    }
}

/// A key with copies that are there.
struct Found {
    again: Again,
    /// The finalized deletions that they are of.
    ids: Vec<i64>,
}

const NOT_ITS_OWN: &str = "a copy came back at an address that the relation's templates give to this key \
    no more, so it may be another row's: if it is nobody's, retry";
