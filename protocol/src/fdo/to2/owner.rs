//! TO2 as the owner: proves the voucher, checks the device, replaces or keeps its credential.

mod talk;

pub use talk::OwnerTurn;

use rand_core::CryptoRng;

use talk::Talk;

use super::{
    HEADER_OWNER_KEY, HEADER_PROVE_DEVICE, KEX, MAX_EXCHANGE, MAX_KEX, MAX_MESSAGE, Tunnel, blame,
    read_mtu, read_nonce,
};
use crate::crypto::{AeadSuite, EcdhParameter, EcdhSecret, Mac, SigningKey, hash};
use crate::fdo::message::{Message, MessageType, Nonce, read_body};
use crate::fdo::service_info::{DevModInbox, Inbox, MAX_MTU};
use crate::fdo::{Error, eat, to1};
use crate::id::Guid;
use crate::key::PublicKey;
use crate::rv::RendezvousInfo;
use crate::voucher::{NewVoucher, Voucher};
use crate::wire::cbor;
use crate::wire::cose::{Headers, Sign1};

/// Message 60 as the owner reads it; the shell looks up the voucher of [`HelloDevice::guid`].
#[derive(Debug)]
pub struct HelloDevice {
    raw: Vec<u8>,
    guid: Guid,
    nonce: Nonce,
    suite: AeadSuite,
    sig_info: Vec<u8>,
}

/// What becomes of the device's credential.
#[derive(Debug, Clone)]
pub enum Replacement {
    /// A new one: a new voucher with no entries, `owner` in the manufacturer's place.
    Replace {
        /// New GUID, 16 random bytes.
        guid: Guid,
        /// Where the device is to look from now on.
        rendezvous: RendezvousInfo,
        /// The key that will own the device.
        owner: PublicKey,
    },
    /// The device keeps all it has, and the voucher stays valid.
    Reuse,
}

/// What the owner brings to a session.
#[derive(Debug)]
pub struct Terms {
    /// The device's voucher, verified; its present owner is `key`.
    pub voucher: Voucher,
    /// The owner's key.
    pub key: SigningKey,
    /// What becomes of the credential.
    pub replacement: Replacement,
    /// Largest ServiceInfo message that the owner accepts, at most [`MAX_MTU`].
    pub max_service_info: u16,
}

/// How a session ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device holds a new credential; this is its voucher. Until the device was seen with the
    /// new GUID, the old voucher must be kept too: the last message may have been lost.
    Replaced(Box<Voucher>),
    /// The device kept its credential and the voucher stays valid.
    Reused,
    /// The device was given a new credential but computes no voucher for it: it works, but cannot
    /// be passed on by FDO.
    Unsellable,
}

/// Parts of a session that stay the same in all its states.
#[derive(Debug)]
struct Run {
    terms: Terms,
    nonce_prove_device: Nonce,
    suite: AeadSuite,
}

/// The owner's side of one session after message 61. [`OwnerSession::step`] is the only way on.
#[derive(Debug)]
pub struct OwnerSession {
    run: Box<Run>,
    state: State,
}

#[derive(Debug)]
enum State {
    GetNextEntry(ExpectGetNextEntry),
    ProveDevice(ExpectProveDevice),
    Ready(ExpectReady),
    ServiceInfo(Box<Talk>),
    Done(Box<Talk>),
}

/// What a step gave.
#[derive(Debug)]
pub enum OwnerStep {
    /// Send the message and wait for the next.
    Continue(OwnerSession, Message),
    /// The device spoke; answer by [`OwnerTurn::answer`].
    ServiceInfo(OwnerTurn),
    /// The session ended. Make the outcome durable, then send the message (71).
    Finished(Outcome, Message),
}

impl HelloDevice {
    /// Reads 60. If nothing is known of the GUID, the answer is [`Error::NotFound`].
    pub fn read(message: &Message) -> Result<Self, Error> {
        let (guid, nonce, exchange, cipher, sig_info) =
            message.read(MessageType::To2HelloDevice, |r| {
                r.array(6)?;
                // The device's message size: some send nonsense, so nothing follows from it.
                r.uint()?;
                let (guid, nonce) = (Guid(r.bytes_exact()?), Nonce(r.bytes_exact()?));
                Ok((
                    guid,
                    nonce,
                    r.text(MAX_KEX)?,
                    r.int()?,
                    to1::read_sig_info(r)?,
                ))
            })?;
        let suite = AeadSuite::from_number(cipher).filter(|_| exchange == KEX);
        let suite = suite.ok_or_else(|| Error::UnsupportedSuite {
            exchange: exchange.to_owned(),
            cipher,
        })?;
        let sig_info = sig_info.to_vec();
        Ok(Self {
            raw: message.body.clone(),
            guid,
            nonce,
            suite,
            sig_info,
        })
    }

