//! What a [`Source`] must do, whatever log is behind it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tombstream_model::{Disposition, Mark, Origin, Polled, Records, Source};

/// The most that a check waits for one thing.
const BOUND: Duration = Duration::from_secs(60);

/// A log that the checks can fill, and read through sources.
///
/// Each check wants a fixture whose log is empty and whose sources have committed nothing.
pub trait SourceFixture: Send + Sync {
    /// The source.
    type Source: Source;

    /// Opens a source, as a process that starts does: it begins at what is committed. The checks
    /// drop the one before.
    fn open(&self) -> impl Future<Output = Self::Source> + Send;

    /// Appends events with these values, in this order where the log has one.
    fn append(&self, values: &[String]) -> impl Future<Output = ()> + Send;

    /// What was appended, as far as a poll brought it, and where it stood.
    fn values(&self, polled: &Polled) -> Vec<(Origin, String)> {
        let Records::Events(events) = &polled.records else {
            panic!("what else a source brings, its fixture has to read")
        };
        let text =
            |value: &[u8]| String::from_utf8(value.to_vec()).expect("the checks append text");
        let value =
            |it: &tombstream_model::Event| it.value.as_deref().map(text).unwrap_or_default();
        events.iter().map(|event| (event.origin.clone(), value(event))).collect()
    }

    /// Whether what stood at `origin` is before `mark`.
    fn covers(&self, mark: &Mark, origin: &Origin) -> bool {
        mark.topic == origin.topic
            && mark.partition == origin.partition
            && mark.next > origin.offset
    }
}

/// Everything comes, and each mark is after what was polled with it or before.
pub async fn everything_comes_with_marks<F: SourceFixture>(fixture: &F) {
    let values = values(20);
    fixture.append(&values).await;
    let mut source = fixture.open().await;
    let mut left: BTreeSet<&String> = values.iter().collect();
    while !left.is_empty() {
        let polled = next(&mut source).await;
        for (origin, value) in fixture.values(&polled) {
            left.retain(|it| **it != value);
            let covered = polled.marks.iter().any(|mark| fixture.covers(mark, &origin));
            assert!(covered, "{origin:?} is in no mark of its poll: {:?}", polled.marks);
        }
    }
}

/// A source that is opened again brings what was read and not committed.
pub async fn what_is_not_committed_comes_again<F: SourceFixture>(fixture: &F) {
    let values = values(10);
    fixture.append(&values).await;
    for _ in 0..2 {
        let mut source = fixture.open().await;
        read(fixture, &mut source, &values).await;
    }
}

/// A source that is opened again does not bring what was committed, and loses nothing after it.
pub async fn what_is_committed_does_not_come_again<F: SourceFixture>(fixture: &F) {
    let (before, after) = (values(10), values(10));
    fixture.append(&before).await;
    let mut source = fixture.open().await;
    let marks = read(fixture, &mut source, &before).await;
    source.commit(marks).await.expect("a commit");
    source.close().await;
    drop(source);
    fixture.append(&after).await;
    let mut source = fixture.open().await;
    let mut left: BTreeSet<&String> = after.iter().collect();
    while !left.is_empty() {
        for (origin, value) in fixture.values(&next(&mut source).await) {
            assert!(!before.contains(&value), "{value} at {origin:?} was committed");
            left.retain(|it| **it != value);
        }
    }
}

/// A commit stands for what is before its marks alone: what was read since then comes again.
pub async fn a_commit_covers_no_more_than_its_marks<F: SourceFixture>(fixture: &F) {
    let (before, after) = (values(5), values(5));
    fixture.append(&before).await;
    let mut source = fixture.open().await;
    let marks = read(fixture, &mut source, &before).await;
    fixture.append(&after).await;
    read(fixture, &mut source, &after).await;
    source.commit(marks).await.expect("a commit");
    drop(source);
    let mut source = fixture.open().await;
    read(fixture, &mut source, &after).await;
}

/// Dropping the future of `next`, at any moment, loses nothing.
pub async fn dropping_next_loses_nothing<F: SourceFixture>(fixture: &F) {
    let values = values(50);
    let mut source = fixture.open().await;
    let mut left: BTreeSet<&String> = values.iter().collect();
    let fill = async {
        for some in values.chunks(5) {
            fixture.append(some).await;
        }
    };
    let read = async {
        let mut micros = 1;
        while !left.is_empty() {
            tokio::select! {
                biased;
                () = sleep(Duration::from_micros(micros)) => {}
                polled = source.next() => {
                    // Unavailable for a moment is no loss.
                    let Ok(polled) = polled else { continue };
                    for (_, value) in fixture.values(&polled) {
                        left.retain(|it| **it != value);
                    }
                }
            }
            // Sometimes at once, sometimes late: in the end long enough to read.
            micros = if micros > 200_000 { 1 } else { micros * 3 };
        }
    };
    let both = async { tokio::join!(fill, read) };
    assert!(timeout(BOUND, both).await.is_ok(), "some of the events did not come");
}

/// Reads until all of `values` have come; gives the newest mark of each partition.
async fn read<F: SourceFixture>(
    fixture: &F,
    source: &mut F::Source,
    values: &[String],
) -> Vec<Mark> {
    let mut left: BTreeSet<&String> = values.iter().collect();
    let mut marks: Vec<Mark> = Vec::new();
    while !left.is_empty() {
        let polled = next(source).await;
        for (_, value) in fixture.values(&polled) {
            left.retain(|it| **it != value);
        }
        for mark in polled.marks {
            marks.retain(|it| (&it.topic, it.partition) != (&mark.topic, mark.partition));
            marks.push(mark);
        }
    }
    marks
}

/// The next poll. What is unavailable is tried again, as the pipeline does.
async fn next<S: Source>(source: &mut S) -> Polled {
    let tried = async {
        loop {
            match source.next().await {
                Ok(polled) => return polled,
                Err(error) if error.disposition() == Disposition::Retry => {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("the source can't be read: {error}"),
            }
        }
    };
    timeout(BOUND, tried).await.expect("something comes in time")
}

fn values(count: usize) -> Vec<String> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    (0..count).map(|_| format!("value-{}", NEXT.fetch_add(1, Ordering::Relaxed))).collect()
}
