//! A server's key gives way to another: the statement that says so, signed by both, and how a chain
//! of them is followed.
//!
//! Made by a server that rotates its owner key (FDO) or its signing key; it travels in the server's
//! log, and for signing keys to devices, in [`Orders`]. The old key says who comes after it, so that
//! whoever trusts the old one may trust the new; the new key says whom it follows, so that nobody
//! can name a key that is another's. A statement counts only for who trusts its old key at that
//! moment, so an old statement played again moves nothing. Nothing here stores or acts.

use crate::{
    crypto::{SigningKey, VerifyingKey},
    id::{InvalidId, ServerId},
    wire::{
        cbor::{self, CborError, Reader},
        cose::{CoseError, Sign1},
    },
};

/// Largest statement, in bytes.
pub const MAX_SUCCESSION: usize = 2048;
/// Most statements that a device is told at once; of more, the latest.
pub const MAX_SUCCESSIONS: usize = 32;
/// Largest message of [`Orders`].
pub const MAX_ORDERS: usize = MAX_SUCCESSIONS * MAX_SUCCESSION + crate::notice::MAX_NOTICE + 64;
/// Longest id as text.
const MAX_ID: usize = 80;
/// Largest public key.
const MAX_SPKI: usize = 256;
/// Most elements of a message, known and unknown.
const MAX_PARTS: usize = 16;
/// First element of a statement's payload, so that no other signed text can pass for one.
const TYPE: &str = "holdfast/succession/1";
/// First element of [`Orders`].
const ORDERS_TYPE: &str = "holdfast/identity/1";

/// Which of a server's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyRole {
    /// The FDO owner key: vouchers are extended to it.
    Owner,
    /// The record key: signs change entries and notices.
    Signing,
}

impl KeyRole {
    /// The word for commands and listings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Signing => "signing",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Owner, Self::Signing]
            .into_iter()
            .find(|role| role.word() == word)
    }
}

/// What a statement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// Which key.
    pub role: KeyRole,
    /// Whose.
    pub server: ServerId,
    /// The one that gives way.
    pub old: VerifyingKey,
    /// The one that takes its place.
    pub new: VerifyingKey,
}

/// A statement with the exact bytes that are stored and forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedSuccession {
    bytes: Vec<u8>,
    by_old: Sign1,
    by_new: Sign1,
    said: Succession,
}

impl SignedSuccession {
    /// Makes the statement; needs both private keys.
    ///
    /// # Errors
    /// [`SuccessionFault::SameKey`], blame: the caller.
    pub fn sign(
        role: KeyRole,
        server: &ServerId,
        old: &SigningKey,
        new: &SigningKey,
    ) -> Result<Self, SuccessionFault> {
        let payload = cbor::encode(|w| {
            w.array(5)
                .text(TYPE)
                .text(role.word())
                .text(server.as_str());
            w.bytes(&old.public().to_spki_der())
                .bytes(&new.public().to_spki_der());
        });
        let (by_old, by_new) = (Sign1::sign(&payload, old), Sign1::sign(&payload, new));
        let bytes =
            cbor::encode(|w| _ = w.array(2).bytes(by_old.as_bytes()).bytes(by_new.as_bytes()));
        let made = Self::parse(&bytes)?;
        made.verify()?;
        Ok(made)
    }

