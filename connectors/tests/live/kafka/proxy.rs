//! Stands between a client and the real broker, and can take it away.
//!
//! Clients go where the broker's metadata says, so its port is replaced by this one's in each answer.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Everything passes.
    Open,
    /// Connections are cut.
    Away,
    /// What is sent arrives; the answer to it is lost, and the connection cut.
    Deaf,
}

/// The proxy; it ends with this value.
pub(crate) struct Proxy {
    pub(crate) address: String,
    mood: watch::Sender<Mood>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(broker: &str) -> Self {
        let broker: std::net::SocketAddr = broker.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mood = watch::Sender::new(Mood::Open);
        let moods = mood.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (moods, mut changed) = (moods.clone(), moods.subscribe());
                tokio::spawn(async move {
                    if *moods.borrow() == Mood::Away {
                        return;
                    }
                    let Ok(server) = TcpStream::connect(broker).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let ports = (broker.port(), address.port());
                    tokio::select! {
                        () = copy(from_client, to_server) => {}
                        () = answers(from_server, to_client, ports, &moods) => {}
                        _ = changed.wait_for(|mood| *mood == Mood::Away) => {}
                    }
                });
            }
        });
        Self { address: address.to_string(), mood, task }
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    // A connection that ends is what this is for.
    tokio::io::copy(&mut from, &mut to).await.ok();
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (theirs, ours): (u16, u16),
    mood: &watch::Sender<Mood>,
) {
    let host = b"127.0.0.1";
    let port = |port: u16| [&host[..], &u32::from(port).to_be_bytes()].concat();
    let (theirs, ours) = (Arc::<[u8]>::from(port(theirs)), port(ours));
    while let Ok(length) = from.read_u32().await {
        let mut frame = vec![0; length as usize];
        if from.read_exact(&mut frame).await.is_err() || *mood.borrow() == Mood::Deaf {
            return;
        }
        let places: Vec<usize> = (0..frame.len().saturating_sub(theirs.len() - 1))
            .filter(|at| frame[*at..].starts_with(&theirs))
            .collect();
        for at in places {
            frame[at..at + ours.len()].copy_from_slice(&ours);
        }
        if to.write_u32(length).await.is_err() || to.write_all(&frame).await.is_err() {
            return;
        }
    }
}
