//! The demo's `tombstream.toml`: a real one, which every other command reads, too.

use super::folder::Folder;

/// How long a flag stands before its row may be claimed. Long enough to restore within it, short enough
/// to wait for.
pub(super) const GRACE_MS: u64 = 1_000;

/// The ports that the configuration names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) pipeline: u16,
}

pub(super) fn text(folder: &Folder, ports: Ports) -> String {
    let Ports { api, pipeline } = ports;
    let path = |path: std::path::PathBuf| quoted(&path.to_string_lossy());
    let url = path(folder.url());
    let objects = quoted(&format!("file://{}", folder.objects().display()));
    let index = path(folder.index());
    format!(
        r#"# Written by `tombstream demo`, and read by it as `tombstream api` and `tombstream run` read theirs. The
# servers that it names are gone when the demo has ended; `tombstream demo --keep` leaves them running.
# docs/configuration.md describes every key.

[database]
url = {{ file = {url} }}

[pipeline]
listen = "127.0.0.1:{pipeline}"

[api]
listen = "127.0.0.1:{api}"

[source.postgres]

# Often, and without waiting for events: a flag's grace is a second here.
[source.sweep]
interval = "100ms"
after = "0s"

[store.objects]
kind = "object_store"
url = {objects}

# The rest between two rewrites of the index is short, so that the last of them is not waited for.
[store.index]
kind = "tantivy"
path = {index}
id_field = "id"
purge_wait = "200ms"

[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "uuid" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
grace = "{GRACE_MS}ms"
key_reuse = "forbidden"
targets = [
    {{ store = "objects", key = "{{id}}/original" }},
    {{ store = "index", id = "{{id}}" }},
]

[relation.documents.api]
path = "documents"
columns = ["id", "name", "uploaded_at", "deleted_at"]
create = ["name"]
"#
    )
}

/// A text of TOML.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_folder_s_name_makes_a_whole_file() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::take(&place.path().join("it's \"here\" \\ {id}")).unwrap();
        let text = text(&folder, Ports { api: 1, pipeline: 2 });
        let read: toml::Table = text.parse().unwrap();
        let file = read["database"]["url"]["file"].as_str().unwrap();
        assert_eq!(file, folder.url().to_str().unwrap());
        assert!(read["store"]["objects"]["url"].as_str().unwrap().ends_with("{id}/objects"));
    }
}