    /// Reads a statement; its signatures are **not** verified yet.
    ///
    /// # Errors
    /// [`SuccessionFault`], blame: whoever made the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, SuccessionFault> {
        if bytes.len() > MAX_SUCCESSION {
            return Err(SuccessionFault::TooLarge);
        }
        let mut r = Reader::new(bytes)?;
        r.array(2)?;
        let by_old = Sign1::parse(r.bytes(MAX_SUCCESSION)?)?;
        let by_new = Sign1::parse(r.bytes(MAX_SUCCESSION)?)?;
        r.end()?;
        let said = read(by_old.payload())?;
        Ok(Self {
            bytes: bytes.to_vec(),
            by_old,
            by_new,
            said,
        })
    }

    /// That both keys say it, and the same of it. Whether the old one is trusted is the caller's
    /// question.
    ///
    /// # Errors
    /// [`SuccessionFault`], blame: whoever made it.
    pub fn verify(&self) -> Result<(), SuccessionFault> {
        if self.said.old == self.said.new {
            return Err(SuccessionFault::SameKey);
        }
        if self.by_old.payload() != self.by_new.payload() {
            return Err(SuccessionFault::Disagree);
        }
        self.by_old.verify(&self.said.old)?;
        Ok(self.by_new.verify(&self.said.new)?)
    }

    /// What it says.
    #[must_use]
    pub fn said(&self) -> &Succession {
        &self.said
    }

    /// The bytes to store and to forward.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn read(payload: &[u8]) -> Result<Succession, SuccessionFault> {
    let mut r = Reader::new(payload)?;
    r.array(5)?;
    if r.text(MAX_ID)? != TYPE {
        return Err(SuccessionFault::WrongType);
    }
    let role = KeyRole::from_word(r.text(MAX_ID)?).ok_or(SuccessionFault::Role)?;
    let server = r.text(MAX_ID)?.parse()?;
    let mut key = || -> Result<_, SuccessionFault> {
        VerifyingKey::from_spki_der(r.bytes(MAX_SPKI)?).map_err(|_| SuccessionFault::Key)
    };
    let (old, new) = (key()?, key()?);
    r.end()?;
    Ok(Succession {
        role,
        server,
        old,
        new,
    })
}

/// The key that holds after `first`, by statements in any order.
#[must_use]
pub fn follow<'a>(first: &'a VerifyingKey, steps: &'a [Succession]) -> &'a VerifyingKey {
    let mut key = first;
    // Each step is used once: keys in a ring, which only a forger makes, end as well.
    let mut left: Vec<&Succession> = steps.iter().collect();
    while let Some(at) = left.iter().position(|step| step.old == *key) {
        key = &left.swap_remove(at).new;
    }
    key
}

/// What a device is told about keys and certificates, on a topic of its own. The message is signed
/// by nobody; each of its parts is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// Successions of the site's servers' signing keys, in order for each server.
    pub successions: Vec<SignedSuccession>,
    /// A notice that orders the device to renew its certificate.
    pub renew: Option<Vec<u8>>,
}

impl Orders {
    /// As it is published.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        let skip = self.successions.len().saturating_sub(MAX_SUCCESSIONS);
        let told = &self.successions[skip..];
        cbor::encode(|w| {
            w.array(3).text(ORDERS_TYPE).array(told.len());
            told.iter().for_each(|one| _ = w.bytes(one.as_bytes()));
            match &self.renew {
                Some(notice) => w.bytes(notice),
                None => w.null(),
            };
        })
    }

    /// Reads it; the signatures of its parts are **not** verified yet.
    ///
    /// # Errors
    /// [`SuccessionFault`], blame: whoever published it.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, SuccessionFault> {
        if bytes.len() > MAX_ORDERS {
            return Err(SuccessionFault::TooLarge);
        }
        let mut r = Reader::new(bytes)?;
        // Elements after these are from the future.
        if r.array_len(MAX_PARTS)? < 3 || r.text(MAX_ID)? != ORDERS_TYPE {
            return Err(SuccessionFault::WrongType);
        }
        let mut successions = Vec::new();
        for _ in 0..r.array_len(MAX_SUCCESSIONS)? {
            successions.push(SignedSuccession::parse(r.bytes(MAX_SUCCESSION)?)?);
        }
        let renew = match r.null() {
            true => None,
            false => Some(r.bytes(crate::notice::MAX_NOTICE)?.to_vec()),
        };
        Ok(Self { successions, renew })
    }
}

