//! A server that speaks just enough S3 to answer wrongly.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What a delete is met with.
#[derive(Debug, Clone)]
pub(crate) enum Reaction {
    Answer {
        status: u16,
        body: String,
    },
    /// The connection ends before the answer's head.
    CutHead,
    /// The answer promises more than comes.
    CutBody,
    /// Nothing comes.
    Hang,
}

#[derive(Debug)]
struct State {
    reaction: Reaction,
    head_status: u16,
    head_wait: Duration,
    keys: Vec<String>,
    lists_broken: bool,
}

/// The server. It ends with the test's runtime.
pub(crate) struct Faulty {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
    deletes: Arc<AtomicUsize>,
}

impl Faulty {
    /// Answers each HEAD with 200, listings with no keys, and deletes with `reaction`.
    pub(crate) async fn start(reaction: Reaction) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            reaction,
            head_status: 200,
            head_wait: Duration::ZERO,
            keys: vec![],
            lists_broken: false,
        }));
        let deletes = Arc::new(AtomicUsize::new(0));
        let faulty = Self { endpoint, state: Arc::clone(&state), deletes: Arc::clone(&deletes) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&state), Arc::clone(&deletes)));
            }
        });
        faulty
    }

    pub(crate) fn deletes(&self) -> usize {
        self.deletes.load(Ordering::SeqCst)
    }

    pub(crate) fn slow_heads(&self, wait: Duration) {
        self.state.lock().unwrap().head_wait = wait;
    }

    pub(crate) fn heads(&self, status: u16) {
        self.state.lock().unwrap().head_status = status;
    }

    pub(crate) fn list(&self, keys: &[&str]) {
        self.state.lock().unwrap().keys = keys.iter().map(|key| (*key).to_owned()).collect();
    }

    pub(crate) fn break_lists(&self) {
        self.state.lock().unwrap().lists_broken = true;
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, deletes: Arc<AtomicUsize>) {
    while let Some(line) = read_request(&mut stream).await {
        let (reaction, wait) = {
            let state = state.lock().unwrap();
            if line.starts_with("HEAD") {
                let answer = Reaction::Answer { status: state.head_status, body: String::new() };
                (answer, state.head_wait)
            } else if line.starts_with("POST") {
                deletes.fetch_add(1, Ordering::SeqCst);
                (state.reaction.clone(), Duration::ZERO)
            } else if line.contains("versioning=") {
                let body = "<VersioningConfiguration/>".to_owned();
                (Reaction::Answer { status: 200, body }, Duration::ZERO)
            } else if line.contains("uploads=") {
                let body =
                    "<ListMultipartUploadsResult><Bucket>documents</Bucket><IsTruncated>false\
                            </IsTruncated></ListMultipartUploadsResult>"
                        .to_owned();
                (Reaction::Answer { status: 200, body }, Duration::ZERO)
            } else if state.lists_broken {
                let body = "<html>not found</html>".to_owned();
                (Reaction::Answer { status: 404, body }, Duration::ZERO)
            } else {
                let entry = |key: &String| format!("<Contents><Key>{key}</Key></Contents>");
                let entries: String = state.keys.iter().map(entry).collect();
                let body = format!(
                    "<ListBucketResult><Name>documents</Name><IsTruncated>false</IsTruncated>\
                     {entries}</ListBucketResult>"
                );
                (Reaction::Answer { status: 200, body }, Duration::ZERO)
            }
        };
        tokio::time::sleep(wait).await;
        let (text, more) = match reaction {
            Reaction::Answer { status, body } => {
                let head = format!("HTTP/1.1 {status} S\r\nretry-after: 7\r\ncontent-length: ");
                (format!("{head}{}\r\n\r\n{body}", body.len()), true)
            }
            Reaction::CutHead => ("HTTP/1.1 200 O".to_owned(), false),
            Reaction::CutBody => {
                let body = "<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>";
                (format!("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{body}"), false)
            }
            Reaction::Hang => std::future::pending().await,
        };
        if stream.write_all(text.as_bytes()).await.is_err() || !more {
            return;
        }
    }
}

/// Reads a whole request, and gives its first line.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some(head) = text.find("\r\n\r\n") {
            let lower = text[..head].to_lowercase();
            let length = lower.split("content-length: ").nth(1);
            let length: usize =
                length.map_or(0, |rest| rest.split("\r\n").next().unwrap().trim().parse().unwrap());
            if bytes.len() >= head + 4 + length {
                return Some(text.lines().next().unwrap().to_owned());
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
