//! Full journals, slow subscribers, the repeat filter, the in-process consumer: everything is counted.

use std::time::{Duration, Instant};

use holdfast_broker::{
    Config, ConsumerOptions, DropReason, Event, Filter, Message, PublishError, Qos, RowId, WhenFull,
};

use crate::common::{Server, publish, stamp};
use crate::kit::{VERSIONS, client, server, until};

async fn full_bridge(when_full: WhenFull) -> (Server, holdfast_broker::Consumer) {
    let server = server().await;
    let options = ConsumerOptions {
        max_rows: 10,
        when_full,
        ..ConsumerOptions::default()
    };
    let consumer = server
        .broker
        .consumer("cloud", vec![Filter::new("up/#").unwrap()], options)
        .await
        .unwrap();
    (server, consumer)
}

#[tokio::test]
async fn a_full_consumer_refuses_with_0x97_and_takes_again_when_there_is_room() {
    let (server, consumer) = full_bridge(WhenFull::Refuse).await;
    let mut events = server.broker.events();
    let mut taker = server.v5("taker").await;
    taker.subscribe("up/#", 1).await;
    let mut giver = server.v5("giver").await;
    for number in 0..10 {
        assert_eq!(giver.publish("up/x", 1, &number.to_string()).await, 0);
    }
    assert_eq!(giver.publish("up/x", 1, "refused").await, 0x97);
    assert_eq!(giver.publish("up/x", 2, "refused").await, 0x97);
    let refused = server
        .broker
        .publish(Message::new("up/x", "no").qos(Qos::AtLeastOnce))
        .await;
    assert!(matches!(refused, Err(PublishError::Full)));
    // What is refused reaches nobody; what no full consumer wants goes through.
    for number in 0..10 {
        assert_eq!(taker.receive().await.text(), number.to_string());
    }
    taker.nothing().await;
    assert!(giver.publish("other", 1, "m").await < 0x80);
    let told = |event| matches!(event, Ok(Event::JournalFull { .. }));
    until("told", || told(events.try_recv())).await;
    let figures = server.broker.metrics();
    assert_eq!((figures.refused_full, figures.journal_rows), (3, 10));
    // 3.1.1 cannot be told: no acknowledgement, and the connection's other messages go on.
    let mut old = server.v3("old").await;
    old.send(&publish(false, 2, "up/x", 7, &[], b"refused"))
        .await;
    assert_eq!(old.publish("other", 1, "m").await, 0);
    let rows = consumer.read(RowId::START, 3).await.unwrap();
    let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
    consumer.acknowledge(&ids).await.unwrap();
    for _ in 0..3 {
        assert_eq!(giver.publish("up/x", 1, "again").await, 0);
    }
    assert_eq!(giver.publish("up/x", 1, "refused").await, 0x97);
}

#[tokio::test]
async fn a_consumer_that_drops_counts_every_one() {
    for (policy, first) in [(WhenFull::DropOldest, 25), (WhenFull::DropNewest, 0)] {
        let (server, consumer) = full_bridge(policy).await;
        let mut giver = server.v5("giver").await;
        for number in 0..35 {
            assert_eq!(giver.publish("up/x", 1, &number.to_string()).await, 0);
        }
        let rows = consumer.read(RowId::START, 100).await.unwrap();
        let got: Vec<&[u8]> = rows.iter().map(|row| &row.message.payload()[..]).collect();
        let expected: Vec<String> = (first..first + 10)
            .map(|number| number.to_string())
            .collect();
        let expected: Vec<&[u8]> = expected.iter().map(|text| text.as_bytes()).collect();
        assert_eq!(got, expected, "{policy:?}");
        let dropped = server.broker.metrics().dropped;
        assert_eq!(dropped[&DropReason::JournalFull], 25, "{policy:?}");
    }
}

