//! Both sides by every pair of state and message, and the device killed at every store.

mod device;
mod register;

use super::*;
use crate::{
    crypto::SigningKey,
    fixture::{Dice, TestRng},
    id::{DeviceId, Domain, Guid, ServiceId, SiteId},
    record::Assignment,
};

fn device() -> DeviceId {
    DeviceId::from_guid(Guid([7; 16]))
}

fn site() -> SiteId {
    "plant".parse().unwrap()
}

fn domain() -> Domain {
    "holdfast.internal".parse().unwrap()
}

fn service(name: &str) -> ServiceId {
    name.parse().unwrap()
}

fn assignment(name: &str) -> Assignment {
    Assignment {
        service: service(name),
        server: None,
        application: None,
        alone: false,
    }
}

fn credential(seed: u64) -> Credential {
    Credential::generate(&mut TestRng::new(seed))
}

fn requests() -> Vec<Request> {
    let request = |kind| Request {
        device: device(),
        kind,
    };
    vec![
        request(RequestKind::Activate { service: None }),
        request(RequestKind::Activate {
            service: Some(service("weather")),
        }),
        request(RequestKind::Update {
            service: service("weather"),
            credential: credential(1),
            csr: vec![1, 2, 3],
        }),
        request(RequestKind::Report {
            serial: crate::record::Serial::new(&[9]).unwrap(),
            outcome: Outcome::RolledBack,
        }),
        request(RequestKind::Poll),
    ]
}

#[test]
fn requests_round_trip_and_no_byte_may_change() {
    let key = SigningKey::generate(&mut TestRng::new(3));
    let other = SigningKey::generate(&mut TestRng::new(4));
    for request in requests() {
        let bytes = request.sign(&key);
        let read = |bytes: &[u8], key: &SigningKey| {
            let signed = SignedRequest::parse(bytes).ok()?;
            signed.verify(&key.public()).ok()
        };
        assert_eq!(read(&bytes, &key), Some(request));
        let refused = SignedRequest::parse(&bytes).unwrap();
        let refused = refused.verify(&other.public());
        assert_eq!(refused, Err(Refusal::Integrity));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(read(&bad, &key), None, "byte {at}");
            assert!(SignedRequest::parse(&bytes[..at]).is_err());
        }
    }
}

#[test]
fn answers_round_trip_and_rubbish_is_refused() {
    let refusals = (1..=13).map(|code| match code {
        13 => Refusal::Unknown(77),
        code => {
            let known = Refusal::from_code(code);
            assert!(!matches!(known, Refusal::Unknown(_)), "{code}");
            known
        }
    });
    let mut answers: Vec<Answer> = refusals.map(Answer::from).collect();
    answers.extend([
        Answer::Activated {
            credential: credential(1),
            service: None,
        },
        Answer::Activated {
            credential: credential(1),
            service: Some(service("weather")),
        },
        Answer::Granted {
            service: service("weather"),
            certificate: vec![1; 20],
            chain: vec![vec![2], vec![3; 9]],
        },
        Answer::Noted,
        Answer::Notice(None),
        Answer::Notice(Some(vec![5])),
    ]);
    let mut dice = Dice::new(5);
    for answer in answers {
        let bytes = answer.to_cbor();
        assert_eq!(Answer::from_cbor(&bytes).unwrap(), answer);
        for cut in 0..bytes.len() {
            assert!(Answer::from_cbor(&bytes[..cut]).is_err());
        }
        for _ in 0..200 {
            let mut bad = bytes.clone();
            let at = usize::try_from(dice.below(bad.len() as u64)).unwrap();
            bad[at] = u8::try_from(dice.below(256)).unwrap();
            let _ = Answer::from_cbor(&bad);
        }
    }
    assert!(Answer::from_cbor(&vec![0; MAX_MESSAGE + 1]).is_err());
}

#[test]
fn a_credential_is_a_uuid_that_nothing_prints() {
    let one = credential(1);
    let bytes = one.expose();
    assert_eq!(
        (bytes[6] >> 4, bytes[8] >> 6),
        (4, 2),
        "version and variant"
    );
    assert_eq!(format!("{one:?}"), "Credential(..)");
    assert_ne!(one.digest(), credential(2).digest());
    assert_eq!(Credential::from_bytes(*bytes).digest(), one.digest());
}
