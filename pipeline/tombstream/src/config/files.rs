//! `[source.files]`: change events that were written to files.

use std::num::NonZeroUsize;
use std::time::Duration;

use tombstream_connectors::files;

use super::document::{Place, Section};
use super::relation::is_name;
use super::source::Setting;

/// Files in a folder, or behind a prefix of a bucket.
#[derive(Clone, Debug)]
pub(crate) struct FilesSection {
    /// The key of its positions in the ledger. `files`: one such source is the rule.
    pub(crate) name: String,
    /// `file:///folder`, `s3://bucket/folder`, `gs://bucket/folder`, `az://container/folder`.
    pub(crate) path: String,
    /// The topic of lines that name none. `files`.
    pub(crate) topic: String,
    /// Whether new files and new lines are waited for. False: everything is read once.
    pub(crate) follow: bool,
    /// How often they are looked for. 1 s: soon noticed, and one listing of a folder costs little.
    pub(crate) poll: Duration,
    /// Most events that one poll brings. 1,000: two claims.
    pub(crate) items_max: NonZeroUsize,
    /// The longest line. 16 MiB: several times what a broker takes as it is set up.
    pub(crate) line_bytes_max: NonZeroUsize,
    /// The store's own options, such as `aws_endpoint`.
    pub(crate) options: Vec<(String, Setting)>,
}

impl FilesSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let default = files::FilesConfig::new("");
        let place = read_place(section);
        let (name_place, poll_place) = (section.place("name"), section.place("poll"));
        let name = section.or("name", "files".to_owned());
        if !is_name(&name) {
            section.problem(
                name_place,
                format!("{name:?} is no name of a source"),
                "use lower-case letters, digits, - and _, beginning with a letter",
            );
        }
        let poll = section.or("poll", default.poll);
        if poll < Duration::from_millis(10) {
            section.problem(
                poll_place,
                format!("{} would list without a pause", humantime::format_duration(poll)),
                "write \"10ms\" or more; 1s is the default",
            );
        }
        let topic = section.or("topic", default.topic);
        let follow = section.or("follow", default.follow);
        let items_max = section.or("items_max", default.items_max);
        let line_bytes_max = section.or("line_bytes_max", default.line_bytes_max);
        let (path, options) = place?;
        Some(Self { name, path, topic, follow, poll, items_max, line_bytes_max, options })
    }
}

/// The keys `path` and `options`: a folder, or a part of a bucket.
pub(super) fn read_place(
    section: &mut Section<'_, '_>,
) -> Option<(String, Vec<(String, Setting)>)> {
    let fix = "write path = \"file:///folder\", \"s3://bucket/folder\", \"gs://bucket/folder\" or \
               \"az://container/folder\"";
    let path = section.need_at::<String>("path", fix);
    let options = section.table("options", read_options).unwrap_or_default();
    let (place, path) = path?;
    let mut config = files::FilesConfig::new(path.as_str());
    config.options = options.iter().map(|(name, ..)| (name.as_str(), "unread")).collect();
    if let Err(error) = config.validate() {
        let wrong = options
            .iter()
            .find(|(name, ..)| matches!(&error, files::FilesConfigError::Option(it) if it == name));
        match wrong {
            Some((_, place, _)) => section.problem(
                place.clone(),
                "this kind of store has no such option",
                "write it as the crate object_store names it, such as aws_endpoint, or leave it out",
            ),
            None => section.problem(place, format!("{path:?} is no place of files"), fix),
        }
        return None;
    }
    let options = options.into_iter().map(|(name, _, setting)| (name, setting)).collect();
    Some((path, options))
}

fn read_options(section: &mut Section<'_, '_>) -> Vec<(String, Place, Setting)> {
    let options = section.rest::<Setting>();
    for (name, place, setting) in &options {
        match setting {
            Setting::Plain(_) if holds_secret(name) => section.problem(
                place.clone(),
                "a secret must not be written here",
                "write { env = \"NAME\" } or { file = \"/path\" }",
            ),
            Setting::Plain(_) => {}
            Setting::Secret(secret) => section.note_secret(place.clone(), secret.clone()),
        }
    }
    options
}

/// Whether an option of the crate `object_store` is one that nobody may read.
fn holds_secret(name: &str) -> bool {
    ["_key", "_secret", "_token", "key_base64"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::holds_secret;

    #[test]
    fn options_that_are_secrets_are_told_from_others() {
        for name in [
            "aws_secret_access_key",
            "aws_session_token",
            "aws_sse_customer_key_base64",
            "google_service_account_key",
            "azure_storage_account_key",
            "azure_storage_client_secret",
            "azure_storage_sas_key",
        ] {
            assert!(holds_secret(name), "{name}");
        }
        for name in [
            "aws_access_key_id",
            "aws_endpoint",
            "aws_web_identity_token_file",
            "aws_sse_bucket_key_enabled",
            "azure_storage_account_name",
        ] {
            assert!(!holds_secret(name), "{name}");
        }
    }
}
