//! Is this certificate chain the peer we look for? One function decides for both directions.
//!
//! Called by rustls in each handshake, and by daemons that receive a chain by another way. webpki
//! builds the chain (signatures, validity, path length, name constraints); [`super::usage`]
//! checks what webpki leaves open.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use holdfast_protocol::certificate::validity;
use holdfast_protocol::crypto::{self, HashAlg};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::Trust;
use super::usage::check_use;
use crate::time::{Clock, Time, TimeQuality};

/// Root certificates that are believed. Clones share them: what is believed may change while listeners
/// and diallers hold it, and each handshake takes what holds at that moment.
#[derive(Clone)]
pub struct Anchors(Arc<Shared>);

struct Shared {
    present: RwLock<Arc<Inner>>,
    /// What the last server that was believed showed above its own certificate.
    shown: Mutex<Vec<Vec<u8>>>,
}

#[derive(Default)]
struct Inner {
    anchors: Vec<TrustAnchor<'static>>,
    certificates: Vec<CertificateDer<'static>>,
}

/// Why a list of certificates gives no anchors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Nothing to believe in.
    #[error("no trust anchor given")]
    Empty,
    /// A member is not an X.509 certificate in DER.
    #[error("trust anchor {index} is not a certificate in DER")]
    Malformed {
        /// Position in the list, from 0.
        index: usize,
    },
}

impl Anchors {
    /// Believes in nobody, until told to.
    #[must_use]
    pub fn none() -> Self {
        Self::holding(Inner::default())
    }

    fn holding(inner: Inner) -> Self {
        Self(Arc::new(Shared {
            present: RwLock::new(Arc::new(inner)),
            shown: Mutex::default(),
        }))
    }

    /// Takes root certificates in DER.
    ///
    /// # Errors
    /// The list is empty or a member is no certificate.
    pub fn new(roots: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, AnchorError> {
        Ok(Self::holding(Inner::new(roots)?))
    }

    /// Believes these from now on and no others, and so do all clones.
    ///
    /// # Errors
    /// As [`Anchors::new`]; nothing has changed then.
    pub fn set(&self, roots: impl IntoIterator<Item = Vec<u8>>) -> Result<(), AnchorError> {
        let inner = Arc::new(Inner::new(roots)?);
        *self
            .0
            .present
            .write()
            .unwrap_or_else(PoisonError::into_inner) = inner;
        Ok(())
    }

    /// The certificates believed now, in the order given.
    #[must_use]
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.now().certificates.clone()
    }

    /// What the last server that was believed showed above its own certificate; nothing before the
    /// first.
    #[must_use]
    pub fn shown(&self) -> Vec<Vec<u8>> {
        let shown = self.0.shown.lock();
        shown.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, above: &[CertificateDer<'_>]) {
        let above = above.iter().take(MOST_SHOWN).map(|der| der.to_vec());
        *self.0.shown.lock().unwrap_or_else(PoisonError::into_inner) = above.collect();
    }

    fn now(&self) -> Arc<Inner> {
        let present = self.0.present.read();
        Arc::clone(&present.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn new(roots: impl IntoIterator<Item = Vec<u8>>) -> Result<Self, AnchorError> {
        let mut inner = Self::default();
        for (index, der) in roots.into_iter().enumerate() {
            let der = CertificateDer::from(der);
            let anchor = anchor_from_trusted_cert(&der)
                .map_err(|_| AnchorError::Malformed { index })?
                .to_owned();
            inner.anchors.push(anchor);
            inner.certificates.push(der);
        }
        match inner.anchors.is_empty() {
            true => Err(AnchorError::Empty),
            false => Ok(inner),
        }
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Anchors({})", self.now().certificates.len())
    }
}

/// What a peer wants to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It answers: extended key usage serverAuth.
    Server,
    /// It dials: extended key usage clientAuth.
    Client,
}

/// Why a certificate was refused. The text names what to look at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// Not X.509, or not by its rules.
    #[error("its certificate is malformed")]
    Malformed,
    /// The chain ends in none of our anchors.
    #[error("its certificate comes from an authority that is not ours")]
    UnknownIssuer,
    /// The chain names our authority but was not signed by its key.
    #[error("its certificate claims our authority but is not signed by it")]
    BadSignature,
    /// After `not_after` (seconds since 1970).
    #[error("its certificate expired at {not_after} (now {now})")]
    Expired {
        /// End of validity.
        not_after: u64,
        /// What our clock says.
        now: u64,
    },
    /// Before `not_before` (seconds since 1970), on a clock we trust.
    #[error("its certificate is not valid before {not_before} (now {now})")]
    NotValidYet {
        /// Begin of validity.
        not_before: u64,
        /// What our clock says.
        now: u64,
    },
    /// It is somebody, but not the party dialled for.
    #[error("its certificate is not for {expected}")]
    WrongName {
        /// The name looked for.
        expected: String,
    },
    /// Key usage or extended key usage does not allow this use, or is missing.
    #[error("its certificate is not made for this use: {0}")]
    WrongUse(String),
    /// It bears a wildcard, which nobody of ours has.
    #[error("its certificate bears a wildcard name, which nobody here has")]
    Wildcard,
    /// Its key is not P-256 or P-384, the kinds that a party of ours may have.
    #[error("its certificate is for a key that is neither P-256 nor P-384")]
    WeakKey,
    /// Signed by an algorithm that nobody here takes.
    #[error(
        "its certificate, or one above it, is signed in a way that is too weak or unknown here"
    )]
    WeakSignature,
    /// A critical extension that nobody here processes.
    #[error("its certificate, or one above it, holds a critical extension that is unknown here")]
    UnknownCritical,
    /// An authority above it may not issue such names or such chains.
    #[error("its certificate breaks a constraint of its authority: {0}")]
    Constraint(String),
    /// No certificate of the chain has the pinned hash.
    #[error("its chain does not contain the pinned root")]
    NotPinned,
    /// Another rule of webpki.
    #[error("its certificate was refused: {0}")]
    Other(String),
}