#[tokio::test]
async fn a_full_sessions_drops_are_sent_minus_delivered() {
    for (policy, first) in [(WhenFull::DropOldest, 30), (WhenFull::DropNewest, 0)] {
        let mut config = Config {
            when_full: vec![(Filter::new("x/#").unwrap(), policy)],
            ..Config::default()
        };
        config.limits.session_rows = 20;
        let server = Server::start(config.clone()).await;
        let (mut taker, _) = server.lasting("taker").await;
        taker.subscribe("x/#", 1).await;
        taker.disconnect().await;
        until("gone", || server.broker.metrics().connections == 0).await;
        let mut giver = server.v3("giver").await;
        for number in 0..50 {
            giver.publish("x/y", 1, &number.to_string()).await;
        }
        assert_eq!(
            server.broker.metrics().dropped[&DropReason::JournalFull],
            30
        );
        let server = server.restart(config).await;
        let (mut taker, _) = server.lasting("taker").await;
        for number in first..first + 20 {
            assert_eq!(taker.receive().await.text(), number.to_string());
        }
        taker.nothing().await;
    }
    // By policy, a session may refuse too.
    let mut config = Config {
        when_full: vec![(Filter::new("x").unwrap(), WhenFull::Refuse)],
        ..Config::default()
    };
    config.limits.session_rows = 5;
    let server = Server::start(config).await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    drop(taker);
    let mut giver = server.v5("giver").await;
    for number in 0..8 {
        let code = giver.publish("x", 1, "m").await;
        assert_eq!(code, if number < 5 { 0 } else { 0x97 });
    }
}

#[tokio::test]
async fn all_sessions_together_stay_within_the_journals_bytes() {
    let mut config = Config::default();
    config.limits.journal_bytes = 20_000;
    let server = Server::start(config).await;
    for id in ["one", "two"] {
        let (mut taker, _) = server.lasting(id).await;
        taker.subscribe("x", 1).await;
        taker.disconnect().await;
    }
    let mut giver = server.v5("giver").await;
    let mut taken = 0;
    while giver.publish("x", 1, &"p".repeat(500)).await == 0 {
        taken += 1;
        assert!(taken < 100);
    }
    assert!(server.broker.metrics().journal_bytes <= 20_000);
    let (mut one, _) = server.lasting("one").await;
    let (mut two, _) = server.lasting("two").await;
    for _ in 0..taken {
        one.receive().await;
        two.receive().await;
    }
    one.nothing().await;
    two.nothing().await;
    until("empty", || server.broker.metrics().journal_bytes == 0).await;
    assert_eq!(giver.publish("x", 1, "m").await, 0);
}

#[tokio::test]
async fn retained_slots_are_bounded_and_clearing_makes_room() {
    let mut config = Config::default();
    config.limits.retained = 3;
    let server = Server::start(config.clone()).await;
    let mut giver = server.v5("giver").await;
    for number in 0..3 {
        assert!(
            giver
                .publish_with(&format!("r/{number}"), 3, &[], "m")
                .await
                < 0x80
        );
    }
    assert_eq!(giver.publish_with("r/3", 3, &[], "m").await, 0x97);
    // A known slot may change; an empty one makes room, also after a restart.
    assert!(giver.publish_with("r/0", 3, &[], "new").await < 0x80);
    let server = server.restart(config).await;
    let mut giver = server.v5("giver").await;
    assert_eq!(giver.publish_with("r/3", 3, &[], "m").await, 0x97);
    assert!(giver.publish_with("r/0", 3, &[], "").await < 0x80);
    assert!(giver.publish_with("r/3", 3, &[], "m").await < 0x80);
    assert_eq!(server.broker.metrics().retained, 3);
}

