//! `tombstream check` on broken configurations: one helpful message for each mistake.
//!
//! The messages are asserted whole: line, key, what is wrong and what to write instead are what the
//! command is for.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

use std::process::{Command, Output};

/// A configuration without a mistake. Each test breaks it.
const WHOLE: &str = r#"[database]
url = { env = "CHECK_URL" }

[api]
listen = "127.0.0.1:8080"

[source.kafka.settings]
"bootstrap.servers" = "127.0.0.1:9092"

[store.originals]
kind = "s3"
bucket = "documents"
deadline = "30s"

[store.search]
kind = "elasticsearch"
url = "http://127.0.0.1:9200"
index = "documents"

[relation.documents]
table = "public.documents"
key = [{ column = "tenant", type = "text" }, { column = "id", type = "uuid" }]
flag = { column = "deleted_at", type = "timestamptz" }
topics = ["app.public.documents"]
key_reuse = "forbidden"
targets = [
    { store = "originals", key = "{tenant}/{id}/original" },
    { store = "search", id = "{tenant}-{id}" },
]
api = { path = "documents", columns = ["id"] }
"#;

fn check(text: &str) -> (Output, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tombstream"))
        .current_dir(folder.path())
        .env_clear()
        .env("CHECK_URL", "postgresql://nobody@localhost/none")
        .args(["check", "--config", "t.toml"])
        .output()
        .unwrap();
    (output, folder)
}

/// What the check says of the configuration in which `from` became `to`.
fn said(breaks: &[(&str, &str)]) -> String {
    let mut text = WHOLE.to_owned();
    for (from, to) in breaks {
        assert_eq!(text.matches(from).count(), 1, "{from} must stand there once");
        text = text.replace(from, to);
    }
    let (output, _folder) = check(&text);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    said
}

