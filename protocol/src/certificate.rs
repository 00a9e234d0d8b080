//! What a certificate says, checked by us: who it names and what it may be used for.
//!
//! Chain building, signatures, name constraints and path lengths are webpki's job (in `link`);
//! this room checks what webpki does not: key usage, extended key usage as wanted and nothing
//! wider, exactly one name of our scheme, no CA, no weak key. Called for every peer of every
//! mutual-TLS port, and by the authority on what it is about to hand out.

use std::net::IpAddr;

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
        _der: &[u8],
        _domain: &Domain,
        _purpose: Purpose,
    ) -> Result<Self, CertificateFault> {
        todo!()
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

#[cfg(test)]
mod tests;
