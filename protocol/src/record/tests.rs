//! The log and its folds: round trips, refusals, and the rule for two-sided claims.

mod evidence;
mod fold;
mod learnt;
mod listing;
mod services;

use super::*;
use crate::{
    crypto::{SigningKey, VerifyingKey},
    fixture::{Dice, TestRng},
    id::{DeviceId, Guid, ServerId, SiteId},
    site_module::{ServerAddress, ServerRole},
    succession::{KeyRole, SignedSuccession},
    time::{Time, TimeQuality},
    wire::{cbor, cose::Sign1},
};

fn site() -> SiteId {
    "plant".parse().unwrap()
}

fn device() -> DeviceId {
    DeviceId::from_guid(guid(0))
}

fn guid(n: u8) -> Guid {
    Guid([n; 16])
}

fn now() -> Time {
    Time::new(1_795_305_600, TimeQuality::Floor)
}

fn keys() -> Vec<VerifyingKey> {
    let mut rng = TestRng::new(77);
    (0..3)
        .map(|_| SigningKey::generate(&mut rng).public())
        .collect()
}

fn onboarded(old: u8, new: u8, key: &VerifyingKey) -> Change {
    Change::Onboarded(Box::new(Onboarded {
        old_guid: guid(old),
        new_guid: guid(new),
        voucher: vec![new; 3],
        cps_key: key.clone(),
        evidence: Evidence {
            voucher: vec![old; 3],
            statement: None,
        },
    }))
}

fn assignment(service: &str) -> Assignment {
    Assignment {
        service: service.parse().unwrap(),
        server: None,
        application: None,
        alone: false,
    }
}

fn changes(key: &VerifyingKey) -> Vec<Change> {
    let serial = Serial::new(&[0, 1, 2, 3]).unwrap();
    vec![
        Change::VoucherAccepted {
            guid: guid(1),
            voucher: vec![1, 2, 3],
        },
        onboarded(0, 1, key),
        Change::Onboarded(Box::new(Onboarded {
            old_guid: guid(0),
            new_guid: guid(2),
            voucher: vec![],
            cps_key: key.clone(),
            evidence: Evidence {
                voucher: vec![9],
                statement: Some(vec![8, 8]),
            },
        })),
        Change::CertificateIssued {
            serial: serial.clone(),
            subject: format!("{}.devices.plant.holdfast.internal", device()),
            not_before: 1,
            not_after: u64::MAX,
            key: key.clone(),
        },
        Change::CertificateRevoked { serial },
        Change::GatewayEnrolled {
            gateway: "gw1".parse().unwrap(),
            epoch: u32::MAX,
            record_key: key.clone(),
            owner_key: key.clone(),
        },
        Change::ClientAdmitted {
            name: "scada".parse().unwrap(),
            publish: vec![],
            subscribe: vec![
                "hf/v1/plant/+/up/#".parse().unwrap(),
                "a//b".parse().unwrap(),
            ],
        },
        Change::AlternateTold {
            server: "gw1".parse().unwrap(),
        },
        Change::TimeLearnt {
            spans: vec![
                LearntSpan {
                    first: 1,
                    last: u64::MAX,
                    shift: -3,
                },
                LearntSpan {
                    first: 7,
                    last: 7,
                    shift: i64::MAX,
                },
            ],
        },
        Change::ServiceActivated {
            credential: [3; 32],
        },
        Change::ServiceOrdered(Box::new(assignment("weather"))),
        Change::ServiceStarted {
            assignment: Box::new(Assignment {
                server: Some(ServerAddress {
                    server: "gw1".parse().unwrap(),
                    role: ServerRole::Gateway,
                    name: "gw1.gateways.plant.holdfast.internal".to_owned(),
                    mqtt: vec!["10.0.0.2:8883".to_owned()],
                    https: vec![],
                }),
                application: Some("forecast-2".parse().unwrap()),
                alone: true,
                ..assignment("weather")
            }),
            serial: Serial::new(&[7]).unwrap(),
        },
        Change::ServiceEnded,
        Change::ServiceEndOrdered,
        Change::RenewalOrdered {
            serial: Serial::new(&[7, 7]).unwrap(),
        },
        Change::KeySucceeded(Box::new({
            let draw = |seed| SigningKey::generate(&mut TestRng::new(seed));
            let (role, server) = (KeyRole::Owner, "gw1".parse().unwrap());
            SignedSuccession::sign(role, &server, &draw(90), &draw(91)).unwrap()
        })),
        Change::KeyListing(Box::new(Listing {
            role: ListedAs::Installer,
            key: key.clone(),
            round: 1,
            name: Some("anna".parse().unwrap()),
        })),
        Change::KeyListing(Box::new(Listing {
            role: ListedAs::Manufacturer,
            key: key.clone(),
            round: u32::MAX,
            name: None,
        })),
        Change::DeviceVouched { guid: guid(1) },
        Change::Unknown {
            kind: 4_711,
            body: cbor::encode(|w| _ = w.map(1).int(-1).text("x")),
        },
    ]
}

