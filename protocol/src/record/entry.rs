//! One change entry, its number and order, and its signed form. Made by `Author`, read by `cps`.

use std::cmp::Ordering;

use super::change::Change;
use crate::{
    crypto::{SigningKey, VerifyingKey},
    id::{DeviceId, InvalidId, ServerId, SiteId},
    site_module::read_time,
    time::Time,
    topic::InvalidTopic,
    wire::{
        cbor::{self, CborError, Reader},
        cose::{CoseError, Sign1},
    },
};

/// Largest signed entry, in bytes: two vouchers of the largest size and some room.
pub const MAX_ENTRY: usize = 2 * crate::voucher::MAX_VOUCHER + 8 * 1024;
/// Longest id as text.
const MAX_ID: usize = 80;
/// First element of an entry's payload, so that no other signed text can pass for one.
const ENTRY_TYPE: &str = "holdfast/entry/1";

/// Number of an entry within its site's log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The server that made it.
    pub origin: ServerId,
    /// That server's enrolment.
    pub epoch: u32,
    /// 1, 2, 3... without gaps per (site, origin, epoch).
    pub seq: u64,
}

/// The total order of entries; needs no clock and is the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Order {
    /// Logical time (see the module's text).
    pub rank: u64,
    /// Breaks ties.
    pub id: EntryId,
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank
            .cmp(&other.rank)
            .then_with(|| self.id.cmp(&other.id))
    }
}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One change of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub id: EntryId,
    /// Its place in the order that needs no clock.
    pub rank: u64,
    /// The site that it belongs to; the cloud's own entries bear [`SiteId::of_cloud`].
    pub site: SiteId,
    /// When, as well as its author knew.
    pub at: Time,
    /// The device that it is about, if one.
    pub device: Option<DeviceId>,
    /// What changed.
    pub change: Change,
}

impl Entry {
    /// Its place in the total order.
    #[must_use]
    pub fn order(&self) -> Order {
        Order {
            rank: self.rank,
            id: self.id.clone(),
        }
    }

    fn to_cbor(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(9).text(ENTRY_TYPE);
            w.text(self.id.origin.as_str())
                .uint(self.id.epoch.into())
                .uint(self.id.seq);
            w.uint(self.rank).text(self.site.as_str());
            w.array(2)
                .uint(self.at.secs)
                .uint(self.at.quality.code().into());
            match &self.device {
                Some(device) => w.bytes(&device.guid().0),
                None => w.null(),
            };
            self.change.encode(w);
        })
    }

    fn from_cbor(bytes: &[u8]) -> Result<Self, RecordFault> {
        let mut r = Reader::new(bytes)?;
        r.array(9)?;
        if r.text(MAX_ID)? != ENTRY_TYPE {
            return Err(RecordFault::WrongType);
        }
        let origin = r.text(MAX_ID)?.parse()?;
        let (epoch, seq) = (r.small()?, r.uint()?);
        let entry = Self {
            id: EntryId { origin, epoch, seq },
            rank: r.uint()?,
            site: SiteId::from_record(r.text(MAX_ID)?)?,
            at: read_time(&mut r)?,
            device: match r.null() {
                true => None,
                false => Some(DeviceId::from_guid(crate::id::Guid(r.bytes_exact()?))),
            },
            change: Change::decode(&mut r)?,
        };
        r.end()?;
        if entry.id.seq == 0 {
            Err(RecordFault::Unnumbered)
        } else {
            Ok(entry)
        }
    }
}

/// An entry with the exact signed bytes that are stored and forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEntry {
    signed: Sign1,
    entry: Entry,
}

impl SignedEntry {
    /// Signs an entry with its origin's record key.
    ///
    /// # Errors
    /// [`RecordFault::TooLarge`], blame: the caller, who put too much into the change.
    pub fn sign(entry: Entry, key: &SigningKey) -> Result<Self, RecordFault> {
        let signed = Sign1::sign(&entry.to_cbor(), key);
        if signed.as_bytes().len() > MAX_ENTRY {
            return Err(RecordFault::TooLarge);
        }
        Ok(Self { signed, entry })
    }

    /// Reads an entry; its signature is **not** verified yet. Right for what comes from the own
    /// store; what comes from a peer goes through [`SignedEntry::verify`] first.
    ///
    /// # Errors
    /// [`RecordFault`], blame: whoever made the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordFault> {
        if bytes.len() > MAX_ENTRY {
            return Err(RecordFault::TooLarge);
        }
        let signed = Sign1::parse(bytes)?;
        let entry = Entry::from_cbor(signed.payload())?;
        Ok(Self { signed, entry })
    }

    /// Verifies the signature with the record key of the entry's origin and epoch.
    ///
    /// # Errors
    /// [`RecordFault::Signature`], blame: the peer.
    pub fn verify(&self, key: &VerifyingKey) -> Result<(), RecordFault> {
        Ok(self.signed.verify(key)?)
    }

    /// What it says.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The bytes to store and to forward.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.signed.as_bytes()
    }
}

/// Why an entry was refused. Blame: whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// Over [`MAX_ENTRY`].
    #[error("a change entry has more than {MAX_ENTRY} bytes")]
    TooLarge,
    /// Not the CBOR it should be.
    #[error("malformed change entry: {0}")]
    Cbor(#[from] CborError),
    /// Not signed, or not by the origin's key.
    #[error("the change entry's signature does not verify: {0}")]
    Signature(#[from] CoseError),
    /// Signed, but something else.
    #[error("the signed text is not a change entry")]
    WrongType,
    /// An id that is none.
    #[error("the change entry holds {0}")]
    Id(#[from] InvalidId),
    /// A topic filter that is none.
    #[error("the change entry holds a bad filter: {0}")]
    Filter(#[from] InvalidTopic),
    /// A public key that we cannot read.
    #[error("the change entry holds a key that is not P-256 or P-384")]
    Key,
    /// A statement of succession that is none.
    #[error("the change entry holds a bad statement of succession")]
    Succession,
    /// A server address that is none.
    #[error("the change entry holds a bad server address")]
    Address,
    /// Sequence numbers begin at 1.
    #[error("the change entry has no number")]
    Unnumbered,
}
