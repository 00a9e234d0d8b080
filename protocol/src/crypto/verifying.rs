//! Public keys of anybody: P-256 and P-384, read from and written as SubjectPublicKeyInfo.
//!
//! Used for owner keys, device keys and record signers. Compressed points and explicit curve
//! parameters are refused: a key has exactly one encoding here, so equal keys have equal bytes.

use std::fmt;

use ring::signature as rs;

use super::CryptoError;

/// DER before the point in a P-256 SubjectPublicKeyInfo (RFC 5480); the whole is 91 bytes.
const P256_SPKI: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// DER before the point in a P-384 SubjectPublicKeyInfo (RFC 5480); the whole is 120 bytes.
const P384_SPKI: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];
/// First byte of an uncompressed point (SEC 1).
const UNCOMPRESSED: u8 = 0x04;

/// The curve of a public key; it decides the signature algorithm (ES256 or ES384).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Curve {
    /// secp256r1 with SHA-256.
    P256,
    /// secp384r1 with SHA-384.
    P384,
}

impl Curve {
    /// Bytes of one coordinate: 32 or 48.
    pub fn coordinate_len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    fn spki_prefix(self) -> &'static [u8] {
        match self {
            Self::P256 => P256_SPKI,
            Self::P384 => P384_SPKI,
        }
    }
}

/// A public key: curve and uncompressed point. Two equal keys compare equal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerifyingKey {
    curve: Curve,
    /// 0x04, x, y.
    point: Box<[u8]>,
}

impl VerifyingKey {
    /// Reads a DER SubjectPublicKeyInfo; the point of a P-256 key is checked to lie on the curve.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, CryptoError> {
        for curve in [Curve::P256, Curve::P384] {
            if let Some(point) = der.strip_prefix(curve.spki_prefix()) {
                return Self::from_point(curve, point);
            }
        }
        Err(CryptoError::BadPublicKey)
    }

    /// Reads an uncompressed point (SEC 1, starting with 0x04).
    pub fn from_point(curve: Curve, point: &[u8]) -> Result<Self, CryptoError> {
        let right_form = point.len() == 1 + 2 * curve.coordinate_len() && point[0] == UNCOMPRESSED;
        if !right_form {
            return Err(CryptoError::BadPublicKey);
        }
        // A P-384 point is checked by ring at each verification; no key of ours is on that curve.
        if curve == Curve::P256 && p256::PublicKey::from_sec1_bytes(point).is_err() {
            return Err(CryptoError::BadPublicKey);
        }
        Ok(Self {
            curve,
            point: point.into(),
        })
    }

    /// Reads affine coordinates; shorter ones are padded on the left.
    pub fn from_coordinates(curve: Curve, x: &[u8], y: &[u8]) -> Result<Self, CryptoError> {
        let width = curve.coordinate_len();
        if x.len() > width || y.len() > width {
            return Err(CryptoError::BadPublicKey);
        }
        let mut point = vec![0; 1 + 2 * width];
        point[0] = UNCOMPRESSED;
        point[1 + width - x.len()..1 + width].copy_from_slice(x);
        point[1 + 2 * width - y.len()..].copy_from_slice(y);
        Self::from_point(curve, &point)
    }

    pub(super) fn from_p256(key: &p256::ecdsa::VerifyingKey) -> Self {
        Self {
            curve: Curve::P256,
            point: key.to_sec1_point(false).as_bytes().into(),
        }
    }

    /// The key as DER SubjectPublicKeyInfo: 91 bytes (P-256) or 120 bytes (P-384).
    pub fn to_spki_der(&self) -> Vec<u8> {
        [self.curve.spki_prefix(), &self.point].concat()
    }

    /// The curve of this key.
    pub fn curve(&self) -> Curve {
        self.curve
    }

    /// The uncompressed point, 0x04 first.
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// Verifies a signature in COSE form (r and s at fixed width) over `text`.
    pub fn verify(&self, text: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        match self.curve {
            Curve::P256 => self.check(&rs::ECDSA_P256_SHA256_FIXED, text, signature),
            Curve::P384 => self.check(&rs::ECDSA_P384_SHA384_FIXED, text, signature),
        }
    }

    /// Verifies a signature in ASN.1 form (X.509, PKCS#10), hashed as usual for the curve.
    pub fn verify_asn1(&self, text: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        match self.curve {
            Curve::P256 => self.check(&rs::ECDSA_P256_SHA256_ASN1, text, signature),
            Curve::P384 => self.check(&rs::ECDSA_P384_SHA384_ASN1, text, signature),
        }
    }

    fn check(
        &self,
        algorithm: &'static rs::EcdsaVerificationAlgorithm,
        text: &[u8],
        signature: &[u8],
    ) -> Result<(), CryptoError> {
        rs::UnparsedPublicKey::new(algorithm, &self.point)
            .verify(text, signature)
            .map_err(|_| CryptoError::BadSignature)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({:?}, ", self.curve)?;
        self.point[1..9]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..)")
    }
}
