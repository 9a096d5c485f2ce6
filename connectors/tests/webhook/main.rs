//! The webhook sink against a real server, honest and not.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod service;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use service::{Reply, SECRET, Service};
use tokio::net::TcpListener;
use tombstream_connectors::Secret;
use tombstream_connectors::webhook::{WebhookConfig, WebhookSink};
use tombstream_model::{
    Address, DeletionId, Fence, Outcome, Presence, Sink, SinkError, StoreId, Target, Verdict,
};
use tombstream_testing::conformance::sink::{self as conformance, SinkFixture};

fn config(service: &Service) -> WebhookConfig {
    let url = format!("{}/erase", service.url);
    let mut config = WebhookConfig::new(url, "contacts", Secret::new(SECRET));
    config.look_url = Some(format!("{}/look", service.url));
    config.store = "crm".to_owned();
    config
}

fn sink(service: &Service) -> WebhookSink {
    WebhookSink::new(config(service)).unwrap()
}

fn item(id: &str) -> Target {
    Target {
        deletion: DeletionId(17),
        store: StoreId(0),
        address: Address::Item { collection: Arc::from("contacts"), id: id.to_owned() },
        fence: Fence { token: 3, until: Instant::now() + Duration::from_secs(300) },
        lsn: None,
    }
}

fn verdicts(outcomes: &[Outcome]) -> Vec<Verdict> {
    outcomes.iter().map(|outcome| outcome.verdict).collect()
}

struct Things {
    service: Service,
    sink: WebhookSink,
}

impl SinkFixture for Things {
    type Sink = WebhookSink;

    fn sink(&self) -> &Self::Sink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        self.service.put(name);
        item(name)
    }

    async fn never(&self, name: &str) -> Target {
        item(name)
    }

    async fn exists(&self, target: &Target) -> bool {
        let Address::Item { id, .. } = &target.address else { panic!("{target:?}") };
        self.service.has(id)
    }
}

#[tokio::test]
async fn things_conform() {
    let service = Service::start().await;
    let fixture = Things { sink: sink(&service), service };
    conformance::all(&fixture).await;
}

/// The secret is known, the certificate is one of the authority's, and nobody else is believed.
#[tokio::test]
async fn things_behind_tls_conform_and_another_authority_is_not_believed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/live/tls");
    let chain = CertificateDer::from_pem_file(format!("{folder}/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(format!("{folder}/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider);
    let tls = tls.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let service = Service::start_tls(tls.with_single_cert(vec![chain], key).unwrap()).await;
    service.put("a");
    let error = sink(&service).destroy(&[item("a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    assert!(service.has("a") && service.heard().is_empty());
    let mut config = config(&service);
    config.ca_file = Some(format!("{folder}/ca.pem").into());
    let fixture = Things { sink: WebhookSink::new(config).unwrap(), service };
    conformance::all(&fixture).await;
}

#[tokio::test]
async fn a_request_names_what_is_asked_and_is_signed() {
    let service = Service::start().await;
    service.put("7/42");
    let outcomes = sink(&service).destroy(&[item("7/42"), item("\"\n🪦")]).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Deleted, Verdict::Absent]);
    let heard = service.heard().remove(0);
    assert_eq!(heard.path, "/erase");
    let first = &heard.body["deletions"][0];
    let address = json!({"kind": "item", "collection": "contacts", "id": "7/42"});
    let expected = json!({"id": first["id"], "deletion": 17, "store": "crm", "address": address});
    assert_eq!(*first, expected);
    assert!(first["id"].as_str().unwrap().starts_with("17.3."), "{first}");
    assert_eq!(heard.body["action"], "destroy");
    assert_eq!(heard.body["deletions"][1]["address"]["id"], "\"\n🪦", "byte for byte");
}

/// The same request has the same names, so that a service knows it; another claim has others.
#[tokio::test]
async fn a_request_that_is_repeated_has_the_names_it_had() {
    let service = Service::start().await;
    let sink = sink(&service);
    let batch = [item("a"), item("b")];
    let mut later = batch.clone();
    later.iter_mut().for_each(|target| target.fence.token = 4);
    for batch in [&batch[..], &batch, &later, &batch[..1]] {
        sink.destroy(batch).await.unwrap();
    }
    let heard = service.heard();
    let names = |at: usize| -> Vec<Value> {
        let items = heard[at].body["deletions"].as_array().unwrap();
        items.iter().map(|item| item["id"].clone()).collect()
    };
    assert_eq!((&heard[0].message, names(0)), (&heard[1].message, names(1)));
    assert_ne!(names(0)[0], names(0)[1]);
    assert_ne!(heard[0].message, heard[2].message, "another claim");
    assert!(names(2).iter().all(|name| !names(0).contains(name)));
    assert_ne!(heard[0].message, heard[3].message, "another batch");
    assert_eq!(names(3)[0], names(0)[0], "of the same item");
    // A look is not the destroy that was asked before.
    sink.look(&batch).await.unwrap();
    let look = service.heard().pop().unwrap();
    assert!(look.path == "/look" && look.message != heard[0].message);
}

#[tokio::test]
async fn a_secret_is_exchanged_without_a_gap() {
    let service = Service::start().await;
    let new = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let with = |secrets: &[&str]| {
        let mut config = config(&service);
        config.secrets = secrets.iter().copied().map(Secret::new).collect();
        WebhookSink::new(config).unwrap()
    };
    let (old_alone, both, new_alone) = (with(&[SECRET]), with(&[new, SECRET]), with(&[new]));
    old_alone.destroy(&[item("a")]).await.unwrap();
    both.destroy(&[item("a")]).await.unwrap();
    *service.state.secrets.lock().unwrap() = vec![new.to_owned()];
    both.destroy(&[item("a")]).await.unwrap();
    new_alone.destroy(&[item("a")]).await.unwrap();
    let error = old_alone.destroy(&[item("a")]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Denied(said) if said.contains("secret")), "{error}");
    let error = old_alone.check().await.unwrap_err();
    assert!(matches!(error, SinkError::Denied(_)), "{error}");
    assert!(both.check().await.unwrap().looks);
}