impl PeerFault {
    /// One or two words for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownIssuer => "unknown issuer",
            Self::BadSignature => "bad signature",
            Self::Expired { .. } => "expired",
            Self::NotValidYet { .. } => "not valid yet",
            Self::WrongName { .. } => "wrong name",
            Self::WrongUse(_) => "wrong use",
            Self::Wildcard => "wildcard",
            Self::WeakKey => "weak key",
            Self::WeakSignature => "weak signature",
            Self::UnknownCritical => "unknown critical extension",
            Self::Constraint(_) => "constraint",
            Self::NotPinned => "not pinned",
            Self::Other(_) => "other rule",
        }
    }
}

/// Why a handshake failed, in words for the log: the fault of the peer's certificate, or what TLS says.
#[must_use]
pub fn explain(error: &io::Error) -> String {
    peer_fault(error).map_or_else(|| error.to_string(), |fault| fault.to_string())
}

/// Why a handshake failed, in one or two words for the counters: the fault of the peer's
/// certificate, that it showed none or does not hold its key, or that it is none of these.
#[must_use]
pub fn refusal(error: &io::Error) -> &'static str {
    use rustls::{CertificateError as C, Error as E};
    if let Some(fault) = peer_fault(error) {
        return fault.reason();
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<E>());
    match inner {
        Some(E::NoCertificatesPresented) => "no certificate",
        Some(E::InvalidCertificate(C::BadSignature)) => "key not held",
        Some(E::InvalidCertificate(_)) => "malformed",
        Some(E::AlertReceived(_)) => "refused by the peer",
        Some(_) => "protocol",
        None => "connection lost",
    }
}

/// The reason in an I/O error of a failed handshake, when it was we who refused the peer.
#[must_use]
pub fn peer_fault(error: &io::Error) -> Option<PeerFault> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<PeerFault>().cloned()
        }
        _ => None,
    }
}

impl From<PeerFault> for rustls::Error {
    fn from(fault: PeerFault) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
    }
}

/// Decides over a chain of our own house (`leaf`, then what the peer sent above it).
///
/// `name` is the DNS name a server must have. On time of a lower quality than authenticated,
/// "not valid yet" is forgiven: the certificate itself proves that the time is later, since nobody
/// but its authority could have made it. "Expired" is never forgiven, the floor being a true bound.
///
/// # Errors
/// The reason of the refusal.
pub fn verify_chain(
    leaf: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    anchors: &Anchors,
    purpose: Purpose,
    name: Option<&ServerName<'_>>,
    now: Time,
) -> Result<(), PeerFault> {
    let end = EndEntityCert::try_from(leaf).map_err(|error| fault(&error, now.secs))?;
    build(&end, above, &anchors.now().anchors, purpose, now)?;
    if let Some(name) = name {
        end.verify_is_valid_for_subject_name(name)
            .map_err(|_| PeerFault::WrongName {
                expected: name.to_str().into_owned(),
            })?;
    }
    check_use(leaf, purpose)
}

/// Certificates that a server's chain may show and be remembered.
const MOST_SHOWN: usize = 8;

/// No chain of ours is longer, so a time moved up this often will not hold.
const LONGEST_CHAIN: usize = 4;

