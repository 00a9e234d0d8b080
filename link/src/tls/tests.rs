//! Certificates that must and must not be believed, in real handshakes, in both directions.

mod makers;

use super::*;
use crate::dial::DialError;
use crate::time::{ManualClock, Time, TimeQuality};
use makers::*;
pub(crate) use makers::{DeviceAndServer, device_and_server};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa,
    KeyPair, KeyUsagePurpose, NameConstraints,
};
use zeroize::Zeroizing;

async fn judge(purpose: Purpose, shown: Identity, believed: Anchors) -> Option<PeerFault> {
    match purpose {
        Purpose::Server => judge_server(shown, believed, clock()).await,
        Purpose::Client => judge_client(shown, believed, clock()).await,
    }
}

const SIDES: [(Purpose, Eku, Eku); 2] = [
    (Purpose::Server, Eku::ServerAuth, Eku::ClientAuth),
    (Purpose::Client, Eku::ClientAuth, Eku::ServerAuth),
];

#[tokio::test]
async fn good_chains_are_believed() {
    for (side, eku, _) in SIDES {
        let root = root("cloud");
        let site = below(&root, authority("site"));
        let direct = identity(&leaf(eku.clone()), &root, &[]);
        assert_eq!(judge(side, direct, anchors(&root)).await, None, "{side:?}");
        let chained = identity(&leaf(eku), &site, &[&site]);
        assert_eq!(judge(side, chained, anchors(&root)).await, None, "{side:?}");
    }
}

#[tokio::test]
async fn foreign_and_forged_authorities_are_refused() {
    for (side, eku, _) in SIDES {
        let (ours, foreign) = (root("cloud"), root("somebody"));
        let shown = identity(&leaf(eku.clone()), &foreign, &[]);
        assert_eq!(
            judge(side, shown, anchors(&ours)).await,
            Some(PeerFault::UnknownIssuer)
        );

        // The name of our root, another key.
        let forged = root("cloud");
        let shown = identity(&leaf(eku.clone()), &forged, &[&forged]);
        assert_eq!(
            judge(side, shown, anchors(&ours)).await,
            Some(PeerFault::BadSignature)
        );

        // Signed by nobody but itself.
        let key = KeyPair::generate().unwrap();
        let own = leaf(eku.clone()).self_signed(&key).unwrap();
        let chain = vec![own.der().to_vec()];
        let shown = Identity::new(chain, Zeroizing::new(key.serialize_der())).unwrap();
        assert_eq!(
            judge(side, shown, anchors(&ours)).await,
            Some(PeerFault::UnknownIssuer)
        );

        // The intermediate is missing.
        let site = below(&ours, authority("site"));
        let shown = identity(&leaf(eku), &site, &[]);
        assert_eq!(
            judge(side, shown, anchors(&ours)).await,
            Some(PeerFault::UnknownIssuer)
        );
    }
}

/// The wildcard stands for the name dialled, so that only the rule against wildcards can refuse it.
#[tokio::test]
async fn nobody_of_ours_bears_a_wildcard() {
    let root = root("cloud");
    let mut params = leaf(Eku::ServerAuth);
    let (_, rest) = SERVER.split_once('.').unwrap();
    let name = format!("*.{rest}").try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    let fault = judge_server(identity(&params, &root, &[]), anchors(&root), clock()).await;
    assert_eq!(fault, Some(PeerFault::Wildcard));
    for (side, eku, _) in SIDES {
        let mut params = leaf(eku);
        params.subject_alt_names = vec![rcgen::SanType::DnsName("*.x.test".try_into().unwrap())];
        let fault = judge(side, identity(&params, &root, &[]), anchors(&root)).await;
        match side {
            Purpose::Client => assert_eq!(fault, Some(PeerFault::Wildcard)),
            Purpose::Server => assert!(matches!(fault, Some(PeerFault::WrongName { .. }))),
        }
    }
}

