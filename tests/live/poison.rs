//! Topics with events that can't be decoded (F16, F22, F24, F25), and only the events to go by.

use crate::event::{created, envelope, mixed, record, removed, row, tombstone, updated};
use crate::scene::{NO_SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use serde_json::{Value, json};
use sqlx::Row as _;
use std::collections::HashMap;
use std::time::Instant;
use tombstream_e2e::{Place, Record, Topic};

const TABLES: &str = "
    create table documents (id bigint primary key, deleted_at timestamptz);
    create table others (id bigint primary key, deleted_at timestamptz);
";

const EVENTS: u64 = 100_000;
const FLAGGED: i64 = 2_000;
const LIVING: i64 = 8_000;
/// Living rows with copies: what a wrong deletion would hit.
const WATCHED: i64 = 300;

fn relation(name: &str, topic: &str) -> String {
    format!(
        r#"
[relation.{name}]
table = "public.{name}"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
topics = ["{topic}"]
targets = [{{ store = "originals", key = "{name}/{{id}}" }}, {{ store = "search", id = "{name}/{{id}}" }}]
"#
    )
}

/// An event that can't be decoded: one of ten kinds.
fn poison(number: u64) -> Record {
    let id = i64::try_from(number % 10_000).unwrap_or(0) + 1;
    let key = Some(json!({ "id": id }).to_string().into_bytes());
    let good = envelope("documents", "u", row(id, false), row(id, true), number);
    let changed = |change: fn(&mut Value)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad.to_string().into_bytes()
    };
    let value = match number % 10 {
        0 => (0..200).map(|n| (mixed(number * 1_000 + n) & 0xff) as u8 | 0x80).collect(),
        1 => good.to_string().as_bytes()[..150].to_vec(),
        2 => changed(|bad| bad["after"] = json!([1, 2])),
        3 => changed(|bad| bad["after"]["deleted_at"] = json!({ "nested": true })),
        4 => changed(|bad| bad["op"] = json!("x")),
        5 => [&[0, 0, 0, 0, 7][..], good.to_string().as_bytes()].concat(),
        6 => "[".repeat(10_000).into_bytes(),
        7 => changed(|bad| bad["source"]["lsn"] = json!("many")),
        8 => good.to_string().replace("\"op\":\"u\"", "\"op\":\"u\",\"op\":\"d\"").into_bytes(),
        _ => {
            let key = Some(b"{\"id\": \xff\xfe}".to_vec());
            return (key, Some(changed(|bad| bad["after"]["id"] = json!("one"))));
        }
    };
    (key, Some(value))
}

/// All events of the topic in their order: good ones with duplicates, late ones and every kind
/// that is skipped, and one in a hundred that is poisoned. Says which those are.
fn events() -> (Vec<Record>, Vec<usize>) {
    let mut good = Vec::new();
    let mut lsn = 1_000;
    let mut next = || {
        lsn += 8;
        lsn
    };
    for id in 1..=FLAGGED {
        let (creation, flip) = (next(), next());
        good.push((creation, created("documents", id, creation)));
        good.push((flip, updated("documents", id, false, true, flip)));
        if id % 4 == 0 {
            // Ten times the same, and the creation once more, hours later.
            good.extend((0..10).map(|_| (flip, updated("documents", id, false, true, flip))));
            good.push((u64::MAX - creation, created("documents", id, creation)));
        }
    }
    let living = |number: u64| FLAGGED + 1 + i64::try_from(number).unwrap_or(0) % LIVING;
    for number in 0..u64::try_from(LIVING).unwrap_or(0) / 10 {
        // Flagged and restored long ago: the row is alive.
        let (flip, restore) = (next(), next());
        let id = living(number * 7);
        good.push((flip, updated("documents", id, false, true, flip)));
        good.push((restore, updated("documents", id, true, false, restore)));
        // A row of the past, and its tombstone; a record without key and value.
        let gone = next();
        good.push((gone, removed("documents", 1_000_000 + id, gone)));
        good.push((gone, tombstone(1_000_000 + id)));
        good.push((gone, (None, None)));
    }
    let bad = EVENTS / 100;
    let mut number = 0;
    while good.len() < (EVENTS - bad) as usize {
        let at = next();
        good.push((at, updated("documents", living(number), false, false, at)));
        number += 1;
    }
    // Spread over the whole topic, so that order in the topic is not the order of LSNs.
    good.sort_by_key(|(lsn, _)| mixed(*lsn));
    let mut good = good.into_iter();
    let mut records = Vec::new();
    let mut poisoned = Vec::new();
    for place in 0..EVENTS {
        if place % 100 == 37 {
            poisoned.push(records.len());
            records.push(poison(place / 100));
        } else {
            records.extend(good.next().map(|(_, record)| record));
        }
    }
    (records, poisoned)
}

