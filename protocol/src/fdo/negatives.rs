//! DI, TO0 and TO1 against peers that cheat (tests only).

use super::message::{Message, MessageType, Nonce};
use super::{Error, di, eat, to0, to1};
use crate::crypto::{HashAlg, SigningKey, VerifyingKey, hash};
use crate::csr::CsrError;
use crate::fixture::{Born, DeviceCa, TestRng, born, guid, rendezvous};
use crate::key::PublicKey;
use crate::rv::{To2Address, To2Protocol};
use crate::voucher::{Policy, Voucher, VoucherError};
use crate::wire::cbor;
use crate::wire::cose::{Headers, Sign1};

struct World {
    rng: TestRng,
    born: Born,
    owner: SigningKey,
    voucher: Voucher,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = TestRng::new(seed);
        let born = born(&mut rng);
        let owner = SigningKey::generate(&mut rng);
        let next = PublicKey::x509(&owner.public());
        let voucher = born.voucher.extend(&next, &born.manufacturer).unwrap();
        Self {
            rng,
            born,
            owner,
            voucher,
        }
    }
}

fn address() -> To2Address {
    To2Address {
        ip: None,
        dns: Some("owner".into()),
        port: 1,
        protocol: To2Protocol::Https,
    }
}

/// Message 22 as one likes it.
struct OwnerSign<'a> {
    voucher: &'a [u8],
    nonce: Option<Nonce>,
    addresses: Vec<To2Address>,
    signer: &'a SigningKey,
    hashed: Option<Vec<u8>>,
}

impl OwnerSign<'_> {
    fn message(&self) -> Message {
        let to0d = cbor::encode(|w| {
            w.array(2 + usize::from(self.nonce.is_some()))
                .raw(self.voucher)
                .uint(3600);
            if let Some(nonce) = &self.nonce {
                w.bytes(&nonce.0);
            }
        });
        let payload = cbor::encode(|w| {
            w.array(2).array(self.addresses.len());
            self.addresses.iter().for_each(|address| address.encode(w));
            hash(HashAlg::Sha256, self.hashed.as_ref().unwrap_or(&to0d)).encode(w);
        });
        let to1d = Sign1::sign(&payload, self.signer);
        let body = cbor::encode(|w| _ = w.array(2).bytes(&to0d).raw(to1d.as_bytes()));
        Message::new(MessageType::To0OwnerSign, body)
    }
}

#[test]
fn registrations_are_taken_only_whole_and_fresh() {
    let mut world = World::new(50);
    let nonce = Nonce::generate(&mut world.rng);
    let register = |edit: &dyn Fn(&mut OwnerSign<'_>)| {
        let mut sign = OwnerSign {
            voucher: world.voucher.as_bytes(),
            nonce: Some(nonce),
            addresses: vec![address()],
            signer: &world.owner,
            hashed: None,
        };
        edit(&mut sign);
        to0::ExpectOwnerSign::with_nonce(nonce).step(&sign.message(), &Policy::default())
    };
    let offer = register(&|_| {}).unwrap();
    assert_eq!(offer.voucher, world.voucher);
    assert_eq!(
        offer.accept(u32::MAX),
        offer.accept(3600),
        "no more than was asked"
    );

    let code = |error: Error| error.code().number();
    let missing = register(&|sign| sign.nonce = None).unwrap_err();
    assert!(matches!(missing, Error::Malformed { .. }));
    let wrong = register(&|sign| sign.nonce = Some(Nonce([1; 16]))).unwrap_err();
    assert!(matches!(wrong, Error::Check { what: "nonce", .. }));
    assert_eq!(code(wrong), 3);
    let other = register(&|sign| sign.hashed = Some(b"another to0d".to_vec())).unwrap_err();
    assert!(matches!(
        other,
        Error::Check {
            what: "hash of to0d",
            ..
        }
    ));
    let unsigned = register(&|sign| sign.addresses.clear()).unwrap_err();
    assert!(matches!(unsigned, Error::Malformed { .. }));
    // Signed by the owner, but the voucher itself is forged.
    let mut forged = world.voucher.as_bytes().to_vec();
    let info = world.voucher.device_info().as_bytes();
    let at = forged
        .windows(info.len())
        .position(|part| part == info)
        .unwrap();
    forged[at] ^= 0x20;
    let sign = OwnerSign {
        voucher: &forged,
        nonce: Some(nonce),
        addresses: vec![address()],
        signer: &world.owner,
        hashed: None,
    };
    let state = to0::ExpectOwnerSign::with_nonce(nonce);
    let error = state.step(&sign.message(), &Policy::default()).unwrap_err();
    assert_eq!(error, Error::Voucher(VoucherError::HeaderInfoChanged));
    let unowned = world.born.voucher.as_bytes();
    let unsold = OwnerSign {
        voucher: unowned,
        nonce: Some(nonce),
        addresses: vec![address()],
        signer: &world.born.manufacturer,
        hashed: None,
    };
    let state = to0::ExpectOwnerSign::with_nonce(nonce);
    let error = state
        .step(&unsold.message(), &Policy::default())
        .unwrap_err();
    assert_eq!(error, Error::Voucher(VoucherError::NoEntries));
    assert_eq!(code(error), 2);
}