#[test]
fn a_configuration_without_a_mistake_passes() {
    let (output, _folder) = check(WHOLE);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_name() {
    assert_eq!(
        said(&[("bucket = \"documents\"", "bukcet = \"documents\""), ("[api]", "[apis]")]),
        "t.toml:4: `apis`: unknown key\n    \
         fix: did you mean `api`?\n\
         t.toml:10: `store.originals.bucket`: missing\n    \
         fix: name the bucket: bucket = \"documents\"\n\
         t.toml:12: `store.originals.bukcet`: unknown key\n    \
         fix: did you mean `bucket`?\n"
    );
}

#[test]
fn broken_syntax_names_its_line() {
    assert_eq!(
        said(&[("bucket = \"documents\"", "bucket = documents")]),
        "t.toml:12: not toml: string values must be quoted, expected literal string\n    \
         fix: mend this line first; what follows it was not looked at\n"
    );
}

#[test]
fn wrong_types_and_impossible_values_say_what_to_write() {
    let wrong = "deadline = 30\nbatch_max = \"many\"\nabsent_share_max = 1.5\nverify = \"samlpe\"";
    assert_eq!(
        said(&[("deadline = \"30s\"", wrong), ("[api]", "[pipeline]\nworkers = 0\n[api]")]),
        "t.toml:5: `pipeline.workers`: must be at least 1, found 0\n    \
         fix: write 1 or more, or leave the key out for its default\n\
         t.toml:15: `store.originals.deadline`: must be a duration, found 30\n    \
         fix: write a number and its unit, such as \"500ms\", \"30s\" or \"7d\"\n\
         t.toml:16: `store.originals.batch_max`: must be a whole number, found \"many\"\n    \
         fix: write digits without quotes\n\
         t.toml:17: `store.originals.absent_share_max`: must be a share from 0 to 1, found 1.5\n    \
         fix: write a number such as 0.5; 1 switches the guard off\n\
         t.toml:18: `store.originals.verify`: \"samlpe\" is none of \"read_back\", \"sample\", \
         \"trust\"\n    \
         fix: did you mean `sample`?\n"
    );
}

#[test]
fn secrets_are_missed_by_name_and_never_repeated() {
    let missing = "access_key_id = { env = \"NOT_SET\" }\n\
                   secret_access_key = { file = \"/not/there\" }";
    let said = said(&[
        ("{ env = \"CHECK_URL\" }", "\"postgresql://me:hunter2@localhost/db\""),
        ("deadline = \"30s\"", missing),
    ]);
    assert_eq!(
        said,
        "t.toml:2: `database.url`: a secret must not be written here\n    \
         fix: write { env = \"NAME\" } or { file = \"/path\" }\n\
         t.toml:13: `store.originals.access_key_id`: the environment variable NOT_SET is not set\n    \
         fix: export NOT_SET=…, or name a file: { file = \"/path\" }\n\
         t.toml:14: `store.originals.secret_access_key`: the file /not/there can't be read: \
         No such file or directory (os error 2)\n    \
         fix: write the secret there, readable by this user alone\n"
    );
    assert!(!said.contains("hunter2"));
}

#[test]
fn a_relation_without_targets_has_nothing_to_destroy() {
    let targets = &WHOLE[WHOLE.find("targets").unwrap()..WHOLE.find("api = {").unwrap()];
    assert_eq!(
        said(&[(targets, "")]),
        "t.toml:20: `relation.documents.targets`: a relation needs at least one target\n    \
         fix: write targets = [{ store = \"originals\", key = \"{id}/original\" }]; without a \
         copy there is nothing to destroy\n"
    );
}

#[test]
fn a_target_names_a_store_and_an_address_of_its_kind() {
    assert_eq!(
        said(&[
            ("store = \"originals\", key", "store = \"orignals\", key"),
            ("id = \"{tenant}-{id}\"", "key = \"{tenant}-{id}\""),
        ]),
        "t.toml:27: `relation.documents.targets[0].store`: there is no store \"orignals\"\n    \
         fix: did you mean `originals`?\n\
         t.toml:28: `relation.documents.targets[1]`: `key` is no address in store \"search\", \
         whose kind is \"elasticsearch\"\n    \
         fix: write id = \"{id}\", or field = \"document_id\" with value = \"{id}\"\n"
    );
}

#[test]
fn a_template_holds_the_whole_key_apart() {
    assert_eq!(
        said(&[
            ("{tenant}/{id}/original", "{id}/original"),
            ("id = \"{tenant}-{id}\"", "id = \"{tenant}{id}\""),
        ]),
        "t.toml:27: `relation.documents.targets[0].key`: `{id}/original` lacks the key column \
         `tenant`, so several rows would share one address\n    \
         fix: add {tenant}\n\
         t.toml:28: `relation.documents.targets[1].id`: `{tenant}{id}` joins `tenant` and `id` \
         with nothing between them, so `1`, `23` and `12`, `3` would share one address\n    \
         fix: put a delimiter such as / between them\n"
    );
}

#[test]
fn two_relations_share_neither_topic_nor_path_nor_table() {
    let second = r#"api = { path = "documents", columns = ["id"] }

[relation.copies]
table = "public.documents"
key = [{ column = "id", type = "uuid" }]
flag = { column = "gone", type = "boolean" }
topics = ["app.public.documents"]
targets = [{ store = "search", field = "copy_id", value = "{id}" }]
api = { path = "documents", columns = ["id"] }
"#;
    assert_eq!(
        said(&[("api = { path = \"documents\", columns = [\"id\"] }\n", second)]),
        "t.toml:32: `relation.copies`: table public.documents is relation \"documents\"'s \
         already\n    \
         fix: a table is one relation; put all targets there\n\
         t.toml:36: `relation.copies.topics`: topic \"app.public.documents\" is relation \
         \"documents\"'s already\n    \
         fix: name a topic once; Debezium writes one for each table\n\
         t.toml:38: `relation.copies.api.path`: path \"documents\" is relation \"documents\"'s \
         already\n    \
         fix: give each its own path\n"
    );
}

#[test]
fn a_timestamp_without_zone_needs_one_and_an_offset_is_none() {
    assert_eq!(
        said(&[("type = \"timestamptz\"", "type = \"timestamp\"")]),
        "t.toml:23: `relation.documents.flag.zone`: a flag of type \"timestamp\" has no zone of \
         its own\n    \
         fix: say which zone the application writes: zone = \"UTC\" or \"Europe/Berlin\"; there \
         is no default, since a wrong one shortens the grace by hours\n"
    );
    assert_eq!(
        said(&[("type = \"timestamptz\"", "type = \"timestamp\", zone = \"+02:00\"")]),
        "t.toml:23: `relation.documents.flag.zone`: \"+02:00\" is no zone of the IANA database\n    \
         fix: write a name such as \"UTC\" or \"Europe/Berlin\"; offsets and abbreviations are \
         refused, since they know no summer time and their sign is read both ways\n"
    );
}

#[test]
fn an_open_port_needs_tokens_that_can_be_read() {
    assert_eq!(
        said(&[("127.0.0.1:8080", "0.0.0.0:8080")]),
        "t.toml:5: `api.listen`: 0.0.0.0:8080 is open to others, and nobody needs a token\n    \
         fix: write tokens_file = \"/etc/tombstream/tokens\" (`tombstream token NAME` prints its \
         lines), or listen on 127.0.0.1\n"
    );
    let tokens = "\"0.0.0.0:8080\"\ntokens_file = \"/not/there\"";
    assert_eq!(
        said(&[("\"127.0.0.1:8080\"", tokens)]),
        "t.toml:6: `api.tokens_file`: tokens file /not/there: No such file or directory (os error \
         2)\n    \
         fix: write lines of `tombstream token NAME` there, readable by the api's user\n"
    );
}

#[test]
fn a_lease_outlasts_the_slowest_store_and_the_finalizing() {
    let short = "[pipeline]\nlease = \"35s\"\n[api]";
    assert_eq!(
        said(&[("[api]", short), ("deadline = \"30s\"", "deadline = \"40s\"")]),
        "t.toml:5: `pipeline.lease`: 35s is over before store \"originals\" (deadline 40s) and \
         the finalizing (transaction_timeout 10s) are done\n    \
         fix: write more than 50s, or shorten `store.originals.deadline`\n"
    );
}

#[test]
fn settings_of_kafka_that_the_contract_rests_on_are_refused() {
    let owned = "\"bootstrap.servers\" = \"127.0.0.1:9092\"\n\"enable.auto.commit\" = true\n\
                 \"sesion.timeout.ms\" = 7000\n\"sasl.password\" = \"hunter2\"";
    assert_eq!(
        said(&[("\"bootstrap.servers\" = \"127.0.0.1:9092\"", owned)]),
        "t.toml:9: `source.kafka.settings.\"enable.auto.commit\"`: is set by Tombstream itself\n    \
         fix: leave it out: offsets are committed only behind the pipeline's frontier, otherwise \
         events could be lost\n\
         t.toml:10: `source.kafka.settings.\"sesion.timeout.ms\"`: librdkafka has no such \
         setting\n    \
         fix: correct it; librdkafka's CONFIGURATION.md lists names and values\n\
         t.toml:11: `source.kafka.settings.\"sasl.password\"`: a secret must not be written \
         here\n    \
         fix: write { env = \"NAME\" } or { file = \"/path\" }\n"
    );
}

#[test]
fn a_file_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tombstream"))
        .current_dir(folder.path())
        .env_clear()
        .arg("check")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("./tombstream.toml: can't be read: No such file"), "{said}");
    assert!(said.contains("TOMBSTREAM_CONFIG"), "{said}");
}

