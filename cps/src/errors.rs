//! Errors that several rooms share: what is wrong with an FDO request before any role sees it, and
//! how a role's error becomes the reply that ends a run.

use holdfast_protocol::fdo::{Error, MessageType};
use holdfast_store::StoreError;

use crate::authority::csr_reason;
use crate::fdo::{FdoReply, Token};
use crate::metrics::Metrics;

/// What is wrong with an FDO request as HTTP. Blame: the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdoFault {
    /// No role here answers this message.
    #[error("FDO message {0} is not answered here; this server does not play that role")]
    NoSuchMessage(u8),
    /// FDO bodies are CBOR.
    #[error("content type '{0}' is not application/cbor; send FDO messages as CBOR")]
    ContentType(String),
    /// FDO bodies are never chunked.
    #[error("no Content-Length; send FDO messages with their length, not chunked")]
    NoLength,
    /// Over the bound.
    #[error("the FDO message is longer than {0} bytes; lower the sender's message size")]
    TooLarge(usize),
    /// The connection broke in mid-body.
    #[error("the FDO message was cut off; send it again from the start of the run")]
    BodyCut,
    /// The address sends more than its share.
    #[error("too many requests from this address; wait a second and begin the run again")]
    OverBudget,
}

impl FdoFault {
    /// One word for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchMessage(_) => "no such message",
            Self::ContentType(_) => "content type",
            Self::NoLength => "no length",
            Self::TooLarge(_) => "too large",
            Self::BodyCut => "body cut",
            Self::OverBudget => "over budget",
        }
    }

    /// The reply to `previous`.
    pub(crate) fn reply(&self, previous: u8) -> FdoReply {
        let kind = MessageType::from_number(previous).unwrap_or(MessageType::Error);
        let error = match self {
            Self::OverBudget => Error::Own("busy"),
            _ => Error::Check {
                message: kind,
                what: self.reason(),
            },
        };
        reply_of(&error, kind, None)
    }
}

/// Logs and counts a run's error once, and makes the reply that tells the peer no detail.
pub(crate) fn end_run(
    metrics: &Metrics,
    area: &'static str,
    error: &Error,
    at: MessageType,
    token: Option<Token>,
    about: &str,
) -> FdoReply {
    tracing::warn!(area, message = at.number(), about, %error, "FDO run refused");
    metrics.refused(area, reason(error));
    reply_of(error, at, token)
}

fn reply_of(error: &Error, at: MessageType, token: Option<Token>) -> FdoReply {
    FdoReply {
        message: FdoReply::ERROR,
        token,
        body: error.report(at).unwrap_or_default(),
    }
}

/// One word for the counters.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::Peer(_) => "peer gave up",
        Error::Unexpected { .. } => "out of order",
        Error::Malformed { .. } => "malformed",
        Error::Key { .. } => "key",
        Error::Cose { .. } => "signature",
        Error::Check { .. } => "check",
        Error::Voucher(_) => "voucher",
        Error::Csr(fault) => csr_reason(*fault),
        Error::UnsupportedSuite { .. } => "suite",
        Error::NotFound => "unknown guid",
        Error::NoSession => "unknown token",
        Error::ReuseRefused => "reuse",
        Error::TooMuch(_) => "too much",
        Error::Own(_) => "own fault",
    }
}

/// A store fault within a run: the peer is told that the fault is ours.
pub(crate) fn own_store(error: &StoreError) -> Error {
    tracing::error!(%error, "the registry failed within an FDO run");
    Error::Own("registry")
}
