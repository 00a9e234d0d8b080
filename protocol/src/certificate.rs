//! What a certificate says, checked by us: who it names and what it may be used for.
//!
//! Chain building, signatures, name constraints and path lengths are webpki's job (in `link`);
//! this room checks what webpki does not: key usage, extended key usage, exactly one name of our
//! scheme, no CA, no weak key, no critical extension that nobody here processes. Called for every
//! peer of every mutual-TLS port, and by the authority on what it is about to hand out.

use std::net::IpAddr;

use x509_parser::{
    asn1_rs::Oid,
    extensions::{GeneralName, ParsedExtension},
    oid_registry::{
        OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    prelude::{FromDer, X509Certificate, X509Version},
};

use crate::{
    crypto::VerifyingKey,
    id::Domain,
    name::{InvalidName, Party},
    record::Serial,
    time::Time,
};

/// What the certificate is presented for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The peer is a TLS client: clientAuth.
    Client,
    /// The peer is a TLS server: serverAuth, and a party that serves.
    Server,
}

/// A leaf certificate that passed all checks of this room but that of its validity in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Who it names.
    pub party: Party,
    /// The one DNS name.
    pub dns: String,
    /// IP addresses; only parties that serve have any.
    pub addresses: Vec<IpAddr>,
    /// Its serial number.
    pub serial: Serial,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// The key that it certifies.
    pub key: VerifyingKey,
}

impl Leaf {
    /// Inspects a leaf certificate (DER) presented for `purpose`.
    ///
    /// # Errors
    /// [`CertificateFault`], blame: the peer, or whoever issued to it.
    pub fn inspect(
        der: &[u8],
        domain: &Domain,
        purpose: Purpose,
    ) -> Result<Self, CertificateFault> {
        let certificate = parse(der)?;
        check_extensions(&certificate)?;
        check_use(&certificate, purpose)?;
        check_algorithm(&certificate)?;
        let (dns, addresses) = read_names(&certificate)?;
        let party = Party::parse(&dns, domain)?;
        if purpose == Purpose::Server && !party.is_server() {
            return Err(CertificateFault::WrongPurpose);
        }
        if !addresses.is_empty() && !party.is_server() {
            return Err(CertificateFault::Addresses);
        }
        check_subject(&certificate, &dns)?;
        let (not_before, not_after) = read_validity(&certificate)?;
        Ok(Self {
            party,
            dns,
            addresses,
            serial: read_serial(&certificate)?,
            not_before,
            not_after,
            key: VerifyingKey::from_spki_der(certificate.public_key().raw)
                .map_err(|_| CertificateFault::Key)?,
        })
    }

    /// Checks the validity in time. `not_after` counts against whatever time there is (a floor
    /// included); `not_before` only against an authenticated one: a clock that may be behind cannot
    /// tell that a certificate is too new.
    ///
    /// # Errors
    /// [`CertificateFault::Expired`] or [`CertificateFault::NotYetValid`].
    pub fn check_time(&self, now: Time) -> Result<(), CertificateFault> {
        if now.secs > self.not_after {
            return Err(CertificateFault::Expired);
        }
        if now.is_authenticated() && now.secs < self.not_before {
            return Err(CertificateFault::NotYetValid);
        }
        Ok(())
    }
}

/// From when to when a certificate of any kind is valid, unix seconds; nothing of what is none.
#[must_use]
pub fn validity(der: &[u8]) -> Option<(u64, u64)> {
    read_validity(&parse(der).ok()?).ok()
}

/// Checks what a leaf certificate (DER) may be used for, whoever it names: no CA, key usage, extended
/// key usage, no critical extension that nobody processes. For peers outside our scheme of names
/// (foreign brokers); ours go through [`Leaf::inspect`].
///
/// # Errors
/// [`CertificateFault`], blame: the peer, or whoever issued to it.
pub fn check_usage(der: &[u8], purpose: Purpose) -> Result<(), CertificateFault> {
    let certificate = parse(der)?;
    check_extensions(&certificate)?;
    check_use(&certificate, purpose)
}

