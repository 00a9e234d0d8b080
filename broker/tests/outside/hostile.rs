//! Peers that do not play fair: wrong first packets, slow and silent ones, endless repeats.

use std::time::{Duration, Instant};

use holdfast_broker::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::{Hello, Server, expiry, packet, publish, text};
use crate::kit::{VERSIONS, answer, client, hello, lasting, panics, resident, server, until};

/// The server closes within this.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn closed_at_once(server: &Server, bytes: &[u8]) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(AT_ONCE, stream.read_to_end(&mut rest)).await;
    assert!(
        read.is_ok(),
        "still open after {:?}: {bytes:?}",
        begun.elapsed()
    );
    assert!(
        rest.is_empty() || rest[0] != 0x20 || rest[3] != 0,
        "{rest:?}"
    );
}

#[tokio::test]
async fn e1_mqtt5_3_1_0_1_any_first_packet_of_268435455_bytes_is_closed_at_once_and_costs_nothing()
{
    let server = server().await;
    panics();
    // What the process needs anyhow.
    for _ in 0..20 {
        closed_at_once(&server, &[0x30, 0xFF, 0xFF, 0xFF, 0x7F]).await;
    }
    let before = resident();
    for kind in (0..=15u8).filter(|kind| *kind != 1) {
        for flags in [0, 2] {
            for follow in [&[][..], &[0xAA; 4096]] {
                let head = [kind << 4 | flags, 0xFF, 0xFF, 0xFF, 0x7F];
                let bytes = [&head, follow].concat();
                for _ in 0..5 {
                    closed_at_once(&server, &bytes).await;
                }
            }
        }
    }
    // A CONNECT of that length too.
    closed_at_once(&server, &[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4, b'M']).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 4 << 20, "300 of them cost {grown} bytes");
    client(&server, true, "good").await.nothing().await;
    assert_eq!((panics(), server.broker.metrics().connections), (0, 1));
}

#[tokio::test]
async fn e1_any_short_first_packet_but_connect_is_closed_at_once() {
    let server = server().await;
    for kind in (0..=15u8).filter(|kind| *kind != 1) {
        closed_at_once(&server, &[kind << 4, 0]).await;
        closed_at_once(&server, &packet(kind << 4 | 2, &[0, 1, 0, 0, 1, b'x', 0])).await;
    }
    for flags in 1..=15u8 {
        let mut bytes = Hello::v5("x").bytes();
        bytes[0] |= flags;
        closed_at_once(&server, &bytes).await;
    }
    for bytes in [
        &[0x10u8, 0x80, 0x80, 0x80, 0x80, 1][..],
        &[0x10, 0x8C, 0],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3],
    ] {
        closed_at_once(&server, bytes).await;
    }
}

#[tokio::test]
async fn d4_slow_connects_block_nobody_and_end_at_their_deadline() {
    let mut config = Config {
        connect_deadline: Duration::from_secs(2),
        ..Config::default()
    };
    config.limits.handshakes_per_address = 300;
    let server = Server::start(config).await;
    let begun = Instant::now();
    let bytes = Hello::v5("slow").bytes();
    let mut slow = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Some silent, some with a piece of a CONNECT.
        stream
            .write_all(&bytes[..number % bytes.len()])
            .await
            .unwrap();
        slow.push(stream);
    }
    let mut worst = Duration::ZERO;
    for number in 0..50 {
        let begun = Instant::now();
        let mut wire = client(&server, number % 2 == 0, &format!("good{number}")).await;
        wire.publish("x", 1, "m").await;
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    // A byte now and then does not move the deadline.
    for (number, stream) in slow.iter_mut().enumerate() {
        if let Some(byte) = bytes
            .get(number % bytes.len())
            .filter(|_| number % bytes.len() + 1 < bytes.len())
        {
            let _ = stream.write_all(&[*byte]).await;
        }
    }
    for stream in &mut slow {
        let mut end = Vec::new();
        let read =
            tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut end)).await;
        assert!(read.is_ok());
    }
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn e3_endless_repeats_of_a_qos_2_publish_grow_nothing() {
    let server = server().await;
    for greeting in [Hello::v5("giver"), lasting(true, "giver")] {
        let mut giver = hello(&server, &greeting).await;
        let one = publish(true, 12, "x", 5, &[], &[7; 100]);
        let mut before = 0;
        for round in 0..60 {
            giver.send(&one.repeat(100)).await;
            let answered = giver.packet().await;
            assert_eq!(answered.map(|(first, _)| first), Some(0x50));
            // Those that come while the first is being written are answered by its one PUBREC.
            giver.send(&[0xC0, 0]).await;
            while giver.packet().await.unwrap().0 != 0xD0 {}
            if round == 5 {
                before = resident();
            }
        }
        assert!(resident().saturating_sub(before) < 4 << 20);
    }
}