/// A dead letter without its reason.
type Buried = HashMap<Place, (Option<Vec<u8>>, Option<Vec<u8>>)>;

async fn buried(scene: &Scene, topic: &str) -> Result<(Buried, HashMap<String, usize>)> {
    let rows = sqlx::query(
        "select partition, \"offset\", reason, key, value from tombstream.dead_letter \
         where topic = $1",
    )
    .bind(topic)
    .fetch_all(scene.pool())
    .await?;
    let mut buried = HashMap::new();
    let mut reasons = HashMap::new();
    for row in rows {
        let reason: String = row.try_get("reason")?;
        assert!(!reason.is_empty() && reason.len() < 500, "{reason:?}");
        *reasons.entry(reason).or_insert(0) += 1;
        let place = (row.try_get("partition")?, row.try_get("offset")?);
        buried.insert(place, (row.try_get("key")?, row.try_get("value")?));
    }
    Ok((buried, reasons))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_poisoned_topic_each_good_deletion_is_finalized_and_each_bad_event_kept() -> Result<()>
{
    let scene = Scene::make("poison", TABLES).await?;
    let topic = Topic::make(&scene.servers.kafka, &scene.name, 4).await?;
    let rest =
        format!("{NO_SWEEP}{}{}", scene.kafka(&scene.name), relation("documents", topic.name()));
    let program = scene.migrated(&scene.config("", "", &rest)).await?;
    let fill = "insert into documents select generate_series(1, 10000)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    let name = |id: i64| format!("documents/{id}");
    let copied = 1..=FLAGGED + WATCHED;
    scene.bucket.put(copied.clone().map(|id| object(&name(id)))).await?;
    scene.index.put(copied.map(|id| document(&name(id)))).await?;
    let set = "update documents set deleted_at = now() where id <= 2000";
    sqlx::raw_sql(set).execute(scene.pool()).await?;
    let (records, poisoned) = events();
    let places = topic.append(&records).await?;

    let started = Instant::now();
    let mut running = scene.run(&program).await?;
    let read = async || {
        let progress = topic.progress(&scene.name).await?;
        Ok(progress.iter().all(|(committed, end)| committed == end))
    };
    until("the whole topic is committed", &mut running, read).await?;
    let took = started.elapsed();
    let (_, ready) = scene.ask("/readyz").await?;
    assert_eq!(ready["status"], "ready", "a hundredth pauses no topic: {ready}");
    stop(running).await?;

    // What is committed is done: nothing is waited for from here on.
    let flagged = "select count(*) from documents where deleted_at is not null";
    assert_eq!(scene.count(flagged).await?, 0, "every good deletion is finalized");
    assert_eq!(scene.count("select count(*) from documents").await?, LIVING);
    scene.assert_one_receipt_each("documents", usize::try_from(FLAGGED)?).await?;
    let watched = FLAGGED + 1..=FLAGGED + WATCHED;
    let objects: HashMap<_, _> = watched.clone().map(|id| object(&name(id))).collect();
    assert_eq!(scene.bucket.list().await?, objects, "the living rows' objects stay");
    let documents: HashMap<_, _> = watched.map(|id| document(&name(id))).collect();
    assert_eq!(scene.index.list().await?, documents, "the living rows' documents stay");

    let (buried, reasons) = buried(&scene, topic.name()).await?;
    let expected: Buried = poisoned.iter().map(|at| (places[*at], records[*at].clone())).collect();
    assert_eq!(buried.len(), expected.len(), "each bad event is kept once: {reasons:#?}");
    assert!(buried == expected, "each with its partition, offset and bytes");
    println!(
        "{EVENTS} events in {took:.1?}: {:.0} events/s, {FLAGGED} deletions, {} dead letters of {} \
         reasons",
        EVENTS as f64 / took.as_secs_f64(),
        buried.len(),
        reasons.len()
    );
    topic.remove().await?;
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_converter_pauses_its_topic_and_no_other() -> Result<()> {
    let scene = Scene::make("converter", TABLES).await?;
    let avro = Topic::make(&scene.servers.kafka, &format!("{}_avro", scene.name), 2).await?;
    let good = Topic::make(&scene.servers.kafka, &scene.name, 2).await?;
    let rest = format!(
        "{NO_SWEEP}{}{}{}",
        scene.kafka(&scene.name),
        relation("documents", avro.name()),
        relation("others", good.name())
    );
    let program = scene.migrated(&scene.config("", "", &rest)).await?;
    for fill in [
        "insert into documents select n, now() from generate_series(1, 100) n",
        "insert into others select n, now() from generate_series(1, 100) n",
    ] {
        sqlx::raw_sql(fill).execute(scene.pool()).await?;
    }
    let name = |table: &str, id: i64| format!("{table}/{id}");
    let both = || (1..=100).flat_map(|id| [name("documents", id), name("others", id)]);
    scene.bucket.put(both().map(|key| object(&key))).await?;
    scene.index.put(both().map(|id| document(&id))).await?;
    // The wire format of a schema registry: a zero byte, the schema's number, then Avro.
    let wire = |number: u64| {
        let bytes = [&[0_u8, 0, 0, 0, 7][..], &mixed(number).to_be_bytes(), &[2; 30]].concat();
        (Some(bytes.clone()), Some(bytes))
    };
    const WRONG: u64 = 60_000;
    avro.append(&(0..WRONG).map(wire).collect::<Vec<_>>()).await?;
    let flips = |ids: std::ops::RangeInclusive<i64>| {
        ids.map(|id| updated("others", id, false, true, 1_000 + id.unsigned_abs()))
            .collect::<Vec<_>>()
    };
    good.append(&flips(1..=50)).await?;

    let mut running = scene.run(&program).await?;
    let half = "select count(*) from others where id <= 50";
    until("the other topic goes on", &mut running, async || Ok(scene.count(half).await? == 0))
        .await?;
    let paused = async || Ok(scene.ask("/readyz").await?.1["topics_paused"].is_object());
    until("the topic pauses", &mut running, paused).await?;
    let (code, ready) = scene.ask("/readyz").await?;
    assert_eq!(code, 503, "{ready}");
    let why = ready["topics_paused"][avro.name()].as_str().unwrap_or_default();
    assert!(why.contains("mend the converter or the configuration and restart"), "{ready}");
    assert!(ready["topics_paused"][good.name()].is_null(), "{ready}");
    assert_eq!(scene.ask("/healthz").await?.0, 200, "the process lives");
    // Events that come after the pause.
    good.append(&flips(51..=100)).await?;
    let all = "select count(*) from others";
    until("the other topic goes on", &mut running, async || Ok(scene.count(all).await? == 0))
        .await?;
    let caught_up = async || {
        let progress = good.progress(&scene.name).await?;
        Ok(progress.iter().all(|(committed, end)| committed == end))
    };
    until("the other topic is committed", &mut running, caught_up).await?;
    stop(running).await?;

    let (buried, reasons) = buried(&scene, avro.name()).await?;
    println!("{} of {WRONG} wrong events are dead letters: {reasons:?}", buried.len());
    let kept = buried.len() as u64;
    assert!(kept > 100 && kept <= WRONG / 3, "{kept} dead letters: enough to see, and bounded");
    let mut committed_in_all = 0;
    for (partition, (committed, end)) in (0..).zip(avro.progress(&scene.name).await?) {
        let below = (0..committed).filter(|offset| buried.contains_key(&(partition, *offset)));
        let below = i64::try_from(below.count())?;
        assert_eq!(below, committed, "what is committed was kept, partition {partition}");
        assert!(committed < end, "not all of partition {partition} was read");
        committed_in_all += committed;
    }
    println!("committed {committed_in_all} of {WRONG}");
    assert_eq!(scene.count("select count(*) from documents").await?, 100, "nothing is lost");
    assert_eq!(scene.bucket.keys().await?.len(), 100);
    assert_eq!(scene.index.list().await?.len(), 100);
    scene.assert_one_receipt_each("others", 100).await?;
    avro.remove().await?;
    good.remove().await?;
    scene.remove().await
}

/// Kept apart from the events above: they would count as poison if they could not be read.
#[test]
fn the_events_are_as_many_as_they_say() {
    let (records, poisoned) = events();
    assert_eq!(records.len() as u64, EVENTS);
    assert_eq!(poisoned.len() as u64, EVENTS / 100);
    let good = record(1, &envelope("documents", "c", Value::Null, row(1, false), 1));
    assert!(!poisoned.iter().any(|at| records[*at] == good));
}
