//! TO0's rules, and the relay: remote first, local in its stead, one backend per run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::fdo::Error as LinkError;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::to0::{Registration, hello};
use holdfast_protocol::fdo::{ErrorCode, Message, MessageType};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::rv::{To2Address, To2Protocol};
use holdfast_protocol::voucher::{NewVoucher, Voucher};
use tokio::net::TcpListener;

use super::kit::*;

fn registration(port: u16) -> Registration {
    let address = To2Address {
        ip: Some(LOCAL),
        dns: None,
        port,
        protocol: To2Protocol::Http,
    };
    Registration {
        addresses: vec![address],
        wait_secs: 3_600,
    }
}

async fn register(
    at: SocketAddr,
    voucher: &Voucher,
    key: &SigningKey,
    port: u16,
) -> Result<u32, LinkError> {
    let mut run = fdo_client(at).start();
    let (state, first) = hello();
    let answer = run.exchange(&first).await?;
    let (state, signed) = state
        .step(&answer, voucher, key, &registration(port))
        .unwrap();
    Ok(state.step(&run.exchange(&signed).await?).unwrap())
}

fn code(error: &LinkError) -> Option<ErrorCode> {
    match error {
        LinkError::Refused { error, .. } => Some(error.code),
        _ => None,
    }
}

#[tokio::test]
async fn the_last_owner_registers_a_descendant_replaces_and_a_fork_does_not() {
    let cloud = cloud().await;
    let factory = Factory::new();
    let owner = SigningKey::generate(&mut SystemRandom);
    let thief = SigningKey::generate(&mut SystemRandom);
    let buyer = SigningKey::generate(&mut SystemRandom);
    let key = |key: &SigningKey| PublicKey::x509(&key.public());
    let (device, root) = factory.device("s");
    let first = root.extend(&key(&owner), &factory.key).unwrap();
    assert_eq!(register(cloud.fdo, &first, &owner, 1).await.unwrap(), 3_600);
    let port = async || device.to1(cloud.fdo).await.unwrap().addresses()[0].port;
    assert_eq!(port().await, 1);
    register(cloud.fdo, &first, &owner, 2).await.unwrap();
    assert_eq!(port().await, 2);
    let fork = root.extend(&key(&thief), &factory.key).unwrap();
    let error = register(cloud.fdo, &fork, &thief, 3).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::InvalidVoucher));
    assert_eq!(cloud.cps.metrics().refusals("to0", "voucher fork"), 1);
    assert_eq!(port().await, 2);
    let sold = first.extend(&key(&buyer), &owner).unwrap();
    register(cloud.fdo, &sold, &buyer, 4).await.unwrap();
    assert_eq!(port().await, 4);
    assert!(
        register(cloud.fdo, &first, &owner, 5).await.is_err(),
        "the seller comes back"
    );
    assert_eq!(port().await, 4);
    // It lapses on a clock that is sure, and is kept on one that is not.
    cloud.clock.advance(Duration::from_secs(3_600));
    assert_eq!(
        code(&device.to1(cloud.fdo).await.unwrap_err()),
        Some(ErrorCode::ResourceNotFound)
    );
    let now = holdfast_protocol::time::Time::new(
        NOW + 9_999_999,
        holdfast_protocol::time::TimeQuality::Floor,
    );
    cloud.clock.set(now);
    assert_eq!(port().await, 4);
}

#[tokio::test]
async fn tokens_die_at_the_end_at_an_error_and_belong_to_one_run() {
    let cloud = cloud().await;
    let factory = Factory::new();
    let (device, voucher) = factory.device_for(&cloud.cps, "s");
    let key = &*cloud.cps.keys().owner();
    register(cloud.fdo, &voucher, key, 1).await.unwrap();
    // Used twice: the nonce of the first run is over with it.
    let mut run = fdo_client(cloud.fdo).start();
    let (state, first) = hello();
    let answer = run.exchange(&first).await.unwrap();
    let (_, signed) = state
        .step(&answer, &voucher, key, &registration(1))
        .unwrap();
    run.exchange(&signed).await.unwrap();
    let error = run.exchange(&signed).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::InvalidToken));
    // Another run's nonce.
    let mut other = fdo_client(cloud.fdo).start();
    other.exchange(&hello().1).await.unwrap();
    let error = other.exchange(&signed).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::InvalidOwnerSignBody));
    let error = other.exchange(&signed).await.unwrap_err();
    assert_eq!(
        code(&error),
        Some(ErrorCode::InvalidToken),
        "an error ends the run"
    );
    // TO1 answered with the proof of another device.
    let (stranger, _) = factory.device("s2");
    let mut run = fdo_client(cloud.fdo).start();
    let mut wrong = device.credential.clone();
    wrong.key = stranger.credential.key.clone();
    let (state, first) = holdfast_protocol::fdo::to1::hello(&wrong);
    let (_, proof) = state.step(&run.exchange(&first).await.unwrap()).unwrap();
    assert_eq!(
        code(&run.exchange(&proof).await.unwrap_err()),
        Some(ErrorCode::InvalidMessage)
    );
    let error = run.exchange(&proof).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::InvalidToken));
    // Without any token.
    let mut run = fdo_client(cloud.fdo).start();
    let error = run.exchange(&proof).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::InvalidToken));
    assert_eq!(cloud.cps.metrics().refusals("to0", "unknown token"), 2);
    assert_eq!(cloud.cps.metrics().refusals("to1", "unknown token"), 2);
}

