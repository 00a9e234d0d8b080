//! Signed notices to devices: which other server there is, which service is wanted.
//!
//! Made by a CPS server (40 or 50) and retained on the device's own topics; read by the device
//! agent, which believes the signature and not the broker. A notice bears (epoch, seq) of its
//! issuer; the receiver stores the highest per (issuer, kind) durably *before* it acts, so that a
//! replayed or reordered notice moves nothing ([`Marks::gate`]). Nothing here stores or acts.

use std::collections::BTreeMap;

use crate::{
    crypto::{SigningKey, VerifyingKey},
    id::{DeviceId, Guid, InvalidId, ServerId, SiteId},
    record::{Assignment, MAX_SERIAL, RecordFault, Serial},
    site_module::{ServerAddress, SiteFault},
    wire::{
        cbor::{self, CborError, Reader},
        cose::{CoseError, Sign1},
    },
};

/// Largest signed notice, in bytes.
pub const MAX_NOTICE: usize = 16 * 1024;
/// Most (issuer, kind) pairs that a receiver keeps a mark for.
pub const MAX_MARKS: usize = 256;
/// Longest id as text.
const MAX_ID: usize = 80;
/// First element of a notice's payload, so that no other signed text can pass for one.
const NOTICE_TYPE: &str = "holdfast/notice/1";

/// Place of a notice in its issuer's sequence; the epoch comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The issuer's enrolment.
    pub epoch: u32,
    /// Grows with each notice of the issuer to anyone.
    pub seq: u64,
}

/// What a notice says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// There is this other CPS server.
    Alternate(ServerAddress),
    /// The device shall work for this service.
    Service {
        /// Service, and server (230) and application if others.
        assignment: Assignment,
        /// Logical time of the order in the site's log: of two orders, whichever servers tell of
        /// them, the one of the higher rank is meant.
        rank: u64,
    },
    /// The device shall work for no service any more.
    ServiceEnd {
        /// As in `Service`: the two are orders in one row.
        rank: u64,
    },
    /// The device shall renew its certificate, with a fresh key. It names the one that it has, so the
    /// same order again moves nothing.
    Renew {
        /// Of the certificate that shall go.
        serial: Serial,
    },
    /// A kind from the future: verified, never acted on.
    Unknown {
        /// Its number.
        kind: u64,
    },
}

const ALTERNATE: u64 = 1;
const SERVICE: u64 = 2;
const SERVICE_END: u64 = 3;
const RENEW: u64 = 4;

impl Body {
    /// The number that stands for the kind.
    #[must_use]
    pub fn kind(&self) -> u64 {
        match self {
            Self::Alternate(_) => ALTERNATE,
            Self::Service { .. } => SERVICE,
            Self::ServiceEnd { .. } => SERVICE_END,
            Self::Renew { .. } => RENEW,
            Self::Unknown { kind } => *kind,
        }
    }

    /// The kind whose mark it moves: what travels on one topic is numbered together.
    fn lane(&self) -> u64 {
        match self {
            Self::ServiceEnd { .. } => SERVICE,
            other => other.kind(),
        }
    }
}

/// A notice, verified or to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Which server says so.
    pub issuer: ServerId,
    /// At which site.
    pub site: SiteId,
    /// To which device.
    pub device: DeviceId,
    /// Its place in the issuer's sequence.
    pub stamp: Stamp,
    /// What it says.
    pub body: Body,
}

