//! What a leaf may be used for: the checks of RFC 5280 that webpki leaves to us.
//!
//! Called by [`super::verify`] for every peer, after its chain held. webpki takes a certificate
//! without extended key usage for one that is good for everything; here absence is refusal.

use holdfast_protocol::crypto::VerifyingKey;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::{PeerFault, Purpose};

/// Refuses authorities, keys not meant for signing handshakes, and uses not named.
pub(super) fn check_use(leaf: &CertificateDer<'_>, purpose: Purpose) -> Result<(), PeerFault> {
    let wrong = |what: &str| Err(PeerFault::WrongUse(what.to_owned()));
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| PeerFault::Malformed)?;
    if !rest.is_empty() {
        return Err(PeerFault::Malformed);
    }
    if certificate.is_ca() {
        return wrong("it is an authority's");
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if usage.value.key_cert_sign() || usage.value.crl_sign() => {
            return wrong("its key usage allows signing certificates");
        }
        Ok(Some(usage)) if usage.value.digital_signature() => {}
        Ok(_) => return wrong("its key usage lacks digital signature"),
        Err(_) => return Err(PeerFault::Malformed),
    }
    check_template(&certificate)?;
    match certificate.extended_key_usage() {
        Ok(Some(usage)) if usage.value.any => wrong("its extended key usage is any"),
        Ok(Some(usage)) => match (purpose, usage.value.server_auth, usage.value.client_auth) {
            (Purpose::Server, true, _) | (Purpose::Client, _, true) => Ok(()),
            (Purpose::Server, false, _) => wrong("its extended key usage lacks serverAuth"),
            (Purpose::Client, _, false) => wrong("its extended key usage lacks clientAuth"),
        },
        Ok(None) => wrong("it has no extended key usage"),
        Err(_) => Err(PeerFault::Malformed),
    }
}

/// What the templates of our own authority never make: keys of other kinds, and wildcards.
fn check_template(certificate: &X509Certificate<'_>) -> Result<(), PeerFault> {
    VerifyingKey::from_spki_der(certificate.public_key().raw).map_err(|_| PeerFault::WeakKey)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| PeerFault::Malformed)?;
    let is_wild =
        |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(text) if text.contains('*'));
    match names.is_some_and(|names| names.value.general_names.iter().any(is_wild)) {
        true => Err(PeerFault::Wildcard),
        false => Ok(()),
    }
}