/// A remote rendezvous with a device, and a gateway whose local one knows it too, elsewhere.
async fn relayed() -> (Served, Served, Device) {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let factory = Factory::new();
    let (device, voucher) = factory.device_for(&cloud.cps, "s");
    register(cloud.fdo, &voucher, &cloud.cps.keys().owner(), 40)
        .await
        .unwrap();
    let next = PublicKey::x509(&gateway.cps.keys().owner().public());
    let extended = voucher.extend(&next, &cloud.cps.keys().owner()).unwrap();
    register(gateway.fdo, &extended, &gateway.cps.keys().owner(), 50)
        .await
        .unwrap();
    (cloud, gateway, device)
}

async fn port(device: &Device, at: SocketAddr) -> u16 {
    device.to1(at).await.unwrap().addresses()[0].port
}

#[tokio::test]
async fn the_relay_asks_the_remote_first_and_the_local_one_when_it_is_away() {
    let (cloud, gateway, device) = relayed().await;
    assert_eq!(port(&device, gateway.fdo).await, 50, "no remote set");
    gateway.cps.relay().set_remote(Some(fdo_client(cloud.fdo)));
    assert_eq!(port(&device, gateway.fdo).await, 40);
    gateway.cps.relay().remote_up(false);
    assert_eq!(
        port(&device, gateway.fdo).await,
        50,
        "the uplink is known to be down"
    );
    gateway.cps.relay().remote_up(true);
    // A closed port, and one that never answers.
    let closed = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let at = closed.local_addr().unwrap();
    drop(closed);
    gateway.cps.relay().set_remote(Some(fdo_client(at)));
    assert_eq!(port(&device, gateway.fdo).await, 50);
    let silent = TcpListener::bind((LOCAL, 0)).await.unwrap();
    gateway
        .cps
        .relay()
        .set_remote(Some(fdo_client(silent.local_addr().unwrap())));
    let begun = std::time::Instant::now();
    assert_eq!(port(&device, gateway.fdo).await, 50);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Its LAN has no way to the Internet, or that owner is down while the rendezvous answers.
#[tokio::test]
async fn a_device_that_does_not_get_to_the_remote_owner_is_led_to_the_local_one() {
    let (cloud, gateway, device) = relayed().await;
    gateway.cps.relay().set_remote(Some(fdo_client(cloud.fdo)));
    let mut led = Vec::new();
    for _ in 0..8 {
        led.push(port(&device, gateway.fdo).await);
    }
    assert_eq!(led, [40, 40, 40, 50, 40, 40, 40, 50]);
    // The control: one that is not known here is never led here.
    let (stranger, voucher) = Factory::new().device_for(&cloud.cps, "s");
    let key = cloud.cps.keys().owner();
    register(cloud.fdo, &voucher, &key, 41).await.unwrap();
    for _ in 0..8 {
        assert_eq!(port(&stranger, gateway.fdo).await, 41);
    }
}

#[tokio::test]
async fn what_the_remote_does_not_know_the_local_one_answers() {
    let (cloud, gateway, _) = relayed().await;
    gateway.cps.relay().set_remote(Some(fdo_client(cloud.fdo)));
    let factory = Factory::new();
    let (device, voucher) = factory.device_for(&gateway.cps, "s");
    register(gateway.fdo, &voucher, &gateway.cps.keys().owner(), 7)
        .await
        .unwrap();
    assert_eq!(port(&device, gateway.fdo).await, 7);
    let (unknown, _) = factory.device("s");
    let error = unknown.to1(gateway.fdo).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::ResourceNotFound));
}

#[tokio::test]
async fn a_backend_lost_in_mid_run_is_an_error_and_never_switched() {
    let (cloud, gateway, device) = relayed().await;
    gateway.cps.relay().set_remote(Some(fdo_client(cloud.fdo)));
    let mut run = fdo_client(gateway.fdo).start();
    let (state, first) = holdfast_protocol::fdo::to1::hello(&device.credential);
    let (_, proof) = state.step(&run.exchange(&first).await.unwrap()).unwrap();
    cloud.stop().await;
    let error = run.exchange(&proof).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::Internal), "{error}");
    // The next run has the local one.
    assert_eq!(port(&device, gateway.fdo).await, 50);
    // The same token again is void.
    assert_eq!(
        code(&run.exchange(&proof).await.unwrap_err()),
        Some(ErrorCode::InvalidToken)
    );
}

