//! The values that a key may have: each type says for itself what is wrong and what to write.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use toml::de::DeValue;

/// Why a value is none, and what to write instead.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) fix: String,
}

impl Wrong {
    pub(crate) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// An error whose message says after its last colon what to do; else `usual` says it.
    pub(crate) fn split(message: &str, usual: &str) -> Self {
        match message.rsplit_once(": ") {
            Some((what, fix)) => Self::new(what, fix),
            None => Self::new(message, usual),
        }
    }
}

/// A type that one value of the file gives.
pub(crate) trait Leaf: Sized {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong>;
}

/// The value as a person would quote it.
pub(crate) fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(at) => at.to_string(),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// An integer between `min` and `max`, whichever type it is for.
fn integer(value: &DeValue<'_>, min: u64, max: u64) -> Result<u64, Wrong> {
    let number = match value {
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    let Some(number) = number else {
        return Err(Wrong::new(
            format!("must be a whole number, found {}", describe(value)),
            "write digits without quotes",
        ));
    };
    if number < i128::from(min) {
        return Err(Wrong::new(
            format!("must be at least {min}, found {number}"),
            format!("write {min} or more, or leave the key out for its default"),
        ));
    }
    u64::try_from(number).ok().filter(|number| *number <= max).ok_or_else(|| {
        Wrong::new(
            format!("must be at most {max}, found {number}"),
            "write a smaller number, or leave the key out for its default",
        )
    })
}

impl Leaf for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Boolean(yes) => Ok(*yes),
            other => Err(Wrong::new(
                format!("must be true or false, found {}", describe(other)),
                "write true or false without quotes",
            )),
        }
    }
}

impl Leaf for usize {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = integer(value, 0, u64::from(u32::MAX))?;
        Ok(usize::try_from(number).expect("32 bits fit"))
    }
}

impl Leaf for NonZeroUsize {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = integer(value, 1, u64::from(u32::MAX))?;
        let number = usize::try_from(number).expect("32 bits fit");
        Ok(NonZeroUsize::new(number).expect("checked to be at least 1"))
    }
}

impl Leaf for NonZeroU32 {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = integer(value, 1, u64::from(u32::MAX))?;
        let number = u32::try_from(number).expect("checked to be 32 bits");
        Ok(NonZeroU32::new(number).expect("checked to be at least 1"))
    }
}

impl Leaf for String {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::String(text) if text.is_empty() => {
                Err(Wrong::new("is empty", "write a text, or leave the key out"))
            }
            DeValue::String(text) => Ok(text.as_ref().to_owned()),
            other => Err(Wrong::new(
                format!("must be a text, found {}", describe(other)),
                "write it in double quotes",
            )),
        }
    }
}

impl Leaf for Vec<String> {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Array(items) => {
                items.iter().map(|item| String::read(item.get_ref())).collect()
            }
            other => Err(Wrong::new(
                format!("must be an array of texts, found {}", describe(other)),
                "write [\"one\", \"two\"]",
            )),
        }
    }
}

impl Leaf for Duration {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let fix = "write a number and its unit, such as \"500ms\", \"30s\" or \"7d\"";
        match value {
            DeValue::String(text) => humantime::parse_duration(text)
                .map_err(|error| Wrong::new(format!("{text:?} is no duration: {error}"), fix)),
            other => Err(Wrong::new(format!("must be a duration, found {}", describe(other)), fix)),
        }
    }
}

impl Leaf for SocketAddr {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let fix = "write an address and a port, such as \"127.0.0.1:8080\"";
        match value {
            DeValue::String(text) => text.parse().map_err(|_| {
                Wrong::new(format!("{text:?} is no address of the form ip:port"), fix)
            }),
            other => Err(Wrong::new(format!("must be an address, found {}", describe(other)), fix)),
        }
    }
}

/// A share of a whole: from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share(pub(crate) f64);

impl Leaf for Share {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let number = match value {
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            _ => None,
        };
        match number {
            Some(number) if (0.0..=1.0).contains(&number) => Ok(Self(number)),
            _ => Err(Wrong::new(
                format!("must be a share from 0 to 1, found {}", describe(value)),
                "write a number such as 0.5; 1 switches the guard off",
            )),
        }
    }
}

/// One of several words.
pub(crate) fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, Wrong> {
    let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
    let list = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    match value {
        DeValue::String(text) => match words.iter().find(|(name, _)| name == text) {
            Some((_, meant)) => Ok(*meant),
            None => Err(Wrong::new(
                format!("{text:?} is none of {list}"),
                super::document::nearest(text, &names),
            )),
        },
        other => Err(Wrong::new(
            format!("must be one of {list}, found {}", describe(other)),
            format!("write one of {list}"),
        )),
    }
}
