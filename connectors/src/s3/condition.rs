//! Deletes that name the `ETag` which was looked at, where the server heeds it.

use std::time::Instant;

use tombstream_model::{Outcome, Presence, SinkError, Verdict};
use tracing::info;
use uuid::Uuid;

use super::answer;
use super::config::Conditional;
use super::delete::{Doomed, Told};
use super::known::Conditions;
use super::request::Object;
use super::sink::S3Sink;

/// An `ETag` that nothing has.
const NEVER: &str = "\"00000000000000000000000000000000\"";

impl S3Sink {
    /// Deletes objects, each on the condition that it is what was looked at, as configured.
    ///
    /// Invariant (S5): where conditions are heeded, bytes that were written after the look stay; live
    /// test: `bytes_written_between_look_and_delete_stay`.
    pub(super) async fn delete_conditionally(
        &self,
        bucket: &str,
        doomed: &mut [Doomed<'_>],
    ) -> Result<Vec<Told>, SinkError> {
        if doomed.is_empty() {
            return Ok(Vec::new());
        }
        let mut early = None;
        let conditions = match self.config.conditional {
            Conditional::Never => Conditions::Ignored,
            Conditional::Required => match self.try_conditions(bucket).await? {
                Conditions::Ignored => return Err(ignored()),
                heeded => heeded,
            },
            Conditional::Auto => match self.known(bucket).conditions {
                Some(conditions) => conditions,
                None => {
                    early = self.learn_conditions(bucket, doomed).await?;
                    self.known(bucket).conditions.unwrap_or(Conditions::Ignored)
                }
            },
        };
        if conditions == Conditions::Ignored {
            for doomed in doomed.iter_mut() {
                doomed.object.etag = None;
            }
        }
        let mut told: Vec<Option<Told>> = vec![None; doomed.len()];
        if let Some((place, answer)) = early {
            told[place] = Some(answer);
        }
        if conditions != Conditions::Ignored {
            let required = self.config.conditional == Conditional::Required;
            self.leave_unnamed(bucket, doomed, required, &mut told).await?;
        }
        let open: Vec<usize> = (0..doomed.len()).filter(|at| told[*at].is_none()).collect();
        let rest: Vec<Doomed<'_>> = open.iter().map(|at| doomed[*at]).collect();
        let answers = match self.delete(bucket, &rest, conditions == Conditions::OneByOne).await {
            Ok(answers) => answers,
            Err(error) if open.len() == doomed.len() => return Err(error),
            // What was answered must not be lost with what was not.
            Err(error) => vec![Told::failed(&error); rest.len()],
        };
        for (at, answer) in open.into_iter().zip(answers) {
            told[at] = Some(answer);
        }
        Ok(told.into_iter().map(|told| told.expect("answered, sent or left")).collect())
    }

    /// What has no `ETag` can't be named: what is not there is not sent, so that what is written
    /// there now stays.
    async fn leave_unnamed(
        &self,
        bucket: &str,
        doomed: &[Doomed<'_>],
        required: bool,
        told: &mut [Option<Told>],
    ) -> Result<(), SinkError> {
        let mut looked = false;
        for (at, doomed) in doomed.iter().enumerate() {
            if told[at].is_some() || doomed.object.etag.is_some() {
                continue;
            }
            told[at] = match doomed.probed {
                Some(Presence::Absent) => {
                    // A bare 404 may come from a proxy, or from a bucket that is gone.
                    if !looked {
                        let prefix = &self.config.prefix;
                        let reply = self.requests.list(bucket, prefix, 1).await?;
                        answer::listing(bucket, prefix, &reply)?;
                        looked = true;
                    }
                    Some(Told::unsent(Outcome::new(Verdict::Absent, "404 to a HEAD, nothing sent")))
                }
                _ if required => {
                    let said = "not sent: the store gives no ETag to name it by";
                    Some(Told::unsent(Outcome::new(Verdict::Unknown, said)))
                }
                _ => None,
            };
        }
        Ok(())
    }

    /// Learns it from an object that is there and is to go: a condition that can't be true is either
    /// refused, or the object is gone as it should. Gives the answer in the latter case.
    async fn learn_conditions(
        &self,
        bucket: &str,
        doomed: &[Doomed<'_>],
    ) -> Result<Option<(usize, Told)>, SinkError> {
        let there =
            |it: &Doomed<'_>| it.probed == Some(Presence::Present) && it.object.etag.is_some();
        let Some(place) = doomed.iter().position(there) else { return Ok(None) };
        let mut tried = doomed[place];
        tried.object.etag = Some(NEVER);
        let told = self.delete(bucket, &[tried], false).await?;
        let Some(told) = told.into_iter().next() else { return Ok(None) };
        let conditions = match told.outcome.verdict {
            Verdict::Busy if told.outcome.said == answer::CHANGED => Conditions::Bulk,
            Verdict::Deleted => Conditions::Ignored,
            // Nothing was learned: the next batch tries again.
            _ => return Ok(Some((place, told))),
        };
        info!(bucket, ?conditions, "what the server makes of conditional deletes");
        self.learn(bucket, |known| known.conditions = Some(conditions));
        Ok((conditions == Conditions::Ignored).then_some((place, told)))
    }

    /// Tries it on an object of its own, once in the sink's life.
    pub(super) async fn try_conditions(&self, bucket: &str) -> Result<Conditions, SinkError> {
        if let Some(conditions) = self.known(bucket).conditions {
            return Ok(conditions);
        }
        let key = format!("{}tombstream-probe-{}", self.config.prefix, Uuid::new_v4().simple());
        let delete = async |etag, one_by_one| {
            let object = Object { key: &key, version: None, etag };
            let until = Instant::now() + self.config.request_timeout;
            let doomed = Doomed { object, probed: Some(Presence::Present), until };
            let told = self.delete(bucket, &[doomed], one_by_one).await?;
            Ok::<_, SinkError>(told.into_iter().next().map(|told| told.outcome))
        };
        let mut found = Conditions::Ignored;
        for (conditions, one_by_one) in [(Conditions::Bulk, false), (Conditions::OneByOne, true)] {
            let reply = self.requests.put_empty(bucket, &key).await?;
            if reply.status != 200 {
                return Err(unwritten(answer::failure(&reply)));
            }
            let outcome = delete(Some(NEVER), one_by_one).await?;
            if outcome.is_some_and(|outcome| outcome.said == answer::CHANGED) {
                found = conditions;
                break;
            }
        }
        delete(None, false).await?;
        info!(bucket, conditions = ?found, "what the server makes of conditional deletes");
        self.learn(bucket, |known| known.conditions = Some(found));
        Ok(found)
    }
}

fn ignored() -> SinkError {
    SinkError::Denied(
        "conditional = \"required\", but the server deletes whatever If-Match says: write \
         conditional = \"auto\", or use another server"
            .into(),
    )
}

fn unwritten(error: SinkError) -> SinkError {
    match error {
        SinkError::Denied(said) => SinkError::Denied(format!(
            "{said}: conditional = \"required\" is tried on an object of its own, which needs \
             s3:PutObject; conditional = \"auto\" goes without"
        )),
        other => other,
    }
}
