//! The device: every event in every state, notices replayed and forged, kills at every store.

use super::*;
use crate::{
    name::Party,
    notice::{Body, Notice, Stamp},
    record::Serial,
};

fn notice(seq: u64, rank: u64, name: &str) -> Notice {
    Notice {
        issuer: "gw1".parse().unwrap(),
        site: site(),
        device: device(),
        stamp: Stamp { epoch: 1, seq },
        body: Body::Service {
            assignment: assignment(name),
            rank,
        },
    }
}

fn end(seq: u64, rank: u64) -> Notice {
    Notice {
        body: Body::ServiceEnd { rank },
        ..notice(seq, rank, "none")
    }
}

/// A certificate for the device and a service, over a key.
fn certificate(name: &str, who: DeviceId, key: &SigningKey) -> Vec<u8> {
    let party = Party::Service {
        device: who,
        service: service(name),
        site: site(),
    };
    let issuer = rcgen::Issuer::new(
        rcgen::CertificateParams::default(),
        rcgen::KeyPair::generate().unwrap(),
    );
    let mut params = rcgen::CertificateParams::new(vec![party.dns(&domain())]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let spki = rcgen::SubjectPublicKeyInfo::from_der(&key.public().to_spki_der()).unwrap();
    params.signed_by(&spki, &issuer).unwrap().der().to_vec()
}

fn granted(name: &str, key: &SigningKey) -> Answer {
    Answer::Granted {
        service: service(name),
        certificate: certificate(name, device(), key),
        chain: vec![vec![1]],
    }
}

fn on(state: &mut Device, event: Event) -> bool {
    let (site, domain) = (site(), domain());
    let home = Home {
        device: device(),
        site: &site,
        domain: &domain,
    };
    let changed = state.on(event, home);
    // A store and a kill after each event.
    *state = Device::from_cbor(&state.to_cbor()).unwrap();
    changed
}

fn activated() -> Event {
    Event::Answer(Answer::Activated {
        credential: credential(1),
        service: None,
    })
}

fn key(seed: u64) -> SigningKey {
    SigningKey::generate(&mut TestRng::new(seed))
}

/// What is to be done, in one word.
fn todo(state: &Device) -> String {
    match state.next(device()) {
        Next::Rest => "rest".into(),
        Next::MakeKey => "make key".into(),
        Next::Try(new) => format!("try {}", new.assignment.service),
        Next::Ask(request) => match request.kind {
            RequestKind::Activate { .. } => "activate".into(),
            RequestKind::Update { service, .. } => format!("update {service}"),
            RequestKind::Report { outcome, .. } => format!("report {outcome:?}"),
            RequestKind::Poll => "poll".into(),
        },
    }
}

/// The states in which a device can be, in the order of a good run.
fn run() -> Vec<Device> {
    let mut states = vec![Device::default()];
    let mut state = Device::default();
    assert_eq!(state.hear(&notice(1, 1, "civil")), Heard::Taken);
    states.push(state.clone());
    let events = [
        activated(),
        Event::Key(key(1)),
        Event::Answer(granted("civil", &key(1))),
        Event::Tried(Ok(())),
        Event::Answer(Answer::Noted),
    ];
    for event in events {
        assert!(on(&mut state, event.clone()), "{event:?}");
        states.push(state.clone());
    }
    states
}

#[test]
fn every_event_in_every_state() {
    let states = run();
    let words: Vec<_> = states.iter().map(todo).collect();
    let good = [
        "rest",
        "activate",
        "make key",
        "update civil",
        "try civil",
        "report Runs",
        "rest",
    ];
    assert_eq!(words, good);
    let refused = |refusal| Event::Answer(Answer::from(refusal));
    let events = [
        ("activated", activated()),
        ("key", Event::Key(key(1))),
        ("granted", Event::Answer(granted("civil", &key(1)))),
        ("worked", Event::Tried(Ok(()))),
        ("failed", Event::Tried(Err("no".into()))),
        ("noted", Event::Answer(Answer::Noted)),
        ("notice", Event::Answer(Answer::Notice(None))),
        ("later", refused(Refusal::Unavailable)),
        ("unknown here", refused(Refusal::UnknownDevice)),
        ("not activated", refused(Refusal::NotActivated)),
        ("wrong credential", refused(Refusal::WrongCredential)),
        ("wrong service", refused(Refusal::WrongService)),
        ("wrong serial", refused(Refusal::WrongSerial)),
    ];
    // What changes something, and where it leads; every other pair changes nothing.
    let moves = [
        (1, "activated", "make key"),
        (1, "not activated", "activate"),
        (1, "wrong credential", "rest"),
        (1, "wrong serial", "rest"),
        (2, "key", "update civil"),
        (2, "not activated", "activate"),
        (2, "wrong credential", "rest"),
        (2, "wrong serial", "rest"),
        (3, "granted", "try civil"),
        (3, "not activated", "activate"),
        (3, "wrong credential", "rest"),
        (3, "wrong serial", "rest"),
        (4, "worked", "report Runs"),
        (4, "failed", "report RolledBack"),
        (5, "noted", "rest"),
        (5, "not activated", "rest"),
        (5, "wrong credential", "rest"),
        (5, "wrong serial", "rest"),
    ];
    for (at, state) in states.iter().enumerate() {
        for (name, event) in &events {
            let mut after = state.clone();
            let before = todo(state);
            let changed = on(&mut after, event.clone());
            let expected = moves.iter().find(|row| (row.0, row.1) == (at, *name));
            assert_eq!(changed, expected.is_some(), "{name} at {before}");
            let leads = expected.map_or(before.as_str(), |row| row.2);
            assert_eq!(todo(&after), leads, "{name} at {before}");
            let works = at >= 5 || (at, *name) == (4, "worked");
            assert_eq!(after.running().is_some(), works, "{name} at {before}");
        }
    }
}

#[test]
fn a_certificate_that_does_not_fit_is_not_tried() {
    let asking = run().remove(3);
    let stranger = DeviceId::from_guid(Guid([9; 16]));
    let with = |certificate: Vec<u8>, name: &str| Answer::Granted {
        service: service(name),
        certificate,
        chain: vec![],
    };
    let bad = [
        ("another key", granted("civil", &key(2))),
        ("another service", granted("soil", &key(1))),
        (
            "another device",
            with(certificate("civil", stranger, &key(1)), "civil"),
        ),
        (
            "another word",
            with(certificate("civil", device(), &key(1)), "soil"),
        ),
        ("no certificate", with(vec![1, 2, 3], "civil")),
    ];
    for (name, answer) in bad {
        let mut state = asking.clone();
        assert!(on(&mut state, Event::Answer(answer)), "{name}");
        assert_eq!(todo(&state), "rest", "{name}");
        let said = state.reported().unwrap();
        assert_eq!(said.state, State::Refused, "{name}: {}", said.detail);
    }
}

/// The keys go, the register hears of it if it takes the service to run, and old notices do not bring it back.
#[test]
fn an_end_of_use_is_carried_out_in_any_state() {
    let reports = [false, false, false, false, true, true, true];
    for (at, (state, reports)) in run().into_iter().zip(reports).enumerate() {
        let mut after = state.clone();
        assert_eq!(after.hear(&end(2, 2)), Heard::Taken, "{at}");
        after = Device::from_cbor(&after.to_cbor()).unwrap();
        assert!(after.running().is_none());
        let word = if reports { "report Ended" } else { "rest" };
        assert_eq!(todo(&after), word, "{at}");
        assert_eq!(
            after.reported().map(|said| said.state),
            (at > 0).then_some(State::Ended)
        );
        if let Some(running) = state.running() {
            let (key, text) = (running.key.to_pkcs8_der(), after.to_cbor());
            assert!(
                !text.windows(key.len()).any(|part| part == &key[..]),
                "the key is gone"
            );
        }
        assert_eq!(after.hear(&end(2, 2)), Heard::Repeat);
        assert_eq!(after.hear(&end(3, 2)), Heard::Known);
        // Never seen before, but ordered before the end.
        assert_eq!(after.hear(&notice(4, 1, "civil")), Heard::Superseded);
        assert_eq!(after.hear(&notice(1, 9, "soil")), Heard::Stale);
        if reports {
            assert!(on(&mut after, Event::Answer(Answer::Noted)));
        }
        assert_eq!(todo(&after), "rest");
        // Its next life.
        assert_eq!(after.hear(&notice(5, 5, "weather")), Heard::Taken);
        let next = if after.is_activated() {
            "make key"
        } else {
            "activate"
        };
        assert_eq!(todo(&after), next);
    }
}

#[test]
fn a_replayed_notice_moves_nothing_in_any_state() {
    for state in run().into_iter().skip(1) {
        let mut after = state.clone();
        assert_eq!(after.hear(&notice(1, 1, "soil")), Heard::Repeat);
        assert_eq!(after.hear(&notice(0, 9, "soil")), Heard::Stale);
        let alternate = Notice {
            body: Body::Unknown { kind: 9 },
            ..notice(5, 5, "soil")
        };
        assert_eq!(after.hear(&alternate), Heard::Ignored);
        assert_eq!(*after.to_cbor(), *state.to_cbor());
    }
}

#[test]
fn the_order_of_the_highest_rank_is_carried_out_whoever_tells_it() {
    let mut state = run().remove(6);
    let by = |issuer: &str, seq, rank, name| Notice {
        issuer: issuer.parse().unwrap(),
        ..notice(seq, rank, name)
    };
    assert_eq!(state.hear(&by("cloud", 1, 1, "civil")), Heard::Known);
    assert_eq!(state.hear(&by("cloud", 2, 7, "weather")), Heard::Taken);
    assert_eq!(state.hear(&by("gw1", 2, 4, "soil")), Heard::Superseded);
    assert_eq!(state.hear(&by("gw1", 3, 7, "weather")), Heard::Known);
    assert_eq!(todo(&state), "make key");
    assert_eq!(state.reported().unwrap().assignment, assignment("weather"));
    // A newer order in the middle of a change: the half-done one is left.
    assert!(on(&mut state, Event::Key(key(5))));
    assert!(on(&mut state, Event::Answer(granted("weather", &key(5)))));
    assert_eq!(state.hear(&by("gw1", 4, 8, "soil")), Heard::Taken);
    assert_eq!(todo(&state), "make key");
    assert!(!on(&mut state, Event::Tried(Ok(()))));
    assert_eq!(state.running().unwrap().assignment, assignment("civil"));
    // The same service anew renews its key and certificate.
    assert_eq!(state.hear(&by("gw1", 5, 9, "civil")), Heard::Taken);
}

#[test]
fn what_fails_leaves_the_old_key_and_what_works_drops_it() {
    let old = run().remove(6);
    let serial = |state: &Device| state.running().unwrap().serial.clone();
    let change = |fails: bool| {
        let mut state = old.clone();
        assert_eq!(state.hear(&notice(2, 2, "weather")), Heard::Taken);
        assert!(on(&mut state, Event::Key(key(2))));
        assert!(on(&mut state, Event::Answer(granted("weather", &key(2)))));
        assert_eq!(serial(&state), serial(&old), "not before it was tried");
        let tried = if fails {
            Err("nobody there".into())
        } else {
            Ok(())
        };
        assert!(on(&mut state, Event::Tried(tried)));
        state
    };
    let (back, new) = (change(true), change(false));
    assert_eq!(serial(&back), serial(&old));
    assert_eq!(back.reported().unwrap().detail, "nobody there");
    assert_eq!(todo(&back), "report RolledBack");
    assert_ne!(serial(&new), serial(&old));
    let text = new.to_cbor();
    let former = old.running().unwrap().key.to_pkcs8_der();
    let holds = |part: &[u8]| text.windows(part.len()).any(|window| window == part);
    assert!(!holds(&former), "the old key is gone from the store");
    assert!(holds(&new.running().unwrap().key.to_pkcs8_der()));
}

/// The steps of a change for the service that runs: with a fresh key, the old one last, and what was
/// told of the last order stays.
#[test]
fn a_renewal_goes_the_way_of_a_change_and_keeps_the_old_key_until_the_new_one_works() {
    for (at, state) in run().into_iter().enumerate() {
        assert_eq!(state.clone().renew(), at == 6, "only what runs, at rest");
    }
    let old = run().remove(6);
    let serial = |state: &Device| state.running().unwrap().serial.clone();
    let renew = |tried: Result<(), String>| {
        let mut state = old.clone();
        assert!(state.renew() && !state.clone().renew());
        state = Device::from_cbor(&state.to_cbor()).unwrap();
        assert_eq!(todo(&state), "make key");
        assert!(on(&mut state, Event::Key(key(2))));
        assert_eq!(todo(&state), "update civil");
        assert!(on(&mut state, Event::Answer(granted("civil", &key(2)))));
        assert_eq!(todo(&state), "try civil");
        assert_eq!(serial(&state), serial(&old), "not before it was tried");
        assert!(state.is_renewing());
        assert!(on(&mut state, Event::Tried(tried)));
        assert!(!state.is_renewing());
        assert_eq!(state.reported(), old.reported());
        state
    };
    let (new, back) = (renew(Ok(())), renew(Err("nobody there".into())));
    assert_eq!(todo(&new), "report Runs");
    assert_eq!(new.running().unwrap().key.public(), key(2).public());
    assert_eq!(todo(&back), "report RolledBack");
    assert_eq!(serial(&back), serial(&old));
    for mut state in [new, back] {
        assert!(on(&mut state, Event::Answer(Answer::Noted)));
        assert!(state.renew(), "and again when it is due");
    }
}

#[test]
fn a_renewal_that_is_refused_leaves_all_as_it_was_and_an_order_comes_first() {
    let old = run().remove(6);
    let asking = |old: &Device| {
        let mut state = old.clone();
        assert!(state.renew() && on(&mut state, Event::Key(key(2))));
        state
    };
    let refused = |state: &mut Device, refusal| on(state, Event::Answer(Answer::from(refusal)));
    for refusal in [
        Refusal::WrongService,
        Refusal::NoService,
        Refusal::UnknownDevice,
        Refusal::BadRequest,
    ] {
        let mut state = asking(&old);
        assert!(refused(&mut state, refusal));
        assert_eq!(*state.to_cbor(), *old.to_cbor(), "{refusal:?}");
    }
    let mut state = asking(&old);
    assert!(!refused(&mut state, Refusal::Unavailable));
    assert_eq!(todo(&state), "update civil", "asked again");
    // Another order, and the end of use, in the middle of it.
    let mut other = state.clone();
    assert_eq!(other.hear(&notice(2, 2, "weather")), Heard::Taken);
    assert!(!other.is_renewing() && todo(&other) == "make key");
    assert!(on(&mut other, Event::Key(key(3))));
    assert_eq!(todo(&other), "update weather");
    assert_eq!(state.hear(&end(2, 2)), Heard::Taken);
    assert!(!state.is_renewing() && !state.renew());
    // After an order that failed, what runs is renewed, not what was ordered; the report stays.
    assert!(on(&mut other, Event::Answer(granted("weather", &key(3)))));
    assert!(on(&mut other, Event::Tried(Err("no".into()))));
    assert!(on(&mut other, Event::Answer(Answer::Noted)));
    let mut renewed = asking(&other);
    assert_eq!(todo(&renewed), "update civil");
    assert!(on(&mut renewed, Event::Answer(granted("civil", &key(2)))));
    assert!(on(&mut renewed, Event::Tried(Ok(()))));
    assert_eq!(renewed.running().unwrap().assignment, assignment("civil"));
    assert_eq!(renewed.reported(), other.reported());
}

/// A device of ours against a register in words: lots of orders, lost answers, kills between any two
/// stores, and passing faults. It always comes to rest on the highest order.
#[test]
fn a_device_always_comes_to_rest_on_the_highest_order() {
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let mut state = Device::default();
        let names = ["civil", "weather", "soil"];
        let (mut seq, mut last, mut keys) = (0, "", seed * 1000);
        for _ in 0..60 {
            if dice.chance(12) || last.is_empty() {
                seq += 1;
                last = *dice.pick::<&str>(&names);
                state.hear(&notice(seq, seq, last));
                state.hear(&notice(dice.below(seq + 1), 99, "forged"));
            }
            if dice.chance(4) && state.renew() {
                state = Device::from_cbor(&state.to_cbor()).unwrap();
            }
            step(&mut state, &mut dice, &mut keys, 40);
        }
        for _ in 0..8 {
            step(&mut state, &mut dice, &mut keys, 0);
        }
        assert_eq!(todo(&state), "rest", "seed {seed}");
        let said = state.reported().unwrap();
        assert_eq!(said.assignment, assignment(last), "seed {seed}");
        match said.state {
            State::Runs => {
                let running = state.running().unwrap();
                assert_eq!(running.assignment, assignment(last), "seed {seed}");
            }
            other => assert_eq!(other, State::RolledBack, "seed {seed}"),
        }
    }
}