#[tokio::test]
async fn what_is_no_address_of_this_service_is_never_sent() {
    let service = Service::start().await;
    let mut other = item("a");
    other.address = Address::Item { collection: Arc::from("accounts"), id: "a".to_owned() };
    let mut object = item("a");
    object.address = Address::Object { bucket: "contacts".into(), key: "a".to_owned() };
    let batch = [other, object, item("")];
    let outcomes = sink(&service).destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Refused; 3]);
    assert_eq!(sink(&service).look(&batch).await.unwrap(), [Presence::Unknown; 3]);
    assert_eq!(service.heard().len(), 0);
}

#[tokio::test]
async fn without_a_look_url_nothing_is_told_of_what_is_there() {
    let service = Service::start().await;
    let mut config = config(&service);
    config.look_url = None;
    let sink = WebhookSink::new(config).unwrap();
    assert_eq!(sink.look(&[item("a")]).await.unwrap(), [Presence::Unknown]);
    assert!(!sink.check().await.unwrap().looks);
    assert_eq!(service.heard().len(), 1, "the check alone");
}

#[tokio::test]
async fn an_answer_is_taken_item_by_item() {
    let service = Service::start().await;
    service.twist(|_, honest| {
        let id = |at: usize| honest["results"][at]["id"].clone();
        Reply::json(&json!({"results": [
            {"id": id(4), "verdict": "superseded"},
            {"id": id(3), "verdict": "refused", "reason": "legal_hold"},
            {"id": id(2), "verdict": "busy", "retry_after": 9},
            {"id": id(1), "verdict": "absent"},
            {"id": id(0), "verdict": "deleted"},
        ]}))
    });
    let batch: Vec<Target> = ["a", "b", "c", "d", "e", "f"].into_iter().map(item).collect();
    let outcomes = sink(&service).destroy(&batch).await.unwrap();
    let expected = [
        Verdict::Deleted,
        Verdict::Absent,
        Verdict::Busy,
        Verdict::Refused,
        Verdict::Superseded,
        Verdict::Unknown, // Left out.
    ];
    assert_eq!(verdicts(&outcomes), expected);
    assert_eq!(outcomes[2].retry_after, Some(Duration::from_secs(9)));
    assert_eq!(outcomes[3].said, "the service refuses: legal_hold");
}

