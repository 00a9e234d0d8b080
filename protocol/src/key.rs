//! FDO `PublicKey = [pkType, pkEnc, pkBody]` (wire reference section 3), with its exact encoding.
//!
//! Vouchers and TO2 hash the encoding, so a key read from the wire is never encoded anew: two keys
//! may be the same key in different encodings ([`PublicKey::same_key`]) and still hash differently.
//! We emit the X509 form alone and read X509, X5CHAIN (array, or array inside a byte string) and
//! COSEKEY.

use std::fmt;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::crypto::{Curve, Hash, HashAlg, VerifyingKey, hash};
use crate::wire::cbor::{self, CborError, Kind, Reader};

/// Most certificates in a chain.
pub const MAX_CHAIN: usize = 8;
/// Largest certificate, in bytes.
pub const MAX_CERTIFICATE: usize = 8 * 1024;
/// Largest key encoding that is no chain.
const MAX_KEY: usize = 512;

/// `pkEnc` values.
const ENC_X509: u64 = 1;
const ENC_X5CHAIN: u64 = 2;
const ENC_COSEKEY: u64 = 3;

/// Why a public key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the CBOR structure of a public key.
    #[error("public key is malformed: {0}")]
    Shape(#[from] CborError),
    /// A key type we do not verify with (RSA) or do not know.
    #[error("public key type {0} is not supported")]
    UnsupportedType(u64),
    /// A key encoding we do not read.
    #[error("public key encoding {0} is not supported")]
    UnsupportedEncoding(u64),
    /// The body is not a key of the stated type.
    #[error("public key body does not hold a key of the stated type")]
    BadBody,
}

/// A public key as FDO writes it; keeps the bytes it came in.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    raw: Vec<u8>,
    key: VerifyingKey,
    chain: Vec<Vec<u8>>,
}

impl PublicKey {
    /// Writes `key` in the X509 form.
    pub fn x509(key: &VerifyingKey) -> Self {
        let raw = cbor::encode(|w| {
            w.array(3)
                .uint(type_number(key.curve()))
                .uint(ENC_X509)
                .bytes(&key.to_spki_der());
        });
        Self {
            raw,
            key: key.clone(),
            chain: Vec::new(),
        }
    }

    /// Reads exactly one encoded key.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut r = Reader::new(bytes)?;
        let key = Self::decode(&mut r)?;
        r.end()?;
        Ok(key)
    }

    /// Reads the key that comes next.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, KeyError> {
        let raw = r.raw()?;
        let mut r = Reader::new(raw)?;
        r.array(3)?;
        let curve = type_curve(r.uint()?)?;
        let (key, chain) = match r.uint()? {
            ENC_X509 => (spki(r.bytes(MAX_KEY)?)?, Vec::new()),
            ENC_X5CHAIN => read_chain(&mut r)?,
            ENC_COSEKEY => (read_cose_key(&mut r)?, Vec::new()),
            other => return Err(KeyError::UnsupportedEncoding(other)),
        };
        r.end()?;
        if key.curve() != curve {
            return Err(KeyError::BadBody);
        }
        Ok(Self {
            raw: raw.to_vec(),
            key,
            chain,
        })
    }

    /// The exact encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The key itself.
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// Certificates of an X5CHAIN key, leaf first, as DER; empty for other encodings.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// Whether both are the same key, in whatever encoding.
    pub fn same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Hash of the whole encoding, as `DCPubKeyHash` wants it.
    pub fn hash(&self, alg: HashAlg) -> Hash {
        hash(alg, &self.raw)
    }
}

impl From<&VerifyingKey> for PublicKey {
    fn from(key: &VerifyingKey) -> Self {
        Self::x509(key)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.key).finish()
    }
}

/// `pkType` of our curves.
pub(crate) fn type_number(curve: Curve) -> u64 {
    match curve {
        Curve::P256 => 10,
        Curve::P384 => 11,
    }
}

fn type_curve(number: u64) -> Result<Curve, KeyError> {
    [Curve::P256, Curve::P384]
        .into_iter()
        .find(|curve| type_number(*curve) == number)
        .ok_or(KeyError::UnsupportedType(number))
}

fn spki(der: &[u8]) -> Result<VerifyingKey, KeyError> {
    VerifyingKey::from_spki_der(der).map_err(|_| KeyError::BadBody)
}

