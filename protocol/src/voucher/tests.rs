//! The 30 forgeries of the threat list, each refused for its own reason, beside good vouchers; kinship
//! of vouchers; text form.

use rcgen::{BasicConstraints, IsCa, date_time_ymd};

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

fn mac_bytes(number: i64, value: &[u8]) -> Vec<u8> {
    cbor::encode(|w| _ = w.array(2).int(number).bytes(value))
}

/// A P-384 key of nobody (the base point of the curve).
fn p384() -> VerifyingKey {
    let point = concat!(
        "04aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e38",
        "72760ab73617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a",
        "431d7c90ea0e5f"
    );
    let bytes: Vec<u8> = (0..point.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&point[i..i + 2], 16).unwrap())
        .collect();
    VerifyingKey::from_point(Curve::P384, &bytes).unwrap()
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

/// Imports a forgery as owner 2 under the default policy.
fn refused(world: &World, bytes: &[u8]) -> VoucherError {
    import(bytes, &world.owners[2].public(), &Policy::default()).unwrap_err()
}

#[test]
fn forged_headers_are_refused() {
    let mut world = World::new(2);
    let other_guid = guid(&mut world.rng);
    let other_key = PublicKey::x509(&SigningKey::generate(&mut world.rng).public());
    let with_header = |edit: &dyn Fn(&mut HeaderParts)| {
        refused(
            &world,
            &world.with(|parts| parts.header = world.header(edit)),
        )
    };
    // 1, 2: one hash covers both, so they share a reason.
    assert_eq!(
        with_header(&|h| h.guid = other_guid),
        VoucherError::HeaderInfoChanged
    );
    assert_eq!(
        with_header(&|h| h.info.push('2')),
        VoucherError::HeaderInfoChanged
    );
    // 3
    assert_eq!(
        with_header(&|h| h.key = other_key.clone()),
        VoucherError::ManufacturerChanged
    );
    // 4
    let changed = with_header(&|h| h.rendezvous = rendezvous("evil.example"));
    assert_eq!(changed, VoucherError::HeaderOrMacChanged);
    // 5
    for version in [100, 102] {
        assert_eq!(
            with_header(&|h| h.version = version),
            VoucherError::Version(version)
        );
        let outer = world.with(|parts| parts.version = version);
        assert_eq!(refused(&world, &outer), VoucherError::Version(version));
    }
    let with_mac = |mac: Vec<u8>| refused(&world, &world.with(|parts| parts.mac = mac));
    // 6
    assert_eq!(with_mac(mac_bytes(5, &[0; 32])), VoucherError::MacZero);
    // 7
    let secret = HmacSecret::from_bytes([7; 32]);
    let foreign = hmac(MacAlg::HmacSha256, &secret, world.good.header().as_bytes());
    assert_eq!(
        with_mac(mac_bytes(5, foreign.value())),
        VoucherError::HeaderOrMacChanged
    );
    // 8
    let value = world.good.mac().value();
    assert_eq!(with_mac(mac_bytes(6, value)), VoucherError::MacAlgorithm);
    assert_eq!(with_mac(mac_bytes(-16, value)), VoucherError::MacAlgorithm);
    let longer = [value, &[1; 16]].concat();
    assert_eq!(
        with_mac(mac_bytes(6, &longer)),
        VoucherError::HeaderOrMacChanged
    );
}

#[test]
fn an_hmac_of_another_device_is_found_by_the_device_itself() {
    // 7 again, the manufacturer lending a hand: all signatures are right, only the device can tell.
    let world = World::new(3);
    let foreign = hmac(
        MacAlg::HmacSha256,
        &HmacSecret::from_bytes([7; 32]),
        world.good.header().as_bytes(),
    );
    let new = Voucher::build(
        world.good.header.clone(),
        foreign,
        world.good.chain.clone(),
        Vec::new(),
    );
    let forged = chain(&new.unwrap(), &world.born.manufacturer, &world.owners);
    import(
        forged.as_bytes(),
        &world.owners[2].public(),
        &Policy::default(),
    )
    .unwrap();
    let secret = &world.credential().hmac_secret;
    forged
        .mac()
        .verify(secret, forged.header().as_bytes())
        .unwrap_err();
}

