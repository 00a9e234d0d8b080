//! What Rust prints of each type that holds a secret: nothing of it, in no form.

use std::fmt::Debug;

use holdfast_cps::enrol::Token;
use holdfast_cps::keys::Keys;
use holdfast_link::mqtt::Login;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::{
    Aead, AeadSuite, EcdhSecret, HashAlg, HmacSecret, Seal, SessionKey, SigningKey, hash,
};
use holdfast_protocol::id::Guid;
use holdfast_protocol::lan_module::Network;
use holdfast_protocol::lifecycle::Credential;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use zeroize::Zeroizing;

use crate::finder::{Known, scalar};

/// Fails if any form of the secret is in what is printed, plain or over several lines.
fn prints_nothing(what: &str, it: &impl Debug, secret: &[u8]) {
    let known = Known::new(what, secret);
    for shown in [format!("{it:?}"), format!("{it:#?}")] {
        let dense: String = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            !known.is_in(shown.as_bytes()) && !known.is_in(dense.as_bytes()),
            "{what}: {shown}"
        );
    }
}

fn key() -> (SigningKey, [u8; 32]) {
    let pair = rcgen::KeyPair::generate().unwrap();
    let der = pair.serialize_der();
    (
        SigningKey::from_pkcs8_der(&der).unwrap(),
        scalar(&der).unwrap(),
    )
}

#[test]
fn keys_and_shared_secrets() {
    let (signing, secret) = key();
    prints_nothing("SigningKey", &signing, &secret);
    let bytes = [0xa7; 32];
    prints_nothing("HmacSecret", &HmacSecret::from_bytes(bytes), &bytes);
    let session = SessionKey::new(Zeroizing::new(bytes.to_vec()));
    prints_nothing("SessionKey", &session, &bytes);
    prints_nothing(
        "Aead",
        &Aead::new(AeadSuite::A256Gcm, &session).unwrap(),
        &bytes,
    );
    prints_nothing("Seal", &Seal::from_secret(&bytes).unwrap(), &bytes);
    let mut exchange = format!("{:?}", EcdhSecret::generate(&mut SystemRandom));
    exchange.retain(|one| one.is_ascii_digit());
    assert!(exchange.len() < 8, "EcdhSecret prints numbers: {exchange}");
    let login = Login {
        user: "bridge".into(),
        password: Zeroizing::new(b"correct horse".to_vec()),
    };
    prints_nothing("Login", &login, b"correct horse");
}

#[test]
fn what_devices_keep() {
    let (device, secret) = key();
    let hmac = [0x5c; 32];
    let credential = DeviceCredential {
        guid: Guid([1; 16]),
        rendezvous: RendezvousInfo::new(vec![vec![Instruction::DevOnly]]).unwrap(),
        hmac_secret: HmacSecret::from_bytes(hmac),
        owner_key_hash: hash(HashAlg::Sha256, b"owner"),
        device_info: "thermometer".into(),
        key: device,
    };
    prints_nothing("DeviceCredential", &credential, &secret);
    prints_nothing("DeviceCredential", &credential, &hmac);
    let contents = holdfast_agent::vault::Contents {
        credential,
        identity: None,
        staged: None,
    };
    prints_nothing("Contents", &contents, &secret);
    prints_nothing("Contents", &contents, &hmac);
    let service = [0x3d; 16];
    prints_nothing("Credential", &Credential::from_bytes(service), &service);
    let network = Network::new(
        "harbour".into(),
        Some(Zeroizing::new("anchors aweigh".into())),
    )
    .unwrap();
    prints_nothing("Network", &network, b"anchors aweigh");
}

#[test]
fn what_servers_keep() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::open(folder.path()).unwrap();
    for name in ["owner.key", "record.key"] {
        let secret = scalar(&std::fs::read(folder.path().join(name)).unwrap()).unwrap();
        prints_nothing("Keys", &keys, &secret);
    }
    let (root, secret) = (
        "0".repeat(64),
        "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY",
    );
    let text = format!("hf1.harbour.gw1.{secret}.{root}.cloud.servers.holdfast.internal");
    let token: Token = text.parse().unwrap();
    prints_nothing("Token", &token, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef");
    assert!(!format!("{token:?}").contains(secret));
    let pair = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["a.test".into()])
        .unwrap()
        .self_signed(&pair)
        .unwrap();
    let der = pair.serialize_der();
    let identity =
        holdfast_link::tls::Identity::new(vec![leaf.der().to_vec()], Zeroizing::new(der.clone()))
            .unwrap();
    prints_nothing("Identity", &identity, &scalar(&der).unwrap());
    prints_nothing(
        "IdentitySlot",
        &holdfast_link::tls::IdentitySlot::with(identity),
        &scalar(&der).unwrap(),
    );
}

/// The control: a type that prints what it holds.
#[test]
#[should_panic(expected = "Careless")]
fn control_a_careless_type_is_caught() {
    #[derive(Debug)]
    #[allow(dead_code, reason = "it is printed")]
    struct Careless(Vec<u8>);
    prints_nothing("Careless", &Careless(vec![0xa7; 32]), &[0xa7; 32]);
}