#[test]
fn what_a_store_can_not_guard_must_be_declared() {
    let text = WHOLE
        .replace("key_reuse = \"forbidden\"\n", "")
        .replace("key = \"{tenant}/{id}/original\"", "prefix = \"{tenant}/{id}/\"");
    let (output, _folder) = check(&text);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    for part in ["relation.documents.key_reuse", "key_reuse = \"forbidden\"", "\"originals\""] {
        assert!(said.contains(part), "{said}");
    }
    for part in ["relation.documents.key_slashes", "key_slashes = \"forbidden\"", "\"tenant\""] {
        assert!(said.contains(part), "{said}");
    }
}

/// The search store of [`WHOLE`] as an index in a folder.
const FOLDER: [(&str, &str); 2] = [
    ("kind = \"elasticsearch\"", "kind = \"tantivy\""),
    ("url = \"http://127.0.0.1:9200\"\nindex = \"documents\"", "path = \"/srv/index\""),
];

#[cfg(feature = "embedded")]
#[test]
fn an_index_in_a_folder_needs_no_more_than_its_path() {
    let text = FOLDER.iter().fold(WHOLE.to_owned(), |text, (from, to)| text.replace(from, to));
    let (output, _folder) = check(&text);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(feature = "embedded")]
#[test]
fn an_index_in_a_folder_says_what_it_can_not_be() {
    let wrong = "path = \"srv/index\"\nid_field = 7\npurge = \"no\"\npurge_wait = 5";
    assert_eq!(
        said(&[FOLDER[0], (FOLDER[1].0, wrong)]),
        "t.toml:17: `store.search.path`: \"srv/index\" is no absolute path\n    \
         fix: name the index's folder: path = \"/srv/index\", from the root on\n\
         t.toml:18: `store.search.id_field`: must be a text, found 7\n    \
         fix: write it in double quotes\n\
         t.toml:19: `store.search.purge`: must be true or false, found \"no\"\n    \
         fix: write true or false without quotes\n\
         t.toml:20: `store.search.purge_wait`: must be a duration, found 5\n    \
         fix: write a number and its unit, such as \"500ms\", \"30s\" or \"7d\"\n"
    );
    assert_eq!(
        said(&[FOLDER[0], (FOLDER[1].0, "")]),
        "t.toml:15: `store.search.path`: missing\n    \
         fix: name the index's folder: path = \"/srv/index\"\n"
    );
}