/// The extensions that this room processes; any other that is critical is refused.
const PROCESSED: [Oid<'static>; 4] = [
    OID_X509_EXT_BASIC_CONSTRAINTS,
    OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_EXTENDED_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME,
];

/// Largest certificate that is looked at, in bytes.
const MAX_DER: usize = 8 * 1024;

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateFault> {
    if der.len() > MAX_DER {
        return Err(CertificateFault::Malformed);
    }
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| CertificateFault::Malformed)?;
    if !rest.is_empty() {
        return Err(CertificateFault::Malformed);
    }
    if certificate.version() != X509Version::V3 {
        return Err(CertificateFault::Version);
    }
    Ok(certificate)
}

fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), CertificateFault> {
    certificate
        .extensions_map()
        .map_err(|_| CertificateFault::RepeatedExtension)?;
    for extension in certificate.extensions() {
        let processed = PROCESSED.contains(&extension.oid);
        match extension.parsed_extension() {
            _ if !processed && extension.critical => return Err(CertificateFault::UnknownCritical),
            _ if !processed => {}
            ParsedExtension::BasicConstraints(basic) if basic.ca => {
                return Err(CertificateFault::Authority);
            }
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            _ => return Err(CertificateFault::Malformed),
        }
    }
    Ok(())
}

fn check_use(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), CertificateFault> {
    let malformed = |_| CertificateFault::Malformed;
    let usage = certificate
        .key_usage()
        .map_err(malformed)?
        .ok_or(CertificateFault::KeyUsage)?;
    if !usage.value.digital_signature() {
        return Err(CertificateFault::KeyUsage);
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(CertificateFault::KeyUsageTooWide);
    }
    let extended = certificate.extended_key_usage().map_err(malformed)?;
    let extended = extended.ok_or(CertificateFault::NoExtendedKeyUsage)?.value;
    let right = match purpose {
        Purpose::Client => extended.client_auth,
        Purpose::Server => extended.server_auth,
    };
    match (extended.any, right) {
        (true, _) => Err(CertificateFault::AnyExtendedKeyUsage),
        (false, false) => Err(CertificateFault::WrongPurpose),
        (false, true) => Ok(()),
    }
}

fn check_algorithm(certificate: &X509Certificate<'_>) -> Result<(), CertificateFault> {
    let good = [OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384];
    let outer = &certificate.signature_algorithm;
    if *outer != certificate.tbs_certificate.signature || !good.contains(&outer.algorithm) {
        return Err(CertificateFault::Algorithm);
    }
    Ok(())
}

/// The one DNS name, and IP addresses; any other kind of name is refused.
fn read_names(
    certificate: &X509Certificate<'_>,
) -> Result<(String, Vec<IpAddr>), CertificateFault> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| CertificateFault::Malformed)?;
    let (mut dns, mut addresses) = (None, Vec::new());
    for name in &names.ok_or(CertificateFault::Names)?.value.general_names {
        match name {
            GeneralName::DNSName(text) if dns.is_none() => dns = Some((*text).to_owned()),
            GeneralName::IPAddress(bytes) => {
                addresses.push(read_address(bytes).ok_or(CertificateFault::Names)?);
            }
            _ => return Err(CertificateFault::Names),
        }
    }
    Ok((dns.ok_or(CertificateFault::Names)?, addresses))
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    let four = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let sixteen = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four().or_else(|_| sixteen()).ok()
}

/// A common name, if there is one, must not say somebody else: people read it, and so do programs.
/// It is the DNS name or its first label, since a common name holds 64 characters only.
fn check_subject(certificate: &X509Certificate<'_>, dns: &str) -> Result<(), CertificateFault> {
    let label = dns.split('.').next();
    let says_so = |text: &str| text == dns || Some(text) == label;
    let mut names = certificate.subject().iter_common_name();
    if names.all(|name| name.as_str().is_ok_and(says_so)) {
        Ok(())
    } else {
        Err(CertificateFault::Subject)
    }
}

