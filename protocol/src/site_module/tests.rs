//! Statements, configurations and certificate texts: round trips, refusals, mutations.

use super::*;
use crate::fixture::{Dice, TestRng};

fn statement(key: &SigningKey) -> Statement {
    Statement {
        guid: Guid([7; 16]),
        cps_key: key.public(),
        server: "cloud".parse().unwrap(),
        nonce: [9; 16],
    }
}

fn server(role: ServerRole) -> ServerAddress {
    ServerAddress {
        server: "gw1".parse().unwrap(),
        role,
        name: "gw1.gateways.plant.holdfast.internal".to_owned(),
        mqtt: vec!["192.168.1.2:8883".to_owned(), "[fd00::2]:8883".to_owned()],
        https: vec!["192.168.1.2:8443".to_owned()],
    }
}

fn config(rng: &mut TestRng) -> SiteConfig {
    SiteConfig {
        device: DeviceId::from_guid(Guid([7; 16])),
        site: "plant".parse().unwrap(),
        domain: "holdfast.internal".parse().unwrap(),
        server: "cloud".parse().unwrap(),
        anchors: vec![vec![1, 2, 3]],
        chain: vec![vec![4; 700], vec![5]],
        notice_keys: vec![
            SigningKey::generate(rng).public(),
            SigningKey::generate(rng).public(),
        ],
        servers: vec![server(ServerRole::Gateway), server(ServerRole::Cloud)],
        time: Time::new(1_795_305_600, TimeQuality::Authenticated),
    }
}

#[test]
fn statements_are_the_devices_alone() {
    let mut rng = TestRng::new(1);
    let (fdo, other) = (
        SigningKey::generate(&mut rng),
        SigningKey::generate(&mut rng),
    );
    let said = statement(&other);
    let bytes = said.sign(&fdo);
    assert_eq!(Statement::verify(&bytes, &fdo.public()), Ok(said.clone()));
    assert!(matches!(
        Statement::verify(&bytes, &other.public()),
        Err(SiteFault::Cose(_))
    ));
    // No single byte may change.
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(Statement::verify(&bad, &fdo.public()).is_err(), "byte {at}");
    }
    // What the key signed for another purpose is no statement.
    let payload = cbor::encode(|w| {
        w.array(5).text("holdfast/notice/1").bytes(&[7; 16]);
        w.bytes(&other.public().to_spki_der())
            .text("cloud")
            .bytes(&[9; 16]);
    });
    let signed = Sign1::sign(&payload, &fdo);
    let verdict = Statement::verify(signed.as_bytes(), &fdo.public());
    assert_eq!(verdict, Err(SiteFault::WrongType));
}

#[test]
fn configurations_round_trip_and_are_bounded() {
    let mut rng = TestRng::new(2);
    let good = config(&mut rng);
    let bytes = good.to_cbor();
    assert_eq!(SiteConfig::from_cbor(&bytes), Ok(good.clone()));
    let crowded = SiteConfig {
        anchors: vec![vec![1]; MAX_LIST + 1],
        ..good.clone()
    };
    assert!(SiteConfig::from_cbor(&crowded.to_cbor()).is_err());
    let fat = SiteConfig {
        anchors: vec![vec![1; MAX_CERTIFICATE + 1]],
        ..good
    };
    assert!(SiteConfig::from_cbor(&fat.to_cbor()).is_err());
    assert!(SiteConfig::from_cbor(&[bytes.clone(), vec![0]].concat()).is_err());
}

#[test]
fn damaged_texts_never_panic() {
    let mut rng = TestRng::new(3);
    let good = config(&mut rng).to_cbor();
    let mut dice = Dice::new(3);
    for _ in 0..50_000 {
        let mut bad = good.clone();
        for _ in 0..=dice.below(4) {
            let at = usize::try_from(dice.below(bad.len() as u64)).unwrap();
            bad[at] = u8::try_from(dice.below(256)).unwrap();
        }
        if dice.chance(20) {
            bad.truncate(usize::try_from(dice.below(bad.len() as u64)).unwrap());
        }
        if let Ok(read) = SiteConfig::from_cbor(&bad) {
            assert_eq!(read.to_cbor().len(), bad.len(), "one encoding only");
        }
    }
}

#[test]
fn certificate_texts_are_read_in_every_form_seen() {
    let mut der = vec![0x30, 0x82, 0x01, 0x00];
    der.extend((0..=255).collect::<Vec<u8>>());
    let line = csr_text(&der);
    let mut folded = String::new();
    for (at, c) in line.chars().enumerate() {
        folded.push(c);
        if at % 64 == 63 {
            folded.push_str("\r\n");
        }
    }
    let pem = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{folded}\n-----END CERTIFICATE REQUEST-----\n"
    );
    for text in [line.as_bytes(), folded.as_bytes(), pem.as_bytes(), &der] {
        assert_eq!(csr_der(text).as_deref(), Ok(&der[..]));
    }
    let huge = csr_text(&vec![0x30; MAX_CERTIFICATE + 1]);
    for bad in [
        "",
        "?",
        "AAA",
        "-----BEGIN X-----\n-----END X-----",
        "\u{e4}",
        &huge,
    ] {
        assert_eq!(
            csr_der(bad.as_bytes()),
            Err(SiteFault::CsrText),
            "{:.20}",
            bad
        );
    }
    assert_eq!(csr_der(&[0xff, 0xfe]), Err(SiteFault::CsrText));
    assert!(csr_der(&[&der[..], &vec![0; MAX_CERTIFICATE]].concat()).is_err());
}
