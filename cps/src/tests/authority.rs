//! Templates and nothing but templates: whatever a request asks for, the certificate is ours.

use holdfast_link::random::SystemRandom;
use holdfast_link::tls::{Anchors, Purpose, verify_chain};
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::name::Party;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::ServerName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::kit::*;
use crate::authority::{AuthorityError, Issued, Request, parse_serial};
use crate::roster::Refusal;

fn device(at: &str) -> Party {
    Party::Device {
        device: DeviceId::from_guid(guid()),
        site: site(at),
    }
}

async fn north() -> Served {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    cloud.cps.add_site(&site("south")).await.unwrap();
    cloud
}

async fn issue(cloud: &Served, party: Party, csr: &[u8]) -> Result<Issued, AuthorityError> {
    cloud
        .cps
        .authority()
        .issue(Request {
            party,
            csr,
            addresses: vec![LOCAL],
        })
        .await
}

fn verified(cloud: &Served, issued: &Issued, purpose: Purpose) -> Result<(), String> {
    let anchors = Anchors::new(cloud.cps.authority().anchors().unwrap()).unwrap();
    let above: Vec<_> = issued.chain.iter().cloned().map(Into::into).collect();
    let now = cloud.cps.clock().now();
    verify_chain(
        &issued.leaf.clone().into(),
        &above,
        &anchors,
        purpose,
        None,
        now,
    )
    .map_err(|fault| fault.to_string())
}

/// A request that asks for everything it should not get.
fn greedy(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "cloud.servers.holdfast.internal");
    params.subject_alt_names = vec![
        SanType::DnsName("*.holdfast.internal".try_into().unwrap()),
        SanType::DnsName("gw1.gateways.south.holdfast.internal".try_into().unwrap()),
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::CodeSigning,
    ];
    params.serialize_request(key).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_greedy_request_gets_the_template() {
    let cloud = north().await;
    let party = device("north");
    let dns = party.dns(&cloud.cps.config().domain);
    let issued = issue(&cloud, party, &greedy(&KeyPair::generate().unwrap()))
        .await
        .unwrap();
    verified(&cloud, &issued, Purpose::Client).unwrap();
    assert!(
        verified(&cloud, &issued, Purpose::Server).is_err(),
        "clients do not serve"
    );
    let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
    assert!(!leaf.is_ca());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    let names: Vec<_> = names
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        names,
        [format!("DNSName({dns})")],
        "one name, no address for a client"
    );
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && !extended.server_auth && !extended.code_signing);
    assert_eq!(leaf.raw_serial().len(), 16);
    let validity = leaf.validity();
    assert_eq!(
        validity.not_before.timestamp(),
        i64::try_from(NOW).unwrap() - 3600
    );
    assert_eq!(
        validity.not_after.timestamp(),
        i64::try_from(NOW).unwrap() + 365 * 86_400
    );
    let listed = cloud.cps.authority().list(Some(&site("north"))).unwrap();
    assert!(
        listed
            .iter()
            .any(|row| row.serial == issued.serial.to_string() && !row.revoked)
    );
}

#[tokio::test]
async fn bad_requests_are_refused_each_for_its_reason() {
    let cloud = north().await;
    let good = holdfast_protocol::csr::request("x", &SigningKey::generate(&mut SystemRandom));
    issue(&cloud, device("north"), &good).await.unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let trailing = [&good[..], b"x"].concat();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default()
        .serialize_request(&p384)
        .unwrap()
        .der()
        .to_vec();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed25519 = CertificateParams::default()
        .serialize_request(&ed25519)
        .unwrap()
        .der()
        .to_vec();
    let cases: [(&str, Vec<u8>); 7] = [
        ("csr signature", flipped),
        ("csr malformed", trailing),
        ("csr malformed", Vec::new()),
        ("csr malformed", b"\x30\x03\x02\x01\x00".to_vec()),
        ("csr key", p384),
        ("csr key", ed25519),
        ("csr too large", vec![0x30; 1 << 20]),
    ];
    for (reason, csr) in cases {
        let before = cloud.cps.metrics().refusals("authority", reason);
        let error = issue(&cloud, device("north"), &csr).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert_eq!(
            cloud.cps.metrics().refusals("authority", reason),
            before + 1
        );
    }
}

