//! `tombstream status`: where everything stands, from one snapshot of the ledger.

use std::fmt::Write as _;

use anyhow::Context as _;
use tombstream_connectors::postgres::{self, AuditStatus, ScheduleRow, Status};

use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

pub(super) async fn status(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-status").await?;
    let status = postgres::status(&pool)
        .await
        .context("the ledger can't be read; is it migrated (`tombstream migrate`)?")?;
    if args.json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print!("{}", text(&status)?);
    }
    Ok(())
}

fn text(status: &Status) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    if status.relations.is_empty() {
        writeln!(text, "no deletion yet")?;
    }
    for entry in &status.relations {
        writeln!(
            text,
            "{} {}: {} (oldest first seen {} ago)",
            entry.relation,
            entry.state,
            entry.deletions,
            age(entry.oldest_seconds)
        )?;
    }
    for owed in &status.owed {
        let said = owed.said.as_deref().unwrap_or("nothing yet");
        writeln!(
            text,
            "owed by store {} to {}: {} targets; it said: {said}",
            owed.store, owed.relation, owed.targets
        )?;
    }
    for pause in &status.paused {
        let since = pause.paused_at.format("%Y-%m-%d %H:%M:%S UTC");
        writeln!(text, "paused: {} since {since}: {}", pause.relation, pause.reason)?;
        writeln!(text, "    {}", pause.detail.0)?;
        writeln!(text, "    when mended: tombstream resume {}", pause.relation)?;
    }
    for waiting in &status.waiting {
        let name = &waiting.relation;
        if let Some(at) = waiting.tripped_at {
            let since = at.format("%Y-%m-%d %H:%M:%S UTC");
            let why = waiting.tripped.as_deref().unwrap_or("no reason is known");
            writeln!(text, "breaker of {name} tripped since {since}: {why}")?;
        }
        for (count, what, look) in [
            (waiting.kept_back, "kept back by the breaker", "tombstream breaker show"),
            (waiting.parked, "parked", "tombstream parked list"),
            (waiting.holds, "holds active", ""),
            (waiting.hidden, "hidden, and not claimed yet", ""),
            (waiting.rehydrations, "rehydrations not done", "tombstream rehydrations list --all"),
        ] {
            match (count, look) {
                (0, _) => {}
                (_, "") => writeln!(text, "{name}: {count} {what}")?,
                (_, look) => writeln!(text, "{name}: {count} {what}: {look} {name}")?,
            }
        }
    }
    for pass in &status.audit {
        audit(&mut text, pass)?;
    }
    for job in &status.schedules {
        writeln!(text, "{}", schedule(job))?;
    }
    let receipts = &status.receipts;
    if receipts.unsealed > 0 || receipts.blocks > 0 {
        let ago = |seconds: Option<f64>| seconds.map_or("-".to_owned(), age);
        writeln!(
            text,
            "receipts: {} not sealed (the oldest for {}); {} blocks, the last {} ago",
            receipts.unsealed,
            ago(receipts.waits_seconds),
            receipts.blocks,
            ago(receipts.age_seconds)
        )?;
    }
    writeln!(text, "dead letters: {}", status.dead_letters)?;
    Ok(text)
}

/// One part of a pass: a line, and one for each thing that is wrong.
fn audit(text: &mut String, pass: &AuditStatus) -> std::fmt::Result {
    writeln!(
        text,
        "audit of {} in {} after {}: {} looked at, {} came back, {} reused; {}",
        pass.relation,
        pass.store,
        age(pass.lag_seconds),
        pass.looked,
        pass.resurrected,
        pass.reused,
        match pass.behind_seconds {
            None => "nothing is due yet".to_owned(),
            Some(behind) => format!("{} behind", age(behind)),
        }
    )?;
    if let Some(failure) = &pass.failure {
        writeln!(text, "    it stands still: {failure}")?;
    }
    if pass.again > 0 {
        let reason = pass.reason.as_deref().unwrap_or_default();
        writeln!(
            text,
            "    {} to be looked at again, {} of them unknown for long; one says: {reason}",
            pass.again, pass.unknown
        )?;
    }
    Ok(())
}

