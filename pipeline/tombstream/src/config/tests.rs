use std::time::Duration;

use tombstream_model::{FlagKind, StoreId};

use super::*;

const EXAMPLE: &str = include_str!("../../../../deploy/tombstream.example.toml");

/// The example without its secrets, which tests can't set: a process has one environment.
fn example(text: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "postgresql://nobody@localhost/none").unwrap();
    let here = format!("file = {:?}", file.path());
    let text = [
        "DATABASE_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "CRM_SECRET",
        "CRM_SECRET_BEFORE",
        "REPORTING_URL",
    ]
    .iter()
    .fold(text.to_owned(), |text, name| text.replace(&format!("env = {name:?}"), &here));
    Config::parse("example".into(), &text, Needs::Everything)
        .unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_example_has_no_mistake() {
    let config = example(EXAMPLE);
    assert_eq!(config.stores.len(), 2);
    assert_eq!(config.stores[0].name, "originals");
    let documents = &config.relations[0];
    assert_eq!(documents.schema, "public");
    assert_eq!(documents.flag.kind, FlagKind::TimestampTz);
    let stores: Vec<_> = documents.targets.iter().map(|target| target.store).collect();
    assert_eq!(stores, [StoreId(0), StoreId(1)]);
    assert_eq!(config.routes[0].as_ref().unwrap().create.as_deref(), Some(&["name".into()][..]));
}

/// A key that is commented out shows its default: uncommenting all of them changes nothing.
#[test]
fn what_the_example_calls_a_default_is_one() {
    let left_out = [
        "tokens_file",
        "archive_keep",
        "breaker",
        "prefix",
        "username",
        "password",
        "ca_file",
        "session_token",
        "secret",
    ];
    let spelled: Vec<String> = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ").and_then(|text| text.split_once(" = ")) {
            Some((key, _))
                if key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
                    && !left_out.contains(&key) =>
            {
                line[2..].to_owned()
            }
            _ => line.to_owned(),
        })
        .collect();
    // A section whose header is commented out is one to choose; its keys belong nowhere else.
    let mut in_choice = false;
    let kept = spelled.into_iter().filter(|line| {
        in_choice = (in_choice || line.starts_with("# [")) && !line.is_empty();
        !in_choice
    });
    let text = kept.collect::<Vec<_>>().join("\n");
    assert!(text.contains("\nworkers = 2"), "uncommented");
    let places_gone = |config: &Config| {
        let mut config = config.clone();
        // Files of their own in the two readings.
        config.database.url = SecretRef::Env("X".into());
        for store in &mut config.stores {
            if let StoreKind::S3(s3) = &mut store.kind {
                s3.credentials = None;
            }
        }
        let shown = format!("{config:#?}");
        let lines = shown.lines().filter(|line| !line.trim_start().starts_with("line: "));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(places_gone(&example(&text)), places_gone(&example(EXAMPLE)));
}

#[test]
fn hashed_receipts_need_a_secret() {
    let text = EXAMPLE.replace("# keys = \"plain\"", "keys = \"hashed\"");
    assert_ne!(text, EXAMPLE);
    let problems = Config::parse("example".into(), &text, Needs::Database).unwrap_err();
    let said = problems.to_string();
    assert!(
        said.contains("`receipts.secret`: missing: keys = \"hashed\" needs a secret"),
        "{said}"
    );
}

