//! One Apache Kafka broker (KRaft: broker and controller in one) from its Maven artifacts.

use super::java;
use super::process::Launch;
use super::state::Server;
use crate::shell;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Any 16 bytes in base64url do; the cluster is ours alone.
const CLUSTER: &str = "dG9tYnN0cmVhbS10ZXN0cw";

/// The jars of Kafka, of its tools and of the Connect worker.
pub(super) fn jars() -> Result<PathBuf> {
    java::jars("kafka", &java::material("kafka/pom.xml"))
}

/// What every Java process of Kafka is given.
pub(super) fn java_options(jars: &Path) -> Vec<OsString> {
    let logging = java::material("kafka/log4j2.xml");
    vec![
        "-Xms128m".into(),
        "-Xmx512m".into(),
        "-XX:+UseG1GC".into(),
        "-XX:+ExitOnOutOfMemoryError".into(),
        format!("-Dlog4j2.configurationFile={}", logging.display()).into(),
        "-cp".into(),
        jars.join("*").into(),
    ]
}

pub(super) fn start(home: &Path, port: u16, controller_port: u16) -> Result<Server> {
    let jars = jars()?;
    let java = java::find(17, "Kafka")?;
    let data = home.join("data");
    let properties = home.join("server.properties");
    std::fs::write(&properties, settings(&data, port, controller_port))
        .context("can't write Kafka's settings")?;
    if !data.join("meta.properties").is_file() {
        let mut command = Command::new(&java);
        command
            .args(java_options(&jars))
            .args(["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", CLUSTER, "-c"])
            .arg(&properties);
        shell::run_logged(&mut command, &home.join("format.log"))?;
    }
    let log = home.join("kafka.log");
    let mut args = java_options(&jars);
    args.extend(["kafka.Kafka".into(), properties.into()]);
    let process = Launch {
        name: "kafka",
        program: &java,
        args,
        variables: Vec::new(),
        folder: home,
        log: log.clone(),
        user: None,
    }
    .start(|| shell::tail(&log, 50).contains("Kafka Server started"))?;
    Ok(Server { process: Some(process), data: Some(data), log: Some(log) })
}

fn settings(data: &Path, port: u16, controller_port: u16) -> String {
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         log.dirs={}\n\
         num.partitions=1\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         share.coordinator.state.topic.num.partitions=4\n\
         group.initial.rebalance.delay.ms=0\n\
         log.cleaner.dedupe.buffer.size=16777216\n",
        data.display()
    )
}
