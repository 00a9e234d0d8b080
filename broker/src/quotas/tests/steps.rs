//! What is done to fill a quota and to see from outside what became of it.

use std::net::{IpAddr, Ipv4Addr};

use tokio::net::TcpSocket;

use super::{BOUND, BYTES, Defect, OFFERED, Outcome, PAYLOAD, Quota};
use crate::common::{Arrived, Hello, Server, Wire, packet, publish, stamp};
use crate::{ConsumerOptions, CutReason, Filter, RowId, WhenFull};

/// Ends of connections that are a quota's work.
pub(super) fn by_quota(reason: CutReason) -> bool {
    matches!(reason, CutReason::Quota | CutReason::ReceiveMaximum)
}

/// Fills it.
pub(super) async fn take(quota: Quota, defect: Defect, server: &Server) -> Outcome {
    match quota {
        Quota::SessionRows(_)
        | Quota::SessionRowsOfOldPublisher
        | Quota::SessionRowBytes
        | Quota::JournalRows(_)
        | Quota::JournalBytes => session(quota, server).await,
        Quota::ConsumerRows(_) | Quota::ConsumerBytes => consumer(quota, defect, server).await,
        Quota::QueueMessages | Quota::QueueBytes => queue(server).await,
        Quota::Sessions | Quota::Connections => clients(server).await,
        Quota::Handshakes => handshakes(server).await,
        Quota::Subscriptions | Quota::SubscriptionsInAll => subscriptions(quota, server).await,
        Quota::Retained | Quota::RetainedPerClient | Quota::RetainedBytes => slots(server).await,
        Quota::Inflight => window(server).await,
        Quota::ReceiveMaximum => receiving(server).await,
        Quota::RepeatTopics | Quota::RepeatTopicsPerClient => repeats(server).await,
    }
}

fn payload(number: u64) -> String {
    format!("{number:0PAYLOAD$}")
}

fn all_within(offered: u64, taken: u64, refused: u64) -> Outcome {
    Outcome {
        offered,
        taken,
        within: taken,
        refused,
        right_ones: true,
        ..Outcome::default()
    }
}

/// Those that a policy keeps.
fn kept(policy: WhenFull, got: &[u64]) -> bool {
    let first = match policy {
        WhenFull::DropOldest => OFFERED - got.len() as u64,
        WhenFull::Refuse | WhenFull::DropNewest => 0,
    };
    got.iter().copied().eq(first..first + got.len() as u64)
}

/// Everything that comes, acknowledged, until nothing more is due.
async fn everything(wire: &mut Wire) -> Vec<u64> {
    let mut got = Vec::new();
    let mut quiet = false;
    loop {
        wire.send(&[0xC0, 0]).await;
        let before = got.len();
        loop {
            let (first, body) = wire.packet().await.expect("the server stays");
            if first == 0xD0 {
                break;
            }
            let arrived = wire.parse(first, &body);
            wire.send(&packet(0x40, &arrived.id.to_be_bytes())).await;
            got.push(number(&arrived));
        }
        if quiet && got.len() == before {
            return got;
        }
        quiet = got.len() == before;
    }
}

fn number(arrived: &Arrived) -> u64 {
    arrived.text().parse().unwrap()
}

/// A lasting session that is away, and a publisher.
async fn session(quota: Quota, server: &Server) -> Outcome {
    let (mut away, _) = server.lasting("away").await;
    assert_eq!(away.subscribe("q", 1).await, 1);
    away.disconnect().await;
    let refused = match quota {
        Quota::SessionRowsOfOldPublisher => unanswered(server).await,
        _ => told_no(server).await,
    };
    let (mut away, present) = server.lasting("away").await;
    assert!(present);
    let got = everything(&mut away).await;
    let policy = match quota {
        Quota::SessionRows(policy) | Quota::JournalRows(policy) => policy,
        _ => WhenFull::DropNewest,
    };
    Outcome {
        right_ones: kept(policy, &got),
        ..all_within(OFFERED, got.len() as u64, refused)
    }
}

/// Publishes all; how many were answered with 0x97.
async fn told_no(server: &Server) -> u64 {
    let mut giver = server.v5("giver").await;
    let mut refused = 0;
    for number in 0..OFFERED {
        match giver.publish("q", 1, &payload(number)).await {
            0 => {}
            0x97 => refused += 1,
            other => panic!("{other:#x}"),
        }
    }
    refused
}