/// The sections that are commented out as a whole are right, and their keys show their defaults.
#[test]
fn what_the_example_offers_can_be_taken() {
    let section = |header: &str| {
        let lines = EXAMPLE.lines().skip_while(|line| *line != format!("# {header}"));
        let lines = lines.take_while(|line| !line.is_empty()).map(|line| {
            let bare = line.strip_prefix("# ").unwrap_or_else(|| panic!("{line}"));
            // Of a secret the default is none.
            if bare.contains("{ env") { String::new() } else { bare.to_owned() }
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let with = |text: &str| example(&format!("{EXAMPLE}\n{text}\n"));
    let offered = with(&section("[source.postgres]"));
    let bare = with("[source.postgres]");
    let shown = |config: &Config| {
        let postgres = config.source.postgres.clone().unwrap();
        let lines = format!("{postgres:#?}");
        lines.lines().filter(|line| !line.contains("line: ")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(shown(&offered), shown(&bare));
    let files = section("[source.files]");
    let path = files.lines().find(|line| line.starts_with("path")).unwrap();
    let shown = |text: &str| format!("{:?}", with(text).source.files);
    assert_eq!(shown(&files), shown(&format!("[source.files]\n{path}")));
    let capture = section("[capture]");
    let broker = section("[capture.kafka.settings]");
    let offered = with(&format!("{capture}\n{broker}"));
    let prefix = capture.lines().find(|line| line.starts_with("topic_prefix")).unwrap();
    let bare = with(&format!("[capture]\n{prefix}\n{broker}"));
    assert_eq!(format!("{:?}", offered.capture), format!("{:?}", bare.capture));
}

#[cfg(feature = "embedded")]
#[test]
fn the_index_in_a_folder_that_is_commented_out_shows_its_defaults() {
    let from = EXAMPLE.find("# [store.local]").unwrap();
    let whole: Vec<&str> =
        EXAMPLE[from..].lines().map_while(|line| line.strip_prefix("# ")).collect();
    let needed = |line: &&str| ["[store", "kind", "path"].iter().any(|it| line.starts_with(it));
    let least: Vec<&str> = whole.iter().copied().filter(needed).collect();
    assert!(least.len() == 3 && whole.len() > 3, "{whole:?}");
    let local = |lines: Vec<&str>| {
        let text = EXAMPLE.replace("# [store.local]", &lines.join("\n"));
        let config = example(&text);
        let local = config.stores.iter().find(|store| store.name == "local").unwrap();
        let shown = format!("{local:#?}");
        let lines = shown.lines().filter(|line| !line.trim_start().starts_with("line: "));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(local(whole), local(least));
}

/// What a store of the example that is commented out is read as, by its lines that `keep` keeps.
fn chosen(name: &str, keep: impl Fn(&str) -> bool) -> (usize, String) {
    let header = format!("# [store.{name}]");
    let from = EXAMPLE.find(&header).unwrap();
    let lines = EXAMPLE[from..].lines().map_while(|line| line.strip_prefix("# "));
    let kept: Vec<&str> = lines.filter(|line| keep(line)).collect();
    let config = example(&EXAMPLE.replace(&header, &kept.join("\n")));
    let store = config.stores.iter().find(|store| store.name == name).unwrap();
    let shown = format!("{store:#?}");
    let lines = shown.lines().filter(|line| !line.contains("line: ") && !line.contains("/tmp/"));
    (kept.len(), lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn the_service_and_the_table_that_are_commented_out_show_their_defaults() {
    let is_one_of = |line: &str, keys: &[&str]| keys.iter().any(|key| line.starts_with(key));
    for (name, needed) in [
        ("crm", &["[store", "kind", "url", "collection", "secret"][..]),
        ("reporting", &["[store", "kind", "url", "table"]),
    ] {
        let without_default = ["look_url", "previous_secret", "ca_file"];
        let whole = chosen(name, |line| !is_one_of(line, &without_default));
        let least = chosen(name, |line| is_one_of(line, needed));
        assert!(least.0 == needed.len() && whole.0 > least.0, "{name}: {whole:?}");
        assert_eq!(whole.1, least.1);
    }
    assert!(chosen("crm", |line| !line.starts_with("look_url")).1.contains("verify: Trust"));
}

#[test]
fn a_job_is_begun_as_often_as_it_says_and_one_that_is_left_out_is_not() {
    let read = |text: &str| {
        let text = format!("{EXAMPLE}\n{text}\n").replace("DATABASE_URL", "PATH");
        let read = Config::parse("example".into(), &text, Needs::Database);
        read.map(|config| config.jobs).map_err(|problems| problems.to_string())
    };
    let none = read("").unwrap();
    assert!(none.reconcile.is_none() && none.reaudit.is_none() && none.receipts.is_none());
    let lines = EXAMPLE.lines().skip_while(|line| *line != "# [jobs]");
    let offered: Vec<&str> = lines.map_while(|line| line.strip_prefix("# ")).collect();
    let all = read(&offered.join("\n")).unwrap();
    let week = std::time::Duration::from_secs(7 * 86_400);
    assert_eq!(all.reconcile.map(|job| job.every), Some(week));
    assert!(all.reaudit.is_some() && all.receipts.is_some());
    for (wrong, said) in [
        ("reconcile = {}", "write every = \"7d\""),
        ("receipts = { every = \"10ms\" }", "more often than every second"),
        ("reconcile = { every = \"7d\", report = \"a.csv\" }", "ends in .jsonl"),
        ("reaudit = { every = \"7d\", rate = 7 }", "rate"),
        ("audit = { every = \"7d\" }", "audit"),
    ] {
        let problems = read(&format!("[jobs]\n{wrong}")).unwrap_err();
        assert!(problems.contains(said), "{wrong}: {problems}");
    }
}

#[test]
fn the_column_of_creation_is_not_the_flag() {
    let read = |created: &str| {
        let text = EXAMPLE.replace("DATABASE_URL", "PATH");
        let text =
            text.replace("[relation.documents]\n", &format!("[relation.documents]\n{created}\n"));
        let read = Config::parse("example".into(), &text, Needs::Database);
        read.map(|config| config.created).map_err(|problems| problems.to_string())
    };
    assert_eq!(read("").unwrap(), [None]);
    assert_eq!(read("created = \"created_at\"").unwrap(), [Some("created_at".to_owned())]);
    let said = read("created = \"deleted_at\"").unwrap_err();
    assert!(said.contains("is the flag"), "{said}");
}

#[test]
fn a_mistake_in_a_service_or_a_table_is_said_with_its_mending() {
    let crm = "[store.crm]\nkind = \"webhook\"\nurl = \"URL\"\ncollection = \"contacts\"\n\
               secret = { env = \"CRM\" }\n";
    let table = "[store.copies]\nkind = \"postgres_table\"\nurl = { env = \"COPIES\" }\n\
                 table = \"public.copies\"\n";
    let said = |stores: &str, target: &str| {
        let text = EXAMPLE.replace("[store.originals]", &format!("{stores}[store.originals]"));
        let text = text.replace("{ store = \"search\", id = \"{id}\" },", target);
        let read =
            Config::parse("example".into(), &text.replace("DATABASE_URL", "PATH"), Needs::Database);
        read.map(|_| ()).map_err(|problems| problems.to_string())
    };
    let crm = |url: &str| crm.replace("URL", url);
    let good = "{ store = \"crm\", item = \"{id}\" }, { store = \"copies\", row = { kind = \"note\", note = \"{id}\" } },";
    said(&format!("{}{table}", crm("https://a/erase")), good).unwrap();

    let plain = said(&crm("http://a/erase?token=hunter2"), "").unwrap_err();
    assert!(plain.contains("plain http") && !plain.contains("hunter2"), "{plain}");
    said(&format!("{}allow_http = true\n", crm("http://a/erase")), "").unwrap();
    let looked = said(&format!("{}verify = \"read_back\"\n", crm("https://a/")), "").unwrap_err();
    assert!(
        looked.contains("there is no look_url") && looked.contains("verify = \"trust\""),
        "{looked}"
    );

    let wrong = said(&crm("https://a/"), "{ store = \"crm\", id = \"{id}\" },").unwrap_err();
    assert!(
        wrong.contains("`id` is no address in store \"crm\"") && wrong.contains("item ="),
        "{wrong}"
    );
    let keyless = said(table, "{ store = \"copies\", row = { kind = \"note\" } },").unwrap_err();
    assert!(keyless.contains("names no column"), "{keyless}");
    let two = said(table, "{ store = \"copies\", item = \"{id}\", row = { id = \"{id}\" } },")
        .unwrap_err();
    assert!(two.contains("more than one address: item and row"), "{two}");
    let open = said(&table.replace("{ env = \"COPIES\" }", "\"postgresql://u:hunter2@h/d\""), "")
        .unwrap_err();
    assert!(
        open.contains("a secret must not be written here") && !open.contains("hunter2"),
        "{open}"
    );
}

#[test]
fn the_operator_commands_need_no_secret_of_a_store() {
    let text = EXAMPLE.replace("AWS_ACCESS_KEY_ID", "TOMBSTREAM_NO_SUCH_VARIABLE");
    let said = |needs| {
        let problems = Config::parse("example".into(), &text, needs).unwrap_err().to_string();
        problems.contains("TOMBSTREAM_NO_SUCH_VARIABLE")
    };
    assert!(said(Needs::Everything));
    // The database's own is missing here in either case, and is said.
    let text = text.replace("DATABASE_URL", "PATH");
    assert!(Config::parse("example".into(), &text, Needs::Database).is_ok());
}

#[test]
fn nothing_printed_of_a_configuration_holds_a_secret() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "postgresql://u:hunter2@localhost/d").unwrap();
    let text = EXAMPLE.replace("env = \"DATABASE_URL\"", &format!("file = {:?}", file.path()));
    let config = Config::parse("example".into(), &text, Needs::Database).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_lease_that_the_slowest_store_outlasts_is_refused() {
    let text = EXAMPLE.replace("# lease = \"60s\"", "lease = \"40s\"");
    let problems = Config::parse("example".into(), &text, Needs::Database).unwrap_err();
    let lease = problems.list.iter().find(|problem| problem.place.key == "pipeline.lease");
    assert!(lease.unwrap().what.contains("is over before store"), "{problems}");
    let text = EXAMPLE.replace("# lease = \"60s\"", "lease = \"41s\"");
    let text = text.replace("DATABASE_URL", "PATH");
    let config = Config::parse("example".into(), &text, Needs::Database).unwrap();
    assert_eq!(config.pipeline.lease, Duration::from_secs(41));
}

/// The example with Fluvio in the place of Kafka.
fn with_fluvio(keys: &str, topic: &str) -> Result<Config, Problems> {
    let (before, rest) = EXAMPLE.split_once("[source.kafka]\n").unwrap();
    let (_, after) = rest.split_once("# --- The scan of the flag itself").unwrap();
    let text = format!("{before}[source.fluvio]\n{keys}\n#{after}");
    let text = text.replace("\"app.public.documents\"", &format!("{topic:?}"));
    Config::parse("example".into(), &text.replace("DATABASE_URL", "PATH"), Needs::Database)
}

#[cfg(not(feature = "fluvio"))]
#[test]
fn a_build_without_fluvio_says_how_to_get_one_with_it() {
    let problems = with_fluvio("endpoint = \"sc:9003\"", "app-documents").unwrap_err();
    assert_eq!(problems.list.len(), 1, "{problems}");
    assert!(problems.list[0].fix.contains("--features fluvio"), "{problems}");
}

#[cfg(feature = "fluvio")]
#[test]
fn fluvio_is_read_where_kafka_is_not() {
    let config = with_fluvio("endpoint = \"sc:9003\"", "app-documents").unwrap();
    let fluvio = config.source.fluvio.unwrap().config;
    let default = tombstream_connectors::fluvio::FluvioConfig::new("sc:9003", "tombstream");
    assert_eq!(format!("{fluvio:?}"), format!("{default:?}"));

    let said = |keys: &str, topic: &str| {
        let problems = with_fluvio(keys, topic).unwrap_err();
        assert_eq!(problems.list.len(), 1, "{problems}");
        problems.to_string()
    };
    let endpoint = "endpoint = \"sc:9003\"";
    assert!(said("endpoint = \"sc\"", "t").contains("host:9003"));
    assert!(said(endpoint, "app.public.documents").contains("app-public-documents"));
    let no_key = "[source.fluvio.tls]\ndomain = \"d\"\nca_file = \"/a\"\ncert_file = \"/b\"";
    assert!(said(&format!("{endpoint}\n{no_key}"), "t").contains("key_file"));
    assert!(said(&format!("{endpoint}\n{no_key}\nkey_file = \"/c\""), "t").contains("/a"));
    let both = format!("{endpoint}\n[source.kafka.settings]\n\"bootstrap.servers\" = \"b:1\"");
    assert!(said(&both, "t").contains("the same topics"));
}