#[tokio::test]
async fn repeats_are_dropped_per_sender_and_topic_also_after_a_restart() {
    let server = server().await;
    let options = ConsumerOptions::default();
    let filter = || vec![Filter::new("#").unwrap()];
    let consumer = server
        .broker
        .consumer("cloud", filter(), options.clone())
        .await
        .unwrap();
    let numbered = |subject: &str, id: &str| {
        let mut hello = crate::common::Hello::v5(id);
        hello.user = Some(subject.into());
        hello
    };
    let mut one = crate::kit::hello(&server, &numbered("one", "a")).await;
    let mut two = crate::kit::hello(&server, &numbered("two", "b")).await;
    let steps = [
        ("x", 1, 5),
        ("x", 1, 5),
        ("x", 1, 4),
        ("y", 1, 5),
        ("x", 2, 1),
        ("x", 1, 9),
        ("x", 2, 1),
    ];
    for (topic, epoch, seq) in steps {
        for wire in [&mut one, &mut two] {
            let payload = format!("{topic}-{epoch}-{seq}");
            assert_eq!(
                wire.publish_with(topic, 2, &stamp(epoch, seq), &payload)
                    .await,
                0
            );
            // QoS 2 is filtered likewise.
            assert_eq!(
                wire.publish_with(topic, 4, &stamp(epoch, seq), &payload)
                    .await,
                0
            );
        }
    }
    let rows = consumer.read(RowId::START, 100).await.unwrap();
    let mut got: Vec<String> = rows
        .iter()
        .map(|row| String::from_utf8(row.message.payload().to_vec()).unwrap())
        .collect();
    got.sort();
    assert_eq!(got, ["x-1-5", "x-1-5", "x-2-1", "x-2-1", "y-1-5", "y-1-5"]);
    assert_eq!(server.broker.metrics().repeats, 2 * (4 + 7));
    drop((one, two, consumer));
    let server = server.restart(Config::default()).await;
    let consumer = server
        .broker
        .consumer("cloud", filter(), options)
        .await
        .unwrap();
    let mut one = crate::kit::hello(&server, &numbered("one", "a")).await;
    assert_eq!(one.publish_with("x", 2, &stamp(2, 1), "repeat").await, 0);
    assert_eq!(one.publish_with("x", 2, &stamp(2, 2), "fresh").await, 0);
    // Odd stamps are no stamps: both copies are messages.
    let mut odd = vec![0x26];
    odd.extend(crate::common::text("hf-epoch"));
    odd.extend(crate::common::text("one"));
    for _ in 0..2 {
        assert_eq!(one.publish_with("x", 2, &odd, "odd").await, 0);
    }
    let rows = consumer.read(RowId::START, 100).await.unwrap();
    let got: Vec<&[u8]> = rows[6..]
        .iter()
        .map(|row| &row.message.payload()[..])
        .collect();
    assert_eq!(got, [&b"fresh"[..], b"odd", b"odd"]);
}

#[tokio::test]
async fn a_numbered_sender_that_is_refused_loses_nothing_and_doubles_nothing() {
    let (server, consumer) = full_bridge(WhenFull::Refuse).await;
    let mut giver = server.v5("giver").await;
    for seq in 1..=10 {
        assert_eq!(giver.publish_with("up/x", 2, &stamp(1, seq), "m").await, 0);
    }
    // A repeat is known even when there is no room for anything new.
    assert_eq!(giver.publish_with("up/x", 2, &stamp(1, 3), "m").await, 0);
    assert_eq!(
        giver.publish_with("up/x", 2, &stamp(1, 11), "m").await,
        0x97
    );
    let rows = consumer.read(RowId::START, 10).await.unwrap();
    let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
    consumer.acknowledge(&ids).await.unwrap();
    // 12 may not overtake 11 on this connection; after 11 it may come.
    assert_eq!(
        giver.publish_with("up/x", 2, &stamp(1, 12), "m").await,
        0x97
    );
    assert_eq!(giver.publish_with("up/x", 2, &stamp(1, 11), "m").await, 0);
    assert_eq!(giver.publish_with("up/x", 2, &stamp(1, 12), "m").await, 0);
    let rows = consumer.read(*ids.last().unwrap(), 10).await.unwrap();
    let seqs: Vec<_> = rows
        .iter()
        .map(|row| row.message.user_value("hf-seq").unwrap())
        .collect();
    assert_eq!(seqs, ["11", "12"]);
}

