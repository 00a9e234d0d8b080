//! Ownership vouchers (wire reference section 5): read, verify, issue, extend, compare.
//!
//! A voucher is a chain of signatures from the manufacturer to the present owner. Everything that
//! is signed or hashed is kept as the bytes it came in. [`Voucher::parse`] accepts the shape only;
//! nothing may be believed of a voucher before [`Voucher::verify`] said yes.

mod extend;
mod pem;
#[cfg(test)]
mod tests;
mod verify;

use std::fmt;

pub use extend::NewVoucher;
pub(crate) use verify::ChainWalk;
pub use verify::{DEFAULT_MAX_ENTRIES, Policy};

use crate::credential::MAX_DEVICE_INFO;
use crate::crypto::{Hash, Mac, VerifyingKey};
use crate::fdo::PROTOCOL_VERSION;
use crate::id::Guid;
use crate::key::{KeyError, MAX_CERTIFICATE, MAX_CHAIN, PublicKey, certificate_key};
use crate::rv::RendezvousInfo;
use crate::wire::cbor::{CborError, Reader, Writer};
use crate::wire::cose::{CoseError, Sign1};

/// Largest voucher, in bytes of CBOR.
pub const MAX_VOUCHER: usize = 32 * 1024;
/// Most entries that the format allows; [`Policy::max_entries`] is lower by default.
pub const MAX_ENTRIES: usize = 255;
/// Largest header.
const MAX_HEADER: usize = 16 * 1024;
/// Largest OVEExtra; its content is not read.
const MAX_EXTRA: usize = 4 * 1024;

/// Why a voucher was refused; each forgery has its own reason as far as anyone but the device can
/// tell them apart (a changed GUID from a changed device info no one can).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum VoucherError {
    #[error("not an ownership voucher: {0}")]
    Shape(CborError),
    #[error("not a PEM block OWNERSHIP VOUCHER in base64")]
    Pem,
    #[error("larger than {MAX_VOUCHER} bytes")]
    TooLarge,
    #[error("protocol version {0}, only 101 is supported")]
    Version(u64),
    #[error("the HMAC has a length that does not fit its algorithm, or an unknown algorithm")]
    MacAlgorithm,
    #[error("the HMAC is all zeros")]
    MacZero,
    #[error("manufacturer key: {0}")]
    ManufacturerKey(KeyError),
    #[error("device certificate: {0}")]
    DeviceKey(KeyError),
    #[error("the header has a hash of device certificates, but there are none")]
    DeviceChainMissing,
    #[error("there are device certificates, but the header has no hash of them")]
    DeviceChainHashMissing,
    #[error("the hash of the device certificates in the header is wrong")]
    DeviceChainHash,
    #[error("the device certificates belong to another device")]
    DeviceChainReplaced,
    #[error("the device certificate is that of a certificate authority")]
    DeviceLeafIsCa,
    #[error("the device certificates do not lead to a trusted authority")]
    DeviceChainUntrusted,
    #[error("a device certificate has expired")]
    DeviceChainExpired,
    #[error("more than {0} entries")]
    TooManyEntries(usize),
    #[error("no entries, so nobody but the manufacturer owns it")]
    NoEntries,
    #[error("entry {entry}: {fault}")]
    EntryCose { entry: usize, fault: CoseError },
    #[error("entry {entry} is malformed: {fault}")]
    EntryShape { entry: usize, fault: CborError },
    #[error("entry {entry}: {fault}")]
    EntryKey { entry: usize, fault: KeyError },
    #[error("GUID or device info was changed")]
    HeaderInfoChanged,
    #[error("rendezvous info, HMAC or another part of the header was changed")]
    HeaderOrMacChanged,
    #[error("the manufacturer key was changed, or the first entry belongs elsewhere")]
    ManufacturerChanged,
    #[error("entry {entry} has a wrong hash of GUID and device info")]
    HeaderHash { entry: usize },
    #[error("entry {entry} has a wrong hash of the entry before it")]
    PrevHash { entry: usize },
    #[error("entry {entry} was taken from another voucher")]
    ForeignEntry { entry: usize },
    #[error("entry {entry} repeats an earlier one")]
    DoubledEntry { entry: usize },
    #[error("entry {entry} is out of order")]
    EntryOrder { entry: usize },
    #[error("an entry is missing before entry {entry}")]
    MissingEntry { entry: usize },
    #[error("entry {entry} uses a weaker hash than its keys require, or another than entry 0")]
    WeakHash { entry: usize },
    #[error("entry {entry} passes ownership to a key of another curve than the manufacturer's")]
    KeyTypeDiffers { entry: usize },
    #[error("entry {entry} is not signed by the owner before it")]
    NotByOwner { entry: usize },
    #[error("entry {entry} is signed by the very key that it makes owner")]
    SelfExtended { entry: usize },
    #[error("entry {entry}: the next owner's certificates do not lead to a trusted authority")]
    OwnerChainUntrusted { entry: usize },
    #[error("the last owner in it is another key")]
    NotOwned,
    #[error("the key that should sign is not the last owner")]
    SignerIsNotOwner,
}