    /// The device that asks.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// Answers 61: proves to hold the key that the voucher leads to.
    pub fn answer(
        self,
        terms: Terms,
        rng: &mut dyn CryptoRng,
    ) -> Result<(OwnerSession, Message), Error> {
        let voucher = &terms.voucher;
        if voucher.guid() != self.guid || !voucher.is_owned_by(&terms.key.public()) {
            return Err(Error::Own(
                "the voucher is of another device or another owner",
            ));
        }
        let entries = voucher.entries().len();
        if entries == 0 || voucher.device_key().is_none() {
            return Err(Error::Own(
                "the voucher has no entries or no device certificate",
            ));
        }
        let secret = EcdhSecret::generate(rng);
        let nonce_prove_device = Nonce::generate(rng);
        let payload = cbor::encode(|w| {
            w.array(8)
                .bytes(voucher.header().as_bytes())
                .uint(entries as u64);
            voucher.mac().encode(w);
            w.bytes(&self.nonce.0)
                .raw(&self.sig_info)
                .bytes(&secret.parameter().to_bytes());
            hash(voucher.mac().alg().hash_alg(), &self.raw).encode(w);
            w.uint(MAX_MESSAGE);
        });
        let headers = Headers::default()
            .with(
                HEADER_PROVE_DEVICE,
                cbor::encode(|w| _ = w.bytes(&nonce_prove_device.0)),
            )
            .with(HEADER_OWNER_KEY, voucher.owner_key().as_bytes().to_vec());
        let proof = Sign1::sign_with(&payload, headers, &terms.key);
        let run = Box::new(Run {
            terms,
            nonce_prove_device,
            suite: self.suite,
        });
        let state = State::GetNextEntry(ExpectGetNextEntry { next: 0, secret });
        let message = Message::new(MessageType::To2ProveOvHdr, proof.as_bytes().to_vec());
        Ok((OwnerSession { run, state }, message))
    }
}

impl OwnerSession {
    /// The GUID by which the device came.
    pub fn guid(&self) -> Guid {
        self.run.terms.voucher.guid()
    }

    /// The only message due now.
    pub fn expects(&self) -> MessageType {
        match self.state {
            State::GetNextEntry(_) => MessageType::To2GetOvNextEntry,
            State::ProveDevice(_) => MessageType::To2ProveDevice,
            State::Ready(_) => MessageType::To2DeviceServiceInfoReady,
            State::ServiceInfo(_) => MessageType::To2DeviceServiceInfo,
            State::Done(_) => MessageType::To2Done,
        }
    }

    /// Seals another text than the session would (for tests of the device).
    #[cfg(test)]
    pub(super) fn seal(&self, kind: MessageType, body: &[u8], rng: &mut dyn CryptoRng) -> Message {
        let tunnel = match &self.state {
            State::Ready(state) => &state.tunnel,
            State::ServiceInfo(talk) | State::Done(talk) => &talk.tunnel,
            other => panic!("no tunnel in {other:?}"),
        };
        tunnel.seal(kind, body, rng)
    }

    /// Takes the next message. After an error there is no session any more.
    pub fn step(self, message: &Message, rng: &mut dyn CryptoRng) -> Result<OwnerStep, Error> {
        match self.state {
            State::GetNextEntry(state) => state.step(self.run, message),
            State::ProveDevice(state) => state.step(self.run, message, rng),
            State::Ready(state) => state.step(self.run, message, rng),
            State::ServiceInfo(talk) => talk.hear(self.run, message),
            State::Done(talk) => talk.finish(&self.run, message, rng),
        }
    }
}

/// Hands out the entries, in order, each once.
#[derive(Debug)]
struct ExpectGetNextEntry {
    next: usize,
    secret: EcdhSecret,
}

impl ExpectGetNextEntry {
    fn step(self, run: Box<Run>, message: &Message) -> Result<OwnerStep, Error> {
        let kind = MessageType::To2GetOvNextEntry;
        let asked: u8 = message.read(kind, |r| {
            r.array(1)?;
            r.small()
        })?;
        if usize::from(asked) != self.next {
            return Err(Error::Check {
                message: kind,
                what: "number of the entry",
            });
        }
        let entries = run.terms.voucher.entries();
        let body = cbor::encode(|w| {
            w.array(2)
                .uint(asked.into())
                .raw(entries[self.next].as_bytes());
        });
        let next = self.next + 1;
        let state = if next == entries.len() {
            State::ProveDevice(ExpectProveDevice {
                secret: self.secret,
            })
        } else {
            State::GetNextEntry(Self { next, ..self })
        };
        let reply = Message::new(MessageType::To2OvNextEntry, body);
        Ok(OwnerStep::Continue(OwnerSession { run, state }, reply))
    }
}