#[test]
fn registrations_by_others_than_the_owner_are_refused() {
    let mut world = World::new(51);
    let nonce = Nonce::generate(&mut world.rng);
    for signer in [
        &world.born.manufacturer,
        &SigningKey::generate(&mut TestRng::new(1)),
    ] {
        let sign = OwnerSign {
            voucher: world.voucher.as_bytes(),
            nonce: Some(nonce),
            addresses: vec![address()],
            signer,
            hashed: None,
        };
        let state = to0::ExpectOwnerSign::with_nonce(nonce);
        let error = state.step(&sign.message(), &Policy::default()).unwrap_err();
        assert!(matches!(error, Error::Cose { .. }));
        assert_eq!(error.code().number(), 3);
    }
    // Our own client does not even try.
    let (client, _) = to0::hello();
    let ack = Message::new(
        MessageType::To0HelloAck,
        cbor::encode(|w| _ = w.array(1).bytes(&nonce.0)),
    );
    let registration = to0::Registration {
        addresses: vec![address()],
        wait_secs: 1,
    };
    let error = client
        .step(
            &ack,
            &world.voucher,
            &world.born.manufacturer,
            &registration,
        )
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, Error::Own(_)));
}

#[test]
fn a_nonce_serves_one_registration_in_one_session() {
    let mut world = World::new(52);
    let registration = to0::Registration {
        addresses: vec![address()],
        wait_secs: 1,
    };
    let (client, hello) = to0::hello();
    let (first, ack) = to0::ExpectOwnerSign::begin(&hello, &mut world.rng).unwrap();
    let (second, _) = to0::ExpectOwnerSign::begin(&hello, &mut world.rng).unwrap();
    let (_, sign) = client
        .step(&ack, &world.voucher, &world.owner, &registration)
        .unwrap();
    let refusal = second.step(&sign, &Policy::default()).unwrap_err();
    assert!(matches!(refusal, Error::Check { what: "nonce", .. }));
    // Used a second time in its own session: the state is gone with the first use, by its type.
    first.step(&sign, &Policy::default()).unwrap();
}

#[test]
fn redirections_need_a_fresh_proof_by_the_device() {
    let mut world = World::new(53);
    let other = World::new(54);
    let credential = &world.born.credential;
    let device_key = world.voucher.device_key().unwrap().clone();
    let begin = |rng: &mut TestRng, key: &VerifyingKey| {
        let (device, hello) = to1::hello(credential);
        let hello = to1::HelloRv::read(&hello).unwrap();
        let (server, ack) = hello.answer(key.clone(), vec![0x80], rng);
        let nonce = ack.read(MessageType::To1HelloRvAck, |r| {
            r.array(2)?;
            let nonce = Nonce(r.bytes_exact()?);
            r.raw()?;
            Ok(nonce)
        });
        (device.step(&ack).unwrap().1, server, nonce.unwrap())
    };
    let (proof, server, _) = begin(&mut world.rng, &device_key);
    assert_eq!(server.step(&proof).unwrap().body, [0x80]);
    // Replayed in a later session.
    let (_, server, _) = begin(&mut world.rng, &device_key);
    let error = server.step(&proof).unwrap_err();
    assert!(matches!(error, Error::Check { what: "nonce", .. }));
    // By another key; for another device; with a nonce of another; unknown tricks with claims.
    let kind = MessageType::To1ProveToRv;
    let own = &credential.key;
    let mut attempt = |guid, make: &dyn Fn(Nonce) -> Nonce, key: &SigningKey| {
        let (_, server, nonce) = begin(&mut world.rng, &device_key);
        let token = eat::sign(guid, make(nonce), None, Headers::default(), key);
        server.step(&Message::new(kind, token.as_bytes().to_vec()))
    };
    attempt(credential.guid, &|nonce| nonce, own).unwrap();
    let stranger = &other.born.credential;
    let error = attempt(credential.guid, &|nonce| nonce, &stranger.key).unwrap_err();
    assert!(matches!(error, Error::Cose { .. }));
    let error = attempt(stranger.guid, &|nonce| nonce, own).unwrap_err();
    assert!(matches!(error, Error::Check { what: "GUID", .. }));
    let error = attempt(credential.guid, &|_| Nonce([7; 16]), own).unwrap_err();
    assert!(matches!(error, Error::Check { what: "nonce", .. }));
}