fn build(
    end: &EndEntityCert<'_>,
    above: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    purpose: Purpose,
    now: Time,
) -> Result<(), PeerFault> {
    let mut secs = now.secs;
    for _ in 0..LONGEST_CHAIN {
        let usage = match purpose {
            Purpose::Server => KeyUsage::server_auth(),
            Purpose::Client => KeyUsage::client_auth(),
        };
        let at = UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let built = end.verify_for_usage(algorithms().all, anchors, above, at, usage, None, None);
        match built {
            Ok(_) => return Ok(()),
            Err(webpki::Error::CertNotValidYet { not_before, .. })
                if now.quality < TimeQuality::Authenticated =>
            {
                secs = not_before.as_secs();
            }
            Err(error) => return Err(fault(&error, now.secs)),
        }
    }
    Err(PeerFault::NotValidYet {
        not_before: secs,
        now: now.secs,
    })
}

fn fault(error: &webpki::Error, now: u64) -> PeerFault {
    use webpki::Error as E;
    match error {
        E::BadDer
        | E::BadDerTime
        | E::TrailingData(_)
        | E::MalformedExtensions
        | E::ExtensionValueInvalid
        | E::InvalidCertValidity
        | E::MalformedDnsIdentifier
        | E::UnsupportedCertVersion => PeerFault::Malformed,
        E::UnknownIssuer => PeerFault::UnknownIssuer,
        E::InvalidSignatureForPublicKey => PeerFault::BadSignature,
        E::CertExpired { not_after, .. } => PeerFault::Expired {
            not_after: not_after.as_secs(),
            now,
        },
        E::CertNotValidYet { not_before, .. } => PeerFault::NotValidYet {
            not_before: not_before.as_secs(),
            now,
        },
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            PeerFault::WrongUse("its extended key usage lacks this side of TLS".into())
        }
        E::CaUsedAsEndEntity => PeerFault::WrongUse("it is an authority's".into()),
        E::UnsupportedCriticalExtension => PeerFault::UnknownCritical,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => PeerFault::WeakSignature,
        E::NameConstraintViolation => {
            PeerFault::Constraint("its name lies outside what that one may name".into())
        }
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => {
            PeerFault::Constraint("that one may have no further authority below it".into())
        }
        E::EndEntityUsedAsCa => PeerFault::Constraint("that one is no authority".into()),
        _ => PeerFault::Other(error.to_string()),
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Trust,
    clock: Arc<dyn Clock>,
}

impl ServerVerifier {
    pub(super) const fn new(trust: Trust, clock: Arc<dyn Clock>) -> Self {
        Self { trust, clock }
    }

    fn anchors(&self, above: &[CertificateDer<'_>]) -> Result<Anchors, PeerFault> {
        match &self.trust {
            Trust::Anchors(anchors) => Ok(anchors.clone()),
            Trust::RootHashes(hashes) => pinned(above, hashes),
        }
    }
}

fn pinned(above: &[CertificateDer<'_>], hashes: &[[u8; 32]]) -> Result<Anchors, PeerFault> {
    let is_pinned = |der: &&CertificateDer<'_>| {
        let digest = crypto::hash(HashAlg::Sha256, der);
        hashes.iter().any(|hash| digest.value() == hash)
    };
    let roots: Vec<_> = above
        .iter()
        .filter(is_pinned)
        .map(|der| der.to_vec())
        .collect();
    match roots.is_empty() {
        true => Err(PeerFault::NotPinned),
        false => Anchors::new(roots).map_err(|_| PeerFault::Malformed),
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let anchors = self.anchors(above)?;
        let now = self.clock.certain();
        verify_chain(leaf, above, &anchors, Purpose::Server, Some(name), now)?;
        anchors.note(above);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

#[derive(Debug)]
pub(super) struct ClientVerifier {
    anchors: Anchors,
    clock: Arc<dyn Clock>,
    required: bool,
    /// How long ago a leaf may have expired.
    grace: Duration,
}

impl ClientVerifier {
    pub(super) const fn new(anchors: Anchors, clock: Arc<dyn Clock>, required: bool) -> Self {
        Self {
            anchors,
            clock,
            required,
            grace: Duration::ZERO,
        }
    }

    pub(super) const fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The time to judge this leaf by: the present, or its own last second if that is not long ago.
    fn moment(&self, leaf: &CertificateDer<'_>) -> Time {
        let now = self.clock.certain();
        match validity(leaf) {
            Some((_, end)) if end < now.secs && now.secs - end <= self.grace.as_secs() => {
                Time::new(end, TimeQuality::Floor)
            }
            _ => now,
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: what is believed may change, and the clients of this house have one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let now = self.moment(leaf);
        verify_chain(leaf, above, &self.anchors, Purpose::Client, None, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
