//! Erasing versions: listed under the claim, deleted by their ids, listed again.
//!
//! A delete names what was listed, so what is written later stays and shows in the next listing. That
//! listing is the proof, whatever was answered before.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tombstream_model::{Outcome, Presence, SinkError, Verdict, Verification};

use super::answer::VERSIONED;
use super::config::Erase;
use super::delete::{Doomed, Told};
use super::listing::{self, Marker, Version};
use super::request::Object;
use super::sink::{Outcomes, PAGE_MAX, S3Sink, Scope, lease_over, severity};
use super::uploads::{Aborted, permitted};
use super::xml;

/// Most versions that are listed before their deletion begins: some megabytes. The rest has its turn
/// when these are gone.
const LISTED_MAX: usize = 10_000;

/// What is listed of a scope.
#[derive(Debug, Default)]
struct Listed {
    versions: Vec<Version>,
    is_whole: bool,
}

/// How far a scope is.
#[derive(Debug, Default)]
struct Progress {
    /// What was asked to go, by key and id, whether it was a marker, and what was said of it.
    sent: HashMap<(String, String), (bool, Outcome)>,
    /// Whether all that was there at that time was asked to go.
    was_whole: bool,
}

/// What a round sends of one scope: first what hides, then what is hidden, then what hid it.
#[derive(Debug, Default)]
struct Round {
    hides: Vec<Version>,
    data: Vec<Version>,
    markers: Vec<Version>,
}

enum Step {
    Send(Round),
    Done(Outcome),
}

