//! What can go wrong in FDO, by whose fault, and what the peer is told of it (wire section 15).
//!
//! [`Error::code`] is the one place that maps a fault to a wire code; the text for the peer names the
//! kind of fault and no detail that would help an attacker.

use super::MessageType;
use crate::csr::CsrError;
use crate::key::KeyError;
use crate::voucher::VoucherError;
use crate::wire::cbor::{self, CborError, Kind, Reader};
use crate::wire::cose::CoseError;

/// Longest error text kept of a peer, in bytes.
const MAX_TEXT: usize = 256;

/// Error codes of FDO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 1: the session token is missing or void.
    InvalidToken,
    /// 2: the voucher does not verify.
    InvalidVoucher,
    /// 3: the owner's signed body does not verify (TO0).
    InvalidOwnerSignBody,
    /// 4: an address is not acceptable.
    InvalidIpAddress,
    /// 5: the GUID is not acceptable.
    InvalidGuid,
    /// 6: nothing known of this GUID.
    ResourceNotFound,
    /// 100: the body does not parse.
    MessageBody,
    /// 101: the message is not acceptable in this place, or a check of it failed.
    InvalidMessage,
    /// 102: the device refuses to keep its credential.
    CredentialReuse,
    /// 500: our own fault.
    Internal,
    /// Any other number of a peer.
    Other(u16),
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::InvalidToken => 1,
            Self::InvalidVoucher => 2,
            Self::InvalidOwnerSignBody => 3,
            Self::InvalidIpAddress => 4,
            Self::InvalidGuid => 5,
            Self::ResourceNotFound => 6,
            Self::MessageBody => 100,
            Self::InvalidMessage => 101,
            Self::CredentialReuse => 102,
            Self::Internal => 500,
            Self::Other(number) => number,
        }
    }

    /// The code of a number.
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::InvalidToken,
            2 => Self::InvalidVoucher,
            3 => Self::InvalidOwnerSignBody,
            4 => Self::InvalidIpAddress,
            5 => Self::InvalidGuid,
            6 => Self::ResourceNotFound,
            100 => Self::MessageBody,
            101 => Self::InvalidMessage,
            102 => Self::CredentialReuse,
            500 => Self::Internal,
            other => Self::Other(other),
        }
    }

    /// What the peer reads beside the number.
    fn text(self) -> &'static str {
        match self {
            Self::InvalidToken => "session unknown or over",
            Self::InvalidVoucher => "voucher not accepted",
            Self::InvalidOwnerSignBody => "owner signature not accepted",
            Self::InvalidIpAddress => "address not accepted",
            Self::InvalidGuid => "guid not accepted",
            Self::ResourceNotFound => "not found",
            Self::MessageBody => "message body not understood",
            Self::InvalidMessage => "message not accepted",
            Self::CredentialReuse => "credential reuse refused",
            Self::Internal => "internal error",
            Self::Other(_) => "error",
        }
    }
}

