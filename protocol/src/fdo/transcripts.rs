//! What another implementation wrote, read and verified by us: three whole runs (tests only).

use super::di::DeviceMfgInfo;
use super::message::{Message, MessageType, Nonce};
use super::{Error, ErrorMessage, eat, to0, to1, to2};
use crate::crypto::{Curve, EcdhParameter, Hash, Mac};
use crate::csr::Csr;
use crate::fixture::samples;
use crate::id::Guid;
use crate::key::PublicKey;
use crate::rv::RendezvousInfo;
use crate::voucher::{ChainWalk, Entry, Header, Policy, Voucher};
use crate::wire::cbor::{self, Kind, Reader, Writer};
use crate::wire::cose::{CoseError, Sign1};

/// First number of each run, and what is special about it.
const RUNS: [(usize, Curve); 3] = [(1, Curve::P256), (14, Curve::P384), (27, Curve::P256)];
const TUNNELLED: std::ops::RangeInclusive<u8> = 65..=71;

fn read(run: usize, pair: usize, direction: &str, number: u8) -> Message {
    let name = format!("{:03}-{direction}-{number}.cbor", run + pair);
    let body = std::fs::read(samples("transcripts").join(name)).unwrap();
    Message::new(MessageType::from_number(number).unwrap(), body)
}

fn all() -> Vec<(String, Message)> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(samples("transcripts")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let number = name.rsplit('-').next().unwrap().parse().unwrap();
        let kind = MessageType::from_number(number).unwrap();
        all.push((name, Message::new(kind, std::fs::read(path).unwrap())));
    }
    assert_eq!(all.len(), 78);
    all
}

/// Writes what `r` reads, value by value.
fn copy(r: &mut Reader<'_>, w: &mut Writer) {
    match r.kind() {
        Kind::Int => _ = w.int(r.int().unwrap()),
        Kind::Bytes => _ = w.bytes(r.bytes(usize::MAX).unwrap()),
        Kind::Text => _ = w.text(r.text(usize::MAX).unwrap()),
        Kind::Bool => _ = w.bool(r.bool().unwrap()),
        Kind::Null => {
            r.null();
            w.null();
        }
        Kind::Array => {
            let len = r.array_len(usize::MAX).unwrap();
            w.array(len);
            (0..len).for_each(|_| copy(r, w));
        }
        Kind::Map => {
            let len = r.map_len(usize::MAX).unwrap();
            w.map(len);
            (0..2 * len).for_each(|_| copy(r, w));
        }
        Kind::Tag => {
            let tag = [16, 17, 18]
                .into_iter()
                .find(|tag| r.clone().tag(*tag).is_ok())
                .unwrap();
            r.tag(tag).unwrap();
            w.tag(tag);
            copy(r, w);
        }
        Kind::Other => panic!("no floats or undefined values in FDO"),
    }
}

#[test]
fn every_message_written_anew_gives_the_same_bytes() {
    for (name, message) in all() {
        let mut r = Reader::new(&message.body).unwrap();
        let again = cbor::encode(|w| copy(&mut r, w));
        assert_eq!(again, message.body, "{name}");
    }
}

#[test]
fn every_voucher_verifies_and_writes_the_same_bytes() {
    let mut seen = 0;
    for file in std::fs::read_dir(samples("vouchers")).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let voucher = Voucher::from_pem(&text).unwrap();
        voucher
            .verify(&Policy::default())
            .unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let dense = |text: &str| text.split_whitespace().collect::<String>();
        assert_eq!(dense(&voucher.to_pem()), dense(&text));
        assert_eq!(Voucher::read(voucher.as_bytes()).unwrap(), voucher);
        assert_eq!(Voucher::read(text.as_bytes()).unwrap(), voucher);
        let hex: String = voucher
            .guid()
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&hex)
        );
        let header = voucher.header();
        let again = Header::new(
            header.guid(),
            header.rendezvous(),
            header.device_info(),
            header.manufacturer(),
            header.chain_hash(),
        );
        assert_eq!(again.as_bytes(), header.as_bytes());
        let rendezvous = RendezvousInfo::new(header.rendezvous().directives().to_vec()).unwrap();
        assert_eq!(rendezvous.as_bytes(), header.rendezvous().as_bytes());
        seen += 1;
    }
    assert_eq!(seen, 13);
}