#[test]
fn every_kind_round_trips_and_no_byte_may_change() {
    let key = SigningKey::generate(&mut TestRng::new(1));
    let mut author = Author::new("gw1".parse().unwrap(), 3, site());
    for (n, change) in changes(&key.public()).into_iter().enumerate() {
        let about = (n % 2 == 0).then(device);
        let signed = author.write(now(), about, change.clone(), &key).unwrap();
        let read = SignedEntry::parse(signed.as_bytes()).unwrap();
        assert_eq!((&read, read.verify(&key.public())), (&signed, Ok(())));
        assert_eq!(read.entry().change, change);
        assert_eq!(
            (read.entry().id.seq, read.entry().rank),
            (n as u64 + 1, n as u64 + 1)
        );
        for at in 0..signed.as_bytes().len() {
            let mut bad = signed.as_bytes().to_vec();
            bad[at] ^= 1;
            let refused = SignedEntry::parse(&bad).and_then(|entry| entry.verify(&key.public()));
            assert!(refused.is_err(), "byte {at} of {}", change.word());
        }
    }
    let stranger = SigningKey::generate(&mut TestRng::new(2)).public();
    let entry = author
        .write(now(), None, changes(&stranger).remove(7), &key)
        .unwrap();
    assert!(matches!(
        entry.verify(&stranger),
        Err(RecordFault::Signature(_))
    ));
}

#[test]
fn a_body_that_grew_is_read_and_forwarded_as_it_is() {
    let key = SigningKey::generate(&mut TestRng::new(1));
    let payload = cbor::encode(|w| {
        w.array(9)
            .text("holdfast/entry/1")
            .text("gw1")
            .uint(1)
            .uint(1)
            .uint(1)
            .text("plant");
        w.array(2).uint(5).uint(0).null();
        // AlternateTold with an element that this version does not know.
        w.array(2)
            .uint(7)
            .array(2)
            .text("gw2")
            .map(1)
            .uint(1)
            .text("new");
    });
    let signed = Sign1::sign(&payload, &key);
    let read = SignedEntry::parse(signed.as_bytes()).unwrap();
    let expected = Change::AlternateTold {
        server: "gw2".parse().unwrap(),
    };
    assert_eq!(read.entry().change, expected);
    assert_eq!(read.as_bytes(), signed.as_bytes());
    assert_eq!(read.verify(&key.public()), Ok(()));
}

#[test]
fn other_signed_texts_and_large_ones_are_refused() {
    let key = SigningKey::generate(&mut TestRng::new(1));
    let payload = cbor::encode(|w| {
        w.array(9)
            .text("holdfast/notice/1")
            .text("gw1")
            .uint(1)
            .uint(1)
            .uint(1)
            .text("plant");
        w.array(2).uint(5).uint(0).null();
        w.array(2).uint(7).array(1).text("gw2");
    });
    let signed = Sign1::sign(&payload, &key);
    assert_eq!(
        SignedEntry::parse(signed.as_bytes()),
        Err(RecordFault::WrongType)
    );
    let mut author = Author::new("gw1".parse().unwrap(), 1, site());
    let body = cbor::encode(|w| _ = w.bytes(&vec![0; MAX_ENTRY]));
    let large = author.write(now(), None, Change::Unknown { kind: 99, body }, &key);
    assert_eq!((large, author.last_seq()), (Err(RecordFault::TooLarge), 0));
}