/// Publishes all by 3.1.1; how many had no acknowledgement.
async fn unanswered(server: &Server) -> u64 {
    let mut giver = server.v3("giver").await;
    let mut refused = OFFERED;
    for number in 0..OFFERED {
        let id = giver.id();
        let bytes = publish(false, 2, "q", id, &[], payload(number).as_bytes());
        giver.send(&bytes).await;
        // The journal answers in its own time: the next has to wait for this one.
        while server.broker.shared().journal.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    }
    // What needs the journal is answered behind everything before it.
    giver.subscribe_behind("z", &mut refused).await;
    refused
}

impl Wire {
    /// Subscribes, taking from `open` each PUBACK that comes before the answer.
    async fn subscribe_behind(&mut self, filter: &str, open: &mut u64) {
        let mut body = vec![0xFF, 0];
        body.extend(crate::common::text(filter));
        body.push(0);
        self.send(&packet(0x82, &body)).await;
        while let Some((first, _)) = self.packet().await {
            match first {
                0x40 => *open -= 1,
                0x90 => return,
                other => panic!("{other:#x}"),
            }
        }
        panic!("closed");
    }
}

/// A consumer of the embedding program that reads when all is over.
async fn consumer(quota: Quota, defect: Defect, server: &Server) -> Outcome {
    let mut options = ConsumerOptions {
        when_full: WhenFull::Refuse,
        ..ConsumerOptions::default()
    };
    let bounded = defect != Defect::Boundless;
    match quota {
        Quota::ConsumerRows(policy) => {
            options.when_full = policy;
            options.max_rows = if bounded { BOUND } else { options.max_rows };
        }
        _ => options.max_bytes = if bounded { BYTES } else { options.max_bytes },
    }
    let policy = options.when_full;
    let filters = vec![Filter::new("q").unwrap()];
    let consumer = server.broker.consumer("rule", filters, options);
    let consumer = consumer.await.unwrap();
    let refused = told_no(server).await;
    let rows = consumer.read(RowId::START, 1000).await.unwrap();
    let numbers = rows.iter().map(|row| row.message.payload().to_vec());
    let got: Vec<u64> = numbers
        .map(|bytes| String::from_utf8(bytes).unwrap().parse().unwrap())
        .collect();
    Outcome {
        right_ones: kept(policy, &got),
        ..all_within(OFFERED, got.len() as u64, refused)
    }
}

/// A live subscriber that takes one message at a time, and does not acknowledge the first for long.
async fn queue(server: &Server) -> Outcome {
    let mut hello = Hello::v5("taker");
    hello.properties = vec![0x21, 0, 1];
    let mut taker = server.raw().await;
    taker.v5 = true;
    taker.send(&hello.bytes()).await;
    taker.connack(0).await;
    assert_eq!(taker.subscribe("q", 1).await, 1);
    let mut giver = server.v5("giver").await;
    giver.publish("q", 1, "0").await;
    // It is in flight, not in the queue.
    let first = taker.arrived().await;
    let refused = told_no(server).await;
    taker.send(&packet(0x40, &first.id.to_be_bytes())).await;
    let got = everything(&mut taker).await;
    Outcome {
        right_ones: kept(WhenFull::DropNewest, &got),
        ..all_within(OFFERED, got.len() as u64, refused)
    }
}

/// Clients that come and stay.
async fn clients(server: &Server) -> Outcome {
    let mut stay = Vec::new();
    let mut refused = 0;
    for number in 0..OFFERED {
        let mut wire = server.raw().await;
        wire.v5 = true;
        // Beyond the connections the socket is closed at once.
        let hello = Hello::v5(&number.to_string()).bytes();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &hello).await;
        match wire.packet().await {
            Some((0x20, body)) if body[1] == 0 => stay.push(wire),
            Some((0x20, body)) if body[1] == 0x97 => refused += 1,
            None => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    all_within(OFFERED, stay.len() as u64, refused)
}

/// Connections of one address that say nothing.
async fn handshakes(server: &Server) -> Outcome {
    let mut silent = Vec::new();
    for _ in 0..OFFERED {
        silent.push(server.raw().await);
    }
    // One of another address that comes behind them: when it is in, all have been judged.
    let socket = TcpSocket::new_v4().unwrap();
    let elsewhere = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    socket.bind((elsewhere, 0).into()).unwrap();
    let mut last = Wire::new(socket.connect(server.address).await.unwrap());
    last.send(&Hello::v3("last").bytes()).await;
    last.connack(0).await;
    let mut taken = 0;
    for (number, wire) in silent.iter_mut().enumerate() {
        let hello = Hello::v3(&number.to_string()).bytes();
        let _ = tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &hello).await;
        taken += u64::from(wire.packet().await.is_some());
    }
    all_within(OFFERED, taken, OFFERED - taken)
}