#[test]
fn initialisation_of_another_implementation_is_understood() {
    for (run, curve) in RUNS {
        let start = read(run, 0, "req", 10);
        let mut r = Reader::new(&start.body).unwrap();
        r.array(1).unwrap();
        let (asked, serial, model, request) =
            DeviceMfgInfo::decode(r.bytes(usize::MAX).unwrap()).unwrap();
        assert_eq!((asked, model.as_str()), (curve, "gopeer"));
        assert!(serial.starts_with("sn"));
        let csr = Csr::parse(request).unwrap();
        assert_eq!(csr.key().curve(), curve);

        let credentials = read(run, 0, "resp", 11);
        let mut r = Reader::new(&credentials.body).unwrap();
        r.array(1).unwrap();
        Header::parse(r.bytes(usize::MAX).unwrap()).unwrap();
        let hmac = read(run, 1, "req", 12);
        let mut r = Reader::new(&hmac.body).unwrap();
        r.array(1).unwrap();
        let mac = Mac::decode(&mut r).unwrap();
        assert_eq!(mac.alg().hash_alg().value_len(), curve.coordinate_len());
    }
}

/// Voucher of a run, as TO0 brought it.
fn voucher_of(run: usize) -> (Voucher, to1::To1d) {
    let kind = MessageType::To0OwnerSign;
    let sign = read(run, 3, "req", 22);
    let (to0d, to1d) = sign
        .read(kind, |r| {
            r.array(2)?;
            Ok((r.bytes(usize::MAX)?, r.raw()?))
        })
        .unwrap();
    let mut r = Reader::new(to0d).unwrap();
    r.array(3).unwrap();
    let voucher = Voucher::parse(r.raw().unwrap()).unwrap();
    let to1d = to1::To1d::parse(to1d, kind).unwrap();
    assert!(to1d.to0d_hash().matches(&[to0d]));
    (voucher, to1d)
}

#[test]
fn registration_of_another_implementation_is_accepted() {
    for (run, _) in RUNS {
        let ack = read(run, 2, "resp", 21);
        let nonce = ack
            .read(MessageType::To0HelloAck, |r| {
                r.array(1)?;
                Ok(Nonce(r.bytes_exact()?))
            })
            .unwrap();
        let sign = read(run, 3, "req", 22);
        let state = to0::ExpectOwnerSign::with_nonce(nonce);
        let offer = state.step(&sign, &Policy::default()).unwrap();
        assert_eq!(offer.voucher.entries().len(), 1);
        let accepted = read(run, 3, "resp", 23);
        let granted = accepted
            .read(MessageType::To0AcceptOwner, |r| {
                r.array(1)?;
                r.small::<u32>()
            })
            .unwrap();
        assert_eq!(offer.accept(granted), accepted);
        // Control: the same message for another nonce is refused.
        let other = to0::ExpectOwnerSign::with_nonce(Nonce([0; 16]));
        assert!(matches!(
            other.step(&sign, &Policy::default()),
            Err(Error::Check { what: "nonce", .. })
        ));
    }
}

#[test]
fn a_device_of_another_implementation_is_redirected() {
    for (run, _) in RUNS {
        let (voucher, to1d) = voucher_of(run);
        let hello = to1::HelloRv::read(&read(run, 4, "req", 30)).unwrap();
        assert_eq!(hello.guid(), voucher.guid());
        let nonce = read(run, 4, "resp", 31)
            .read(MessageType::To1HelloRvAck, |r| {
                r.array(2)?;
                let nonce = Nonce(r.bytes_exact()?);
                r.raw()?;
                Ok(nonce)
            })
            .unwrap();
        let proof = read(run, 5, "req", 32);
        let kind = MessageType::To1ProveToRv;
        let key = voucher.device_key().unwrap();
        eat::verify(kind, &proof.body, voucher.guid(), nonce, key).unwrap();
        eat::verify(kind, &proof.body, Guid([0; 16]), nonce, key).unwrap_err();
        let redirect = to1::ExpectRvRedirect
            .step(&read(run, 5, "resp", 33))
            .unwrap();
        assert_eq!(redirect.as_bytes(), to1d.as_bytes());
        redirect
            .verify(voucher.owner_key().key(), MessageType::To1RvRedirect)
            .unwrap();
    }
}

