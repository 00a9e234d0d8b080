//! Making vouchers: issuing at the factory, extending to the next owner.

use super::{Entry, Header, MAX_ENTRIES, Voucher, VoucherError};
use crate::crypto::{Hash, HashAlg, Mac, SigningKey, hash_parts};
use crate::id::Guid;
use crate::key::PublicKey;
use crate::rv::RendezvousInfo;
use crate::wire::cbor;
use crate::wire::cose::Sign1;

/// A voucher that still lacks the device's HMAC: what the factory keeps between DI.SetCredentials
/// and DI.SetHMAC.
#[derive(Debug, Clone)]
pub struct NewVoucher {
    header: Header,
    chain: Option<Vec<Vec<u8>>>,
}

impl NewVoucher {
    /// Writes the header. `chain` is the device's certificates, leaf first; it may only be left out
    /// for a device that proves itself by other means.
    pub fn new(
        guid: Guid,
        rendezvous: &RendezvousInfo,
        device_info: &str,
        manufacturer: &PublicKey,
        chain: Option<Vec<Vec<u8>>>,
    ) -> Self {
        let chain_hash = chain
            .as_deref()
            .map(|chain| hash_chain(HashAlg::Sha256, chain));
        let header = Header::new(
            guid,
            rendezvous,
            device_info,
            manufacturer,
            chain_hash.as_ref(),
        );
        Self { header, chain }
    }

    /// The successor of `old` after TO2 replaced the credential: same device info and certificates,
    /// no entries, `owner` in the manufacturer's place.
    pub fn succeeding(
        old: &Voucher,
        guid: Guid,
        rendezvous: &RendezvousInfo,
        owner: &PublicKey,
    ) -> Self {
        let header = Header::new(
            guid,
            rendezvous,
            old.device_info(),
            owner,
            old.header().chain_hash(),
        );
        Self {
            header,
            chain: old.chain.clone(),
        }
    }

    /// The header to send to the device.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Completes the voucher with the device's HMAC over the header.
    pub fn seal(self, mac: Mac) -> Result<Voucher, VoucherError> {
        Voucher::build(self.header, mac, self.chain, Vec::new())
    }
}

impl Voucher {
    /// Passes the device on to `next`; `signer` must be the present owner. The entry uses the hash
    /// of the entries before it, or else the strength of the device's HMAC.
    pub fn extend(&self, next: &PublicKey, signer: &SigningKey) -> Result<Self, VoucherError> {
        let index = self.entries.len();
        if !self.is_owned_by(&signer.public()) {
            return Err(VoucherError::SignerIsNotOwner);
        }
        if next.key().curve() != self.manufacturer().key().curve() {
            return Err(VoucherError::KeyTypeDiffers { entry: index });
        }
        if index == MAX_ENTRIES {
            return Err(VoucherError::TooManyEntries(MAX_ENTRIES));
        }
        let alg = self
            .entries
            .first()
            .map_or(self.mac.alg().hash_alg(), |entry| entry.prev_hash.alg());
        let payload = cbor::encode(|w| {
            w.array(4);
            self.hash_before(index, alg).encode(w);
            hash_parts(alg, &self.header.info()).encode(w);
            w.null().raw(next.as_bytes());
        });
        let entry = Entry::parse(Sign1::sign(&payload, signer).as_bytes(), index)?;
        let mut entries = self.entries.clone();
        entries.push(entry);
        Self::build(
            self.header.clone(),
            self.mac.clone(),
            self.chain.clone(),
            entries,
        )
    }

    /// What OVEHashPrevEntry of entry `index` must be: the hash of the entry before it, or of header
    /// and HMAC before the first.
    pub(super) fn hash_before(&self, index: usize, alg: HashAlg) -> Hash {
        match index.checked_sub(1) {
            Some(before) => hash_parts(alg, &[self.entries[before].as_bytes()]),
            None => first_prev_hash(alg, &self.header, &self.mac),
        }
    }
}

/// Hash of the header's bytes followed by the HMAC's encoding: what the first entry refers to.
pub(crate) fn first_prev_hash(alg: HashAlg, header: &Header, mac: &Mac) -> Hash {
    let mac = cbor::encode(|w| mac.encode(w));
    hash_parts(alg, &[header.as_bytes(), &mac])
}

/// Hash of the plain concatenation of the certificates, leaf first.
pub(super) fn hash_chain(alg: HashAlg, chain: &[Vec<u8>]) -> Hash {
    let parts: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    hash_parts(alg, &parts)
}
