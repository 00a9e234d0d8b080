//! Mutated input for every parser, bounded in time: nothing may panic (tests only).

use std::time::{Duration, Instant};

use super::message::{Message, MessageType};
use super::service_info::{DevModInbox, Inbox, Item, Outbox};
use super::{ErrorMessage, di, to0, to1, to2};
use crate::credential::DeviceCredential;
use crate::crypto::{Aead, AeadSuite, EcdhParameter, EcdhSecret, SessionKey, SigningKey};
use crate::csr::Csr;
use crate::fixture::{TestRng, born, samples};
use crate::key::PublicKey;
use crate::rv::RendezvousInfo;
use crate::voucher::{Entry, Header, Policy, Voucher};
use crate::wire::cbor::{self, Reader};
use crate::wire::cose::{Encrypt0, Sign1};

/// How long to try unless `HOLDFAST_FUZZ_SECONDS` says otherwise.
const TIME: Duration = Duration::from_secs(5);
/// Fewer tries than this would mean that something hangs.
const LEAST_TRIES: usize = 2_000;

fn time() -> Duration {
    let wished = std::env::var("HOLDFAST_FUZZ_SECONDS").ok();
    let seconds = wished.and_then(|text| text.parse().ok());
    seconds.map_or(TIME, Duration::from_secs)
}

type Parser<'a> = Box<dyn Fn(&[u8]) -> bool + 'a>;

/// Changes a few things in `text`: bits, lengths, order, ends.
fn mutate(text: &[u8], rng: &mut TestRng) -> Vec<u8> {
    let mut text = text.to_vec();
    for _ in 0..=rng.below(3) {
        if text.is_empty() {
            text.push(0);
        }
        let at = rng.below(text.len());
        let until = at + rng.below((text.len() - at).min(64) + 1);
        match rng.below(8) {
            0 => text[at] ^= 1 << rng.below(8),
            1 => text[at] = rng.below(256) as u8,
            2 => text.truncate(at),
            3 => _ = text.drain(at..until),
            4 => {
                let part = text[at..until].to_vec();
                text.splice(at..at, part);
            }
            5 => text.insert(at, [0xff, 0x00, 0x1b, 0x5b, 0x9b, 0xbb, 0xdb][rng.below(7)]),
            6 => text[at] = text[at].wrapping_add(1),
            _ => text.extend_from_slice(&[0x9f; 8][..rng.below(8)]),
        }
    }
    text
}