#[tokio::test]
async fn validity_is_judged_by_our_clock() {
    for (side, eku, _) in SIDES {
        let root = root("cloud");
        let mut old = leaf(eku.clone());
        validity(&mut old, -9 * DAY, -2 * DAY);
        let fault = judge(side, identity(&old, &root, &[]), anchors(&root)).await;
        assert!(
            matches!(fault, Some(PeerFault::Expired { now: NOW, .. })),
            "{fault:?}"
        );

        let mut early = leaf(eku);
        validity(&mut early, 3 * DAY, 9 * DAY);
        let fault = judge(side, identity(&early, &root, &[]), anchors(&root)).await;
        assert!(
            matches!(fault, Some(PeerFault::NotValidYet { now: NOW, .. })),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_clock_that_may_be_behind_forgives_not_yet_but_never_expired() {
    let root = root("cloud");
    let site = below(&root, authority("site"));
    for quality in [TimeQuality::None, TimeQuality::Floor] {
        let behind = || {
            let clock = ManualClock::at(0);
            clock.set(Time::new(NOW - 5000 * DAY as u64, quality));
            Arc::new(clock)
        };
        let shown = || identity(&leaf(Eku::ServerAuth), &site, &[&site]);
        assert_eq!(judge_server(shown(), anchors(&root), behind()).await, None);

        let late = ManualClock::at(0);
        late.set(Time::new(NOW + 200 * DAY as u64, quality));
        let fault = judge_server(shown(), anchors(&root), Arc::new(late)).await;
        assert!(
            matches!(fault, Some(PeerFault::Expired { .. })),
            "{fault:?}"
        );
    }
    // The control: a trusted clock that says so is believed.
    let trusted = Arc::new(ManualClock::at(NOW - 5000 * DAY as u64));
    let shown = identity(&leaf(Eku::ServerAuth), &site, &[&site]);
    let fault = judge_server(shown, anchors(&root), trusted).await;
    assert!(
        matches!(fault, Some(PeerFault::NotValidYet { .. })),
        "{fault:?}"
    );
}

#[tokio::test]
async fn uses_must_be_named() {
    for (side, right, wrong) in SIDES {
        let root = root("cloud");
        type Spoil = fn(&mut CertificateParams);
        let spoiled: [(&str, Spoil); 5] = [
            ("no extended key usage", |params| {
                params.extended_key_usages.clear()
            }),
            ("any", |params| params.extended_key_usages.push(Eku::Any)),
            ("digital signature", |params| {
                params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
            }),
            ("digital signature", |params| params.key_usages.clear()),
            ("signing certificates", |params| {
                params.key_usages.push(KeyUsagePurpose::KeyCertSign);
            }),
        ];
        for (expected, spoil) in spoiled {
            let mut params = leaf(right.clone());
            spoil(&mut params);
            let fault = judge(side, identity(&params, &root, &[]), anchors(&root)).await;
            let Some(PeerFault::WrongUse(text)) = fault else {
                panic!("{side:?} {expected}: {fault:?}");
            };
            assert!(text.contains(expected), "{side:?} {expected}: {text}");
        }
        let fault = judge(side, identity(&leaf(wrong), &root, &[]), anchors(&root)).await;
        assert!(
            matches!(fault, Some(PeerFault::WrongUse(_))),
            "{side:?}: {fault:?}"
        );

        let mut authority = leaf(right);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let fault = judge(side, identity(&authority, &root, &[]), anchors(&root)).await;
        assert!(
            matches!(fault, Some(PeerFault::WrongUse(_))),
            "{side:?}: {fault:?}"
        );
    }
}

#[tokio::test]
async fn the_name_is_verified_though_an_address_is_dialled() {
    let root = root("cloud");
    let names = [
        "gw-8.gateways.harbour.holdfast.internal",
        "*.gateways.harbour.holdfast.internal",
        "127.0.0.1",
    ];
    for name in names {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let model = leaf(Eku::ServerAuth);
        params.key_usages = model.key_usages.clone();
        params.extended_key_usages = model.extended_key_usages.clone();
        validity(&mut params, -DAY, DAY * 9);
        let fault = judge_server(identity(&params, &root, &[]), anchors(&root), clock()).await;
        // The wildcard would match; nobody of ours bears one.
        let expected = match name.starts_with('*') {
            true => PeerFault::Wildcard,
            false => PeerFault::WrongName {
                expected: SERVER.to_owned(),
            },
        };
        assert_eq!(fault, Some(expected), "{name}");
    }
}

#[tokio::test]
async fn constraints_of_authorities_hold() {
    for (side, eku, _) in SIDES {
        let root = root("cloud");
        let mut elsewhere = authority("other site");
        elsewhere.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(
                "elsewhere.holdfast.internal".into(),
            )],
            excluded_subtrees: vec![],
        });
        let elsewhere = below(&root, elsewhere);
        let shown = identity(&leaf(eku.clone()), &elsewhere, &[&elsewhere]);
        let fault = judge(side, shown, anchors(&root)).await;
        assert!(
            matches!(fault, Some(PeerFault::Constraint(_))),
            "{side:?}: {fault:?}"
        );

        let mut flat = authority("site");
        flat.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let flat = below(&root, flat);
        let deeper = below(&flat, authority("too deep"));
        let shown = identity(&leaf(eku), &deeper, &[&deeper, &flat]);
        let fault = judge(side, shown, anchors(&root)).await;
        assert!(
            matches!(fault, Some(PeerFault::Constraint(_))),
            "{side:?}: {fault:?}"
        );
    }
}

