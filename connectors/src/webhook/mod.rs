//! A service of somebody else's that deletes its own things when it is asked to: a webhook.
//!
//! Owned here: the request (a batch in JSON, signed as Standard Webhooks are), which answers prove
//! something, and the same names for the same request. Left to others: retries, rates, the read-back
//! after a destroy, and what a verdict leads to. What a service must do is in `docs/webhook.md`.
//!
//! The service is asked, and believed: it reads and deletes by itself, so nothing here can be
//! conditional (S5), and the fence is asked just before the request is sent. With a `look_url` the
//! dataflow asks again afterwards; without one its word is all there is, and the receipt says so.

mod answer;
mod client;
mod config;
mod sign;
mod sink;

pub use config::{WebhookConfig, WebhookConfigError, url_problem};
pub use sink::{WebhookFacts, WebhookSink};
