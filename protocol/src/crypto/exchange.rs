//! FDO's key agreement ECDH256 and its key derivation (wire reference sections 13.2 and 13.4).
//!
//! Used by both sides of TO2. The ephemeral secret is consumed by the agreement.

use std::fmt;

use p256::elliptic_curve::Generate;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::{AeadSuite, CryptoError, Curve, SessionKey, VerifyingKey};

/// Width of a coordinate and of the shared x, in bytes.
const COORDINATE: usize = 32;
/// Random bytes that each side adds (`ECDH256`).
const RANDOM: usize = 16;
/// Label and context of the derivation, fixed by FDO.
const KDF_LABEL: &[u8] = b"FIDO-KDF";
const KDF_CONTEXT: &[u8] = b"AutomaticOnboardTunnel";
/// Output of one HMAC-SHA256 block.
const KDF_BLOCK: usize = 32;

/// One side's public half: `bstr(len16 x || len16 y || len16 rand)`, kept as sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcdhParameter {
    key: VerifyingKey,
    random: Vec<u8>,
}

impl EcdhParameter {
    /// Writes the parameter with coordinates at fixed width: 86 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (x, y) = self.key.point()[1..].split_at(COORDINATE);
        let mut out = Vec::with_capacity(6 + 2 * COORDINATE + RANDOM);
        for part in [x, y, &self.random] {
            out.extend_from_slice(&(part.len() as u16).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    /// Reads a parameter; coordinates without their leading zeros are padded.
    pub fn parse(bytes: &[u8]) -> Result<Self, CryptoError> {
        let mut rest = bytes;
        let mut part = || -> Result<&[u8], CryptoError> {
            let (len, tail) = rest
                .split_first_chunk::<2>()
                .ok_or(CryptoError::BadExchange)?;
            let (part, tail) = tail
                .split_at_checked(usize::from(u16::from_be_bytes(*len)))
                .ok_or(CryptoError::BadExchange)?;
            rest = tail;
            Ok(part)
        };
        let (x, y, random) = (part()?, part()?, part()?);
        if !rest.is_empty() || random.len() != RANDOM {
            return Err(CryptoError::BadExchange);
        }
        let key = VerifyingKey::from_coordinates(Curve::P256, x, y)
            .map_err(|_| CryptoError::BadExchange)?;
        Ok(Self {
            key,
            random: random.to_vec(),
        })
    }
}

/// One side's ephemeral secret; used once.
pub struct EcdhSecret {
    secret: p256::ecdh::EphemeralSecret,
    parameter: EcdhParameter,
}

/// Which side of TO2 derives: the order of the two random parts depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Owner,
}

impl EcdhSecret {
    /// Draws an ephemeral key and the random part.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let secret = p256::ecdh::EphemeralSecret::generate_from_rng(rng);
        let mut random = vec![0; RANDOM];
        rng.fill_bytes(&mut random);
        let key = VerifyingKey::from_p256(&p256::ecdsa::VerifyingKey::from(secret.public_key()));
        Self {
            secret,
            parameter: EcdhParameter { key, random },
        }
    }

    /// The half to send.
    pub fn parameter(&self) -> &EcdhParameter {
        &self.parameter
    }

    /// Agrees as the device, `peer` being the owner's xA, and derives the session key.
    pub fn agree_as_device(self, peer: &EcdhParameter, suite: AeadSuite) -> SessionKey {
        self.agree(peer, suite, Side::Device)
    }

    /// Agrees as the owner, `peer` being the device's xB, and derives the session key.
    pub fn agree_as_owner(self, peer: &EcdhParameter, suite: AeadSuite) -> SessionKey {
        self.agree(peer, suite, Side::Owner)
    }

    /// ShSe = shared x, device random, owner random.
    fn agree(self, peer: &EcdhParameter, suite: AeadSuite, side: Side) -> SessionKey {
        let point = p256::PublicKey::from_sec1_bytes(peer.key.point())
            .expect("a P-256 VerifyingKey lies on its curve");
        let shared = self.secret.diffie_hellman(&point);
        let (device, owner) = match side {
            Side::Device => (&self.parameter.random, &peer.random),
            Side::Owner => (&peer.random, &self.parameter.random),
        };
        let mut secret = Zeroizing::new(Vec::with_capacity(COORDINATE + 2 * RANDOM));
        secret.extend_from_slice(shared.raw_secret_bytes());
        secret.extend_from_slice(device);
        secret.extend_from_slice(owner);
        SessionKey::new(kdf(&secret, &[], suite.key_len()))
    }
}

