//! Keyed hashes in place of keys and addresses, where receipts may name nobody.
//!
//! Whoever has the secret can find the receipt of a key that they know; whoever has not learns nothing, and
//! can't try keys either. Relations are kept apart: a key of one tells nothing of the same key of another.

use std::fmt;

use hmac::{Hmac, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use crate::chain::spelled;
use crate::{Address, Hash, Key};

/// The secret, ready to hash.
#[derive(Clone)]
pub struct KeyedHash(Hmac<Sha256>);

impl KeyedHash {
    /// Least bytes of a secret: what is shorter can be tried out.
    pub const SECRET_MIN: usize = 16;

    /// With this secret; none if it is shorter than [`Self::SECRET_MIN`].
    pub fn new(secret: &[u8]) -> Option<Self> {
        let long_enough = secret.len() >= Self::SECRET_MIN;
        long_enough.then(|| Self(Hmac::new_from_slice(secret).expect("any length is a key")))
    }

    /// What stands for a key on its receipt.
    pub fn key(&self, relation: &str, key: &Key) -> Hash {
        let key = Value::from_iter(key.columns());
        self.hash("tombstream-key", relation, &key)
    }

    /// What stands for an address.
    pub fn address(&self, relation: &str, address: &Address) -> Hash {
        let address = serde_json::to_value(address).expect("an address is texts");
        self.hash("tombstream-address", relation, &address)
    }

    /// No name holds a zero byte, so that the parts can't be cut in another way.
    fn hash(&self, domain: &str, relation: &str, value: &Value) -> Hash {
        let mut mac = self.0.clone();
        for part in [domain, relation] {
            mac.update(part.as_bytes());
            mac.update(&[0]);
        }
        mac.update(spelled(value).expect("texts").as_bytes());
        Hash(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_hashes_differently_and_the_secret_does_not_print() {
        let one = KeyedHash::new(b"0123456789abcdef").unwrap();
        let other = KeyedHash::new(b"0123456789abcdeF").unwrap();
        let key = |columns: &[&str]| Key::from_postgres(columns.iter().map(|it| (*it).to_owned()));
        let all = [
            one.key("documents", &key(&["1", "23"])),
            one.key("documents", &key(&["12", "3"])),
            one.key("notes", &key(&["1", "23"])),
            other.key("documents", &key(&["1", "23"])),
            one.address("documents", &Address::Object { bucket: "b".into(), key: "1".into() }),
            one.address("documents", &Address::Prefix { bucket: "b".into(), prefix: "1".into() }),
        ];
        for (n, hash) in all.iter().enumerate() {
            assert!(!all[..n].contains(hash), "{n}");
        }
        assert_eq!(all[0], one.key("documents", &key(&["1", "23"])));
        assert!(!format!("{one:?}").contains("0123"));
        assert!(KeyedHash::new(b"0123456789abcde").is_none());
    }

    #[test]
    fn it_is_the_hmac_that_the_docs_describe() {
        // hmac.new(b"0123456789abcdef", b'tombstream-key\0documents\0["42"]', "sha256").hexdigest()
        let hash = KeyedHash::new(b"0123456789abcdef").unwrap();
        let key = Key::from_postgres(["42".to_owned()]);
        assert_eq!(hash.key("documents", &key).to_string(), EXPECTED);
    }

    const EXPECTED: &str = "90af43a1cf014ef6cb1ef56f8c06ad588e48ac89a044ec63b3a9d91963b49477";
}
