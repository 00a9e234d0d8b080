//! Certificate requests that want what they may not have, on the wire: at the renewal endpoint, at the
//! update of a service, and in TO2's CSR module. Refused for a reason that is counted, or answered by
//! the template, whatever they wish. The enrolment desk has the same ones with real programs.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::https;
use holdfast_link::random::SystemRandom;
use holdfast_link::tls::{Anchors, Identity, IdentitySlot, Trust, client_config};
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::csr;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::lifecycle::{Answer, Credential, Refusal, RequestKind};
use holdfast_protocol::name::Party;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose as Eku,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::kit::*;
use super::lifecycle::{Home, onboard, order};
use crate::http::wire::{RenewAsk, RenewGiven};

/// Made by openssl, each signed by its own key; no library here makes such.
const P224: &str = "MIGyMGMCAQAwDDEKMAgGA1UEAwwBeDBOMBAGByqGSM49AgEGBSuBBAAhAzoABOq9YQoHPIwjHu9/\
    y9KvHEgS+g/zWPdcFWE/lHwSmQOZEPgrD52p8lJLqAJb0YeGLA0oqY41gNlAoAAwCgYIKoZIzj0E\
    AwIDPwAwPAIcP7s+VmDe1QSmuGqZ9VHLRnHHDbcUpWNID8uHgwIcKHf7cg6gx6zmItivZxxCitmG\
    B2dJuQq7g8DDJQ==";
const RSA_1024: &str = "MIIBSzCBtQIBADAMMQowCAYDVQQDDAF4MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDL4Wf+\
    yyT3Y9ntcph74Hnb/KH4BwMpzNTCj/H79SR9xNb003YRsR60GsyF/et245Pu5UuQXVD5DJu+4AP0\
    i6PWSZFFgUg6V52R/kiPvLsM2kt+1YgLUJCL+TtwMswa2uUBRbbPE7QciqwlYK4gj06KUKAm1vsX\
    OlQZrE93kSxpRQIDAQABoAAwDQYJKoZIhvcNAQELBQADgYEAaW1Ungtoa5B1sDCnm0uafs2evx0f\
    dQCSng7mPKCTs0NFNhQ0mLUm1YfJ8sC5cWbbvOJtw7Syd0JHhFsc42iKAyuRW8LxDsZtAQ78wOjx\
    h0kMSPmkA42ee7a95qUzP38g20s56LgqLlujSrEXxmVf5GHxTuku43IOccylNLSzpBk=";

fn key() -> SigningKey {
    SigningKey::generate(&mut SystemRandom)
}

fn good(key: &SigningKey) -> Vec<u8> {
    csr::request("x", key)
}

/// The victim's key in a request signed by us.
fn somebody_elses() -> Vec<u8> {
    let (mine, victim) = (key(), key());
    let mut stolen = good(&mine);
    let (old, new) = (mine.public().to_spki_der(), victim.public().to_spki_der());
    let at = stolen.windows(old.len()).position(|part| part == old);
    let at = at.unwrap();
    stolen[at..at + old.len()].copy_from_slice(&new);
    stolen
}

/// What is wrong in itself, and the reason that is counted.
fn bad() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let plain = good(&key());
    let mut flipped = plain.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let other = |kind| {
        let pair = KeyPair::generate_for(kind).unwrap();
        let request = CertificateParams::default().serialize_request(&pair);
        request.unwrap().der().to_vec()
    };
    let der = |text: &str| STANDARD.decode(text).unwrap();
    vec![
        ("bad self-signature", flipped, "csr signature"),
        ("somebody else's key", somebody_elses(), "csr signature"),
        ("P-224", der(P224), "csr key"),
        ("RSA 1024", der(RSA_1024), "csr key"),
        ("Ed25519", other(&rcgen::PKCS_ED25519), "csr key"),
        ("P-384", other(&rcgen::PKCS_ECDSA_P384_SHA384), "csr key"),
        (
            "bytes behind it",
            [&plain[..], b"x"].concat(),
            "csr malformed",
        ),
        ("nothing", Vec::new(), "csr malformed"),
        ("5 KiB", vec![0x30; 5 << 10], "csr too large"),
    ]
}

