//! Many slow subscribers at once: their queues together stay within one bound, and whoever reads loses
//! nothing to them.

use std::time::{Duration, Instant};

use holdfast_broker::{Config, CutReason, DropReason, Event};
use tokio::net::TcpSocket;
use tokio::sync::broadcast::error::TryRecvError;

use crate::common::{Hello, Server, Wire};
use crate::kit::{lasting, until};

/// What all queues may hold together.
const CAP: usize = 8 << 20;
/// Subscribers that do not read.
const DEAF: usize = 40;
const MESSAGES: usize = 300;
const PAYLOAD: usize = 16 << 10;

fn capped(bytes: usize) -> Config {
    let mut config = Config::default();
    // A message fits into each one's own part.
    config.limits.connections = 50;
    config.limits.queued_bytes = bytes;
    config.limits.session_row_bytes = 1 << 30;
    config
}

/// A subscriber whose socket takes next to nothing while it does not read.
async fn deaf(server: &Server, hello: &Hello, qos: u8) -> Wire {
    deaf_behind(4096, server, hello, qos).await
}

async fn deaf_behind(buffer: u32, server: &Server, hello: &Hello, qos: u8) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(buffer).unwrap();
    let mut wire = Wire::new(socket.connect(server.address).await.unwrap());
    wire.v5 = hello.v5;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    wire.subscribe("flood", qos).await;
    wire
}

async fn all_deaf(server: &Server) -> Vec<Wire> {
    let mut all = Vec::new();
    for number in 0..DEAF {
        let hello = Hello::v5(&format!("deaf-{number}"));
        // Each ends elsewhere in a message, so that something of one is left over for nearly all.
        let buffer = 4096 + 2500 * u32::try_from(number).unwrap();
        all.push(deaf_behind(buffer, server, &hello, 0).await);
    }
    all
}

/// Publishes to all of them; the most that all queues held.
async fn flood(server: &Server, giver: &mut Wire, quick: &mut Wire) -> u64 {
    flood_with(server, giver, quick, PAYLOAD).await
}

async fn flood_with(server: &Server, giver: &mut Wire, quick: &mut Wire, bytes: usize) -> u64 {
    let payload = "x".repeat(bytes);
    let mut most = 0;
    for number in 0..MESSAGES {
        assert_eq!(giver.publish("flood", 1, &payload).await, 0);
        let arrived = quick.receive().await;
        assert_eq!(arrived.payload.len(), bytes, "{number}");
        most = most.max(server.broker.metrics().queued_bytes);
    }
    most
}

/// Reads to the end: how many came before it.
async fn read_on(mut wire: Wire) -> usize {
    let mut count = 0;
    while wire.receive().await.text() != "end" {
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_slow_subscribers_together_stay_under_the_cap_and_cost_the_others_nothing() {
    let server = Server::start(capped(CAP)).await;
    let mut events = server.broker.events();
    let all = all_deaf(&server).await;
    let patient = deaf(&server, &lasting(true, "patient"), 1).await;
    let mut quick = server.v5("quick").await;
    quick.subscribe("flood", 0).await;
    let mut giver = server.v5("giver").await;
    let most = flood(&server, &mut giver, &mut quick).await;
    assert!(most <= CAP as u64, "{most} bytes in all queues");
    let dropped = server.broker.metrics().dropped;
    assert!(dropped[&DropReason::MemoryFull] > 0, "{dropped:?}");
    // Now they read: what does not arrive has been counted, each message once.
    let reading: Vec<_> = all
        .into_iter()
        .map(|wire| tokio::spawn(read_on(wire)))
        .collect();
    let patient = tokio::spawn(read_on(patient));
    until("all is read", || {
        server.broker.metrics().queued_messages == 0
    })
    .await;
    giver.publish("flood", 1, "end").await;
    let mut delivered = 0;
    for read in reading {
        delivered += read.await.unwrap();
    }
    let dropped = server.broker.metrics().dropped;
    let lost = usize::try_from(dropped.values().sum::<u64>()).unwrap();
    assert_eq!(delivered + lost, DEAF * MESSAGES, "{dropped:?}");
    // Rows give their memory away and lose nothing.
    assert_eq!(patient.await.unwrap(), MESSAGES);
    let mut told = false;
    loop {
        match events.try_recv() {
            Ok(Event::Dropped { reason, .. }) => told |= reason == DropReason::MemoryFull,
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(_) => break,
        }
    }
    assert!(told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_without_the_cap_the_same_flood_passes_it() {
    let server = Server::start(capped(1 << 30)).await;
    let _all = all_deaf(&server).await;
    let mut quick = server.v5("quick").await;
    quick.subscribe("flood", 0).await;
    let mut giver = server.v5("giver").await;
    let most = flood(&server, &mut giver, &mut quick).await;
    assert!(most > CAP as u64, "the test is blind: {most}");
}

/// A message that is larger than the own part of a connection by far; one for each fits into all queues.
const LARGE: usize = 100_000;

/// Large messages to subscribers that take nothing, for as long as it takes to be called stuck; then
/// what is held, and how many had to go. Whoever reads gets everything.
async fn stuck(cap: usize) -> (u64, u64) {
    let server = Server::start(capped(cap)).await;
    let all = all_deaf(&server).await;
    let patient = deaf(&server, &lasting(true, "patient"), 1).await;
    let mut quick = server.v5("quick").await;
    quick.subscribe("flood", 0).await;
    let mut giver = server.v5("giver").await;
    let payload = "x".repeat(LARGE);
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(giver.publish("flood", 1, &payload).await, 0);
        assert_eq!(quick.receive().await.payload.len(), LARGE, "{sent}");
        sent += 1;
    }
    let ended = server.broker.metrics().ended;
    let gone = ended.get(&CutReason::TooSlow).copied().unwrap_or(0);
    let held = server.broker.metrics().queued_bytes;
    // Its messages are rows: gone or not, it gets every one of them.
    drop(patient);
    let (mut patient, present) = server.lasting("patient").await;
    assert!(present);
    let mut ids = std::collections::BTreeSet::new();
    while ids.len() < sent {
        let arrived = patient.receive().await;
        assert_eq!(arrived.payload.len(), LARGE);
        ids.insert(arrived.id);
    }
    drop(all);
    (held, gone)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_while_memory_is_used_up_goes_and_others_lose_nothing() {
    let (held, gone) = stuck(CAP).await;
    assert!(held <= CAP as u64, "{held} bytes, {gone} went");
    assert!(gone > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_without_the_cap_they_stay_and_hold_more() {
    let (held, gone) = stuck(1 << 30).await;
    assert!(held > CAP as u64, "the test is blind: {held}");
    assert_eq!(gone, 0);
}
