//! `[pipeline]`: the process that runs the dataflow.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::document::{Place, Section};

/// How the dataflow runs.
#[derive(Clone, Debug)]
pub(crate) struct PipelineConfig {
    /// Timely workers. 2: decoding is the cost and scales with cores, and two show early what one
    /// worker would hide.
    pub(crate) workers: NonZeroUsize,
    /// Where /metrics, /healthz and /readyz are served. Loopback: they need no credentials.
    pub(crate) listen: SocketAddr,
    /// Most events read and not yet durable. 20,000: some seconds of full speed, and with records
    /// of a kilobyte no more than some 20 MB.
    pub(crate) in_flight_max: NonZeroUsize,
    /// How long a claim is this process's own. 60 s: longer than the slowest store's deadline and
    /// the finalizing together, short enough that another process soon takes over from a dead one.
    pub(crate) lease: Duration,
    pub(crate) lease_place: Place,
    /// Most deletions of one claim or finalizing transaction. 500: the cost of a transaction is
    /// spread thin by then, and a refused row is found by halving in nine steps.
    pub(crate) batch_max: NonZeroUsize,
    /// How long an open batch waits for more while another is in flight. 5 ms: hardly seen in a
    /// deletion's time, and enough to fill batches under load.
    pub(crate) linger: Duration,
    /// Transactions in flight of the claim and of the finalizer, each, for each worker. 2: one
    /// works while the next is sent.
    pub(crate) transactions_max: NonZeroUsize,
    /// Longest wait for one attempt of a transaction. 10 s: far above what a healthy Postgres
    /// takes, far below the lease.
    pub(crate) transaction_timeout: Duration,
    /// How long an epoch stays open after its first record. 20 ms: short beside any store's answer,
    /// long beside the cost of an epoch.
    pub(crate) epoch_wait: Duration,
    /// Most keys that the dedupe stage remembers, for each worker. 100,000: some 20 MB; forgetting
    /// costs a claim that finds nothing to do.
    pub(crate) dedupe_keys_max: NonZeroUsize,
    /// How long what a store owes rests before it is driven again, doubled with each attempt. 5 s:
    /// a store that was busy for a moment is asked soon.
    pub(crate) owed_wait_min: Duration,
    /// The longest such rest. 10 min: it bounds how late a store that came back is noticed, and
    /// keeps a long outage's work far below live traffic.
    pub(crate) owed_wait_max: Duration,
    /// How old an epoch may get before /healthz fails and names it. 2 min: twice the lease.
    pub(crate) epoch_age_max: Duration,
    /// How long a stop may take to finish what is in flight. 5 s: what is not done by then is the
    /// sweep's, and most supervisors kill after 10 s.
    pub(crate) drain_max: Duration,
}

impl PipelineConfig {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let count = |number| NonZeroUsize::new(number).expect("not zero");
        let lease_place = section.place("lease");
        let owed_place = section.place("owed_wait_max");
        let owed_wait_min = section.or("owed_wait_min", Duration::from_secs(5));
        let owed_wait_max = section.or("owed_wait_max", Duration::from_secs(600));
        if owed_wait_min > owed_wait_max {
            section.problem(
                owed_place,
                format!(
                    "{} is shorter than owed_wait_min ({})",
                    humantime::format_duration(owed_wait_max),
                    humantime::format_duration(owed_wait_min)
                ),
                "make owed_wait_max the longer one",
            );
        }
        Self {
            workers: section.or("workers", count(2)),
            listen: section.or("listen", SocketAddr::from(([127, 0, 0, 1], 8081))),
            in_flight_max: section.or("in_flight_max", count(20_000)),
            lease: section.or("lease", Duration::from_secs(60)),
            lease_place,
            batch_max: section.or("batch_max", count(500)),
            linger: section.or("linger", Duration::from_millis(5)),
            transactions_max: section.or("transactions_max", count(2)),
            transaction_timeout: section.or("transaction_timeout", Duration::from_secs(10)),
            epoch_wait: section.or("epoch_wait", Duration::from_millis(20)),
            dedupe_keys_max: section.or("dedupe_keys_max", count(100_000)),
            owed_wait_min,
            owed_wait_max,
            epoch_age_max: section.or("epoch_age_max", Duration::from_secs(120)),
            drain_max: section.or("drain_max", Duration::from_secs(5)),
        }
    }
}
