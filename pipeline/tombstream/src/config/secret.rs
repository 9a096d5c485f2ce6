//! Secrets: where they are, and a type that can't be printed.

use std::fmt;
use std::path::PathBuf;

use toml::de::DeValue;

use super::value::{Leaf, Wrong, describe};

/// Where a secret is. The file of the configuration never holds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file; a line end at its end is not part of the secret.
    File(PathBuf),
}

/// A secret's text. It has no `Display`, and its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(Box<str>);

impl Secret {
    /// The text, for the client that needs it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl SecretRef {
    /// Reads the secret. The error says what to do.
    pub(crate) fn resolve(&self) -> Result<Secret, Wrong> {
        let text = match self {
            Self::Env(name) => match std::env::var(name) {
                Ok(text) => text,
                Err(std::env::VarError::NotPresent) => {
                    return Err(Wrong::new(
                        format!("the environment variable {name} is not set"),
                        format!("export {name}=…, or name a file: {{ file = \"/path\" }}"),
                    ));
                }
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(Wrong::new(
                        format!("the environment variable {name} is not utf-8"),
                        "secrets are texts; encode it as its user expects it",
                    ));
                }
            },
            Self::File(path) => std::fs::read_to_string(path).map_err(|error| {
                Wrong::new(
                    format!("the file {} can't be read: {error}", path.display()),
                    "write the secret there, readable by this user alone",
                )
            })?,
        };
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            let place = match self {
                Self::Env(name) => format!("the environment variable {name}"),
                Self::File(path) => format!("the file {}", path.display()),
            };
            return Err(Wrong::new(format!("{place} is empty"), "put the secret there"));
        }
        Ok(Secret(text.into()))
    }
}

impl Leaf for SecretRef {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let fix = "write { env = \"NAME\" } or { file = \"/path\" }";
        let DeValue::Table(table) = value else {
            // What was found is not quoted: it may be the secret.
            let what = match value {
                DeValue::String(_) => "a secret must not be written here".to_owned(),
                other => format!("must say where the secret is, found {}", describe(other)),
            };
            return Err(Wrong::new(what, fix));
        };
        let entries: Vec<(&str, &DeValue<'_>)> =
            table.iter().map(|(key, value)| (key.get_ref().as_ref(), value.get_ref())).collect();
        match entries.as_slice() {
            [("env", DeValue::String(name))] if !name.is_empty() => {
                Ok(Self::Env(name.as_ref().to_owned()))
            }
            [("file", DeValue::String(path))] if !path.is_empty() => {
                Ok(Self::File(path.as_ref().into()))
            }
            _ => Err(Wrong::new("does not say where the secret is", fix)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hunter2\n").unwrap();
        let secret = SecretRef::File(file.path().into()).resolve().unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("hunter2").count(), 0);
    }

    #[test]
    fn a_secret_written_into_the_file_is_refused_and_not_repeated() {
        let value = DeValue::String("hunter2".into());
        let wrong = SecretRef::read(&value).unwrap_err();
        assert!(!format!("{} {}", wrong.what, wrong.fix).contains("hunter2"));
    }

    #[test]
    fn an_empty_secret_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(SecretRef::File(file.path().into()).resolve().is_err());
    }
}
