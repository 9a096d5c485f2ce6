//! Looking at a page of targets, whatever the store answers.
//!
//! Invariant (S6): an error, or a look that can't tell, is not "absent"; `what_can_not_be_looked_at_is_not_gone`.
//! And (L2): one key that can't be looked at is told apart from a store that is not there.

use std::time::Duration;

use tokio::time::timeout;
use tombstream_model::{Presence, Sink, SinkError, Target};

/// Failed requests of a page after which a store that has answered none is taken for down: enough to halve a
/// page of 500 down to its first key.
const FAILURES_MAX: usize = 10;
/// The same of a store that answered some: what is left of the page is then not looked at.
const FAILURES_AMONG_ANSWERS: usize = 40;

/// What was found of one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Present,
    Absent,
    /// Nothing is proven, and why.
    Unknown(String),
}

/// The store is not there, or lets nobody in.
#[derive(Debug)]
pub(super) struct Down {
    pub(super) said: String,
    pub(super) retry_after: Option<Duration>,
}

/// What a failed request means for its targets.
enum Failure {
    /// Nothing can be asked of this store now.
    Down(Down),
    /// The bucket or index is not there: so it is for all of them.
    Missing(String),
    /// It may be one of them.
    Some(String),
}

/// Looks at `targets`, and says in their order what was found.
pub(super) async fn look<S: Sink>(
    sink: &S,
    targets: &[Target],
    patience: Duration,
) -> Result<Vec<Seen>, Down> {
    let mut seen = vec![Seen::Unknown("not looked at".to_owned()); targets.len()];
    // By what they lie in: an index that is gone is then an error of its own targets alone.
    let mut places: Vec<usize> = (0..targets.len()).collect();
    places.sort_by_key(|place| targets[*place].address.container());
    let mut open: Vec<&[usize]> = places
        .chunk_by(|one, other| {
            targets[*one].address.container() == targets[*other].address.container()
        })
        .flat_map(|group| group.chunks(sink.batch_max().max(1)))
        .collect();
    open.reverse();
    let (mut answered, mut failures) = (0, 0);
    while let Some(part) = open.pop() {
        let batch: Vec<Target> = part.iter().map(|place| targets[*place].clone()).collect();
        match ask(sink, &batch, patience).await {
            Ok(found) => {
                answered += 1;
                for (place, presence) in part.iter().zip(found) {
                    seen[*place] = match presence {
                        Presence::Present => Seen::Present,
                        Presence::Absent => Seen::Absent,
                        Presence::Unknown => Seen::Unknown("a look could not tell".to_owned()),
                    };
                }
            }
            Err(Failure::Down(down)) => return Err(down),
            Err(Failure::Missing(said)) => {
                answered += 1;
                for place in part {
                    seen[*place] = Seen::Unknown(said.clone());
                }
            }
            Err(Failure::Some(said)) => {
                failures += 1;
                if answered == 0 && (failures >= FAILURES_MAX || targets.len() == 1) {
                    return Err(Down { said, retry_after: None });
                }
                if failures >= FAILURES_AMONG_ANSWERS {
                    return Ok(seen);
                }
                match part {
                    [place] => seen[*place] = Seen::Unknown(said),
                    part => {
                        let (first, second) = part.split_at(part.len() / 2);
                        open.extend([second, first]);
                    }
                }
            }
        }
    }
    if answered == 0 && !targets.is_empty() {
        return Err(Down { said: "no look was answered".to_owned(), retry_after: None });
    }
    Ok(seen)
}

async fn ask<S: Sink>(
    sink: &S,
    batch: &[Target],
    patience: Duration,
) -> Result<Vec<Presence>, Failure> {
    match timeout(patience, sink.look(batch)).await {
        Ok(Ok(found)) if found.len() == batch.len() => Ok(found),
        Ok(Ok(_)) => Err(Failure::Some("not a presence for each target".to_owned())),
        Ok(Err(error)) => {
            let said = chain(&error);
            Err(match error {
                SinkError::Throttled { retry_after } => Failure::Down(Down { said, retry_after }),
                SinkError::Denied(_) => Failure::Down(Down { said, retry_after: None }),
                SinkError::Missing(_) => Failure::Missing(said),
                SinkError::Unavailable(_) | SinkError::Protocol(_) => Failure::Some(said),
            })
        }
        Err(_) => Err(Failure::Some(format!("no answer within {patience:?}"))),
    }
}

/// An error with what led to it.
fn chain(error: &SinkError) -> String {
    let mut said = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        said = format!("{said}: {source}");
        next = source.source();
    }
    said
}
