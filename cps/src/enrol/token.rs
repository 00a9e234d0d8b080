//! The enrolment token as text: `hf1.<site>.<gateway>.<secret>.<root hash>.<cloud's name>`. It pins
//! the cloud at first contact: by the hash of its root certificate, and by the name its certificate
//! must bear. Made by the cloud, read by the gateway's CLI.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_protocol::crypto::{HashAlg, hash};
use holdfast_protocol::id::{ServerId, SiteId};
use zeroize::Zeroizing;

/// First part of every token of this form.
const FORM: &str = "hf1";
/// Longest text read.
const MAX_TEXT: usize = 1_024;

/// A token. `Debug` shows no secret.
pub struct Token {
    /// The site that it opens.
    pub site: SiteId,
    /// The gateway that may use it.
    pub gateway: ServerId,
    /// SHA-256 of the root certificate, DER.
    pub root_hash: [u8; 32],
    /// The DNS name in the cloud's certificate.
    pub cloud: String,
    secret: Zeroizing<[u8; 32]>,
}

/// The text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no enrolment token; copy the whole line that 'gateways token' printed")]
pub struct BadToken;

impl Token {
    pub(super) fn new(
        site: SiteId,
        gateway: ServerId,
        secret: Zeroizing<[u8; 32]>,
        root: &[u8],
        cloud: String,
    ) -> Self {
        let root_hash = hash(HashAlg::Sha256, root)
            .value()
            .try_into()
            .expect("SHA-256 has 32 bytes");
        Self {
            site,
            gateway,
            root_hash,
            cloud,
            secret,
        }
    }

    /// The secret part.
    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The text for the operator.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.secret));
        let root: String = self
            .root_hash
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let (site, gateway, cloud) = (&self.site, &self.gateway, &self.cloud);
        Zeroizing::new(format!(
            "{FORM}.{site}.{gateway}.{}.{root}.{cloud}",
            *secret
        ))
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(BadToken);
        }
        let parts: Vec<&str> = text.splitn(6, '.').collect();
        let [FORM, site, gateway, secret, root, cloud] = parts[..] else {
            return Err(BadToken);
        };
        let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(secret).map_err(|_| BadToken)?);
        let mut secret = Zeroizing::new([0; 32]);
        if decoded.len() != secret.len() {
            return Err(BadToken);
        }
        secret.copy_from_slice(&decoded);
        Ok(Self {
            site: site.parse().map_err(|_| BadToken)?,
            gateway: gateway.parse().map_err(|_| BadToken)?,
            root_hash: unhex(root).ok_or(BadToken)?,
            cloud: cloud.to_owned(),
            secret,
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Token")
            .field("site", &self.site)
            .field("gateway", &self.gateway)
            .field("cloud", &self.cloud)
            .finish_non_exhaustive()
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new(
            "north".parse().unwrap(),
            "gw1".parse().unwrap(),
            Zeroizing::new([7; 32]),
            b"root",
            "cloud.servers.holdfast.internal".into(),
        )
    }

    #[test]
    fn text_and_back() {
        let text = token().to_text();
        let again: Token = format!(" {}\n", *text).parse().unwrap();
        assert_eq!(again.to_text(), text);
        assert_eq!(again.root_hash, token().root_hash);
        assert_eq!(again.cloud, "cloud.servers.holdfast.internal");
    }

    #[test]
    fn every_cut_and_every_other_form_is_refused() {
        let text = token().to_text();
        // Up to the cloud's name, which no length is prescribed for.
        let fixed = text.len() - "cloud.servers.holdfast.internal".len();
        for end in 0..fixed {
            assert!(text[..end].parse::<Token>().is_err(), "cut at {end}");
        }
        assert!(text.replacen("hf1", "hf2", 1).parse::<Token>().is_err());
        assert!(text.replacen("north", "North", 1).parse::<Token>().is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = URL_SAFE_NO_PAD.encode([7; 32]);
        assert!(!format!("{:?}", token()).contains(&secret));
    }
}