impl From<CborError> for VoucherError {
    fn from(fault: CborError) -> Self {
        Self::Shape(fault)
    }
}

/// `OVHeader = [101, Guid, RVInfo, DeviceInfo, PubKey, DevCertChainHash / null]` with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    raw: Vec<u8>,
    guid: Guid,
    rendezvous: RendezvousInfo,
    device_info: String,
    manufacturer: PublicKey,
    chain_hash: Option<Hash>,
}

impl Header {
    /// Writes a header.
    pub fn new(
        guid: Guid,
        rendezvous: &RendezvousInfo,
        device_info: &str,
        manufacturer: &PublicKey,
        chain_hash: Option<&Hash>,
    ) -> Self {
        let mut w = Writer::new();
        w.array(6)
            .uint(PROTOCOL_VERSION)
            .bytes(&guid.0)
            .raw(rendezvous.as_bytes());
        w.text(device_info).raw(manufacturer.as_bytes());
        match chain_hash {
            Some(hash) => hash.encode(&mut w),
            None => _ = w.null(),
        }
        Self {
            raw: w.into_vec(),
            guid,
            rendezvous: rendezvous.clone(),
            device_info: device_info.to_owned(),
            manufacturer: manufacturer.clone(),
            chain_hash: chain_hash.cloned(),
        }
    }

    /// Reads exactly one header (the content of OVHeaderTag).
    pub fn parse(bytes: &[u8]) -> Result<Self, VoucherError> {
        let mut r = Reader::new(bytes)?;
        r.array(6)?;
        expect_version(&mut r)?;
        let guid = Guid(r.bytes_exact()?);
        let rendezvous = RendezvousInfo::decode(&mut r)?;
        let device_info = r.text(MAX_DEVICE_INFO)?.to_owned();
        let manufacturer = PublicKey::decode(&mut r).map_err(VoucherError::ManufacturerKey)?;
        let chain_hash = if r.null() {
            None
        } else {
            Some(Hash::decode(&mut r)?)
        };
        r.end()?;
        Ok(Self {
            raw: bytes.to_vec(),
            guid,
            rendezvous,
            device_info,
            manufacturer,
            chain_hash,
        })
    }

    /// The bytes that the device's HMAC covers.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The device's GUID.
    pub fn guid(&self) -> Guid {
        self.guid
    }

    /// Where device and owner meet.
    pub fn rendezvous(&self) -> &RendezvousInfo {
        &self.rendezvous
    }

    /// Text about the device.
    pub fn device_info(&self) -> &str {
        &self.device_info
    }

    /// The first owner's key.
    pub fn manufacturer(&self) -> &PublicKey {
        &self.manufacturer
    }

    /// Hash of the device's certificates.
    pub fn chain_hash(&self) -> Option<&Hash> {
        self.chain_hash.as_ref()
    }

    /// What OVEHashHdrInfo covers: GUID bytes, then the text's bytes.
    fn info(&self) -> [&[u8]; 2] {
        [&self.guid.0, self.device_info.as_bytes()]
    }
}

/// One extension: `#6.18([.., payload: [prev hash, header hash, extra, next owner key], sig])`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    sign1: Sign1,
    prev_hash: Hash,
    header_hash: Hash,
    next: PublicKey,
}

