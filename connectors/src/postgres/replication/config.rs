//! How a slot is read.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pgwire_replication as wire;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tombstream_model::Lsn;

use crate::Secret;

/// How a slot is read.
#[derive(Clone, Debug)]
pub struct ReplicationConfig {
    /// Where the server is. A pooler between would have to know the replication protocol.
    pub url: Secret,
    /// The slot's name.
    pub slot: String,
    /// The publication's name.
    pub publication: String,
    /// Most rows that one poll brings.
    pub items_max: NonZeroUsize,
    /// Most bytes that one poll brings, but for its last row.
    pub bytes_max: NonZeroUsize,
    /// How often a message of our own goes through the log: it shows that the stream is alive and how
    /// far it is behind, and moves the slot on where nothing else is written. Zero: never.
    pub heartbeat: Duration,
    /// Whether the rows that are there when the slot is made are wanted too: see
    /// [`PostgresSource::open`](super::PostgresSource::open).
    pub snapshot: bool,
    /// How often at most the server is told what is durable.
    pub acknowledge_every: Duration,
}

/// What can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicationConfigError {
    /// The url.
    #[error("the url of the database is no postgresql:// url")]
    Url,
    /// A name that would have to be quoted, which neither pgoutput's options nor slots know.
    #[error(
        "{what} {name:?} is no name that needs no quotes: use lower-case letters, digits and _, at \
         most 63, beginning with a letter"
    )]
    Name {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
}

/// Messages that wait between the session and the source. Their bytes are what the rows have, so few.
const MESSAGES_WAITING: usize = 256;

impl ReplicationConfig {
    /// The defaults: 1,000 rows or 8 MiB a poll, a heartbeat each 10 s, and the server told each second.
    pub fn new(url: Secret, slot: impl Into<String>, publication: impl Into<String>) -> Self {
        Self {
            url,
            slot: slot.into(),
            publication: publication.into(),
            items_max: NonZeroUsize::new(1_000).expect("not zero"),
            bytes_max: NonZeroUsize::new(8 << 20).expect("not zero"),
            heartbeat: Duration::from_secs(10),
            snapshot: false,
            acknowledge_every: Duration::from_secs(1),
        }
    }

    /// Says what can't be used. Sends nothing.
    pub fn validate(&self) -> Result<(), ReplicationConfigError> {
        for (what, name) in [("slot", &self.slot), ("publication", &self.publication)] {
            if !is_bare(name) {
                return Err(ReplicationConfigError::Name { what, name: name.clone() });
            }
        }
        PgConnectOptions::from_str(self.url.reveal())
            .map(drop)
            .map_err(|_| ReplicationConfigError::Url)
    }

    /// A session of the streaming protocol that begins at `start`, 0 for where the slot stands.
    pub(super) fn session(
        &self,
        start: Lsn,
    ) -> Result<wire::ReplicationConfig, ReplicationConfigError> {
        self.validate()?;
        let options = PgConnectOptions::from_str(self.url.reveal())
            .map_err(|_| ReplicationConfigError::Url)?;
        let user = options.get_username().to_owned();
        let database = options.get_database().unwrap_or(&user).to_owned();
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().to_owned(),
        };
        let mut session = wire::ReplicationConfig::new(
            host,
            user,
            password(&options),
            database,
            self.slot.clone(),
            self.publication.clone(),
        );
        session.port = options.get_port();
        session.tls = tls(&options);
        session.start_lsn = wire::Lsn::from_u64(start.0);
        session.status_interval = self.acknowledge_every;
        session.idle_wakeup_interval = Duration::from_secs(10);
        session.buffer_events = MESSAGES_WAITING;
        session.application_name = Some("tombstream-replication".to_owned());
        // As the ledger's sessions are, so that texts compare: times in UTC and ISO, bytes in hex.
        session.options = Some(
            "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c bytea_output=hex \
             -c extra_float_digits=3"
                .to_owned(),
        );
        Ok(session)
    }
}

/// Whether `name` is the same with and without quotes.
fn is_bare(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The password, from wherever sqlx has it: the url, the environment, a password file.
fn password(options: &PgConnectOptions) -> String {
    let url = options.clone().to_url_lossy();
    let encoded = url.password().unwrap_or_default();
    percent_encoding::percent_decode_str(encoded).decode_utf8_lossy().into_owned()
}

fn tls(options: &PgConnectOptions) -> wire::TlsConfig {
    if options.get_socket().is_some() {
        return wire::TlsConfig::disabled();
    }
    let url = options.clone().to_url_lossy();
    // sqlx shows a file as `file: PATH`; what is given in place of a file stays its own.
    let path = |name: &str| {
        let (_, value) = url.query_pairs().find(|(key, _)| key == name)?;
        value.strip_prefix("file: ").map(PathBuf::from)
    };
    let mode = match options.get_ssl_mode() {
        PgSslMode::Disable => wire::SslMode::Disable,
        PgSslMode::Allow | PgSslMode::Prefer => wire::SslMode::Prefer,
        PgSslMode::Require => wire::SslMode::Require,
        PgSslMode::VerifyCa => wire::SslMode::VerifyCa,
        PgSslMode::VerifyFull => wire::SslMode::VerifyFull,
    };
    wire::TlsConfig {
        mode,
        ca_pem_path: path("sslrootcert"),
        sni_hostname: None,
        client_cert_pem_path: path("sslcert"),
        client_key_pem_path: path("sslkey"),
    }
}

impl fmt::Display for ReplicationConfig {
    /// The slot and its publication; no url.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {} of publication {}", self.slot, self.publication)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> ReplicationConfig {
        ReplicationConfig::new(Secret::new(url), "tombstream", "tombstream")
    }

    #[test]
    fn a_url_says_where_and_how_a_session_is_opened() {
        let config = config(
            "postgresql://me:p%40ss%2Fw@db.example:5433/app?sslmode=verify-full\
             &sslrootcert=/etc/ca.pem&sslcert=/etc/me.pem&sslkey=/etc/me.key",
        );
        let session = config.session(Lsn(7)).unwrap();
        assert_eq!((session.host.as_str(), session.port), ("db.example", 5433));
        assert_eq!((session.user.as_str(), session.password.as_str()), ("me", "p@ss/w"));
        assert_eq!(session.database, "app");
        assert_eq!(session.start_lsn.as_u64(), 7);
        assert_eq!(session.tls.mode, wire::SslMode::VerifyFull);
        assert_eq!(session.tls.ca_pem_path.as_deref(), Some("/etc/ca.pem".as_ref()));
        assert!(session.tls.is_mtls());
    }

    #[test]
    fn a_socket_is_a_host_that_begins_with_a_slash() {
        let session = config("postgresql://me@%2Ftmp%2Fsockets/app").session(Lsn(0)).unwrap();
        assert!(session.is_unix_socket(), "{session:?}");
        assert_eq!(session.tls.mode, wire::SslMode::Disable);
    }

    #[test]
    fn names_that_need_quotes_are_refused() {
        for name in ["", "A", "a-b", "a,b", "1a", "a'b", &"a".repeat(64)] {
            let mut config = config("postgresql://me@localhost/app");
            config.publication = name.to_owned();
            assert!(config.validate().is_err(), "{name}");
            config.publication = "fine".to_owned();
            config.slot = name.to_owned();
            assert!(config.validate().is_err(), "{name}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let config = config("postgresql://me:hunter2@localhost/app");
        assert!(!format!("{config:?} {config}").contains("hunter2"));
        let mut config = config;
        config.url = Secret::new("hunter2");
        assert!(!config.validate().unwrap_err().to_string().contains("hunter2"));
    }
}
