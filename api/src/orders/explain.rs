//! What happened to one row, what its deletion waits for, and what an operator can do. One statement asks, a plain
//! function judges.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool, Row as _};
use std::time::Duration;
use tombstream_model::{Key, Relation};

use super::parked::{Said, next_step, said};
use super::{OrderError, begin, columns, query, shown};
use crate::sql::{Table, quote_literal};

/// Most events that are shown; also the most of each kind that are read.
const EVENTS_MAX: usize = 20;

/// What is known of one row and its deletion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// The relation's name.
    pub relation: String,
    /// The text of each key column.
    pub key: Vec<String>,
    /// `alive`, `flagged` or `gone`.
    pub row: &'static str,
    /// The number of the newest deletion.
    pub deletion: Option<i64>,
    /// Its state; `flagged` while the ledger has nothing of the flag yet; none if nothing was ever deleted.
    pub state: Option<String>,
    /// What is told beside.
    #[serde(flatten)]
    pub told: Told,
}

/// What is told of a deletion beside its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Told {
    /// What it waits for.
    pub waits_for: Vec<Wait>,
    /// What an operator can do: command lines, or words where there is none.
    pub can: Vec<String>,
    /// What happened, newest first.
    pub happened: Vec<Event>,
}

/// One thing that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// `grace`, `hide`, `hold`, `kept_back`, `breaker`, `pause`, `parked`, `lease`, `owed`, `sweep`, `rehydration`.
    pub what: &'static str,
    /// Since when, if that is known.
    pub since: Option<DateTime<Utc>>,
    /// Until when, if time ends it.
    pub until: Option<DateTime<Utc>>,
    /// A sentence.
    pub says: String,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub what: String,
    /// Who ordered it, if a person did.
    pub by: Option<String>,
}

