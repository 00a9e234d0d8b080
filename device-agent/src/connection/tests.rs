//! The connection against a server that cuts, refuses and dies: every reading once, in order.

mod server;
mod service;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use holdfast_link::retry::Policy;
use holdfast_link::time::ManualClock;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::{DeviceId, Guid};
use holdfast_protocol::name::Party;
use holdfast_protocol::site_module::{ServerAddress, ServerRole, SiteConfig};
use holdfast_protocol::time::{Time, TimeQuality};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::kit::Authority;
use crate::outbox::{Append, Numbering};
use server::{Act, Ledger, Server};

const GATEWAY: &str = "gw1.gateways.plant.holdfast.internal";
const CLOUD: &str = "cloud.servers.holdfast.internal";
const PATIENCE: Duration = Duration::from_secs(30);

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// An address at which nobody listens.
async fn nowhere() -> SocketAddr {
    tokio::net::TcpListener::bind(anywhere())
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

fn identity(authority: &Authority, gateway: SocketAddr, cloud: SocketAddr) -> Identity {
    let key = SigningKey::generate(&mut SystemRandom);
    let device = DeviceId::from_guid(Guid([0xab; 16]));
    let (site, domain) = (
        "plant".parse().unwrap(),
        "holdfast.internal".parse().unwrap(),
    );
    let name = Party::Device { device, site }.dns(&domain);
    let server = |id: &str, role, name: &str, address: SocketAddr| ServerAddress {
        server: id.parse().unwrap(),
        role,
        name: name.to_owned(),
        mqtt: vec![address.to_string()],
        https: Vec::new(),
    };
    let site = SiteConfig {
        device,
        site: "plant".parse().unwrap(),
        domain,
        server: "cloud".parse().unwrap(),
        anchors: vec![authority.der.clone()],
        chain: Vec::new(),
        notice_keys: Vec::new(),
        servers: vec![
            server("cloud", ServerRole::Cloud, CLOUD, cloud),
            server("gw1", ServerRole::Gateway, GATEWAY, gateway),
        ],
        time: Time::new(1_800_000_000, TimeQuality::Authenticated),
    };
    Identity {
        certificate: authority.client(&key.public(), Some(name)),
        key,
        site,
    }
}

struct Device {
    outbox: Outbox,
    board: Board,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn pace() -> config::Connection {
    config::Connection {
        keep_alive: Duration::from_secs(30),
        ping_interval: Duration::from_millis(200),
        ping_timeout: Duration::from_millis(500),
        connect_timeout: Duration::from_secs(2),
        window: 16,
        retry: Policy {
            first: Duration::from_millis(2),
            longest: Duration::from_millis(10),
        },
        return_after: Duration::from_millis(100),
    }
}

fn device(identity: Identity, outbox: Outbox) -> Device {
    let config = pace();
    let (board, stop) = (Board::default(), CancellationToken::new());
    let clock = Arc::new(ManualClock::at(1_800_000_000));
    let connection =
        Connection::new(identity, outbox.clone(), config, None, clock, board.clone()).unwrap();
    let task = tokio::spawn(connection.run(stop.clone()));
    Device {
        outbox,
        board,
        stop,
        task,
    }
}

async fn push(outbox: &Outbox, name: &str, readings: std::ops::Range<u32>) {
    let position = readings.end.to_le_bytes().to_vec();
    let readings = readings.map(|n| n.to_string().into_bytes()).collect();
    outbox
        .append(Append {
            name: name.to_owned(),
            readings,
            position,
        })
        .await
        .unwrap();
}

async fn drained(outbox: &Outbox) {
    let mut level = outbox.level();
    let empty = level.wait_for(|level| level.rows == 0);
    timeout(PATIENCE, empty)
        .await
        .expect("the outbox drains")
        .unwrap();
}

fn payloads(ledger: &Ledger, name: &str) -> Vec<u32> {
    let topic = format!(
        "hf/v1/plant/{}/up/{name}",
        DeviceId::from_guid(Guid([0xab; 16]))
    );
    let mine = ledger.kept.iter().filter(|(kept, ..)| *kept == topic);
    mine.map(|(.., payload)| String::from_utf8_lossy(payload).parse().unwrap())
        .collect()
}

/// A plan by lot: faults at `percent` of the publications.
fn by_lot(percent: u64, faults: &'static [Act], mut seed: u64) -> impl FnMut() -> Act {
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        match seed % 100 < percent {
            true => faults[usize::try_from(seed / 100).unwrap() % faults.len()],
            false => Act::Acknowledge,
        }
    }
}

#[tokio::test]
async fn through_a_hundred_cuts_every_reading_arrives_once_and_in_order() {
    let authority = Authority::new();
    let faults = &[Act::Cut, Act::KeepAndCut];
    let plan = by_lot(7, faults, 42);
    let server = Server::start(&authority, GATEWAY, anywhere(), Ledger::default(), plan).await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let device = device(
        identity(&authority, server.address, nowhere().await),
        outbox,
    );
    for n in 0..30 {
        push(&device.outbox, "a", n * 20..n * 20 + 20).await;
        push(&device.outbox, "b", n * 5..n * 5 + 5).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    drained(&device.outbox).await;
    device.stop.cancel();
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
    let ledger = server.ledger.borrow().clone();
    assert_eq!(payloads(&ledger, "a"), (0..600).collect::<Vec<_>>());
    assert_eq!(payloads(&ledger, "b"), (0..150).collect::<Vec<_>>());
    assert!(ledger.connections > 10 && ledger.repeats > 0, "{ledger:?}");
    let own = format!("hf/v1/plant/{}/", DeviceId::from_guid(Guid([0xab; 16])));
    assert_eq!(ledger.filters.len(), 4);
    assert!(
        ledger.filters.iter().all(|filter| filter.starts_with(&own)),
        "{ledger:?}"
    );
}

async fn refused_among_others(ledger: Ledger, faults: &'static [Act]) -> (Vec<u32>, Device) {
    let authority = Authority::new();
    let plan = by_lot(8, faults, 99);
    let server = Server::start(&authority, GATEWAY, anywhere(), ledger, plan).await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let device = device(
        identity(&authority, server.address, nowhere().await),
        outbox,
    );
    push(&device.outbox, "a", 0..200).await;
    push(&device.outbox, "a", 200..400).await;
    drained(&device.outbox).await;
    assert!(device.board.now().refused > 0);
    device.stop.cancel();
    (payloads(&server.ledger.borrow(), "a"), device)
}

/// A server takes what follows a refused reading: it comes again under a number that the server does
/// not take for a repeat.
#[tokio::test]
async fn what_is_refused_is_not_lost() {
    let (kept, device) = refused_among_others(Ledger::default(), &[Act::Refuse]).await;
    assert_eq!(kept.len(), 400, "doubled");
    assert_eq!(
        kept.into_iter().collect::<BTreeSet<_>>(),
        (0..400).collect()
    );
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
}

/// A server of ours refuses what follows too: then even cuts in between leave the order as it was.
#[tokio::test]
async fn what_is_refused_keeps_its_place_at_a_server_that_holds_back() {
    let ledger = Ledger {
        holds_back: true,
        ..Ledger::default()
    };
    let (kept, device) = refused_among_others(ledger, &[Act::Refuse]).await;
    assert_eq!(kept, (0..400).collect::<Vec<_>>());
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
    let ledger = Ledger {
        holds_back: true,
        ..Ledger::default()
    };
    let faults = &[Act::Refuse, Act::Cut, Act::KeepAndCut];
    let (kept, device) = refused_among_others(ledger, faults).await;
    assert_eq!(kept.len(), 400, "doubled");
    assert_eq!(
        kept.into_iter().collect::<BTreeSet<_>>(),
        (0..400).collect()
    );
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
}

/// The agent is killed again and again in mid-flight and started on the same state.
#[tokio::test]
async fn a_killed_agent_sends_the_rest_and_no_more() {
    let authority = Authority::new();
    let plan = by_lot(3, &[Act::KeepAndCut], 7);
    let server = Server::start(&authority, GATEWAY, anywhere(), Ledger::default(), plan).await;
    let folder = tempfile::tempdir().unwrap();
    let identity = identity(&authority, server.address, nowhere().await);
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    push(&outbox, "a", 0..250).await;
    push(&outbox, "a", 250..500).await;
    drop(outbox);
    let mut lives = 0;
    loop {
        let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
        let device = device(identity.clone(), outbox);
        let done = timeout(
            Duration::from_millis(25 + lives * 10),
            drained(&device.outbox),
        )
        .await;
        device.task.abort();
        let _ = device.task.await;
        lives += 1;
        if done.is_ok() {
            break;
        }
    }
    assert_eq!(
        payloads(&server.ledger.borrow(), "a"),
        (0..500).collect::<Vec<_>>()
    );
    assert!(lives > 1, "it was never killed in mid-flight");
}

/// Without a gateway the cloud stands in; once the gateway is there and steady, the device goes back.
#[tokio::test]
async fn the_cloud_stands_in_and_the_gateway_is_returned_to() {
    let authority = Authority::new();
    let always = || Act::Acknowledge;
    let cloud = Server::start(&authority, CLOUD, anywhere(), Ledger::default(), always).await;
    let gateway = nowhere().await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let device = device(identity(&authority, gateway, cloud.address), outbox);
    push(&device.outbox, "a", 0..10).await;
    drained(&device.outbox).await;
    assert_eq!(
        payloads(&cloud.ledger.borrow(), "a"),
        (0..10).collect::<Vec<_>>()
    );
    assert_eq!(device.board.now().role.as_deref(), Some("cloud"));
    let gateway = Server::start(&authority, GATEWAY, gateway, Ledger::default(), always).await;
    let back = async {
        while device.board.now().role.as_deref() != Some("gateway") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, back)
        .await
        .expect("goes back to the gateway");
    push(&device.outbox, "a", 10..20).await;
    drained(&device.outbox).await;
    assert_eq!(
        payloads(&gateway.ledger.borrow(), "a"),
        (10..20).collect::<Vec<_>>()
    );
    device.stop.cancel();
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
}

/// The uplink is cut silently, so the cloud does not answer for seconds: a gateway that comes back
/// meanwhile is not kept waiting for it.
#[tokio::test]
async fn a_silent_cloud_does_not_keep_from_the_gateway() {
    let authority = Authority::new();
    let silent = tokio::net::TcpListener::bind(anywhere()).await.unwrap();
    let gateway = nowhere().await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let identity = identity(&authority, gateway, silent.local_addr().unwrap());
    let device = device(identity, outbox);
    push(&device.outbox, "a", 0..5).await;
    // The agent hangs in the handshake with the cloud, for two seconds at most.
    let _hanging = timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
    let begun = Instant::now();
    let always = || Act::Acknowledge;
    let gateway = Server::start(&authority, GATEWAY, gateway, Ledger::default(), always).await;
    drained(&device.outbox).await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        payloads(&gateway.ledger.borrow(), "a"),
        (0..5).collect::<Vec<_>>()
    );
    device.stop.cancel();
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
}

/// A server with another name, or of another authority, gets nothing.
#[tokio::test]
async fn an_impostor_gets_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let always = || Act::Acknowledge;
    let renamed = Server::start(
        &authority,
        "x.gateways.plant.holdfast.internal",
        anywhere(),
        Ledger::default(),
        always,
    )
    .await;
    let foreign = Server::start(&other, CLOUD, anywhere(), Ledger::default(), always).await;
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let device = device(
        identity(&authority, renamed.address, foreign.address),
        outbox,
    );
    push(&device.outbox, "a", 0..3).await;
    let told = async {
        while !device.board.now().detail.contains("not trusted") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, told).await.expect("says why");
    device.stop.cancel();
    timeout(PATIENCE, device.task).await.unwrap().unwrap();
    assert_eq!(
        renamed.ledger.borrow().connections + foreign.ledger.borrow().connections,
        0
    );
    assert_eq!(device.outbox.level().borrow().rows, 3);
}
