//! Good vouchers, their kinship, their text form; the forger's tools for the file beside.

mod forgeries;

use super::*;
use crate::credential::DeviceCredential;
use crate::crypto::{Curve, HashAlg, HmacSecret, MacAlg, SigningKey, VerifyingKey, hash, hmac};
use crate::fixture::{Born, DeviceCa, TestRng, born, guid, rendezvous};
use crate::time::{Time, TimeQuality};
use crate::wire::cbor;
use crate::wire::cose::{Headers, Sign1};

/// A device, its manufacturer, and owners 0 to 2 to whom it was passed in turn.
struct World {
    rng: TestRng,
    born: Born,
    owners: Vec<SigningKey>,
    good: Voucher,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = TestRng::new(seed);
        let born = born(&mut rng);
        let owners: Vec<_> = (0..3).map(|_| SigningKey::generate(&mut rng)).collect();
        let good = chain(&born.voucher, &born.manufacturer, &owners);
        Self {
            rng,
            born,
            owners,
            good,
        }
    }

    fn credential(&self) -> &DeviceCredential {
        &self.born.credential
    }

    /// The good voucher with one of its parts replaced, as raw CBOR.
    fn with(&self, edit: impl FnOnce(&mut Parts)) -> Vec<u8> {
        let mut parts = Parts::of(&self.good);
        edit(&mut parts);
        parts.encode()
    }

    /// The header of the good voucher, some of it changed.
    fn header(&self, edit: impl FnOnce(&mut HeaderParts)) -> Vec<u8> {
        let header = self.good.header();
        let mut parts = HeaderParts {
            version: 101,
            guid: header.guid(),
            rendezvous: header.rendezvous().clone(),
            info: header.device_info().to_owned(),
            key: header.manufacturer().clone(),
            hash: header.chain_hash().cloned(),
        };
        edit(&mut parts);
        cbor::encode(|w| {
            w.array(6).uint(parts.version).bytes(&parts.guid.0);
            w.raw(parts.rendezvous.as_bytes())
                .text(&parts.info)
                .raw(parts.key.as_bytes());
            match &parts.hash {
                Some(hash) => hash.encode(w),
                None => _ = w.null(),
            }
        })
    }

    /// Last entry of the good voucher made anew.
    fn last<'a>(&'a self, edit: impl FnOnce(&mut EntryParts<'a>)) -> Vec<u8> {
        let before = &self.good.entries[1];
        let mut parts = EntryParts {
            prev: hash(HashAlg::Sha256, before.as_bytes()),
            info: hash_parts_of(self.good.header()),
            next: PublicKey::x509(&self.owners[2].public()),
            signer: &self.owners[1],
        };
        edit(&mut parts);
        sign_entry(&parts).as_bytes().to_vec()
    }
}

/// Passes `voucher` from `first` to each of `owners` in turn.
fn chain(voucher: &Voucher, first: &SigningKey, owners: &[SigningKey]) -> Voucher {
    let mut signer = first;
    let mut voucher = voucher.clone();
    for owner in owners {
        voucher = voucher
            .extend(&PublicKey::x509(&owner.public()), signer)
            .unwrap();
        signer = owner;
    }
    voucher
}

struct HeaderParts {
    version: u64,
    guid: Guid,
    rendezvous: RendezvousInfo,
    info: String,
    key: PublicKey,
    hash: Option<Hash>,
}

struct EntryParts<'a> {
    prev: Hash,
    info: Hash,
    next: PublicKey,
    signer: &'a SigningKey,
}

fn sign_entry(parts: &EntryParts<'_>) -> Sign1 {
    Sign1::sign(&entry_payload(parts), parts.signer)
}

fn entry_payload(parts: &EntryParts<'_>) -> Vec<u8> {
    cbor::encode(|w| {
        w.array(4);
        parts.prev.encode(w);
        parts.info.encode(w);
        w.null().raw(parts.next.as_bytes());
    })
}

fn hash_parts_of(header: &Header) -> Hash {
    crate::crypto::hash_parts(HashAlg::Sha256, &header.info())
}

/// A voucher taken apart, each part encoded.
struct Parts {
    version: u64,
    header: Vec<u8>,
    mac: Vec<u8>,
    chain: Option<Vec<Vec<u8>>>,
    entries: Vec<Vec<u8>>,
}

impl Parts {
    fn of(voucher: &Voucher) -> Self {
        Self {
            version: 101,
            header: voucher.header().as_bytes().to_vec(),
            mac: cbor::encode(|w| voucher.mac().encode(w)),
            chain: voucher.chain.clone(),
            entries: voucher
                .entries
                .iter()
                .map(|entry| entry.as_bytes().to_vec())
                .collect(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(5)
                .uint(self.version)
                .bytes(&self.header)
                .raw(&self.mac);
            match &self.chain {
                Some(chain) => {
                    w.array(chain.len());
                    chain.iter().for_each(|der| _ = w.bytes(der));
                }
                None => _ = w.null(),
            }
            w.array(self.entries.len());
            self.entries.iter().for_each(|entry| _ = w.raw(entry));
        })
    }
}

/// What an importing owner does with a voucher.
fn import(bytes: &[u8], owner: &VerifyingKey, policy: &Policy<'_>) -> Result<(), VoucherError> {
    Voucher::parse(bytes)?.verify_owned_by(owner, policy)
}