#[tokio::test]
async fn somebody_elses_key_cannot_be_certified() {
    let cloud = north().await;
    let victim = KeyPair::generate().unwrap();
    let mine = KeyPair::generate().unwrap();
    let (theirs, own) = (greedy(&victim), greedy(&mine));
    // The victim's key in a request signed by us: swap the 65 bytes of the point.
    let point = |key: &KeyPair| key.public_key_raw().to_vec();
    let at = own
        .windows(65)
        .position(|part| part == point(&mine))
        .unwrap();
    let mut stolen = own;
    stolen[at..at + 65].copy_from_slice(&point(&victim));
    let error = issue(&cloud, device("north"), &stolen).await.unwrap_err();
    assert_eq!(error.reason(), "csr signature");
    issue(&cloud, device("north"), &theirs).await.unwrap();
}

#[tokio::test]
async fn an_intermediate_speaks_for_its_site_alone() {
    let cloud = north().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let csr = holdfast_protocol::csr::request("x", &SigningKey::generate(&mut SystemRandom));
    let error = issue(&gateway, device("south"), &csr).await.unwrap_err();
    assert_eq!(error.reason(), "foreign party");
    let cloudish = Party::Cloud {
        server: server("cloud"),
    };
    let error = issue(&gateway, cloudish, &csr).await.unwrap_err();
    assert_eq!(error.reason(), "foreign party");

    // A stolen intermediate signs for another site, for a wildcard, and a sub-authority: webpki
    // refuses what the constraints and the path length forbid.
    let signer = gateway.cps.keys().signer();
    let issuer = crate::authority::Issuer::Site(site("north"));
    let chain = signer.chain(&issuer).unwrap();
    let key = SigningKey::generate(&mut SystemRandom);
    let forged = |dns: &str| {
        let template = crate::authority::Template {
            subject: crate::authority::Subject::Leaf {
                party: device("south"),
                dns: dns.into(),
                addresses: Vec::new(),
            },
            serial: [1; 16],
            not_before: NOW - 10,
            not_after: NOW + 10,
            spki: key.public().to_spki_der(),
        };
        let leaf = signer.sign(&issuer, &template).unwrap();
        let chain = vec![chain[0].clone()];
        Issued {
            leaf,
            chain,
            serial: parse_serial(&"01".repeat(16)).unwrap(),
            not_after: 0,
            key: key.public(),
        }
    };
    let id = DeviceId::from_guid(guid());
    let good = forged(&format!("{id}.devices.north.holdfast.internal"));
    verified(&cloud, &good, Purpose::Client).unwrap();
    for dns in [
        format!("{id}.devices.south.holdfast.internal"),
        "cloud.servers.holdfast.internal".into(),
        "north.holdfast.internal".into(),
    ] {
        let fault = verified(&cloud, &forged(&dns), Purpose::Client).unwrap_err();
        assert!(!fault.is_empty(), "{dns}");
    }
}

#[tokio::test]
async fn constraints_can_be_left_out_and_then_only_the_constraint_is_missing() {
    let strict = north().await;
    let lax = cloud_with(|config| config.name_constraints = false).await;
    lax.cps.add_site(&site("north")).await.unwrap();
    for (cloud, constrained) in [(&strict, true), (&lax, false)] {
        let chain = cloud.cps.authority().chain(Some(&site("north"))).unwrap();
        let (_, own) = X509Certificate::from_der(&chain[0]).unwrap();
        assert_eq!(own.name_constraints().unwrap().is_some(), constrained);
        let basic = own.basic_constraints().unwrap().unwrap().value.clone();
        assert!(basic.ca && basic.path_len_constraint == Some(0));
    }
}

