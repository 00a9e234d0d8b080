//! AES-GCM as TO2's tunnel uses it (wire reference sections 13.5 and 14).
//!
//! The nonce is given by the caller and must be random: both directions share one key.

use std::fmt;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::CryptoError;

/// Length of the nonce of AES-GCM, in bytes.
pub(crate) const NONCE_LEN: usize = 12;

/// Cipher suites of TO2 that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AeadSuite {
    /// COSE algorithm 1.
    A128Gcm,
    /// COSE algorithm 3.
    A256Gcm,
}

impl AeadSuite {
    /// COSE algorithm number, the value in TO2.HelloDevice.
    pub fn number(self) -> i64 {
        match self {
            Self::A128Gcm => 1,
            Self::A256Gcm => 3,
        }
    }

    /// The suite of a COSE algorithm number, if we speak it.
    pub fn from_number(number: i64) -> Option<Self> {
        [Self::A128Gcm, Self::A256Gcm]
            .into_iter()
            .find(|suite| suite.number() == number)
    }

    /// Key length in bytes.
    pub fn key_len(self) -> usize {
        match self {
            Self::A128Gcm => 16,
            Self::A256Gcm => 32,
        }
    }
}

/// Key material of one TO2 session; zeroized, never printed.
pub struct SessionKey(Zeroizing<Vec<u8>>);

impl SessionKey {
    /// Takes derived key material.
    pub fn new(material: Zeroizing<Vec<u8>>) -> Self {
        Self(material)
    }

    /// The material, for tests against known answers.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// An AES-GCM key bound to its suite.
pub struct Aead {
    suite: AeadSuite,
    key: LessSafeKey,
}

impl Aead {
    /// Makes the cipher; the key must have the suite's length.
    pub fn new(suite: AeadSuite, key: &SessionKey) -> Result<Self, CryptoError> {
        let algorithm = match suite {
            AeadSuite::A128Gcm => &AES_128_GCM,
            AeadSuite::A256Gcm => &AES_256_GCM,
        };
        let key = UnboundKey::new(algorithm, &key.0).map_err(|_| CryptoError::BadSeal)?;
        Ok(Self {
            suite,
            key: LessSafeKey::new(key),
        })
    }

    /// The suite.
    pub fn suite(&self) -> AeadSuite {
        self.suite
    }

    /// Seals `text`; the result carries the 16-byte tag at its end.
    pub fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], text: &[u8]) -> Vec<u8> {
        let mut sealed = text.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut sealed,
            )
            .expect("a body below 64 KiB is far below what AES-GCM can seal");
        sealed
    }

    /// Opens what `seal` made.
    pub fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        let mut text = sealed.to_vec();
        let len = self
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad),
                &mut text,
            )
            .map_err(|_| CryptoError::BadSeal)?
            .len();
        text.truncate(len);
        Ok(text)
    }
}

impl fmt::Debug for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aead({:?}, ..)", self.suite)
    }
}