/// The public key of a DER certificate, if it is of a curve we verify with.
pub fn certificate_key(der: &[u8]) -> Result<VerifyingKey, KeyError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| KeyError::BadBody)?;
    if !rest.is_empty() {
        return Err(KeyError::BadBody);
    }
    spki(certificate.public_key().raw)
}

/// An array of certificates, leaf first; some implementations wrap it in a byte string.
fn read_chain(r: &mut Reader<'_>) -> Result<(VerifyingKey, Vec<Vec<u8>>), KeyError> {
    if r.kind() == Kind::Bytes {
        let mut inner = Reader::new(r.bytes(MAX_CHAIN * MAX_CERTIFICATE)?)?;
        let out = read_chain_array(&mut inner)?;
        inner.end()?;
        return Ok(out);
    }
    read_chain_array(r)
}

fn read_chain_array(r: &mut Reader<'_>) -> Result<(VerifyingKey, Vec<Vec<u8>>), KeyError> {
    let len = r.array_len(MAX_CHAIN)?;
    let chain = (0..len)
        .map(|_| Ok(r.bytes(MAX_CERTIFICATE)?.to_vec()))
        .collect::<Result<Vec<_>, CborError>>()?;
    let leaf = chain.first().ok_or(KeyError::BadBody)?;
    Ok((certificate_key(leaf)?, chain))
}

/// A `COSE_Key` map with kty (1) or without it, crv (-1), x (-2), y (-3).
fn read_cose_key(r: &mut Reader<'_>) -> Result<VerifyingKey, KeyError> {
    const KTY_EC2: i64 = 2;
    let (mut curve, mut x, mut y) = (None, None, None);
    for _ in 0..r.map_len(4)? {
        match r.int()? {
            1 if r.int()? == KTY_EC2 => {}
            -1 if curve.is_none() => curve = Some(r.int()?),
            -2 if x.is_none() => x = Some(r.bytes(MAX_KEY)?),
            -3 if y.is_none() => y = Some(r.bytes(MAX_KEY)?),
            _ => return Err(KeyError::BadBody),
        }
    }
    let curve = match curve {
        Some(1) => Curve::P256,
        Some(2) => Curve::P384,
        _ => return Err(KeyError::BadBody),
    };
    let (x, y) = x.zip(y).ok_or(KeyError::BadBody)?;
    VerifyingKey::from_coordinates(curve, x, y).map_err(|_| KeyError::BadBody)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::SigningKey;
    use crate::fixture::TestRng;

    #[test]
    fn one_key_in_all_its_encodings() {
        let key = SigningKey::generate(&mut TestRng::new(1)).public();
        let x509 = PublicKey::x509(&key);
        assert_eq!(PublicKey::parse(x509.as_bytes()).unwrap(), x509);
        let (x, y) = key.point()[1..].split_at(32);
        for kty in [false, true] {
            let cose = cbor::encode(|w| {
                w.array(3).uint(10).uint(3).map(3 + usize::from(kty));
                if kty {
                    w.int(1).int(2);
                }
                w.int(-1).int(1).int(-2).bytes(x).int(-3).bytes(y);
            });
            let read = PublicKey::parse(&cose).unwrap();
            assert!(read.same_key(&x509) && read != x509);
            assert_ne!(read.hash(HashAlg::Sha256), x509.hash(HashAlg::Sha256));
        }
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let spki = SigningKey::generate(&mut TestRng::new(2))
            .public()
            .to_spki_der();
        let key = |kind: u64, encoding: u64, body: &[u8]| {
            PublicKey::parse(&cbor::encode(|w| {
                w.array(3).uint(kind).uint(encoding).bytes(body);
            }))
        };
        key(10, 1, &spki).unwrap();
        assert_eq!(key(11, 1, &spki), Err(KeyError::BadBody));
        assert_eq!(key(1, 1, &spki), Err(KeyError::UnsupportedType(1)));
        assert_eq!(key(10, 0, &spki), Err(KeyError::UnsupportedEncoding(0)));
        let mut off_curve = spki.clone();
        *off_curve.last_mut().unwrap() ^= 1;
        assert_eq!(key(10, 1, &off_curve), Err(KeyError::BadBody));
        assert_eq!(
            key(10, 1, &[&spki[..], &[0]].concat()),
            Err(KeyError::BadBody)
        );
        let doubled = cbor::encode(|w| {
            w.array(3)
                .uint(10)
                .uint(3)
                .map(2)
                .int(-1)
                .int(1)
                .int(-1)
                .int(1);
        });
        assert_eq!(PublicKey::parse(&doubled), Err(KeyError::BadBody));
    }
}
