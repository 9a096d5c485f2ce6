//! The sink's second mode: every document whose field equals the key, the chunks of one row.
//!
//! All targets of one field travel together: one point in time, one search for all their values,
//! pages of hits, each page deleted on condition of the state that the hit showed. Every hit also
//! shows the indexed values of the field; a document that holds another key as well is somebody
//! else's too, and stays.
//!
//! An address's routing is not used to narrow the search: a wrong one would make chunks look absent
//! (S6), and a document whose field is the key belongs to the key on whichever shard it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tombstream_model::{Fence, Presence, SinkError, Target, Verdict};

use super::answer::{Deleted, Doc, Fault, Hit, Index, Page};
use super::client::{Client, Condition, weight};
use super::sink::{absent, lease_over, soften};

/// Lucene's longest term: a longer value is in no index.
const VALUE_BYTES_MAX: usize = 32_766;

/// The targets of one field of one set of indices.
pub(super) struct Group<'a> {
    indices: Arc<[Index]>,
    field: &'a str,
    targets: Vec<Chunked<'a>>,
    by_value: HashMap<&'a str, Vec<usize>>,
    bytes: usize,
}

/// One target of a group, and what became of its documents.
struct Chunked<'a> {
    place: usize,
    fence: &'a Fence,
    deleted: u64,
    /// Documents that changed, or went, between the search and the delete.
    changed: u64,
    /// Documents that hold another value too.
    shared: u64,
    late: bool,
    fault: Option<Fault>,
}

/// Why a field or a value is never asked for.
pub(super) fn problem(field: &str, value: &str) -> Option<&'static str> {
    let odd = |c: char| matches!(c, '*' | '?' | ',' | '"' | '\\') || c.is_whitespace();
    if field.is_empty() || field.split('.').any(str::is_empty) || field.contains(odd) {
        return Some("the field is not the name of one field");
    }
    if field.starts_with('_') {
        return Some("the field is one of Elasticsearch's own");
    }
    if value.is_empty() {
        return Some("the value is empty");
    }
    if value.len() > VALUE_BYTES_MAX {
        return Some("the value is longer than any indexed term");
    }
    None
}

impl<'a> Group<'a> {
    /// Adds a target to the group it belongs to, or to a new one when that is full: the values of
    /// a group travel in one request.
    pub(super) fn add(
        groups: &mut Vec<Self>,
        bytes_max: usize,
        indices: &Arc<[Index]>,
        field: &'a str,
        value: &'a str,
        place: usize,
        target: &'a Target,
    ) {
        let theirs = |group: &&mut Self| {
            let has_room = group.bytes + value.len() <= bytes_max;
            group.field == field && Arc::ptr_eq(&group.indices, indices) && has_room
        };
        let group = match groups.iter_mut().find(theirs) {
            Some(group) => group,
            None => {
                groups.push(Self {
                    indices: Arc::clone(indices),
                    field,
                    targets: Vec::new(),
                    by_value: HashMap::new(),
                    bytes: 0,
                });
                groups.last_mut().expect("one was pushed just now")
            }
        };
        group.bytes += value.len();
        group.by_value.entry(value).or_default().push(group.targets.len());
        group.targets.push(Chunked {
            place,
            fence: &target.fence,
            deleted: 0,
            changed: 0,
            shared: 0,
            late: false,
            fault: None,
        });
    }

    /// The same end for every target.
    pub(super) fn all(&self, end: &Fault) -> Vec<(usize, Fault)> {
        self.targets.iter().map(|target| (target.place, end.clone())).collect()
    }

