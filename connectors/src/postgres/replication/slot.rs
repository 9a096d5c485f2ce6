//! The slot: what it is now, what is known of it, and what follows when the two differ.
//!
//! A slot that was dropped, made anew, moved by hand or left on another server gives no error: the
//! server begins where the slot stands, and what lies before is never told. So the ledger keeps how
//! far the slot was acknowledged, written before the server is told. What can't be told from the log
//! is a *gap*: positions get a new generation (S4), and the sweep looks at every flag at once (L1).

use std::fmt;

use pgwire_replication::{PgWireError, ReplicationClient};
use sqlx::{PgConnection, Row as _};
use tombstream_model::{Generation, Lsn};

/// Events that the slot will not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The slot.
    pub slot: String,
    /// Why.
    pub reason: GapReason,
    /// Up to where it had told everything, if that is known.
    pub from: Option<Lsn>,
    /// From where on it tells everything again.
    pub to: Lsn,
}

/// Why a slot does not tell some events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// It was never read before.
    New,
    /// There was none, so it was made anew.
    Missing,
    /// The server had thrown away the log that it needed, so it was made anew.
    Lost,
    /// It began with a snapshot that was not finished, so it was made anew.
    Unfinished,
    /// It stands beyond what was acknowledged: made anew or moved by another hand.
    Moved,
    /// The server is another one, or was promoted.
    OtherServer,
}

impl GapReason {
    /// The reason's word, for a metric's label.
    pub fn code(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Missing => "missing",
            Self::Lost => "lost",
            Self::Unfinished => "unfinished",
            Self::Moved => "moved",
            Self::OtherServer => "other_server",
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = &self.slot;
        match self.reason {
            GapReason::New => write!(f, "slot {slot} is read for the first time"),
            GapReason::Missing => write!(f, "slot {slot} was gone, and is made anew"),
            GapReason::Lost => write!(
                f,
                "slot {slot} was lost (the server removed the log it needed: \
                 max_slot_wal_keep_size), and is made anew"
            ),
            GapReason::Unfinished => {
                write!(
                    f,
                    "slot {slot} began with a snapshot that was not finished, and is made anew"
                )
            }
            GapReason::Moved => write!(
                f,
                "slot {slot} stands beyond what was acknowledged: it was made anew or advanced by \
                 another hand"
            ),
            GapReason::OtherServer => {
                write!(f, "slot {slot} is on another server or timeline than before (a failover?)")
            }
        }?;
        match self.from {
            Some(from) => write!(f, "; events from {from} to {} are not told", self.to),
            None => write!(f, "; events before {} are not told", self.to),
        }?;
        write!(f, ", the sweep looks for their flags now")
    }
}

/// The slot as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotFacts {
    pub(super) plugin: String,
    pub(super) is_logical: bool,
    pub(super) database: String,
    pub(super) here: String,
    pub(super) active_pid: Option<String>,
    pub(super) confirmed: Option<Lsn>,
    pub(super) is_lost: bool,
}

/// What the ledger knows of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) server: Server,
    pub(super) generation: Generation,
    pub(super) acknowledged: Lsn,
    pub(super) is_complete: bool,
}

/// Which life of which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) system_identifier: String,
    pub(super) timeline: u32,
}

/// What is to be done before the slot can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// It is the one that was left: go on.
    GoOn,
    /// It can be read, and does not tell everything.
    Adopt(GapReason),
    /// Make it.
    Create(GapReason),
    /// Drop it, and make it.
    Recreate(GapReason),
    /// Somebody reads it: wait.
    Wait(String),
    /// It is somebody else's.
    Refuse(String),
}