#[test]
fn forged_device_certificates_are_refused() {
    let mut world = World::new(4);
    let (another, key) = (
        DeviceCa::new("another"),
        SigningKey::generate(&mut world.rng),
    );
    // 9
    let wrong = Some(hash(HashAlg::Sha256, b"nothing"));
    let header = world.header(|header| header.hash = wrong);
    let forged = world.with(|parts| parts.header = header);
    assert_eq!(refused(&world, &forged), VoucherError::DeviceChainHash);
    // 10
    let forged = world.with(|parts| parts.chain = None);
    assert_eq!(refused(&world, &forged), VoucherError::DeviceChainMissing);
    let forged = world.with(|parts| parts.chain = Some(Vec::new()));
    assert_eq!(refused(&world, &forged), VoucherError::DeviceChainMissing);
    // 11
    let header = world.header(|header| header.hash = None);
    let forged = world.with(|parts| parts.header = header);
    assert_eq!(
        refused(&world, &forged),
        VoucherError::DeviceChainHashMissing
    );
    // 12
    let foreign = vec![another.issue(&key.public()), another.root.clone()];
    let forged = world.with(|parts| parts.chain = Some(foreign));
    assert_eq!(refused(&world, &forged), VoucherError::DeviceChainReplaced);

    // 13, 14: a manufacturer that lets such certificates pass.
    let device = world.credential().key.public();
    let passed = |chain_of: Vec<Vec<u8>>| {
        let new = NewVoucher::new(
            world.good.guid(),
            world.good.rendezvous(),
            world.good.device_info(),
            world.good.manufacturer(),
            Some(chain_of),
        );
        let mac = hmac(
            MacAlg::HmacSha256,
            &world.credential().hmac_secret,
            new.header().as_bytes(),
        );
        chain(
            &new.seal(mac).unwrap(),
            &world.born.manufacturer,
            &world.owners,
        )
    };
    let roots = [world.born.ca.root.clone()];
    let policy = Policy {
        device_roots: Some(&roots),
        now: Time::new(1_900_000_000, TimeQuality::Floor),
        ..Policy::default()
    };
    let owner = world.owners[2].public();
    let untrusted = passed(vec![another.issue(&device), another.root.clone()]);
    untrusted
        .verify_owned_by(&owner, &Policy::default())
        .unwrap();
    let refusal = untrusted.verify_owned_by(&owner, &policy).unwrap_err();
    assert_eq!(refusal, VoucherError::DeviceChainUntrusted);
    let expired = world.born.ca.issue_with(&device, |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let expired = passed(vec![expired, world.born.ca.root.clone()]);
    let refusal = expired.verify_owned_by(&owner, &policy).unwrap_err();
    assert_eq!(refusal, VoucherError::DeviceChainExpired);
    // Without any idea of the time nothing expires.
    let timeless = Policy {
        now: Time::UNKNOWN,
        ..policy
    };
    expired.verify_owned_by(&owner, &timeless).unwrap();
    let authority = world.born.ca.issue_with(&device, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let authority = passed(vec![authority, world.born.ca.root.clone()]);
    let refusal = authority
        .verify_owned_by(&owner, &Policy::default())
        .unwrap_err();
    assert_eq!(refusal, VoucherError::DeviceLeafIsCa);
}

#[test]
fn forged_entries_are_refused() {
    let mut world = World::new(5);
    let attacker = SigningKey::generate(&mut world.rng);
    let other = World::new(6);
    // 15
    let forged = world.with(|parts| _ = parts.entries.remove(1));
    assert_eq!(
        refused(&world, &forged),
        VoucherError::MissingEntry { entry: 1 }
    );
    // 16: in itself right, so it shows by the owner and by kinship.
    let forged = world.with(|parts| _ = parts.entries.pop());
    assert_eq!(refused(&world, &forged), VoucherError::NotOwned);
    let back = Voucher::parse(&forged).unwrap();
    assert_eq!(back.relation_to(&world.good), Relation::Ancestor);
    // 17
    let forged = world.with(|parts| parts.entries.swap(1, 2));
    assert_eq!(
        refused(&world, &forged),
        VoucherError::EntryOrder { entry: 1 }
    );
    let forged = world.with(|parts| parts.entries.swap(0, 1));
    assert_eq!(
        refused(&world, &forged),
        VoucherError::EntryOrder { entry: 0 }
    );
    // 18
    let forged = world.with(|parts| parts.entries.insert(1, parts.entries[1].clone()));
    assert_eq!(
        refused(&world, &forged),
        VoucherError::DoubledEntry { entry: 2 }
    );
    // 19
    let foreign = other.good.entries[2].as_bytes().to_vec();
    let forged = world.with(|parts| parts.entries[2] = foreign);
    assert_eq!(
        refused(&world, &forged),
        VoucherError::ForeignEntry { entry: 2 }
    );

    let with_last = |edit: &dyn Fn(&mut EntryParts<'_>)| {
        refused(
            &world,
            &world.with(|parts| parts.entries[2] = world.last(edit)),
        )
    };
    // 20
    let zero = hash(HashAlg::Sha256, b"zero");
    let refusal = with_last(&|entry| entry.prev = zero.clone());
    assert_eq!(refusal, VoucherError::PrevHash { entry: 2 });
    // 21
    let refusal = with_last(&|entry| entry.info = zero.clone());
    assert_eq!(refusal, VoucherError::HeaderHash { entry: 2 });
    // 22: the list began with SHA-256, one entry differs; a list too weak as a whole is below.
    let stronger = hash(HashAlg::Sha384, world.good.entries[1].as_bytes());
    let refusal = with_last(&|entry| entry.prev = stronger.clone());
    assert_eq!(refusal, VoucherError::WeakHash { entry: 2 });
    let mut walk = ChainWalk::new(world.good.header(), world.good.mac());
    walk.require_strength_of(Curve::P384);
    walk.step(&world.good.entries[0]).unwrap();
    // 23
    let forged = world.with(|parts| {
        parts.entries[2] = world.last(|entry| {
            entry.signer = &attacker;
        });
    });
    assert_eq!(
        refused(&world, &forged),
        VoucherError::NotByOwner { entry: 2 }
    );
    // 24
    let forged = world.with(|parts| {
        parts.entries[2] = world.last(|entry| {
            entry.signer = &attacker;
            entry.next = PublicKey::x509(&attacker.public());
        });
    });
    assert_eq!(
        refused(&world, &forged),
        VoucherError::SelfExtended { entry: 2 }
    );
    // 26
    let refusal = with_last(&|entry| entry.next = PublicKey::x509(&p384()));
    assert_eq!(refusal, VoucherError::KeyTypeDiffers { entry: 2 });
    let extended = world
        .good
        .extend(&PublicKey::x509(&p384()), &world.owners[2]);
    assert_eq!(
        extended.unwrap_err(),
        VoucherError::KeyTypeDiffers { entry: 3 }
    );
}

#[test]
fn a_weak_hash_under_strong_keys_is_refused() {
    // 22: device and owners on P-384, hashes SHA-256. The walk refuses before it looks at a
    // signature, so keys of nobody do.
    let world = World::new(7);
    let strong = PublicKey::x509(&p384());
    let header = Header::new(
        world.good.guid(),
        world.good.rendezvous(),
        world.good.device_info(),
        &strong,
        world.good.header().chain_hash(),
    );
    let entry = |alg| {
        let parts = EntryParts {
            prev: super::extend::first_prev_hash(alg, &header, world.good.mac()),
            info: crate::crypto::hash_parts(alg, &header.info()),
            next: strong.clone(),
            signer: &world.owners[0],
        };
        Entry::parse(sign_entry(&parts).as_bytes(), 0).unwrap()
    };
    let refusal = |alg, device| {
        let mut walk = ChainWalk::new(&header, world.good.mac());
        walk.require_strength_of(device);
        walk.step(&entry(alg)).unwrap_err()
    };
    let weak = VoucherError::WeakHash { entry: 0 };
    assert_eq!(refusal(HashAlg::Sha256, Curve::P384), weak);
    // Controls: strong enough, or not needed; then it is the signature that fails.
    let unsigned = VoucherError::NotByOwner { entry: 0 };
    assert_eq!(refusal(HashAlg::Sha384, Curve::P384), unsigned);
    assert_eq!(refusal(HashAlg::Sha256, Curve::P256), unsigned);
}

#[test]
fn owner_certificates_must_lead_to_a_trusted_authority() {
    // 25
    let world = World::new(8);
    let (trusted, another) = (DeviceCa::new("owners"), DeviceCa::new("another"));
    let next = |ca: &DeviceCa, wrapped: bool| {
        let chain = [ca.issue(&world.owners[2].public()), ca.root.clone()];
        let list = cbor::encode(|w| {
            w.array(2);
            chain.iter().for_each(|der| _ = w.bytes(der));
        });
        let raw = cbor::encode(|w| {
            w.array(3).uint(10).uint(2);
            if wrapped {
                w.bytes(&list)
            } else {
                w.raw(&list)
            };
        });
        PublicKey::parse(&raw).unwrap()
    };
    let roots = [trusted.root.clone()];
    let policy = Policy {
        owner_roots: Some(&roots),
        ..Policy::default()
    };
    let owner = world.owners[2].public();
    for wrapped in [false, true] {
        let by = |ca| {
            world.with(|parts| {
                parts.entries[2] = world.last(|entry| entry.next = next(ca, wrapped));
            })
        };
        import(&by(&trusted), &owner, &policy).unwrap();
        let refusal = import(&by(&another), &owner, &policy).unwrap_err();
        assert_eq!(refusal, VoucherError::OwnerChainUntrusted { entry: 2 });
    }
}

#[test]
fn too_many_or_no_entries_are_refused() {
    let world = World::new(9);
    // 27: the format's bound, and the policy's.
    let forged = world.with(|parts| {
        let entry = parts.entries[0].clone();
        parts.entries = vec![entry; 256];
        parts.chain.as_mut().unwrap().pop();
    });
    let refusal = refused(&world, &forged);
    assert!(matches!(
        refusal,
        VoucherError::TooManyEntries(255) | VoucherError::TooLarge
    ));
    let small = cbor::encode(|w| {
        w.array(256);
        (0..256).for_each(|_| _ = w.null());
    });
    let refusal = read_entries(&mut Reader::new(&small).unwrap()).unwrap_err();
    assert_eq!(refusal, VoucherError::TooManyEntries(255));
    let long = (0..14).fold(world.good.clone(), |voucher, _| {
        voucher
            .extend(voucher.owner_key(), &world.owners[2])
            .unwrap()
    });
    assert_eq!(
        long.verify(&Policy::default()),
        Err(VoucherError::TooManyEntries(16))
    );
    long.verify(&Policy {
        max_entries: 17,
        ..Policy::default()
    })
    .unwrap();
    // 28
    let forged = world.with(|parts| parts.entries.clear());
    assert_eq!(refused(&world, &forged), VoucherError::NoEntries);
}

#[test]
fn forged_encodings_are_refused() {
    let world = World::new(10);
    let payload = entry_payload(&EntryParts {
        prev: hash(HashAlg::Sha256, world.good.entries[1].as_bytes()),
        info: hash_parts_of(world.good.header()),
        next: PublicKey::x509(&world.owners[2].public()),
        signer: &world.owners[1],
    });
    // 29: the signature is right for the headers as they stand.
    let with_headers = |protected: &[u8], unprotected: &[u8]| {
        let text = cbor::encode(|w| {
            w.array(4)
                .text("Signature1")
                .bytes(protected)
                .bytes(&[])
                .bytes(&payload);
        });
        let entry = cbor::encode(|w| {
            w.tag(18)
                .array(4)
                .bytes(protected)
                .raw(unprotected)
                .bytes(&payload);
            w.bytes(&world.owners[1].sign(&text));
        });
        import(
            &world.with(|parts| parts.entries[2] = entry),
            &world.owners[2].public(),
            &Policy::default(),
        )
    };
    let refusal = |fault| Err(VoucherError::EntryCose { entry: 2, fault });
    let (es256, es384, none) = (
        &[0xa1, 1, 0x26][..],
        &[0xa1, 1, 0x38, 0x22][..],
        &[0xa0][..],
    );
    with_headers(es256, none).unwrap();
    assert_eq!(
        with_headers(&[], es256),
        refusal(CoseError::AlgorithmNotProtected)
    );
    assert_eq!(
        with_headers(none, es256),
        refusal(CoseError::AlgorithmNotProtected)
    );
    assert_eq!(with_headers(es256, es384), refusal(CoseError::BadHeader));
    assert_eq!(
        with_headers(es384, none),
        Err(VoucherError::NotByOwner { entry: 2 })
    );
    assert_eq!(
        with_headers(&[0xa1, 1, 0x25], none),
        refusal(CoseError::UnknownAlgorithm(-6))
    );
    assert_eq!(
        with_headers(&[0xa2, 1, 0x26, 2, 0x80], none),
        refusal(CoseError::BadHeader)
    );
    assert_eq!(
        with_headers(&[0xa2, 1, 0x26, 1, 0x26], none),
        refusal(CoseError::BadHeader)
    );
    // 30
    let good = world.good.as_bytes();
    let trailing = [good, &[0]].concat();
    assert_eq!(
        refused(&world, &trailing),
        VoucherError::Shape(CborError::Trailing)
    );
    let long_head = [&[0x98, 0x05], &good[1..]].concat();
    assert_eq!(
        refused(&world, &long_head),
        VoucherError::Shape(CborError::NotShortest)
    );
    let endless = [&[0x9f], &good[1..], &[0xff]].concat();
    assert_eq!(
        refused(&world, &endless),
        VoucherError::Shape(CborError::Indefinite)
    );
    let untagged = world.good.entries[2].as_bytes()[1..].to_vec();
    let forged = world.with(|parts| parts.entries[2] = untagged);
    assert!(matches!(
        refused(&world, &forged),
        VoucherError::EntryCose { entry: 2, .. }
    ));
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