impl Entry {
    /// Reads one entry; `index` names it in errors.
    pub fn parse(bytes: &[u8], index: usize) -> Result<Self, VoucherError> {
        let shape = |fault| VoucherError::EntryShape {
            entry: index,
            fault,
        };
        let sign1 = Sign1::parse(bytes).map_err(|fault| VoucherError::EntryCose {
            entry: index,
            fault,
        })?;
        let mut r = Reader::new(sign1.payload()).map_err(shape)?;
        r.array(4).map_err(shape)?;
        let prev_hash = Hash::decode(&mut r).map_err(shape)?;
        let header_hash = Hash::decode(&mut r).map_err(shape)?;
        // Null, or a byte string whose content nobody here reads.
        if !r.null() {
            r.bytes(MAX_EXTRA).map_err(shape)?;
        }
        let next = PublicKey::decode(&mut r).map_err(|fault| VoucherError::EntryKey {
            entry: index,
            fault,
        })?;
        r.end().map_err(shape)?;
        Ok(Self {
            sign1,
            prev_hash,
            header_hash,
            next,
        })
    }

    /// The exact encoding, tag included.
    pub fn as_bytes(&self) -> &[u8] {
        self.sign1.as_bytes()
    }

    /// The owner that this entry makes.
    pub fn next(&self) -> &PublicKey {
        &self.next
    }
}

/// `OwnershipVoucher = [101, bstr .cbor OVHeader, HMac, certificates / null, [* OVEntry]]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Voucher {
    raw: Vec<u8>,
    header: Header,
    mac: Mac,
    chain: Option<Vec<Vec<u8>>>,
    device_key: Option<VerifyingKey>,
    entries: Vec<Entry>,
}

impl Voucher {
    /// Reads a voucher in CBOR; its signatures are not verified yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, VoucherError> {
        if bytes.len() > MAX_VOUCHER {
            return Err(VoucherError::TooLarge);
        }
        let mut r = Reader::new(bytes)?;
        r.array(5)?;
        expect_version(&mut r)?;
        let header = Header::parse(r.bytes(MAX_HEADER)?)?;
        let mac = Mac::decode(&mut r).map_err(|_| VoucherError::MacAlgorithm)?;
        let chain = read_chain(&mut r)?;
        let entries = read_entries(&mut r)?;
        r.end()?;
        Self::assemble(bytes.to_vec(), header, mac, chain, entries)
    }

    /// Reads a voucher as PEM or as CBOR, whichever `bytes` are.
    pub fn read(bytes: &[u8]) -> Result<Self, VoucherError> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN") => Self::from_pem(text),
            _ => Self::parse(bytes),
        }
    }

    fn build(
        header: Header,
        mac: Mac,
        chain: Option<Vec<Vec<u8>>>,
        entries: Vec<Entry>,
    ) -> Result<Self, VoucherError> {
        let mut w = Writer::new();
        w.array(5).uint(PROTOCOL_VERSION).bytes(header.as_bytes());
        mac.encode(&mut w);
        match &chain {
            Some(chain) => {
                w.array(chain.len());
                chain
                    .iter()
                    .for_each(|certificate| _ = w.bytes(certificate));
            }
            None => _ = w.null(),
        }
        w.array(entries.len());
        entries.iter().for_each(|entry| _ = w.raw(entry.as_bytes()));
        let raw = w.into_vec();
        if raw.len() > MAX_VOUCHER {
            return Err(VoucherError::TooLarge);
        }
        Self::assemble(raw, header, mac, chain, entries)
    }

    fn assemble(
        raw: Vec<u8>,
        header: Header,
        mac: Mac,
        chain: Option<Vec<Vec<u8>>>,
        entries: Vec<Entry>,
    ) -> Result<Self, VoucherError> {
        match (&chain, header.chain_hash()) {
            (None, Some(_)) => return Err(VoucherError::DeviceChainMissing),
            (Some(_), None) => return Err(VoucherError::DeviceChainHashMissing),
            _ => {}
        }
        let leaf = chain.as_ref().map(|chain| certificate_key(&chain[0]));
        let device_key = leaf.transpose().map_err(VoucherError::DeviceKey)?;
        Ok(Self {
            raw,
            header,
            mac,
            chain,
            device_key,
            entries,
        })
    }

    /// The exact encoding.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The device's HMAC over the header; only the device can check it.
    pub fn mac(&self) -> &Mac {
        &self.mac
    }

    /// The device's GUID.
    pub fn guid(&self) -> Guid {
        self.header.guid
    }

    /// Text about the device.
    pub fn device_info(&self) -> &str {
        &self.header.device_info
    }

    /// Where device and owner meet.
    pub fn rendezvous(&self) -> &RendezvousInfo {
        &self.header.rendezvous
    }

    /// The first owner's key.
    pub fn manufacturer(&self) -> &PublicKey {
        &self.header.manufacturer
    }

    /// The device's certificates as DER, leaf first; none for a device without.
    pub fn device_chain(&self) -> Option<&[Vec<u8>]> {
        self.chain.as_deref()
    }

    /// The key by which the device proves itself; none for a voucher without certificates.
    pub fn device_key(&self) -> Option<&VerifyingKey> {
        self.device_key.as_ref()
    }

    /// The extensions, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The present owner: the last entry's key, or the manufacturer's.
    pub fn owner_key(&self) -> &PublicKey {
        self.entries
            .last()
            .map_or(&self.header.manufacturer, Entry::next)
    }

    /// Whether the present owner is `key`.
    pub fn is_owned_by(&self, key: &VerifyingKey) -> bool {
        self.owner_key().key() == key
    }

    /// How this voucher stands to one known before. Both must have been verified.
    pub fn relation_to(&self, known: &Self) -> Relation {
        let same_root = self.header.raw == known.header.raw
            && self.mac == known.mac
            && self.chain == known.chain;
        if !same_root {
            return Relation::Unrelated;
        }
        let common = self
            .entries
            .iter()
            .zip(&known.entries)
            .take_while(|(mine, its)| mine.as_bytes() == its.as_bytes())
            .count();
        match (common == self.entries.len(), common == known.entries.len()) {
            (true, true) => Relation::Same,
            (false, true) => Relation::Descendant,
            (true, false) => Relation::Ancestor,
            (false, false) => Relation::Fork,
        }
    }

    /// Whether this voucher is `known` extended by one entry or more.
    pub fn is_extension_of(&self, known: &Self) -> bool {
        self.relation_to(known) == Relation::Descendant
    }
}

