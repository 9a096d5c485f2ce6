//! A store's own door, at which its visitors are counted: what asks it to destroy something, and what does not.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The first lines of requests that destroy: of S3, one key or many; of Elasticsearch.
const DESTRUCTIVE: [&[u8]; 4] = [b"?delete", b"DELETE /", b"_bulk", b"_delete_by_query"];

/// Bytes pass as they are; only the first lines of requests are looked at.
pub(crate) struct Door {
    pub(crate) url: String,
    destructive: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

impl Door {
    /// A door before the server at `url`.
    pub(crate) async fn before(url: &str) -> Result<Self> {
        let server = url.strip_prefix("http://").context("a plain server")?.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let door = Self {
            url: format!("http://{}", listener.local_addr()?),
            destructive: Arc::default(),
            requests: Arc::default(),
        };
        let counts = (Arc::clone(&door.destructive), Arc::clone(&door.requests));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, counts) = (server.clone(), counts.clone());
                tokio::spawn(async move {
                    // A connection that breaks is its client's affair.
                    drop(pass(client, &server, &counts).await);
                });
            }
        });
        Ok(door)
    }

    pub(crate) fn destructive(&self) -> u64 {
        self.destructive.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn pass(
    mut client: TcpStream,
    server: &str,
    (destructive, requests): &(Arc<AtomicU64>, Arc<AtomicU64>),
) -> Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (mut from_server, mut to_server) = server.split();
    let (mut from_client, mut to_client) = client.split();
    let up = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let count = from_client.read(&mut bytes).await?;
            if count == 0 {
                to_server.shutdown().await?;
                return anyhow::Ok(());
            }
            // A request begins a packet: its client waits for the answer before it sends the next.
            let line = bytes[..count].split(|byte| *byte == b'\n').next().unwrap_or_default();
            if line.ends_with(b" HTTP/1.1\r") {
                requests.fetch_add(1, Ordering::SeqCst);
                let destroys = DESTRUCTIVE
                    .iter()
                    .any(|what| line.windows(what.len()).any(|part| part == *what))
                    && !line.ends_with(b"_pit HTTP/1.1\r");
                destructive.fetch_add(u64::from(destroys), Ordering::SeqCst);
            }
            to_server.write_all(&bytes[..count]).await?;
        }
    };
    let down = tokio::io::copy(&mut from_server, &mut to_client);
    tokio::select! {
        ended = up => ended?,
        ended = down => drop(ended?),
    }
    Ok(())
}
