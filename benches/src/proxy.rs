//! What a store is asked, counted on the way to it.
//!
//! Requests are passed on byte for byte, so that their signatures hold. Their heads are read, and their bodies
//! skipped by `content-length`: what has none that can be read breaks the connection, and the count is an error.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Requests by what they are. Names are the ones that [`Kind`] gives.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

/// What a request is, by its method and path.
pub(crate) type Kind = fn(&str, &str) -> &'static str;

/// A proxy before one server. It ends when it is dropped.
pub(crate) struct Proxy {
    url: String,
    counted: Arc<Counted>,
    listening: JoinHandle<()>,
}

#[derive(Default)]
struct Counted {
    counts: Mutex<Counts>,
    is_broken: AtomicBool,
}

impl Proxy {
    /// Before the server at `url`, which is `http://host:port`.
    pub(crate) async fn before(url: &str, kind: Kind) -> Result<Self> {
        let server = url.strip_prefix("http://").context("not an address of plain http")?;
        let server = server.trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let counted = Arc::new(Counted::default());
        let listening = tokio::spawn(listen(listener, server, kind, Arc::clone(&counted)));
        Ok(Self { url, counted, listening })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What was counted since the last call.
    pub(crate) fn take(&self) -> Result<Counts> {
        ensure!(
            !self.counted.is_broken.load(Ordering::Acquire),
            "a request went by that could not be read: nothing is known of what was asked"
        );
        let mut counts = self.counted.counts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *counts))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, server: String, kind: Kind, counted: Arc<Counted>) {
    while let Ok((client, _)) = listener.accept().await {
        let (server, counted) = (server.clone(), Arc::clone(&counted));
        drop(tokio::spawn(async move {
            if let Err(error) = pass(client, &server, kind, &counted).await {
                eprintln!("proxy before {server}: {error:#}");
                counted.is_broken.store(true, Ordering::Release);
            }
        }));
    }
}

/// One connection, until either side ends it.
async fn pass(client: TcpStream, server: &str, kind: Kind, counted: &Counted) -> Result<()> {
    let server = TcpStream::connect(server).await.context("can't reach the server")?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let (asked, mut answered) = client.into_split();
    let (mut answers, asks) = server.into_split();
    let answering = async {
        // Either side may hang up at any time; that is no news.
        drop(tokio::io::copy(&mut answers, &mut answered).await);
    };
    tokio::select! {
        () = answering => Ok(()),
        passed = pass_requests(BufReader::new(asked), asks, kind, counted) => passed,
    }
}

async fn pass_requests(
    mut asked: BufReader<OwnedReadHalf>,
    mut asks: OwnedWriteHalf,
    kind: Kind,
    counted: &Counted,
) -> Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match asked.read_until(b'\n', &mut head).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
        let head_text = std::str::from_utf8(&head).context("a head that is no text")?;
        let length = body_length(head_text)?;
        let mut words = head_text.split(' ');
        let method = words.next().context("no method")?;
        let path = words.next().context("no path")?;
        let kind = kind(method, path);
        {
            let mut counts = counted.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(kind).or_default() += 1;
        }
        let passed = async {
            asks.write_all(&head).await?;
            tokio::io::copy(&mut (&mut asked).take(length), &mut asks).await?;
            asks.flush().await
        };
        if passed.await.is_err() {
            return Ok(());
        }
    }
}

fn body_length(head: &str) -> Result<u64> {
    let mut length = 0;
    for line in head.split("\r\n").skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("a request in chunks: {value}");
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("a content-length that is no number")?;
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every request with the length of its body.
    async fn server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(tokio::spawn(async move {
                    let (read, mut write) = stream.into_split();
                    let mut read = BufReader::new(read);
                    loop {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            if read.read_until(b'\n', &mut head).await.unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        let length = body_length(std::str::from_utf8(&head).unwrap()).unwrap();
                        let mut body = vec![0; usize::try_from(length).unwrap()];
                        read.read_exact(&mut body).await.unwrap();
                        let said = length.to_string();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}",
                            said.len()
                        );
                        write.write_all(answer.as_bytes()).await.unwrap();
                    }
                }));
            }
        }));
        url
    }

    fn kind(method: &str, path: &str) -> &'static str {
        match (method, path) {
            ("POST", "/a?delete=") => "delete",
            ("POST", _) => "post",
            _ => "other",
        }
    }

    #[tokio::test]
    async fn each_request_is_counted_once_and_passed_on_whole() {
        let proxy = Proxy::before(&server().await, kind).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for (path, body) in
            [("a?delete=", "POST /a?delete= HTTP/1.1\r\n\r\n"), ("b", ""), ("a?delete=", "x")]
        {
            let answer = client.post(format!("{}/{path}", proxy.url())).body(body).send();
            assert_eq!(answer.await.unwrap().text().await.unwrap(), body.len().to_string());
        }
        client.get(proxy.url()).send().await.unwrap();
        let counts = proxy.take().unwrap();
        assert_eq!(counts, Counts::from([("delete", 2), ("post", 1), ("other", 1)]));
        assert_eq!(proxy.take().unwrap(), Counts::new());
    }

    #[tokio::test]
    async fn what_can_not_be_counted_is_an_error() {
        let proxy = Proxy::before(&server().await, kind).await.unwrap();
        let mut stream =
            TcpStream::connect(proxy.url().trim_start_matches("http://")).await.unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        // The proxy hangs up.
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(proxy.take().is_err());
    }
}