#[cfg(feature = "embedded")]
#[test]
fn documents_of_an_index_in_a_folder_are_not_routed_and_their_keys_not_used_again() {
    let routed = "id = \"{tenant}-{id}\", routing = \"{tenant}\"";
    let original = "    { store = \"originals\", key = \"{tenant}/{id}/original\" },\n";
    assert_eq!(
        said(&[
            FOLDER[0],
            FOLDER[1],
            ("id = \"{tenant}-{id}\"", routed),
            (original, ""),
            ("key_reuse = \"forbidden\"\n", ""),
        ]),
        "t.toml:19: `relation.documents.key_reuse`: missing: store \"search\" can't tell the copy of \
         a row that used the key again from the deleted one's\n    \
         fix: write key_reuse = \"forbidden\" if no key is ever used again, as with uuids and \
         sequences; else this store can't be used\n\
         t.toml:25: `relation.documents.targets[0].routing`: store \"search\", whose kind is \
         \"tantivy\", has no routing\n    \
         fix: leave routing out\n"
    );
    let key = "store = \"search\", key = \"{tenant}-{id}\"";
    let said = said(&[FOLDER[0], FOLDER[1], ("store = \"search\", id = \"{tenant}-{id}\"", key)]);
    assert!(said.contains("`key` is no address in store \"search\""), "{said}");
}

#[cfg(not(feature = "embedded"))]
#[test]
fn a_build_without_embedded_says_what_to_build() {
    assert_eq!(
        said(&FOLDER),
        "t.toml:16: `store.search.kind`: \"tantivy\" is not in this build of tombstream\n    \
         fix: build it with --features embedded (which is a default), or use another kind\n"
    );
}

/// [source.files] in the place of [source.kafka].
fn said_of_files(section: &str) -> String {
    let kafka = "[source.kafka.settings]\n\"bootstrap.servers\" = \"127.0.0.1:9092\"\n";
    said(&[(kafka, &format!("[source.files]\n{section}"))])
}

#[test]
fn files_need_a_place_that_can_be_one() {
    let fix = "    fix: write path = \"file:///folder\", \"s3://bucket/folder\", \"gs://bucket/folder\" or \
               \"az://container/folder\"\n";
    assert_eq!(said_of_files(""), format!("t.toml:7: `source.files.path`: missing\n{fix}"));
    assert_eq!(
        said_of_files("path = \"/srv/archive\"\n"),
        format!("t.toml:8: `source.files.path`: \"/srv/archive\" is no place of files\n{fix}")
    );
}

#[test]
fn options_of_the_files_store_are_known_ones_and_hold_no_secret() {
    let options = "path = \"s3://bucket/archive\"\n[source.files.options]\n";
    assert_eq!(
        said_of_files(&format!("{options}aws_endpont = \"http://127.0.0.1:9000\"\n")),
        "t.toml:10: `source.files.options.aws_endpont`: this kind of store has no such option\n    \
         fix: write it as the crate object_store names it, such as aws_endpoint, or leave it out\n"
    );
    assert_eq!(
        said_of_files(&format!("{options}aws_secret_access_key = \"hunter2\"\n")),
        "t.toml:10: `source.files.options.aws_secret_access_key`: a secret must not be written \
         here\n    fix: write { env = \"NAME\" } or { file = \"/path\" }\n"
    );
    assert_eq!(
        said_of_files(&format!("{options}aws_secret_access_key = {{ env = \"NO_SUCH\" }}\n")),
        "t.toml:10: `source.files.options.aws_secret_access_key`: the environment variable NO_SUCH is \
         not set\n    fix: export NO_SUCH=…, or name a file: { file = \"/path\" }\n"
    );
}

#[test]
fn files_are_not_listed_without_a_pause_and_have_a_plain_name() {
    let section = "path = \"file:///srv\"\npoll = \"1ms\"\nname = \"Files 2\"\n";
    assert_eq!(
        said_of_files(section),
        "t.toml:9: `source.files.poll`: 1ms would list without a pause\n    \
         fix: write \"10ms\" or more; 1s is the default\n\
         t.toml:10: `source.files.name`: \"Files 2\" is no name of a source\n    \
         fix: use lower-case letters, digits, - and _, beginning with a letter\n"
    );
}

#[test]
fn topics_need_a_reader_and_files_are_one() {
    let kafka = "[source.kafka.settings]\n\"bootstrap.servers\" = \"127.0.0.1:9092\"\n";
    assert_eq!(
        said(&[(kafka, "")]),
        "t.toml:22: `relation.documents.topics`: names topics, but nothing reads Kafka, Fluvio or files\n    \
         fix: add [source.kafka], [source.fluvio] or [source.files], or leave topics out: the sweep finds \
         the flags\n"
    );
    let files = WHOLE.replace(kafka, "[source.files]\npath = \"file:///srv/archive\"\n");
    for text in [files.as_str(), &files.replace("topics = [\"app.public.documents\"]\n", "")] {
        let (output, _folder) = check(text);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