/// What the statement found.
#[derive(Debug)]
struct Found {
    now: DateTime<Utc>,
    /// None: there is no row.
    flagged: Option<bool>,
    flag_at: Option<DateTime<Utc>>,
    guarded: bool,
    deletions: Vec<Deletion>,
    flips: Vec<Flip>,
    orders: Vec<Order>,
    holds: Vec<Held>,
    rehydrations: Vec<Owed>,
    tripped_at: Option<DateTime<Utc>>,
    tripped: Option<String>,
    paused_at: Option<DateTime<Utc>>,
    paused: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Deletion {
    id: i64,
    state: String,
    first_seen: DateTime<Utc>,
    hidden_at: Option<DateTime<Utc>>,
    kept_back_at: Option<DateTime<Utc>>,
    approved_at: Option<DateTime<Utc>>,
    claimed_at: Option<DateTime<Utc>>,
    closed_at: Option<DateTime<Utc>>,
    lease_owner: Option<String>,
    lease_until: Option<DateTime<Utc>>,
    due_at: Option<DateTime<Utc>>,
    reason: Option<String>,
    removed: bool,
    /// Of the newest one alone.
    targets: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Flip {
    at: DateTime<Utc>,
    action: String,
    actor: String,
}

#[derive(Debug, Deserialize)]
struct Order {
    at: DateTime<Utc>,
    action: String,
    actor: String,
    detail: Value,
}

#[derive(Debug, Deserialize)]
struct Held {
    id: i64,
    case_name: String,
    actor: String,
    set_at: DateTime<Utc>,
    until: Option<DateTime<Utc>>,
}

#[derive(Debug, Deserialize)]
struct Owed {
    id: i64,
    restored_at: DateTime<Utc>,
    ready_at: DateTime<Utc>,
}

/// What the statement of a row's status selects beside, for [`Told::read`]: `$1` key, `$2` relation, `r` the
/// row with `at`.
pub(crate) fn selected(relation: &Relation) -> String {
    let list = |rows: String| {
        format!("(select coalesce(json_agg(x), '[]') from ({rows} limit {EVENTS_MAX}) as x)")
    };
    let newest = "where t.relation = $2 and t.key = $1 order by t.id desc";
    let deletions = list(format!(
        "select t.id, t.state, t.first_seen, t.hidden_at, t.kept_back_at, t.approved_at, t.claimed_at, t.closed_at, \
             t.lease_owner, t.lease_until, t.due_at, t.reason, t.removed is not null as removed, \
             case when t.closed_at is null then t.targets end as targets \
         from tombstream.deletion_all as t {newest}"
    ));
    let flips = list(format!("select t.at, t.action, t.actor from tombstream.flip as t {newest}"));
    let orders = list(format!(
        "select t.at, t.action, t.actor, t.detail from tombstream.operator_order as t {newest}"
    ));
    let holds = list(
        "select t.id, t.case_name, t.actor, t.set_at, nullif(t.until, 'infinity') as until \
         from tombstream.hold as t where t.relation = $2 and t.key = $1 and t.released_at is null \
             and (t.until is null or t.until > now()) order by t.id desc"
            .to_owned(),
    );
    let rehydrations = list(format!(
        "select h.id, h.restored_at, h.ready_at from ( \
             select t.id from tombstream.deletion_all as t {newest} limit {EVENTS_MAX}) as t \
         join tombstream.rehydrate as h on h.deletion_id = t.id where h.done_at is null order by h.id desc"
    ));
    let table = Table::new(relation);
    format!(
        "now() as now, r.at, {deletions} as deletions, {flips} as flips, {orders} as orders, {holds} as holds, \
         {rehydrations} as rehydrations, \
         (select b.tripped_at from tombstream.breaker as b where b.relation = $2) as tripped_at, \
         (select b.reason from tombstream.breaker as b where b.relation = $2) as tripped, \
         (select p.paused_at from tombstream.pause as p where p.relation = $2) as paused_at, \
         (select p.reason from tombstream.pause as p where p.relation = $2) as paused, \
         exists (select from pg_catalog.pg_trigger as g where g.tgrelid = to_regclass({name}) \
             and g.tgname = 'zz_tombstream_guard_before' and g.tgenabled = 'A') as guarded",
        name = quote_literal(&table.name),
    )
}

/// The flag's time, where a clock can hold it.
pub(crate) fn bounded_at(table: &Table<'_>) -> String {
    let at = &table.at;
    format!("case when {at} >= '4000-01-01 BC' and {at} < '200000-01-01' then {at} end")
}

/// The statement. One, of one snapshot.
pub fn sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    format!(
        "select r.flagged, {selected} from (values (1)) as one left join ( \
             select {is_set} as flagged, {at} as at from {name} as r where {matches} \
         ) as r on true",
        selected = selected(relation),
        is_set = table.is_set,
        at = bounded_at(&table),
        name = table.name,
        matches = table.matches("$1::text[]"),
    )
}

/// What is known of the row of `key`. Missing: there is no such row, and never was a deletion of one.
pub async fn explain(
    pool: &PgPool,
    relation: &Relation,
    key: &Key,
) -> Result<Explained, OrderError> {
    let mut transaction = begin(pool).await?;
    let row = query(AssertSqlSafe(sql(relation))).bind(columns(key)).bind(&*relation.name);
    let row = row.fetch_one(&mut *transaction).await?;
    transaction.rollback().await?;
    let found = Found::read(&row)?;
    let newest = found.deletions.first();
    if found.flagged.is_none()
        && newest.is_none()
        && found.flips.is_empty()
        && found.orders.is_empty()
    {
        return Err(OrderError::Missing(format!(
            "{} has no row {key}, and never had a deletion of one",
            relation.name
        )));
    }
    let is_newer = found.flagged == Some(true) && found.open().is_none();
    Ok(Explained {
        relation: relation.name.to_string(),
        key: columns(key),
        row: match found.flagged {
            None => "gone",
            Some(false) => "alive",
            Some(true) => "flagged",
        },
        deletion: newest.map(|deletion| deletion.id).filter(|_| !is_newer),
        state: match newest {
            _ if is_newer => Some("flagged".to_owned()),
            newest => newest.map(|deletion| deletion.state.clone()),
        },
        told: found.told(relation, key),
    })
}

impl Told {
    /// Reads what [`selected`] selects.
    pub(crate) fn read(row: &PgRow, relation: &Relation, key: &Key) -> Result<Self, sqlx::Error> {
        Ok(Found::read(row)?.told(relation, key))
    }
}

impl Found {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            now: row.try_get("now")?,
            flagged: row.try_get("flagged")?,
            flag_at: row.try_get("at")?,
            guarded: row.try_get("guarded")?,
            deletions: row.try_get::<Json<_>, _>("deletions")?.0,
            flips: row.try_get::<Json<_>, _>("flips")?.0,
            orders: row.try_get::<Json<_>, _>("orders")?.0,
            holds: row.try_get::<Json<_>, _>("holds")?.0,
            rehydrations: row.try_get::<Json<_>, _>("rehydrations")?.0,
            tripped_at: row.try_get("tripped_at")?,
            tripped: row.try_get("tripped")?,
            paused_at: row.try_get("paused_at")?,
            paused: row.try_get("paused")?,
        })
    }

    fn open(&self) -> Option<&Deletion> {
        self.deletions.first().filter(|deletion| deletion.closed_at.is_none())
    }

    fn told(&self, relation: &Relation, key: &Key) -> Told {
        let mut told = Told { happened: self.happened(), ..Told::default() };
        let open = self.open();
        let name = &relation.name;
        let row = std::iter::once(quoted(name)).chain(key.columns().map(quoted));
        let row = row.collect::<Vec<_>>().join(" ");
        if open.is_some() || self.flagged == Some(true) {
            let claimed = open.is_some_and(|open| open.claimed_at.is_some());
            self.holds(&mut told);
            if let (Some(since), Some(why)) = (self.paused_at, &self.paused) {
                told.wait("pause", Some(since), None, format!("the relation is paused: {why}"));
                told.can.push(format!("tombstream resume {}", quoted(name)));
            }
            match open {
                Some(open) if open.state == "parked" => parked(open, &mut told),
                Some(open) if claimed => self.driven(open, &mut told),
                open => self.before_claim(relation, open, &mut told),
            }
            if !claimed && self.flagged == Some(true) {
                told.can
                    .push("restore the row: POST …/restore of the api, or unset its flag".into());
            }
        }
        // A hold keeps a row that is not flagged, too.
        if open.is_some() || self.flagged.is_some() {
            for hold in &self.holds {
                told.can.push(format!("tombstream hold release {row} --id {}", hold.id));
            }
            told.can.push(format!("tombstream hold set {row} --case TEXT"));
        }
        for owed in &self.rehydrations {
            let says = "copies were hidden before the restore: fill the recoverable stores again";
            let until = Some(owed.ready_at).filter(|at| *at > self.now);
            told.wait("rehydration", Some(owed.restored_at), until, says.into());
            told.can.push(format!("tombstream rehydrations done {}", owed.id));
        }
        told
    }

    fn holds(&self, told: &mut Told) {
        for hold in &self.holds {
            let end = match hold.until {
                Some(until) => format!("until {}", shown(until)),
                None => "until it is released".to_owned(),
            };
            let says = format!("hold {}, {} by {}, {end}", hold.id, hold.case_name, hold.actor);
            told.wait("hold", Some(hold.set_at), hold.until, says);
        }
    }

    /// Pending, hidden, or only flagged.
    fn before_claim(&self, relation: &Relation, open: Option<&Deletion>, told: &mut Told) {
        let name = quoted(&relation.name);
        let approved = open.is_some_and(|open| open.approved_at.is_some());
        if let Some(open) = open
            && let Some(since) = open.kept_back_at.filter(|_| !approved)
        {
            let says = "kept back by the breaker until an operator approves or rejects it";
            told.wait("kept_back", Some(since), None, says.into());
            told.can.push(format!("tombstream breaker show {name}"));
            told.can.push(format!("tombstream breaker approve {name} --up-to {}", open.id));
            told.can.push(format!("tombstream breaker reject {name} --up-to {}", open.id));
        } else if let (Some(since), false) = (self.tripped_at, approved) {
            let why = self.tripped.as_deref().unwrap_or_default();
            told.wait("breaker", Some(since), None, format!("the breaker is tripped: {why}"));
            told.can.push(format!("tombstream breaker show {name}"));
        }
        let hidden = open.is_some_and(|open| open.hidden_at.is_some());
        if let Some(open) = open
            && open.state == "hidden"
        {
            self.driven(open, told);
        }
        let first_seen = open.map(|open| open.first_seen);
        let vouched = self.guarded && self.flag_at.is_some();
        let since = match (first_seen, vouched) {
            (Some(seen), _) => Some(self.flag_at.map_or(seen, |at| at.max(seen))),
            (None, true) => self.flag_at,
            (None, false) => None,
        };
        let Some(since) = since else {
            told.wait("grace", None, None, format!(
                "grace ({}) begins when the pipeline first sees the flag: nothing vouches for its time",
                length(relation.grace)
            ));
            return;
        };
        let end = |grace| {
            chrono::TimeDelta::from_std(grace)
                .ok()
                .and_then(|grace| since.checked_add_signed(grace))
        };
        let mut due = true;
        let steps = [("hide", relation.hide.filter(|_| !hidden)), ("grace", Some(relation.grace))];
        for (what, grace) in steps {
            let Some(grace) = grace else { continue };
            let until = end(grace);
            if until.is_some_and(|until| until <= self.now) {
                continue;
            }
            due = false;
            let ends = until.map_or("at no time that a clock holds".into(), shown);
            let then = match what {
                "hide" => "its copies in recoverable stores go",
                _ => "it is claimed",
            };
            let says = format!("{then} when {} have passed since its flag: {ends}", length(grace));
            told.wait(what, Some(since), until, says);
        }
        if due && told.waits_for.is_empty() {
            let says = "nothing keeps it: an event or the sweep brings it to the claim; is `tombstream run` running?";
            told.wait("sweep", Some(since), None, says.into());
        }
    }

    /// Claimed, or hidden: somebody drives its targets, or they are owed.
    fn driven(&self, open: &Deletion, told: &mut Told) {
        match open.lease_until {
            Some(until) if until > self.now => {
                let owner = open.lease_owner.as_deref().unwrap_or("somebody");
                let says = format!("{owner} works on it, and has a lease until {}", shown(until));
                told.wait("lease", None, Some(until), says);
                return;
            }
            Some(until) => {
                let says = format!(
                    "its lease was over at {}: any pipeline's sweep takes it over",
                    shown(until)
                );
                told.wait("sweep", Some(until), None, says);
            }
            None => {}
        }
        let targets = open.targets.as_ref().map(said).unwrap_or_default();
        for target in targets.iter().filter(|target| !is_confirmed(target)) {
            let said = target.said.as_deref().unwrap_or("nothing yet");
            let due = match open.due_at {
                Some(at) if at > self.now => format!("asked again at {}", shown(at)),
                Some(_) | None => "due now".to_owned(),
            };
            let says = format!("store {} has not confirmed; it said: {said}; {due}", target.store);
            told.wait("owed", open.claimed_at.or(open.hidden_at), open.due_at, says);
        }
    }

    fn happened(&self) -> Vec<Event> {
        let mut events = Vec::new();
        for deletion in &self.deletions {
            let id = deletion.id;
            let why =
                deletion.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
            let ended = format!("{}{why}", deletion.state.replace('_', " "));
            let seen = if deletion.removed { "noted: the row was removed" } else { "noted" };
            for (at, what) in [
                (Some(deletion.first_seen), seen),
                (deletion.kept_back_at, "kept back by the breaker"),
                (deletion.approved_at, "approved"),
                (deletion.hidden_at, "hidden: its copies in recoverable stores go"),
                (deletion.claimed_at, "claimed: the point of no return"),
                (deletion.closed_at, &ended),
            ] {
                let Some(at) = at else { continue };
                events.push(Event { at, what: format!("deletion {id} {what}"), by: None });
            }
        }
        for flip in &self.flips {
            let what = match flip.action.as_str() {
                "create" => "row made",
                "flag" => "flag set",
                _ => "flag unset",
            };
            events.push(Event { at: flip.at, what: what.into(), by: Some(flip.actor.clone()) });
        }
        for order in &self.orders {
            let what = format!("{} {}", order.action, order.detail);
            events.push(Event { at: order.at, what, by: Some(order.actor.clone()) });
        }
        // Within one transaction the later step of a deletion stays above the earlier one.
        events.reverse();
        events.sort_by_key(|event| std::cmp::Reverse(event.at));
        events.truncate(EVENTS_MAX);
        events
    }
}

