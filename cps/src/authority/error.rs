//! Why the authority did not do what it was asked, by blame. Raised by all files of this room.

use std::net::IpAddr;

use holdfast_link::tls::IdentityError;
use holdfast_protocol::csr::CsrError;
use holdfast_protocol::name::Party;
use holdfast_protocol::record::Serial;
use holdfast_store::StoreError;

use super::SignerError;
use crate::keys::KeyError;
use crate::registry::RegistryError;

/// Why a certificate was not issued, renewed or revoked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request is bad (blame: the peer).
    #[error("the certification request is refused: {0}; make it anew with a P-256 key of your own")]
    Csr(#[from] CsrError),
    /// The party belongs to a site that this server does not certify.
    #[error("{0} is not certified here; ask the server of its own site")]
    ForeignParty(Party),
    /// An address outside the private ranges cannot stand in a site's certificate.
    #[error("{0} is not a private address; give the gateway's LAN address")]
    PublicAddress(IpAddr),
    /// No certificate of that serial was issued.
    #[error("no certificate with serial {0}; see the list of certificates")]
    UnknownSerial(Serial),
    /// Nobody of that name holds a certificate that is not revoked.
    #[error("{0} holds no certificate that could be revoked; see the list of certificates")]
    NothingOf(String),
    /// A revoked certificate cannot be renewed.
    #[error("the certificate {0} is revoked; the party must be admitted anew")]
    Revoked(Serial),
    /// The key keeper failed or lacks the issuer.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// A key file failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Chain and key do not fit.
    #[error(
        "this server's certificate and key do not fit: {0}; remove server.pem to have it made anew"
    )]
    Identity(#[from] IdentityError),
    /// The log could not take the issue.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

impl AuthorityError {
    /// One word for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Csr(fault) => csr_reason(*fault),
            Self::ForeignParty(_) => "foreign party",
            Self::PublicAddress(_) => "public address",
            Self::UnknownSerial(_) | Self::NothingOf(_) => "unknown serial",
            Self::Revoked(_) => "revoked",
            Self::Signer(_) | Self::Key(_) | Self::Identity(_) => "own keys",
            Self::Registry(_) => "own store",
        }
    }
}

/// One word for the counters, the same at every door at which requests come in.
pub(crate) fn csr_reason(fault: CsrError) -> &'static str {
    match fault {
        CsrError::TooLarge => "csr too large",
        CsrError::Malformed => "csr malformed",
        CsrError::UnsupportedKey => "csr key",
        CsrError::BadSignature => "csr signature",
    }
}