/// Why a run ended. The session is over in every case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer reported an error.
    #[error("peer reports error {}: {}", .0.code.number(), .0.text)]
    Peer(ErrorMessage),
    /// A message in the wrong place.
    #[error("message {got} where {expected} was due")]
    Unexpected {
        /// The only message due.
        expected: MessageType,
        /// What came.
        got: MessageType,
    },
    /// A message whose body does not parse.
    #[error("message {message}: {fault}")]
    Malformed {
        /// The message.
        message: MessageType,
        /// What is wrong with its body.
        fault: CborError,
    },
    /// A public key that we cannot use.
    #[error("message {message}: {fault}")]
    Key {
        /// The message.
        message: MessageType,
        /// What is wrong with the key.
        fault: KeyError,
    },
    /// A signature or a seal that does not hold.
    #[error("message {message}: {fault}")]
    Cose {
        /// The message.
        message: MessageType,
        /// What is wrong.
        fault: CoseError,
    },
    /// A check of the content failed: nonce, hash, GUID, order, size.
    #[error("message {message}: {what}")]
    Check {
        /// The message.
        message: MessageType,
        /// The check that failed.
        what: &'static str,
    },
    /// The voucher does not verify.
    #[error("voucher: {0}")]
    Voucher(#[from] VoucherError),
    /// The certificate request in DI does not verify.
    #[error("certificate request: {0}")]
    Csr(#[from] CsrError),
    /// Key exchange or cipher suite that we do not speak.
    #[error("key exchange {exchange} with cipher {cipher} is not supported")]
    UnsupportedSuite {
        /// Name of the key exchange.
        exchange: String,
        /// COSE number of the cipher.
        cipher: i64,
    },
    /// Nothing is known of this GUID (made by the shell).
    #[error("nothing known of this GUID")]
    NotFound,
    /// The session token is missing, void or over (made by the shell).
    #[error("session unknown or over")]
    NoSession,
    /// The device refuses to keep its credential.
    #[error("the owner asks to keep the credential, which is not allowed here")]
    ReuseRefused,
    /// A bound of ours was reached.
    #[error("too much: {0}")]
    TooMuch(&'static str),
    /// Our own fault: called against the rules, or the shell could not do its part.
    #[error("own fault: {0}")]
    Own(&'static str),
}

impl Error {
    /// What the peer is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Peer(message) => message.code,
            Self::Malformed { .. } | Self::Key { .. } => ErrorCode::MessageBody,
            Self::Cose {
                fault: CoseError::Shape(_),
                ..
            } => ErrorCode::MessageBody,
            Self::Cose {
                message: MessageType::To0OwnerSign,
                ..
            }
            | Self::Check {
                message: MessageType::To0OwnerSign,
                ..
            } => ErrorCode::InvalidOwnerSignBody,
            Self::Unexpected { .. }
            | Self::Cose { .. }
            | Self::Check { .. }
            | Self::Csr(_)
            | Self::UnsupportedSuite { .. }
            | Self::TooMuch(_) => ErrorCode::InvalidMessage,
            Self::Voucher(_) => ErrorCode::InvalidVoucher,
            Self::NotFound => ErrorCode::ResourceNotFound,
            Self::NoSession => ErrorCode::InvalidToken,
            Self::ReuseRefused => ErrorCode::CredentialReuse,
            Self::Own(_) => ErrorCode::Internal,
        }
    }

    /// Body of the ErrorMessage (255) to send, `previous` being the message that failed. None if the
    /// peer already ended the run by an error of its own.
    pub fn report(&self, previous: MessageType) -> Option<Vec<u8>> {
        if matches!(self, Self::Peer(_)) {
            return None;
        }
        let code = self.code();
        Some(cbor::encode(|w| {
            w.array(5)
                .uint(code.number().into())
                .uint(previous.number().into());
            w.text(code.text()).null().null();
        }))
    }
}

/// `ErrorMessage = [code, previous message, text, timestamp, correlation id]` of a peer, read
/// leniently: whatever does not parse becomes code 500 with an empty text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorMessage {
    /// The code.
    pub code: ErrorCode,
    /// Number of the message that failed.
    pub previous: u8,
    /// The peer's words, cut at 256 bytes, control characters removed. Never trusted, only logged.
    pub text: String,
}

impl ErrorMessage {
    /// Reads what can be read of `body`.
    pub fn parse(body: &[u8]) -> Self {
        Self::read(body).unwrap_or(Self {
            code: ErrorCode::Internal,
            previous: 0,
            text: String::new(),
        })
    }

    /// Timestamp and correlation id may be of any type or missing.
    fn read(body: &[u8]) -> Result<Self, CborError> {
        let mut r = Reader::new(body)?;
        let len = r.array_len(8)?;
        if len < 2 {
            return Err(CborError::Value("error message"));
        }
        let code = ErrorCode::from_number(r.small()?);
        let previous = r.small()?;
        let text = match r.kind() {
            Kind::Text if len > 2 => r.text(super::MAX_BODY)?,
            _ => "",
        };
        let mut kept: String = text.chars().filter(|c| !c.is_control()).collect();
        let cut = (0..=MAX_TEXT.min(kept.len()))
            .rev()
            .find(|at| kept.is_char_boundary(*at));
        kept.truncate(cut.unwrap_or(0));
        Ok(Self {
            code,
            previous,
            text: kept,
        })
    }
}
