//! The messages between device and register, and their CBOR.
//!
//! ```text
//! request = COSE_Sign1 by the device's CPS key over
//!           ["holdfast/lifecycle/1", kind, device bstr16, service tstr/null, credential bstr16/null,
//!            csr bstr/null, serial bstr/null, outcome uint]
//! answer  = [kind, ...]    (over the same TLS connection; not signed)
//! ```
//! The signature is the request's integrity check (document's claim list, 8): it holds whatever
//! carries the message, and shows that the asker has the key that its certificate names.

use super::Credential;
use crate::{
    crypto::{SigningKey, VerifyingKey},
    id::{DeviceId, Guid, InvalidId, ServiceId},
    record::Serial,
    wire::{
        cbor::{self, CborError, Reader, Writer},
        cose::{CoseError, Sign1},
    },
};

/// Largest message of either side, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Longest certification request or certificate.
const MAX_PART: usize = 8 * 1024;
/// Longest chain.
const MAX_CHAIN: usize = 8;
/// Longest id as text.
const MAX_ID: usize = 80;
/// Longest sentence in a refusal.
const MAX_TEXT: usize = 1024;
/// First element of a request, so that no other signed text can pass for one.
const REQUEST_TYPE: &str = "holdfast/lifecycle/1";

/// What became of a certificate that the device was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The device works by it; its old key is gone.
    Runs,
    /// It led nowhere; the device works by the old one.
    RolledBack,
    /// The device works by it no more, nor by any other: an orderly end, as ordered.
    Ended,
}

impl Outcome {
    /// The number on the wire and on disks.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Runs => 0,
            Self::RolledBack => 1,
            Self::Ended => 2,
        }
    }

    pub(super) fn from_number(number: u64) -> Result<Self, CborError> {
        match number {
            0 => Ok(Self::Runs),
            1 => Ok(Self::RolledBack),
            2 => Ok(Self::Ended),
            _ => Err(CborError::Value("outcome")),
        }
    }
}

/// What a device asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestKind {
    /// A credential, and its first service if there is one (S310, fifth embodiment S1910).
    Activate {
        /// The service it was made for, if any.
        service: Option<ServiceId>,
    },
    /// A certificate for its service, over the key of `csr` (S320).
    Update {
        /// For which.
        service: ServiceId,
        /// What activation gave it.
        credential: Credential,
        /// PKCS#10 DER by the new key.
        csr: Vec<u8>,
    },
    /// Tells what became of a certificate.
    Report {
        /// Which one.
        serial: Serial,
        /// What became of it.
        outcome: Outcome,
    },
    /// The notice that holds for it, if it should have missed it.
    Poll,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub device: DeviceId,
    /// What.
    pub kind: RequestKind,
}

const ACTIVATE: u64 = 1;
const UPDATE: u64 = 2;
const REPORT: u64 = 3;
const POLL: u64 = 4;

impl Request {
    /// The signed form.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let payload = cbor::encode(|w| self.encode(w));
        Sign1::sign(&payload, key).as_bytes().to_vec()
    }

    fn encode(&self, w: &mut Writer) {
        let (number, service) = match &self.kind {
            RequestKind::Activate { service } => (ACTIVATE, service.as_ref()),
            RequestKind::Update { service, .. } => (UPDATE, Some(service)),
            RequestKind::Report { .. } => (REPORT, None),
            RequestKind::Poll => (POLL, None),
        };
        let (credential, csr) = match &self.kind {
            RequestKind::Update {
                credential, csr, ..
            } => (Some(&credential.expose()[..]), Some(&csr[..])),
            _ => (None, None),
        };
        let (serial, outcome) = match &self.kind {
            RequestKind::Report { serial, outcome } => (Some(serial.as_bytes()), *outcome),
            _ => (None, Outcome::Runs),
        };
        w.array(8).text(REQUEST_TYPE).uint(number);
        w.bytes(&self.device.guid().0);
        match service {
            Some(service) => w.text(service.as_str()),
            None => w.null(),
        };
        for part in [credential, csr, serial] {
            match part {
                Some(part) => w.bytes(part),
                None => w.null(),
            };
        }
        w.uint(outcome.number());
    }
}

/// A request as it came: readable, and to be verified with the asker's key.
#[derive(Debug)]
pub struct SignedRequest {
    signed: Sign1,
    request: Request,
}