/// What is begun by the clock: how it went, and what comes next.
fn schedule(job: &ScheduleRow) -> String {
    let mut text = format!("job {} every {}: ", job.name, age(job.every_seconds));
    match (&job.result, job.ended_seconds_ago) {
        (Some(result), Some(ago)) => text.push_str(&format!("{result} {} ago", age(ago))),
        _ => text.push_str("has not ended yet"),
    }
    if let Some(took) = job.took_seconds {
        text.push_str(&format!(", took {}", age(took)));
    }
    match &job.run_by {
        Some(owner) => text.push_str(&format!("; run by {}", owner.escape_debug())),
        None if job.due_in_seconds >= 0.0 => {
            text.push_str(&format!("; next in {}", age(job.due_in_seconds)));
        }
        None => text.push_str(&format!("; overdue for {}", age(-job.due_in_seconds))),
    }
    if job.result.as_deref() != Some("ok") && job.result.is_some() {
        text.push_str(&format!("\n    {}", job.detail.0));
    }
    text
}

/// Seconds as people read them.
fn age(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.max(0.0).floor());
    whole.map_or_else(|_| "?".to_owned(), |age| humantime::format_duration(age).to_string())
}

#[cfg(test)]
mod tests {
    use tombstream_connectors::postgres::{OwedStore, RelationStatus, Sealing, WaitingRelation};

    use super::*;

    #[test]
    fn people_see_states_and_what_is_owed() {
        let status = Status {
            relations: vec![RelationStatus {
                relation: "documents".into(),
                state: "claimed".into(),
                deletions: 3,
                oldest_seconds: 61.7,
            }],
            owed: vec![OwedStore {
                relation: "documents".into(),
                store: "search".into(),
                targets: 2,
                said: Some("503".into()),
            }],
            paused: Vec::new(),
            waiting: vec![WaitingRelation {
                relation: "documents".into(),
                tripped_at: Some("2026-11-23T10:00:00Z".parse().unwrap()),
                tripped: Some("too many".into()),
                kept_back: 5,
                holds: 1,
                ..WaitingRelation::default()
            }],
            audit: vec![AuditStatus {
                relation: "documents".into(),
                store: "search".into(),
                lag_seconds: 900.0,
                behind_seconds: Some(12.3),
                looked: 70,
                resurrected: 2,
                reused: 1,
                again: 3,
                unknown: 1,
                reason: Some("a look could not tell".into()),
                failure: Some("unavailable".into()),
            }],
            schedules: vec![ScheduleRow {
                name: "reconcile".into(),
                every_seconds: 86_400.0,
                due_in_seconds: 3_600.5,
                run_by: None,
                ended_seconds_ago: Some(82_800.0),
                took_seconds: Some(12.2),
                result: Some("found".into()),
                detail: sqlx::types::Json(serde_json::json!({ "orphans": 2 })),
                runs: 3,
                failures: 1,
                ended_at: None,
            }],
            dead_letters: 0,
            receipts: Sealing {
                unsealed: 7,
                blocks: 2,
                age_seconds: Some(90.2),
                waits_seconds: Some(1.4),
                ..Sealing::default()
            },
        };
        let expected = "documents claimed: 3 (oldest first seen 1m 1s ago)\n\
                        owed by store search to documents: 2 targets; it said: 503\n\
                        breaker of documents tripped since 2026-11-23 10:00:00 UTC: too many\n\
                        documents: 5 kept back by the breaker: tombstream breaker show documents\n\
                        documents: 1 holds active\n\
                        audit of documents in search after 15m: 70 looked at, 2 came back, 1 reused; 12s behind\n    \
                        it stands still: unavailable\n    \
                        3 to be looked at again, 1 of them unknown for long; one says: a look could not tell\n\
                        job reconcile every 1day: found 23h ago, took 12s; next in 1h\n    \
                        {\"orphans\":2}\n\
                        receipts: 7 not sealed (the oldest for 1s); 2 blocks, the last 1m 30s ago\n\
                        dead letters: 0\n";
        assert_eq!(text(&status).unwrap(), expected);
    }
}
