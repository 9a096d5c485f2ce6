//! The configuration file of this run.

use super::{Options, Source};
use tombstream_e2e::{Bucket, Servers};

/// The ports that the two processes listen on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) pipeline: u16,
    pub(super) capture: u16,
}

pub(super) fn text(
    name: &str,
    options: &Options,
    servers: &Servers,
    bucket: &Bucket,
    ports: Ports,
) -> String {
    // What a killed process had claimed waits for the end of its lease. A run with kills takes a short
    // one, with the deadlines that fit below it.
    let (pipeline, store) = match options.kill {
        0 => ("", ""),
        _ => (
            "lease = \"20s\"\ntransaction_timeout = \"5s\"\n",
            "timeout = \"5s\"\ndeadline = \"10s\"\n",
        ),
    };
    let kafka = &servers.kafka;
    let source = match options.source {
        Source::Kafka => format!(
            "[source.kafka]\ngroup = \"{name}\"\n[source.kafka.settings]\n\
             \"bootstrap.servers\" = \"{kafka}\"\n"
        ),
        Source::Postgres => format!(
            "[source.postgres]\nslot = \"{name}\"\npublication = \"{name}\"\nheartbeat = \"1s\"\n"
        ),
        Source::Capture => format!(
            "[source.kafka]\ngroup = \"{name}\"\n[source.kafka.settings]\n\
             \"bootstrap.servers\" = \"{kafka}\"\n\
             [capture]\nslot = \"{name}\"\npublication = \"{name}\"\ntopic_prefix = \"{name}\"\n\
             listen = \"127.0.0.1:{}\"\n[capture.kafka.settings]\n\
             \"bootstrap.servers\" = \"{kafka}\"\n\"allow.auto.create.topics\" = true\n",
            ports.capture
        ),
    };
    let topics = match options.source {
        Source::Kafka | Source::Capture => format!("topics = [\"{name}.public.documents\"]"),
        Source::Postgres => String::new(),
    };
    format!(
        r#"[database]
url = {{ env = "DATABASE_URL" }}

[pipeline]
workers = {workers}
listen = "127.0.0.1:{pipeline_port}"
{pipeline}
[api]
listen = "127.0.0.1:{api_port}"

{source}
[source.sweep]
interval = "2s"

[store.originals]
kind = "s3"
endpoint = "{s3}"
region = "us-east-1"
bucket = "{bucket}"
access_key_id = {{ env = "AWS_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "AWS_SECRET_ACCESS_KEY" }}
verify = "sample"
{store}
[store.search]
kind = "elasticsearch"
url = "{elasticsearch}"
index = "{name}"
verify = "read_back"
{store}
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "uuid" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
grace = "0s"
key_reuse = "forbidden"
{topics}
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
        pipeline_port = ports.pipeline,
        api_port = ports.api,
        s3 = servers.s3,
        bucket = bucket.name(),
        elasticsearch = servers.elasticsearch,
    )
}
