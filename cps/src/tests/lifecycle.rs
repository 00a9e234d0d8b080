//! Services over real HTTPS: orders, all refusals, history, notices, restarts, both servers.

mod renewal;

use std::sync::Arc;

use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::https;
use holdfast_link::random::SystemRandom;
use holdfast_link::tls::{Anchors, Identity, IdentitySlot, Trust, client_config};
use holdfast_protocol::certificate::{Leaf, Purpose};
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::csr;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::lifecycle::{Answer, Credential, Outcome, Refusal, Request, RequestKind};
use holdfast_protocol::name::Party;
use holdfast_protocol::notice::{Body, Notice};
use holdfast_protocol::record::Serial;

use super::kit::*;
use crate::lifecycle::{Order, OrderError, ServicesView};

/// A device that was onboarded by a server, and its way back to it.
pub(super) struct Home {
    pub(super) device: Device,
    pub(super) id: DeviceId,
    client: https::Client,
}

pub(super) async fn onboard(at: &Served, factory: &Factory, serial: &str) -> Home {
    let (mut device, voucher) = factory.device_for(&at.cps, serial);
    let id = device.id();
    let pem = voucher.to_pem();
    let here = site("north");
    at.cps
        .vouchers()
        .import(pem.as_bytes(), Some(here))
        .await
        .unwrap();
    let ended = device.to2(at.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let certificate = device.certificate.clone().unwrap();
    let client = client(at, &device, certificate, &device.cps_key);
    Home { device, id, client }
}

fn client(at: &Served, device: &Device, certificate: Vec<u8>, key: &SigningKey) -> https::Client {
    let config = device.config.as_ref().unwrap();
    let mut chain = vec![certificate];
    chain.extend(config.chain.iter().cloned());
    let identity = Identity::new(chain, key.to_pkcs8_der()).unwrap();
    let anchors = Anchors::new(config.anchors.clone()).unwrap();
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
    https::Client::new(endpoint, https::Limits::default())
}

impl Home {
    async fn send(&self, body: Vec<u8>) -> Answer {
        let kind = "application/cbor";
        let sent = self.client.post("/api/v1/lifecycle", kind, body).await;
        Answer::from_cbor(&sent.unwrap().body).unwrap()
    }

    pub(super) async fn ask(&self, kind: RequestKind) -> Answer {
        let request = Request {
            device: self.id,
            kind,
        };
        self.send(request.sign(&self.device.cps_key)).await
    }

    pub(super) async fn activate(&self) -> Credential {
        match self.ask(RequestKind::Activate { service: None }).await {
            Answer::Activated { credential, .. } => credential,
            other => panic!("{other:?}"),
        }
    }

    async fn update(&self, service: &str, credential: &Credential, key: &SigningKey) -> Answer {
        self.ask(RequestKind::Update {
            service: service.parse().unwrap(),
            credential: credential.clone(),
            csr: csr::request("any", key),
        })
        .await
    }

    async fn report(&self, serial: &Serial, outcome: Outcome) -> Answer {
        let serial = serial.clone();
        self.ask(RequestKind::Report { serial, outcome }).await
    }

    fn history(&self, at: &Served) -> ServicesView {
        at.cps.lifecycle().services(self.id).unwrap().unwrap()
    }
}

pub(super) async fn order(at: &Served, device: DeviceId, service: &str) {
    let order = Order {
        device,
        service: service.parse().unwrap(),
        server: None,
        application: None,
        alone: false,
    };
    at.cps.lifecycle().order(order).await.unwrap();
}

fn refusal(answer: &Answer) -> Option<Refusal> {
    match answer {
        Answer::Refused { refusal, .. } => Some(*refusal),
        _ => None,
    }
}

fn granted(at: &Served, answer: &Answer) -> Leaf {
    let Answer::Granted { certificate, .. } = answer else {
        panic!("{answer:?}");
    };
    Leaf::inspect(certificate, &at.cps.config().domain, Purpose::Client).unwrap()
}

fn key() -> SigningKey {
    SigningKey::generate(&mut SystemRandom)
}

fn services(view: &ServicesView) -> Vec<(&str, bool)> {
    let lines = view.history.iter();
    lines
        .map(|line| (line.service.as_str(), line.until.is_some()))
        .collect()
}

#[tokio::test]
async fn a_device_is_moved_from_service_to_service() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    let credential = home.activate().await;
    order(&gateway, home.id, "civil").await;
    let first = key();
    let leaf = granted(&gateway, &home.update("civil", &credential, &first).await);
    let party = Party::Service {
        device: home.id,
        service: "civil".parse().unwrap(),
        site: site("north"),
    };
    assert_eq!(leaf.party, party);
    assert_eq!(leaf.key, first.public());
    let noted = home.report(&leaf.serial, Outcome::Runs).await;
    assert_eq!(noted, Answer::Noted);
    order(&gateway, home.id, "weather").await;
    let next = granted(&gateway, &home.update("weather", &credential, &key()).await);
    assert!(!gateway.cps.roster().is_revoked(&leaf.serial));
    home.report(&next.serial, Outcome::Runs).await;
    assert!(
        gateway.cps.roster().is_revoked(&leaf.serial),
        "the old key is void"
    );
    assert!(!gateway.cps.roster().is_revoked(&next.serial));
    let view = home.history(&gateway);
    assert_eq!(services(&view), [("civil", true), ("weather", false)]);
    assert_eq!(view.history[0].until, Some(view.history[1].from.clone()));
    assert_eq!(view.history[0].serials, [leaf.serial.to_string()]);
    // A change that failed at the device: back to the service before; its key was voided, so to none.
    order(&gateway, home.id, "soil").await;
    let soil = granted(&gateway, &home.update("soil", &credential, &key()).await);
    home.report(&soil.serial, Outcome::RolledBack).await;
    let view = home.history(&gateway);
    assert_eq!(view.running.as_deref(), Some("weather"));
    assert!(gateway.cps.roster().is_revoked(&soil.serial));
    // The cloud hears the whole history, and believes it.
    let client = https_client(&gateway, cloud.api).await;
    let sync = crate::sync::Client::new(&gateway.cps, client);
    sync.once().await.unwrap();
    let there = cloud.cps.lifecycle().services(home.id).unwrap().unwrap();
    assert_eq!(there, view);
    // Thrown away and made again from the log, all is as it was.
    gateway.cps.rebuild().await.unwrap();
    assert_eq!(home.history(&gateway), view);
}

