//! From the start of the process to the first copy destroyed; the size of the binary; what it uses when
//! nothing happens.
//!
//! A row is flagged and its event stands in the topic before the process starts. Its copy is a file, so that no
//! store's start is measured. The row is seen by its event and not by the sweep, which waits.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::json;
use tombstream_e2e::{Program, free_port};

use crate::cpu::processor_seconds;
use crate::envelope::envelope;
use crate::figures::median;
use crate::installation::binary;
use crate::scene::Scene;
use crate::server::{self, execute};
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How often the process is started
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long it is looked at when nothing happens, in seconds
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Tombstream's binary [default: the one beside this]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let binary = binary(options.binary.as_ref())?;
    let scene = Scene::new(&relation()?, "uuid").await?;
    let folder = std::env::temp_dir().join(&scene.name);
    let done = measure(&options, &scene, &binary, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    scene.remove().await?;
    done
}

async fn measure(options: &Options, scene: &Scene, binary: &Path, folder: &Path) -> Result<()> {
    let copies = folder.join("copies");
    std::fs::create_dir_all(&copies)?;
    let brokers = server::kafka_brokers()?;
    let (mut firsts, mut idles) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let event = envelope(round, true, false);
        let (key, value) = (event.key.unwrap_or_default(), event.value.unwrap_or_default());
        let id: serde_json::Value = serde_json::from_slice(&key)?;
        let id = id["id"].as_str().context("a key without an id")?.to_owned();
        let copy = copies.join(&id);
        std::fs::write(&copy, b"a copy")?;
        execute(&scene.pool, &format!("insert into documents values ('{id}', 'document', now())"))
            .await?;
        let topic = format!("{}-{round}", scene.name);
        let producer: ThreadedProducer<DefaultProducerContext> =
            ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
        let record = BaseRecord::to(&topic).key(&*key).payload(&*value);
        producer.send(record).map_err(|(error, _)| error)?;
        producer.flush(Duration::from_secs(30))?;
        let port = free_port()?;
        let program = Program::at(
            binary.to_owned(),
            folder.to_owned(),
            &config(port, &copies, &topic, &brokers),
            vec![("DATABASE_URL", scene.url())],
        )?;
        let begun = Instant::now();
        // Its health is asked as soon as it listens; the copy is watched beside.
        let healthy = format!("http://127.0.0.1:{port}/healthz");
        let gone = async {
            while copy.exists() {
                ensure!(begun.elapsed() < Duration::from_secs(60), "the copy is still there");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(begun.elapsed().as_secs_f64() * 1e3)
        };
        let (running, first) = tokio::try_join!(program.start(&["run"], &healthy), gone)?;
        firsts.push(first);
        eprintln!("round {round}: {first:.0} ms");
        if round + 1 == options.rounds {
            let process = running.id().context("it has ended")?.to_string();
            // What the first deletion leaves to do is over.
            tokio::time::sleep(Duration::from_secs(5)).await;
            let before = processor_seconds(&process);
            tokio::time::sleep(Duration::from_secs(options.idle)).await;
            idles.push((processor_seconds(&process) - before) / options.idle as f64);
        }
        running.stop().await?;
    }
    let size = std::fs::metadata(binary)?.len();
    firsts.sort_by(f64::total_cmp);
    let idle = median(&idles);
    if options.json {
        let spread = json!({
            "median": median(&firsts), "min": firsts.first(), "max": firsts.last(),
        });
        let line = json!({
            "bench": "startup", "rounds": options.rounds, "first_destroy_ms": spread,
            "binary_mb": size as f64 / 1e6, "idle_s": options.idle,
            "idle_processor_percent": idle * 100.0,
        });
        println!("{line}");
    } else {
        println!(
            "first copy destroyed after {:.0} ms; binary {:.1} MB; idle {:.2}% of a processor",
            median(&firsts),
            size as f64 / 1e6,
            idle * 100.0
        );
    }
    Ok(())
}

fn config(port: u16, copies: &Path, topic: &str, brokers: &str) -> String {
    format!(
        r#"[database]
url = {{ env = "DATABASE_URL" }}
[pipeline]
listen = "127.0.0.1:{port}"
[source.kafka]
group = "{topic}"
[source.kafka.settings]
"bootstrap.servers" = "{brokers}"
[store.files]
kind = "object_store"
url = "file://{copies}"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "uuid" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
grace = "0s"
key_reuse = "forbidden"
topics = ["{topic}"]
targets = [{{ store = "files", key = "{{id}}" }}]
"#,
        copies = copies.display(),
    )
}
