//! One Kafka Connect worker with Debezium's connector for Postgres.
//!
//! Its state is in Kafka's topics: it has no data of its own to wipe.

use super::process::{self, Launch};
use super::state::Server;
use super::{java, kafka};
use anyhow::{Context, Result};
use std::path::Path;

pub(super) fn start(home: &Path, port: u16, kafka_port: u16) -> Result<Server> {
    let jars = kafka::jars()?;
    let plugin = java::jars("debezium-postgres", &java::material("debezium/pom.xml"))?;
    let java = java::find(17, "Kafka Connect")?;
    let properties = home.join("connect.properties");
    std::fs::write(&properties, settings(&plugin, port, kafka_port))
        .context("can't write Connect's settings")?;
    let log = home.join("connect.log");
    let mut args = kafka::java_options(&jars);
    args.extend([
        "org.apache.kafka.connect.cli.ConnectDistributed".into(),
        properties.into_os_string(),
    ]);
    let process = Launch {
        name: "connect",
        program: &java,
        args,
        variables: Vec::new(),
        folder: home,
        log: log.clone(),
        user: None,
    }
    // 200 only when the worker has joined its group and read its topics.
    .start(|| process::answers(port, "/health"))?;
    Ok(Server { process: Some(process), data: None, log: Some(log) })
}

fn settings(plugin: &Path, port: u16, kafka_port: u16) -> String {
    // The jars of one plug-in are a folder below the path.
    let plugins = plugin.parent().unwrap_or(plugin);
    format!(
        "bootstrap.servers=127.0.0.1:{kafka_port}\n\
         group.id=connect\n\
         listeners=http://127.0.0.1:{port}\n\
         rest.advertised.host.name=127.0.0.1\n\
         rest.advertised.port={port}\n\
         key.converter=org.apache.kafka.connect.json.JsonConverter\n\
         value.converter=org.apache.kafka.connect.json.JsonConverter\n\
         key.converter.schemas.enable=false\n\
         value.converter.schemas.enable=false\n\
         config.storage.topic=connect-configs\n\
         config.storage.replication.factor=1\n\
         offset.storage.topic=connect-offsets\n\
         offset.storage.replication.factor=1\n\
         offset.storage.partitions=1\n\
         status.storage.topic=connect-status\n\
         status.storage.replication.factor=1\n\
         status.storage.partitions=1\n\
         offset.flush.interval.ms=1000\n\
         scheduled.rebalance.max.delay.ms=0\n\
         plugin.path={}\n\
         plugin.discovery=service_load\n",
        plugins.display()
    )
}
