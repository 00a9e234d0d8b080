//! Transfer Ownership 0 (20-23): an owner tells a rendezvous server where it answers for a device
//! (wire reference sections 8 and 11).
//!
//! The server checks nonce, voucher, hash and signature; whether this voucher may take the place of
//! one registered before ([`crate::voucher::Relation`]) is the shell's to decide, by its store.

use rand_core::CryptoRng;

use super::Error;
use super::message::{Message, MessageType, Nonce, read_body};
use super::to1::To1d;
use crate::crypto::{HashAlg, SigningKey, hash};
use crate::rv::To2Address;
use crate::voucher::{MAX_VOUCHER, Policy, Voucher};
use crate::wire::cbor;
use crate::wire::cose::Sign1;

/// Largest to0d: a voucher, a number and a nonce.
const MAX_TO0D: usize = MAX_VOUCHER + 64;

/// What the owner wants registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Where the owner answers TO2; tried in order by the device.
    pub addresses: Vec<To2Address>,
    /// For how many seconds it asks to be registered.
    pub wait_secs: u32,
}

// --- owner side ---

/// Starts TO0.
pub fn hello() -> (ExpectHelloAck, Message) {
    let body = cbor::encode(|w| _ = w.array(0));
    (ExpectHelloAck, Message::new(MessageType::To0Hello, body))
}

/// Owner after 20.
#[derive(Debug)]
pub struct ExpectHelloAck;

impl ExpectHelloAck {
    /// Takes 21 and answers 22; `key` must be the voucher's present owner.
    pub fn step(
        self,
        message: &Message,
        voucher: &Voucher,
        key: &SigningKey,
        registration: &Registration,
    ) -> Result<(ExpectAcceptOwner, Message), Error> {
        let nonce = message.read(MessageType::To0HelloAck, |r| {
            r.array(1)?;
            Ok(Nonce(r.bytes_exact()?))
        })?;
        if !voucher.is_owned_by(&key.public()) {
            return Err(Error::Own("only the present owner can register"));
        }
        let to0d = cbor::encode(|w| {
            w.array(3)
                .raw(voucher.as_bytes())
                .uint(registration.wait_secs.into())
                .bytes(&nonce.0);
        });
        let to1d = sign_to1d(&to0d, &registration.addresses, key);
        let body = cbor::encode(|w| _ = w.array(2).bytes(&to0d).raw(to1d.as_bytes()));
        let state = ExpectAcceptOwner {
            asked: registration.wait_secs,
        };
        Ok((state, Message::new(MessageType::To0OwnerSign, body)))
    }
}

/// `to1d`: the owner's addresses and the hash of to0d, signed by the owner.
fn sign_to1d(to0d: &[u8], addresses: &[To2Address], key: &SigningKey) -> Sign1 {
    let payload = cbor::encode(|w| {
        w.array(2).array(addresses.len());
        addresses.iter().for_each(|address| address.encode(w));
        hash(HashAlg::Sha256, to0d).encode(w);
    });
    Sign1::sign(&payload, key)
}

/// Owner after 22.
#[derive(Debug)]
pub struct ExpectAcceptOwner {
    asked: u32,
}

impl ExpectAcceptOwner {
    /// Takes 23: for how many seconds the registration holds, at most what was asked.
    pub fn step(self, message: &Message) -> Result<u32, Error> {
        let granted: u32 = message.read(MessageType::To0AcceptOwner, |r| {
            r.array(1)?;
            r.small()
        })?;
        Ok(granted.min(self.asked))
    }
}

// --- rendezvous side ---

/// Rendezvous server after 21.
#[derive(Debug)]
pub struct ExpectOwnerSign {
    nonce: Nonce,
}

/// A registration whose voucher, nonce, hash and signature hold.
#[derive(Debug)]
pub struct Offer {
    /// The voucher; its last owner signed the addresses.
    pub voucher: Voucher,
    /// Seconds asked for.
    pub wait_secs: u32,
    /// The signed addresses, to be handed to the device byte for byte.
    pub to1d: To1d,
}

impl ExpectOwnerSign {
    /// Takes 20 and answers 21 with a fresh nonce.
    pub fn begin(message: &Message, rng: &mut dyn CryptoRng) -> Result<(Self, Message), Error> {
        message.read(MessageType::To0Hello, |r| r.array(0))?;
        let nonce = Nonce::generate(rng);
        let body = cbor::encode(|w| _ = w.array(1).bytes(&nonce.0));
        Ok((Self { nonce }, Message::new(MessageType::To0HelloAck, body)))
    }

    /// The state after a nonce known to a test.
    #[cfg(test)]
    pub(super) fn with_nonce(nonce: Nonce) -> Self {
        Self { nonce }
    }

    /// Takes 22 and checks everything in it that needs no store. A voucher without entries is
    /// refused: the manufacturer itself does not register.
    pub fn step(self, message: &Message, policy: &Policy<'_>) -> Result<Offer, Error> {
        let kind = MessageType::To0OwnerSign;
        let (to0d, to1d) = message.read(kind, |r| {
            r.array(2)?;
            Ok((r.bytes(MAX_TO0D)?, r.raw()?))
        })?;
        let (voucher, wait_secs, nonce) = read_body(kind, to0d, |r| {
            r.array(3)?;
            Ok((r.raw()?, r.small()?, r.bytes_exact()?))
        })?;
        if Nonce(nonce) != self.nonce {
            return Err(Error::Check {
                message: kind,
                what: "nonce",
            });
        }
        let voucher = Voucher::parse(voucher)?;
        voucher.verify(policy)?;
        if voucher.entries().is_empty() {
            return Err(Error::Voucher(crate::voucher::VoucherError::NoEntries));
        }
        let to1d = To1d::parse(to1d, kind)?;
        to1d.verify(voucher.owner_key().key(), kind)?;
        if !to1d.to0d_hash().matches(&[to0d]) {
            return Err(Error::Check {
                message: kind,
                what: "hash of to0d",
            });
        }
        Ok(Offer {
            voucher,
            wait_secs,
            to1d,
        })
    }
}

impl Offer {
    /// Answers 23: the registration holds for `wait_secs`, which must not exceed what was asked.
    pub fn accept(&self, wait_secs: u32) -> Message {
        let granted = wait_secs.min(self.wait_secs);
        let body = cbor::encode(|w| _ = w.array(1).uint(granted.into()));
        Message::new(MessageType::To0AcceptOwner, body)
    }
}
