//! Who asks: bearer tokens, known by their hashes alone.
//!
//! The file has one token a line, `name sha256:<64 hex digits>`, and comments after `#`. A name may
//! stand twice, so that a token can be changed without a gap. Only the hash is kept: tokens must be
//! long and random, since a short one could be found from its hash.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::error::ApiError;

/// Who flips flags where no tokens are configured.
const ANONYMOUS: &str = "anonymous";

/// The hashes of the tokens that may ask.
#[derive(Clone)]
pub struct Tokens(Arc<[Token]>);

struct Token {
    name: Arc<str>,
    digest: [u8; 32],
}

/// Who sent a request: the name of its token.
#[derive(Clone, Debug)]
pub(crate) struct Actor(pub(crate) Arc<str>);

/// Why a file of tokens can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file can't be read.
    #[error("tokens file {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a token.
    #[error("tokens file {path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it. Never the line itself: it may be a token by mistake.
        reason: &'static str,
    },
    /// Nobody could ask.
    #[error("tokens file {0} names no token: add a line `name sha256:<hex>`")]
    Empty(String),
}

/// What stands in the file for `token`.
pub fn hash_token(token: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(token)))
}

impl Tokens {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        let shown = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &shown),
            Err(source) => Err(TokensError::Read { path: shown, source }),
        }
    }

    /// Reads the text of the file `path`.
    pub fn parse(text: &str, path: &str) -> Result<Self, TokensError> {
        let mut tokens: Vec<Token> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = |reason| TokensError::Line { path: path.into(), line: index + 1, reason };
            let token = parse_line(line).map_err(wrong)?;
            if tokens.iter().any(|other| other.digest == token.digest) {
                return Err(wrong("this hash stands in the file already"));
            }
            tokens.push(token);
        }
        if tokens.is_empty() {
            return Err(TokensError::Empty(path.into()));
        }
        Ok(Self(tokens.into()))
    }

    /// The name of `token`, if it is one.
    ///
    /// Digests are compared in constant time, and all of them: how long it takes says nothing.
    fn name(&self, token: &[u8]) -> Option<&Arc<str>> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut found = u32::MAX;
        for (index, known) in (0u32..).zip(self.0.iter()) {
            found.conditional_assign(&index, known.digest.ct_eq(&digest));
        }
        self.0.get(usize::try_from(found).ok()?).map(|token| &token.name)
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|token| &token.name)).finish()
    }
}

fn parse_line(line: &str) -> Result<Token, &'static str> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(hash), None) = (words.next(), words.next(), words.next()) else {
        return Err("expected `name sha256:<hex>`");
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    if name.len() > 64 || !name.bytes().all(plain) {
        return Err("a name is up to 64 letters, digits, `.`, `_`, `@` and `-`");
    }
    if name == ANONYMOUS {
        return Err("`anonymous` is who asks without a token: choose another name");
    }
    let Some(digits) = hash.strip_prefix("sha256:") else {
        return Err("the hash must begin with `sha256:`");
    };
    let mut digest = [0; 32];
    match hex::decode_to_slice(digits, &mut digest) {
        Ok(()) => Ok(Token { name: name.into(), digest }),
        Err(_) => Err("the hash must have 64 hex digits after `sha256:`"),
    }
}

/// Lets pass who may ask, and notes who it is.
pub(crate) async fn authenticate(
    State(tokens): State<Option<Tokens>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let actor = match &tokens {
        None => ANONYMOUS.into(),
        Some(tokens) => {
            let token = bearer(request.headers())?;
            Arc::clone(tokens.name(token).ok_or(ApiError::Unauthorized { wrong: true })?)
        }
    };
    request.extensions_mut().insert(Actor(actor));
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Result<&[u8], ApiError> {
    let missing = ApiError::Unauthorized { wrong: false };
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Err(missing) };
    match value.as_bytes().split_at_checked(b"bearer ".len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => Ok(token.trim_ascii()),
        _ => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name<'a>(tokens: &'a Tokens, token: &str) -> Option<&'a str> {
        tokens.name(token.as_bytes()).map(AsRef::as_ref)
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_token("abc"), known, "the test vector of FIPS 180");
        let text = format!("# ours\n\nann {}\n  ci\t{} # of 2026\n", hash_token("a"), known);
        let tokens = Tokens::parse(&text, "tokens").unwrap();
        assert_eq!(name(&tokens, "a"), Some("ann"));
        assert_eq!(name(&tokens, "abc"), Some("ci"));
        for other in ["", "b", "abc ", "ABC", known] {
            assert_eq!(name(&tokens, other), None, "{other}");
        }
    }

    #[test]
    fn a_name_may_have_two_tokens_but_a_token_one_name() {
        let both = format!("ann {}\nann {}", hash_token("old"), hash_token("new"));
        let tokens = Tokens::parse(&both, "tokens").unwrap();
        assert_eq!(name(&tokens, "old"), name(&tokens, "new"));
        let shared = format!("ann {}\nbob {}", hash_token("x"), hash_token("x"));
        let error = Tokens::parse(&shared, "tokens").unwrap_err().to_string();
        assert_eq!(error, "tokens file tokens, line 2: this hash stands in the file already");
    }

    #[test]
    fn a_wrong_line_is_named_by_file_and_number_and_never_shown() {
        let hash = hash_token("x");
        for (line, reason) in [
            ("secret", "expected `name sha256:<hex>`"),
            ("ann sha256:abc def", "expected `name sha256:<hex>`"),
            ("ann secret", "the hash must begin with `sha256:`"),
            ("ann sha256:abc", "the hash must have 64 hex digits after `sha256:`"),
            (
                "ann sha256:secretsecretsecretsecretsecretsecretsecretsecretsecretsecretsecr",
                "the hash must have 64 hex digits after `sha256:`",
            ),
            (&format!("an/n {hash}"), "a name is up to 64 letters, digits, `.`, `_`, `@` and `-`"),
            (
                &format!("anonymous {hash}"),
                "`anonymous` is who asks without a token: choose another name",
            ),
        ] {
            let text = format!("\n# tokens\n{line}\n");
            let error = Tokens::parse(&text, "/etc/tokens").unwrap_err().to_string();
            assert_eq!(error, format!("tokens file /etc/tokens, line 3: {reason}"));
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn a_file_without_a_token_is_refused() {
        let error = Tokens::parse("# nobody\n", "tokens").unwrap_err().to_string();
        assert!(error.contains("names no token"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let missing = Tokens::read(&folder.path().join("none")).unwrap_err();
        assert!(matches!(missing, TokensError::Read { .. }));
    }

    #[test]
    fn debug_shows_names_and_no_hash() {
        let tokens = Tokens::parse(&format!("ann {}", hash_token("a")), "tokens").unwrap();
        assert_eq!(format!("{tokens:?}"), "{\"ann\"}");
    }

    #[test]
    fn the_scheme_is_read_in_any_case() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers).ok(), token.map(str::as_bytes), "{value}");
        }
        assert!(bearer(&HeaderMap::new()).is_err());
    }
}