#[tokio::test]
async fn each_mismatch_has_its_own_answer_and_changes_nothing() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let factory = Factory::new();
    let home = onboard(&gateway, &factory, "a").await;
    let other = onboard(&gateway, &factory, "b").await;
    let nobody = Credential::generate(&mut SystemRandom);
    let before = home.update("civil", &nobody, &key()).await;
    assert_eq!(refusal(&before), Some(Refusal::NotActivated));
    let (credential, others) = (home.activate().await, other.activate().await);
    let before = home.update("civil", &credential, &key()).await;
    assert_eq!(refusal(&before), Some(Refusal::NoService));
    order(&gateway, home.id, "civil").await;
    order(&gateway, other.id, "soil").await;
    let entries = |at: &Served| at.cps.sync().cursor(&site("north")).unwrap();
    let log = entries(&gateway);
    let request = |device, kind| Request { device, kind };
    let update = |service: &str, credential: &Credential| RequestKind::Update {
        service: service.parse().unwrap(),
        credential: credential.clone(),
        csr: csr::request("any", &key()),
    };
    let cps_key = &home.device.cps_key;
    let good = request(home.id, update("civil", &credential));
    let mut flipped = good.sign(cps_key);
    let at = flipped.len() - 70;
    flipped[at] ^= 1;
    let bad_csr = RequestKind::Update {
        service: "civil".parse().unwrap(),
        credential: credential.clone(),
        csr: vec![0x30, 0],
    };
    let serial = Serial::new(&[1]).unwrap();
    let outcome = Outcome::RolledBack;
    let cases: Vec<(&str, Vec<u8>, Refusal)> = vec![
        (
            "another device's credential",
            request(home.id, update("civil", &others)).sign(cps_key),
            Refusal::WrongCredential,
        ),
        (
            "no credential at all",
            request(home.id, update("civil", &nobody)).sign(cps_key),
            Refusal::WrongCredential,
        ),
        (
            "another service",
            request(home.id, update("soil", &credential)).sign(cps_key),
            Refusal::WrongService,
        ),
        (
            "another device",
            request(other.id, update("soil", &others)).sign(cps_key),
            Refusal::WrongDevice,
        ),
        (
            "another device's signature",
            good.sign(&other.device.cps_key),
            Refusal::Integrity,
        ),
        ("nonsense", b"nonsense".to_vec(), Refusal::Malformed),
        ("nothing", Vec::new(), Refusal::Malformed),
        (
            "a bad request",
            request(home.id, bad_csr).sign(cps_key),
            Refusal::BadRequest,
        ),
        (
            "a report on what never ran",
            request(home.id, RequestKind::Report { serial, outcome }).sign(cps_key),
            Refusal::WrongSerial,
        ),
    ];
    for (name, body, expected) in cases {
        let answer = home.send(body).await;
        assert_eq!(refusal(&answer), Some(expected), "{name}: {answer:?}");
    }
    let changed = refusal(&home.send(flipped).await);
    assert!(matches!(
        changed,
        Some(Refusal::Integrity | Refusal::Malformed)
    ));
    assert_eq!(entries(&gateway), log, "nothing was recorded");
    assert!(home.history(&gateway).history.is_empty());
    let metrics = gateway.cps.metrics();
    assert_eq!(metrics.refusals("lifecycle", "wrong credential"), 2);
    assert_eq!(metrics.refusals("lifecycle", "wrong device"), 1);
    // The control: the good one is granted, and a credential in use is not given again.
    granted(&gateway, &home.send(good.sign(cps_key)).await);
    let again = home.ask(RequestKind::Activate { service: None }).await;
    assert_eq!(refusal(&again), Some(Refusal::AlreadyActivated));
}