/// Well-formed wishes, over this key.
fn greedy(key: &SigningKey) -> Vec<(&'static str, Vec<u8>)> {
    type Wish = fn(&mut CertificateParams);
    let wishes: [(&'static str, Wish); 5] = [
        ("an authority", |it| {
            it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            it.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }),
        ("foreign names", |it| {
            let name = "cloud.servers.holdfast.internal";
            it.distinguished_name.push(DnType::CommonName, name);
            it.subject_alt_names = vec![
                SanType::DnsName("*.holdfast.internal".try_into().unwrap()),
                SanType::DnsName("gw1.gateways.south.holdfast.internal".try_into().unwrap()),
            ];
        }),
        ("more uses", |it| {
            it.extended_key_usages = vec![Eku::ServerAuth, Eku::CodeSigning, Eku::Any];
        }),
        ("ten years", |it| {
            // PrivateKeyUsagePeriod: a request has no other place for a life.
            let period = b"\x30\x22\x80\x0f20270101000000Z\x81\x0f20370101000000Z";
            let period = CustomExtension::from_oid_content(&[2, 5, 29, 16], period.to_vec());
            it.custom_extensions = vec![period];
        }),
        ("one extension twice", |it| {
            let own =
                || CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            it.custom_extensions = vec![own(), own()];
        }),
    ];
    let pair = KeyPair::try_from(&key.to_pkcs8_der()[..]).unwrap();
    let made = wishes.into_iter().map(|(what, wish)| {
        let mut params = CertificateParams::default();
        wish(&mut params);
        let request = params.serialize_request(&pair).unwrap();
        (what, request.der().to_vec())
    });
    made.collect()
}

/// Its number, whether it is critical, and its value.
type Extension = (String, bool, Vec<u8>);

/// All that a template decides: everything but serial, key and what follows from the key.
fn shape(leaf: &[u8]) -> (String, i64, Vec<Extension>) {
    let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
    let validity = leaf.validity();
    let life = validity.not_after.timestamp() - validity.not_before.timestamp();
    let extensions = leaf.extensions().iter();
    let extensions = extensions.map(|it| (it.oid.to_string(), it.critical, it.value.to_vec()));
    let of_key = |it: &Extension| it.0 == "2.5.29.14";
    let extensions = extensions.filter(|it| !of_key(it)).collect();
    (leaf.subject().to_string(), life, extensions)
}

/// A party's way to the renewal endpoint.
async fn renewing(at: &Served) -> (https::Client, Party, Vec<u8>) {
    let party = Party::Device {
        device: DeviceId::from_guid(guid()),
        site: site("north"),
    };
    let own = key();
    let issued = at.cps.authority().certify(party.clone(), own.public(), &[]);
    let issued = issued.await.unwrap();
    let identity = Identity::new(issued.full_chain(), own.to_pkcs8_der()).unwrap();
    let anchors = Anchors::new(at.cps.authority().anchors().unwrap()).unwrap();
    let tls = client_config(
        Trust::Anchors(anchors),
        Some(IdentitySlot::with(identity)),
        Arc::clone(&at.clock) as _,
    );
    let security = Security::Tls {
        name: at.cps.authority().own_party().dns(&at.cps.config().domain),
        config: tls.unwrap(),
    };
    let endpoint = Endpoint {
        addresses: vec![at.api.to_string()],
        security,
    };
    let client = https::Client::new(endpoint, https::Limits::default());
    (client, party, issued.leaf)
}

async fn renew(client: &https::Client, csr: Vec<u8>) -> (u16, Vec<u8>) {
    let body = serde_json::to_vec(&RenewAsk { csr }).unwrap();
    let answer = client.post("/api/v1/renew", "application/json", body).await;
    let answer = answer.unwrap();
    (answer.status.as_u16(), answer.body.to_vec())
}

async fn north() -> Served {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    cloud
}

#[tokio::test]
async fn at_the_renewal_endpoint() {
    let cloud = north().await;
    let counted = |reason| cloud.cps.metrics().refusals("renewal", reason);
    for (what, csr, reason) in bad() {
        let (client, ..) = renewing(&cloud).await;
        let before = counted(reason);
        let (status, body) = renew(&client, csr).await;
        assert_eq!(status, 400, "{what}");
        assert!(String::from_utf8_lossy(&body).contains("request"), "{what}");
        assert_eq!(counted(reason), before + 1, "{what}");
    }
    let (client, ..) = renewing(&cloud).await;
    let before = counted("csr too large");
    assert_eq!(renew(&client, vec![0x30; 1 << 20]).await.0, 400, "1 MiB");
    assert_eq!(counted("csr too large"), before + 1);

    let fresh = key();
    for (what, csr) in greedy(&fresh) {
        let (client, _, current) = renewing(&cloud).await;
        let (status, body) = renew(&client, csr).await;
        assert_eq!(status, 200, "{what}");
        let given: RenewGiven = serde_json::from_slice(&body).unwrap();
        assert_eq!(shape(&given.certificate.0), shape(&current), "{what}");
    }
    // Replayed by another: its own name over a key that it does not have.
    let seen = good(&fresh);
    for _ in ["victim", "thief"] {
        let (client, party, current) = renewing(&cloud).await;
        let (status, body) = renew(&client, seen.clone()).await;
        assert_eq!(status, 200);
        let given: RenewGiven = serde_json::from_slice(&body).unwrap();
        assert_eq!(shape(&given.certificate.0), shape(&current), "{party}");
    }
}

async fn update(home: &Home, credential: &Credential, csr: Vec<u8>) -> Answer {
    let kind = RequestKind::Update {
        service: "civil".parse().unwrap(),
        credential: credential.clone(),
        csr,
    };
    home.ask(kind).await
}

#[tokio::test]
async fn at_the_update_of_a_service() {
    let cloud = north().await;
    let factory = Factory::new();
    let counted = |reason| cloud.cps.metrics().refusals("lifecycle", reason);
    let home = onboard(&cloud, &factory, "bad").await;
    let credential = home.activate().await;
    order(&cloud, home.id, "civil").await;
    for (what, csr, reason) in bad() {
        let (before, all) = (counted(reason), counted("csr"));
        let answer = update(&home, &credential, csr).await;
        let refused =
            matches!(&answer, Answer::Refused { refusal, .. } if *refusal == Refusal::BadRequest);
        assert!(refused, "{what}: {answer:?}");
        assert_eq!(
            (counted(reason), counted("csr")),
            (before + 1, all + 1),
            "{what}"
        );
    }
    // Longer than any part of a message: nobody looks for a request in it.
    let answer = update(&home, &credential, vec![0x30; 1 << 20]).await;
    assert!(
        matches!(&answer, Answer::Refused { refusal, .. } if *refusal == Refusal::Malformed),
        "1 MiB: {answer:?}"
    );
    // The control, and what the others are measured by.
    let Answer::Granted { certificate, .. } = update(&home, &credential, good(&key())).await else {
        panic!("the control is refused");
    };
    let (_, life, wanted) = shape(&certificate);
    let shared = key();
    let mut wishes = greedy(&shared);
    wishes.push(("replayed by another", good(&shared)));
    wishes.push(("the victim's own", good(&shared)));
    for (what, csr) in wishes {
        let home = onboard(&cloud, &factory, what).await;
        let credential = home.activate().await;
        order(&cloud, home.id, "civil").await;
        let answer = update(&home, &credential, csr).await;
        let Answer::Granted { certificate, .. } = answer else {
            panic!("{what}: {answer:?}");
        };
        let got = shape(&certificate);
        assert_eq!(got.0, format!("CN={}", home.id), "{what}");
        assert_eq!(got.1, life, "{what}");
        assert_by_template(&got.2, &wanted, what);
        let party = Party::Service {
            device: home.id,
            service: "civil".parse().unwrap(),
            site: site("north"),
        };
        is_named(&certificate, &party, &cloud);
    }
}

/// The same extensions in the same order; names differ by their party alone.
fn assert_by_template(got: &[Extension], wanted: &[Extension], what: &str) {
    let without_names = |all: &[Extension]| -> Vec<Extension> {
        let names = |it: &&Extension| it.0 == "2.5.29.17";
        all.iter().filter(|it| !names(it)).cloned().collect()
    };
    assert_eq!(without_names(got), without_names(wanted), "{what}");
    assert_eq!(got.len(), wanted.len(), "{what}");
}

fn is_named(certificate: &[u8], party: &Party, at: &Served) {
    let (_, leaf) = X509Certificate::from_der(certificate).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let names: Vec<_> = names
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    let dns = party.dns(&at.cps.config().domain);
    assert_eq!(names, [format!("DNSName({dns})")]);
}

#[tokio::test]
async fn in_the_csr_module_of_to2() {
    let cloud = north().await;
    let factory = Factory::new();
    let counted = |reason| cloud.cps.metrics().refusals("to2", reason);
    let coming = async |serial: &'static str, csr: &dyn Fn(&Device) -> Option<Vec<u8>>| {
        let (mut device, voucher) = factory.device_for(&cloud.cps, serial);
        let here = Some(site("north"));
        cloud.cps.vouchers().accept(&voucher, here).await.unwrap();
        let manners = Manners {
            csr: csr(&device),
            ..Manners::default()
        };
        let ended = device.to2(cloud.fdo, &manners).await;
        (device, ended)
    };
    for (what, csr, reason) in bad() {
        // The device has stated a key of the house's kind before, and this is another; and where there
        // is nothing, no request is seen.
        let reason = match what {
            "P-384" | "nothing" => "check",
            _ => reason,
        };
        let before = counted(reason);
        let (device, ended) = coming(what, &|_| Some(csr.clone())).await;
        assert!(!matches!(ended, Ended::Well), "{what}: {ended:?}");
        assert_eq!(device.certificate, None, "{what}");
        assert_eq!(counted(reason), before + 1, "{what}");
    }
    let (plain, ended) = coming("control", &|_| None).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let (_, life, wanted) = shape(plain.certificate.as_ref().unwrap());
    for at in 0..greedy(&key()).len() {
        let wish = |device: &Device| Some(greedy(&device.cps_key).swap_remove(at).1);
        let what = greedy(&key()).swap_remove(at).0;
        let (device, ended) = coming(what, &wish).await;
        assert!(matches!(ended, Ended::Well), "{what}: {ended:?}");
        let certificate = device.certificate.as_ref().unwrap();
        let got = shape(certificate);
        assert_eq!(got.1, life, "{what}");
        assert_by_template(&got.2, &wanted, what);
        let party = Party::Device {
            device: got.0.trim_start_matches("CN=").parse().unwrap(),
            site: site("north"),
        };
        is_named(certificate, &party, &cloud);
    }
    // Replayed: its key is not the one that the device states as its own.
    let seen = good(&plain.cps_key);
    let before = counted("check");
    let (thief, ended) = coming("thief", &|_| Some(seen.clone())).await;
    assert!(!matches!(ended, Ended::Well), "{ended:?}");
    assert_eq!((thief.certificate, counted("check")), (None, before + 1));
}
