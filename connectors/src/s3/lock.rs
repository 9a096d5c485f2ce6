//! Why an object can't be deleted: object lock, legal hold. A bypass of governance mode is never asked
//! for: who may lift a lock is not for a deleting process to decide.

use futures::{StreamExt as _, stream};
use tombstream_model::{SinkError, Verdict};

use super::answer::{self, ObjectLock, Reply, excerpt};
use super::delete::{Doomed, Told};
use super::request::Object;
use super::sink::S3Sink;
use super::xml::Element;

impl S3Sink {
    /// Says of what was refused whether and until when it is locked.
    pub(super) async fn explain_all(&self, bucket: &str, part: &[Doomed<'_>], told: &mut [Told]) {
        let refused: Vec<usize> = (0..told.len())
            .filter(|at| told[*at].sent.is_some() && told[*at].outcome.verdict == Verdict::Refused)
            .collect();
        if refused.is_empty() || !self.may_lock(bucket).await {
            return;
        }
        let asked: Vec<_> =
            refused.iter().map(|at| self.locked(bucket, &part[*at].object)).collect();
        let reasons: Vec<Option<String>> =
            stream::iter(asked).buffered(self.config.in_flight_max.get()).collect().await;
        for (at, reason) in refused.into_iter().zip(reasons) {
            if let Some(reason) = reason {
                told[at].outcome.said = reason.into();
            }
        }
    }

    /// Why a version, or what a read of the key would find, is locked, if it is. Asked only where
    /// the bucket can lock at all: elsewhere it would cost requests and say nothing.
    pub(super) async fn locked(&self, bucket: &str, object: &Object<'_>) -> Option<String> {
        if !self.may_lock(bucket).await {
            return None;
        }
        let Object { key, version, .. } = *object;
        let retention = self.requests.retention(bucket, key, version).await.ok()?;
        let hold = self.requests.legal_hold(bucket, key, version).await.ok()?;
        let reasons: Vec<String> = retained(&retention).into_iter().chain(held(&hold)).collect();
        let version = version.map_or(String::new(), |id| format!(", version {}", excerpt(id)));
        (!reasons.is_empty()).then(|| format!("{}{version}", reasons.join(" and ")))
    }

    async fn may_lock(&self, bucket: &str) -> bool {
        let known = self.known(bucket).lock;
        let lock = match known {
            Some(lock) => lock,
            None => match self.ask_lock(bucket).await {
                Ok(lock) => lock,
                Err(_) => return false,
            },
        };
        lock != ObjectLock::Off
    }

    pub(super) async fn ask_lock(&self, bucket: &str) -> Result<ObjectLock, SinkError> {
        let lock = answer::object_lock(&self.requests.object_lock(bucket).await?)?;
        self.learn(bucket, |known| known.lock = Some(lock.clone()));
        Ok(lock)
    }
}

/// What `GET ?retention` says: until when, and in which mode.
fn retained(reply: &Reply) -> Option<String> {
    let root = Element::parse(&reply.body).ok().filter(|_| reply.status == 200)?;
    let until = root.child("RetainUntilDate").filter(|until| !until.is_empty())?;
    let mode = root.child("Mode").unwrap_or("no mode");
    Some(format!("locked until {} ({})", excerpt(until), excerpt(mode)))
}

/// What `GET ?legal-hold` says.
fn held(reply: &Reply) -> Option<String> {
    let root = Element::parse(&reply.body).ok().filter(|_| reply.status == 200)?;
    (root.child("Status") == Some("ON")).then(|| "under legal hold".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, body: body.as_bytes().to_vec(), ..Reply::default() }
    }

    #[test]
    fn a_lock_is_told_with_its_end_and_mode() {
        // AWS, then versitygw 1.8.0.
        for root in ["Retention", "ObjectLockRetention"] {
            let body = format!(
                "<{root}><Mode>COMPLIANCE</Mode><RetainUntilDate>2030-01-01T00:00:00Z\
                 </RetainUntilDate></{root}>"
            );
            let said = retained(&reply(200, &body)).unwrap();
            assert_eq!(said, "locked until 2030-01-01T00:00:00Z (COMPLIANCE)");
            assert_eq!(retained(&reply(404, &body)), None);
        }
        assert_eq!(retained(&reply(200, "<Retention/>")), None);
        let hold = |status: &str| format!("<LegalHold><Status>{status}</Status></LegalHold>");
        assert_eq!(held(&reply(200, &hold("ON"))).as_deref(), Some("under legal hold"));
        assert_eq!(held(&reply(200, &hold("OFF"))), None);
        let none = "<Error><Code>NoSuchObjectLockConfiguration</Code></Error>";
        assert_eq!(held(&reply(400, none)), None);
    }
}