impl Notice {
    /// The signed form, as it is published: COSE_Sign1 bytes.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let payload = cbor::encode(|w| {
            w.array(8)
                .text(NOTICE_TYPE)
                .text(self.issuer.as_str())
                .text(self.site.as_str());
            w.bytes(&self.device.guid().0)
                .uint(self.stamp.epoch.into())
                .uint(self.stamp.seq);
            w.uint(self.body.kind());
            match &self.body {
                Body::Alternate(server) => server.encode(w),
                Body::Service { assignment, rank } => {
                    w.array(2);
                    assignment.encode(w);
                    w.uint(*rank);
                }
                Body::ServiceEnd { rank } => _ = w.array(1).uint(*rank),
                Body::Renew { serial } => _ = w.array(1).bytes(serial.as_bytes()),
                Body::Unknown { .. } => _ = w.null(),
            }
        });
        Sign1::sign(&payload, key).as_bytes().to_vec()
    }

    /// Verifies a notice with any of `keys` and reads it. It must be for this site and device;
    /// whether it is new is [`Marks::gate`]'s question.
    ///
    /// # Errors
    /// [`NoticeFault`], blame: whoever published it.
    pub fn verify(
        bytes: &[u8],
        keys: &[VerifyingKey],
        site: &SiteId,
        device: DeviceId,
    ) -> Result<Self, NoticeFault> {
        if bytes.len() > MAX_NOTICE {
            return Err(NoticeFault::TooLarge);
        }
        let signed = Sign1::parse(bytes)?;
        if !keys.iter().any(|key| signed.verify(key).is_ok()) {
            return Err(NoticeFault::Signature);
        }
        let notice = Self::from_cbor(signed.payload())?;
        if notice.site != *site || notice.device != device {
            return Err(NoticeFault::Misdirected);
        }
        Ok(notice)
    }

    fn from_cbor(bytes: &[u8]) -> Result<Self, NoticeFault> {
        let mut r = Reader::new(bytes)?;
        r.array(8)?;
        if r.text(MAX_ID)? != NOTICE_TYPE {
            return Err(NoticeFault::WrongType);
        }
        let (issuer, site) = (r.text(MAX_ID)?.parse()?, r.text(MAX_ID)?.parse()?);
        let device = DeviceId::from_guid(Guid(r.bytes_exact()?));
        let stamp = Stamp {
            epoch: r.small()?,
            seq: r.uint()?,
        };
        let body = match r.uint()? {
            ALTERNATE => Body::Alternate(ServerAddress::decode(&mut r)?),
            SERVICE => {
                r.array(2)?;
                Body::Service {
                    assignment: Assignment::decode(&mut r)?,
                    rank: r.uint()?,
                }
            }
            SERVICE_END => {
                r.array(1)?;
                Body::ServiceEnd { rank: r.uint()? }
            }
            RENEW => {
                r.array(1)?;
                let serial = Serial::new(r.bytes(MAX_SERIAL)?);
                Body::Renew {
                    serial: serial.ok_or(CborError::Value("serial number"))?,
                }
            }
            kind => {
                r.raw()?;
                Body::Unknown { kind }
            }
        };
        r.end()?;
        Ok(Self {
            issuer,
            site,
            device,
            stamp,
            body,
        })
    }
}

/// The highest stamp acted upon, per (issuer, kind). The receiver stores it; this only decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    highest: BTreeMap<(ServerId, u64), Stamp>,
}

/// What to do with a verified notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// New: store these marks durably, then act.
    Store(Marks),
    /// The one acted upon last: finish the act if a crash cut it short, otherwise do nothing.
    Repeat,
    /// Older than what was acted upon: do nothing.
    Stale,
    /// A kind from the future, or more issuers than [`MAX_MARKS`]: do nothing.
    Ignore,
}

impl Marks {
    /// Judges a verified notice. Kinds are marked apart, since they travel on topics of their own
    /// and may overtake each other; those that share a topic share a mark.
    #[must_use]
    pub fn gate(&self, notice: &Notice) -> Gate {
        if matches!(notice.body, Body::Unknown { .. }) {
            return Gate::Ignore;
        }
        let key = (notice.issuer.clone(), notice.body.lane());
        match self.highest.get(&key) {
            Some(mark) if *mark == notice.stamp => Gate::Repeat,
            Some(mark) if *mark > notice.stamp => Gate::Stale,
            None if self.highest.len() >= MAX_MARKS => Gate::Ignore,
            Some(_) | None => {
                let mut next = self.clone();
                next.highest.insert(key, notice.stamp);
                Gate::Store(next)
            }
        }
    }

    /// The CBOR text for storing: `[[issuer, kind, epoch, seq], ...]`.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(self.highest.len());
            for ((issuer, kind), stamp) in &self.highest {
                w.array(4).text(issuer.as_str()).uint(*kind);
                w.uint(stamp.epoch.into()).uint(stamp.seq);
            }
        })
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`NoticeFault`], blame: the own store.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, NoticeFault> {
        let mut r = Reader::new(bytes)?;
        let mut highest = BTreeMap::new();
        for _ in 0..r.array_len(MAX_MARKS)? {
            r.array(4)?;
            let key = (r.text(MAX_ID)?.parse()?, r.uint()?);
            highest.insert(
                key,
                Stamp {
                    epoch: r.small()?,
                    seq: r.uint()?,
                },
            );
        }
        r.end()?;
        Ok(Self { highest })
    }
}

/// Why a notice was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoticeFault {
    /// Over [`MAX_NOTICE`].
    #[error("a notice has more than {MAX_NOTICE} bytes")]
    TooLarge,
    /// Not the CBOR it should be.
    #[error("malformed notice: {0}")]
    Cbor(#[from] CborError),
    /// Not a signed text.
    #[error("a notice is not signed: {0}")]
    Unsigned(#[from] CoseError),
    /// No key that we trust for notices made the signature.
    #[error("the notice is not signed by a key that this device trusts for notices")]
    Signature,
    /// Signed, but something else.
    #[error("the signed text is not a notice")]
    WrongType,
    /// For another site or device.
    #[error("the notice is for another device or site")]
    Misdirected,
    /// A server address that is none.
    #[error("the notice holds a bad server address: {0}")]
    Address(#[from] SiteFault),
    /// A service that is none.
    #[error("the notice holds a bad service: {0}")]
    Assignment(#[from] RecordFault),
    /// An id that is none.
    #[error("the notice holds {0}")]
    Id(#[from] InvalidId),
}

#[cfg(test)]
mod tests;
