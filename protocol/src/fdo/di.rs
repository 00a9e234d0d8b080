//! Device Initialisation (10-13): the factory gives the device its first credential and keeps the
//! voucher (wire reference section 10).
//!
//! Unauthenticated by nature: the factory protects it by its network. `DeviceMfgInfo` is not
//! standardised; we speak the list that most implementations use.

use rand_core::CryptoRng;

use super::Error;
use super::message::{Message, MessageType};
use crate::credential::{DeviceCredential, MAX_DEVICE_INFO};
use crate::crypto::{Curve, HashAlg, HmacSecret, Mac, MacAlg, SigningKey, VerifyingKey, hmac};
use crate::csr::{self, Csr, MAX_REQUEST};
use crate::id::Guid;
use crate::key::{PublicKey, type_number};
use crate::rv::RendezvousInfo;
use crate::voucher::{Header, NewVoucher, Voucher};
use crate::wire::cbor::{self, CborError, Kind, Reader};

/// Largest manufacturing information.
const MAX_INFO: usize = 16 * 1024;
/// Most elements in it; what follows the request is not read.
const MAX_INFO_ELEMENTS: usize = 12;
/// Longest serial number or model, in bytes.
const MAX_TEXT: usize = 128;
/// Largest OVHeader.
const MAX_HEADER: usize = 16 * 1024;
/// `pkEnc` of the X509 form.
const ENC_X509: u64 = 1;

/// `DeviceMfgInfo = [pkType, pkEnc, serial, model, CSR]`: what a device tells its factory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceMfgInfo {
    /// Curve of owner keys that the device can verify with.
    pub owner_curve: Curve,
    /// Serial number.
    pub serial: String,
    /// Model, which becomes the voucher's device info.
    pub model: String,
    /// The request for the device certificate.
    pub csr: Csr,
}

impl DeviceMfgInfo {
    fn encode(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(5)
                .uint(type_number(self.owner_curve))
                .uint(ENC_X509);
            w.text(&self.serial)
                .text(&self.model)
                .bytes(self.csr.as_der());
        })
    }

    /// Serial, model and request come in one of two orders: the request last or first.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Curve, String, String, &[u8]), CborError> {
        let mut r = Reader::new(bytes)?;
        let len = r.array_len(MAX_INFO_ELEMENTS)?;
        if len < 5 {
            return Err(CborError::Value("manufacturing info"));
        }
        let curve = match r.uint()? {
            10 => Curve::P256,
            11 => Curve::P384,
            _ => return Err(CborError::Value("owner key type asked for")),
        };
        r.uint()?;
        let early = if r.kind() == Kind::Bytes {
            Some(r.bytes(MAX_INFO)?)
        } else {
            None
        };
        let serial = r.text(MAX_TEXT)?.to_owned();
        let model = r.text(MAX_TEXT.min(MAX_DEVICE_INFO))?.to_owned();
        let request = match early {
            Some(request) => request,
            None => r.bytes(MAX_INFO)?,
        };
        for _ in 5..len {
            r.raw()?;
        }
        r.end()?;
        Ok((curve, serial, model, request))
    }
}

// --- device side ---

/// Starts DI: makes the request for `key` and the first message.
pub fn start(
    serial: &str,
    model: &str,
    key: SigningKey,
) -> Result<(ExpectSetCredentials, Message), Error> {
    let csr = Csr::parse(&csr::request(serial, &key))?;
    let info = DeviceMfgInfo {
        owner_curve: Curve::P256,
        serial: serial.to_owned(),
        model: model.to_owned(),
        csr,
    };
    let body = cbor::encode(|w| _ = w.array(1).bytes(&info.encode()));
    Ok((
        ExpectSetCredentials { key },
        Message::new(MessageType::DiAppStart, body),
    ))
}

/// Device after 10.
#[derive(Debug)]
pub struct ExpectSetCredentials {
    key: SigningKey,
}

