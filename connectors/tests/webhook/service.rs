//! A service as somebody would write one: it knows the secret, deletes its things, and answers item by
//! item. A test may have it answer otherwise.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::stream;
use hmac::{Hmac, Mac as _};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub(crate) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A request that was signed, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) message: String,
    pub(crate) body: Value,
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A whole answer: status, headers, body.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// So many bytes are promised, and the wire is cut behind these.
    Cut(usize, Vec<u8>),
    /// It does not end.
    Endless,
    /// It does not begin.
    Hang,
}

impl Reply {
    pub(crate) fn json(body: &Value) -> Self {
        Self::Whole(200, Vec::new(), body.to_string().into_bytes())
    }

    pub(crate) fn status(status: u16, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Self::Whole(status, headers.collect(), b"no".to_vec())
    }
}

/// Makes another answer out of the honest one.
type Twist = dyn Fn(&Asked, Value) -> Reply + Send + Sync;

/// What the service has and heard.
pub(crate) struct State {
    pub(crate) secrets: Mutex<Vec<String>>,
    pub(crate) things: Mutex<HashSet<String>>,
    pub(crate) heard: Mutex<Vec<Asked>>,
    twist: Mutex<Arc<Twist>>,
}

/// The service; it ends with this value.
pub(crate) struct Service {
    pub(crate) url: String,
    pub(crate) state: Arc<State>,
    task: JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    /// Over TLS, for `localhost`.
    pub(crate) async fn start_tls(config: rustls::ServerConfig) -> Self {
        Self::serve(Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match tls {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://127.0.0.1:{port}"),
        };
        let state = Arc::new(State {
            secrets: Mutex::new(vec![SECRET.to_owned()]),
            things: Mutex::default(),
            heard: Mutex::default(),
            twist: Mutex::new(Arc::new(|_, honest| Reply::json(&honest))),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request| answer(Arc::clone(&state), request));
                    let server = http1::Builder::new();
                    // A client that hangs up, or does not trust us, is no failure of a test.
                    let ended = match tls {
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => {
                                server.serve_connection(TokioIo::new(stream), answer).await
                            }
                            Err(_) => Ok(()),
                        },
                        None => server.serve_connection(TokioIo::new(stream), answer).await,
                    };
                    if let Err(error) = ended {
                        eprintln!("service: {error}");
                    }
                });
            }
        });
        Self { url, state, task }
    }

    pub(crate) fn twist(&self, twist: impl Fn(&Asked, Value) -> Reply + Send + Sync + 'static) {
        *self.state.twist.lock().unwrap() = Arc::new(twist);
    }

    pub(crate) fn honest(&self) {
        self.twist(|_, honest| Reply::json(&honest));
    }

    pub(crate) fn put(&self, id: &str) {
        self.state.things.lock().unwrap().insert(id.to_owned());
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.state.things.lock().unwrap().contains(id)
    }

    pub(crate) fn heard(&self) -> Vec<Asked> {
        self.state.heard.lock().unwrap().clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    /// As Standard Webhooks say: whoever knows one of the secrets signed these very bytes.
    fn is_signed(&self, headers: &hyper::HeaderMap, body: &[u8]) -> bool {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let (Some(id), Some(at), Some(signed)) =
            (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"))
        else {
            return false;
        };
        let age = chrono::Utc::now().timestamp() - at.parse::<i64>().unwrap_or_default();
        let secrets = self.secrets.lock().unwrap();
        let known = secrets.iter().any(|secret| {
            let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
            signed.split(' ').filter_map(|part| part.strip_prefix("v1,")).any(|part| {
                let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
                mac.update(format!("{id}.{at}.").as_bytes());
                mac.update(body);
                mac.verify_slice(&BASE64_STANDARD.decode(part).unwrap()).is_ok()
            })
        });
        known && age.abs() < 300
    }

    /// Deletes, or looks, and says so.
    fn act(&self, asked: &Asked) -> Value {
        let mut things = self.things.lock().unwrap();
        let items = asked.body["deletions"].as_array().unwrap().iter().map(|item| {
            let thing = item["address"]["id"].as_str().unwrap();
            match asked.body["action"].as_str().unwrap() {
                "destroy" => {
                    let verdict = if things.remove(thing) { "deleted" } else { "absent" };
                    json!({"id": item["id"], "verdict": verdict})
                }
                "look" => {
                    let presence = if things.contains(thing) { "present" } else { "absent" };
                    json!({"id": item["id"], "presence": presence})
                }
                other => panic!("{other}"),
            }
        });
        json!({"results": items.collect::<Vec<_>>()})
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let reply = if head.method == "POST" && state.is_signed(&head.headers, &body) {
        let asked = Asked {
            path: head.uri.path().to_owned(),
            message: head.headers["webhook-id"].to_str().unwrap().to_owned(),
            body: serde_json::from_slice(&body).unwrap(),
        };
        let honest = state.act(&asked);
        state.heard.lock().unwrap().push(asked.clone());
        let twist = Arc::clone(&*state.twist.lock().unwrap());
        twist(&asked, honest)
    } else {
        Reply::status(401, &[])
    };
    let cut = || std::io::Error::other("cut");
    let whole =
        |body: Vec<u8>| Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let response = match reply {
        Reply::Whole(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(whole(body))
        }
        Reply::Cut(promised, body) => {
            let parts = [Ok(Frame::data(Bytes::from(body))), Err(cut())];
            let body = BodyExt::boxed(StreamBody::new(stream::iter(parts)));
            Response::builder().header("content-length", promised).body(body)
        }
        Reply::Endless => {
            let part = || Ok(Frame::data(Bytes::from_static(&[b' '; 4096])));
            let parts = stream::repeat_with(part);
            Response::builder().body(BodyExt::boxed(StreamBody::new(parts)))
        }
        Reply::Hang => std::future::pending().await,
    };
    Ok(response.unwrap())
}