impl fmt::Debug for EcdhSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EcdhSecret(..)")
    }
}

/// NIST SP 800-108 in counter mode with HMAC-SHA256, as FDO fixes it: a one-byte counter first and
/// the length in bits as two bytes last. `len` is in bytes and at most 64.
pub fn kdf(secret: &[u8], context_random: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    assert!(len <= 2 * KDF_BLOCK, "FDO derives at most 512 bits");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let bits = (len * 8) as u16;
    let mut out = Zeroizing::new(Vec::with_capacity(2 * KDF_BLOCK));
    for i in 1..=len.div_ceil(KDF_BLOCK) as u8 {
        let mut context = ring::hmac::Context::with_key(&key);
        for part in [
            &[i][..],
            KDF_LABEL,
            &[0],
            KDF_CONTEXT,
            context_random,
            &bits.to_be_bytes(),
        ] {
            context.update(part);
        }
        out.extend_from_slice(context.sign().as_ref());
    }
    out.truncate(len);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn derivation_gives_the_known_answers() {
        let secret = hex(concat!(
            "08c9dc0cc5e9dd2558a12ae60cd00670d01a09cca52bae8a671a21e1babdb25b",
            "c21963c48b4aa77bb8ed338f0c5a15efee069ce10a09be2aacf857b8dcd9df8e"
        ));
        assert_eq!(
            kdf(&secret, &[], 32).as_slice(),
            hex("e5e959c8cbdd5989c819f7ea8c69bcb3f70a442830ba235c5aa0b4047d0cda0b")
        );
        assert_eq!(
            kdf(&secret, &[], 16).as_slice(),
            hex("4738aba03ce2a9c1d53e27a14e8cfcf8")
        );
        assert_eq!(kdf(&secret, &[], 48).len(), 48);
    }

    #[test]
    fn both_sides_derive_from_shared_x_then_device_then_owner() {
        let rng = &mut crate::fixture::TestRng::new(1);
        let (device, owner) = (EcdhSecret::generate(rng), EcdhSecret::generate(rng));
        let [xa, xb] = [&owner, &device].map(|side| side.parameter().to_bytes());
        assert_eq!(xa.len(), 86);
        let shared = device.secret.diffie_hellman(
            &p256::PublicKey::from_sec1_bytes(owner.parameter.key.point()).unwrap(),
        );
        let secret = [&shared.raw_secret_bytes()[..], &xb[70..], &xa[70..]].concat();
        let read = |bytes: &[u8]| EcdhParameter::parse(bytes).unwrap();
        for suite in [AeadSuite::A128Gcm, AeadSuite::A256Gcm] {
            let [owner, device] = [1, 2].map(|_| {
                let rng = &mut crate::fixture::TestRng::new(1);
                (EcdhSecret::generate(rng), EcdhSecret::generate(rng))
            });
            let by_device = device.0.agree_as_device(&read(&xa), suite);
            let by_owner = owner.1.agree_as_owner(&read(&xb), suite);
            let expected = kdf(&secret, &[], suite.key_len());
            assert_eq!(by_device.expose(), &expected[..]);
            assert_eq!(by_owner.expose(), &expected[..]);
        }
    }

    #[test]
    fn coordinates_without_leading_zeros_are_padded() {
        // Some implementation strips them; look for a point whose x starts with a zero.
        let rng = &mut crate::fixture::TestRng::new(2);
        let full = (0..5000)
            .map(|_| EcdhSecret::generate(rng).parameter().to_bytes())
            .find(|bytes| bytes[2] == 0)
            .unwrap();
        let short = [&[0, 31], &full[3..]].concat();
        assert_eq!(EcdhParameter::parse(&short), EcdhParameter::parse(&full));
        for broken in [&full[..85], &[&full[..], &[0]].concat(), &[0, 33], &[]] {
            EcdhParameter::parse(broken).unwrap_err();
        }
    }
}