/// Filters of one client, or of two.
async fn subscriptions(quota: Quota, server: &Server) -> Outcome {
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    let mut refused = 0;
    for number in 0..OFFERED {
        let second = quota == Quota::SubscriptionsInAll && number % 2 == 1;
        let wire = if second { &mut two } else { &mut one };
        match wire.subscribe(&format!("f/{number}"), 0).await {
            0 => {}
            0x97 => refused += 1,
            other => panic!("{other:#x}"),
        }
    }
    let mut giver = server.v5("giver").await;
    let mut taken = 0;
    for number in 0..OFFERED {
        let code = giver.publish(&format!("f/{number}"), 1, "m").await;
        // Somebody has it, or nobody wants it.
        taken += u64::from(code == 0);
    }
    all_within(OFFERED, taken, refused)
}

/// Retained messages of one client.
async fn slots(server: &Server) -> Outcome {
    let mut giver = server.v5("giver").await;
    let mut refused = 0;
    for number in 0..OFFERED {
        let topic = char::from(b'a' + u8::try_from(number).unwrap()).to_string();
        let code = giver.publish_with(&topic, 3, &[], &payload(number)).await;
        refused += u64::from(code == 0x97);
    }
    let mut looking = server.v5("looking").await;
    looking.subscribe("+", 0).await;
    let mut taken = 0;
    looking.send(&[0xC0, 0]).await;
    while looking.packet().await.unwrap().0 != 0xD0 {
        taken += 1;
    }
    all_within(OFFERED, taken, refused)
}

/// A subscriber that acknowledges nothing until it has to.
async fn window(server: &Server) -> Outcome {
    let mut taker = server.v5("taker").await;
    taker.subscribe("q", 1).await;
    let refused = told_no(server).await;
    let mut open = Vec::new();
    taker.send(&[0xC0, 0]).await;
    loop {
        let (first, body) = taker.packet().await.unwrap();
        if first == 0xD0 {
            break;
        }
        open.push(taker.parse(first, &body));
    }
    let within = open.len() as u64;
    for arrived in &open {
        let answer = packet(0x40, &arrived.id.to_be_bytes());
        taker.send(&answer).await;
    }
    let mut got: Vec<u64> = open.iter().map(number).collect();
    got.extend(everything(&mut taker).await);
    Outcome {
        within,
        right_ones: kept(WhenFull::DropNewest, &got),
        ..all_within(OFFERED, got.len() as u64, refused)
    }
}

/// A publisher that begins with QoS 2 and ends nothing.
async fn receiving(server: &Server) -> Outcome {
    let mut giver = server.v5("giver").await;
    let mut taken = 0;
    for number in 0..OFFERED {
        let id = giver.id();
        let bytes = publish(true, 4, "q", id, &[], payload(number).as_bytes());
        giver.send(&bytes).await;
        match giver.packet().await {
            Some((0x50, _)) => taken += 1,
            Some((0xE0, body)) => {
                assert_eq!(body[0], 0x93);
                assert_eq!(giver.packet().await, None);
                return all_within(taken + 1, taken, 1);
            }
            other => panic!("{other:?}"),
        }
    }
    all_within(OFFERED, taken, 0)
}

/// Numbered messages of many topics, each published twice.
async fn repeats(server: &Server) -> Outcome {
    let filters = vec![Filter::new("n/+").unwrap()];
    let consumer = server
        .broker
        .consumer("rule", filters, ConsumerOptions::default());
    let consumer = consumer.await.unwrap();
    let mut giver = server.v5("giver").await;
    for number in 0..2 * OFFERED {
        let topic = format!("n/{}", number / 2);
        assert_eq!(giver.publish_with(&topic, 2, &stamp(1, 1), "m").await, 0);
    }
    let rows = consumer.read(RowId::START, 1000).await.unwrap();
    let twice = rows.len() as u64 - OFFERED;
    all_within(OFFERED, OFFERED - twice, 0)
}
