//! COSE as FDO and our own records use it: `COSE_Sign1` and `COSE_Encrypt0` (wire sections 4, 14).
//!
//! Signatures are verified over the received bytes of header and payload; nothing is encoded anew
//! first. The algorithm must be in the protected header and must fit the key.

use rand_core::CryptoRng;

use super::cbor::{self, CborError, Reader, Writer};
use crate::crypto::{Aead, CryptoError, Curve, SigningKey, VerifyingKey};

/// CBOR tag of `COSE_Sign1`.
pub const TAG_SIGN1: u64 = 18;
/// CBOR tag of `COSE_Encrypt0`.
pub const TAG_ENCRYPT0: u64 = 16;

/// Header label `alg`.
const ALG: i64 = 1;
/// Header label `crit`: we understand no critical header, so its presence is refused.
const CRIT: i64 = 2;
/// Header label `IV`.
const IV: i64 = 5;
/// Most header entries in one map.
const MAX_HEADERS: usize = 16;
/// Largest header, payload or ciphertext; messages are bounded tighter by their readers.
const MAX_PART: usize = 1 << 20;
/// Longest signature: ES384.
const MAX_SIGNATURE: usize = 96;
/// Length of the AES-GCM nonce.
const NONCE: usize = 12;

/// Why a COSE structure was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CoseError {
    /// Not the CBOR structure asked for.
    #[error("not the COSE structure expected: {0}")]
    Shape(#[from] CborError),
    /// No algorithm in the protected header.
    #[error("no algorithm in the protected header")]
    AlgorithmNotProtected,
    /// An algorithm we do not speak.
    #[error("unknown algorithm {0}")]
    UnknownAlgorithm(i64),
    /// The algorithm does not fit the key or the suite agreed.
    #[error("the algorithm does not fit the key")]
    WrongAlgorithm,
    /// A header label occurs twice, or a critical header that we do not understand.
    #[error("illegal header")]
    BadHeader,
    /// Signature or seal does not hold.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// A `COSE_Sign1` with its exact bytes: `#6.18([protected, unprotected, payload, signature])`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sign1 {
    raw: Vec<u8>,
    protected: Vec<u8>,
    unprotected: Headers,
    payload: Vec<u8>,
    signature: Vec<u8>,
    curve: Curve,
}

impl Sign1 {
    /// Signs `payload` with nothing in the unprotected header.
    pub fn sign(payload: &[u8], key: &SigningKey) -> Self {
        Self::sign_with(payload, Headers::default(), key)
    }

    /// Signs `payload`; `unprotected` travels along without being covered by the signature.
    pub fn sign_with(payload: &[u8], unprotected: Headers, key: &SigningKey) -> Self {
        let curve = Curve::P256;
        let protected = protected_alg(signature_number(curve));
        let signature = key.sign(&to_be_signed(&protected, payload));
        let raw = cbor::encode(|w| {
            w.tag(TAG_SIGN1).array(4).bytes(&protected);
            unprotected.encode(w);
            w.bytes(payload).bytes(&signature);
        });
        Self {
            raw,
            protected,
            unprotected,
            payload: payload.to_vec(),
            signature,
            curve,
        }
    }

    /// Reads a tagged `COSE_Sign1`; the signature is not verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, CoseError> {
        let mut r = Reader::new(bytes)?;
        r.tag(TAG_SIGN1)?;
        r.array(4)?;
        let protected = r.bytes(MAX_PART)?;
        let unprotected = Headers::decode(&mut r)?;
        let payload = r.bytes(MAX_PART)?;
        let signature = r.bytes(MAX_SIGNATURE)?;
        r.end()?;
        let alg = read_protected_alg(protected)?;
        if unprotected.get(ALG).is_some() || unprotected.get(CRIT).is_some() {
            return Err(CoseError::BadHeader);
        }
        Ok(Self {
            raw: bytes.to_vec(),
            protected: protected.to_vec(),
            unprotected,
            payload: payload.to_vec(),
            signature: signature.to_vec(),
            curve: signature_curve(alg)?,
        })
    }

    /// Verifies the signature over the bytes as received.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), CoseError> {
        if key.curve() != self.curve {
            return Err(CoseError::WrongAlgorithm);
        }
        key.verify(
            &to_be_signed(&self.protected, &self.payload),
            &self.signature,
        )?;
        Ok(())
    }

    /// The exact encoding, tag included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The signed content. Trust it only after [`Sign1::verify`].
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What travels beside the signed content, never trusted.
    pub fn unprotected(&self) -> &Headers {
        &self.unprotected
    }
}

/// A header map: labels with encoded values, in bytewise order of the label's encoding on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(i64, Vec<u8>)>,
}