#[test]
fn ownership_is_proven_by_another_implementation() {
    for (run, curve) in RUNS {
        let (voucher, _) = voucher_of(run);
        let hello = read(run, 6, "req", 60);
        let supported = to2::HelloDevice::read(&hello);
        assert_eq!(
            supported.is_ok(),
            run == 1,
            "ECDH384 and AES-CTR are refused: {supported:?}"
        );

        let proof = Sign1::parse(&read(run, 6, "resp", 61).body).unwrap();
        let key = PublicKey::parse(proof.unprotected().get(257).unwrap()).unwrap();
        proof.verify(key.key()).unwrap();
        let mut r = Reader::new(proof.payload()).unwrap();
        r.array(8).unwrap();
        let header = Header::parse(r.bytes(usize::MAX).unwrap()).unwrap();
        assert_eq!(&header, voucher.header());
        let entries: usize = r.small().unwrap();
        let mac = Mac::decode(&mut r).unwrap();
        r.bytes_exact::<16>().unwrap();
        r.raw().unwrap();
        let exchange = EcdhParameter::parse(r.bytes(usize::MAX).unwrap());
        assert_eq!(exchange.is_ok(), curve == Curve::P256);
        assert!(Hash::decode(&mut r).unwrap().matches(&[&hello.body]));

        let mut walk = ChainWalk::new(&header, &mac);
        assert_eq!(entries, 1);
        let mut entry = read(run, 7, "resp", 63);
        entry.body.drain(..2);
        walk.step(&Entry::parse(&entry.body, 0).unwrap()).unwrap();
        assert!(walk.owner().same_key(&key));

        let nonce = to2::read_nonce(proof.unprotected().get(256), MessageType::To2ProveOvHdr);
        let (claim, headers) = eat::verify(
            MessageType::To2ProveDevice,
            &read(run, 8, "req", 64).body,
            voucher.guid(),
            nonce.unwrap(),
            voucher.device_key().unwrap(),
        )
        .unwrap();
        to2::read_nonce(headers.get(eat::HEADER_NONCE), MessageType::To2ProveDevice).unwrap();
        let claim = claim.unwrap();
        let mut r = Reader::new(&claim).unwrap();
        r.array(1).unwrap();
        if let Ok(theirs) = EcdhParameter::parse(r.bytes(usize::MAX).unwrap()) {
            let written = cbor::encode(|w| _ = w.array(1).bytes(&theirs.to_bytes()));
            assert_eq!(written, claim);
        }
    }
}

#[test]
fn sealed_messages_have_the_shape_of_their_suite() {
    use crate::crypto::{Aead, AeadSuite, SessionKey};
    use crate::wire::cose::Encrypt0;
    let aead = |suite: AeadSuite| {
        Aead::new(suite, &SessionKey::new(vec![0; suite.key_len()].into())).unwrap()
    };
    let mut seen = 0;
    for (name, message) in all() {
        if !TUNNELLED.contains(&message.kind.number()) {
            continue;
        }
        seen += 1;
        // Without the key the seal cannot open; that it got as far as the seal shows the shape.
        let broken = CoseError::Crypto(crate::crypto::CryptoError::BadSeal);
        let run: usize = name[..3].parse().unwrap();
        let a128 = Encrypt0::open(&aead(AeadSuite::A128Gcm), &message.body).unwrap_err();
        let a256 = Encrypt0::open(&aead(AeadSuite::A256Gcm), &message.body).unwrap_err();
        match run {
            1..=13 => assert_eq!((a128, a256), (broken, CoseError::WrongAlgorithm), "{name}"),
            14..=26 => assert_eq!((a128, a256), (CoseError::WrongAlgorithm, broken), "{name}"),
            _ => assert!(matches!(a128, CoseError::Shape(_)), "{name}"),
        }
    }
    assert_eq!(seen, 27);
}

#[test]
fn errors_of_others_are_read_leniently() {
    let text = cbor::encode(|w| {
        w.array(5)
            .uint(6)
            .uint(30)
            .text("not\nfound")
            .uint(1_700_000_000)
            .null();
    });
    let error = ErrorMessage::parse(&text);
    assert_eq!(
        (error.code.number(), error.previous, error.text.as_str()),
        (6, 30, "notfound")
    );
    for odd in [
        cbor::encode(|w| {
            _ = w
                .array(5)
                .uint(101)
                .uint(0)
                .text("x")
                .tag(1)
                .uint(7)
                .tag(2)
                .bytes(&[1])
        }),
        cbor::encode(|w| _ = w.array(3).uint(101).uint(0).text(&"ü".repeat(5000))),
    ] {
        let error = ErrorMessage::parse(&odd);
        assert_eq!(error.code.number(), 101);
        assert!(error.text.len() <= 256);
    }
    for nonsense in [&b""[..], b"\xa5\x6a", b"\xf6", &[0x80]] {
        assert_eq!(ErrorMessage::parse(nonsense).code.number(), 500);
    }
}
