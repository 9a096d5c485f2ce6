//! Sending deletes: at the store's pace, under a claim that holds, in the form that the server takes.

use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::{StreamExt as _, stream};
use tokio::time::sleep_until;
use tombstream_model::{Outcome, Presence, SinkError, Verdict};
use tracing::warn;

use super::answer::{self, Asked};
use super::config::Checksum;
use super::request::{Digest, Object};
use super::sink::{S3Sink, lease_over, one_of_several};

/// What a claim has condemned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doomed<'a> {
    pub(super) object: Object<'a>,
    /// What a look had found, if anybody looked.
    pub(super) probed: Option<Presence>,
    /// When the last of its claims ends.
    pub(super) until: Instant,
}

/// What became of it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) outcome: Outcome,
    /// When the request left, if one did.
    pub(super) sent: Option<Instant>,
}

impl Doomed<'_> {
    fn holds(&self) -> bool {
        Instant::now() < self.until
    }

    fn asked(&self) -> Asked<'_> {
        Asked { key: self.object.key, version: self.object.version, probed: self.probed }
    }
}

impl Told {
    /// Of one of several requests that was not answered.
    pub(super) fn failed(error: &SinkError) -> Self {
        Self::unsent(one_of_several(error))
    }

    pub(super) fn unsent(outcome: Outcome) -> Self {
        Self { outcome, sent: None }
    }
}