#[test]
fn good_vouchers_pass() {
    let world = World::new(1);
    let roots = [world.born.ca.root.clone()];
    let strict = Policy {
        device_roots: Some(&roots),
        owner_roots: Some(&roots),
        now: Time::new(1_900_000_000, TimeQuality::Authenticated),
        ..Policy::default()
    };
    for (count, owner) in world.owners.iter().enumerate() {
        let voucher = chain(
            &world.born.voucher,
            &world.born.manufacturer,
            &world.owners[..=count],
        );
        import(voucher.as_bytes(), &owner.public(), &Policy::default()).unwrap();
        import(voucher.as_bytes(), &owner.public(), &strict).unwrap();
        assert_eq!(Voucher::from_pem(&voucher.to_pem()).unwrap(), voucher);
        voucher
            .mac()
            .verify(&world.credential().hmac_secret, voucher.header().as_bytes())
            .unwrap();
    }
    assert_eq!(
        world.with(|_| {}),
        world.good.as_bytes(),
        "the forger's tools alter nothing"
    );
    assert_eq!(
        world.with(|parts| parts.entries[2] = world.last(|_| {})),
        world.good.as_bytes(),
        "and make good entries"
    );
}

#[test]
fn every_flipped_bit_is_refused() {
    let world = World::new(11);
    let owner = world.owners[2].public();
    let mut bytes = world.good.as_bytes().to_vec();
    let policy = Policy::default();
    for at in 0..bytes.len() {
        for bit in [1, 0x80] {
            bytes[at] ^= bit;
            assert!(
                import(&bytes, &owner, &policy).is_err(),
                "byte {at} bit {bit}"
            );
            bytes[at] ^= bit;
        }
    }
    import(&bytes, &owner, &policy).unwrap();
}

#[test]
fn kinship_of_vouchers() {
    let mut world = World::new(12);
    let steps: Vec<_> = (0..=3)
        .map(|count| {
            chain(
                &world.born.voucher,
                &world.born.manufacturer,
                &world.owners[..count],
            )
        })
        .collect();
    for (a, mine) in steps.iter().enumerate() {
        for (b, known) in steps.iter().enumerate() {
            let expected = match a.cmp(&b) {
                std::cmp::Ordering::Less => Relation::Ancestor,
                std::cmp::Ordering::Equal => Relation::Same,
                std::cmp::Ordering::Greater => Relation::Descendant,
            };
            assert_eq!(mine.relation_to(known), expected);
            assert_eq!(mine.is_extension_of(known), a > b);
        }
    }
    // Two valid chains from one prefix: the second by an earlier owner.
    let thief = SigningKey::generate(&mut world.rng);
    let fork = chain(&steps[1], &world.owners[0], &[thief]);
    fork.verify(&Policy::default()).unwrap();
    assert_eq!(fork.relation_to(&steps[2]), Relation::Fork);
    assert_eq!(fork.relation_to(&steps[3]), Relation::Fork);
    assert_eq!(fork.relation_to(&steps[1]), Relation::Descendant);
    assert_eq!(
        World::new(13).good.relation_to(&world.good),
        Relation::Unrelated
    );
    // Only the owner extends.
    let wrong = steps[3].extend(steps[3].owner_key(), &world.owners[0]);
    assert_eq!(wrong.unwrap_err(), VoucherError::SignerIsNotOwner);
}

#[test]
fn text_form_is_strict_where_it_matters() {
    let world = World::new(14);
    let text = world.good.to_pem();
    let around = format!("Subject: a device\n{}\nthe end", text.replace('\n', "\r\n"));
    assert_eq!(Voucher::from_pem(&around).unwrap(), world.good);
    let two = format!("{text}{text}");
    assert_eq!(Voucher::from_pem(&two), Err(VoucherError::Pem));
    assert_eq!(Voucher::pem_blocks(&two).unwrap().len(), 2);
    for broken in [
        "",
        "-----BEGIN OWNERSHIP VOUCHER-----",
        &text.replacen('A', "*", 1),
    ] {
        assert_eq!(
            Voucher::from_pem(broken),
            Err(VoucherError::Pem),
            "{broken}"
        );
    }
    let big = format!(
        "-----BEGIN OWNERSHIP VOUCHER-----\n{}\n-----END OWNERSHIP VOUCHER-----",
        "A".repeat(MAX_VOUCHER * 2)
    );
    assert_eq!(Voucher::from_pem(&big), Err(VoucherError::TooLarge));
    assert_eq!(
        Voucher::parse(&vec![0; MAX_VOUCHER + 1]),
        Err(VoucherError::TooLarge)
    );
}

#[test]
fn headers_travel_unprotected_without_harm() {
    let key = SigningKey::generate(&mut TestRng::new(15));
    let sign1 = Sign1::sign_with(
        b"x",
        Headers::default().with(-1, vec![0xf6]).with(7, vec![0x00]),
        &key,
    );
    let read = Sign1::parse(sign1.as_bytes()).unwrap();
    assert_eq!(read, sign1);
    assert_eq!(
        (read.unprotected().get(-1), read.unprotected().get(9)),
        (Some(&[0xf6][..]), None)
    );
    read.verify(&key.public()).unwrap();
}
