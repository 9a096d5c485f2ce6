//! `tombstream check` on broken configurations: one helpful message for each mistake.
//!
//! The messages are asserted whole: line, key, what is wrong and what to write instead are what the
//! command is for.

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
