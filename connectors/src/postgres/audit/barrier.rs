//! Up to when everything that was closed can be read.
//!
//! A finalizing transaction says when it closed its deletions, and is read only once it has committed, which may
//! be much later: a commit may wait for a standby. A pass that went by time alone would go past it for good.
//!
//! Invariant (S6): a pass goes no further than a moment at which every transaction that had begun to write then has
//! ended. Whoever closes a deletion has locked its row before, and so has a number that is lower than those of
//! its moment's snapshot, or a later time; `a_deletion_that_is_committed_late_is_not_passed_by`.
//! A clock that is set back by less than a pass's lag is no matter: what is closed is younger than the lag.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::super::statement::Statements;

/// A moment, and the first transaction that had not begun then.
#[derive(Clone, Debug)]
struct Moment {
    at: DateTime<Utc>,
    /// A text: an `xid8`.
    next: String,
}

/// What the server said at one moment.
#[derive(Debug)]
pub(super) struct Read {
    moment: Moment,
    /// Which moment was asked for: another store's round may wait for a later one by now.
    asked: Option<String>,
    /// Whether all are ended that had begun by then.
    has_passed: bool,
    /// Whether nobody is writing at all.
    is_idle: bool,
}

/// The moment that is waited for, and the last one that has passed.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    waiting: Option<Moment>,
    safe: Option<DateTime<Utc>>,
}

impl Barrier {
    /// What [`read`] is to ask for.
    pub(super) fn waits_for(&self) -> Option<String> {
        self.waiting.as_ref().map(|moment| moment.next.clone())
    }

    /// Takes what the server said, and gives the moment up to which all is to be read; none yet at first.
    pub(super) fn pass(&mut self, read: Read) -> Option<DateTime<Utc>> {
        if read.is_idle {
            self.safe = self.safe.max(Some(read.moment.at));
            self.waiting = None;
        } else if read.has_passed && read.asked == self.waits_for() {
            let passed = self.waiting.take().map(|moment| moment.at);
            self.safe = self.safe.max(passed);
        }
        self.waiting.get_or_insert(read.moment);
        self.safe
    }
}

/// `now()` is taken before the statement's snapshot is.
const READ: &str = "\
    select now(), pg_snapshot_xmax(s.now)::text, \
        coalesce(pg_snapshot_xmin(s.now) >= $1::text::xid8, false), \
        pg_snapshot_xmin(s.now) = pg_snapshot_xmax(s.now) \
    from (select pg_current_snapshot() as now) s";

/// Asks the server.
pub(super) async fn read(
    statements: &Statements,
    waits_for: Option<String>,
) -> Result<Read, sqlx::Error> {
    let mut session = statements.session().await?;
    let row = statements.query(READ).bind(&waits_for).fetch_one(&mut *session).await?;
    session.end().await?;
    let moment = Moment { at: row.try_get(0)?, next: row.try_get(1)? };
    Ok(Read { moment, asked: waits_for, has_passed: row.try_get(2)?, is_idle: row.try_get(3)? })
}

/// So long before now, by the server's clock.
pub(super) async fn ago(
    statements: &Statements,
    length: Duration,
) -> Result<DateTime<Utc>, sqlx::Error> {
    let mut session = statements.session().await?;
    let ago = statements
        .scalar("select now() - make_interval(secs => $1)")
        .bind(length.as_secs_f64())
        .fetch_one(&mut *session)
        .await?;
    session.end().await?;
    Ok(ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another transaction has begun with each second.
    fn read(at: u64, asked: Option<u64>, has_passed: bool, is_idle: bool) -> Read {
        let moment =
            Moment { at: DateTime::UNIX_EPOCH + Duration::from_secs(at), next: at.to_string() };
        Read { moment, asked: asked.map(|at| at.to_string()), has_passed, is_idle }
    }

    #[test]
    fn a_moment_is_safe_when_all_that_had_begun_by_it_have_ended() {
        let mut barrier = Barrier::default();
        let mut pass = |read| {
            let safe = barrier.pass(read).map(|at| at.timestamp());
            (safe, barrier.waits_for().unwrap_or_default())
        };
        assert_eq!(pass(read(1, None, false, false)), (None, "1".to_owned()), "somebody writes");
        let later = pass(read(2, Some(1), false, false));
        assert_eq!(
            later,
            (None, "1".to_owned()),
            "the first moment is waited for, not a later one"
        );
        assert_eq!(pass(read(3, Some(1), true, false)), (Some(1), "3".to_owned()));
        let stale = pass(read(4, Some(1), true, false));
        assert_eq!(
            stale,
            (Some(1), "3".to_owned()),
            "what another round has asked for says nothing"
        );
        assert_eq!(pass(read(5, Some(3), false, true)), (Some(5), "5".to_owned()), "nobody writes");
        assert_eq!(pass(read(6, Some(5), false, false)), (Some(5), "5".to_owned()));
    }
}
