//! Transfer Ownership 1 (30-33): a device asks a rendezvous server where its owner answers (wire
//! reference sections 8 and 11).

use rand_core::CryptoRng;

use super::message::{Message, MessageType, Nonce, read_body};
use super::{Error, eat};
use crate::credential::DeviceCredential;
use crate::crypto::{Curve, Hash, VerifyingKey};
use crate::id::Guid;
use crate::rv::{MAX_ADDRESSES, To2Address};
use crate::wire::cbor::{self, CborError, Reader, Writer};
use crate::wire::cose::{Headers, Sign1};

/// Largest `Info` in a sigInfo; empty for ECDSA.
const MAX_SIG_INFO: usize = 1024;

/// The owner's signed addresses: `COSE_Sign1 over [[+ RVTO2AddrEntry], hash of to0d]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct To1d {
    sign1: Sign1,
    addresses: Vec<To2Address>,
    to0d_hash: Hash,
}

impl To1d {
    /// Reads a to1d that came in message `kind`; the signature is not verified yet.
    pub(super) fn parse(bytes: &[u8], kind: MessageType) -> Result<Self, Error> {
        let sign1 = Sign1::parse(bytes).map_err(|fault| Error::Cose {
            message: kind,
            fault,
        })?;
        let (addresses, to0d_hash) = read_body(kind, sign1.payload(), |r| {
            r.array(2)?;
            let len = r.array_len(MAX_ADDRESSES)?;
            if len == 0 {
                return Err(CborError::Value("no owner address"));
            }
            let addresses: Result<_, _> = (0..len).map(|_| To2Address::decode(r)).collect();
            Ok((addresses?, Hash::decode(r)?))
        })?;
        Ok(Self {
            sign1,
            addresses,
            to0d_hash,
        })
    }

    /// Reads a stored to1d.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse(bytes, MessageType::To1RvRedirect)
    }

    /// Verifies the signature by the owner's key.
    pub(super) fn verify(&self, owner: &VerifyingKey, kind: MessageType) -> Result<(), Error> {
        self.sign1.verify(owner).map_err(|fault| Error::Cose {
            message: kind,
            fault,
        })
    }

    /// The exact encoding.
    pub fn as_bytes(&self) -> &[u8] {
        self.sign1.as_bytes()
    }

    /// Where the owner answers, to be tried in order. Not to be trusted before TO2 proved the owner
    /// and found the same key in this signature.
    pub fn addresses(&self) -> &[To2Address] {
        &self.addresses
    }

    /// Hash of the to0d that came along in TO0.
    pub fn to0d_hash(&self) -> &Hash {
        &self.to0d_hash
    }
}

/// `sigInfo = [sgType, Info]`: which kind of key the device proves itself by.
pub(super) fn encode_sig_info(w: &mut Writer, curve: Curve) {
    let number = match curve {
        Curve::P256 => -7,
        Curve::P384 => -35,
    };
    w.array(2).int(number).bytes(&[]);
}

/// Reads a sigInfo and gives its encoding; the type is checked against nothing, since the voucher
/// alone tells which key the device has.
pub(super) fn read_sig_info<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], CborError> {
    let raw = r.raw()?;
    let mut inner = Reader::new(raw)?;
    inner.array(2)?;
    inner.int()?;
    inner.bytes(MAX_SIG_INFO)?;
    inner.end()?;
    Ok(raw)
}

// --- device side ---

/// Starts TO1.
pub fn hello(credential: &DeviceCredential) -> (ExpectHelloRvAck<'_>, Message) {
    let body = cbor::encode(|w| {
        w.array(2).bytes(&credential.guid.0);
        encode_sig_info(w, credential.key.public().curve());
    });
    (
        ExpectHelloRvAck { credential },
        Message::new(MessageType::To1HelloRv, body),
    )
}

/// Device after 30.
#[derive(Debug)]
pub struct ExpectHelloRvAck<'a> {
    credential: &'a DeviceCredential,
}

impl ExpectHelloRvAck<'_> {
    /// Takes 31 and answers 32 with the device's proof.
    pub fn step(self, message: &Message) -> Result<(ExpectRvRedirect, Message), Error> {
        let nonce = message.read(MessageType::To1HelloRvAck, |r| {
            r.array(2)?;
            let nonce = Nonce(r.bytes_exact()?);
            read_sig_info(r)?;
            Ok(nonce)
        })?;
        let DeviceCredential { guid, key, .. } = self.credential;
        let proof = eat::sign(*guid, nonce, None, Headers::default(), key);
        let message = Message::new(MessageType::To1ProveToRv, proof.as_bytes().to_vec());
        Ok((ExpectRvRedirect, message))
    }
}

/// Device after 32.
#[derive(Debug)]
pub struct ExpectRvRedirect;

impl ExpectRvRedirect {
    /// Takes 33. Who signed it shows only in TO2.
    pub fn step(self, message: &Message) -> Result<To1d, Error> {
        let kind = MessageType::To1RvRedirect;
        To1d::parse(message.expect(kind)?, kind)
    }
}

// --- rendezvous side ---

/// Message 30 as the rendezvous server reads it.
#[derive(Debug)]
pub struct HelloRv {
    guid: Guid,
    sig_info: Vec<u8>,
}

impl HelloRv {
    /// Reads 30. The shell looks the GUID up; if nothing is known, the answer is
    /// [`Error::NotFound`], on which the device walks on.
    pub fn read(message: &Message) -> Result<Self, Error> {
        let (guid, sig_info) = message.read(MessageType::To1HelloRv, |r| {
            r.array(2)?;
            Ok((Guid(r.bytes_exact()?), read_sig_info(r)?))
        })?;
        Ok(Self {
            guid,
            sig_info: sig_info.to_vec(),
        })
    }

    /// The device that asks.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// Answers 31 with a fresh nonce. `device_key` is the voucher's, `to1d` what the owner
    /// registered.
    pub fn answer(
        self,
        device_key: VerifyingKey,
        to1d: Vec<u8>,
        rng: &mut dyn CryptoRng,
    ) -> (ExpectProveToRv, Message) {
        let nonce = Nonce::generate(rng);
        let body = cbor::encode(|w| _ = w.array(2).bytes(&nonce.0).raw(&self.sig_info));
        let state = ExpectProveToRv {
            guid: self.guid,
            nonce,
            device_key,
            to1d,
        };
        (state, Message::new(MessageType::To1HelloRvAck, body))
    }
}

/// Rendezvous server after 31.
#[derive(Debug)]
pub struct ExpectProveToRv {
    guid: Guid,
    nonce: Nonce,
    device_key: VerifyingKey,
    to1d: Vec<u8>,
}

impl ExpectProveToRv {
    /// The device that this run is about.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// Takes 32, checks the device's proof and answers 33.
    pub fn step(self, message: &Message) -> Result<Message, Error> {
        let kind = MessageType::To1ProveToRv;
        let body = message.expect(kind)?;
        eat::verify(kind, body, self.guid, self.nonce, &self.device_key)?;
        Ok(Message::new(MessageType::To1RvRedirect, self.to1d))
    }
}