#[tokio::test]
async fn e3_connects_with_bad_wills_grow_nothing() {
    let server = server().await;
    let mut bad = Hello::v5("x");
    bad.will = Some((0, vec![0x26, 0, 200, b'n'], "w".into(), vec![7; 1000]));
    let bytes = bad.bytes();
    for _ in 0..50 {
        assert!(
            answer(&server, &bytes)
                .await
                .is_none_or(|body| body[1] != 0)
        );
    }
    let before = resident();
    for _ in 0..1000 {
        assert!(
            answer(&server, &bytes)
                .await
                .is_none_or(|body| body[1] != 0)
        );
    }
    assert!(resident().saturating_sub(before) < 4 << 20);
    assert_eq!(server.broker.metrics().sessions, 0);
}

#[tokio::test]
async fn a_client_that_never_reads_costs_its_cap() {
    let server = server().await;
    let mut deaf = server.v5("deaf").await;
    deaf.subscribe("x", 0).await;
    let mut giver = server.v5("giver").await;
    let load = publish(true, 0, "x", 0, &[], &[7; 1000]).repeat(200);
    for _ in 0..20 {
        giver.send(&load).await;
        giver.nothing().await;
    }
    let before = resident();
    for _ in 0..200 {
        giver.send(&load).await;
        giver.nothing().await;
    }
    // 40 MB went by; the queue's bound is 1 MiB, and the kernel's buffers are not ours.
    let grown = resident().saturating_sub(before);
    assert!(grown < 6 << 20, "{grown}");
    assert!(server.broker.metrics().dropped[&holdfast_broker::DropReason::QueueFull] > 10_000);
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_the_answers_costs_its_cap() {
    let server = server().await;
    for request in [
        vec![0xC0, 0],
        packet(0x62, &[0, 9]),
        packet(0x82, &[&[0, 1, 0][..], &text("x"), &[0]].concat()),
        publish(true, 2, "nobody", 1, &[], b""),
    ] {
        let mut asker = server.v5("asker").await;
        let load = request.repeat(60_000 / request.len());
        let before = resident();
        // Until the server reads no more, or it has had 30 MB.
        for _ in 0..500 {
            let write = asker.stream.write_all(&load);
            if tokio::time::timeout(Duration::from_millis(300), write)
                .await
                .is_err()
            {
                break;
            }
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 8 << 20, "{request:?} {grown}");
    }
    client(&server, true, "good").await.nothing().await;
}

#[tokio::test]
async fn d6_one_name_again_and_again_is_one_session() {
    let server = server().await;
    for number in 0..200 {
        let mut greeting = Hello::v5("same");
        greeting.clean = number % 3 == 0;
        greeting.properties = expiry(if number % 2 == 0 { u32::MAX } else { 0 });
        let wire = hello(&server, &greeting).await;
        drop(wire);
    }
    until("quiet", || server.broker.metrics().connections == 0).await;
    assert!(server.broker.metrics().sessions <= 1);
}

#[tokio::test]
async fn sessions_above_the_limit_are_refused_and_the_others_stay() {
    let mut config = Config::default();
    config.limits.sessions = 3;
    config.limits.subscriptions = 2;
    let server = Server::start(config).await;
    let mut wires = Vec::new();
    for number in 0..3 {
        wires.push(client(&server, number % 2 == 0, &format!("c{number}")).await);
    }
    for v5 in VERSIONS {
        let mut hello = Hello::v5("fourth");
        hello.v5 = v5;
        let body = answer(&server, &hello.bytes()).await.unwrap();
        assert_eq!(body[1], if v5 { 0x97 } else { 3 });
    }
    for wire in &mut wires {
        assert_eq!(wire.subscribe("a", 0).await, 0);
        assert_eq!(wire.subscribe("b", 0).await, 0);
        let v5 = wire.v5;
        assert_eq!(wire.subscribe("c", 0).await, if v5 { 0x97 } else { 0x80 });
        // A replacement is not one more.
        assert_eq!(wire.subscribe("a", 1).await, 1);
        wire.unsubscribe("a").await;
        assert_eq!(wire.subscribe("c", 0).await, 0);
    }
    wires.pop().unwrap().disconnect().await;
    until("room", || server.broker.metrics().sessions == 2).await;
    client(&server, true, "fourth").await.nothing().await;
}