impl fmt::Debug for Voucher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Voucher")
            .field("guid", &self.header.guid)
            .field("device_info", &self.header.device_info)
            .field("entries", &self.entries.len())
            .field("owner", self.owner_key())
            .finish_non_exhaustive()
    }
}

/// How a voucher stands to another of the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The very same chain.
    Same,
    /// The known one, extended further: may take its place.
    Descendant,
    /// The known one before it was extended: an earlier owner comes back.
    Ancestor,
    /// Both extend one prefix differently: somebody sold twice.
    Fork,
    /// Another header, HMAC or device.
    Unrelated,
}

fn expect_version(r: &mut Reader<'_>) -> Result<(), VoucherError> {
    match r.uint()? {
        PROTOCOL_VERSION => Ok(()),
        other => Err(VoucherError::Version(other)),
    }
}

fn read_chain(r: &mut Reader<'_>) -> Result<Option<Vec<Vec<u8>>>, VoucherError> {
    if r.null() {
        return Ok(None);
    }
    let len = r.array_len(MAX_CHAIN)?;
    if len == 0 {
        return Err(VoucherError::DeviceChainMissing);
    }
    let chain: Result<_, CborError> = (0..len)
        .map(|_| Ok(r.bytes(MAX_CERTIFICATE)?.to_vec()))
        .collect();
    Ok(Some(chain?))
}

fn read_entries(r: &mut Reader<'_>) -> Result<Vec<Entry>, VoucherError> {
    let len = r.array_len(MAX_VOUCHER)?;
    if len > MAX_ENTRIES {
        return Err(VoucherError::TooManyEntries(MAX_ENTRIES));
    }
    (0..len)
        .map(|index| Entry::parse(r.raw()?, index))
        .collect()
}
