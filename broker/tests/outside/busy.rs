//! Busy receivers are waited for, a little; slow ones are not, and cost the others nothing.

use std::time::{Duration, Instant};

use holdfast_broker::{Config, DropReason};

use crate::common::{Server, publish};
use crate::kit::{hello, lasting, until};

fn small(messages: usize) -> Config {
    let mut config = Config::default();
    config.limits.queue_messages = messages;
    config
}

/// Publishes as fast as the socket takes it: `count` messages of QoS 0 from each of three publishers.
async fn flood(server: &Server, topic: &'static str, count: usize) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..3 {
        let mut giver = server.v5(&format!("giver-{number}")).await;
        tasks.spawn(async move {
            for step in 0..count / 50 {
                let mut bytes = Vec::new();
                for message in 0..50 {
                    let payload = format!("{number} {:06}", step * 50 + message);
                    bytes.extend(publish(true, 0, topic, 0, &[], payload.as_bytes()));
                }
                giver.send(&bytes).await;
            }
            giver.nothing().await;
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_keeps_up_loses_nothing_to_faster_publishers() {
    // The queue holds less than one read of one publisher.
    let server = Server::start(small(512)).await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("flood", 0).await;
    let reading = tokio::spawn(async move {
        let mut next = [0; 3];
        let mut missing = 0;
        loop {
            let arrived = taker.arrived().await;
            let Some((giver, number)) = arrived.text().split_once(' ') else {
                return (next, missing);
            };
            let giver: usize = giver.parse().unwrap();
            let number: u64 = number.parse().unwrap();
            assert!(number >= next[giver], "in order, and none twice");
            missing += number - next[giver];
            next[giver] = number + 1;
        }
    });
    flood(&server, "flood", 5000).await.join_all().await;
    server.v5("last").await.publish("flood", 0, "end").await;
    let (next, missing) = reading.await.unwrap();
    let missing = missing + next.iter().map(|next| 5000 - next).sum::<u64>();
    // What is missing is counted; a machine that stops the reader for long may cost a little.
    let dropped = server.broker.metrics().dropped;
    assert_eq!(missing, dropped.values().sum::<u64>(), "{dropped:?}");
    assert!(missing < 1500, "{missing} of 15,000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_stopped_reading_makes_nobody_wait_for_long() {
    let server = Server::start(small(64)).await;
    let mut dead = server.v5("dead").await;
    dead.subscribe("#", 0).await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("live", 1).await;
    let large = "x".repeat(200_000);
    let mut giver = server.v5("giver").await;
    // Its socket and its queue are full: from here on everything for it is dropped.
    for _ in 0..150 {
        giver.publish("other", 1, &large).await;
    }
    let full = || {
        server
            .broker
            .metrics()
            .dropped
            .get(&DropReason::QueueFull)
            .copied()
    };
    assert!(full().is_some_and(|count| count > 0));
    let mut slowest = Duration::ZERO;
    let begun = Instant::now();
    let mut rounds = 0u32;
    while begun.elapsed() < Duration::from_secs(3) {
        let sent = Instant::now();
        giver.publish("live", 1, "m").await;
        taker.receive().await;
        slowest = slowest.max(sent.elapsed());
        rounds += 1;
    }
    // It is waited for 20 ms at a time, at most twice in this time.
    let mean = begun.elapsed() / rounds;
    assert!(
        mean < Duration::from_millis(10),
        "{mean:?}, slowest {slowest:?}"
    );
    // Exactly what was not delivered is counted.
    let dropped = full().unwrap();
    drop(dead);
    until("gone", || server.broker.metrics().connections == 2).await;
    assert!(full().unwrap() >= dropped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_of_durable_publishes_stay_quick_beside_a_slow_subscriber() {
    let server = Server::start(small(256)).await;
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d/#", 1).await;
    offline.disconnect().await;
    let mut slow = server.v5("slow").await;
    slow.subscribe("d/#", 1).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..4 {
        let mut giver = server.v5(&format!("giver-{number}")).await;
        tasks.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..200 {
                let sent = Instant::now();
                assert_eq!(giver.publish(&format!("d/{number}"), 1, "m").await, 0);
                times.push(sent.elapsed());
            }
            times
        });
    }
    // The slow one reads a message every 5 ms and acknowledges none of them.
    let reading = tokio::spawn(async move {
        loop {
            slow.arrived().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut times: Vec<Duration> = tasks.join_all().await.concat();
    reading.abort();
    times.sort();
    let p99 = times[times.len() * 99 / 100];
    // A bound for a busy machine and an unoptimised build; the bench holds the real one.
    assert!(p99 < Duration::from_millis(250), "{p99:?}");
    assert_eq!(times.len(), 800);
}

/// A lasting subscriber that reads nothing, beside one that reads: the slowest acknowledgements (p99), the
/// rows that the dead one holds, and how many of its messages are missing and not counted.
async fn beside_a_dead_session(cap: u64) -> (Duration, u64, u64) {
    const MESSAGES: usize = 400;
    let mut config = Config::default();
    config.limits.session_rows = cap;
    let server = Server::start(config).await;
    let mut dead = hello(&server, &lasting(true, "dead")).await;
    dead.subscribe("d", 1).await;
    let mut quick = hello(&server, &lasting(true, "quick")).await;
    quick.subscribe("d", 1).await;
    let mut giver = server.v5("giver").await;
    let mut times = Vec::new();
    for number in 0..MESSAGES {
        let sent = Instant::now();
        assert_eq!(giver.publish("d", 1, &number.to_string()).await, 0);
        times.push(sent.elapsed());
        assert_eq!(quick.receive().await.text(), number.to_string());
    }
    times.sort();
    until("quick has none", || {
        let views = server.broker.sessions();
        let waiting = |id: &str| {
            let mut named = views.iter().filter(|view| &*view.identity.client_id == id);
            named.next().map(|view| view.waiting)
        };
        // The journal's own figure comes after the commit, a session's before it.
        let rows = server.broker.metrics().journal_rows;
        waiting("quick") == Some(0) && waiting("dead") == Some(rows)
    })
    .await;
    let rows = server.broker.metrics().journal_rows;
    // It reads at last: what does not come has been counted.
    drop(dead);
    let mut dead = hello(&server, &lasting(true, "dead")).await;
    for _ in 0..rows {
        dead.receive().await;
    }
    dead.nothing().await;
    let dropped = server.broker.metrics().dropped;
    let counted = dropped.get(&DropReason::JournalFull).copied().unwrap_or(0);
    (
        times[MESSAGES * 99 / 100],
        rows,
        MESSAGES as u64 - rows - counted,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_lasting_session_costs_itself_its_cap_and_the_others_nothing() {
    let (p99, rows, unaccounted) = beside_a_dead_session(50).await;
    assert_eq!((rows, unaccounted), (50, 0));
    // A bound for a busy machine and an unoptimised build.
    assert!(p99 < Duration::from_millis(250), "{p99:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_a_dead_lasting_session_without_its_cap_holds_everything() {
    let (_, rows, _) = beside_a_dead_session(u64::MAX).await;
    assert_eq!(rows, 400, "the test is blind");
}
