//! The device credential: a UUID that the register gives the device, and asks for at each update.

use rand_core::CryptoRng;
use zeroize::Zeroize;

use crate::crypto::{HashAlg, hash};

/// What is hashed before the credential, so that the hash stands for nothing else.
const PURPOSE: &[u8] = b"holdfast/credential/1";

/// A device credential: a random UUID (version 4). `Debug` prints nothing of it; zeroized on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential([u8; 16]);

impl Credential {
    /// Draws a new one.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// From its 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes: for the wire and the device's own store.
    #[must_use]
    pub fn expose(&self) -> &[u8; 16] {
        &self.0
    }

    /// What the register keeps in its stead.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let text = [PURPOSE, &self.0].concat();
        let hash = hash(HashAlg::Sha256, &text);
        let mut digest = [0; 32];
        digest.copy_from_slice(hash.value());
        digest
    }
}

impl Drop for Credential {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(..)")
    }
}