    /// Destroys every document of every target. An error means that nothing was deleted.
    pub(super) async fn destroy(&self, client: &Client) -> Result<Vec<(usize, Fault)>, SinkError> {
        if let Some(problem) = self.unfit(client).await? {
            return Ok(self.all(&Fault::new(Verdict::Refused, problem)));
        }
        // A search shows what the last refresh made visible; "none found" before it proves nothing.
        client.refresh(&self.indices).await?;
        let mut tally: Vec<Chunked<'a>> = self.targets.iter().map(Chunked::fresh).collect();
        let mut pit = client.open(&self.indices).await?;
        let swept = self.sweep(client, &mut pit, &mut tally).await;
        client.close(&pit).await;
        if let Err(error) = swept {
            if tally.iter().all(Chunked::is_untouched) {
                return Err(error);
            }
            // Pages are in no order of targets, so the rest may hold documents of each.
            let fault = soften(&error);
            tally.iter_mut().for_each(|target| target.fail(fault.clone()));
        }
        self.count_changed(client, &mut tally).await;
        Ok(tally.into_iter().map(|target| (target.place, target.end())).collect())
    }

    /// Whether documents of each target are there, after a refresh.
    pub(super) async fn look(&self, client: &Client) -> Result<Vec<(usize, Presence)>, SinkError> {
        let place = |target: &Chunked<'_>| target.place;
        if self.unfit(client).await?.is_some() {
            return Ok(self.targets.iter().map(|it| (place(it), Presence::Unknown)).collect());
        }
        client.refresh(&self.indices).await?;
        let values: Vec<&str> = self.by_value.keys().copied().collect();
        let counts = client.count(&self.indices, self.field, &values).await?;
        let mut looks = Vec::with_capacity(self.targets.len());
        for (value, count) in values.iter().zip(counts) {
            let presence = if count == 0 { Presence::Absent } else { Presence::Present };
            looks.extend(
                self.by_value[value].iter().map(|&at| (place(&self.targets[at]), presence)),
            );
        }
        Ok(looks)
    }

    async fn unfit(&self, client: &Client) -> Result<Option<String>, SinkError> {
        let longest = self.by_value.keys().map(|value| value.chars().count()).max().unwrap_or(0);
        client.field_problem(&self.indices, self.field, longest).await
    }

