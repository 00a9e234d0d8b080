//! TLS towards a foreign broker: the rules of the Internet, by the authorities that its file names.
//!
//! Used by [`super`]. Our own certificates obey stricter rules than the world's (`link::tls`); a
//! partner's need not. What the world's do not know is our clock: on time of a lower quality than
//! authenticated "not valid yet" is forgiven, as everywhere in the house.

use std::sync::Arc;

use holdfast_link::time::{Clock, TimeQuality};
use holdfast_link::tls::PeerFault;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// No chain has more certificates that are not valid yet, so a time moved up this often will not
/// hold.
const LONGEST_CHAIN: usize = 8;

/// The client side.
///
/// # Errors
/// The authorities are of no use.
pub(super) fn client_config(
    roots: Arc<RootCertStore>,
    identity: Option<Arc<CertifiedKey>>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let inner = inner
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, clock }));
    let mut config = match identity {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Arc<dyn Clock>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let now = self.clock.certain();
        let mut secs = now.secs;
        for _ in 0..LONGEST_CHAIN {
            let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs));
            match self.inner.verify_server_cert(leaf, above, name, ocsp, at) {
                Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before,
                    ..
                })) if now.quality < TimeQuality::Authenticated => secs = not_before.as_secs(),
                Err(Error::InvalidCertificate(why)) => {
                    return Err(fault(&why, name, now.secs).into());
                }
                done => return done,
            }
        }
        Err(fault(&CertificateError::NotValidYet, name, now.secs).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The words of the house for what webpki found.
fn fault(why: &CertificateError, name: &ServerName<'_>, now: u64) -> PeerFault {
    use CertificateError as E;
    match why {
        E::UnknownIssuer => PeerFault::UnknownIssuer,
        E::BadSignature => PeerFault::BadSignature,
        E::BadEncoding => PeerFault::Malformed,
        E::ExpiredContext { not_after, .. } => PeerFault::Expired {
            not_after: not_after.as_secs(),
            now,
        },
        E::NotValidYetContext { not_before, .. } => PeerFault::NotValidYet {
            not_before: not_before.as_secs(),
            now,
        },
        E::NotValidForName | E::NotValidForNameContext { .. } => PeerFault::WrongName {
            expected: name.to_str().into_owned(),
        },
        other => PeerFault::Other(other.to_string()),
    }
}
