//! What the api serves, and the check that it can be served.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tombstream_model::{FlagKind, Relation};

use crate::Tokens;

/// The text of `/metrics`, made by whoever installed the recorder.
pub type MetricsText = Arc<dyn Fn() -> String + Send + Sync>;

/// How the api is served.
#[derive(Clone)]
pub struct ApiConfig {
    /// What has routes.
    pub relations: Vec<ApiRelation>,
    /// Who may ask. None: everybody, which [`check_bind`] allows on a loopback address only.
    pub tokens: Option<Tokens>,
    /// Most bytes of a request's body. The default is 64 KiB: a row is created by a few values.
    pub body_max: usize,
    /// Longest time for one answer. The default is 10 seconds: a flip takes milliseconds, and what
    /// takes longer waits for a lock.
    pub timeout: Duration,
    /// False behind pgbouncer in transaction mode: every statement is then prepared anew, in a
    /// transaction of its own.
    pub prepared_statements: bool,
    /// Whether flags that come at the same time are flipped by one statement. The default is no: each by its own.
    pub group_flags: bool,
    /// What `/metrics` answers; without it there is no such route. It needs no token.
    pub metrics: Option<MetricsText>,
}

/// A relation and how it is shown.
#[derive(Clone, Debug)]
pub struct ApiRelation {
    /// The relation.
    pub relation: Arc<Relation>,
    /// The first segment of its routes: `documents`.
    pub path: String,
    /// The columns that a row is shown with, in this order.
    pub columns: Vec<String>,
    /// The columns that `POST` may set. None: there is no `POST`.
    pub create: Option<Vec<String>>,
}

/// Why the api can't be served as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Anybody who reaches the port could delete anything.
    #[error(
        "api.listen = \"{0}\" is not a loopback address, and there are no tokens: \
         set api.tokens_file, or listen on 127.0.0.1"
    )]
    OpenBind(SocketAddr),
    /// A relation's part can't be served.
    #[error("relation.{relation}.{key}: {reason}")]
    Relation {
        /// The relation's name.
        relation: String,
        /// The key in its table of the configuration.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A value that makes every request fail.
    #[error("api.{key}: {reason}")]
    Value {
        /// The key in the configuration.
        key: &'static str,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
}

/// First segments that are the process's own.
const RESERVED: [&str; 4] = ["healthz", "readyz", "metrics", "openapi.json"];

/// Postgres cuts longer names, and a cut name may be another table's.
const IDENTIFIER_BYTES_MAX: usize = 63;

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            relations: Vec::new(),
            tokens: None,
            body_max: 64 * 1024,
            timeout: Duration::from_secs(10),
            prepared_statements: true,
            group_flags: false,
            metrics: None,
        }
    }
}

impl fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiConfig")
            .field("relations", &self.relations)
            .field("tokens", &self.tokens)
            .field("body_max", &self.body_max)
            .field("timeout", &self.timeout)
            .field("prepared_statements", &self.prepared_statements)
            .finish_non_exhaustive()
    }
}

/// Refuses to serve everybody on an address that others can reach.
pub fn check_bind(addr: SocketAddr, has_tokens: bool) -> Result<(), ConfigError> {
    if has_tokens || addr.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(ConfigError::OpenBind(addr))
}

impl ApiConfig {
    /// Refuses what can't be served.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.timeout.is_zero() {
            return Err(ConfigError::Value { key: "timeout", reason: "must be more than 0" });
        }
        if self.body_max == 0 {
            return Err(ConfigError::Value { key: "body_max", reason: "must be more than 0" });
        }
        let mut paths = HashSet::new();
        let mut names = HashSet::new();
        for relation in &self.relations {
            relation.check()?;
            if !names.insert(&relation.relation.name) {
                return Err(relation.wrong("api", "two relations have this name".into()));
            }
            if !paths.insert(&relation.path) {
                return Err(relation.wrong(
                    "api.path",
                    format!("`{}` is another relation's path already", relation.path),
                ));
            }
        }
        Ok(())
    }
}

impl ApiRelation {
    fn wrong(&self, key: &'static str, reason: String) -> ConfigError {
        ConfigError::Relation { relation: self.relation.name.to_string(), key, reason }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let relation = &*self.relation;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
        if self.path.is_empty() || self.path.starts_with('.') || !self.path.bytes().all(plain) {
            return Err(self.wrong(
                "api.path",
                format!(
                    "`{}` must be one segment of letters, digits, `.`, `_`, `~` and `-`, without \
                     slashes, such as `documents`",
                    self.path
                ),
            ));
        }
        if RESERVED.contains(&&*self.path) {
            return Err(self.wrong("api.path", format!("`{}` is a route of its own", self.path)));
        }
        if relation.key.is_empty() {
            return Err(self.wrong("key", "needs at least one column".into()));
        }
        if self.columns.is_empty() {
            return Err(self.wrong("api.columns", "needs at least one column".into()));
        }
        let key = relation.key.iter().map(|column| &column.name);
        self.check_names("table", [&relation.schema, &relation.table])?;
        self.check_names("flag.column", [&relation.flag.column])?;
        self.check_names("key", key.clone())?;
        self.check_names("api.columns", &self.columns)?;
        self.check_unique("key", key)?;
        self.check_unique("api.columns", &self.columns)?;
        if let Some(create) = &self.create {
            self.check_names("api.create", create)?;
            self.check_unique("api.create", create)?;
            if create.contains(&relation.flag.column) {
                let reason = format!(
                    "`{}` is the flag: a row is created alive and flagged by DELETE",
                    relation.flag.column
                );
                return Err(self.wrong("api.create", reason));
            }
        }
        if let FlagKind::Timestamp { zone } = &relation.flag.kind
            && (zone.is_empty() || zone.contains('\0'))
        {
            return Err(self.wrong("flag.zone", "needs a zone such as `Europe/Berlin`".into()));
        }
        Ok(())
    }

