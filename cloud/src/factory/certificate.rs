//! The device certificate of the factory: what FDO's voucher carries as the device's certificate
//! chain, made from the key of the device's certification request.
//!
//! Called by [`super`]. It has nothing to do with the purchaser's authority: another key, another
//! name space. It proves only that this factory saw the key; the purchaser trusts it by voucher.

use std::path::Path;
use std::time::Duration;

use holdfast_config::secret_file;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm, SubjectPublicKeyInfo,
};

/// Characters of a common name (X.520).
const COMMON_NAME: usize = 64;
/// 9999-12-30, the last day that X.509 can write.
const LAST_MOMENT: u64 = 253_402_128_000;
/// Certificates begin so long before they are made, for devices whose clock is behind.
const BACKDATED: u64 = 24 * 3600;

/// Why the factory has no working certificate authority.
#[derive(Debug, thiserror::Error)]
pub enum FactoryError {
    /// The certificate could not be written down.
    #[error("the factory's certificate could not be made: {0}")]
    Encoding(#[from] rcgen::Error),
    /// The certificate file failed.
    #[error("cannot use the factory's certificate file: {0}; check its owner and mode")]
    File(#[from] std::io::Error),
}

/// The factory's certificate authority: one key, one self-signed certificate, devices below it.
#[derive(Debug)]
pub struct FactoryAuthority {
    key: FactoryKey,
    /// The self-signed certificate, DER.
    root: Vec<u8>,
}

impl FactoryAuthority {
    /// Opens the authority of `key`; its certificate is read from `path` or made there.
    ///
    /// # Errors
    /// The certificate can be neither read nor made.
    pub fn open(path: &Path, key: SigningKey, now: u64) -> Result<Self, FactoryError> {
        let key = FactoryKey::new(key);
        let root = match std::fs::read(path) {
            Ok(der) => der,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                let made = root_params(now)?.self_signed(&key)?.der().to_vec();
                secret_file::write_public(path, &made)?;
                made
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { key, root })
    }

    /// A certificate for the device `serial` with the key `spki` (SubjectPublicKeyInfo DER), and
    /// the factory's own behind it: the chain as FDO's voucher carries it, leaf first.
    ///
    /// # Errors
    /// `spki` is no key that a certificate can carry.
    pub fn certify(
        &self,
        spki: &[u8],
        serial: &str,
        now: u64,
        life: Duration,
    ) -> Result<Vec<Vec<u8>>, FactoryError> {
        let mut params = common(&format!("device {serial}"), now, life.as_secs());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.root.as_slice().into(), &self.key)?;
        let subject = SubjectPublicKeyInfo::from_der(spki)?;
        let leaf = params.signed_by(&subject, &issuer)?.der().to_vec();
        Ok(vec![leaf, self.root.clone()])
    }
}

fn root_params(now: u64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = common("Holdfast factory", now, LAST_MOMENT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn common(name: &str, now: u64, life: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut serial: [u8; 16] = random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // rcgen's calendar function spares this crate a calendar library of its own.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let until = now.saturating_add(life).min(LAST_MOMENT);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(BACKDATED).min(LAST_MOMENT));
    params.not_after = epoch + Duration::from_secs(until);
    params.distinguished_name = DistinguishedName::new();
    let name: String = name
        .chars()
        .filter(|c| !c.is_control())
        .take(COMMON_NAME)
        .collect();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn random() -> [u8; 16] {
    use rand_core::Rng as _;
    let mut bytes = [0; 16];
    SystemRandom.fill_bytes(&mut bytes);
    bytes
}

/// Our P-256 key in the shape that the certificate writer wants.
struct FactoryKey {
    key: SigningKey,
    point: Vec<u8>,
}

impl FactoryKey {
    fn new(key: SigningKey) -> Self {
        let point = key.public().point().to_vec();
        Self { key, point }
    }
}

impl std::fmt::Debug for FactoryKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("FactoryKey")
    }
}

impl PublicKeyData for FactoryKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for FactoryKey {
    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign_asn1(text))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::key::certificate_key;

    use super::*;

    #[test]
    fn a_device_certificate_carries_the_device_key_and_is_signed_by_the_factory() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("factory.der");
        let key = SigningKey::generate(&mut SystemRandom);
        let factory = FactoryAuthority::open(&path, key.clone(), 1_800_000_000).expect("made");
        let again = FactoryAuthority::open(&path, key, 1_900_000_000).expect("read");
        assert_eq!(factory.root, again.root, "made once");
        let device = SigningKey::generate(&mut SystemRandom).public();
        let chain = factory
            .certify(
                &device.to_spki_der(),
                "t-1\n",
                1_800_000_000,
                Duration::from_secs(3600),
            )
            .expect("certified");
        assert_eq!(chain.len(), 2);
        assert_eq!(
            certificate_key(&chain[0]).expect("parses").to_spki_der(),
            device.to_spki_der()
        );
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let key = SigningKey::generate(&mut SystemRandom);
        let factory = FactoryAuthority::open(&folder.path().join("f"), key, 0).expect("made");
        assert!(factory.certify(b"nonsense", "t", 0, Duration::MAX).is_err());
    }
}