#[tokio::test]
async fn a_crowd_of_runs_is_bounded_and_the_newest_is_served() {
    let cloud = cloud_with(|config| config.limits.fdo_sessions = 8).await;
    let factory = Factory::new();
    let (device, voucher) = factory.device_for(&cloud.cps, "s");
    register(cloud.fdo, &voucher, &cloud.cps.keys().owner(), 1)
        .await
        .unwrap();
    let party: Arc<dyn crate::fdo::FdoParty> = cloud.cps.rendezvous().clone();
    for _ in 0..100 {
        let Message { body, .. } = hello().1;
        let request = crate::fdo::FdoRequest {
            message: MessageType::To0Hello.number(),
            token: None,
            body: body.into(),
        };
        assert_eq!(party.answer(request).await.message, 21);
    }
    assert_eq!(port(&device, cloud.fdo).await, 1);
}

#[tokio::test]
async fn strangers_fill_no_disk_and_keep_no_device_from_its_owner() {
    let cloud = cloud_with(|config| config.limits.rendezvous_entries = 3).await;
    let factory = Factory::new();
    let stranger = SigningKey::generate(&mut SystemRandom);
    let next = PublicKey::x509(&stranger.public());
    let foreign = || factory.device("x").1.extend(&next, &factory.key).unwrap();
    let first = foreign();
    for voucher in [&first, &foreign(), &foreign()] {
        register(cloud.fdo, voucher, &stranger, 1).await.unwrap();
    }
    let full = register(cloud.fdo, &foreign(), &stranger, 1).await;
    assert_eq!(code(&full.unwrap_err()), Some(ErrorCode::InvalidMessage));
    assert_eq!(cloud.cps.metrics().refusals("to0", "too much"), 1);
    // Who is in may register anew, and this server's own vouchers always find room.
    register(cloud.fdo, &first, &stranger, 2).await.unwrap();
    let (device, voucher) = factory.device_for(&cloud.cps, "s");
    register(cloud.fdo, &voucher, &cloud.cps.keys().owner(), 4)
        .await
        .unwrap();
    assert_eq!(port(&device, cloud.fdo).await, 4);
    // A chain made up for a device's GUID lapses like any other, and so does the full table.
    cloud.clock.advance(Duration::from_secs(30 * 24 * 3_600));
    let forger = SigningKey::generate(&mut SystemRandom);
    let made_up = NewVoucher::new(
        first.guid(),
        first.rendezvous(),
        first.device_info(),
        &PublicKey::x509(&forger.public()),
        first.device_chain().map(<[_]>::to_vec),
    );
    let made_up = made_up.seal(first.mac().clone()).unwrap();
    let made_up = made_up.extend(&next, &forger).unwrap();
    register(cloud.fdo, &made_up, &stranger, 5).await.unwrap();
}

#[tokio::test]
async fn a_crowd_of_owners_ends_no_devices_run() {
    let cloud = cloud_with(|config| config.limits.fdo_sessions = 4).await;
    let factory = Factory::new();
    let (device, voucher) = factory.device_for(&cloud.cps, "s");
    register(cloud.fdo, &voucher, &cloud.cps.keys().owner(), 1)
        .await
        .unwrap();
    let mut run = fdo_client(cloud.fdo).start();
    let (state, first) = holdfast_protocol::fdo::to1::hello(&device.credential);
    let (_, proof) = state.step(&run.exchange(&first).await.unwrap()).unwrap();
    for _ in 0..20 {
        let mut crowd = fdo_client(cloud.fdo).start();
        crowd.exchange(&hello().1).await.unwrap();
    }
    let answer = run.exchange(&proof).await.unwrap();
    assert_eq!(answer.kind, MessageType::To1RvRedirect);
}

#[tokio::test]
async fn a_registration_lasts_as_long_as_it_is_asked_to() {
    let cloud = cloud_with(|config| config.limits.registration = Duration::from_secs(90)).await;
    let factory = Factory::new();
    let (_, voucher) = factory.device_for(&cloud.cps, "s");
    cloud.cps.add_site(&site("north")).await.unwrap();
    let vouchers = cloud.cps.vouchers();
    vouchers
        .accept(&voucher, Some(site("north")))
        .await
        .unwrap();
    let row = vouchers.list().unwrap().remove(0);
    let granted = cloud.cps.to0().register(&fdo_client(cloud.fdo), &row).await;
    assert_eq!(granted.unwrap(), 90);
}