    fn check_names<'a>(
        &self,
        key: &'static str,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), ConfigError> {
        for name in names {
            let reason = if name.is_empty() {
                "an empty name".into()
            } else if name.contains('\0') {
                format!("`{name:?}` holds a zero byte, which no name in Postgres does")
            } else if name.len() > IDENTIFIER_BYTES_MAX {
                format!("`{name}` is longer than the {IDENTIFIER_BYTES_MAX} bytes of a name")
            } else {
                continue;
            };
            return Err(self.wrong(key, reason));
        }
        Ok(())
    }

    fn check_unique<'a>(
        &self,
        key: &'static str,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Result<(), ConfigError> {
        let mut seen = HashSet::new();
        match names.into_iter().find(|name| !seen.insert(*name)) {
            Some(twice) => Err(self.wrong(key, format!("`{twice}` is named twice"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tombstream_model::{Flag, KeyColumn, KeyKind, OnHardDelete};

    use super::*;

    pub(crate) fn documents() -> ApiRelation {
        ApiRelation {
            relation: Arc::new(Relation {
                name: "documents".into(),
                schema: "public".into(),
                table: "documents".into(),
                key: vec![KeyColumn { name: "id".into(), kind: KeyKind::Uuid }],
                flag: Flag { column: "deleted_at".into(), kind: FlagKind::TimestampTz },
                targets: Vec::new(),
                grace: Duration::ZERO,
                hide: None,
                breaker: None,
                on_hard_delete: OnHardDelete::Ignore,
                key_reuse_forbidden: false,
                topics: Vec::new(),
                allow_cascade: Vec::new(),
            }),
            path: "documents".into(),
            columns: ["id", "name", "uploaded_at", "deleted_at"].map(String::from).into(),
            create: Some(vec!["name".into()]),
        }
    }

    fn refused(change: impl FnOnce(&mut ApiRelation, &mut Relation)) -> String {
        let mut api = documents();
        let mut relation = (*api.relation).clone();
        change(&mut api, &mut relation);
        api.relation = Arc::new(relation);
        ApiConfig { relations: vec![api], ..ApiConfig::default() }.check().unwrap_err().to_string()
    }

    #[test]
    fn a_bind_that_others_reach_needs_tokens() {
        for open in ["0.0.0.0:80", "[::]:80", "192.168.1.4:80", "[::ffff:10.0.0.1]:80"] {
            let addr = open.parse().unwrap();
            assert_eq!(check_bind(addr, false), Err(ConfigError::OpenBind(addr)), "{open}");
            assert_eq!(check_bind(addr, true), Ok(()), "{open}");
        }
        for own in ["127.0.0.1:80", "127.8.8.8:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert_eq!(check_bind(own.parse().unwrap(), false), Ok(()), "{own}");
        }
    }

    #[test]
    fn every_mistake_names_its_key() {
        for path in ["", "a/b", "a b", ".", "..", "{id}", "*", "docs?", "é"] {
            let error = refused(|api, _| api.path = path.into());
            assert!(error.starts_with("relation.documents.api.path: "), "{path}: {error}");
        }
        assert!(refused(|api, _| api.path = "healthz".into()).contains("a route of its own"));
        assert!(refused(|api, _| api.columns.clear()).contains("api.columns: needs at least one"));
        assert!(refused(|api, _| api.columns.push("id".into())).contains("`id` is named twice"));
        let flag = refused(|api, _| api.create = Some(vec!["deleted_at".into()]));
        assert!(flag.contains("api.create: `deleted_at` is the flag"), "{flag}");
        assert!(refused(|_, relation| relation.table = "x".repeat(64)).contains("63 bytes"));
        assert!(refused(|_, relation| relation.table = "a\0".into()).contains("zero byte"));
        assert!(refused(|_, relation| relation.schema.clear()).contains("an empty name"));
        assert!(refused(|_, relation| relation.key.clear()).contains(".key: needs at least one"));
        let zone = FlagKind::Timestamp { zone: String::new() };
        assert!(refused(|_, relation| relation.flag.kind = zone).contains("flag.zone"));
    }

    #[test]
    fn two_relations_share_neither_path_nor_name() {
        let twice = ApiConfig { relations: vec![documents(), documents()], ..Default::default() };
        assert!(twice.check().unwrap_err().to_string().contains("two relations have this name"));
        let mut other = documents();
        let mut relation = (*other.relation).clone();
        relation.name = "files".into();
        other.relation = Arc::new(relation);
        let same = ApiConfig { relations: vec![documents(), other], ..Default::default() };
        let error = same.check().unwrap_err().to_string();
        assert!(error.starts_with("relation.files.api.path: `documents` is another"), "{error}");
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        let config = ApiConfig { timeout: Duration::ZERO, ..Default::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("api.timeout: "));
        let config = ApiConfig { body_max: 0, ..Default::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("api.body_max: "));
    }
}
