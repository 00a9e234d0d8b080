//! What this crate's tests share: an authority that issues certificates to either side.

use std::ops::Range;
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::VerifyingKey;
use rand_core::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SubjectPublicKeyInfo, date_time_ymd,
};

/// A root that issues leaves directly.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            der,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for a client of that name, or for a device of its factory (no name).
    pub(crate) fn client(&self, key: &VerifyingKey, dns: Option<String>) -> Vec<u8> {
        self.issue(key, dns, ExtendedKeyUsagePurpose::ClientAuth, None)
    }

    /// A certificate for a client of that name, good within `life` (unix seconds).
    pub(crate) fn client_within(
        &self,
        key: &VerifyingKey,
        dns: String,
        life: Range<u64>,
    ) -> Vec<u8> {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(key, Some(dns), purpose, Some(life))
    }

    /// A certificate for a server of that name.
    pub(crate) fn server(&self, key: &VerifyingKey, dns: String) -> Vec<u8> {
        self.issue(key, Some(dns), ExtendedKeyUsagePurpose::ServerAuth, None)
    }

    fn issue(
        &self,
        key: &VerifyingKey,
        dns: Option<String>,
        purpose: ExtendedKeyUsagePurpose,
        life: Option<Range<u64>>,
    ) -> Vec<u8> {
        let mut params = CertificateParams::new(dns.into_iter().collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        // Else it would follow from the key, and a key that is certified twice have one number.
        params.serial_number = Some((SystemRandom.next_u64() >> 1).into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        if let Some(life) = life {
            let epoch = date_time_ymd(1970, 1, 1);
            params.not_before = epoch + Duration::from_secs(life.start);
            params.not_after = epoch + Duration::from_secs(life.end);
        }
        let key = SubjectPublicKeyInfo::from_der(&key.to_spki_der()).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}