impl SignedRequest {
    /// Reads it; believes nothing yet.
    ///
    /// # Errors
    /// [`MessageFault`], blame: the device.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageFault> {
        if bytes.len() > MAX_MESSAGE {
            return Err(MessageFault::TooLarge);
        }
        let signed = Sign1::parse(bytes)?;
        let request = decode_request(signed.payload())?;
        Ok(Self { signed, request })
    }

    /// The request, if `key` (that of the asker's certificate) signed it.
    ///
    /// # Errors
    /// [`Refusal::Integrity`].
    pub fn verify(self, key: &VerifyingKey) -> Result<Request, Refusal> {
        match self.signed.verify(key) {
            Ok(()) => Ok(self.request),
            Err(_) => Err(Refusal::Integrity),
        }
    }
}

fn decode_request(bytes: &[u8]) -> Result<Request, MessageFault> {
    let mut r = Reader::new(bytes)?;
    r.array(8)?;
    if r.text(MAX_ID)? != REQUEST_TYPE {
        return Err(MessageFault::WrongType);
    }
    let number = r.uint()?;
    let device = DeviceId::from_guid(Guid(r.bytes_exact()?));
    let service = maybe(&mut r, |r| Ok(r.text(MAX_ID)?.parse::<ServiceId>()?))?;
    let credential = maybe(&mut r, |r| Ok(Credential::from_bytes(r.bytes_exact()?)))?;
    let csr = maybe(&mut r, |r| Ok(r.bytes(MAX_PART)?.to_vec()))?;
    let serial = maybe(&mut r, read_serial)?;
    let outcome = Outcome::from_number(r.uint()?)?;
    r.end()?;
    let kind = match (number, service, credential, csr, serial) {
        (ACTIVATE, service, None, None, None) => RequestKind::Activate { service },
        (UPDATE, Some(service), Some(credential), Some(csr), None) => RequestKind::Update {
            service,
            credential,
            csr,
        },
        (REPORT, None, None, None, Some(serial)) => RequestKind::Report { serial, outcome },
        (POLL, None, None, None, None) => RequestKind::Poll,
        _ => return Err(CborError::Value("parts of a request").into()),
    };
    Ok(Request { device, kind })
}

fn maybe<'a, T>(
    r: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, MessageFault>,
) -> Result<Option<T>, MessageFault> {
    match r.null() {
        true => Ok(None),
        false => read(r).map(Some),
    }
}

fn read_serial(r: &mut Reader<'_>) -> Result<Serial, MessageFault> {
    let serial = Serial::new(r.bytes(crate::record::MAX_SERIAL)?);
    Ok(serial.ok_or(CborError::Value("serial number"))?)
}

/// What the register answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A credential; the device keeps it before it does anything else.
    Activated {
        /// The credential.
        credential: Credential,
        /// The service that it shall work for, if there is one.
        service: Option<ServiceId>,
    },
    /// A certificate.
    Granted {
        /// The service it is for.
        service: ServiceId,
        /// DER.
        certificate: Vec<u8>,
        /// Intermediates, DER, nearest first, without the root.
        chain: Vec<Vec<u8>>,
    },
    /// A report was noted.
    Noted,
    /// The notice that holds, signed; none if nothing is ordered.
    Notice(Option<Vec<u8>>),
    /// No.
    Refused {
        /// Why.
        refusal: Refusal,
        /// In words, for the device's log.
        text: String,
    },
}

const ACTIVATED: u64 = 1;
const GRANTED: u64 = 2;
const NOTED: u64 = 3;
const NOTICE: u64 = 4;
const REFUSED: u64 = 5;

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            refusal,
            text: refusal.to_string(),
        }
    }
}

impl Answer {
    /// The CBOR text.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        cbor::encode(|w| match self {
            Self::Activated {
                credential,
                service,
            } => {
                w.array(3).uint(ACTIVATED).bytes(credential.expose());
                match service {
                    Some(service) => _ = w.text(service.as_str()),
                    None => _ = w.null(),
                }
            }
            Self::Granted {
                service,
                certificate,
                chain,
            } => {
                w.array(4).uint(GRANTED).text(service.as_str());
                w.bytes(certificate).array(chain.len());
                chain.iter().for_each(|der| _ = w.bytes(der));
            }
            Self::Noted => _ = w.array(1).uint(NOTED),
            Self::Notice(notice) => {
                w.array(2).uint(NOTICE);
                match notice {
                    Some(notice) => _ = w.bytes(notice),
                    None => _ = w.null(),
                }
            }
            Self::Refused { refusal, text } => {
                _ = w.array(3).uint(REFUSED).uint(refusal.code()).text(text);
            }
        })
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`MessageFault`], blame: the server.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, MessageFault> {
        if bytes.len() > MAX_MESSAGE {
            return Err(MessageFault::TooLarge);
        }
        let mut r = Reader::new(bytes)?;
        let parts = r.array_len(4)?;
        let answer = match (parts, r.uint()?) {
            (3, ACTIVATED) => Self::Activated {
                credential: Credential::from_bytes(r.bytes_exact()?),
                service: maybe(&mut r, |r| Ok(r.text(MAX_ID)?.parse()?))?,
            },
            (4, GRANTED) => {
                let service = r.text(MAX_ID)?.parse()?;
                let certificate = r.bytes(MAX_PART)?.to_vec();
                let len = r.array_len(MAX_CHAIN)?;
                let chain = (0..len).map(|_| Ok(r.bytes(MAX_PART)?.to_vec()));
                Self::Granted {
                    service,
                    certificate,
                    chain: chain.collect::<Result<_, CborError>>()?,
                }
            }
            (1, NOTED) => Self::Noted,
            (2, NOTICE) => Self::Notice(maybe(&mut r, |r| {
                Ok(r.bytes(crate::notice::MAX_NOTICE)?.to_vec())
            })?),
            (3, REFUSED) => Self::Refused {
                refusal: Refusal::from_code(r.uint()?),
                text: r.text(MAX_TEXT)?.to_owned(),
            },
            _ => return Err(MessageFault::WrongType),
        };
        r.end()?;
        Ok(answer)
    }
}