fn read_validity(certificate: &X509Certificate<'_>) -> Result<(u64, u64), CertificateFault> {
    let validity = certificate.validity();
    let secs = |at: i64| u64::try_from(at).map_err(|_| CertificateFault::Validity);
    let not_before = secs(validity.not_before.timestamp())?;
    let not_after = secs(validity.not_after.timestamp())?;
    if not_before > not_after {
        Err(CertificateFault::Validity)
    } else {
        Ok((not_before, not_after))
    }
}

fn read_serial(certificate: &X509Certificate<'_>) -> Result<Serial, CertificateFault> {
    let bytes = certificate.raw_serial();
    let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
    let serial = if negative { None } else { Serial::new(bytes) };
    serial.ok_or(CertificateFault::SerialNumber)
}

/// Why a certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Not X.509 DER, or bytes after it.
    #[error("not a DER certificate")]
    Malformed,
    /// Not version 3.
    #[error("the certificate is not of version 3")]
    Version,
    /// An extension twice.
    #[error("the certificate holds an extension twice")]
    RepeatedExtension,
    /// A critical extension that we do not know.
    #[error("the certificate holds a critical extension that we do not know")]
    UnknownCritical,
    /// It may issue certificates.
    #[error("the certificate is a CA's")]
    Authority,
    /// keyUsage is absent or lacks digitalSignature.
    #[error("the certificate's key usage lacks digital signature")]
    KeyUsage,
    /// keyUsage allows signing certificates or lists.
    #[error("the certificate's key usage allows signing certificates")]
    KeyUsageTooWide,
    /// extendedKeyUsage is absent.
    #[error("the certificate has no extended key usage")]
    NoExtendedKeyUsage,
    /// anyExtendedKeyUsage.
    #[error("the certificate is for any extended key usage")]
    AnyExtendedKeyUsage,
    /// Not for this purpose.
    #[error("the certificate is not for this side of TLS")]
    WrongPurpose,
    /// No, or more than one, DNS name, or names of other kinds.
    #[error("the certificate must bear exactly one DNS name and no other kind of name")]
    Names,
    /// IP addresses for a party that does not serve.
    #[error("only a server's certificate may bear IP addresses")]
    Addresses,
    /// The name is none of ours.
    #[error("the certificate names nobody of ours: {0}")]
    Name(#[from] InvalidName),
    /// The subject's common name says somebody else.
    #[error("the certificate's subject is not the one its DNS name names")]
    Subject,
    /// A key that is not P-256 or P-384.
    #[error("the certificate's key is not P-256 or P-384")]
    Key,
    /// Signed by a weak algorithm.
    #[error("the certificate is not signed with ECDSA and SHA-256 or better")]
    Algorithm,
    /// A serial number that is zero, negative or over 20 bytes.
    #[error("the certificate's serial number is not positive or over 20 bytes")]
    SerialNumber,
    /// Valid from after its end.
    #[error("the certificate ends before it begins")]
    Validity,
    /// Over, at the time we have.
    #[error("the certificate has expired")]
    Expired,
    /// Not begun, at a time that we trust.
    #[error("the certificate is not valid yet")]
    NotYetValid,
}

impl CertificateFault {
    /// One or two words for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed | Self::Version | Self::SerialNumber | Self::Validity => "malformed",
            Self::RepeatedExtension => "repeated extension",
            Self::UnknownCritical => "unknown critical extension",
            Self::Authority => "authority",
            Self::KeyUsage | Self::KeyUsageTooWide => "key usage",
            Self::NoExtendedKeyUsage | Self::AnyExtendedKeyUsage | Self::WrongPurpose => {
                "extended key usage"
            }
            Self::Names | Self::Addresses => "names",
            Self::Name(_) => "name of nobody",
            Self::Subject => "subject",
            Self::Key => "weak key",
            Self::Algorithm => "weak signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not valid yet",
        }
    }
}

#[cfg(test)]
mod tests;
