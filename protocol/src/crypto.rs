//! The one room where cryptography happens: keys, signatures, digests, sealing, key agreement.
//!
//! Called by everything in this crate that signs, verifies or hashes, and by the shells above for
//! their own keys. ring verifies, hashes and seals (it is several times faster than the
//! alternatives); p256 makes keys, signs and agrees, because it takes the caller's randomness.
//! Nothing here draws randomness of its own, and no private value is ever printed.

mod aead;
mod digest;
mod exchange;
mod seal;
mod signing;
mod verifying;

pub use aead::{Aead, AeadSuite, SessionKey};
pub use digest::{Hash, HashAlg, HmacSecret, Mac, MacAlg, hash, hash_parts, hmac};
pub use exchange::{EcdhParameter, EcdhSecret, kdf};
pub use seal::Seal;
pub use signing::SigningKey;
pub use verifying::{Curve, VerifyingKey};

/// Why a cryptographic operation was refused. Says nothing about secret values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The bytes are not a private key of ours (PKCS#8, P-256).
    #[error("not a P-256 private key in PKCS#8 form")]
    BadPrivateKey,
    /// The bytes are not a P-256 or P-384 public key in SubjectPublicKeyInfo form.
    #[error("not a P-256 or P-384 public key")]
    BadPublicKey,
    /// The signature does not belong to this key and text.
    #[error("signature does not match")]
    BadSignature,
    /// The HMAC does not belong to this secret and text.
    #[error("message authentication code does not match")]
    BadMac,
    /// The sealed text was altered or sealed under another key.
    #[error("sealed text does not open")]
    BadSeal,
    /// The peer's key-agreement parameter is malformed or not a point of the curve.
    #[error("key agreement parameter is malformed")]
    BadExchange,
    /// A hash value has not the length that its algorithm says.
    #[error("hash value has the wrong length for its algorithm")]
    BadHashLength,
}