#[test]
fn proofs_with_doubled_or_missing_claims_are_refused() {
    let mut rng = TestRng::new(55);
    let (key, guid) = (SigningKey::generate(&mut rng), guid(&mut rng));
    let nonce = Nonce::generate(&mut rng);
    let ueid = [&[1][..], &guid.0].concat();
    let verify = |claims: &[(i64, &[u8])]| {
        let payload = cbor::encode(|w| {
            w.map(claims.len());
            claims
                .iter()
                .for_each(|(label, value)| _ = w.int(*label).bytes(value));
        });
        let token = Sign1::sign(&payload, &key);
        let kind = MessageType::To1ProveToRv;
        eat::verify(kind, token.as_bytes(), guid, nonce, &key.public()).map(|_| ())
    };
    let (fresh, mine) = ((10, &nonce.0[..]), (256, &ueid[..]));
    verify(&[fresh, mine]).unwrap();
    verify(&[mine, fresh, (99, b"unknown")]).unwrap();
    for claims in [
        &[fresh][..],
        &[mine],
        &[],
        &[fresh, mine, mine],
        &[fresh, fresh, mine],
        &[fresh, (256, &guid.0)],
        &[fresh, (256, &[&[2][..], &guid.0].concat())],
        &[fresh, (11, &ueid)],
    ] {
        verify(claims).unwrap_err();
    }
}

#[test]
fn the_factory_certifies_only_a_key_that_the_device_holds() {
    let mut rng = TestRng::new(56);
    let (_, start) = di::start("serial", "model", SigningKey::generate(&mut rng)).unwrap();
    let good = di::AppStart::read(&start).unwrap();
    assert_eq!(
        (good.info().serial.as_str(), good.info().model.as_str()),
        ("serial", "model")
    );
    // A request with one byte of its signature changed, and one that is no request.
    let mut forged = start.clone();
    *forged.body.last_mut().unwrap() ^= 1;
    assert!(matches!(
        di::AppStart::read(&forged),
        Err(Error::Csr(CsrError::BadSignature))
    ));
    let info = |f: &dyn Fn(&mut cbor::Writer)| {
        let body = cbor::encode(|w| _ = w.array(1).bytes(&cbor::encode(f)));
        di::AppStart::read(&Message::new(MessageType::DiAppStart, body)).unwrap_err()
    };
    let junk = info(&|w| {
        _ = w
            .array(5)
            .uint(10)
            .uint(1)
            .text("s")
            .text("m")
            .bytes(b"junk")
    });
    assert!(matches!(junk, Error::Csr(CsrError::Malformed)));
    let p384 = info(&|w| {
        _ = w
            .array(5)
            .uint(11)
            .uint(1)
            .text("s")
            .text("m")
            .bytes(b"junk")
    });
    assert!(matches!(p384, Error::Check { .. }));
    let plain = info(&|w| _ = w.text("a serial number alone"));
    assert!(matches!(plain, Error::Malformed { .. }));
    // The request may also stand before the texts.
    let csr = good.csr().as_der().to_vec();
    let early = cbor::encode(|w| {
        _ = w
            .array(5)
            .uint(10)
            .uint(1)
            .bytes(&csr)
            .text("serial")
            .text("model");
    });
    let body = cbor::encode(|w| _ = w.array(1).bytes(&early));
    let early = di::AppStart::read(&Message::new(MessageType::DiAppStart, body)).unwrap();
    assert_eq!(early.info(), good.info());
    // A certificate for another key is the shell's mistake, found before it leaves the house.
    let (ca, other) = (DeviceCa::new("ca"), SigningKey::generate(&mut rng));
    let terms = di::IssueTerms {
        guid: guid(&mut rng),
        rendezvous: &rendezvous("rv"),
        manufacturer: &other.public(),
        chain: vec![ca.issue(&other.public())],
    };
    assert!(matches!(good.issue(terms), Err(Error::Own(_))));
}