/// What follows from what the server and the ledger say.
///
/// Invariant (L1): a slot that may not tell everything is a gap; the tests below.
pub(super) fn plan(facts: Option<&SlotFacts>, known: Option<&Known>, server: &Server) -> Plan {
    let moved_house = known.is_some_and(|known| known.server != *server);
    let Some(facts) = facts else {
        return Plan::Create(match known {
            None => GapReason::New,
            Some(_) if moved_house => GapReason::OtherServer,
            Some(_) => GapReason::Missing,
        });
    };
    if !facts.is_logical || facts.plugin != "pgoutput" {
        return Plan::Refuse(format!(
            "it is a slot of {}, not of pgoutput: name another one in source.postgres.slot",
            if facts.is_logical { facts.plugin.as_str() } else { "physical replication" }
        ));
    }
    if facts.database != facts.here {
        return Plan::Refuse(format!(
            "it is of the database {:?}, not of {:?}: name another one in source.postgres.slot",
            facts.database, facts.here
        ));
    }
    if let Some(pid) = &facts.active_pid {
        return Plan::Wait(format!(
            "it is read by the server's process {pid}: of another tombstream, or of a connection \
             that is not noticed to be dead yet; waiting"
        ));
    }
    if facts.is_lost {
        return Plan::Recreate(GapReason::Lost);
    }
    if known.is_some_and(|known| !known.is_complete) {
        return Plan::Recreate(GapReason::Unfinished);
    }
    match (known, facts.confirmed) {
        (None, _) => Plan::Adopt(GapReason::New),
        (Some(_), _) if moved_house => Plan::Adopt(GapReason::OtherServer),
        (Some(known), Some(confirmed)) if confirmed > known.acknowledged => {
            Plan::Adopt(GapReason::Moved)
        }
        (Some(_), _) => Plan::GoOn,
    }
}

/// Asks the server about the slot, in the session that will read it.
pub(super) async fn facts(
    session: &mut ReplicationClient,
    slot: &str,
) -> Result<Option<SlotFacts>, PgWireError> {
    // The name needs no quotes: `ReplicationConfig::validate`.
    let rows = session
        .simple_query(&format!(
            "select plugin, slot_type, database, pg_catalog.current_database(), active_pid, \
                 confirmed_flush_lsn, wal_status \
             from pg_catalog.pg_replication_slots where slot_name = '{slot}'"
        ))
        .await?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let text = |at: usize| {
        let value = row.get(at).and_then(Option::as_ref);
        value.map(|value| String::from_utf8_lossy(value).into_owned())
    };
    Ok(Some(SlotFacts {
        plugin: text(0).unwrap_or_default(),
        is_logical: text(1).as_deref() == Some("logical"),
        database: text(2).unwrap_or_default(),
        here: text(3).unwrap_or_default(),
        active_pid: text(4),
        confirmed: text(5).and_then(|lsn| lsn.parse().ok()),
        is_lost: text(6).as_deref() == Some("lost"),
    }))
}

/// What the ledger knows of the slot.
pub(super) async fn known(
    connection: &mut PgConnection,
    slot: &str,
) -> Result<Option<Known>, sqlx::Error> {
    let row = sqlx::query(
        "select system_identifier, timeline, generation, acknowledged::text, is_complete \
         from tombstream.slot where slot = $1",
    )
    .persistent(false)
    .bind(slot)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let number = |at: usize| row.try_get::<i32, _>(at).map(|it| u32::try_from(it).unwrap_or(0));
    let acknowledged: String = row.try_get(3)?;
    Ok(Some(Known {
        server: Server { system_identifier: row.try_get(0)?, timeline: number(1)? },
        generation: Generation(number(2)?),
        acknowledged: acknowledged.parse().unwrap_or_default(),
        is_complete: row.try_get(4)?,
    }))
}

/// Writes down that the slot is another one than before, and which generation its positions have: a
/// new one of the server's, so that no other source's positions are newer.
pub(super) async fn begin_generation(
    connection: &mut PgConnection,
    slot: &str,
    server: &Server,
    acknowledged: Lsn,
    is_complete: bool,
) -> Result<Generation, sqlx::Error> {
    let generation: i32 = sqlx::query_scalar(
        "with bumped as ( \
             insert into tombstream.generation as g (source, generation) values ('postgres', 0) \
             on conflict (source) do update set generation = g.generation + 1, since = now() \
             returning generation \
         ) \
         insert into tombstream.slot as s \
             (slot, system_identifier, timeline, generation, acknowledged, is_complete) \
         select $1, $2, $3, generation, $4::pg_lsn, $5 from bumped \
         on conflict (slot) do update set system_identifier = excluded.system_identifier, \
             timeline = excluded.timeline, generation = excluded.generation, \
             acknowledged = excluded.acknowledged, is_complete = excluded.is_complete, \
             since = now() \
         returning generation",
    )
    .persistent(false)
    .bind(slot)
    .bind(&server.system_identifier)
    .bind(i32::try_from(server.timeline).unwrap_or(i32::MAX))
    .bind(acknowledged.to_string())
    .bind(is_complete)
    .fetch_one(connection)
    .await?;
    Ok(Generation(u32::try_from(generation).unwrap_or(0)))
}

