//! The REST interface: it flips flags and says what became of them. And [`orders`]: what operators order and see, over
//! HTTP and by the binary's commands.
//!
//! It speaks to nothing but Postgres. `DELETE` sets a row's flag and is done; whatever destroys the
//! copies finds the flag by itself. What was destroyed is read from the ledger, the schema
//! `tombstream` in the same database. Routes, statements and the OpenAPI document are made once, at
//! start, from the configured relations.
//!
//! | route | answer |
//! |---|---|
//! | `POST /{path}/` | 201 with the row, where the relation configures `create` |
//! | `GET /{path}/{key}` | the row; 404 once it is flagged |
//! | `DELETE /{path}/{key}` | 202, and in `Location` where to ask what became of it |
//! | `POST /{path}/{key}/restore` | 200 with the row; 409 after the claim |
//! | `GET /{path}/{key}/deletion` | state, what each store answered, the receipt |
//! | `GET /{path}/deletions` | the ledger's deletions, newest first |
//! | `GET`, `POST /{path}/{key}/holds`, `DELETE …/holds/{id}` | a person's order that the row must stay |
//! | `GET /{path}/parked`, `POST …/{id}/retry`, `…/waive` | deletions that need a person |
//! | `GET /{path}/breaker`, `POST …/approve`, `…/reject` | what the breaker kept back |
//! | `POST /{path}/bulk/delete`, `/bulk/restore` | up to 1,000 rows in one transaction |
//! | `GET /{path}/rehydrations`, `POST …/{id}/done` | restored rows whose hidden copies are to be made again |
//! | `/`, `/healthz`, `/readyz`, `/metrics`, `/openapi.json` | the process itself |
//!
//! A key of several columns takes as many segments. Segments are percent-decoded once, after they
//! were split, so `a%2Fb` is one column with a slash in it.

mod auth;
mod config;
mod db;
mod edge;
mod error;
mod group;
mod key;
mod openapi;
pub mod orders;
mod routes;
mod row;
mod server;
mod sql;

pub use auth::{Tokens, TokensError, hash_token};
pub use config::{ApiConfig, ApiRelation, ConfigError, MetricsText, check_bind};
pub use db::{connect_options, pool_options};
pub use edge::{FLIPS_TOTAL, REQUEST_DURATION_SECONDS, REQUESTS_TOTAL};
pub use routes::router;
pub use server::serve;
