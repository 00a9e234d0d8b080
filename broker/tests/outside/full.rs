//! A disk that is full for long, on a file system of its own: publishes are refused, nothing else
//! suffers, and it goes on as soon as there is room.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_broker::{Config, JournalMedium};
use holdfast_store::OpenBackend;

use crate::common::{PATIENCE, Server, packet, publish, text};
use crate::kit::{hello, lasting, skipped, until};

/// Bytes of the file system.
const SIZE: &str = "64m";

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn new(test: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap().keep();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={SIZE}"), "tmpfs"])
            .arg(&place)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(place)),
            other => {
                let _ = std::fs::remove_dir(&place);
                skipped(&format!(
                    "{test}: a file system of its own needs root: {other:?}"
                ));
                None
            }
        }
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) {
        let free = Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(&self.0)
            .output()
            .unwrap();
        let text = String::from_utf8(free.stdout).unwrap();
        let free: u64 = text.lines().last().unwrap().trim().parse().unwrap();
        let ballast = vec![0; usize::try_from(free.saturating_sub(left)).unwrap()];
        match std::fs::write(self.0.join("ballast"), ballast) {
            // The journal took some of it in between: all the same nothing is left.
            Err(error) if left == 0 && error.kind() == ErrorKind::StorageFull => {}
            done => done.unwrap(),
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: the journal's thread may still be closing its file.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

async fn on(disk: &Small) -> Server {
    let config = Config {
        reserve_bytes: 8 << 20,
        ..Config::default()
    };
    Server::on(config, JournalMedium::File(disk.0.join("journal.redb"))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_publishes_and_nothing_else_until_there_is_room() {
    let Some(disk) = Small::new("a_full_disk") else {
        return;
    };
    let server = on(&disk).await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d/#", 2).await;
    offline.disconnect().await;
    let mut idle = server.v3("idle").await;
    let mut five = server.v5("five").await;
    let mut acknowledged = 0u32;
    for _ in 0..20 {
        assert_eq!(five.publish("d/x", 1, &acknowledged.to_string()).await, 0);
        acknowledged += 1;
    }
    disk.fill(2 << 20);
    // Refusals as fast as they go: QoS 1 and 2, and a 3.1.1 client that hears nothing.
    let mut three = server.v3("three").await;
    for round in 0..300u32 {
        assert_eq!(five.publish("d/x", 1 + (round % 2) as u8, "no").await, 0x97);
        let id = three.id();
        three.send(&publish(false, 2, "d/x", id, &[], b"no")).await;
    }
    three.nothing().await;
    // Control writes go on: sessions, subscriptions, what is read and acknowledged.
    let (mut new, _) = server.lasting("new").await;
    assert_eq!(new.subscribe("other/#", 1).await, 1);
    assert_eq!(new.unsubscribe("other/#").await, [0, 0]);
    new.disconnect().await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    for expected in 0..10 {
        assert_eq!(offline.receive().await.text(), expected.to_string());
    }
    offline.disconnect().await;
    // What needs no disk is not refused.
    five.subscribe("live", 1).await;
    assert_eq!(five.publish_with("live", 0, &[], "m").await, 0);
    assert_eq!(five.receive().await.text(), "m");
    assert!(server.broker.metrics().refused_full >= 600);
    disk.free();
    let freed = Instant::now();
    while five.publish("d/x", 1, &acknowledged.to_string()).await != 0 {
        assert!(freed.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    acknowledged += 1;
    idle.nothing().await;
    three.nothing().await;
    // Nothing acknowledged is lost, nothing refused is there.
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    for expected in 10..acknowledged {
        let mut arrived = offline.receive().await;
        while arrived.dup() && arrived.text() != expected.to_string() {
            arrived = offline.receive().await;
        }
        assert_eq!(arrived.text(), expected.to_string());
    }
    offline.nothing().await;
    assert_eq!(
        server.broker.metrics().failed_commits,
        0,
        "the store saw none of it"
    );
}

/// Holds tokio's paused clock where the test puts it; it would run ahead while all wait for the disk.
fn hold_the_clock() -> std::sync::mpsc::SyncSender<()> {
    let (hold, held) = std::sync::mpsc::sync_channel(1);
    tokio::task::spawn_blocking(move || held.recv());
    hold
}

/// Time by the real clock: the store's own.
async fn really(time: Duration) {
    tokio::task::spawn_blocking(move || std::thread::sleep(time))
        .await
        .unwrap();
}

/// Filters of one SUBSCRIBE.
const FILTERS: usize = 180;

/// A SUBSCRIBE that needs room on the disk: filters of 1,000 bytes, and a short one.
fn many_long_filters() -> Vec<u8> {
    let mut body = vec![0, 9, 0];
    for number in 0..FILTERS {
        let filter = match number {
            0 => "0".to_owned(),
            _ => format!("{number:01000}"),
        };
        body.extend(text(&filter));
        body.push(1);
    }
    packet(0x82, &body)
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_a_full_disk_by_the_clock_drop_no_client_and_end_within_5_seconds() {
    let Some(disk) = Small::new("ten_minutes") else {
        return;
    };
    let _held = hold_the_clock();
    let server = on(&disk).await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d/#", 1).await;
    offline.disconnect().await;
    let mut short = lasting(true, "short");
    short.properties = crate::common::expiry(120);
    hello(&server, &short).await.disconnect().await;
    let mut idle = server.v3("idle").await;
    let mut five = server.v5("five").await;
    for number in 0..20 {
        assert_eq!(five.publish("d/x", 1, &number.to_string()).await, 0);
    }
    assert_eq!(server.broker.metrics().sessions, 4);
    // Not a byte is left but the reserve.
    disk.fill(0);
    let reserve = disk.0.join("journal.redb.reserve");
    for second in 0..600 {
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(five.publish("d/x", 1, "no").await, 0x97, "{second}");
        if second % 30 == 0 {
            idle.nothing().await;
        }
        if second % 60 == 0 {
            // Control writes, and one message read and acknowledged.
            let (mut new, _) = server.lasting(&format!("new-{second}")).await;
            new.send(&many_long_filters()).await;
            let (_, codes) = new.packet().await.unwrap();
            assert_eq!(codes[3..], [1; FILTERS], "{second}");
            assert_eq!(new.unsubscribe("0").await, [0, 0]);
            new.disconnect().await;
            let mut offline = hello(&server, &lasting(true, "offline")).await;
            assert_eq!(offline.receive().await.text(), (second / 60).to_string());
            offline.disconnect().await;
        }
    }
    assert!(!reserve.exists(), "control writes took the reserve");
    // A session whose time ran out is gone, and the new one is there.
    let sessions = server.broker.sessions();
    let ids: Vec<&str> = sessions
        .iter()
        .map(|view| &*view.identity.client_id)
        .collect();
    assert!(
        !ids.contains(&"short") && ids.contains(&"new-540"),
        "{ids:?}"
    );
    disk.free();
    let freed = Instant::now();
    while five.publish("d/x", 1, "20").await != 0 {
        assert!(freed.elapsed() < Duration::from_secs(5));
        really(Duration::from_millis(50)).await;
    }
    while !reserve.exists() {
        assert!(freed.elapsed() < Duration::from_secs(5), "the reserve");
        five.publish("elsewhere", 1, "m").await;
        let (new, _) = server.lasting("new").await;
        new.disconnect().await;
        really(Duration::from_millis(50)).await;
    }
    idle.nothing().await;
    five.nothing().await;
    assert!(server.broker.metrics().refused_full >= 600);
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    for expected in 10..=20 {
        assert_eq!(offline.receive().await.text(), expected.to_string());
    }
    offline.nothing().await;
}

/// The planted defect: the disk under this journal is not asked for its room.
#[derive(Debug)]
struct Unasked(PathBuf);

impl OpenBackend for Unasked {
    fn open(&self) -> std::io::Result<Box<dyn redb::StorageBackend>> {
        let mut options = std::fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let backend = redb::backends::FileBackend::new(options.open(&self.0)?);
        Ok(Box::new(backend.map_err(std::io::Error::other)?))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_a_journal_that_does_not_ask_for_room_meets_the_full_disk() {
    let Some(disk) = Small::new("control_unasked") else {
        return;
    };
    let unasked = Unasked(disk.0.join("journal.redb"));
    let medium = JournalMedium::Backend(std::sync::Arc::new(unasked));
    let server = Server::on(Config::default(), medium).await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d/#", 1).await;
    offline.disconnect().await;
    let mut five = server.v5("five").await;
    disk.fill(0);
    let large = "x".repeat(200_000);
    let mut codes = Vec::new();
    for _ in 0..20 {
        codes.push(five.publish("d/x", 1, &large).await);
    }
    // What the tests above demand does not hold: 0x97 for each, and a store that saw none of it.
    assert!(codes.contains(&0x80), "the test is blind: {codes:?}");
    assert!(server.broker.metrics().failed_commits > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_filled_by_others_under_the_journal_poisons_it_and_no_client_notices() {
    let Some(disk) = Small::new("a_disk_filled_by_others") else {
        return;
    };
    let server = on(&disk).await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d/#", 1).await;
    offline.disconnect().await;
    let mut idle = server.v3("idle").await;
    let mut giver = server.v5("giver").await;
    let large = "x".repeat(200_000);
    let mut acknowledged = 0;
    // The room goes between the question and the write, again and again.
    for round in 0..30 {
        if round == 10 {
            disk.fill(0);
        }
        if giver.publish("d/x", 1, &large).await == 0 {
            acknowledged += 1;
        }
        if round == 20 {
            disk.free();
        }
    }
    let begun = Instant::now();
    while giver.publish("d/x", 1, &large).await != 0 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    acknowledged += 1;
    idle.nothing().await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    for _ in 0..acknowledged {
        assert_eq!(offline.receive().await.payload.len(), large.len());
    }
}

#[tokio::test]
async fn quotas_in_all_and_per_client_hold_and_are_counted() {
    let mut config = Config::default();
    config.limits.subscriptions_in_all = 3;
    config.limits.retained_per_client = 2;
    config.limits.journal_rows = 4;
    let server = Server::start(config).await;
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    assert_eq!(one.subscribe("a", 0).await, 0);
    assert_eq!(two.subscribe("b", 0).await, 0);
    assert_eq!(two.subscribe("c", 0).await, 0);
    assert_eq!(one.subscribe("d", 0).await, 0x97);
    // One that is there already may be changed.
    assert_eq!(one.subscribe("a", 1).await, 1);
    assert_eq!(server.broker.metrics().refused_subscriptions, 1);
    for (topic, code) in [("k/1", 0x10), ("k/2", 0x10), ("k/3", 0x97), ("k/1", 0x10)] {
        assert_eq!(one.publish_with(topic, 3, &[], "m").await, code, "{topic}");
    }
    // Another has a part of its own; clearing makes room.
    assert_eq!(two.publish_with("k/3", 3, &[], "m").await, 0x10);
    assert_eq!(one.publish_with("k/1", 3, &[], "").await, 0x10);
    assert_eq!(one.publish_with("k/4", 3, &[], "m").await, 0x10);
    one.unsubscribe("a").await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d", 1).await;
    offline.disconnect().await;
    until("away", || server.broker.metrics().connections == 2).await;
    for number in 0..6 {
        let code = one.publish("d", 1, "m").await;
        assert_eq!(code, if number < 4 { 0 } else { 0x97 });
    }
    let figures = server.broker.metrics();
    assert_eq!((figures.journal_rows, figures.refused_full), (4, 3));
}

#[tokio::test]
async fn the_policy_of_a_full_queue_goes_by_topic_pattern() {
    use holdfast_broker::{DropReason, Filter, WhenFull};
    let pattern = |text: &str| Filter::new(text).unwrap();
    let mut config = Config {
        when_full: vec![
            (pattern("order/#"), WhenFull::Refuse),
            (pattern("state/#"), WhenFull::DropOldest),
        ],
        ..Config::default()
    };
    config.limits.session_rows = 3;
    for (topic, kept, dropped, refused) in [
        ("order/x", [0, 1, 2], 0, 2),
        ("state/x", [2, 3, 4], 2, 0),
        ("other/x", [0, 1, 2], 2, 0),
    ] {
        let server = Server::start(config.clone()).await;
        let mut events = server.broker.events();
        let mut offline = hello(&server, &lasting(true, "offline")).await;
        offline.subscribe("#", 1).await;
        offline.disconnect().await;
        let mut giver = server.v5("giver").await;
        let mut codes = Vec::new();
        for number in 0..5 {
            codes.push(giver.publish(topic, 1, &number.to_string()).await);
        }
        let told = codes.iter().filter(|code| **code == 0x97).count() as u64;
        let figures = server.broker.metrics();
        let counted = figures.dropped.get(&DropReason::JournalFull).copied();
        assert_eq!((told, figures.refused_full), (refused, refused), "{topic}");
        assert_eq!(counted.unwrap_or(0), dropped, "{topic}");
        let mut heard = 0;
        while let Ok(event) = events.try_recv() {
            match event {
                holdfast_broker::Event::Dropped { count, .. }
                | holdfast_broker::Event::JournalFull { count, .. } => heard += count,
                _ => {}
            }
        }
        assert_eq!(heard, dropped + refused, "every one is told as an event");
        let mut offline = hello(&server, &lasting(true, "offline")).await;
        for number in kept {
            assert_eq!(
                offline.receive().await.text(),
                number.to_string(),
                "{topic}"
            );
        }
        offline.nothing().await;
    }
}
