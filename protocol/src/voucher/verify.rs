//! Verifying a voucher: the chain of owners, the hashes that tie it together, the certificates.
//!
//! The walk over the entries ([`ChainWalk`]) is shared with the device side of TO2, which gets the
//! entries one by one. When a hash does not hold, some more hashing finds out which forgery it was.

use x509_parser::prelude::{FromDer, X509Certificate};

use super::extend::{first_prev_hash, hash_chain};
use super::{Entry, Header, Voucher, VoucherError};
use crate::crypto::{Curve, Hash, HashAlg, Mac, VerifyingKey, hash_parts};
use crate::key::{PublicKey, certificate_key};
use crate::time::{Time, TimeQuality};

/// Entries accepted by default.
pub const DEFAULT_MAX_ENTRIES: usize = 16;

/// What a verifier demands beyond the voucher's own consistency.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// Most entries, at most 255.
    pub max_entries: usize,
    /// Authorities (DER certificates) that device certificates must lead to; none: any.
    pub device_roots: Option<&'a [Vec<u8>]>,
    /// Authorities that an owner key given as certificates must lead to; none: any.
    pub owner_roots: Option<&'a [Vec<u8>]>,
    /// Time against which certificates expire; without quality nothing expires.
    pub now: Time,
}

impl Default for Policy<'_> {
    fn default() -> Self {
        Self {
            max_entries: DEFAULT_MAX_ENTRIES,
            device_roots: None,
            owner_roots: None,
            now: Time::UNKNOWN,
        }
    }
}

impl Voucher {
    /// Verifies the whole voucher. Afterwards [`Voucher::owner_key`] is the key to which the
    /// manufacturer's key passed the device; whether that manufacturer is to be trusted, and
    /// whether the HMAC is the device's, remain open.
    pub fn verify(&self, policy: &Policy<'_>) -> Result<(), VoucherError> {
        if self.mac.value().iter().all(|byte| *byte == 0) {
            return Err(VoucherError::MacZero);
        }
        if self.entries.len() > policy.max_entries {
            return Err(VoucherError::TooManyEntries(policy.max_entries));
        }
        self.verify_device_chain(policy)?;
        let mut walk = ChainWalk::new(&self.header, &self.mac);
        if let Some(key) = &self.device_key {
            walk.require_strength_of(key.curve());
        }
        for entry in &self.entries {
            if let Err(fault) = walk.step(entry) {
                return Err(self.diagnose(walk.index, fault));
            }
            self.verify_owner_chain(walk.index - 1, entry, policy)?;
        }
        Ok(())
    }

    /// Verifies the voucher and that it was extended at least once and `owner` holds it now.
    pub fn verify_owned_by(
        &self,
        owner: &VerifyingKey,
        policy: &Policy<'_>,
    ) -> Result<(), VoucherError> {
        self.verify(policy)?;
        if self.entries.is_empty() {
            return Err(VoucherError::NoEntries);
        }
        if self.is_owned_by(owner) {
            Ok(())
        } else {
            Err(VoucherError::NotOwned)
        }
    }

    fn verify_device_chain(&self, policy: &Policy<'_>) -> Result<(), VoucherError> {
        let (Some(chain), Some(expected)) = (&self.chain, self.header.chain_hash()) else {
            // That both or none are there was checked when the voucher was read.
            return match policy.device_roots {
                Some(_) => Err(VoucherError::DeviceChainUntrusted),
                None => Ok(()),
            };
        };
        if hash_chain(expected.alg(), chain) != *expected {
            let header_intact = self.entries.first().is_some_and(|entry| {
                first_prev_hash(entry.prev_hash.alg(), &self.header, &self.mac) == entry.prev_hash
            });
            return Err(if header_intact {
                VoucherError::DeviceChainReplaced
            } else {
                VoucherError::DeviceChainHash
            });
        }
        if is_authority(&chain[0]) {
            return Err(VoucherError::DeviceLeafIsCa);
        }
        let Some(roots) = policy.device_roots else {
            return Ok(());
        };
        match check_path(chain, roots, policy.now) {
            Ok(()) => Ok(()),
            Err(PathFault::Expired) => Err(VoucherError::DeviceChainExpired),
            Err(PathFault::Untrusted) => Err(VoucherError::DeviceChainUntrusted),
        }
    }

    fn verify_owner_chain(
        &self,
        index: usize,
        entry: &Entry,
        policy: &Policy<'_>,
    ) -> Result<(), VoucherError> {
        match policy.owner_roots {
            Some(roots) if !entry.next.chain().is_empty() => {
                check_path(entry.next.chain(), roots, policy.now)
                    .map_err(|_| VoucherError::OwnerChainUntrusted { entry: index })
            }
            _ => Ok(()),
        }
    }

