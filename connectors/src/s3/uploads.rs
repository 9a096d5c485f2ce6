//! Uploads in parts that nobody completed: their parts are copies, too, and no listing of objects
//! has them.

use std::collections::HashMap;
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tombstream_model::{Outcome, SinkError, Verdict};
use tracing::warn;

use super::answer;
use super::listing::{self, Marker, Upload};
use super::sink::{PAGE_MAX, S3Sink, Scope};

/// Pages of a listing for a whole batch; with more uploads than that, each key is listed by itself.
const PAGES_MAX: usize = 5;

/// What became of one scope's uploads.
#[derive(Debug, Clone, Default)]
pub(super) struct Aborted {
    pub(super) count: usize,
    /// Why it can't be said that none is left.
    pub(super) left: Option<Outcome>,
}

impl S3Sink {
    /// Aborts every upload of the scopes, in their order, and lists again where there was one.
    ///
    /// Invariant (S6): what is listed still is not confirmed; live test:
    /// `an_upload_that_can_not_be_aborted_is_not_confirmed`.
    pub(super) async fn abort_uploads(
        &self,
        bucket: &str,
        scopes: &[Scope<'_>],
    ) -> Result<Vec<Aborted>, SinkError> {
        let mut aborted = vec![Aborted::default(); scopes.len()];
        if self.known(bucket).has_no_uploads {
            return Ok(aborted);
        }
        let all: Vec<usize> = (0..scopes.len()).collect();
        let found = self.find_uploads(bucket, scopes, &all).await?;
        let mut with: Vec<usize> = found.iter().map(|(at, _)| *at).collect();
        with.sort_unstable();
        with.dedup();
        if with.is_empty() {
            return Ok(aborted);
        }
        let asked: Vec<_> = found
            .iter()
            .map(|(at, upload)| self.abort_one(bucket, upload, scopes[*at].until))
            .collect();
        let answers: Vec<Option<Outcome>> =
            stream::iter(asked).buffered(self.config.in_flight_max.get()).try_collect().await?;
        for ((at, _), left) in found.iter().zip(answers) {
            match left {
                None => aborted[*at].count += 1,
                Some(outcome) => aborted[*at].left = Some(outcome),
            }
        }
        for (at, _) in self.find_uploads(bucket, scopes, &with).await? {
            let still = || Outcome::new(Verdict::Busy, "an unfinished upload is listed still");
            aborted[at].left.get_or_insert_with(still);
        }
        Ok(aborted)
    }

    /// Asks whether uploads may be listed.
    pub(super) async fn check_uploads(
        &self,
        bucket: &str,
        scope: &Scope<'_>,
    ) -> Result<(), SinkError> {
        self.list_uploads(bucket, scope.text, |_| false).await.map(drop)
    }

    /// None where it is gone.
    async fn abort_one(
        &self,
        bucket: &str,
        upload: &Upload,
        until: Instant,
    ) -> Result<Option<Outcome>, SinkError> {
        let signed = self.requests.abort(bucket, &upload.key, &upload.id).await?;
        if Instant::now() >= until {
            return Ok(Some(super::sink::lease_over()));
        }
        let reply = self.requests.send(signed, Some(until)).await?;
        match reply.status {
            200 | 204 => Ok(None),
            404 if answer::code(&reply).as_deref() == Some("NoSuchUpload") => Ok(None),
            _ => Err(permitted(answer::failure(&reply), "s3:AbortMultipartUpload")),
        }
    }

    /// The uploads of some scopes, each with the scope's place. Uploads are few, so one listing
    /// mostly serves a whole batch.
    async fn find_uploads(
        &self,
        bucket: &str,
        scopes: &[Scope<'_>],
        places: &[usize],
    ) -> Result<Vec<(usize, Upload)>, SinkError> {
        let common = common_prefix(places.iter().map(|at| scopes[*at].text));
        let exact: HashMap<&str, usize> = places
            .iter()
            .filter(|at| scopes[**at].is_exact)
            .map(|at| (scopes[*at].text, *at))
            .collect();
        let prefixes: Vec<usize> =
            places.iter().copied().filter(|at| !scopes[*at].is_exact).collect();
        if let Some(uploads) = self.list_uploads(bucket, common, |_| true).await? {
            let place = |upload: &Upload| {
                let exact = exact.get(upload.key.as_str()).copied();
                exact.or_else(|| {
                    prefixes.iter().copied().find(|at| upload.key.starts_with(scopes[*at].text))
                })
            };
            return Ok(uploads.into_iter().filter_map(|it| Some((place(&it)?, it))).collect());
        }
        let asked: Vec<_> = places
            .iter()
            .map(|at| async {
                let scope = &scopes[*at];
                let found =
                    self.list_uploads(bucket, scope.text, |key| scope.may_go_on(key)).await?;
                let too_many = "more unfinished uploads than are listed at a time";
                let found = found.ok_or_else(|| SinkError::Protocol(too_many.into()))?;
                let found = found.into_iter().filter(|upload| scope.has(&upload.key));
                Ok::<Vec<_>, SinkError>(found.map(|upload| (*at, upload)).collect())
            })
            .collect();
        let found: Vec<Vec<(usize, Upload)>> =
            stream::iter(asked).buffered(self.config.in_flight_max.get()).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// All uploads under a prefix, as long as `goes_on` says of the next page's first key; none where
    /// there are too many pages.
    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        goes_on: impl Fn(&str) -> bool,
    ) -> Result<Option<Vec<Upload>>, SinkError> {
        let mut uploads = Vec::new();
        let mut from = Marker::default();
        for _ in 0..PAGES_MAX {
            let reply = self.requests.list_uploads(bucket, prefix, &from, PAGE_MAX).await?;
            if answer::is_not_offered(&reply) {
                warn!(bucket, status = reply.status, "the server knows no unfinished uploads");
                self.learn(bucket, |known| known.has_no_uploads = true);
                return Ok(Some(Vec::new()));
            }
            let page = listing::uploads(bucket, prefix, &reply)
                .map_err(|error| permitted(error, "s3:ListBucketMultipartUploads"))?;
            uploads.extend(page.entries);
            match page.next {
                Some(next) if next == from => break,
                Some(next) if goes_on(&next.key) => from = next,
                Some(_) | None => return Ok(Some(uploads)),
            }
        }
        Ok(None)
    }
}

/// A denial that names what is missing.
pub(super) fn permitted(error: SinkError, action: &str) -> SinkError {
    match error {
        SinkError::Denied(said) => SinkError::Denied(format!(
            "{said}: erase = \"all_versions\" needs {action}; erase = \"current\" goes without"
        )),
        other => other,
    }
}

/// What all texts begin with.
fn common_prefix<'a>(texts: impl Iterator<Item = &'a str>) -> &'a str {
    texts
        .reduce(|common, text| {
            let same = common.char_indices().zip(text.chars()).find(|((_, a), b)| a != b);
            let end = same.map_or(common.len().min(text.len()), |((at, _), _)| at);
            &common[..end]
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_texts_have_in_common_ends_between_characters() {
        for (texts, common) in [
            (vec!["docs/1/a", "docs/10/a"], "docs/1"),
            (vec!["docs/1/a"], "docs/1/a"),
            (vec!["caf\u{e9}", "caf\u{ea}"], "caf"),
            (vec!["a", "ab"], "a"),
            (vec!["ab", "a"], "a"),
            (vec!["a", "b"], ""),
        ] {
            assert_eq!(common_prefix(texts.into_iter()), common);
        }
    }
}
