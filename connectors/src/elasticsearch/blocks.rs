//! Which indices take no deletes at the moment: told once when it begins and once when it ends, and shown for
//! as long as it lasts. What is to be destroyed there is owed meanwhile.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::answer::Index;

/// 1 while an index takes no deletes.
const BLOCKED: &str = "tombstream_elasticsearch_blocked";

/// Who lifts a block does not do so within a batch's deadline: what waits for it is owed at once, and driven
/// again when its rest is over.
pub(super) const REST: Duration = Duration::from_secs(600);

/// How a block is known, and so how its end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// By the index's settings, which are read with each batch.
    Settings,
    /// By an answer alone, as of a block of the whole cluster: until a delete is done there.
    Answer,
}

/// The blocked indices of one store.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<BTreeMap<String, Cause>>);

impl Blocks {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Cause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what an index's settings say.
    pub(super) fn seen(&self, index: &Index) {
        match index.blocked() {
            Some(why) => self.begin(&index.name, Cause::Settings, &why),
            None => self.end(&index.name, Cause::Settings),
        }
    }

    /// An answer said that the index is blocked.
    pub(super) fn told(&self, index: &str, why: &str) {
        self.begin(index, Cause::Answer, why);
    }

    /// A delete was done there.
    pub(super) fn deleted(&self, index: &str) {
        self.end(index, Cause::Answer);
    }

    fn begin(&self, index: &str, cause: Cause, why: &str) {
        let mut known = self.known();
        if known.contains_key(index) {
            return;
        }
        known.insert(index.to_owned(), cause);
        metrics::gauge!(BLOCKED, "index" => index.to_owned()).set(1.0);
        tracing::warn!(index, "{why}: what is to be deleted there is owed until then");
    }

    fn end(&self, index: &str, cause: Cause) {
        let mut known = self.known();
        if known.get(index) != Some(&cause) {
            return;
        }
        known.remove(index);
        metrics::gauge!(BLOCKED, "index" => index.to_owned()).set(0.0);
        tracing::info!(index, "the index takes deletes again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(blocks: &[&str]) -> Index {
        Index {
            name: "documents".to_owned(),
            shards: 1,
            routing_required: false,
            alias_routing: None,
            filtered: false,
            blocks: blocks.iter().map(|&block| block.to_owned()).collect(),
        }
    }

    #[test]
    fn a_block_stands_until_what_told_of_it_tells_of_its_end() {
        let blocks = Blocks::default();
        let stands = || blocks.known().contains_key("documents");
        blocks.seen(&index(&["metadata", "read"]));
        assert!(!stands(), "deletes are taken");
        for block in ["write", "read_only", "read_only_allow_delete"] {
            blocks.seen(&index(&[block]));
            blocks.deleted("documents");
            assert!(stands(), "{block}");
            blocks.seen(&index(&[]));
            assert!(!stands(), "{block}");
        }
        // A block of the cluster is in no index's settings.
        blocks.told("documents", "blocked by: [FORBIDDEN/6/cluster read-only (api)];");
        blocks.seen(&index(&[]));
        assert!(stands());
        blocks.deleted("documents");
        assert!(!stands());
    }
}