    /// Names the forgery behind a hash that does not hold. `index` is the entry that failed.
    fn diagnose(&self, index: usize, fault: VoucherError) -> VoucherError {
        let VoucherError::PrevHash { entry } = fault else {
            return fault;
        };
        let failed = &self.entries[index];
        let info_holds = failed.header_hash.matches(&self.header.info());
        let owner = index
            .checked_sub(1)
            .map_or(self.manufacturer(), |at| &self.entries[at].next);
        let signed_by_owner = failed.sign1.verify(owner.key()).is_ok();
        let alg = failed.prev_hash.alg();
        let doubled = self.entries[..index]
            .iter()
            .any(|e| e.as_bytes() == failed.as_bytes());
        // The entry that this one really follows is present, but elsewhere.
        let moved = (0..=self.entries.len())
            .any(|at| at != index && self.hash_before(at, alg) == failed.prev_hash);
        match (info_holds, index) {
            (false, 0) => VoucherError::HeaderInfoChanged,
            (false, _) => VoucherError::ForeignEntry { entry },
            (true, _) if doubled => VoucherError::DoubledEntry { entry },
            (true, _) if moved => VoucherError::EntryOrder { entry },
            (true, 0) if signed_by_owner => VoucherError::HeaderOrMacChanged,
            (true, 0) => VoucherError::ManufacturerChanged,
            (true, _) if signed_by_owner => VoucherError::PrevHash { entry },
            (true, _) => VoucherError::MissingEntry { entry },
        }
    }
}

/// Follows the owners from the manufacturer on, entry by entry.
#[derive(Debug, Clone)]
pub(crate) struct ChainWalk {
    owner: PublicKey,
    /// Index of the next entry, and so the number of entries that held.
    index: usize,
    alg: Option<HashAlg>,
    least: HashAlg,
    info: Vec<u8>,
    header: Header,
    mac: Mac,
    /// Bytes of the entry before.
    before: Vec<u8>,
}

impl ChainWalk {
    /// Starts at the manufacturer.
    pub(crate) fn new(header: &Header, mac: &Mac) -> Self {
        Self {
            owner: header.manufacturer().clone(),
            index: 0,
            alg: None,
            least: HashAlg::Sha256,
            info: header.info().concat(),
            header: header.clone(),
            mac: mac.clone(),
            before: Vec::new(),
        }
    }

    /// Hashes must be as strong as the weaker of device key and owner keys.
    pub(crate) fn require_strength_of(&mut self, device: Curve) {
        if device == Curve::P384 && self.owner.key().curve() == Curve::P384 {
            self.least = HashAlg::Sha384;
        }
    }

    /// The owner so far.
    pub(crate) fn owner(&self) -> &PublicKey {
        &self.owner
    }

    /// Checks that `entry` is the next one.
    pub(crate) fn step(&mut self, entry: &Entry) -> Result<(), VoucherError> {
        let index = self.index;
        let alg = *self.alg.get_or_insert(entry.prev_hash.alg());
        if entry.prev_hash.alg() != alg || entry.header_hash.alg() != alg || alg < self.least {
            return Err(VoucherError::WeakHash { entry: index });
        }
        if entry.next.key().curve() != self.owner.key().curve() {
            return Err(VoucherError::KeyTypeDiffers { entry: index });
        }
        if self.hash_before(alg) != entry.prev_hash {
            return Err(VoucherError::PrevHash { entry: index });
        }
        if !entry.header_hash.matches(&[&self.info]) {
            return Err(VoucherError::HeaderHash { entry: index });
        }
        if entry.sign1.verify(self.owner.key()).is_err() {
            return Err(match entry.sign1.verify(entry.next.key()) {
                Ok(()) => VoucherError::SelfExtended { entry: index },
                Err(_) => VoucherError::NotByOwner { entry: index },
            });
        }
        self.owner = entry.next.clone();
        self.before = entry.as_bytes().to_vec();
        self.index += 1;
        Ok(())
    }

    fn hash_before(&self, alg: HashAlg) -> Hash {
        match self.index {
            0 => first_prev_hash(alg, &self.header, &self.mac),
            _ => hash_parts(alg, &[&self.before]),
        }
    }
}

enum PathFault {
    Untrusted,
    Expired,
}

/// Checks that each certificate is signed by the one after it and the last by a root (or is one).
fn check_path(chain: &[Vec<u8>], roots: &[Vec<u8>], now: Time) -> Result<(), PathFault> {
    for (index, der) in chain.iter().enumerate() {
        let certificate = parse_certificate(der)?;
        let validity = certificate.validity();
        // A device certificate outlives its device's clock: only a time that we know expires it.
        if now.quality > TimeQuality::None && validity.not_after.timestamp() < now.secs as i64 {
            return Err(PathFault::Expired);
        }
        if roots.iter().any(|root| root == der) {
            return Ok(());
        }
        let issued = |issuer: &Vec<u8>| is_issued_by(&certificate, issuer);
        match chain.get(index + 1) {
            Some(issuer) if !issued(issuer) => return Err(PathFault::Untrusted),
            Some(_) => {}
            None if roots.iter().any(issued) => return Ok(()),
            None => return Err(PathFault::Untrusted),
        }
    }
    Err(PathFault::Untrusted)
}

fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, PathFault> {
    X509Certificate::from_der(der)
        .ok()
        .filter(|(rest, _)| rest.is_empty())
        .map(|(_, certificate)| certificate)
        .ok_or(PathFault::Untrusted)
}

/// Names, authority flag and signature agree.
fn is_issued_by(certificate: &X509Certificate<'_>, issuer: &[u8]) -> bool {
    let Ok(parent) = parse_certificate(issuer) else {
        return false;
    };
    let Ok(key) = certificate_key(issuer) else {
        return false;
    };
    certificate.issuer().as_raw() == parent.subject().as_raw()
        && parent.is_ca()
        && key
            .verify_asn1(
                certificate.tbs_certificate.as_ref(),
                &certificate.signature_value.data,
            )
            .is_ok()
}

fn is_authority(der: &[u8]) -> bool {
    parse_certificate(der).is_ok_and(|certificate| certificate.is_ca())
}
