//! Who we are in TLS, and the slot in which that changes at run time.
//!
//! Called by daemons at start and after each renewal. The key's bytes are wiped once rustls has
//! taken them over; nothing here prints them.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

/// A certificate chain with the key of its leaf.
#[derive(Clone)]
pub struct Identity(Arc<CertifiedKey>);

/// Why a chain and a key make no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no leaf.
    #[error("the certificate chain is empty")]
    Empty,
    /// The key is not a PKCS#8 key that TLS can use.
    #[error("the key is no PKCS#8 key of a supported kind (P-256 or P-384)")]
    BadKey,
    /// The leaf is not a certificate, or not one for this key.
    #[error("the first certificate does not belong to the key")]
    Mismatch,
}

impl Identity {
    /// Joins a chain (leaf first, DER) and the leaf's key (PKCS#8 DER).
    ///
    /// # Errors
    /// They do not belong together.
    pub fn new(chain: Vec<Vec<u8>>, key: Zeroizing<Vec<u8>>) -> Result<Self, IdentityError> {
        if chain.is_empty() {
            return Err(IdentityError::Empty);
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.as_slice()));
        let key = rustls::crypto::ring::sign::any_ecdsa_type(&match key {
            PrivateKeyDer::Pkcs8(key) => PrivateKeyDer::Pkcs8(key),
            other => other,
        })
        .map_err(|_| IdentityError::BadKey)?;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let pair = CertifiedKey::new(chain, key);
        pair.keys_match().map_err(|_| IdentityError::Mismatch)?;
        Ok(Self(Arc::new(pair)))
    }

    /// The chain as it is shown, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.cert
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} certificates)", self.0.cert.len())
    }
}

/// Holds the present identity; clones share it. New handshakes take what is in it at that moment,
/// connections that stand are not touched.
#[derive(Debug, Clone, Default)]
pub struct IdentitySlot(Arc<RwLock<Option<Identity>>>);

impl IdentitySlot {
    /// A slot that holds `identity`.
    #[must_use]
    pub fn with(identity: Identity) -> Self {
        let slot = Self::default();
        slot.set(identity);
        slot
    }

    /// Puts a new identity in.
    pub fn set(&self, identity: Identity) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(identity);
    }

    /// The present identity, if any yet.
    #[must_use]
    pub fn get(&self) -> Option<Identity> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn pair(&self) -> Option<Arc<CertifiedKey>> {
        self.get().map(|identity| identity.0)
    }
}

impl ResolvesServerCert for IdentitySlot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.pair()
    }
}

impl ResolvesClientCert for IdentitySlot {
    // The hints are names only; the server's verifier decides, and its reason is worth logging.
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.pair()
    }

    fn has_certs(&self) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }
}