#[tokio::test]
async fn only_a_device_by_its_own_certificate_may_ask() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    let credential = home.activate().await;
    order(&gateway, home.id, "civil").await;
    let service_key = key();
    let answer = home.update("civil", &credential, &service_key).await;
    let Answer::Granted { certificate, .. } = answer else {
        panic!("{answer:?}");
    };
    let poll = Request {
        device: home.id,
        kind: RequestKind::Poll,
    };
    let body = poll.sign(&service_key);
    let by_service = client(&gateway, &home.device, certificate, &service_key);
    let (path, kind) = ("/api/v1/lifecycle", "application/cbor");
    let response = by_service.post(path, kind, body.clone()).await.unwrap();
    assert_eq!(response.status.as_u16(), 403);
    let by_gateway = https_client(&gateway, cloud.api).await;
    let response = by_gateway.post(path, kind, body).await.unwrap();
    assert_eq!(response.status.as_u16(), 403);
    // Revoked, the device gets nothing more.
    let own = home.device.certificate.as_ref().unwrap();
    let serial = crate::authority::serial_of(own).unwrap();
    gateway.cps.authority().revoke(serial).await.unwrap();
    let body = poll.sign(&home.device.cps_key);
    let response = home.client.post(path, kind, body).await.unwrap();
    assert_eq!(response.status.as_u16(), 401);
    assert_eq!(gateway.cps.metrics().refusals("lifecycle", "revoked"), 1);
}

#[tokio::test]
async fn notices_are_signed_once_and_their_numbers_only_grow() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    let lifecycle = gateway.cps.lifecycle();
    assert_eq!(lifecycle.notice(home.id).await.unwrap(), None);
    let mut told = lifecycle.orders();
    order(&gateway, home.id, "civil").await;
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    let first = lifecycle.notice(home.id).await.unwrap().unwrap();
    assert_eq!(lifecycle.notice(home.id).await.unwrap().unwrap(), first);
    let config = home.device.config.as_ref().unwrap();
    let read =
        |bytes: &[u8]| Notice::verify(bytes, &config.notice_keys, &config.site, home.id).unwrap();
    let polled = home.ask(RequestKind::Poll).await;
    assert_eq!(polled, Answer::Notice(Some(first.clone())));
    order(&gateway, home.id, "civil").await;
    let second = lifecycle.notice(home.id).await.unwrap().unwrap();
    assert!(read(&second).stamp > read(&first).stamp);
    // An order at the cloud reaches the gateway, which tells the device of it.
    let client = https_client(&gateway, cloud.api).await;
    let sync = crate::sync::Client::new(&gateway.cps, client);
    sync.once().await.unwrap();
    told.mark_unchanged();
    order(&cloud, home.id, "weather").await;
    sync.once().await.unwrap();
    assert!(told.has_changed().unwrap(), "the gateway is told");
    let all = lifecycle.notices().await.unwrap();
    assert_eq!(all.len(), 1);
    let third = read(&all[0].notice);
    assert_eq!(third.issuer.as_str(), "gw1");
    assert!(third.stamp > read(&second).stamp);
    let Body::Service { assignment, rank } = third.body else {
        panic!("a service");
    };
    assert_eq!(assignment.service.as_str(), "weather");
    // The cloud tells the same order of the same rank.
    let theirs = cloud
        .cps
        .lifecycle()
        .notice(home.id)
        .await
        .unwrap()
        .unwrap();
    let Body::Service { rank: same, .. } = read(&theirs).body else {
        panic!("a service");
    };
    assert_eq!(same, rank);
    // After a restart the same notice, not a new one.
    let kept = all[0].notice.clone();
    let (config, id) = (gateway.cps.config().clone(), home.id);
    drop(sync);
    let again = serve(config, gateway.stop().await).await;
    assert_eq!(again.cps.lifecycle().notice(id).await.unwrap(), Some(kept));
}