/// Waits for the device's proof, then opens the tunnel.
#[derive(Debug)]
struct ExpectProveDevice {
    secret: EcdhSecret,
}

impl ExpectProveDevice {
    fn step(
        self,
        run: Box<Run>,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<OwnerStep, Error> {
        let kind = MessageType::To2ProveDevice;
        let voucher = &run.terms.voucher;
        let device_key = voucher
            .device_key()
            .ok_or(Error::Own("no device certificate"))?;
        let (claim, headers) = eat::verify(
            kind,
            message.expect(kind)?,
            voucher.guid(),
            run.nonce_prove_device,
            device_key,
        )?;
        let nonce_setup_device = read_nonce(headers.get(eat::HEADER_NONCE), kind)?;
        let claim = claim.ok_or(Error::Check {
            message: kind,
            what: "key exchange is missing",
        })?;
        let exchange = read_body(kind, &claim, |r| {
            r.array(1)?;
            Ok(r.bytes(MAX_EXCHANGE)?.to_vec())
        })?;
        let parameter =
            EcdhParameter::parse(&exchange).map_err(|fault| blame(kind)(fault.into()))?;
        let tunnel = Tunnel::new(
            run.suite,
            &self.secret.agree_as_owner(&parameter, run.suite),
        );
        let setup = setup_device(&run.terms, nonce_setup_device);
        let reply = tunnel.seal(MessageType::To2SetupDevice, setup.as_bytes(), rng);
        let state = State::Ready(ExpectReady {
            tunnel,
            nonce_setup_device,
        });
        Ok(OwnerStep::Continue(OwnerSession { run, state }, reply))
    }
}

/// `[RendezvousInfo, Guid, NonceTO2SetupDv, Owner2Key]`, signed by the owner.
fn setup_device(terms: &Terms, nonce: Nonce) -> Sign1 {
    let (guid, rendezvous, owner) = match &terms.replacement {
        Replacement::Replace {
            guid,
            rendezvous,
            owner,
        } => (*guid, rendezvous, owner),
        Replacement::Reuse => (
            terms.voucher.guid(),
            terms.voucher.rendezvous(),
            terms.voucher.owner_key(),
        ),
    };
    let payload = cbor::encode(|w| {
        w.array(4)
            .raw(rendezvous.as_bytes())
            .bytes(&guid.0)
            .bytes(&nonce.0)
            .raw(owner.as_bytes());
    });
    Sign1::sign(&payload, &terms.key)
}

/// Waits for the HMAC of the new voucher, or for none.
#[derive(Debug)]
struct ExpectReady {
    tunnel: Tunnel,
    nonce_setup_device: Nonce,
}

impl ExpectReady {
    fn step(
        self,
        run: Box<Run>,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<OwnerStep, Error> {
        let kind = MessageType::To2DeviceServiceInfoReady;
        let body = self.tunnel.open(message, kind)?;
        let (mac, mtu) = read_body(kind, &body, |r| {
            r.array(2)?;
            let mac = if r.null() {
                None
            } else {
                Some(Mac::decode(r)?)
            };
            Ok((mac, read_mtu(r)?))
        })?;
        let outcome = match (&run.terms.replacement, mac) {
            (
                Replacement::Replace {
                    guid,
                    rendezvous,
                    owner,
                },
                Some(mac),
            ) => {
                let new = NewVoucher::succeeding(&run.terms.voucher, *guid, rendezvous, owner);
                Outcome::Replaced(Box::new(new.seal(mac)?))
            }
            (Replacement::Replace { .. }, None) => Outcome::Unsellable,
            (Replacement::Reuse, None) => Outcome::Reused,
            (Replacement::Reuse, Some(_)) => {
                return Err(Error::Check {
                    message: kind,
                    what: "HMAC though nothing is new",
                });
            }
        };
        let mtu_of_ours = run.terms.max_service_info.min(MAX_MTU);
        let body = cbor::encode(|w| _ = w.array(1).uint(mtu_of_ours.into()));
        let reply = self
            .tunnel
            .seal(MessageType::To2OwnerServiceInfoReady, &body, rng);
        let talk = Talk {
            tunnel: self.tunnel,
            nonce_setup_device: self.nonce_setup_device,
            outcome,
            mtu,
            inbox: Inbox::default(),
            devmod: DevModInbox::default(),
        };
        let state = State::ServiceInfo(Box::new(talk));
        Ok(OwnerStep::Continue(OwnerSession { run, state }, reply))
    }
}
