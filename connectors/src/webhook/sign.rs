//! Signatures as Standard Webhooks have them: `v1,base64(hmac-sha256(secret, id.timestamp.body))`,
//! one for each secret, so that a service can exchange its own without a gap.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::Secret;

/// Signs with every secret.
#[derive(Clone)]
pub(super) struct Signer(Vec<Hmac<Sha256>>);

impl Signer {
    /// Reads secrets as Standard Webhooks spell them.
    pub(super) fn new(secrets: &[Secret]) -> Result<Self, &'static str> {
        let key = |secret: &Secret| {
            let encoded = secret.reveal().strip_prefix("whsec_");
            let key = encoded.and_then(|encoded| BASE64_STANDARD.decode(encoded).ok());
            match key {
                Some(key) if (24..=64).contains(&key.len()) => {
                    Ok(Hmac::new_from_slice(&key).expect("HMAC takes a key of any length"))
                }
                Some(_) => {
                    Err("a secret is whsec_ and the base64 of 24 to 64 bytes; this one has \
                                another length: make one with `echo whsec_$(openssl rand -base64 32)`")
                }
                None => {
                    Err("a secret is whsec_ and the base64 of 24 to 64 bytes: make one with `echo \
                             whsec_$(openssl rand -base64 32)`")
                }
            }
        };
        match secrets {
            [] => Err("there is no secret to sign with: name one, whsec_ and base64"),
            secrets => secrets.iter().map(key).collect::<Result<_, _>>().map(Self),
        }
    }

    /// The header's value.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let one = |mac: &Hmac<Sha256>| {
            let mut mac = mac.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification.
    #[test]
    fn a_signature_is_the_specifications() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signer = Signer::new(std::slice::from_ref(&secret)).unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let body = br#"{"test": 2432232314}"#;
        let signed = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signer.sign(id, 1_614_265_330, body), signed);
        let both =
            Signer::new(&[Secret::new(format!("whsec_{}", "AAAA".repeat(8))), secret]).unwrap();
        let both = both.sign(id, 1_614_265_330, body);
        let parts: Vec<&str> = both.split(' ').collect();
        assert!(parts.len() == 2 && parts[0] != signed && parts[1] == signed, "{both}");
    }
}