impl S3Sink {
    /// Erases what the scopes hold, as configured.
    pub(super) async fn erase(
        &self,
        bucket: &str,
        scopes: &[Scope<'_>],
    ) -> Result<Outcomes, SinkError> {
        let started = Instant::now();
        let aborted = match self.config.erase {
            Erase::AllVersions => self.abort_uploads(bucket, scopes).await?,
            Erase::Current => vec![Aborted::default(); scopes.len()],
        };
        let mut progress: Vec<Progress> = scopes.iter().map(|_| Progress::default()).collect();
        let mut open: Vec<usize> = (0..scopes.len()).collect();
        let mut outcomes = Outcomes::new();
        while !open.is_empty() {
            let asked: Vec<_> =
                open.iter().map(|at| self.list_scope(bucket, &scopes[*at])).collect();
            let listed: Vec<Listed> =
                stream::iter(asked).buffered(self.config.in_flight_max.get()).try_collect().await?;
            let mut rounds: Vec<(usize, Round)> = Vec::new();
            for (at, listed) in std::mem::take(&mut open).into_iter().zip(listed) {
                let late = started.elapsed() >= self.config.request_timeout / 2;
                let step = progress[at].step(self.config.erase, &listed, late);
                match step {
                    Step::Send(round) => rounds.push((at, round)),
                    Step::Done(outcome) => {
                        let outcome = with_uploads(outcome, &aborted[at]);
                        let places = scopes[at].places.iter();
                        outcomes.extend(places.map(|place| (*place, outcome.clone())));
                    }
                }
            }
            self.send_rounds(bucket, scopes, &rounds, &mut progress).await?;
            open = rounds.into_iter().map(|(at, _)| at).collect();
        }
        Ok(outcomes)
    }

    async fn send_rounds(
        &self,
        bucket: &str,
        scopes: &[Scope<'_>],
        rounds: &[(usize, Round)],
        progress: &mut [Progress],
    ) -> Result<(), SinkError> {
        // What is refused, or not answered, keeps all that hides it.
        let mut bare: HashSet<&str> = HashSet::new();
        for part in [Part::Hides, Part::Data, Part::Markers] {
            let mut sending: Vec<(usize, &Version)> = Vec::new();
            for (at, round) in rounds {
                let versions = part.of(round).iter();
                let free = versions.filter(|version| !bare.contains(version.key.as_str()));
                sending.extend(free.map(|version| (*at, version)));
            }
            if sending.is_empty() {
                continue;
            }
            let doomed: Vec<Doomed<'_>> = sending
                .iter()
                .map(|(at, version)| Doomed {
                    object: Object {
                        key: &version.key,
                        version: (part != Part::Hides).then_some(version.id.as_str()),
                        etag: None,
                    },
                    probed: Some(Presence::Present),
                    until: scopes[*at].until,
                })
                .collect();
            let told = self.delete(bucket, &doomed, false).await?;
            for ((at, version), Told { outcome, .. }) in sending.into_iter().zip(told) {
                // The marker is what a hide is for.
                let hidden = part == Part::Hides && outcome.said == VERSIONED;
                if !hidden && !outcome.verdict.is_confirmed() {
                    bare.insert(&version.key);
                }
                if !hidden {
                    progress[at].note(version, outcome);
                }
            }
        }
        Ok(())
    }

    /// Asks whether versions may be listed.
    pub(super) async fn check_versions(
        &self,
        bucket: &str,
        scope: &Scope<'_>,
    ) -> Result<(), SinkError> {
        let from = Marker::default();
        let reply = self.requests.list_versions(bucket, scope.text, &from, 1).await?;
        let page = listing::versions(bucket, scope.text, &reply);
        page.map(drop).map_err(|error| permitted(error, "s3:ListBucketVersions"))
    }

    /// What is there of a scope, up to a bound.
    async fn list_scope(&self, bucket: &str, scope: &Scope<'_>) -> Result<Listed, SinkError> {
        let mut listed = Listed::default();
        let mut from = Marker::default();
        while listed.versions.len() < LISTED_MAX {
            let reply = self.requests.list_versions(bucket, scope.text, &from, PAGE_MAX).await?;
            let page = listing::versions(bucket, scope.text, &reply)
                .map_err(|error| permitted(error, "s3:ListBucketVersions"))?;
            let all = page.entries.into_iter();
            listed.versions.extend(all.filter(|version| scope.has(&version.key)));
            match page.next {
                Some(next) if next == from => {
                    return Err(SinkError::Protocol("a listing that does not go on".into()));
                }
                Some(next) if scope.may_go_on(&next.key) => from = next,
                Some(_) | None => {
                    listed.is_whole = true;
                    break;
                }
            }
        }
        Ok(listed)
    }

    /// In a versioned bucket a key may be hidden by a marker while its data is there.
    pub(super) async fn look_at_versions(
        &self,
        bucket: &str,
        scope: &Scope<'_>,
    ) -> Result<Presence, SinkError> {
        let listed = self.list_scope(bucket, scope).await?;
        let counts = |version: &Version| match self.config.erase {
            Erase::AllVersions => !version.is_marker,
            Erase::Current => version.is_current(),
        };
        Ok(if listed.versions.iter().any(counts) {
            Presence::Present
        } else if listed.is_whole {
            Presence::Absent
        } else {
            Presence::Unknown
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Hides,
    Data,
    Markers,
}

impl Part {
    fn of(self, round: &Round) -> &[Version] {
        match self {
            Self::Hides => &round.hides,
            Self::Data => &round.data,
            Self::Markers => &round.markers,
        }
    }
}

impl Progress {
    fn note(&mut self, version: &Version, outcome: Outcome) {
        let name = (version.key.clone(), version.id.clone());
        self.sent.insert(name, (version.is_marker, outcome));
    }

    fn told(&self, version: &Version) -> Option<&Outcome> {
        let name = (version.key.clone(), version.id.clone());
        self.sent.get(&name).map(|(_, outcome)| outcome)
    }

    /// What is gone, all of it, and what was left on purpose.
    fn said(&self, erase: Erase, older: usize) -> String {
        let markers = self.sent.values().filter(|(is_marker, _)| *is_marker).count();
        let versions = plural(self.sent.len() - markers, "version");
        let mut said = match (self.sent.len() - markers, markers) {
            (0, 0) if erase == Erase::Current => "no current version".to_owned(),
            (0, 0) => "nothing is listed".to_owned(),
            (_, 0) => format!("{versions} erased"),
            (0, markers) => format!("{} erased", plural(markers, "delete marker")),
            (_, markers) => {
                format!("{versions} and {} erased", plural(markers, "delete marker"))
            }
        };
        if older > 0 {
            let remain = if older == 1 { "remains" } else { "remain" };
            said = format!("{said}; {} {remain} by configuration", plural(older, "older version"));
        }
        said
    }

    /// What a listing leaves to do, or what it proves.
    ///
    /// Invariant (S6): a scope is confirmed by a whole listing in which nothing is left, and by no answer to
    /// a delete; `what_is_listed_still_is_not_confirmed`. Invariant (S5): what was written after the listing
    /// of its claim is neither deleted by it nor confirmed away;
    /// `a_version_written_after_the_listing_stays_and_is_not_confirmed`.
    fn step(&mut self, erase: Erase, listed: &Listed, late: bool) -> Step {
        let doomed = |version: &&Version| match erase {
            Erase::AllVersions => true,
            Erase::Current => self.told(version).is_some() || version.is_current(),
        };
        let left: Vec<&Version> = listed.versions.iter().filter(doomed).collect();
        let again: Vec<&Outcome> = left.iter().filter_map(|version| self.told(version)).collect();
        if let Some(worst) = again.iter().max_by_key(|outcome| severity(outcome.verdict)) {
            let mut outcome = (*worst).clone();
            if outcome.verdict.is_confirmed() {
                outcome =
                    Outcome::new(Verdict::Unknown, "listed still, though answered as deleted");
            } else if again.len() > 1 {
                outcome.said =
                    format!("{} of {} left: {}", again.len(), left.len(), outcome.said).into();
            }
            return Step::Done(outcome);
        }
        if left.is_empty() && listed.is_whole {
            let older = match erase {
                Erase::AllVersions => 0,
                Erase::Current => listed.versions.iter().filter(|it| !it.is_marker).count(),
            };
            let said = self.said(erase, older);
            let verdict = if self.sent.is_empty() { Verdict::Absent } else { Verdict::Deleted };
            let mut outcome = Outcome::new(verdict, said);
            outcome.verified = Verification::ReadBack;
            return Step::Done(outcome);
        }
        if self.was_whole {
            let said = format!("{} written since it was listed", plural(left.len(), "version"));
            return Step::Done(Outcome::new(Verdict::Busy, said));
        }
        if late {
            let said = format!("{} erased so far", plural(self.sent.len(), "version"));
            return Step::Done(Outcome::new(Verdict::Busy, said));
        }
        if left.iter().any(|version| !xml::is_writable(&version.key)) {
            let said = "an object's key has a control character that XML can't carry";
            return Step::Done(Outcome::new(Verdict::Refused, said));
        }
        self.was_whole = listed.is_whole;
        let mut round = Round::default();
        for version in left.into_iter().cloned() {
            let of_key = |other: &&Version| other.key == version.key && other.id != version.id;
            if erase == Erase::Current
                && (!listed.is_whole || listed.versions.iter().any(|it| of_key(&it)))
            {
                round.hides.push(version.clone());
            }
            match version.is_marker {
                true => round.markers.push(version),
                false => round.data.push(version),
            }
        }
        // The oldest first: whatever fails, a read finds nothing older than before.
        round.data.reverse();
        Step::Send(round)
    }
}

/// What became of the uploads goes into the outcome.
pub(super) fn with_uploads(mut outcome: Outcome, aborted: &Aborted) -> Outcome {
    if aborted.count > 0 {
        let uploads = plural(aborted.count, "unfinished upload");
        outcome.said = format!("{}; {uploads} aborted", outcome.said).into();
        if outcome.verdict == Verdict::Absent {
            outcome.verdict = Verdict::Deleted;
        }
    }
    match &aborted.left {
        Some(left) if outcome.verdict.is_confirmed() => left.clone(),
        _ => outcome,
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The scopes whose claims hold, and the places whose claims are over.
pub(super) fn held<'a>(
    scopes: Vec<Scope<'a>>,
    holds: impl Fn(usize) -> bool,
) -> (Vec<Scope<'a>>, Outcomes) {
    let mut over = Outcomes::new();
    let mut open = Vec::new();
    for mut scope in scopes {
        scope.places.retain(|place| {
            let holds = holds(*place);
            if !holds {
                over.push((*place, lease_over()));
            }
            holds
        });
        if !scope.places.is_empty() {
            open.push(scope);
        }
    }
    (open, over)
}

#[cfg(test)]
#[path = "erase_tests.rs"]
mod tests;
