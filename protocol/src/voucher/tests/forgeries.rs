//! The 30 forgeries of the threat list, numbered as there, each refused for its own reason.

use rcgen::{BasicConstraints, IsCa, date_time_ymd};

use super::*;

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
    let pretender = world.born.ca.pretender();
    let chain_of = [
        &pretender.issue(&device),
        &pretender.root,
        &world.born.ca.root,
    ];
    let untrusted = passed(chain_of.map(Clone::clone).to_vec());
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