/// Does what is to be done, or is killed before what came of it is stored.
fn step(state: &mut Device, dice: &mut Dice, keys: &mut u64, percent: u64) {
    let event = match state.next(device()) {
        Next::Rest => return,
        Next::MakeKey => {
            *keys += 1;
            Event::Key(key(*keys))
        }
        Next::Try(_) if dice.chance(percent) => Event::Tried(Err("lot".into())),
        Next::Try(_) => Event::Tried(Ok(())),
        Next::Ask(_) if dice.chance(percent / 2) => Event::Answer(Refusal::Unavailable.into()),
        Next::Ask(request) => Event::Answer(match request.kind {
            RequestKind::Activate { .. } => Answer::Activated {
                credential: credential(*keys),
                service: None,
            },
            RequestKind::Update { service, csr, .. } => {
                let csr = crate::csr::Csr::parse(&csr).unwrap();
                let seed = (0..=*keys)
                    .rev()
                    .find(|seed| key(*seed).public() == *csr.key());
                granted(service.as_str(), &key(seed.unwrap()))
            }
            RequestKind::Report { .. } | RequestKind::Poll => Answer::Noted,
        }),
    };
    if !dice.chance(percent / 2) {
        on(state, event);
    }
}

#[test]
fn a_damaged_store_is_refused_and_never_panics() {
    let mut dice = Dice::new(9);
    let mut renewing = run().remove(6);
    assert!(renewing.renew());
    for state in run().into_iter().chain([renewing]) {
        let bytes = state.to_cbor();
        for cut in 0..bytes.len() {
            assert!(Device::from_cbor(&bytes[..cut]).is_err());
        }
        for _ in 0..300 {
            let mut bad = bytes.to_vec();
            let at = usize::try_from(dice.below(bad.len() as u64)).unwrap();
            bad[at] ^= 1 << dice.below(8);
            let _ = Device::from_cbor(&bad);
        }
    }
    assert_eq!(Serial::new(&[]), None);
}