/// Parsers by name, each with a text that it accepts.
fn parsers(signed: &SigningKey) -> Vec<(&'static str, Vec<u8>, Parser<'_>)> {
    let mut rng = TestRng::new(60);
    let born = born(&mut rng);
    let owner = SigningKey::generate(&mut rng);
    let next = PublicKey::x509(&owner.public());
    let voucher = born.voucher.extend(&next, &born.manufacturer).unwrap();
    let policy = Policy::default;
    let sample = |name: &str| std::fs::read(samples("transcripts").join(name)).unwrap();
    let message = |kind: MessageType, body: &[u8]| Message::new(kind, body.to_vec());
    let key = SessionKey::new(vec![1; 16].into());
    let aead = Aead::new(AeadSuite::A128Gcm, &key).unwrap();
    let sealed = Encrypt0::seal(&aead, b"text", &mut rng);
    let exchange = EcdhSecret::generate(&mut rng).parameter().to_bytes();
    let redirect = sample("006-resp-33.cbor");
    let entry = voucher.entries()[0].as_bytes().to_vec();
    let mut outbox = Outbox::default();
    outbox
        .push("devmod", "modules", vec![0x83, 0, 1, 0x61, 0x61])
        .unwrap();
    outbox
        .push("a", "b", cbor::encode(|w| _ = w.bytes(&[0; 100])))
        .unwrap();
    let info = outbox.fill(256);
    vec![
        (
            "cbor",
            sample("007-resp-61.cbor"),
            Box::new(|text: &[u8]| cbor::check(text).is_ok()),
        ),
        (
            "voucher",
            voucher.as_bytes().to_vec(),
            Box::new(move |text: &[u8]| {
                Voucher::parse(text).is_ok_and(|voucher| voucher.verify(&policy()).is_ok())
            }),
        ),
        (
            "pem",
            voucher.to_pem().into_bytes(),
            Box::new(|text: &[u8]| Voucher::read(text).is_ok()),
        ),
        (
            "header",
            voucher.header().as_bytes().to_vec(),
            Box::new(|text: &[u8]| Header::parse(text).is_ok()),
        ),
        (
            "entry",
            entry,
            Box::new(|text: &[u8]| Entry::parse(text, 0).is_ok()),
        ),
        // Behind a good signature, where a hostile owner would write.
        (
            "entry content",
            {
                Sign1::parse(voucher.entries()[0].as_bytes())
                    .unwrap()
                    .payload()
                    .to_vec()
            },
            Box::new(move |text: &[u8]| {
                Entry::parse(Sign1::sign(text, signed).as_bytes(), 0).is_ok()
            }),
        ),
        (
            "key",
            next.as_bytes().to_vec(),
            Box::new(|text: &[u8]| PublicKey::parse(text).is_ok()),
        ),
        (
            "x5chain",
            x5chain(&voucher),
            Box::new(|text: &[u8]| PublicKey::parse(text).is_ok()),
        ),
        (
            "rendezvous",
            voucher.rendezvous().as_bytes().to_vec(),
            Box::new(|text: &[u8]| {
                RendezvousInfo::parse(text).is_ok_and(|info| {
                    info.device_contacts().len() + info.owner_contacts().len() < 64
                })
            }),
        ),
        (
            "credential",
            born.credential.encode().to_vec(),
            Box::new(|text: &[u8]| DeviceCredential::decode(text).is_ok()),
        ),
        (
            "csr",
            crate::csr::request("x", &owner),
            Box::new(|text: &[u8]| Csr::parse(text).is_ok()),
        ),
        (
            "sign1",
            redirect.clone(),
            Box::new(|text: &[u8]| Sign1::parse(text).is_ok()),
        ),
        (
            "encrypt0",
            sealed,
            Box::new(move |text: &[u8]| Encrypt0::open(&aead, text).is_ok()),
        ),
        (
            "exchange",
            exchange,
            Box::new(|text: &[u8]| EcdhParameter::parse(text).is_ok()),
        ),
        (
            "error",
            cbor::encode(|w| _ = w.array(5).uint(6).uint(30).text("x").null().null()),
            Box::new(|text: &[u8]| ErrorMessage::parse(text).text.len() <= 256),
        ),
        (
            "10",
            {
                let (_, start) = di::start("s", "m", owner.clone()).unwrap();
                start.body
            },
            Box::new(move |text: &[u8]| {
                di::AppStart::read(&message(MessageType::DiAppStart, text)).is_ok()
            }),
        ),
        ("22", sample("004-req-22.cbor"), {
            let nonce = super::Nonce(sample("003-resp-21.cbor")[2..18].try_into().unwrap());
            Box::new(move |text: &[u8]| {
                let message = message(MessageType::To0OwnerSign, text);
                to0::ExpectOwnerSign::with_nonce(nonce)
                    .step(&message, &policy())
                    .is_ok()
            })
        }),
        (
            "30",
            sample("005-req-30.cbor"),
            Box::new(move |text: &[u8]| {
                to1::HelloRv::read(&message(MessageType::To1HelloRv, text)).is_ok()
            }),
        ),
        (
            "33",
            redirect,
            Box::new(|text: &[u8]| to1::To1d::from_bytes(text).is_ok()),
        ),
        (
            "60",
            sample("007-req-60.cbor"),
            Box::new(move |text: &[u8]| {
                to2::HelloDevice::read(&message(MessageType::To2HelloDevice, text)).is_ok()
            }),
        ),
        (
            "service info",
            info,
            Box::new(|text: &[u8]| {
                let mut inbox = Inbox::default();
                let mut take = |_| Reader::new(text).is_ok_and(|mut r| inbox.take(&mut r).is_ok());
                take(0) && take(1)
            }),
        ),
        (
            "devmod",
            vec![0x83, 0, 1, 0x61, 0x61],
            Box::new(|text: &[u8]| {
                let item = Item {
                    module: "devmod".into(),
                    message: "modules".into(),
                    value: text.to_vec(),
                };
                DevModInbox::default().take(&item).is_ok()
            }),
        ),
    ]
}

/// The device's certificates as an X5CHAIN key.
fn x5chain(voucher: &Voucher) -> Vec<u8> {
    let chain = voucher.device_chain().unwrap();
    cbor::encode(|w| {
        w.array(3).uint(10).uint(2).array(chain.len());
        chain.iter().for_each(|der| _ = w.bytes(der));
    })
}

#[test]
fn no_parser_panics_on_mutated_input() {
    let signed = SigningKey::generate(&mut TestRng::new(61));
    let parsers = parsers(&signed);
    for (name, text, parse) in &parsers {
        assert!(parse(text), "{name}: the text itself is good");
    }
    let mut rng = TestRng::new(62);
    let (mut tries, mut refused) = (0_usize, 0_usize);
    let end = Instant::now() + time();
    while Instant::now() < end {
        for (_, text, parse) in &parsers {
            tries += 1;
            refused += usize::from(!parse(&mutate(text, &mut rng)));
        }
    }
    assert!(tries > LEAST_TRIES, "{tries} tries");
    // Most mutations hurt; were none refused, the parsers would not look.
    assert!(refused * 2 > tries, "{refused} of {tries} refused");
}
