//! The partner's certificates: its authority, its broker's certificate, and one for our gateway.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// The name in the broker's certificate, which is in no DNS.
pub(crate) const SERVER: &str = "broker.partner.example";
/// The name in our certificate, which the broker takes for the user.
pub(crate) const USER: &str = "harbour";

/// An authority of the world outside.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Writes `<stem>.pem` and `<stem>.key` for a bearer of `name`; no extended key usage, as many
    /// authorities of plants do it.
    pub(crate) fn certify(&self, folder: &Path, stem: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        replace(&folder.join(format!("{stem}.pem")), &leaf.pem());
        replace(&folder.join(format!("{stem}.key")), &key.serialize_pem());
    }

    /// Writes the authority's own certificate.
    pub(crate) fn write(&self, path: &Path) -> PathBuf {
        replace(path, &self.pem);
        path.to_owned()
    }
}

/// As whoever renews certificates does it: whole or not at all, and for few eyes.
pub(crate) fn replace(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(fresh, path).unwrap();
}