impl Told {
    fn wait(
        &mut self,
        what: &'static str,
        since: Option<DateTime<Utc>>,
        until: Option<DateTime<Utc>>,
        says: String,
    ) {
        self.waits_for.push(Wait { what, since, until, says });
    }
}

fn parked(open: &Deletion, told: &mut Told) {
    let reason = open.reason.as_deref().unwrap_or("no reason is known");
    let next = next_step(open.id, open.claimed_at.is_some(), reason);
    told.wait("parked", None, None, format!("{reason}; {next}"));
    told.can.push(format!("tombstream parked show {}", open.id));
    told.can.push(format!("tombstream parked retry {}", open.id));
    told.can.push(format!("tombstream parked waive {} --store STORE --reason TEXT", open.id));
}

fn is_confirmed(target: &Said) -> bool {
    matches!(target.verdict.as_deref(), Some("deleted" | "absent" | "waived"))
}

fn length(duration: Duration) -> String {
    let mut left = duration.as_secs();
    let mut parts = Vec::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if left >= seconds {
            parts.push(format!("{}{unit}", left / seconds));
            left %= seconds;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    if !word.is_empty() && !word.starts_with('-') && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::documents;

    fn at(hour: u32) -> DateTime<Utc> {
        format!("2026-11-23T{hour:02}:00:00Z").parse().unwrap()
    }

    fn found() -> Found {
        Found {
            now: at(12),
            flagged: Some(true),
            flag_at: Some(at(10)),
            guarded: true,
            deletions: Vec::new(),
            flips: Vec::new(),
            orders: Vec::new(),
            holds: Vec::new(),
            rehydrations: Vec::new(),
            tripped_at: None,
            tripped: None,
            paused_at: None,
            paused: None,
        }
    }

    fn open(state: &str) -> Deletion {
        Deletion { id: 7, state: state.into(), first_seen: at(11), ..Deletion::default() }
    }

    fn told(found: &Found, grace_h: u64, hide_h: Option<u64>) -> Told {
        let mut relation = (*documents().relation).clone();
        relation.grace = Duration::from_secs(grace_h * 3600);
        relation.hide = hide_h.map(|hours| Duration::from_secs(hours * 3600));
        found.told(&relation, &Key::from_postgres(["it's".to_owned()]))
    }

    fn waits(told: &Told) -> Vec<&'static str> {
        told.waits_for.iter().map(|wait| wait.what).collect()
    }

    #[test]
    fn grace_runs_from_the_later_of_flag_and_first_sight() {
        let mut it = found();
        assert_eq!(told(&it, 3, None).waits_for[0].until, Some(at(13)));
        it.deletions = vec![open("pending")];
        assert_eq!(told(&it, 3, None).waits_for[0].until, Some(at(14)));
        assert_eq!(waits(&told(&it, 1, None)), ["sweep"]);
        assert_eq!(waits(&told(&it, 8, Some(2))), ["hide", "grace"]);
        it.deletions[0].hidden_at = Some(at(11));
        assert_eq!(waits(&told(&it, 8, Some(2))), ["grace"]);
        it.deletions.clear();
        it.guarded = false;
        assert_eq!(told(&it, 3, None).waits_for[0].until, None, "nothing vouches for the flag");
    }

    #[test]
    fn each_obstacle_is_named_with_the_command_that_ends_it() {
        let mut it = found();
        it.holds = vec![Held {
            id: 3,
            case_name: "case 7".into(),
            actor: "legal".into(),
            set_at: at(9),
            until: None,
        }];
        it.paused_at = Some(at(9));
        it.paused = Some("absent".into());
        it.deletions = vec![Deletion { kept_back_at: Some(at(11)), ..open("pending") }];
        let kept = told(&it, 1, None);
        assert_eq!(waits(&kept), ["hold", "pause", "kept_back"]);
        for command in [
            "tombstream hold release documents 'it'\\''s' --id 3",
            "tombstream resume documents",
            "tombstream breaker reject documents --up-to 7",
        ] {
            assert!(kept.can.iter().any(|can| can == command), "{command} in {:?}", kept.can);
        }
        it.deletions[0].approved_at = Some(at(11));
        it.tripped_at = Some(at(9));
        assert_eq!(waits(&told(&it, 1, None)), ["hold", "pause"], "approved: the breaker is over");
    }

    #[test]
    fn a_claimed_deletion_waits_for_its_lease_and_then_for_stores() {
        let mut it = found();
        let targets = serde_json::json!([
            {"store": "a", "address": {}, "outcome": {"verdict": "deleted", "said": "204"}},
            {"store": "b", "address": {}, "outcome": {"verdict": "busy", "said": "503"}},
        ]);
        it.deletions = vec![Deletion {
            claimed_at: Some(at(11)),
            lease_until: Some(at(13)),
            lease_owner: Some("w1".into()),
            targets: Some(targets),
            ..open("claimed")
        }];
        let leased = told(&it, 1, None);
        assert_eq!(waits(&leased), ["lease"]);
        assert!(
            !leased.can.iter().any(|can| can.starts_with("restore")),
            "past the point of no return"
        );
        it.deletions[0].lease_until = None;
        it.deletions[0].due_at = Some(at(13));
        let owed = told(&it, 1, None);
        assert_eq!(waits(&owed), ["owed"]);
        assert!(
            owed.waits_for[0]
                .says
                .contains("store b has not confirmed; it said: 503; asked again at")
        );
        it.deletions[0].state = "parked".into();
        it.deletions[0].reason = Some("store b refuses: locked".into());
        assert_eq!(waits(&told(&it, 1, None)), ["parked"]);
    }

    #[test]
    fn what_happened_is_newest_first_and_bounded() {
        let mut it = found();
        it.deletions = vec![Deletion { claimed_at: Some(at(11)), ..open("claimed") }];
        it.flips = (0..30)
            .map(|_| Flip { at: at(10), action: "flag".into(), actor: "ann".into() })
            .collect();
        let events = it.happened();
        assert_eq!(events.len(), EVENTS_MAX);
        assert!(events[0].what.contains("claimed"), "{events:?}");
        assert!(events[1].what.contains("noted"), "{events:?}");
        assert_eq!(events[2].by.as_deref(), Some("ann"));
    }

    #[test]
    fn a_row_that_is_alive_waits_for_nothing() {
        let mut it = found();
        it.flagged = Some(false);
        assert!(waits(&told(&it, 1, None)).is_empty());
        it.rehydrations = vec![Owed { id: 4, restored_at: at(11), ready_at: at(13) }];
        let owed = told(&it, 1, None);
        assert_eq!(waits(&owed), ["rehydration"]);
        assert!(owed.can.contains(&"tombstream rehydrations done 4".to_owned()));
    }

    #[test]
    fn lengths_and_words_are_spelled_for_people_and_shells() {
        assert_eq!(length(Duration::from_secs(90_061)), "1d 1h 1m 1s");
        assert_eq!(length(Duration::ZERO), "0s");
        for (word, shell) in
            [("a-b", "a-b"), ("-7", "'-7'"), ("", "''"), ("a b", "'a b'"), ("$x", "'$x'")]
        {
            assert_eq!(quoted(word), shell);
        }
    }
}