#[tokio::test]
async fn clients_without_certificate() {
    let root = root("cloud");
    let gateway = IdentitySlot::with(identity(&leaf(Eku::ServerAuth), &root, &[]));
    let trust = || Trust::Anchors(anchors(&root));
    let client = client_config(trust(), None, clock()).unwrap();
    let required = ClientAuth::Required(anchors(&root));
    let server = server_config(gateway.clone(), required, clock()).unwrap();
    assert!(shake(server, client.clone()).await.1.is_err());

    let optional = ClientAuth::Optional(anchors(&root));
    let server = server_config(gateway, optional, clock()).unwrap();
    let (dialled, served) = shake(server.clone(), client).await;
    assert!(dialled.is_ok() && served.is_ok());
    // But one that is shown must hold.
    let stranger = identity(&leaf(Eku::ClientAuth), &self::root("somebody"), &[]);
    let client = client_config(trust(), Some(IdentitySlot::with(stranger)), clock()).unwrap();
    let error = shake(server, client).await.1.unwrap_err();
    assert_eq!(peer_fault(&error), Some(PeerFault::UnknownIssuer));
}

#[tokio::test]
async fn first_contact_by_the_hash_of_the_root() {
    use holdfast_protocol::crypto::{HashAlg, hash};
    let (root, other) = (root("cloud"), root("cloud"));
    let site = below(&root, authority("site"));
    let shown = identity(&leaf(Eku::ServerAuth), &site, &[&site, &root]);
    for (pinned, believed) in [(&root, true), (&other, false)] {
        let pin = hash(HashAlg::Sha256, pinned.der())
            .value()
            .try_into()
            .unwrap();
        let slot = IdentitySlot::with(shown.clone());
        let server = server_config(slot, ClientAuth::None, clock()).unwrap();
        let client = client_config(Trust::RootHashes(vec![pin]), None, clock()).unwrap();
        match shake(server, client).await.0 {
            Ok(()) => assert!(believed),
            Err(DialError::Untrusted { fault, .. }) => {
                assert!(!believed);
                assert_eq!(fault, PeerFault::NotPinned);
            }
            Err(error) => panic!("{error}"),
        }
    }
    // A pinned certificate that did not sign the rest does not help.
    let liar = identity(&leaf(Eku::ServerAuth), &other, &[&root]);
    let pin = hash(HashAlg::Sha256, root.der())
        .value()
        .try_into()
        .unwrap();
    let server = server_config(IdentitySlot::with(liar), ClientAuth::None, clock()).unwrap();
    let client = client_config(Trust::RootHashes(vec![pin]), None, clock()).unwrap();
    let refused = shake(server, client).await.0;
    assert!(
        matches!(refused, Err(DialError::Untrusted { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_identity_changes_at_run_time_and_no_session_is_resumed() {
    let root = root("cloud");
    let slot = IdentitySlot::default();
    let server = server_config(slot.clone(), ClientAuth::None, clock()).unwrap();
    let client = client_config(Trust::Anchors(anchors(&root)), None, clock()).unwrap();
    assert!(
        shake(server.clone(), client.clone()).await.0.is_err(),
        "no identity yet"
    );

    slot.set(identity(&leaf(Eku::ServerAuth), &root, &[]));
    assert!(shake(server.clone(), client.clone()).await.0.is_ok());

    // Were sessions resumed, the same two configurations would not look at this certificate.
    slot.set(identity(
        &leaf(Eku::ServerAuth),
        &self::root("somebody"),
        &[],
    ));
    let refused = shake(server, client).await.0;
    assert!(
        matches!(refused, Err(DialError::Untrusted { .. })),
        "{refused:?}"
    );
}

/// Each side of ours against a counterpart of rustls' defaults, which would resume.
#[tokio::test]
async fn neither_side_resumes_a_session() {
    let root = root("cloud");
    let slot = IdentitySlot::with(identity(&leaf(Eku::ServerAuth), &root, &[]));
    let verifier = || verify::ServerVerifier::new(Trust::Anchors(anchors(&root)), clock());
    let usual_server = {
        let builder = rustls::ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(
            builder
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(slot.clone())),
        )
    };
    let usual_client = |versions: &[&'static rustls::SupportedProtocolVersion]| {
        let builder = rustls::ClientConfig::builder_with_provider(provider());
        let builder = builder
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(verifier()));
        Arc::new(builder.with_no_client_auth())
    };
    let our_server = server_config(slot.clone(), ClientAuth::None, clock()).unwrap();
    let our_client = client_config(Trust::Anchors(anchors(&root)), None, clock()).unwrap();
    let (all, old) = (rustls::ALL_VERSIONS, [&rustls::version::TLS12]);
    let pairs = [
        ("control", usual_server.clone(), usual_client(all), true),
        (
            "control, 1.2",
            usual_server.clone(),
            usual_client(&old),
            true,
        ),
        ("our client", usual_server, our_client, false),
        ("our server", our_server.clone(), usual_client(all), false),
        ("our server, 1.2", our_server, usual_client(&old), false),
    ];
    for (pair, server, client, resumes) in pairs {
        let first = handshake_kind(server.clone(), client.clone()).await;
        let second = handshake_kind(server, client).await;
        assert_eq!(first, rustls::HandshakeKind::Full, "{pair}");
        assert_eq!(second == rustls::HandshakeKind::Resumed, resumes, "{pair}");
    }
}

#[tokio::test]
async fn tls_12_is_judged_by_the_same_rules() {
    for (known, believed) in [(true, true), (false, false)] {
        let (root, foreign) = (root("cloud"), root("somebody"));
        let gateway = identity(&leaf(Eku::ServerAuth), &root, &[]);
        let device = identity(
            &leaf(Eku::ClientAuth),
            if known { &root } else { &foreign },
            &[],
        );
        let required = ClientAuth::Required(anchors(&root));
        let server = server_config(IdentitySlot::with(gateway), required, clock()).unwrap();
        let verifier = verify::ServerVerifier::new(Trust::Anchors(anchors(&root)), clock());
        let old = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(IdentitySlot::with(device)));
        let (_, served) = shake(server, Arc::new(old)).await;
        assert_eq!(served.is_ok(), believed);
        if let Err(error) = served {
            assert_eq!(peer_fault(&error), Some(PeerFault::UnknownIssuer));
        }
    }
}

#[test]
fn what_is_no_identity_and_no_anchor() {
    let root = root("cloud");
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = leaf(Eku::ClientAuth).signed_by(&key, &root).unwrap();
    let chain = vec![certificate.der().to_vec()];
    let key_of = |pair: &KeyPair| Zeroizing::new(pair.serialize_der());
    assert!(Identity::new(chain.clone(), key_of(&key)).is_ok());
    let fault = |chain, key| Identity::new(chain, key).unwrap_err();
    assert_eq!(
        fault(chain.clone(), key_of(&other)),
        IdentityError::Mismatch
    );
    assert_eq!(fault(vec![], key_of(&key)), IdentityError::Empty);
    assert_eq!(
        fault(vec![vec![1, 2]], key_of(&key)),
        IdentityError::Mismatch
    );
    assert_eq!(
        fault(chain, Zeroizing::new(vec![0; 9])),
        IdentityError::BadKey
    );
    assert_eq!(Anchors::new([]).unwrap_err(), AnchorError::Empty);
    let broken = Anchors::new([root.der().to_vec(), vec![0x30]]).unwrap_err();
    assert_eq!(broken, AnchorError::Malformed { index: 1 });
}

/// A machine that knew the time until it was switched off, and its wall clock now: decades ahead.
#[derive(Debug)]
struct Ahead {
    /// The planted defect: validity is put to the wall clock.
    believes_it: bool,
}

impl Clock for Ahead {
    fn now(&self) -> Time {
        Time::new(NOW + 40 * 365 * 86_400, TimeQuality::Floor)
    }

    fn certain(&self) -> Time {
        match self.believes_it {
            true => self.now(),
            false => Time::new(NOW, TimeQuality::Floor),
        }
    }
}

#[test]
fn a_wall_clock_far_ahead_expires_nobody() {
    let root = root("cloud");
    let good = identity(&leaf(Eku::ClientAuth), &root, &[]);
    let judged = |believes_it| {
        let now = Ahead { believes_it }.certain();
        let (leaf, above) = good.chain().split_first().unwrap();
        verify_chain(leaf, above, &anchors(&root), Purpose::Client, None, now)
    };
    assert_eq!(judged(false), Ok(()));
    let defect = judged(true);
    assert!(
        matches!(defect, Err(PeerFault::Expired { .. })),
        "the control: {defect:?}"
    );
}
