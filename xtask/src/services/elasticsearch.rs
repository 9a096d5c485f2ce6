//! One Elasticsearch node from its Maven artifacts, under a small main class of our own.
//!
//! What a distribution has beyond it is not published as artifacts: reindex (`_delete_by_query`),
//! painless, language analysers, ingest, data streams, security.

use super::java;
use super::process::{self, Launch};
use super::state::Server;
use crate::shell;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "9.2.0";

pub(super) fn start(home: &Path, port: u16, transport_port: u16) -> Result<Server> {
    let jars = java::jars("elasticsearch", &java::material("elasticsearch/pom.xml"))?;
    let java = java::find(21, "Elasticsearch")?;
    let built = build(&jars, &java)?;
    let node = home.join("node");
    let data = home.join("data");
    for folder in ["config", "plugins", "logs", "lib/platform/linux-x64"] {
        std::fs::create_dir_all(node.join(folder)).context("can't make the node's folders")?;
    }
    copy(&built.join("modules"), &node.join("modules"))?;
    link_zstd(&node.join("lib/platform/linux-x64/libzstd.so"));
    std::fs::copy(
        java::material("elasticsearch/log4j2.properties"),
        node.join("config/log4j2.properties"),
    )
    .context("can't copy the logging's settings")?;
    std::fs::write(node.join("config/elasticsearch.yml"), settings(&data, port, transport_port))
        .context("can't write the node's settings")?;
    let log = home.join("elasticsearch.log");
    let mut args: Vec<OsString> = OPTIONS.iter().map(OsString::from).collect();
    args.extend(["-cp".into(), class_path(&built, &jars)?, "EsNode".into(), node.clone().into()]);
    let process = Launch {
        name: "elasticsearch",
        program: &java,
        args,
        variables: Vec::new(),
        folder: &node,
        log: log.clone(),
        user: None,
    }
    // Started, and every index has its primary shards.
    .start(|| process::answers(port, "/_cluster/health?wait_for_status=yellow&timeout=1s"))?;
    Ok(Server { process: Some(process), data: Some(data), log: Some(log) })
}

const OPTIONS: &[&str] = &[
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:+ExitOnOutOfMemoryError",
    "-Des.distribution.type=tar",
    "-Des.networkaddress.cache.ttl=60",
    "-Djava.locale.providers=CLDR",
    "-Dfile.encoding=UTF-8",
    "-Dlog4j.shutdownHookEnabled=false",
    "-Dlog4j2.disable.jmx=true",
    "-Dio.netty.noUnsafe=true",
    "-Dio.netty.recycler.maxCapacityPerThread=0",
    "-Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-modules=jdk.incubator.vector",
    "--enable-native-access=ALL-UNNAMED",
];

fn settings(data: &Path, port: u16, transport_port: u16) -> String {
    format!(
        "cluster.name: tombstream\n\
         node.name: node-1\n\
         discovery.type: single-node\n\
         network.host: 127.0.0.1\n\
         http.port: {port}\n\
         transport.port: {transport_port}\n\
         path.data: {}\n\
         cluster.routing.allocation.disk.threshold_enabled: false\n\
         cluster.max_shards_per_node: 5000\n\
         action.destructive_requires_name: false\n",
        data.display()
    )
}

/// Compiles the main class and the module for `GET /`, once for all clones.
fn build(jars: &Path, java: &Path) -> Result<PathBuf> {
    let sources = ["EsNode.java", "RestRootPlugin.java"]
        .map(|name| java::material("elasticsearch").join(name));
    let mut text = jars.display().to_string();
    for source in &sources {
        text.push_str(&std::fs::read_to_string(source).context("can't read the node's source")?);
    }
    let name = format!("elasticsearch-{VERSION}-{}", shell::fingerprint(&text));
    let built = shell::cache()?.join(name);
    shell::locked("elasticsearch", || {
        if built.is_dir() {
            return Ok(());
        }
        let programs = java.parent().context("a Java without a folder")?;
        let javac = programs.join("javac");
        if !javac.is_file() {
            bail!("{} has no javac: Elasticsearch's launcher needs a JDK", programs.display());
        }
        let aside = built.with_extension("new");
        super::remove(&aside)?;
        let root_module = aside.join("modules/rest-root");
        let netty_module = aside.join("modules/transport-netty4");
        for folder in [&root_module, &netty_module, &aside.join("classes")] {
            std::fs::create_dir_all(folder).context("can't make the build's folders")?;
        }
        for (source, classes) in sources.iter().zip(["classes", "root-classes"]) {
            let mut command = Command::new(&javac);
            command.arg("-nowarn").arg("-d").arg(aside.join(classes));
            command.arg("-cp").arg(jars.join("*")).arg(source);
            shell::run_logged(&mut command, &aside.join("javac.log"))?;
        }
        let mut command = Command::new(programs.join("jar"));
        command.arg("--create").arg("--file").arg(root_module.join("rest-root.jar"));
        command.arg("-C").arg(aside.join("root-classes")).arg(".");
        shell::run_logged(&mut command, &aside.join("jar.log"))?;
        for jar in java::list(jars)?.iter().filter(|jar| is_of_netty_module(jar)) {
            let name = jar.file_name().context("a jar without a name")?;
            std::fs::copy(jar, netty_module.join(name)).context("can't copy a jar")?;
        }
        describe(&root_module, "rest-root", "local.restroot.RestRootPlugin")?;
        let netty_class = "org.elasticsearch.transport.netty4.Netty4Plugin";
        describe(&netty_module, "transport-netty4", netty_class)?;
        std::fs::rename(&aside, &built).context("can't move the build into place")
    })?;
    Ok(built)
}

/// These are the module's own: on the class path as well they would be loaded twice.
fn is_of_netty_module(jar: &Path) -> bool {
    let name = jar.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    ["netty-", "transport-netty4-", "elasticsearch-ssl-config-"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn describe(module: &Path, name: &str, class: &str) -> Result<()> {
    let text = format!(
        "name={name}\ndescription={name}\nversion={VERSION}\nelasticsearch.version={VERSION}\n\
         java.version=21\nclassname={class}\n"
    );
    std::fs::write(module.join("plugin-descriptor.properties"), text)
        .context("can't describe a module")
}

fn class_path(built: &Path, jars: &Path) -> Result<OsString> {
    let mut path = built.join("classes").into_os_string();
    for jar in java::list(jars)?.iter().filter(|jar| !is_of_netty_module(jar)) {
        path.push(":");
        path.push(jar);
    }
    Ok(path)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    super::remove(to)?;
    for module in std::fs::read_dir(from).context("can't read the modules")? {
        let module = module?;
        let target = to.join(module.file_name());
        std::fs::create_dir_all(&target).context("can't make a module's folder")?;
        for file in std::fs::read_dir(module.path()).context("can't read a module")? {
            let file = file?;
            std::fs::copy(file.path(), target.join(file.file_name()))
                .context("can't copy a module")?;
        }
    }
    Ok(())
}

/// Elasticsearch compresses with the native zstd; the operating system's serves.
fn link_zstd(link: &Path) {
    let found =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"]
            .map(|folder| Path::new(folder).join("libzstd.so.1"))
            .into_iter()
            .find(|path| path.exists());
    if let Some(found) = found {
        // One from an earlier start does as well.
        std::os::unix::fs::symlink(found, link).ok();
    }
}