#[tokio::test]
async fn a_consumer_reads_and_acknowledges_across_restarts() {
    let mut server = server().await;
    let filters = || vec![Filter::new("up/+").unwrap(), Filter::new("also/#").unwrap()];
    let options = ConsumerOptions::default();
    let mut sent = 0;
    let mut seen = Vec::new();
    for round in 0..4 {
        let consumer = server
            .broker
            .consumer("cloud", filters(), options.clone())
            .await
            .unwrap();
        let mut giver = client(&server, round % 2 == 0, "giver").await;
        for _ in 0..30 {
            let topic = ["up/a", "also/b", "elsewhere"][sent % 3];
            giver
                .publish(topic, 1 + u8::from(sent % 2 == 0), &sent.to_string())
                .await;
            sent += 1;
        }
        // In pages, with holes: every second row is acknowledged, the others come again.
        let mut after = RowId::START;
        let mut rows = Vec::new();
        loop {
            let page = consumer.read(after, 7).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.id;
            rows.extend(page);
        }
        assert!(rows.is_sorted_by_key(|row| row.id));
        let half: Vec<RowId> = rows.iter().step_by(2).map(|row| row.id).collect();
        for row in rows.iter().step_by(2) {
            seen.push(String::from_utf8(row.message.payload().to_vec()).unwrap());
        }
        consumer.acknowledge(&half).await.unwrap();
        // Twice is the same as once.
        consumer.acknowledge(&half).await.unwrap();
        assert_eq!(consumer.waiting(), (rows.len() - half.len()) as u64);
        drop((consumer, giver));
        server = server.restart(Config::default()).await;
        assert_eq!(
            server.broker.metrics().journal_rows,
            (rows.len() - half.len()) as u64
        );
    }
    let consumer = server
        .broker
        .consumer("cloud", filters(), options)
        .await
        .unwrap();
    let rest = consumer.read(RowId::START, 1000).await.unwrap();
    seen.extend(
        rest.iter()
            .map(|row| String::from_utf8(row.message.payload().to_vec()).unwrap()),
    );
    seen.sort_by_key(|text| text.parse::<usize>().unwrap());
    let expected: Vec<String> = (0..120)
        .filter(|n| n % 3 != 2)
        .map(|n| n.to_string())
        .collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_consumer_waits_until_there_is_something() {
    let server = server().await;
    let filter = vec![Filter::new("up/#").unwrap()];
    let consumer = server
        .broker
        .consumer("cloud", filter, ConsumerOptions::default())
        .await
        .unwrap();
    let mut giver = server.v5("giver").await;
    let mut after = RowId::START;
    for number in 0..20 {
        let ready = consumer.ready(after);
        tokio::pin!(ready);
        let early = tokio::time::timeout(Duration::from_millis(20), &mut ready).await;
        assert!(early.is_err() || consumer.read(after, 1).await.unwrap().is_empty());
        giver.publish("up/x", 1, &number.to_string()).await;
        let row = loop {
            let waits = consumer.ready(after);
            tokio::time::timeout(Duration::from_secs(5), waits)
                .await
                .expect("woken");
            if let Some(row) = consumer.read(after, 1).await.unwrap().pop() {
                break row;
            }
        };
        assert_eq!(&row.message.payload()[..], number.to_string().as_bytes());
        after = row.id;
    }
    server.broker.remove_consumer("cloud").await.unwrap();
    assert!(consumer.read(RowId::START, 1).await.is_err());
    assert_eq!(server.broker.metrics().journal_rows, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d3_a_subscriber_that_stops_reading_delays_no_other() {
    for v5 in VERSIONS {
        let server = server().await;
        let mut quick = client(&server, v5, "quick").await;
        quick.subscribe("x", 1).await;
        let mut giver = client(&server, v5, "giver").await;
        let payload = "p".repeat(2000);
        let mut worst = [Duration::ZERO; 2];
        for (phase, slowest) in worst.iter_mut().enumerate() {
            if phase == 1 {
                for qos in [0, 1] {
                    let mut deaf = client(&server, v5, &format!("deaf{qos}")).await;
                    deaf.subscribe("x", qos).await;
                    // Kept open, never read.
                    std::mem::forget(deaf);
                }
            }
            let mut times: Vec<Duration> = Vec::new();
            for _ in 0..1500 {
                let begun = Instant::now();
                giver.publish("x", 1, &payload).await;
                assert_eq!(quick.receive().await.payload.len(), 2000);
                times.push(begun.elapsed());
            }
            times.sort();
            *slowest = times[times.len() * 99 / 100];
        }
        let bound = (worst[0] * 2).max(Duration::from_millis(20));
        assert!(
            worst[1] <= bound,
            "p99 {:?} before, {:?} with it",
            worst[0],
            worst[1]
        );
        assert!(server.broker.metrics().dropped[&DropReason::QueueFull] > 100);
    }
}
