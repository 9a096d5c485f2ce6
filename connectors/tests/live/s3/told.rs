//! A server whose answers a test writes itself: what no real one here can be made to say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tombstream_connectors::s3::{S3Config, S3Sink};

/// A request, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    /// The keys that a `DeleteObjects` names.
    pub(crate) fn keys(&self) -> Vec<&str> {
        let parts = self.body.split("<Key>").skip(1);
        parts.map(|part| part.split("</Key>").next().unwrap()).collect()
    }
}

/// A status and a body.
pub(crate) type Answer = (u16, String);

/// The server. It ends with the test's runtime.
pub(crate) struct Told {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Told {
    /// Answers the first questions of every sink by itself (no versions, no locks, no uploads, every key
    /// is there) unless `answer` does.
    pub(crate) async fn start(
        answer: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let told = Self { endpoint, requests: Arc::clone(&requests) };
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, requests) = (Arc::clone(&answer), Arc::clone(&requests));
                tokio::spawn(async move { serve(stream, &*answer, &requests).await });
            }
        });
        told
    }

    pub(crate) fn sink(&self, change: impl FnOnce(&mut S3Config)) -> S3Sink {
        let mut config = super::server::config("documents");
        config.endpoint = Some(self.endpoint.clone());
        change(&mut config);
        S3Sink::new(config).unwrap()
    }

    /// What came so far with this method.
    pub(crate) fn with(&self, method: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.method == method).cloned().collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(&Request) -> Option<Answer> + Send + Sync),
    requests: &Mutex<Vec<Request>>,
) {
    while let Some(request) = read(&mut stream).await {
        requests.lock().unwrap().push(request.clone());
        let (status, body) = answer(&request).unwrap_or_else(|| usual(&request));
        let head = format!(
            "HTTP/1.1 {status} S\r\netag: \"e1\"\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let body = if request.method == "HEAD" { "" } else { &body };
        if stream.write_all((head + body).as_bytes()).await.is_err() {
            return;
        }
    }
}

fn usual(request: &Request) -> Answer {
    let has = |part: &str| request.target.contains(part);
    let body = match request.method.as_str() {
        "POST" => deleted(&request.keys()),
        "GET" if has("versioning=") => "<VersioningConfiguration/>".into(),
        "GET" if has("uploads=") => listing("ListMultipartUploadsResult", "Bucket", ""),
        "GET" if has("versions=") => listing("ListVersionsResult", "Name", ""),
        "GET" if has("list-type=") => listing("ListBucketResult", "Name", ""),
        "GET" => return (404, error("ObjectLockConfigurationNotFoundError", "m")),
        "DELETE" => return (204, String::new()),
        _ => String::new(),
    };
    (200, body)
}

pub(crate) fn deleted(keys: &[&str]) -> String {
    let entry = |key: &&str| format!("<Deleted><Key>{key}</Key></Deleted>");
    format!("<DeleteResult>{}</DeleteResult>", keys.iter().map(entry).collect::<String>())
}

pub(crate) fn error(code: &str, message: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>")
}

pub(crate) fn listing(root: &str, bucket_in: &str, entries: &str) -> String {
    format!(
        "<{root}><{bucket_in}>documents</{bucket_in}><IsTruncated>false</IsTruncated>{entries}</{root}>"
    )
}

pub(crate) fn versions(entries: &[(&str, &str)]) -> String {
    let entry = |(key, id): &(&str, &str)| {
        format!(
            "<Version><Key>{key}</Key><VersionId>{id}</VersionId><IsLatest>true</IsLatest></Version>"
        )
    };
    listing("ListVersionsResult", "Name", &entries.iter().map(entry).collect::<String>())
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut lines = head.lines();
            let mut first = lines.next()?.split(' ').map(str::to_owned);
            let headers: HashMap<String, String> = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect();
            let length: usize = headers.get("content-length").map_or(0, |it| it.parse().unwrap());
            while bytes.len() < end + 4 + length {
                if stream.read_buf(&mut bytes).await.ok()? == 0 {
                    return None;
                }
            }
            let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
            return Some(Request { method: first.next()?, target: first.next()?, headers, body });
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
