//! What this crate's tests share: an authority that issues certificates to either side.

use holdfast_protocol::crypto::VerifyingKey;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SubjectPublicKeyInfo,
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
        self.issue(key, dns, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A certificate for a server of that name.
    pub(crate) fn server(&self, key: &VerifyingKey, dns: String) -> Vec<u8> {
        self.issue(key, Some(dns), ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn issue(
        &self,
        key: &VerifyingKey,
        dns: Option<String>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Vec<u8> {
        let mut params = CertificateParams::new(dns.into_iter().collect::<Vec<_>>()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = SubjectPublicKeyInfo::from_der(&key.to_spki_der()).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}
