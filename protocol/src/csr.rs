//! Certificate requests (PKCS#10): made by devices, checked by whoever issues.
//!
//! Only the public key of a request is ever used: subject and extensions of a certificate come from
//! the issuer's template, never from what the applicant wrote. Issuing itself is the shell's.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::crypto::{Curve, SigningKey, VerifyingKey};

/// Largest request accepted, in bytes.
pub const MAX_REQUEST: usize = 4 * 1024;

/// DER of the algorithm identifier ecdsa-with-SHA256.
const ECDSA_SHA256: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02,
];
/// The same for ecdsa-with-SHA384.
const ECDSA_SHA384: &[u8] = &[
    0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03,
];
/// DER of the attribute type commonName.
const COMMON_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x04, 0x03];
/// DER tags.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const UTF8_STRING: u8 = 0x0c;
/// The empty attribute set, context tag 0.
const NO_ATTRIBUTES: &[u8] = &[0xa0, 0x00];

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Larger than [`MAX_REQUEST`].
    #[error("certificate request is larger than {MAX_REQUEST} bytes")]
    TooLarge,
    /// Not a PKCS#10 request in DER.
    #[error("not a PKCS#10 certificate request")]
    Malformed,
    /// The key is of a kind that we do not certify.
    #[error("certificate request holds a key that is neither P-256 nor P-384")]
    UnsupportedKey,
    /// The applicant does not hold the private key.
    #[error("certificate request is not signed by its own key")]
    BadSignature,
}

/// A request whose signature was checked: the applicant holds the key's private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csr {
    key: VerifyingKey,
    der: Vec<u8>,
}

impl Csr {
    /// Reads a DER request and checks that it is signed by its own key.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_REQUEST {
            return Err(CsrError::TooLarge);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        let key = VerifyingKey::from_spki_der(info.subject_pki.raw)
            .map_err(|_| CsrError::UnsupportedKey)?;
        let algorithm = match key.curve() {
            Curve::P256 => ECDSA_SHA256,
            Curve::P384 => ECDSA_SHA384,
        };
        // What the signature does not cover has one form only, so a request has one encoding.
        let signature = &request.signature_value.data;
        if assemble(info.raw, algorithm, signature) != der {
            return Err(CsrError::Malformed);
        }
        key.verify_asn1(info.raw, signature)
            .map_err(|_| CsrError::BadSignature)?;
        Ok(Self {
            key,
            der: der.to_vec(),
        })
    }

    /// The key to certify.
    pub fn key(&self) -> &VerifyingKey {
        &self.key
    }

    /// The request as received.
    pub fn as_der(&self) -> &[u8] {
        &self.der
    }
}

/// Makes a request for `key` with the given common name and no attributes, as DER.
pub fn request(common_name: &str, key: &SigningKey) -> Vec<u8> {
    let name = der(UTF8_STRING, &[common_name.as_bytes()]);
    let attribute = der(SEQUENCE, &[COMMON_NAME, &name]);
    let subject = der(SEQUENCE, &[&der(SET, &[&attribute])]);
    let version = der(INTEGER, &[&[0]]);
    let info = der(
        SEQUENCE,
        &[
            &version,
            &subject,
            &key.public().to_spki_der(),
            NO_ATTRIBUTES,
        ],
    );
    assemble(&info, ECDSA_SHA256, &key.sign_asn1(&info))
}

/// Puts signed part, algorithm and signature together.
fn assemble(info: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    der(
        SEQUENCE,
        &[info, algorithm, &der(BIT_STRING, &[&[0], signature])],
    )
}

/// One DER element around the concatenation of `parts`, which is below 64 KiB.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match len {
        0..=0x7f => out.push(len as u8),
        0x80..=0xff => out.extend([0x81, len as u8]),
        _ => {
            out.push(0x82);
            out.extend((len as u16).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRng;

    #[test]
    fn a_request_of_ours_proves_its_key_and_any_flip_is_refused() {
        let key = SigningKey::generate(&mut TestRng::new(1));
        for name in ["thermometer", &"x".repeat(200)] {
            let text = request(name, &key);
            assert_eq!(Csr::parse(&text).unwrap().key(), &key.public());
            for i in 0..text.len() {
                let mut flipped = text.clone();
                flipped[i] ^= 1;
                assert!(Csr::parse(&flipped).is_err(), "byte {i}");
            }
        }
        let mut longer = request("thermometer", &key);
        longer.push(0);
        assert_eq!(Csr::parse(&longer), Err(CsrError::Malformed));
        assert_eq!(
            Csr::parse(&vec![0; MAX_REQUEST + 1]),
            Err(CsrError::TooLarge)
        );
    }
}
