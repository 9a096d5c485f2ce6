//! Whether others see a commit already that the log tells.
//!
//! Postgres writes a commit to the log, waits for its disk and its synchronous standbys, and only then lets others
//! see it. The log tells it before that: a claim at that moment would not find the flag.

use std::time::Duration;

use metrics::counter;
use sqlx::{Executor as _, PgPool, Row as _};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::super::statement::carried;

/// How long rows wait for their commit to be seen. It is a disk's or a standby's moment; a commit that is stuck
/// (its standby is away) must not hold up those behind it, and the sweep finds its row.
const SEEN_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked again.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What a statement sees that began at some moment. What was seen once stays seen. By default nothing is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// All before it have ended.
    least: u64,
    /// None from it on has.
    next: u64,
    /// Those between that have not.
    running: Vec<u64>,
}

impl Snapshot {
    /// Reads `least:next:running,running,…` (`pg_current_snapshot`).
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let least = parts.next()?.parse().ok()?;
        let next = parts.next()?.parse().ok()?;
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        let running = running.map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
        parts.next().is_none().then_some(Self { least, next, running })
    }

    /// Whether the end of transaction `xid` is seen. The log names it by its lower half: it is the one nearest to
    /// the next, since no more than half of all numbers are in use.
    fn sees(&self, xid: u32) -> bool {
        let ahead = xid.wrapping_sub(self.next as u32).cast_signed();
        let xid = self.next.wrapping_add_signed(ahead.into());
        xid < self.least || (xid < self.next && !self.running.contains(&xid))
    }
}

/// Waits until others see these transactions, but not for ever. `known` is the last that was asked for: behind the head
/// of the log it knows them already. Nothing is lost when this is given up.
pub(super) async fn seen(
    known: &mut Snapshot,
    pool: &PgPool,
    slot: &str,
    xids: &[u32],
) -> Result<(), sqlx::Error> {
    let ends = Instant::now() + SEEN_WAIT;
    let is_seen = |known: &Snapshot| xids.iter().all(|xid| known.sees(*xid));
    if is_seen(known) {
        return Ok(());
    }
    loop {
        *known = current(pool).await?;
        if is_seen(known) {
            return Ok(());
        }
        if Instant::now() >= ends {
            counter!("tombstream_commits_unseen_total", "slot" => slot.to_owned()).increment(1);
            warn!(
                slot,
                "a commit that the log told is not seen after {SEEN_WAIT:?} (a synchronous standby that is away?): \
                 its rows are left to the sweep"
            );
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
    }
}

/// One round trip, behind a pooler too.
///
/// A source's wait is given up with each commit of its positions, some fifty times a second; the pool closes a connection
/// whose statement is given up, and the next one costs more than all that it is asked for. So the statement has a task of
/// its own, which is carried through.
async fn current(pool: &PgPool) -> Result<Snapshot, sqlx::Error> {
    let pool = pool.clone();
    let sql = "select pg_current_snapshot()::text";
    let row = carried(async move { pool.fetch_one(sqlx::raw_sql(sql)).await }).await?;
    let text: String = row.try_get(0)?;
    Snapshot::read(&text).ok_or_else(|| sqlx::Error::Decode(format!("a snapshot: {text}").into()))
}

#[cfg(test)]
mod tests {
    use super::Snapshot;

    #[test]
    fn what_has_ended_is_seen_and_what_runs_or_comes_is_not() {
        let snapshot = Snapshot::read("10:20:10,14").unwrap();
        let seen: Vec<u32> = (8..23).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        assert!(Snapshot::read("20:20:").unwrap().sees(19));
        assert!(!Snapshot::read("20:20:").unwrap().sees(20));
    }

    #[test]
    fn numbers_that_begin_anew_are_told_apart() {
        let begun = 7_u64 << 32;
        let text = format!("{}:{}:{}", begun - 2, begun + 3, begun + 1);
        let snapshot = Snapshot::read(&text).unwrap();
        assert!(snapshot.sees(u32::MAX) && snapshot.sees(0) && snapshot.sees(2));
        assert!(!snapshot.sees(1), "it runs");
        assert!(!snapshot.sees(3), "it comes");
        assert!(Snapshot::read("4:4:").unwrap().sees(3));
        assert!([0, 3, 1 << 31, u32::MAX].iter().all(|xid| !Snapshot::default().sees(*xid)));
    }

    #[test]
    fn what_is_no_snapshot_is_none() {
        for text in ["", "1", "1:2", "1:2:x", "a:2:", "1:2:3:4"] {
            assert_eq!(Snapshot::read(text), None, "{text}");
        }
    }
}