/// S6, F27, F29: left out, told twice, another request's, cut, no JSON, accepted and not done.
#[tokio::test]
async fn no_wrong_answer_is_an_ack() {
    let service = Service::start().await;
    let sink = sink(&service);
    let batch = [item("a"), item("b")];
    let results = |honest: &Value| honest["results"].as_array().unwrap().clone();
    service.twist(move |_, honest| Reply::json(&json!({"results": [results(&honest)[1]]})));
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Unknown, Verdict::Absent]);
    service.twist(move |_, honest| {
        let both = results(&honest);
        Reply::json(&json!({"results": [both[0], both[1], both[0]]}))
    });
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Unknown, Verdict::Absent]);
    // Swapped: each is given the other's answer.
    service
        .twist(|_, _| Reply::json(&json!({"results": [{"id": "18.1.x", "verdict": "deleted"}]})));
    assert_eq!(verdicts(&sink.destroy(&batch).await.unwrap()), [Verdict::Unknown; 2]);
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Unknown; 2]);
    let whole =
        |status: u16, body: &str| Reply::Whole(status, Vec::new(), body.as_bytes().to_vec());
    let cut = |_: &service::Asked, honest: Value| {
        let body = honest.to_string().into_bytes();
        Reply::Cut(body.len() + 1, body)
    };
    service.twist(cut);
    let error = sink.destroy(&batch).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    let twists: [fn(Value) -> (u16, String); 4] = [
        |_| (200, "<html>deleted</html>".to_owned()),
        |honest| (200, honest.to_string().split_at(20).0.to_owned()),
        |honest| (202, honest.to_string()),
        |_| (204, String::new()),
    ];
    for twist in twists {
        service.twist(move |_, honest| {
            let (status, body) = twist(honest);
            whole(status, &body)
        });
        let error = sink.destroy(&batch).await.unwrap_err();
        assert!(matches!(error, SinkError::Protocol(_)), "{error}");
        assert!(sink.look(&batch).await.is_err());
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read_to_its_end() {
    let service = Service::start().await;
    service.twist(|_, _| Reply::Endless);
    let error = sink(&service).destroy(&[item("a")]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Protocol(said) if said.contains("1048576")), "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (service, other) = (Service::start().await, Service::start().await);
    let there = format!("{}/erase", other.url);
    for status in [301, 302, 307, 308] {
        let there = there.clone();
        service.twist(move |_, _| Reply::status(status, &[("location", &there)]));
        let error = sink(&service).destroy(&[item("a")]).await.unwrap_err();
        assert!(
            matches!(&error, SinkError::Protocol(said) if said.contains("redirect")),
            "{error}"
        );
    }
    assert_eq!(other.heard().len(), 0);
}

#[tokio::test]
async fn a_status_has_its_error() {
    let service = Service::start().await;
    let sink = sink(&service);
    for (status, after) in [(429, "7"), (503, "7")] {
        service.twist(move |_, _| Reply::status(status, &[("retry-after", after)]));
        let error = sink.destroy(&[item("a")]).await.unwrap_err();
        let seven = Some(Duration::from_secs(7));
        assert!(matches!(error, SinkError::Throttled { retry_after } if retry_after == seven));
    }
    type Is = fn(&SinkError) -> bool;
    let is: [(u16, Is); 5] = [
        (429, |error| matches!(error, SinkError::Throttled { retry_after: None })),
        (503, |error| matches!(error, SinkError::Unavailable(_))),
        (500, |error| matches!(error, SinkError::Unavailable(_))),
        (403, |error| matches!(error, SinkError::Denied(_))),
        (404, |error| matches!(error, SinkError::Missing(_))),
    ];
    for (status, is) in is {
        service.twist(move |_, _| Reply::status(status, &[]));
        let error = sink.destroy(&[item("a")]).await.unwrap_err();
        assert!(is(&error), "{status}: {error}");
    }
}

/// F28, F33: the answer is late or never comes; what was deleted meanwhile is absent when asked again.
#[tokio::test]
async fn a_service_that_hangs_or_is_down_is_unavailable() {
    let service = Service::start().await;
    let mut config = config(&service);
    config.request_timeout = Duration::from_millis(200);
    let sink = WebhookSink::new(config).unwrap();
    service.put("a");
    service.twist(|_, _| Reply::Hang);
    let error = sink.destroy(&[item("a")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    let told = format!("{error} {:?}", std::error::Error::source(&error));
    assert!(!told.contains("/erase"), "a url may hold a token: {told}");
    service.honest();
    let outcomes = sink.destroy(&[item("a")]).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Absent]);
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/erase");
    let down = WebhookSink::new(WebhookConfig::new(url, "contacts", Secret::new(SECRET))).unwrap();
    let error = down.destroy(&[item("b")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
}

/// A destroy waits no longer than its lease: whoever takes over must be alone.
#[tokio::test]
async fn no_answer_is_waited_for_beyond_the_lease() {
    let service = Service::start().await;
    service.twist(|_, _| Reply::Hang);
    let mut short = item("a");
    short.fence.until = Instant::now() + Duration::from_millis(300);
    let began = Instant::now();
    let error = sink(&service).destroy(&[item("b"), short]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_later_request_that_fails_keeps_the_verdicts_of_the_first() {
    let service = Service::start().await;
    let mut config = config(&service);
    config.items_max = NonZeroUsize::new(2).unwrap();
    let sink = WebhookSink::new(config).unwrap();
    let batch: Vec<Target> = ["a", "b", "c", "d", "e"].into_iter().map(item).collect();
    let state = Arc::clone(&service.state);
    service.twist(move |_, honest| match state.heard.lock().unwrap().len() {
        2 => Reply::status(429, &[("retry-after", "5")]),
        _ => Reply::json(&honest),
    });
    let outcomes = sink.destroy(&batch).await.unwrap();
    let (absent, busy) = (Verdict::Absent, Verdict::Busy);
    assert_eq!(verdicts(&outcomes), [absent, absent, busy, busy, absent]);
    assert_eq!(outcomes[2].retry_after, Some(Duration::from_secs(5)));
}
