//! Hashes and HMACs as FDO names and encodes them (wire reference section 3).
//!
//! A verifier always honours the algorithm that is in the message; a writer chooses SHA-256.

use std::fmt;

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::CryptoError;
use crate::wire::cbor::{self, Reader, Writer};

/// Length of the HMAC secret that a device keeps: 32 bytes serve both HMAC algorithms.
const HMAC_SECRET_LEN: usize = 32;
/// Longest digest we know: SHA-384.
const MAX_DIGEST: usize = 48;

/// Hash algorithms of FDO, with their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashAlg {
    /// Number -16, 32 bytes.
    Sha256,
    /// Number -43, 48 bytes.
    Sha384,
}

impl HashAlg {
    /// Number on the wire.
    pub fn number(self) -> i64 {
        match self {
            Self::Sha256 => -16,
            Self::Sha384 => -43,
        }
    }

    /// Length of a value, in bytes.
    pub fn value_len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    fn from_number(number: i64) -> Option<Self> {
        [Self::Sha256, Self::Sha384]
            .into_iter()
            .find(|alg| alg.number() == number)
    }
}

/// HMAC algorithms of FDO, with their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MacAlg {
    /// Number 5, 32 bytes.
    HmacSha256,
    /// Number 6, 48 bytes.
    HmacSha384,
}

impl MacAlg {
    /// Number on the wire.
    pub fn number(self) -> i64 {
        match self {
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
        }
    }

    /// The hash under this HMAC.
    pub fn hash_alg(self) -> HashAlg {
        match self {
            Self::HmacSha256 => HashAlg::Sha256,
            Self::HmacSha384 => HashAlg::Sha384,
        }
    }

    fn from_number(number: i64) -> Option<Self> {
        [Self::HmacSha256, Self::HmacSha384]
            .into_iter()
            .find(|alg| alg.number() == number)
    }
}

/// FDO `Hash = [hashtype: int, hash: bstr]`; the length always fits the algorithm.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Hash {
    alg: HashAlg,
    value: Box<[u8]>,
}

impl Hash {
    /// Takes a value; its length must fit `alg`.
    pub fn new(alg: HashAlg, value: &[u8]) -> Result<Self, CryptoError> {
        if value.len() != alg.value_len() {
            return Err(CryptoError::BadHashLength);
        }
        Ok(Self {
            alg,
            value: value.into(),
        })
    }

    /// The algorithm.
    pub fn alg(&self) -> HashAlg {
        self.alg
    }

    /// The digest.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Whether this is the hash of the concatenation of `parts`, by this hash's own algorithm.
    pub fn matches(&self, parts: &[&[u8]]) -> bool {
        hash_parts(self.alg, parts) == *self
    }

    /// Writes `[hashtype, bstr]`.
    pub fn encode(&self, w: &mut Writer) {
        w.array(2).int(self.alg.number()).bytes(&self.value);
    }

    /// Reads `[hashtype, bstr]`; HMAC numbers are refused here.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, cbor::CborError> {
        r.array(2)?;
        let alg = HashAlg::from_number(r.int()?).ok_or(cbor::CborError::Value("hash type"))?;
        let value = r.bytes(MAX_DIGEST)?;
        Self::new(alg, value).map_err(|_| cbor::CborError::Value("hash length"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({:?}, ", self.alg)?;
        self.value[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..)")
    }
}

/// FDO `HMac = [hashtype: int, hash: bstr]`; the length always fits the algorithm.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Mac {
    alg: MacAlg,
    value: Box<[u8]>,
}

impl Mac {
    /// Takes a value; its length must fit `alg`.
    pub fn new(alg: MacAlg, value: &[u8]) -> Result<Self, CryptoError> {
        if value.len() != alg.hash_alg().value_len() {
            return Err(CryptoError::BadHashLength);
        }
        Ok(Self {
            alg,
            value: value.into(),
        })
    }

    /// The algorithm.
    pub fn alg(&self) -> MacAlg {
        self.alg
    }

    /// The code itself.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// Checks in constant time that `secret` made this code over `text`.
    pub fn verify(&self, secret: &HmacSecret, text: &[u8]) -> Result<(), CryptoError> {
        let key = ring::hmac::Key::new(ring_hmac(self.alg), &secret.0[..]);
        ring::hmac::verify(&key, text, &self.value).map_err(|_| CryptoError::BadMac)
    }

    /// Writes `[hashtype, bstr]`.
    pub fn encode(&self, w: &mut Writer) {
        w.array(2).int(self.alg.number()).bytes(&self.value);
    }

    /// Reads `[hashtype, bstr]`; plain hash numbers are refused here.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, cbor::CborError> {
        r.array(2)?;
        let alg = MacAlg::from_number(r.int()?).ok_or(cbor::CborError::Value("hmac type"))?;
        let value = r.bytes(MAX_DIGEST)?;
        Self::new(alg, value).map_err(|_| cbor::CborError::Value("hmac length"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({:?}, ..)", self.alg)
    }
}

/// The device's HMAC secret (`DCHmacSecret`): 32 bytes, zeroized, never printed.
#[derive(Clone)]
pub struct HmacSecret(Zeroizing<[u8; HMAC_SECRET_LEN]>);

impl HmacSecret {
    /// Draws a new secret.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut secret = Zeroizing::new([0; HMAC_SECRET_LEN]);
        rng.fill_bytes(&mut secret[..]);
        Self(secret)
    }

    /// Takes a stored secret.
    pub fn from_bytes(bytes: [u8; HMAC_SECRET_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret itself, for storing it in a protected place.
    pub fn expose(&self) -> &[u8; HMAC_SECRET_LEN] {
        &self.0
    }
}

impl fmt::Debug for HmacSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacSecret(..)")
    }
}

/// Hash of `text`.
pub fn hash(alg: HashAlg, text: &[u8]) -> Hash {
    hash_parts(alg, &[text])
}

/// Hash of the plain concatenation of `parts`.
pub fn hash_parts(alg: HashAlg, parts: &[&[u8]]) -> Hash {
    let mut context = ring::digest::Context::new(match alg {
        HashAlg::Sha256 => &ring::digest::SHA256,
        HashAlg::Sha384 => &ring::digest::SHA384,
    });
    parts.iter().for_each(|part| context.update(part));
    Hash {
        alg,
        value: context.finish().as_ref().into(),
    }
}

/// HMAC of `text` under the device's secret.
pub fn hmac(alg: MacAlg, secret: &HmacSecret, text: &[u8]) -> Mac {
    let key = ring::hmac::Key::new(ring_hmac(alg), &secret.0[..]);
    Mac {
        alg,
        value: ring::hmac::sign(&key, text).as_ref().into(),
    }
}

fn ring_hmac(alg: MacAlg) -> ring::hmac::Algorithm {
    match alg {
        MacAlg::HmacSha256 => ring::hmac::HMAC_SHA256,
        MacAlg::HmacSha384 => ring::hmac::HMAC_SHA384,
    }
}