#[test]
fn damaged_entries_never_panic() {
    let key = SigningKey::generate(&mut TestRng::new(1));
    let mut author = Author::new("gw1".parse().unwrap(), 3, site());
    let all: Vec<SignedEntry> = changes(&key.public())
        .into_iter()
        .map(|change| author.write(now(), Some(device()), change, &key).unwrap())
        .collect();
    let mut dice = Dice::new(4);
    for _ in 0..60_000 {
        // The signed payload itself, damaged and signed anew: the signature stops nothing here.
        let mut bad = dice.pick(&all).as_bytes().to_vec();
        for _ in 0..=dice.below(3) {
            let at = usize::try_from(dice.below(bad.len() as u64)).unwrap();
            bad[at] = u8::try_from(dice.below(256)).unwrap();
        }
        if let Ok(read) = SignedEntry::parse(&bad) {
            assert_eq!(read.as_bytes(), bad);
        }
    }
}

#[test]
fn ranks_follow_what_was_seen_and_other_sites_do_not_count() {
    let key = SigningKey::generate(&mut TestRng::new(1));
    let mut gateway = Author::new("gw1".parse().unwrap(), 1, site());
    let mut cloud = Author::new("cloud".parse().unwrap(), 1, site());
    let mut elsewhere = Author::new("cloud".parse().unwrap(), 1, "dock".parse().unwrap());
    let told = || Change::AlternateTold {
        server: "gw1".parse().unwrap(),
    };
    for _ in 0..5 {
        let entry = elsewhere.write(now(), None, told(), &key).unwrap();
        gateway.observe(entry.entry());
    }
    let first = gateway.write(now(), None, told(), &key).unwrap();
    assert_eq!(first.entry().rank, 1);
    cloud.observe(first.entry());
    let answer = cloud.write(now(), None, told(), &key).unwrap();
    assert_eq!((answer.entry().rank, answer.entry().id.seq), (2, 1));
    assert!(answer.entry().order() > first.entry().order());
    // A rank at the end of numbers does not break the author.
    let mut far = answer.entry().clone();
    far.rank = u64::MAX;
    gateway.observe(&far);
    let last = gateway.write(now(), None, told(), &key).unwrap();
    assert_eq!((last.entry().rank, last.entry().id.seq), (u64::MAX, 2));
}

#[test]
fn cursors_take_each_entry_once_whatever_comes() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let origins: Vec<ServerId> = ["cloud", "gw1"].map(|name| name.parse().unwrap()).to_vec();
        let all: Vec<EntryId> = origins
            .iter()
            .flat_map(|origin| {
                (1..=2).flat_map(move |epoch| {
                    (1..=8).map(move |seq| EntryId {
                        origin: origin.clone(),
                        epoch,
                        seq,
                    })
                })
            })
            .collect();
        let whole: Cursor = all.iter().fold(Cursor::default(), |mut cursor, id| {
            cursor.advance(id);
            cursor
        });
        let (mut cursor, mut taken) = (Cursor::default(), Vec::new());
        while cursor != whole {
            let come = dice.pick(&all).clone();
            match cursor.advance(&come) {
                Admission::Next => taken.push(come),
                Admission::Known => assert!(taken.contains(&come)),
                Admission::Gap { wanted } => assert!(wanted < come.seq),
            }
            // What a side lacks is exactly what it has not taken.
            let lacking: u64 = whole
                .beyond(&cursor)
                .iter()
                .map(|span| span.last - span.first + 1)
                .sum();
            assert_eq!(lacking as usize, all.len() - taken.len());
            assert!(cursor.beyond(&whole).is_empty());
        }
        taken.sort();
        assert_eq!(taken, all, "each once");
        assert_eq!(Cursor::from_cbor(&cursor.to_cbor()), Ok(cursor));
    }
}

#[test]
fn serial_numbers_have_one_form() {
    assert_eq!(Serial::new(&[0, 0, 7]), Serial::new(&[7]));
    assert_eq!(
        (Serial::new(&[]), Serial::new(&[0]), Serial::new(&[1; 21])),
        (None, None, None)
    );
    assert_eq!(Serial::new(&[0xab, 1]).unwrap().to_string(), "ab01");
}
