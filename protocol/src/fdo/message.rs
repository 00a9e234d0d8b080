//! A message as the transport carries it: number and body.

use std::fmt;

use rand_core::CryptoRng;

use super::error::{Error, ErrorMessage};
use crate::wire::cbor::{CborError, Reader};

/// Largest body of any message, in bytes.
pub const MAX_BODY: usize = 65_535;

/// Message numbers (wire reference section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum MessageType {
    DiAppStart = 10,
    DiSetCredentials = 11,
    DiSetHmac = 12,
    DiDone = 13,
    To0Hello = 20,
    To0HelloAck = 21,
    To0OwnerSign = 22,
    To0AcceptOwner = 23,
    To1HelloRv = 30,
    To1HelloRvAck = 31,
    To1ProveToRv = 32,
    To1RvRedirect = 33,
    To2HelloDevice = 60,
    To2ProveOvHdr = 61,
    To2GetOvNextEntry = 62,
    To2OvNextEntry = 63,
    To2ProveDevice = 64,
    To2SetupDevice = 65,
    To2DeviceServiceInfoReady = 66,
    To2OwnerServiceInfoReady = 67,
    To2DeviceServiceInfo = 68,
    To2OwnerServiceInfo = 69,
    To2Done = 70,
    To2Done2 = 71,
    Error = 255,
}

impl MessageType {
    /// Every message, in order of its number.
    pub const ALL: [Self; 25] = [
        Self::DiAppStart,
        Self::DiSetCredentials,
        Self::DiSetHmac,
        Self::DiDone,
        Self::To0Hello,
        Self::To0HelloAck,
        Self::To0OwnerSign,
        Self::To0AcceptOwner,
        Self::To1HelloRv,
        Self::To1HelloRvAck,
        Self::To1ProveToRv,
        Self::To1RvRedirect,
        Self::To2HelloDevice,
        Self::To2ProveOvHdr,
        Self::To2GetOvNextEntry,
        Self::To2OvNextEntry,
        Self::To2ProveDevice,
        Self::To2SetupDevice,
        Self::To2DeviceServiceInfoReady,
        Self::To2OwnerServiceInfoReady,
        Self::To2DeviceServiceInfo,
        Self::To2OwnerServiceInfo,
        Self::To2Done,
        Self::To2Done2,
        Self::Error,
    ];

    /// The number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The message of a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Whether the message starts a protocol run (and so carries no session token).
    pub fn starts_run(self) -> bool {
        matches!(
            self,
            Self::DiAppStart | Self::To0Hello | Self::To1HelloRv | Self::To2HelloDevice
        )
    }

    /// Whether the message ends a protocol run (after it the token is void).
    pub fn ends_run(self) -> bool {
        matches!(
            self,
            Self::DiDone
                | Self::To0AcceptOwner
                | Self::To1RvRedirect
                | Self::To2Done2
                | Self::Error
        )
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// One message: its number and its CBOR body (sealed where FDO seals it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The number.
    pub kind: MessageType,
    /// The body as it is on the wire.
    pub body: Vec<u8>,
}

impl Message {
    /// Puts a body under its number.
    pub fn new(kind: MessageType, body: Vec<u8>) -> Self {
        Self { kind, body }
    }

    /// The body, if this message is `expected` and within bounds. An error message of the peer and
    /// any other message are errors: the session is over.
    pub(crate) fn expect(&self, expected: MessageType) -> Result<&[u8], Error> {
        if self.body.len() > MAX_BODY {
            return Err(Error::Malformed {
                message: self.kind,
                fault: CborError::TooLong("body"),
            });
        }
        if self.kind == MessageType::Error {
            return Err(Error::Peer(ErrorMessage::parse(&self.body)));
        }
        if self.kind != expected {
            return Err(Error::Unexpected {
                expected,
                got: self.kind,
            });
        }
        Ok(&self.body)
    }

    /// Reads the expected body with `read`, which must use all of it.
    pub(crate) fn read<'a, T>(
        &'a self,
        expected: MessageType,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, CborError>,
    ) -> Result<T, Error> {
        read_body(expected, self.expect(expected)?, read)
    }
}

/// Reads one whole item with `read` and blames `message` for faults.
pub(crate) fn read_body<'a, T>(
    message: MessageType,
    body: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, CborError>,
) -> Result<T, Error> {
    let all = || {
        let mut r = Reader::new(body)?;
        let value = read(&mut r)?;
        r.end()?;
        Ok(value)
    };
    all().map_err(|fault| Error::Malformed { message, fault })
}

/// A 16-byte nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; 16]);

impl Nonce {
    /// Draws a nonce.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut nonce = [0; 16];
        rng.fill_bytes(&mut nonce);
        Self(nonce)
    }
}
