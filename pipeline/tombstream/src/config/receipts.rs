//! `[receipts]`: what receipts name.

use toml::de::DeValue;

use super::document::Section;
use super::secret::SecretRef;
use super::value::{Leaf, Wrong, word};

/// What stands on receipts for keys and addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReceiptsSection {
    pub(crate) keys: ReceiptKeys,
    /// What keys are hashed with. Kept after a change back to plain, it still finds the hashed ones.
    pub(crate) secret: Option<SecretRef>,
}

/// How a key is written on its receipt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ReceiptKeys {
    /// As it is: whoever reads a receipt sees of which row it is.
    #[default]
    Plain,
    /// As a keyed hash, addresses too: only who has the secret finds the receipt of a key.
    Hashed,
}

impl Leaf for ReceiptKeys {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        word(value, &[("plain", Self::Plain), ("hashed", Self::Hashed)])
    }
}

impl ReceiptsSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let place = section.place("secret");
        // Plain: receipts are read by people, and keys are mostly numbers that name nobody outside.
        let keys = section.or("keys", ReceiptKeys::Plain);
        let is_named = section.has("secret");
        let secret = section.secret("secret");
        if keys == ReceiptKeys::Hashed && !is_named {
            section.problem(
                place,
                "missing: keys = \"hashed\" needs a secret",
                "write secret = { env = \"RECEIPTS_SECRET\" }, at least 16 random bytes, and keep it: \
                 without it no receipt is found by its key",
            );
        }
        Self { keys, secret }
    }
}
