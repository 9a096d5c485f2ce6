//! A wire to the real server that is cut once the client has said a word: the server still hears it, and
//! its answer is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The wire; it ends with this value.
pub(crate) struct Proxy {
    pub(crate) url: String,
    cuts: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(url: &str, word: &'static str) -> Self {
        let (user, rest) = url.split_once('@').unwrap();
        let (server, database) = rest.split_once('/').unwrap();
        let (server, listener) =
            (server.to_owned(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("{user}@{}/{database}", listener.local_addr().unwrap());
        let cuts = Arc::new(AtomicBool::new(true));
        let shared = Arc::clone(&cuts);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(carry(client, server, word, Arc::clone(&shared)));
            }
        });
        Self { url, cuts, task }
    }

    /// No wire is cut any more.
    pub(crate) fn mend(&self) {
        self.cuts.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, word: &str, cuts: Arc<AtomicBool>) {
    let (mut said, mut told) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut said) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if server.write_all(&said[..count]).await.is_err() {
                        return;
                    }
                    let heard = said[..count].windows(word.len()).any(|it| it == word.as_bytes());
                    if heard && cuts.load(Ordering::SeqCst) {
                        // It has heard it when it answers, which nobody is told.
                        drop(server.read(&mut told).await);
                        return;
                    }
                }
            },
            read = server.read(&mut told) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    if client.write_all(&told[..count]).await.is_err() {
                        return;
                    }
                }
            },
        }
    }
}