    async fn sweep(
        &self,
        client: &Client,
        pit: &mut String,
        tally: &mut [Chunked<'a>],
    ) -> Result<(), SinkError> {
        let values: Vec<&str> = self.by_value.keys().copied().collect();
        let mut after = None;
        loop {
            let page = client.page(pit, self.field, &values, after.as_ref()).await?;
            let Page { hits, pit: renewed, .. } = page;
            if let Some(renewed) = renewed {
                *pit = renewed;
            }
            let Some(last) = hits.last().map(|hit| hit.sort.clone()) else { return Ok(()) };
            if Some(&last) == after.as_ref() || !last.is_array() {
                return Err(SinkError::Protocol("a search does not get on".to_owned()));
            }
            after = Some(last);
            self.delete(client, &hits, tally).await?;
            if tally.iter().all(|target| target.late) {
                return Ok(());
            }
        }
    }

    /// Deletes one page.
    async fn delete(
        &self,
        client: &Client,
        hits: &[Hit],
        tally: &mut [Chunked<'a>],
    ) -> Result<(), SinkError> {
        let mut deletes: Vec<(&Doc, Condition, &[usize])> = Vec::with_capacity(hits.len());
        let blocked = self.indices.iter().filter_map(|it| Some((it.name.as_str(), it.blocked()?)));
        let blocked: HashMap<&str, String> = blocked.collect();
        for hit in hits {
            // Invariant (S8): only what holds this value and no other is deleted;
            // `a_document_that_holds_another_key_too_stays`.
            let owners = match hit.values.as_slice() {
                [value] => self.by_value.get(value.as_str()),
                _ => None,
            };
            let blocked = blocked.get(hit.doc.index.as_str());
            match (owners, hit.seen) {
                (Some(owners), Some(seen)) if blocked.is_none() => {
                    deletes.push((&hit.doc, Condition::Seen(seen), owners));
                }
                (Some(owners), _) => {
                    let fault = match blocked {
                        // Nothing is sent that is known to be refused.
                        Some(why) => Fault::blocked(why.clone()),
                        None => Fault::unknown("a hit shows no sequence number"),
                    };
                    owners.iter().for_each(|&at| tally[at].fail(fault.clone()));
                }
                (None, _) => {
                    let named: HashSet<&str> = hit.values.iter().map(String::as_str).collect();
                    let theirs = named.iter().filter_map(|value| self.by_value.get(value));
                    theirs.flatten().for_each(|&at| tally[at].shared += 1);
                }
            }
        }
        for part in client.parts(&deletes, |(doc, ..)| weight(doc)) {
            let holds = |owners: &[usize]| owners.iter().all(|&at| tally[at].fence.holds());
            type Sent<'s, 'd> = Vec<&'s (&'d Doc, Condition, &'d [usize])>;
            let (part, late): (Sent<'_, '_>, Sent<'_, '_>) =
                part.iter().partition(|(.., owners)| holds(owners));
            for at in late.iter().flat_map(|(.., owners)| owners.iter()) {
                tally[*at].late = true;
            }
            if part.is_empty() {
                continue;
            }
            let docs: Vec<_> = part.iter().map(|(doc, condition, _)| (*doc, *condition)).collect();
            let answers = client.delete(&docs).await?;
            for ((.., owners), deleted) in part.into_iter().zip(answers) {
                for &at in *owners {
                    match &deleted {
                        Deleted::Done => tally[at].deleted += 1,
                        Deleted::NotFound | Deleted::Conflict => tally[at].changed += 1,
                        Deleted::Fault(fault) => tally[at].fail(fault.clone()),
                    }
                }
            }
        }
        Ok(())
    }

    /// What changed under the delete is counted once more before it is judged (S5).
    async fn count_changed(&self, client: &Client, tally: &mut [Chunked<'a>]) {
        let changed = |at: &usize| tally[*at].changed > 0;
        let open: Vec<&str> = self
            .by_value
            .iter()
            .filter(|(_, owners)| owners.iter().any(changed))
            .map(|(value, _)| *value)
            .collect();
        if open.is_empty() {
            return;
        }
        let counted = async {
            client.refresh(&self.indices).await?;
            client.count(&self.indices, self.field, &open).await
        };
        let ends: Vec<Option<Fault>> = match counted.await {
            Ok(counts) => counts
                .into_iter()
                .map(|count| {
                    let busy = || format!("{count} documents changed while they were destroyed");
                    (count > 0).then(|| Fault::new(Verdict::Busy, busy()))
                })
                .collect(),
            Err(error) => vec![Some(soften(&error)); open.len()],
        };
        for (value, end) in open.iter().zip(ends) {
            for &at in &self.by_value[value] {
                if let Some(end) = &end {
                    tally[at].fail(end.clone());
                }
            }
        }
    }
}

impl<'a> Chunked<'a> {
    fn fresh(of: &Self) -> Self {
        let (place, fence) = (of.place, of.fence);
        Self { place, fence, deleted: 0, changed: 0, shared: 0, late: false, fault: None }
    }

    /// The first fault is kept.
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    fn is_untouched(&self) -> bool {
        self.deleted == 0 && self.changed == 0 && self.fault.is_none()
    }

    fn end(self) -> Fault {
        // What was found after the lease's end is thrown away, an absence as well.
        if self.late || (self.deleted == 0 && !self.fence.holds()) {
            return lease_over();
        }
        if let Some(fault) = self.fault {
            return fault;
        }
        if self.shared > 0 {
            let said = format!("{} documents hold another key too, and stay", self.shared);
            return Fault::new(Verdict::Refused, said);
        }
        match (self.deleted, self.changed) {
            (0, 0) => absent("no document has this value"),
            (0, _) => absent("gone when counted again"),
            (deleted, _) => Fault::new(Verdict::Deleted, format!("{deleted} documents")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_field_of_the_documents_is_asked_for() {
        for field in ["key", "meta.key", "text.raw", "Schlüssel"] {
            assert_eq!(problem(field, "1"), None, "{field}");
        }
        for field in ["", ".", "a.", ".a", "a..b", "k*", "k?", "a,b", "a b", "a\"", "_id", "_all"] {
            assert!(problem(field, "1").is_some(), "{field:?}");
        }
        assert!(problem("key", "").is_some());
        assert!(problem("key", &"x".repeat(VALUE_BYTES_MAX + 1)).is_some());
    }
}
