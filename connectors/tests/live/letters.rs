//! Dead letters driven again: who takes them, when they are resolved, what comes back.

use std::time::Duration;

use sqlx::Executor;

use tombstream_connectors::postgres::{Letters, Redrive, order_redrive};
use tombstream_model::{
    DeadLetter, Event, Ledger, LetterForm, LetterLimits, Origin, Polled, Records, Source,
};

use super::support::{Database, documents};

fn letter(topic: &str, offset: i64, form: LetterForm, limits: LetterLimits) -> DeadLetter {
    let event = Event {
        origin: Origin { topic: topic.into(), partition: 0, offset },
        topic: topic.contains('/').then(|| "app.public.documents".into()),
        key: None,
        value: Some(vec![b'x'; 100].into()),
    };
    DeadLetter::new(event, form, "not json".to_owned(), limits)
}

fn whole(topic: &str, offset: i64) -> DeadLetter {
    letter(topic, offset, LetterForm::Message, LetterLimits::default())
}

fn source(database: &Database, topics: &[&str]) -> Letters {
    let topics = topics.iter().map(|topic| (*topic).to_owned()).collect();
    Letters::new(database.pool.clone(), topics, false, Duration::from_millis(20), true)
}

fn events(polled: &Polled) -> Vec<Event> {
    match &polled.records {
        Records::Redriven(events) => events.clone(),
        other => panic!("{other:?}"),
    }
}

/// What comes within a moment; none if nothing does.
async fn next(source: &mut Letters) -> Option<Polled> {
    let polled = tokio::time::timeout(Duration::from_millis(400), source.next()).await;
    polled.ok().map(Result::unwrap)
}

async fn order_all(database: &Database) -> usize {
    let redriven = order_redrive(&database.pool, &Redrive::default(), "test").await.unwrap();
    redriven.ordered.len()
}

const RESOLVED: &str = "select count(*) from tombstream.dead_letter where resolved_at is not null \
                        and redrive_at is null and drive_token is null";

#[tokio::test]
async fn a_letter_is_resolved_behind_the_frontier_and_not_before() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let letters: Vec<_> = (0..3).map(|offset| whole("t", offset)).collect();
    ledger.bury(&letters).await.unwrap();
    let mut source = source(&database, &["t"]);
    assert!(next(&mut source).await.is_none(), "nobody ordered it");
    assert_eq!(order_all(&database).await, 3);
    let polled = next(&mut source).await.unwrap();
    let driven = events(&polled);
    assert_eq!(driven.len(), 3);
    assert!(
        driven
            .iter()
            .zip(&letters)
            .all(|(event, letter)| event.value == letter.value && event.origin == letter.origin)
    );
    assert_eq!(database.count(RESOLVED).await, 0);
    // One can't be decoded again, and is buried before the frontier passes.
    let again = DeadLetter { reason: "still not json".to_owned(), ..whole("t", 1) };
    ledger.bury(&[again.clone(), again]).await.unwrap();
    source.commit(polled.marks).await.unwrap();
    assert_eq!(database.count(RESOLVED).await, 2);
    let back = "select count(*) from tombstream.dead_letter where \"offset\" = 1 and attempts = 2 \
                and reason = 'still not json' and resolved_at is null and redrive_at is null \
                and drive_token is null and length(value) = 100";
    assert_eq!(database.count(back).await, 1);
    assert!(next(&mut source).await.is_none(), "it is not driven again by itself");
    // An order is written down; a resolved letter is not ordered again, one that comes anew is kept.
    let one = Redrive { ids: vec![1, 2, 9], ..Redrive::default() };
    let redriven = order_redrive(&database.pool, &one, "test").await.unwrap();
    assert_eq!(redriven.ordered, [2]);
    assert_eq!(redriven.refused.len(), 2, "{redriven:?}");
    assert_eq!(database.count("select count(*) from tombstream.operator_order").await, 2);
    ledger.bury(&[whole("t", 0)]).await.unwrap();
    assert_eq!(database.count(RESOLVED).await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn two_processes_share_the_letters_and_a_dead_ones_are_taken_over() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let letters: Vec<_> = (0..70).map(|offset| whole("t", offset)).collect();
    ledger.bury(&letters).await.unwrap();
    order_all(&database).await;
    let (mut one, mut other) = (source(&database, &["t"]), source(&database, &["t"]));
    let (first, second) = tokio::join!(next(&mut one), next(&mut other));
    let (first, second) = (first.unwrap(), second.unwrap());
    let mut offsets: Vec<i64> =
        [&first, &second].iter().flat_map(|it| events(it)).map(|it| it.origin.offset).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..70).collect::<Vec<_>>(), "each letter once");
    assert!(next(&mut one).await.is_none() && next(&mut other).await.is_none());
    // The first is dead, and its lease over; what it had is the other's now, and its late commit nothing.
    database
        .pool
        .execute("update tombstream.dead_letter set driven_until = now() - interval '1 second'")
        .await
        .unwrap();
    let mut taken = Vec::new();
    while let Some(page) = next(&mut other).await {
        taken.extend(page.marks);
    }
    one.commit(first.marks).await.unwrap();
    assert_eq!(database.count(RESOLVED).await, 0, "it was taken from it");
    other.commit(taken).await.unwrap();
    assert_eq!(database.count(RESOLVED).await, 70);
    database.drop_database().await;
}

#[tokio::test]
async fn letters_of_others_topics_are_left_to_them() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    ledger.bury(&[whole("mine", 1), whole("others", 1), whole("/in/a.jsonl", 1)]).await.unwrap();
    order_all(&database).await;
    let mut mine = source(&database, &["mine"]);
    let topics: Vec<_> = events(&next(&mut mine).await.unwrap());
    assert_eq!(topics.iter().map(|it| &*it.origin.topic).collect::<Vec<_>>(), ["mine"]);
    assert!(next(&mut mine).await.is_none());
    // A line of a file is found by the topic that it tells.
    let mut files = source(&database, &["app.public.documents"]);
    let driven = events(&next(&mut files).await.unwrap());
    assert_eq!(&**driven[0].topic(), "app.public.documents");
    assert_eq!(&*driven[0].origin.topic, "/in/a.jsonl");
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_not_kept_whole_can_not_be_driven_again_and_says_so() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let short = LetterLimits { bytes_max: 10, redact: false };
    let secret = LetterLimits { redact: true, ..LetterLimits::default() };
    ledger
        .bury(&[
            letter("t", 1, LetterForm::Message, short),
            letter("t", 2, LetterForm::Message, secret),
            letter("t", 3, LetterForm::Row, LetterLimits::default()),
        ])
        .await
        .unwrap();
    let redriven = order_redrive(&database.pool, &Redrive::default(), "test").await.unwrap();
    assert!(redriven.ordered.is_empty());
    let why: Vec<&str> = redriven.refused.iter().map(|(_, why)| &**why).collect();
    assert!(why[0].contains("bytes_max") && why[1].contains("redact"), "{why:?}");
    assert!(why[2].contains("row of the log"), "{why:?}");
    let kept = "select sum(coalesce(length(value), 0)) from tombstream.dead_letter";
    assert_eq!(database.count(kept).await, 110);
    assert_eq!(
        database.count("select count(*) from tombstream.dead_letter where bytes = 100").await,
        3
    );
    // Nor by hand.
    let by_hand = database.pool.execute("update tombstream.dead_letter set redrive_at = now()");
    assert!(by_hand.await.is_err());
    database.drop_database().await;
}