/// Writes down that the rows that were there before the slot are handed on.
pub(super) async fn complete(
    connection: &mut PgConnection,
    slot: &str,
    generation: Generation,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update tombstream.slot set is_complete = true where slot = $1 and generation = $2",
    )
    .persistent(false)
    .bind(slot)
    .bind(i32::try_from(generation.0).unwrap_or(i32::MAX))
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes down how far everything is durable. Not waited for by the disk: what a crash forgets is read
/// again, or looks like a slot that was moved and costs a sweep.
pub(super) async fn acknowledge(
    connection: &mut PgConnection,
    slot: &str,
    generation: Generation,
    lsn: Lsn,
) -> Result<(), sqlx::Error> {
    sqlx::query("set local synchronous_commit = off")
        .persistent(false)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "update tombstream.slot set acknowledged = $3::pg_lsn \
         where slot = $1 and generation = $2 and acknowledged < $3::pg_lsn",
    )
    .persistent(false)
    .bind(slot)
    .bind(i32::try_from(generation.0).unwrap_or(i32::MAX))
    .bind(lsn.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(timeline: u32) -> Server {
        Server { system_identifier: "7".into(), timeline }
    }

    fn facts(confirmed: u64) -> SlotFacts {
        SlotFacts {
            plugin: "pgoutput".into(),
            is_logical: true,
            database: "app".into(),
            here: "app".into(),
            active_pid: None,
            confirmed: Some(Lsn(confirmed)),
            is_lost: false,
        }
    }

    fn known(acknowledged: u64) -> Known {
        Known {
            server: server(1),
            generation: Generation(2),
            acknowledged: Lsn(acknowledged),
            is_complete: true,
        }
    }

    #[test]
    fn the_slot_that_was_left_goes_on() {
        for confirmed in [0, 99, 100] {
            let plan = plan(Some(&facts(confirmed)), Some(&known(100)), &server(1));
            assert_eq!(plan, Plan::GoOn, "{confirmed}");
        }
    }

    #[test]
    fn a_slot_that_does_not_tell_everything_is_a_gap() {
        let gone = plan(None, Some(&known(100)), &server(1));
        assert_eq!(gone, Plan::Create(GapReason::Missing));
        assert_eq!(plan(None, None, &server(1)), Plan::Create(GapReason::New));
        let failed_over = plan(None, Some(&known(100)), &server(2));
        assert_eq!(failed_over, Plan::Create(GapReason::OtherServer));
        let moved = plan(Some(&facts(101)), Some(&known(100)), &server(1));
        assert_eq!(moved, Plan::Adopt(GapReason::Moved));
        let promoted = plan(Some(&facts(50)), Some(&known(100)), &server(2));
        assert_eq!(promoted, Plan::Adopt(GapReason::OtherServer));
        let made_by_hand = plan(Some(&facts(50)), None, &server(1));
        assert_eq!(made_by_hand, Plan::Adopt(GapReason::New));
        let lost = SlotFacts { is_lost: true, ..facts(50) };
        assert_eq!(
            plan(Some(&lost), Some(&known(100)), &server(1)),
            Plan::Recreate(GapReason::Lost)
        );
        let half = Known { is_complete: false, ..known(100) };
        let half = plan(Some(&facts(100)), Some(&half), &server(1));
        assert_eq!(half, Plan::Recreate(GapReason::Unfinished));
    }

    #[test]
    fn somebody_elses_slot_is_neither_read_nor_dropped() {
        let lost = SlotFacts { is_lost: true, confirmed: None, ..facts(0) };
        for facts in [
            SlotFacts { plugin: "test_decoding".into(), ..lost.clone() },
            SlotFacts { is_logical: false, plugin: String::new(), ..lost.clone() },
            SlotFacts { database: "other".into(), ..lost.clone() },
        ] {
            let plan = plan(Some(&facts), Some(&known(1)), &server(1));
            assert!(matches!(plan, Plan::Refuse(_)), "{facts:?}: {plan:?}");
        }
        let active = SlotFacts { active_pid: Some("4711".into()), ..lost };
        let Plan::Wait(said) = plan(Some(&active), None, &server(1)) else { panic!("it waits") };
        assert!(said.contains("4711"), "{said}");
    }

    #[test]
    fn a_gap_says_what_happened_and_what_follows() {
        let gap = Gap {
            slot: "tombstream".into(),
            reason: GapReason::Missing,
            from: Some(Lsn(0x16_0000_0001)),
            to: Lsn(0x16_0000_0002),
        };
        assert_eq!(
            gap.to_string(),
            "slot tombstream was gone, and is made anew; events from 16/1 to 16/2 are not told, \
             the sweep looks for their flags now"
        );
    }
}