impl Headers {
    /// Adds an entry; `value` is one encoded CBOR item. A label may be added once.
    pub fn with(mut self, label: i64, value: Vec<u8>) -> Self {
        debug_assert!(self.get(label).is_none(), "a header label occurs once");
        self.entries.push((label, value));
        // Bytewise order of the encoded labels: that of deterministic CBOR (RFC 8949, 4.2.1).
        self.entries
            .sort_by_key(|(label, _)| cbor::encode(|w| _ = w.int(*label)));
        self
    }

    /// The encoded value under `label`.
    pub fn get(&self, label: i64) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|(at, _)| *at == label)
            .map(|(_, value)| value.as_slice())
    }

    fn encode(&self, w: &mut Writer) {
        w.map(self.entries.len());
        for (label, value) in &self.entries {
            w.int(*label).raw(value);
        }
    }

    /// Keeps the order found, so that encoding again gives the same bytes.
    fn decode(r: &mut Reader<'_>) -> Result<Self, CoseError> {
        let pairs = r.map_len(MAX_HEADERS)?;
        let mut headers = Self::default();
        for _ in 0..pairs {
            let label = r.int()?;
            if headers.get(label).is_some() {
                return Err(CoseError::BadHeader);
            }
            headers.entries.push((label, r.raw()?.to_vec()));
        }
        Ok(headers)
    }
}

/// `COSE_Encrypt0` of TO2's tunnel: `#6.16([{1: alg}, {5: IV}, ciphertext])`.
#[derive(Debug, Clone, Copy)]
pub struct Encrypt0;

impl Encrypt0 {
    /// Seals `text` under a fresh random IV.
    pub fn seal(aead: &Aead, text: &[u8], rng: &mut dyn CryptoRng) -> Vec<u8> {
        let mut iv = [0; NONCE];
        rng.fill_bytes(&mut iv);
        let protected = protected_alg(aead.suite().number());
        let sealed = aead.seal(iv, &encrypt_aad(&protected), text);
        cbor::encode(|w| {
            w.tag(TAG_ENCRYPT0).array(3).bytes(&protected);
            w.map(1).int(IV).bytes(&iv).bytes(&sealed);
        })
    }

    /// Opens a sealed text; a missing tag 16 is tolerated, a differing algorithm is not.
    pub fn open(aead: &Aead, bytes: &[u8]) -> Result<Vec<u8>, CoseError> {
        let mut r = Reader::new(bytes)?;
        if r.kind() == cbor::Kind::Tag {
            r.tag(TAG_ENCRYPT0)?;
        }
        r.array(3)?;
        let protected = r.bytes(MAX_PART)?;
        let unprotected = Headers::decode(&mut r)?;
        let sealed = r.bytes(MAX_PART)?;
        r.end()?;
        if read_protected_alg(protected)? != aead.suite().number() {
            return Err(CoseError::WrongAlgorithm);
        }
        let iv = unprotected.get(IV).ok_or(CoseError::BadHeader)?;
        let iv = Reader::new(iv)?.bytes_exact::<NONCE>()?;
        Ok(aead.open(iv, &encrypt_aad(protected), sealed)?)
    }
}

fn protected_alg(number: i64) -> Vec<u8> {
    cbor::encode(|w| _ = w.map(1).int(ALG).int(number))
}

/// The algorithm in a protected header; other labels are let pass, `crit` is not.
fn read_protected_alg(protected: &[u8]) -> Result<i64, CoseError> {
    if protected.is_empty() {
        return Err(CoseError::AlgorithmNotProtected);
    }
    let mut r = Reader::new(protected)?;
    let headers = Headers::decode(&mut r)?;
    r.end()?;
    if headers.get(CRIT).is_some() {
        return Err(CoseError::BadHeader);
    }
    let alg = headers.get(ALG).ok_or(CoseError::AlgorithmNotProtected)?;
    Ok(Reader::new(alg)?.int()?)
}

/// ES256 is -7, ES384 is -35.
fn signature_number(curve: Curve) -> i64 {
    match curve {
        Curve::P256 => -7,
        Curve::P384 => -35,
    }
}

fn signature_curve(number: i64) -> Result<Curve, CoseError> {
    [Curve::P256, Curve::P384]
        .into_iter()
        .find(|curve| signature_number(*curve) == number)
        .ok_or(CoseError::UnknownAlgorithm(number))
}

/// `Sig_structure = ["Signature1", protected, h'', payload]`.
fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    cbor::encode(|w| {
        _ = w
            .array(4)
            .text("Signature1")
            .bytes(protected)
            .bytes(&[])
            .bytes(payload)
    })
}

/// `Enc_structure = ["Encrypt0", protected, h'']`.
fn encrypt_aad(protected: &[u8]) -> Vec<u8> {
    cbor::encode(|w| _ = w.array(3).text("Encrypt0").bytes(protected).bytes(&[]))
}
