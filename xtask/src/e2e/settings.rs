//! The configuration file of this run.

use super::Options;
use super::bucket::Bucket;
use crate::services::{self, Addresses, S3_REGION};
use crate::shell;
use anyhow::{Context, Result};
use std::path::PathBuf;

pub(super) struct Settings {
    pub(super) folder: PathBuf,
    pub(super) file: PathBuf,
    pub(super) api_port: u16,
    pub(super) pipeline_port: u16,
}

pub(super) fn write(
    name: &str,
    options: &Options,
    addresses: &Addresses,
    bucket: &Bucket,
) -> Result<Settings> {
    let folder = shell::root().join("target/e2e").join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let (api_port, pipeline_port) = (services::free_port()?, services::free_port()?);
    let text = format!(
        r#"[database]
url = {{ env = "DATABASE_URL" }}

[pipeline]
workers = {workers}
listen = "127.0.0.1:{pipeline_port}"

[api]
listen = "127.0.0.1:{api_port}"

[source.kafka]
group = "{name}"
[source.kafka.settings]
"bootstrap.servers" = "{kafka}"

[source.sweep]
interval = "2s"

[store.originals]
kind = "s3"
endpoint = "{s3}"
region = "{S3_REGION}"
bucket = "{bucket}"
access_key_id = {{ env = "AWS_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "AWS_SECRET_ACCESS_KEY" }}
verify = "sample"

[store.search]
kind = "elasticsearch"
url = "{elasticsearch}"
index = "{name}"
verify = "read_back"

[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "uuid" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
grace = "0s"
topics = ["{name}.public.documents"]
targets = [
    {{ store = "originals", key = "{{id}}/original" }},
    {{ store = "search", id = "{{id}}" }},
]

[relation.documents.api]
path = "documents"
columns = ["id", "name", "uploaded_at", "deleted_at"]
create = ["name"]
"#,
        workers = options.workers,
        kafka = addresses.kafka,
        s3 = addresses.s3,
        bucket = bucket.name(),
        elasticsearch = addresses.elasticsearch,
    );
    let file = folder.join("tombstream.toml");
    std::fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
    Ok(Settings { folder, file, api_port, pipeline_port })
}
