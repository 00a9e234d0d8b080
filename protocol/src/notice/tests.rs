//! Notices: signatures, direction, and the gate against replays.

use super::*;
use crate::{
    fixture::{Dice, TestRng},
    site_module::ServerRole,
};

fn server() -> ServerAddress {
    ServerAddress {
        server: "gw1".parse().unwrap(),
        role: ServerRole::Gateway,
        name: "gw1.gateways.plant.holdfast.internal".to_owned(),
        mqtt: vec!["192.168.1.2:8883".to_owned()],
        https: vec![],
    }
}

fn site() -> SiteId {
    "plant".parse().unwrap()
}

fn device() -> DeviceId {
    DeviceId::from_guid(Guid([7; 16]))
}

fn notice(issuer: &str, epoch: u32, seq: u64, body: Body) -> Notice {
    Notice {
        issuer: issuer.parse().unwrap(),
        site: site(),
        device: device(),
        stamp: Stamp { epoch, seq },
        body,
    }
}

fn bodies() -> Vec<Body> {
    let assignment = Assignment {
        service: "weather".parse().unwrap(),
        server: None,
        application: None,
        alone: false,
    };
    let elsewhere = Assignment {
        server: Some(server()),
        application: Some("forecast-2".parse().unwrap()),
        alone: true,
        ..assignment.clone()
    };
    vec![
        Body::Alternate(server()),
        Body::Service {
            assignment,
            rank: 3,
        },
        Body::Service {
            assignment: elsewhere,
            rank: 4,
        },
        Body::ServiceEnd { rank: 5 },
        Body::Renew {
            serial: Serial::new(&[1, 2]).unwrap(),
        },
        Body::Unknown { kind: 77 },
    ]
}

#[test]
fn notices_round_trip_and_no_byte_may_change() {
    let mut rng = TestRng::new(1);
    let (ours, theirs) = (
        SigningKey::generate(&mut rng),
        SigningKey::generate(&mut rng),
    );
    let keys = [theirs.public(), ours.public()];
    for body in bodies() {
        let said = notice("cloud", 1, 9, body);
        let bytes = said.sign(&ours);
        let read = |bytes: &[u8]| Notice::verify(bytes, &keys, &site(), device());
        assert_eq!(read(&bytes), Ok(said.clone()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "byte {at}");
        }
        let stranger = Notice::verify(&bytes, &keys[..1], &site(), device());
        assert_eq!(stranger, Err(NoticeFault::Signature));
        let elsewhere = Notice::verify(&bytes, &keys, &"dock".parse().unwrap(), device());
        assert_eq!(elsewhere, Err(NoticeFault::Misdirected));
        let other = DeviceId::from_guid(Guid([8; 16]));
        assert_eq!(
            Notice::verify(&bytes, &keys, &site(), other),
            Err(NoticeFault::Misdirected)
        );
    }
    assert_eq!(
        Notice::verify(&vec![0; MAX_NOTICE + 1], &keys, &site(), device()),
        Err(NoticeFault::TooLarge)
    );
}

#[test]
fn what_the_key_signed_for_another_purpose_is_no_notice() {
    let mut rng = TestRng::new(2);
    let key = SigningKey::generate(&mut rng);
    let payload = cbor::encode(|w| {
        w.array(8)
            .text("holdfast/entry/1")
            .text("cloud")
            .text("plant")
            .bytes(&[7; 16]);
        w.uint(1).uint(1).uint(77).null();
    });
    let signed = Sign1::sign(&payload, &key);
    let verdict = Notice::verify(signed.as_bytes(), &[key.public()], &site(), device());
    assert_eq!(verdict, Err(NoticeFault::WrongType));
}

/// Whatever order notices come in, however often, and wherever a crash falls between storing and
/// acting: no notice is acted on after a newer one of its issuer and kind, and the newest is.
#[test]
fn replays_and_disorder_move_nothing() {
    let issuers = ["cloud", "gw1"];
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let mut marks = Marks::default();
        let mut acted: BTreeMap<(ServerId, u64), Vec<Stamp>> = BTreeMap::new();
        let mut newest: BTreeMap<(ServerId, u64), Stamp> = BTreeMap::new();
        for _ in 0..60 {
            let (epoch, seq) = (1 + u32::try_from(dice.below(2)).unwrap(), dice.below(12));
            let come = notice(
                dice.pick::<&str>(&issuers),
                epoch,
                seq,
                dice.pick(&bodies()).clone(),
            );
            let key = (come.issuer.clone(), come.body.lane());
            match marks.gate(&come) {
                Gate::Store(next) => {
                    // What is stored survives a restart.
                    marks = Marks::from_cbor(&next.to_cbor()).unwrap();
                    acted.entry(key.clone()).or_default().push(come.stamp);
                }
                Gate::Repeat => assert_eq!(newest[&key], come.stamp),
                Gate::Stale => assert!(newest[&key] > come.stamp),
                Gate::Ignore => {
                    assert!(matches!(come.body, Body::Unknown { .. }));
                    continue;
                }
            }
            let highest = newest.entry(key).or_insert(come.stamp);
            *highest = (*highest).max(come.stamp);
        }
        for (key, stamps) in &acted {
            assert!(
                stamps.windows(2).all(|pair| pair[0] < pair[1]),
                "seed {seed}: {stamps:?}"
            );
            assert_eq!(stamps.last(), newest.get(key));
        }
    }
}

#[test]
fn marks_are_bounded() {
    let mut marks = Marks::default();
    for n in 0..=MAX_MARKS {
        let come = notice(&format!("s{n}"), 1, 1, Body::Alternate(server()));
        match marks.gate(&come) {
            Gate::Store(next) => marks = next,
            other => assert_eq!((n, other), (MAX_MARKS, Gate::Ignore)),
        }
    }
    assert_eq!(Marks::from_cbor(&marks.to_cbor()), Ok(marks));
}
