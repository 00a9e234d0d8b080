//! Private keys of ours: P-256, deterministic ECDSA (RFC 6979).
//!
//! Made by every party for itself. Never leaves this type but as PKCS#8 in a zeroizing buffer.

use std::fmt;

use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{CryptoError, VerifyingKey};

/// A P-256 private key. Signing needs no randomness; `Debug` prints nothing of it; zeroized on drop.
#[derive(Clone)]
pub struct SigningKey {
    inner: p256::ecdsa::SigningKey,
}

impl SigningKey {
    /// Draws a new key from `rng`.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        Self {
            inner: p256::ecdsa::SigningKey::generate_from_rng(rng),
        }
    }

    /// Reads a PKCS#8 `PrivateKeyInfo` (DER) of a P-256 key.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, CryptoError> {
        p256::ecdsa::SigningKey::from_pkcs8_der(der)
            .map(|inner| Self { inner })
            .map_err(|_| CryptoError::BadPrivateKey)
    }

    /// The key as PKCS#8 DER with its public half, as TLS stacks read it.
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let document = self
            .inner
            .to_pkcs8_der()
            .expect("a valid P-256 key always encodes");
        Zeroizing::new(document.as_bytes().to_vec())
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        VerifyingKey::from_p256(self.inner.verifying_key())
    }

    /// ECDSA over SHA-256 of `text`: 64 bytes, r then s, each 32 bytes wide (COSE form).
    pub fn sign(&self, text: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.inner.sign(text);
        signature.to_bytes().to_vec()
    }

    /// The same signature in the ASN.1 form of X.509.
    pub fn sign_asn1(&self, text: &[u8]) -> Vec<u8> {
        let signature: p256::ecdsa::Signature = self.inner.sign(text);
        signature.to_der().as_bytes().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(P-256, ..)")
    }
}
