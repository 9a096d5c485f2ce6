//! Keys that could reach a neighbour: each copy that was asked for goes, and no other (S8, F13, F32).

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use std::collections::{BTreeSet, HashMap};

const TABLES: &str = "
    create table pairs (a text, b text, deleted_at timestamptz, primary key (a, b));
    create table notes (id text primary key, deleted_at timestamptz);
    create table folders (id text primary key, deleted_at timestamptz);
";

const RELATIONS: &str = r#"
[relation.pairs]
table = "public.pairs"
key = [{ column = "a", type = "text" }, { column = "b", type = "text" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [
    { store = "originals", key = "pairs/{a}/{b}" },
    { store = "search", id = "pairs/{a}/{b}" },
]
[relation.notes]
table = "public.notes"
key = [{ column = "id", type = "text" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "originals", key = "notes/{id}" }, { store = "search", id = "notes/{id}" }]
[relation.folders]
table = "public.folders"
key = [{ column = "id", type = "text" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
key_slashes = "forbidden"
targets = [
    { store = "originals", prefix = "folders/{id}/" },
    { store = "search", field = "folder", value = "{id}" },
]
"#;

/// Keys that differ by little, each with a neighbour that lives.
const ODD: [(&str, &str); 22] = [
    ("50%", "50%25"),
    ("a%2Fb", "a/b"),
    ("a+b", "a b"),
    ("a%20b", "a%2Bb"),
    ("quote\"", "quote'"),
    ("quote&quot;", "quote&#34;"),
    ("amp&", "amp&amp;"),
    ("<lt>", "&lt;lt&gt;"),
    ("line\nbreak", "line break"),
    ("line\r\nbreak", "line\rbreak"),
    ("line\\nbreak", "line\\\nbreak"),
    ("tab\tkey", "tab key"),
    ("smile😀", "smile😁"),
    ("caf\u{e9}", "cafe\u{301}"),
    ("back\\slash", "back\\\\slash"),
    ("trail ", "trail"),
    ("Case", "case"),
    ("q?a=b", "q"),
    ("h#c", "h"),
    ("star*", "star"),
    ("{id}", "{{id}}"),
    ("null", "NULL"),
];

/// Sets the flag, as an application does.
async fn flag(scene: &Scene, sql: &'static str, ids: &[&str]) -> Result<()> {
    let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    sqlx::query(sql).bind(ids).execute(scene.pool()).await?;
    Ok(())
}

async fn insert(scene: &Scene, sql: &'static str, ids: &[&str]) -> Result<()> {
    for id in ids {
        sqlx::query(sql).bind(*id).execute(scene.pool()).await?;
    }
    Ok(())
}

/// What is left of a table's keys, with whether the flag is set.
async fn left(scene: &Scene, sql: &'static str) -> Result<Vec<(Vec<String>, bool)>> {
    Ok(sqlx::query_as(sql).fetch_all(scene.pool()).await?)
}

fn keys(left: &[(Vec<String>, bool)], flagged: bool) -> BTreeSet<Vec<&str>> {
    left.iter()
        .filter(|(_, is)| *is == flagged)
        .map(|(key, _)| key.iter().map(String::as_str).collect())
        .collect()
}

/// Everything that the two stores hold.
async fn copies(scene: &Scene) -> Result<(HashMap<String, Vec<u8>>, HashMap<String, Vec<u8>>)> {
    let documents = scene.index.list().await?;
    let documents =
        documents.into_iter().map(|(id, source)| (id, source.to_string().into_bytes())).collect();
    Ok((scene.bucket.list().await?, documents))
}

/// Asserts that exactly `gone` went, and the rest is what it was.
fn assert_gone(
    what: &str,
    before: HashMap<String, Vec<u8>>,
    after: &HashMap<String, Vec<u8>>,
    gone: &[String],
) {
    let mut expected = before;
    for key in gone {
        assert!(expected.remove(key).is_some(), "{what} {key:?} was never there");
    }
    let names = |map: &HashMap<String, Vec<u8>>| map.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(after), names(&expected), "{what}: exactly the right ones go");
    assert_eq!(*after, expected, "{what}: what stays is the same byte for byte");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_join_to_one_address_are_parked_and_the_living_one_keeps_its_copies() -> Result<()>
{
    let scene = Scene::make("pairs", TABLES).await?;
    let program = scene.migrated(&scene.config("", "", &format!("{SWEEP}{RELATIONS}"))).await?;
    // The first of each line is flagged. The neighbours of the first three share its address.
    let flagged = [("a/b", "c"), ("x", "y/z"), ("/", "m"), ("p", "q"), ("50%", "é\n")];
    let living = [("a", "b/c"), ("x/y", "z"), ("", "/m"), ("p", "q2"), ("p2", "q"), ("50", "%é\n")];
    for (a, b) in flagged.iter().chain(&living) {
        sqlx::query("insert into pairs values ($1, $2)")
            .bind(*a)
            .bind(*b)
            .execute(scene.pool())
            .await?;
    }
    // A store that takes `//` for `/` would hold `pairs////m` elsewhere: it is left out.
    let shown = |(a, b): &(&str, &str)| format!("pairs/{a}/{b}");
    let kept: Vec<String> =
        flagged.iter().chain(&living).map(shown).filter(|key| !key.contains("//")).collect();
    scene.bucket.put(kept.iter().map(|key| object(key))).await?;
    scene.index.put(kept.iter().map(|key| document(key))).await?;
    let (objects, documents) = copies(&scene).await?;
    let set = "update pairs set deleted_at = now() where (a, b) in \
               (select * from unnest($1::text[], $2::text[]))";
    let (a, b): (Vec<&str>, Vec<&str>) = flagged.iter().copied().unzip();
    sqlx::query(set).bind(a).bind(b).execute(scene.pool()).await?;

    let mut running = scene.run(&program).await?;
    let open = "select count(*) from pairs p where deleted_at is not null and not exists (select \
                from tombstream.deletion d where d.key = array[p.a, p.b] and d.state = 'parked')";
    until("all is decided", &mut running, async || Ok(scene.count(open).await? == 0)).await?;
    stop(running).await?;

    for (a, b) in &flagged[..3] {
        let (state, reason) = scene.deletion("pairs", &[a, b]).await?;
        assert_eq!(state, "parked", "{a:?} {b:?}");
        let reason = reason.unwrap_or_default();
        assert!(reason.contains("holds the delimiter '/'"), "{a:?} {b:?}: {reason}");
    }
    let rows = left(&scene, "select array[a, b], deleted_at is not null from pairs").await?;
    assert_eq!(keys(&rows, true), flagged[..3].iter().map(|(a, b)| vec![*a, *b]).collect());
    assert_eq!(keys(&rows, false), living.iter().map(|(a, b)| vec![*a, *b]).collect());
    let (objects_after, documents_after) = copies(&scene).await?;
    let gone: Vec<String> = flagged[3..].iter().map(shown).collect();
    assert_gone("object", objects, &objects_after, &gone);
    assert_gone("document", documents, &documents_after, &gone);
    scene.assert_one_receipt_each("pairs", 2).await?;
    println!("3 of 5 ambiguous keys parked, 2 finalized, 6 living rows kept {} copies", kept.len());
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_odd_keys_exactly_the_flagged_ones_go() -> Result<()> {
    let scene = Scene::make("odd", TABLES).await?;
    let program = scene.migrated(&scene.config("", "", &format!("{SWEEP}{RELATIONS}"))).await?;
    let flagged: Vec<&str> = ODD.iter().map(|(flagged, _)| *flagged).collect();
    let living: Vec<&str> = ODD.iter().map(|(_, living)| *living).collect();
    let long = "x".repeat(507);
    // What no store can carry, or could take for something else, is parked …
    let parked = [
        ("", "column `id` is empty"),
        ("a/../b", "a segment `.` or `..`"),
        (".", "a segment `.` or `..`"),
        ("bell\u{7}", "character U+0007"),
        ("__debezium_unavailable_value", "placeholder"),
        (&long, "a document id of 513 bytes"),
    ];
    let insert_note = "insert into notes values ($1)";
    for ids in [flagged.as_slice(), &living] {
        insert(&scene, insert_note, ids).await?;
    }
    for (id, _) in parked {
        insert(&scene, insert_note, &[id]).await?;
    }
    // … and these two are `notes/foo//bar` and `notes/no//such` to S3. The test server takes the
    // first for its neighbour, so it must not be sent.
    insert(&scene, insert_note, &["foo//bar", "no//such", "foo/bar"]).await?;
    let name = |id: &&str| format!("notes/{id}");
    let kept: Vec<String> =
        flagged.iter().chain(&living).chain(&["foo/bar", "a/b"]).map(name).collect();
    scene.bucket.put(kept.iter().map(|key| object(key))).await?;
    let indexed = kept.iter().cloned().chain(["notes/foo//bar".to_owned()]);
    scene.index.put(indexed.map(|id| document(&id))).await?;
    let (objects, documents) = copies(&scene).await?;
    let all: BTreeSet<&String> = kept.iter().collect();
    assert_eq!(objects.keys().collect::<BTreeSet<_>>(), all, "the server keeps these keys apart");

    let flag_notes = "update notes set deleted_at = now() where id = any($1)";
    flag(&scene, flag_notes, &flagged).await?;
    flag(&scene, flag_notes, &parked.map(|(id, _)| id)).await?;
    flag(&scene, flag_notes, &["foo//bar", "no//such"]).await?;
    let mut running = scene.run(&program).await?;
    let open = "select count(*) from notes n where deleted_at is not null and not exists (select \
                from tombstream.deletion d where d.key = array[n.id] and d.state = 'parked')";
    until("all is decided", &mut running, async || Ok(scene.count(open).await? == 0)).await?;
    stop(running).await?;

    for (id, why) in parked {
        let (state, reason) = scene.deletion("notes", &[id]).await?;
        let reason = reason.unwrap_or_default();
        assert!(state == "parked" && reason.contains(why), "{id:?}: {state}, {reason}");
    }
    let (state, reason) = scene.deletion("notes", &["foo//bar"]).await?;
    let reason = reason.unwrap_or_default();
    assert_eq!(state, "parked");
    assert!(reason.contains("store originals refuses") && reason.contains("`//`"), "{reason}");

    let rows = left(&scene, "select array[id], deleted_at is not null from notes").await?;
    let stays: BTreeSet<Vec<&str>> =
        parked.iter().map(|(id, _)| vec![*id]).chain([vec!["foo//bar"]]).collect();
    assert_eq!(keys(&rows, true), stays);
    let alive: BTreeSet<Vec<&str>> =
        living.iter().map(|id| vec![*id]).chain([vec!["foo/bar"]]).collect();
    assert_eq!(keys(&rows, false), alive);
    let (objects_after, documents_after) = copies(&scene).await?;
    let gone: Vec<String> = flagged.iter().map(name).collect();
    assert_gone("object", objects, &objects_after, &gone);
    let gone: Vec<String> = gone.into_iter().chain(["notes/foo//bar".to_owned()]).collect();
    assert_gone("document", documents, &documents_after, &gone);
    scene.assert_one_receipt_each("notes", flagged.len() + 1).await?;
    println!(
        "{} odd keys gone, {} parked, {} neighbours untouched",
        flagged.len() + 1,
        parked.len() + 1,
        alive.len()
    );
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_takes_its_own_row_s_copies_only() -> Result<()> {
    let scene = Scene::make("folders", TABLES).await?;
    let program = scene.migrated(&scene.config("", "", &format!("{SWEEP}{RELATIONS}"))).await?;
    let flagged = ["1", "a b%", "docs/1", "none"];
    let living = ["10", "1x", "docs", "a b", "a b%25"];
    for ids in [flagged.as_slice(), &living] {
        insert(&scene, "insert into folders values ($1)", ids).await?;
    }
    let below = ["original", "thumb/1.png", "n\nl"];
    let path = |id: &str, file: &str| format!("folders/{id}/{file}");
    let with_files = flagged[..3].iter().chain(&living);
    let kept: Vec<String> =
        with_files.clone().flat_map(|id| below.map(|file| path(id, file))).collect();
    scene.bucket.put(kept.iter().map(|key| object(key))).await?;
    let chunk = |id: &str, n: u32| {
        let chunk = serde_json::json!({ "folder": id, "chunk": n });
        (format!("{id} {n}"), chunk)
    };
    let chunks = with_files.flat_map(|id| [1, 2, 3].map(|n| chunk(id, n)));
    scene.index.put(chunks).await?;
    let (objects, documents) = copies(&scene).await?;
    flag(&scene, "update folders set deleted_at = now() where id = any($1)", &flagged).await?;

    let mut running = scene.run(&program).await?;
    let open = "select count(*) from folders f where deleted_at is not null and not exists (select \
                from tombstream.deletion d where d.key = array[f.id] and d.state = 'parked')";
    until("all is decided", &mut running, async || Ok(scene.count(open).await? == 0)).await?;
    stop(running).await?;

    // `folders/docs/1/` lies below `folders/docs/`, which is another row's.
    let (state, reason) = scene.deletion("folders", &["docs/1"]).await?;
    assert_eq!(state, "parked");
    assert!(reason.unwrap_or_default().contains("holds the delimiter '/'"));
    let rows = left(&scene, "select array[id], deleted_at is not null from folders").await?;
    assert_eq!(keys(&rows, true), [vec!["docs/1"]].into());
    assert_eq!(keys(&rows, false), living.iter().map(|id| vec![*id]).collect());
    let (objects_after, documents_after) = copies(&scene).await?;
    let gone = ["1", "a b%"];
    let files: Vec<String> = gone.iter().flat_map(|id| below.map(|file| path(id, file))).collect();
    assert_gone("object", objects, &objects_after, &files);
    let chunks: Vec<String> =
        gone.iter().flat_map(|id| [1, 2, 3].map(|n| format!("{id} {n}"))).collect();
    assert_gone("document", documents, &documents_after, &chunks);
    scene.assert_one_receipt_each("folders", 3).await?;
    scene.remove().await
}
