//! Where the authority's private keys are: behind a few verbs, so that they can move into a process
//! or a device of their own. Called by `authority` alone. A key never comes out. `FileSigner`
//! keeps them in files of the key folder.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use holdfast_protocol::crypto::SigningKey;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::pem;
use super::template::{Issuer, Subject, Template};
use crate::keys::{
    KeyError, load, load_or_make, make_folder, read_file, rename_synced, write_secret,
};

/// Kind of the file of a fresh key until its chain is there.
const NEXT: &str = "next.key";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// This issuer has no key or certificate here.
    #[error("no certificate authority '{0}' here; add the site, or enrol the gateway")]
    NoIssuer(String),
    /// The certificate to be installed is not for the key of this issuer.
    #[error("the certificate given for '{0}' is not for this server's key; enrol again")]
    NotOurKey(String),
    /// Key or certificate files failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate could not be written.
    #[error("the certificate could not be made: {0}")]
    Encoding(#[from] rcgen::Error),
}

/// The verbs.
pub trait Signer: Send + Sync + Debug {
    /// Makes the issuer's key if there is none; its public half as SubjectPublicKeyInfo DER.
    ///
    /// # Errors
    /// The key cannot be made or read.
    fn prepare(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError>;

    /// A PKCS#10 for the issuer's key, to have it certified elsewhere.
    ///
    /// # Errors
    /// No such key.
    fn request(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError>;

    /// The same for a fresh key, which takes the place of the present one with the chain that
    /// `install` brings for it. Asked again before that, it is the same fresh key.
    ///
    /// # Errors
    /// The key cannot be made or read.
    fn request_next(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError>;

    /// A root's follower: its own certificate over a fresh key, and the cross-certificate by which whoever
    /// believes the present root believes it. It takes the present one's place with the chain that
    /// `install` brings for it; the present key is gone then.
    ///
    /// # Errors
    /// No such issuer, or the key cannot be made or read.
    fn succeed(&self, own: &Template, cross: &Template) -> Result<[Vec<u8>; 2], SignerError>;

    /// Keeps the issuer's certificate chain, DER: its own first, cross-certificates, roots, the present
    /// one before the earlier.
    ///
    /// # Errors
    /// The first certificate is for neither key of this issuer, or the chain cannot be kept.
    fn install(&self, issuer: &Issuer, chain: &[Vec<u8>]) -> Result<(), SignerError>;

    /// The installed chain, as `install` got it; empty when none is.
    ///
    /// # Errors
    /// The chain cannot be read.
    fn chain(&self, issuer: &Issuer) -> Result<Vec<Vec<u8>>, SignerError>;

    /// Signs one template; DER.
    ///
    /// # Errors
    /// No such issuer, or the template cannot be written as a certificate.
    fn sign(&self, issuer: &Issuer, template: &Template) -> Result<Vec<u8>, SignerError>;
}

/// Keys and chains in files `ca-<issuer>.key` (PKCS#8 DER) and `ca-<issuer>.pem`.
#[derive(Debug)]
pub struct FileSigner {
    folder: PathBuf,
    /// One change of a key or chain file at a time.
    change: Mutex<()>,
}

impl FileSigner {
    /// Opens the folder, making it if need be.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        make_folder(folder)?;
        Ok(Self {
            folder: folder.to_path_buf(),
            change: Mutex::new(()),
        })
    }

    fn file(&self, issuer: &Issuer, kind: &str) -> PathBuf {
        self.folder.join(format!("ca-{}.{kind}", issuer.label()))
    }

    /// The present key: the one that the chain is for. A cut between the two renames of `install`
    /// leaves it under the name of the next one.
    fn key(&self, issuer: &Issuer) -> Result<IssuerKey, SignerError> {
        let present = load(&self.file(issuer, "key"))?;
        let chain = self.chain(issuer)?;
        let wanted = chain.first().and_then(|der| super::spki_of(der));
        let fits = |key: &SigningKey| match &wanted {
            Some(spki) => key.public().to_spki_der() == *spki,
            None => true,
        };
        if let Some(key) = present.filter(fits) {
            return Ok(IssuerKey::new(key));
        }
        let next = load(&self.file(issuer, NEXT))?.filter(fits);
        let next = next.ok_or_else(|| SignerError::NoIssuer(issuer.label()))?;
        Ok(IssuerKey::new(next))
    }

    /// Signs by the present key, under the name in its certificate.
    fn certify(
        &self,
        issuer: &Issuer,
        template: &Template,
        spki: &[u8],
    ) -> Result<Vec<u8>, SignerError> {
        let key = self.key(issuer)?;
        let own = self.chain(issuer)?.into_iter().next();
        let own = own.ok_or_else(|| SignerError::NoIssuer(issuer.label()))?;
        let signing = rcgen::Issuer::from_ca_cert_der(&own.into(), &key)?;
        let subject = rcgen::SubjectPublicKeyInfo::from_der(spki)?;
        let params = template.params()?;
        Ok(params.signed_by(&subject, &signing)?.der().to_vec())
    }

    /// Gives the next key the name of the present one, if the chain is for it.
    fn settle(&self, issuer: &Issuer) -> Result<(), SignerError> {
        let next = self.file(issuer, NEXT);
        let Some(key) = load(&next)? else {
            return Ok(());
        };
        let spki = key.public().to_spki_der();
        let chain = self.chain(issuer)?;
        if chain.first().and_then(|der| super::spki_of(der)) == Some(spki) {
            rename_synced(&next, &self.file(issuer, "key"))?;
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.change
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Signer for FileSigner {
    fn prepare(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError> {
        let _one = self.lock();
        Ok(load_or_make(&self.file(issuer, "key"))?
            .public()
            .to_spki_der())
    }

    fn request(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError> {
        let _one = self.lock();
        Ok(holdfast_protocol::csr::request(
            &issuer.label(),
            &self.key(issuer)?.key,
        ))
    }

    fn request_next(&self, issuer: &Issuer) -> Result<Vec<u8>, SignerError> {
        let _one = self.lock();
        self.settle(issuer)?;
        let key = load_or_make(&self.file(issuer, NEXT))?;
        Ok(holdfast_protocol::csr::request(&issuer.label(), &key))
    }

    fn succeed(&self, own: &Template, cross: &Template) -> Result<[Vec<u8>; 2], SignerError> {
        let _one = self.lock();
        self.settle(&Issuer::Root)?;
        let next = IssuerKey::new(load_or_make(&self.file(&Issuer::Root, NEXT))?);
        let spki = next.key.public().to_spki_der();
        let fresh = own.params()?.self_signed(&next)?.der().to_vec();
        Ok([fresh, self.certify(&Issuer::Root, cross, &spki)?])
    }

    fn install(&self, issuer: &Issuer, chain: &[Vec<u8>]) -> Result<(), SignerError> {
        let _one = self.lock();
        self.settle(issuer)?;
        let first = chain.first().and_then(|der| super::spki_of(der));
        let ours = [
            load(&self.file(issuer, "key"))?,
            load(&self.file(issuer, NEXT))?,
        ];
        let mut ours = ours.iter().flatten().map(|key| key.public().to_spki_der());
        if !ours.any(|spki| Some(spki) == first) {
            return Err(SignerError::NotOurKey(issuer.label()));
        }
        // The rename of the chain is the moment of the change: the key follows from it.
        write_secret(&self.file(issuer, "pem"), pem::chain(chain).as_bytes())?;
        self.settle(issuer)
    }

    fn chain(&self, issuer: &Issuer) -> Result<Vec<Vec<u8>>, SignerError> {
        let path = self.file(issuer, "pem");
        let Some(text) = read_file(&path)? else {
            return Ok(Vec::new());
        };
        CertificateDer::pem_slice_iter(&text)
            .map(|one| Ok(one.map_err(|_| KeyError::Content(path.clone()))?.to_vec()))
            .collect()
    }

    fn sign(&self, issuer: &Issuer, template: &Template) -> Result<Vec<u8>, SignerError> {
        // Key and chain are two files: not while one of them changes.
        let _one = self.lock();
        if matches!(template.subject, Subject::Root { .. }) && self.chain(issuer)?.is_empty() {
            let key = self.key(issuer)?;
            return Ok(template.params()?.self_signed(&key)?.der().to_vec());
        }
        self.certify(issuer, template, &template.spki)
    }
}

/// Our P-256 key in the shape that the certificate writer wants.
struct IssuerKey {
    key: SigningKey,
    point: Vec<u8>,
}

impl IssuerKey {
    fn new(key: SigningKey) -> Self {
        let point = key.public().point().to_vec();
        Self { key, point }
    }
}

impl PublicKeyData for IssuerKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for IssuerKey {
    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign_asn1(text))
    }
}