#[tokio::test]
async fn servers_carry_their_addresses_and_are_made_anew_when_these_change() {
    let cloud = north().await;
    let first = cloud.cps.authority().own_identity(&[LOCAL]).await.unwrap();
    let same = cloud.cps.authority().own_identity(&[LOCAL]).await.unwrap();
    assert_eq!(
        first.chain()[0],
        same.chain()[0],
        "nothing changed, nothing new"
    );
    let lan = "192.168.7.1".parse().unwrap();
    let moved = cloud
        .cps
        .authority()
        .own_identity(&[LOCAL, lan])
        .await
        .unwrap();
    assert_ne!(first.chain()[0], moved.chain()[0]);
    let anchors = Anchors::new(cloud.cps.authority().anchors().unwrap()).unwrap();
    let (leaf, above) = moved.chain().split_first().unwrap();
    let now = cloud.cps.clock().now();
    for name in [
        "127.0.0.1",
        "192.168.7.1",
        "cloud.servers.holdfast.internal",
    ] {
        let name = ServerName::try_from(name).unwrap();
        verify_chain(leaf, above, &anchors, Purpose::Server, Some(&name), now).unwrap();
    }
    // The cloud may stand anywhere, a site's gateway may not.
    let public = "8.8.8.8".parse().unwrap();
    let gateway = gateway(&cloud, "north", "gw1").await;
    let error = gateway
        .cps
        .authority()
        .own_identity(&[public])
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "public address");
    let open = cloud.cps.authority().own_identity(&[public]).await.unwrap();
    let (leaf, above) = open.chain().split_first().unwrap();
    let name = ServerName::try_from("8.8.8.8").unwrap();
    verify_chain(leaf, above, &anchors, Purpose::Server, Some(&name), now).unwrap();
    let moved = cloud
        .cps
        .authority()
        .own_identity(&[LOCAL, lan])
        .await
        .unwrap();
    // Two thirds of its life are over.
    cloud
        .clock
        .advance(std::time::Duration::from_secs(250 * 86_400));
    let renewed = cloud
        .cps
        .authority()
        .own_identity(&[LOCAL, lan])
        .await
        .unwrap();
    assert_ne!(renewed.chain()[0], moved.chain()[0]);
}

#[tokio::test]
async fn a_revoked_certificate_is_nobody_at_once_and_cannot_be_renewed() {
    let cloud = north().await;
    let party = device("north");
    let csr = holdfast_protocol::csr::request("x", &SigningKey::generate(&mut SystemRandom));
    let issued = issue(&cloud, party.clone(), &csr).await.unwrap();
    let chain = issued.full_chain();
    assert_eq!(cloud.cps.roster().identify(&chain).unwrap().party, party);
    let mut changes = cloud.cps.roster().changes();
    changes.mark_unchanged();
    let shown = parse_serial(&issued.serial.to_string()).unwrap();
    cloud.cps.authority().revoke(shown).await.unwrap();
    assert!(changes.has_changed().unwrap());
    assert!(matches!(
        cloud.cps.roster().identify(&chain),
        Err(Refusal::Revoked(_))
    ));
    let request = Request {
        party: party.clone(),
        csr: &csr,
        addresses: Vec::new(),
    };
    let error = cloud
        .cps
        .authority()
        .renew(party, &issued.leaf, request)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "revoked");
    let unknown = parse_serial(&"ab".repeat(16)).unwrap();
    let error = cloud.cps.authority().revoke(unknown).await.unwrap_err();
    assert_eq!(error.reason(), "unknown serial");
}

#[tokio::test]
async fn a_client_has_the_rights_it_was_admitted_with() {
    let cloud = north().await;
    let filter = |text: &str| text.parse().unwrap();
    let files = cloud
        .cps
        .clients()
        .issue(
            "grafana".parse().unwrap(),
            Some(site("north")),
            vec![],
            vec![filter("hf/v1/north/+/up/#")],
        )
        .await
        .unwrap();
    let chain = crate::authority::pem::certificates(files.cert.as_bytes()).unwrap();
    let known = cloud.cps.roster().identify(&chain).unwrap();
    assert!(known.rights.may_subscribe("hf/v1/north/+/up/#"));
    assert!(!known.rights.may_subscribe("hf/v1/south/+/up/#"));
    assert!(!known.rights.may_publish("hf/v1/north/x/up/y"));
    let (_, again) = cloud
        .cps
        .roster()
        .rights_for_subject(&known.subject)
        .unwrap();
    assert_eq!(again, known.rights);
    assert!(files.key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(!format!("{files:?}").contains("PRIVATE"));
    assert!(cloud.cps.roster().identify(&[]).is_err());
    let stranger = rcgen::generate_simple_self_signed(vec!["x.clients.holdfast.internal".into()]);
    let stranger = stranger.unwrap().cert.der().to_vec();
    assert!(matches!(
        cloud.cps.roster().identify(&[stranger]),
        Err(Refusal::Certificate(_))
    ));
}