/// Why the register says no. Each mismatch has its own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The request is no request.
    #[error("the request cannot be read; both sides must be of one version")]
    Malformed,
    /// Changed on the way, or not by the key of the asker's certificate.
    #[error("the request is not signed by the key of the device's certificate")]
    Integrity,
    /// The request names another device than the certificate.
    #[error("the request names another device than the certificate it came with")]
    WrongDevice,
    /// The register knows no such device, or not as onboarded.
    #[error("this device is not onboarded here; onboard it first")]
    UnknownDevice,
    /// It never got a credential.
    #[error("this device has no credential yet; it must be activated first")]
    NotActivated,
    /// It has a credential and has used it.
    #[error("this device has its credential already; onboard it anew if it lost it")]
    AlreadyActivated,
    /// The credential is another one.
    #[error("the device credential is not the one that this device was given")]
    WrongCredential,
    /// No service was ever ordered for it.
    #[error("no service is ordered for this device; order one first")]
    NoService,
    /// The service is not the one ordered.
    #[error("the service is not the one ordered for this device; it should look at its notice")]
    WrongService,
    /// A report about a certificate that does not run.
    #[error("the certificate reported on is not the one given last")]
    WrongSerial,
    /// The certification request is bad.
    #[error("the certification request is refused; it must be PKCS#10 by a new P-256 key")]
    BadRequest,
    /// The server failed.
    #[error("the server could not do it; ask again")]
    Unavailable,
    /// A word from the future.
    #[error("refused for a reason that this version does not know ({0})")]
    Unknown(u64),
}

const CODES: [(Refusal, u64); 12] = [
    (Refusal::Malformed, 1),
    (Refusal::Integrity, 2),
    (Refusal::WrongDevice, 3),
    (Refusal::UnknownDevice, 4),
    (Refusal::NotActivated, 5),
    (Refusal::AlreadyActivated, 6),
    (Refusal::WrongCredential, 7),
    (Refusal::NoService, 8),
    (Refusal::WrongService, 9),
    (Refusal::WrongSerial, 10),
    (Refusal::BadRequest, 11),
    (Refusal::Unavailable, 12),
];

impl Refusal {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u64 {
        if let Self::Unknown(code) = self {
            return code;
        }
        let known = CODES.iter().find(|(refusal, _)| *refusal == self);
        known.map_or(0, |(_, code)| *code)
    }

    pub(super) fn from_code(code: u64) -> Self {
        let known = CODES.iter().find(|(_, number)| *number == code);
        known.map_or(Self::Unknown(code), |(refusal, _)| *refusal)
    }

    /// One word for the counters.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Integrity => "integrity",
            Self::WrongDevice => "wrong device",
            Self::UnknownDevice => "unknown device",
            Self::NotActivated => "not activated",
            Self::AlreadyActivated => "already activated",
            Self::WrongCredential => "wrong credential",
            Self::NoService => "no service",
            Self::WrongService => "wrong service",
            Self::WrongSerial => "wrong serial",
            Self::BadRequest => "csr",
            Self::Unavailable => "own fault",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Why a message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageFault {
    /// Over [`MAX_MESSAGE`].
    #[error("a lifecycle message has more than {MAX_MESSAGE} bytes")]
    TooLarge,
    /// Not the CBOR it should be.
    #[error("malformed lifecycle message: {0}")]
    Cbor(#[from] CborError),
    /// Not a signed text.
    #[error("a lifecycle request is not signed: {0}")]
    Unsigned(#[from] CoseError),
    /// Something else.
    #[error("not a lifecycle message")]
    WrongType,
    /// An id that is none.
    #[error("the lifecycle message holds {0}")]
    Id(#[from] InvalidId),
}