#[tokio::test]
async fn an_end_of_use_is_told_reported_and_recorded() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    let lifecycle = gateway.cps.lifecycle();
    let nothing = lifecycle.end(home.id).await;
    assert!(matches!(nothing, Err(OrderError::NoService(_))));
    order(&gateway, home.id, "civil").await;
    let credential = home.activate().await;
    let certificate = granted(&gateway, &home.update("civil", &credential, &key()).await);
    let before = lifecycle.notice(home.id).await.unwrap().unwrap();
    let mut told = lifecycle.orders();
    told.mark_unchanged();
    lifecycle.end(home.id).await.unwrap();
    lifecycle.end(home.id).await.unwrap();
    assert!(told.has_changed().unwrap());
    let config = home.device.config.as_ref().unwrap();
    let read =
        |bytes: &[u8]| Notice::verify(bytes, &config.notice_keys, &config.site, home.id).unwrap();
    let after = lifecycle.notice(home.id).await.unwrap().unwrap();
    assert!(read(&after).stamp > read(&before).stamp);
    assert!(matches!(read(&after).body, Body::ServiceEnd { .. }));
    let refused = home.update("civil", &credential, &key()).await;
    assert!(matches!(
        refused,
        Answer::Refused {
            refusal: Refusal::NoService,
            ..
        }
    ));
    let serial = certificate.serial;
    let report = || RequestKind::Report {
        serial: serial.clone(),
        outcome: Outcome::Ended,
    };
    assert!(
        home.history(&gateway).history[0].until.is_none(),
        "not before the device says so"
    );
    for _ in 0..2 {
        assert_eq!(home.ask(report()).await, Answer::Noted);
    }
    let view = home.history(&gateway);
    assert!(
        view.history.len() == 1 && view.history[0].until.is_some(),
        "{view:?}"
    );
    assert_eq!((view.desired, view.running), (None, None));
    assert!(gateway.cps.roster().is_revoked(&serial));
    // A new service begins as ever.
    order(&gateway, home.id, "weather").await;
    granted(&gateway, &home.update("weather", &credential, &key()).await);
    assert_eq!(home.history(&gateway).history.len(), 2);
}

#[tokio::test]
async fn orders_for_nobody_and_to_nowhere_are_refused_in_words() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    let with = |device, server: Option<&str>| Order {
        device,
        service: "civil".parse().unwrap(),
        server: server.map(str::to_owned),
        application: Some("forecast-2".parse().unwrap()),
        alone: server.is_some(),
    };
    let lifecycle = gateway.cps.lifecycle();
    let nobody = lifecycle
        .order(with(DeviceId::from_guid(guid()), None))
        .await;
    assert!(matches!(nobody, Err(OrderError::UnknownDevice(_))));
    let alone = Order {
        alone: true,
        ..with(home.id, None)
    };
    let alone = lifecycle.order(alone).await;
    assert!(matches!(alone, Err(OrderError::NobodyAlone)), "{alone:?}");
    let long = format!("{}@h:1", "x".repeat(300));
    for bad in [
        "gw9",
        "@h:1",
        "name@host",
        "name@host:0",
        "Name@h:1",
        "a@h:x",
        &long,
    ] {
        let refused = lifecycle.order(with(home.id, Some(bad))).await;
        assert!(
            matches!(refused, Err(OrderError::UnknownServer(_))),
            "{bad}"
        );
    }
    for good in ["gw1", "weather.servers.holdfast.internal@10.1.2.3:8883"] {
        lifecycle.order(with(home.id, Some(good))).await.unwrap();
    }
    let credential = home.activate().await;
    granted(&gateway, &home.update("civil", &credential, &key()).await);
    let line = &home.history(&gateway).history[0];
    assert_eq!(line.server.as_deref(), Some("weather"));
    assert_eq!(line.application.as_deref(), Some("forecast-2"));
    assert!(line.alone, "{line:?}");
}