impl ExpectSetCredentials {
    /// Takes 11, draws the HMAC secret and answers 12.
    pub fn step(
        self,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<(ExpectDone, Message), Error> {
        let raw = message.read(MessageType::DiSetCredentials, |r| {
            r.array(1)?;
            r.bytes(MAX_HEADER)
        })?;
        let header = Header::parse(raw)?;
        let hmac_secret = HmacSecret::generate(rng);
        let mac = hmac(MacAlg::HmacSha256, &hmac_secret, raw);
        let credential = DeviceCredential {
            guid: header.guid(),
            rendezvous: header.rendezvous().clone(),
            hmac_secret,
            owner_key_hash: header.manufacturer().hash(HashAlg::Sha256),
            device_info: header.device_info().to_owned(),
            key: self.key,
        };
        let body = cbor::encode(|w| {
            w.array(1);
            mac.encode(w);
        });
        Ok((
            ExpectDone { credential },
            Message::new(MessageType::DiSetHmac, body),
        ))
    }
}

/// Device after 12.
#[derive(Debug)]
pub struct ExpectDone {
    credential: DeviceCredential,
}

impl ExpectDone {
    /// Takes 13: the credential is valid now and must be stored.
    pub fn step(self, message: &Message) -> Result<DeviceCredential, Error> {
        message.read(MessageType::DiDone, |r| r.array(0))?;
        Ok(self.credential)
    }
}

// --- factory side ---

/// Message 10 as the factory reads it: the request was found to be signed by its own key.
#[derive(Debug)]
pub struct AppStart {
    info: DeviceMfgInfo,
}

/// What the factory decides about a device.
#[derive(Debug)]
pub struct IssueTerms<'a> {
    /// The new device's GUID, 16 random bytes.
    pub guid: Guid,
    /// Where device and owner will meet.
    pub rendezvous: &'a RendezvousInfo,
    /// The manufacturer's key, first in the chain of owners.
    pub manufacturer: &'a VerifyingKey,
    /// Certificates for the key in [`AppStart::csr`], DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

impl AppStart {
    /// Reads 10 and checks the request in it.
    pub fn read(message: &Message) -> Result<Self, Error> {
        let kind = MessageType::DiAppStart;
        let info = message.read(kind, |r| {
            r.array(1)?;
            r.bytes(MAX_INFO)
        })?;
        let (owner_curve, serial, model, request) =
            DeviceMfgInfo::decode(info).map_err(|fault| Error::Malformed {
                message: kind,
                fault,
            })?;
        if request.len() > MAX_REQUEST {
            return Err(Error::Csr(csr::CsrError::TooLarge));
        }
        // Our owner keys are P-256; a device that cannot verify with them is told now. Whatever
        // encoding it asks for, it gets X509: most read that too, and nothing else is written here.
        if owner_curve != Curve::P256 {
            return Err(Error::Check {
                message: kind,
                what: "curve of the owner key asked for",
            });
        }
        let csr = Csr::parse(request)?;
        Ok(Self {
            info: DeviceMfgInfo {
                owner_curve,
                serial,
                model,
                csr,
            },
        })
    }

    /// What the device told.
    pub fn info(&self) -> &DeviceMfgInfo {
        &self.info
    }

    /// The request for the device certificate.
    pub fn csr(&self) -> &Csr {
        &self.info.csr
    }

    /// Answers 11 with the device's credential.
    pub fn issue(self, terms: IssueTerms<'_>) -> Result<(ExpectSetHmac, Message), Error> {
        let leaf = terms
            .chain
            .first()
            .ok_or(Error::Own("no device certificate"))?;
        if crate::key::certificate_key(leaf).ok().as_ref() != Some(self.info.csr.key()) {
            return Err(Error::Own("the device certificate is for another key"));
        }
        let new = NewVoucher::new(
            terms.guid,
            terms.rendezvous,
            &self.info.model,
            &PublicKey::x509(terms.manufacturer),
            Some(terms.chain),
        );
        let body = cbor::encode(|w| _ = w.array(1).bytes(new.header().as_bytes()));
        Ok((
            ExpectSetHmac { new },
            Message::new(MessageType::DiSetCredentials, body),
        ))
    }
}

/// Factory after 11.
#[derive(Debug)]
pub struct ExpectSetHmac {
    new: NewVoucher,
}

impl ExpectSetHmac {
    /// Takes 12; the voucher must be stored before the reply (13) is sent.
    pub fn step(self, message: &Message) -> Result<(Voucher, Message), Error> {
        let mac = message.read(MessageType::DiSetHmac, |r| {
            r.array(1)?;
            Mac::decode(r)
        })?;
        let voucher = self.new.seal(mac)?;
        let body = cbor::encode(|w| _ = w.array(0));
        Ok((voucher, Message::new(MessageType::DiDone, body)))
    }
}
