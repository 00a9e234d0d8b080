//! Secrets at rest, sealed under a key that lies somewhere else.
//!
//! Called by whoever keeps private keys in files. AES-256-GCM under a key derived (HKDF-SHA-256)
//! from the secret that the system hands to a service; a random nonce for each sealing, of which
//! there are few. The form is not bound to a file's name: a key may be moved beside its successor.

use std::fmt;

use rand_core::CryptoRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use super::CryptoError;
use super::aead::NONCE_LEN;

/// First bytes of everything sealed; no DER or PEM begins so.
const MARK: &[u8; 8] = b"HFSEAL1\n";
/// Separates this use of the secret from any other.
const LABEL: &[u8] = b"holdfast seal of files, 1";

/// Seals and opens; zeroized by ring's rules, never printed.
pub struct Seal(LessSafeKey);

impl Seal {
    /// Shortest secret taken, in bytes.
    pub const MIN_SECRET: usize = 32;

    /// The seal of a secret; none if that is too short to be one.
    #[must_use]
    pub fn from_secret(secret: &[u8]) -> Option<Self> {
        if secret.len() < Self::MIN_SECRET {
            return None;
        }
        let derived = Salt::new(HKDF_SHA256, LABEL).extract(secret);
        let key = derived.expand(&[LABEL], &AES_256_GCM).ok()?;
        Some(Self(LessSafeKey::new(UnboundKey::from(key))))
    }

    /// Whether these bytes were sealed, by whatever secret.
    #[must_use]
    pub fn is_sealed(bytes: &[u8]) -> bool {
        bytes.starts_with(MARK)
    }

    /// Seals: mark, nonce, ciphertext with its tag.
    pub fn close(&self, plain: &[u8], rng: &mut impl CryptoRng) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut text = plain.to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(MARK),
                &mut text,
            )
            .expect("a key file is far below what AES-GCM can seal");
        [&MARK[..], &nonce, &text].concat()
    }

    /// Opens what [`Seal::close`] made.
    ///
    /// # Errors
    /// [`CryptoError::BadSeal`]: altered, or sealed under another secret.
    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let rest = sealed.strip_prefix(MARK).ok_or(CryptoError::BadSeal)?;
        let (nonce, text) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(CryptoError::BadSeal)?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self
            .0
            .open_in_place(nonce, Aad::from(MARK), &mut text)
            .map_err(|_| CryptoError::BadSeal)?
            .len();
        text.truncate(length);
        Ok(text)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRng;

    fn seal(byte: u8) -> Seal {
        Seal::from_secret(&[byte; 32]).expect("long enough")
    }

    #[test]
    fn what_is_sealed_opens_by_its_own_seal_alone() {
        let mut rng = TestRng::new(1);
        let plain = b"a private key of thirty-two byte";
        let sealed = seal(1).close(plain, &mut rng);
        assert!(Seal::is_sealed(&sealed) && !Seal::is_sealed(plain));
        assert!(
            !sealed
                .windows(8)
                .any(|part| plain.windows(8).any(|its| its == part))
        );
        assert_eq!(seal(1).open(&sealed).expect("opens")[..], plain[..]);
        assert!(seal(2).open(&sealed).is_err());
        assert_ne!(sealed, seal(1).close(plain, &mut rng), "a nonce twice");
        assert!(Seal::from_secret(&[1; 31]).is_none());
    }

    #[test]
    fn any_flip_and_any_cut_is_refused() {
        let sealed = seal(1).close(b"secret", &mut TestRng::new(1));
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(seal(1).open(&flipped).is_err(), "byte {at}");
            assert!(seal(1).open(&sealed[..at]).is_err(), "cut at {at}");
        }
    }
}
