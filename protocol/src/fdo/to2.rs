//! Transfer Ownership 2 (60-71): device and owner prove themselves to each other, the credential is
//! replaced or kept, and they talk through a sealed tunnel (wire reference sections 12 to 16).
//!
//! [`owner`] is driven by the registrar, [`device`] by the device agent and the installer. Each side
//! is an enum of typed states with one step; a side that gave an error is gone. What both need is
//! here: the messages and the tunnel.

pub mod device;
pub mod owner;
#[cfg(test)]
mod tests;

pub use device::{DeviceSession, DeviceStep, DeviceTurn, Options, start};
pub use owner::{HelloDevice, Outcome, OwnerSession, OwnerStep, OwnerTurn, Replacement, Terms};

use rand_core::CryptoRng;

use super::Error;
use super::message::{Message, MessageType, Nonce};
use super::service_info::DEFAULT_MTU;
use crate::crypto::{Aead, AeadSuite, SessionKey};
use crate::wire::cbor::{self, CborError, Reader};
use crate::wire::cose::{CoseError, Encrypt0};

/// The one key exchange that we speak.
const KEX: &str = "ECDH256";
/// Longest name of a key exchange that is read.
const MAX_KEX: usize = 16;
/// Largest key exchange parameter.
const MAX_EXCHANGE: usize = 128;
/// Largest header of a voucher.
const MAX_HEADER: usize = 16 * 1024;
/// What we say about the messages that we accept.
const MAX_MESSAGE: u64 = super::MAX_BODY as u64;
/// Unprotected headers of ProveOVHdr: NonceTO2ProveDv and the owner's key.
const HEADER_PROVE_DEVICE: i64 = 256;
const HEADER_OWNER_KEY: i64 = 257;

/// The tunnel after message 64: one key, both directions, a random IV for each message.
#[derive(Debug)]
struct Tunnel {
    /// Boxed: a key schedule takes half a kilobyte, and states are moved at every step.
    aead: Box<Aead>,
}

impl Tunnel {
    fn new(suite: AeadSuite, key: &SessionKey) -> Self {
        let aead = Aead::new(suite, key).expect("the derivation gives the suite's key length");
        Self {
            aead: Box::new(aead),
        }
    }

    fn seal(&self, kind: MessageType, body: &[u8], rng: &mut dyn CryptoRng) -> Message {
        Message::new(kind, Encrypt0::seal(&self.aead, body, rng))
    }

    /// Opens the expected message.
    fn open(&self, message: &Message, expected: MessageType) -> Result<Vec<u8>, Error> {
        Encrypt0::open(&self.aead, message.expect(expected)?).map_err(|fault| Error::Cose {
            message: expected,
            fault,
        })
    }
}

/// Reads `uint / null` as a message size; null, and values too large to matter, get a default.
fn read_mtu(r: &mut Reader<'_>) -> Result<u16, CborError> {
    if r.null() {
        return Ok(DEFAULT_MTU);
    }
    Ok(u16::try_from(r.uint()?).unwrap_or(u16::MAX))
}

/// Reads an encoded header value that is a nonce.
pub(super) fn read_nonce(encoded: Option<&[u8]>, kind: MessageType) -> Result<Nonce, Error> {
    let encoded = encoded.ok_or(Error::Check {
        message: kind,
        what: "nonce is missing",
    })?;
    super::message::read_body(kind, encoded, |r| Ok(Nonce(r.bytes_exact()?)))
}

/// Body `[nonce]` of 70 and 71.
fn nonce_body(nonce: Nonce) -> Vec<u8> {
    cbor::encode(|w| _ = w.array(1).bytes(&nonce.0))
}

/// Blames `message` for a COSE fault.
fn blame(message: MessageType) -> impl Fn(CoseError) -> Error {
    move |fault| Error::Cose { message, fault }
}