/// Why a statement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionFault {
    /// Over the bound.
    #[error("a statement of succession is too long")]
    TooLarge,
    /// Not the CBOR it should be.
    #[error("malformed statement of succession: {0}")]
    Cbor(#[from] CborError),
    /// Not signed, or not by the keys that it names.
    #[error("the statement of succession is not signed by both keys: {0}")]
    Signature(#[from] CoseError),
    /// Signed, but something else.
    #[error("the signed text is no statement of succession")]
    WrongType,
    /// A role from the future.
    #[error("the statement of succession is about an unknown kind of key")]
    Role,
    /// A public key that we cannot read.
    #[error("the statement of succession holds a key that is not P-256 or P-384")]
    Key,
    /// A key that follows itself.
    #[error("the statement of succession names one key twice")]
    SameKey,
    /// The two keys do not say the same.
    #[error("the two keys of a statement of succession do not say the same")]
    Disagree,
    /// An id that is none.
    #[error("the statement of succession holds {0}")]
    Id(#[from] InvalidId),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestRng;

    fn key(seed: u64) -> SigningKey {
        SigningKey::generate(&mut TestRng::new(seed))
    }

    fn step(old: u64, new: u64) -> SignedSuccession {
        let server = "gw1".parse().unwrap();
        SignedSuccession::sign(KeyRole::Signing, &server, &key(old), &key(new)).unwrap()
    }

    #[test]
    fn both_keys_must_say_it_and_nothing_altered_passes() {
        let good = step(1, 2);
        good.verify().unwrap();
        assert_eq!(good.said().new, key(2).public());
        assert_eq!(SignedSuccession::parse(good.as_bytes()).unwrap(), good);
        for at in 0..good.as_bytes().len() {
            let mut bad = good.as_bytes().to_vec();
            bad[at] ^= 1;
            let passes = SignedSuccession::parse(&bad).is_ok_and(|bad| bad.verify().is_ok());
            assert!(!passes, "byte {at}");
            assert!(SignedSuccession::parse(&good.as_bytes()[..at]).is_err());
        }
        let server = "gw1".parse().unwrap();
        let same = SignedSuccession::sign(KeyRole::Owner, &server, &key(1), &key(1));
        assert_eq!(same, Err(SuccessionFault::SameKey));
    }

    #[test]
    fn nobody_can_name_a_key_that_is_anothers() {
        // The thief of key 1 names key 2, whose private half it lacks: it signs for it by its own.
        let (good, own) = (step(1, 2), step(1, 3));
        let bytes = cbor::encode(|w| {
            let (old, new) = (good.by_old.as_bytes(), own.by_new.as_bytes());
            _ = w.array(2).bytes(old).bytes(new);
        });
        let mixed = SignedSuccession::parse(&bytes).unwrap();
        assert_eq!(mixed.verify(), Err(SuccessionFault::Disagree));
        let bytes = cbor::encode(|w| {
            let old = good.by_old.as_bytes();
            _ = w.array(2).bytes(old).bytes(old);
        });
        let alone = SignedSuccession::parse(&bytes).unwrap();
        assert!(matches!(alone.verify(), Err(SuccessionFault::Signature(_))));
    }

    #[test]
    fn a_chain_is_followed_in_any_order_and_a_ring_ends() {
        let said = |old, new| step(old, new).said().clone();
        let steps = [said(3, 4), said(1, 2), said(2, 3)];
        assert_eq!(*follow(&key(1).public(), &steps), key(4).public());
        assert_eq!(*follow(&key(3).public(), &steps), key(4).public());
        assert_eq!(*follow(&key(9).public(), &steps), key(9).public());
        let ring = [said(1, 2), said(2, 1)];
        let _ = follow(&key(1).public(), &ring);
    }

    #[test]
    fn orders_are_read_back_bounded_and_may_grow() {
        let orders = Orders {
            successions: vec![step(1, 2), step(2, 3)],
            renew: Some(vec![7; 40]),
        };
        assert_eq!(Orders::from_cbor(&orders.to_cbor()).unwrap(), orders);
        let empty = Orders::default();
        assert_eq!(Orders::from_cbor(&empty.to_cbor()).unwrap(), empty);
        let many = Orders {
            successions: vec![step(1, 2); MAX_SUCCESSIONS + 3],
            renew: None,
        };
        let read = Orders::from_cbor(&many.to_cbor()).unwrap();
        assert_eq!(read.successions.len(), MAX_SUCCESSIONS);
        let grown = cbor::encode(|w| {
            w.array(4).text(ORDERS_TYPE).array(0).null();
            w.text("later");
        });
        assert_eq!(Orders::from_cbor(&grown).unwrap(), empty);
        for cut in 0..orders.to_cbor().len() {
            assert!(Orders::from_cbor(&orders.to_cbor()[..cut]).is_err());
        }
    }
}
