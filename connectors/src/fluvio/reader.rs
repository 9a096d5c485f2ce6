//! The thread that keeps all partitions read.
//!
//! It has a runtime of its own: decoding and unpacking hold up nobody else, and closing can wait for the
//! last commits wherever the source is dropped. Fluvio's client runs its own tasks on threads of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use fluvio::FluvioClusterConfig;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::cluster::{Cluster, Layout};
use super::fault::Fault;
use super::partition::{self, Task};
use super::shared::Shared;
use super::spu::Spu;

/// How often topics and partitions are looked up, which finds those that were made since.
const REFRESH: Duration = Duration::from_secs(10);
/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the last commits may take when reading ends.
const LAST_WAIT: Duration = Duration::from_secs(4);

pub(super) struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: Arc<FluvioClusterConfig>,
    pub(super) consumer: String,
    pub(super) topics: Vec<Arc<str>>,
}

type Key = (Arc<str>, u32);

/// Says that the reader ended, however it ends.
struct End {
    shared: Arc<Shared>,
    done: Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.is_fatal("the Fluvio reader ended".into());
        if self.done.send(()).is_err() {
            debug!("nobody waited for the end of the reader");
        }
    }
}

/// Reads until it is told to stop; then commits what was handed in.
pub(super) fn run(reader: Reader, done: Sender<()>) {
    let end = End { shared: Arc::clone(&reader.shared), done };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(reader.drive()),
        Err(error) => end.shared.is_fatal(format!("no runtime to read in: {error}")),
    }
    drop(end);
}

impl Reader {
    async fn drive(self) {
        let mut stop = self.shared.stop.subscribe();
        let mut controller = None;
        let mut running = JoinSet::new();
        let mut read = HashSet::new();
        let mut missing = Vec::new();
        while !self.shared.is_stopping() {
            let failed = tokio::select! {
                _ = stop.changed() => break,
                looked = self.look(&mut controller, &mut missing, &read) => match looked {
                    Ok(tasks) => {
                        for task in tasks {
                            let key: Key = (Arc::clone(&task.topic), task.partition);
                            read.insert(key.clone());
                            running.spawn(async move { (key, partition::read(task).await) });
                        }
                        false
                    }
                    Err(fault) if read.is_empty() => {
                        self.shared.is_unavailable(fault);
                        controller = None;
                        true
                    }
                    Err(fault) => {
                        warn!(error = fault.chain(), "new partitions can't be looked up");
                        controller = None;
                        true
                    }
                },
            };
            let mut until = Instant::now() + if failed { AGAIN } else { REFRESH };
            loop {
                tokio::select! {
                    _ = stop.changed() => break,
                    () = sleep_until(until) => break,
                    Some(ended) = running.join_next() => {
                        until = until.min(Instant::now() + AGAIN);
                        self.ended(&mut read, ended);
                        // Over a connection that broke unseen, an answer would be waited for in vain.
                        controller = None;
                    }
                }
            }
        }
        let rest = async { while running.join_next().await.is_some() {} };
        if timeout(LAST_WAIT, rest).await.is_err() {
            warn!("the last commits were not answered: what they stand for is read again");
        }
    }

    fn ended(
        &self,
        read: &mut HashSet<Key>,
        ended: Result<(Key, Result<(), Fault>), tokio::task::JoinError>,
    ) {
        match ended {
            Ok((key, result)) => {
                read.remove(&key);
                if let Err(fault) = result {
                    self.shared.is_unavailable(fault);
                }
            }
            Err(error) => self.shared.is_fatal(format!("a partition's reader broke: {error}")),
        }
    }

    /// The partitions that are there and not read.
    async fn look(
        &self,
        controller: &mut Option<Cluster>,
        missing: &mut Vec<Arc<str>>,
        read: &HashSet<Key>,
    ) -> Result<Vec<Task>, Fault> {
        let cluster = match controller {
            Some(cluster) => cluster,
            None => controller.insert(Cluster::connect(&self.cluster).await?),
        };
        let layout = cluster.layout(&self.topics).await?;
        self.say_missing(&layout, missing);
        let mut tasks = Vec::new();
        for (topic, found) in &layout.topics {
            for (partition, leader) in &found.leaders {
                let (Some(leader), Ok(number)) = (leader, i32::try_from(*partition)) else {
                    let what = format!("partition {partition} of {topic}");
                    self.shared.is_unavailable(Fault::broken(what, "it has no leader"));
                    continue;
                };
                if !read.contains(&(Arc::clone(topic), *partition)) {
                    tasks.push(Task {
                        shared: Arc::clone(&self.shared),
                        cluster: Arc::clone(&self.cluster),
                        consumer: self.consumer.clone(),
                        topic: Arc::clone(topic),
                        partition: *partition,
                        number,
                        leader: leader.clone(),
                        committed: None,
                    });
                }
            }
        }
        self.look_up_committed(&layout, &mut tasks).await?;
        Ok(tasks)
    }

    /// Looks up what was committed of partitions that this process did not read before. To start
    /// without knowing would be a silent reset.
    async fn look_up_committed(&self, layout: &Layout, tasks: &mut [Task]) -> Result<(), Fault> {
        let is_new = |task: &Task| {
            let state = self.shared.lock();
            state.assignments.position(&task.topic, task.number).is_none()
        };
        if !tasks.iter().any(is_new) {
            return Ok(());
        }
        let committed = committed(&self.cluster, layout, &self.consumer).await?;
        for task in tasks {
            task.committed = committed.get(&(task.topic.to_string(), task.partition)).copied();
        }
        Ok(())
    }

    fn say_missing(&self, layout: &Layout, missing: &mut Vec<Arc<str>>) {
        let absent = self.topics.iter().filter(|topic| !layout.topics.contains_key(*topic));
        let absent: Vec<Arc<str>> = absent.map(Arc::clone).collect();
        if absent != *missing {
            for topic in &absent {
                warn!(%topic, "a topic does not exist (yet), waiting for it: check `topics` of the \
                               relation if it should be there");
            }
            *missing = absent;
        }
    }
}

/// What `consumer` committed, by topic and partition.
pub(super) async fn committed(
    cluster: &FluvioClusterConfig,
    layout: &Layout,
    consumer: &str,
) -> Result<HashMap<(String, u32), i64>, Fault> {
    let Some(leader) = &layout.offsets else {
        let why = "the cluster has no topic \"consumer-offset\", or it has no leader: no SPU is \
                   registered, or Fluvio is older than 0.11.6";
        return Err(Fault::broken("consumer offsets", why));
    };
    Spu::connect(cluster, leader).await?.committed(consumer).await
}