impl S3Sink {
    /// Deletes in the order given, and says in that order what became of each. An error means that
    /// nothing was answered at all.
    pub(super) async fn delete(
        &self,
        bucket: &str,
        doomed: &[Doomed<'_>],
        one_by_one: bool,
    ) -> Result<Vec<Told>, SinkError> {
        // Beyond this the rest is better asked again than waited for: whoever called has a time-out.
        let latest = Instant::now() + self.config.request_timeout / 4;
        let mut told = Vec::with_capacity(doomed.len());
        while let Some(rest) = doomed.get(told.len()..).filter(|rest| !rest.is_empty()) {
            let part = &rest[..rest.len().min(self.config.keys_max.get())];
            let keys = part.iter().map(|doomed| doomed.object.key);
            let asked = Instant::now();
            let turn = self.pace.reserve(asked, bucket, keys, latest);
            if turn.keys == 0 {
                let mut later = Outcome::new(Verdict::Busy, "not sent yet: as fast as it takes");
                later.retry_after = Some(turn.at.saturating_duration_since(Instant::now()));
                told.extend(rest.iter().map(|_| Told::unsent(later.clone())));
                break;
            }
            sleep_until(turn.at.into()).await;
            let part = &part[..turn.keys];
            match self.send(bucket, part, one_by_one, asked).await {
                Ok(answers) => told.extend(answers),
                Err(error) if told.is_empty() => return Err(error),
                Err(error) => {
                    let failed = one_of_several(&error);
                    told.extend(part.iter().map(|_| Told::unsent(failed.clone())));
                    let later = Outcome::new(Verdict::Busy, "not sent: a request before it failed");
                    told.extend(rest[part.len()..].iter().map(|_| Told::unsent(later.clone())));
                }
            }
        }
        Ok(told)
    }

    /// One request, or one for each where the server takes no more.
    ///
    /// Invariant (S1): no key leaves after the end of its lease, so the fence is asked once
    /// everything that takes time (probes, waits for the pace, credentials, the signature) is done;
    /// live tests: `objects_conform`, `a_lease_that_ends_while_keys_are_probed_stops_the_delete`,
    /// `a_lease_that_ends_while_the_pace_is_waited_for_stops_the_delete`.
    async fn send(
        &self,
        bucket: &str,
        part: &[Doomed<'_>],
        one_by_one: bool,
        paced: Instant,
    ) -> Result<Vec<Told>, SinkError> {
        let mut told: Vec<Option<Told>> = vec![None; part.len()];
        let mut open: Vec<usize> = (0..part.len()).collect();
        let mut one_by_one = one_by_one || self.known(bucket).takes_one;
        let mut digest = self.digest();
        while !open.is_empty() {
            open.retain(|at| {
                let holds = part[*at].holds();
                if !holds {
                    told[*at] = Some(Told::unsent(lease_over()));
                }
                holds
            });
            if one_by_one {
                let open = std::mem::take(&mut open);
                self.send_each(bucket, part, open, paced, &mut told).await?;
                break;
            }
            let objects: Vec<Object<'_>> = open.iter().map(|at| part[*at].object).collect();
            let Some(until) = open.iter().map(|at| part[*at].until).min() else { break };
            let signed = self.requests.delete_objects(bucket, &objects, digest).await?;
            if open.iter().any(|at| !part[*at].holds()) {
                continue;
            }
            let sent = Some(Instant::now());
            let reply = self.requests.send(signed, Some(until)).await?;
            if answer::is_not_offered(&reply) {
                warn!(bucket, status = reply.status, "no DeleteObjects here: object by object");
                self.learn(bucket, |known| known.takes_one = true);
                one_by_one = true;
                continue;
            }
            // One locked object must not keep the others of its request.
            if objects.len() > 1 && answer::is_locked_as_a_whole(&reply) {
                one_by_one = true;
                continue;
            }
            if self.config.checksum == Checksum::Auto
                && digest == Digest::Md5
                && answer::is_checksum_refused(&reply)
            {
                digest = Digest::Crc32;
                continue;
            }
            let asked: Vec<Asked<'_>> = open.iter().map(|at| part[*at].asked()).collect();
            let deleted = answer::deleted(&asked, &reply);
            let throttled = match &deleted {
                Ok(deleted) => deleted.throttled,
                Err(error) => matches!(error, SinkError::Throttled { .. }),
            };
            if throttled {
                let keys = objects.iter().map(|object| object.key);
                self.pace.refused(Instant::now(), paced, bucket, keys);
            }
            let deleted = deleted?;
            if digest == Digest::Crc32 {
                self.crc32.store(true, Ordering::Relaxed);
            }
            for (at, outcome) in open.drain(..).zip(deleted.outcomes) {
                told[at] = Some(Told { outcome, sent });
            }
        }
        let mut told: Vec<Told> =
            told.into_iter().map(|told| told.expect("sent, or over")).collect();
        self.explain_all(bucket, part, &mut told).await;
        Ok(told)
    }

    /// Object by object.
    async fn send_each(
        &self,
        bucket: &str,
        part: &[Doomed<'_>],
        open: Vec<usize>,
        paced: Instant,
        told: &mut [Option<Told>],
    ) -> Result<(), SinkError> {
        let asked: Vec<_> =
            open.iter().map(|at| self.send_one(bucket, &part[*at], paced)).collect();
        let answers: Vec<_> =
            stream::iter(asked).buffered(self.config.in_flight_max.get()).collect().await;
        let answered = answers.iter().any(Result::is_ok);
        for (at, answer) in open.into_iter().zip(answers) {
            told[at] = Some(match answer {
                Ok(answer) => answer,
                Err(error) if !answered => return Err(error),
                Err(error) => Told::unsent(one_of_several(&error)),
            });
        }
        Ok(())
    }

    async fn send_one(
        &self,
        bucket: &str,
        doomed: &Doomed<'_>,
        paced: Instant,
    ) -> Result<Told, SinkError> {
        let signed = self.requests.delete_object(bucket, &doomed.object).await?;
        if !doomed.holds() {
            return Ok(Told::unsent(lease_over()));
        }
        let sent = Some(Instant::now());
        let reply = self.requests.send(signed, Some(doomed.until)).await?;
        match answer::deleted_one(&doomed.asked(), &reply) {
            Ok(outcome) => Ok(Told { outcome, sent }),
            Err(error) => {
                if matches!(error, SinkError::Throttled { .. }) {
                    self.pace.refused(Instant::now(), paced, bucket, [doomed.object.key]);
                }
                match (&error, self.locked(bucket, &doomed.object).await) {
                    (SinkError::Denied(_) | SinkError::Protocol(_), Some(why)) => {
                        Ok(Told { outcome: Outcome::new(Verdict::Refused, why), sent })
                    }
                    _ => Err(error),
                }
            }
        }
    }

    fn digest(&self) -> Digest {
        match self.config.checksum {
            Checksum::Crc32 => Digest::Crc32,
            Checksum::Auto if self.crc32.load(Ordering::Relaxed) => Digest::Crc32,
            Checksum::Auto | Checksum::Md5 => Digest::Md5,
        }
    }
}
