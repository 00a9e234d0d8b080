//! Valid sessions, mutated, over real sockets for some seconds: no panic, no growth, all well after.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::{Hello, expiry, packet, publish, stamp, text};
use crate::kit::{Numbers, VERSIONS, client, lasting, panics, resident, server, until};

/// How long to try unless `HOLDFAST_FUZZ_SECONDS` says otherwise.
const LENGTH: Duration = Duration::from_secs(6);

/// Sessions that use every packet type, as lists of packets.
fn corpus() -> Vec<Vec<Vec<u8>>> {
    let mut sessions = Vec::new();
    for v5 in VERSIONS {
        let p: &[u8] = if v5 { &[0] } else { &[] };
        let mut rich = lasting(v5, "fuzz");
        rich.will = Some((
            0x28,
            if v5 { vec![0x18, 0, 0, 0, 1] } else { vec![] },
            "w".into(),
            b"gone".to_vec(),
        ));
        rich.user = Some("user".into());
        rich.password = Some(b"secret".to_vec());
        if v5 {
            rich.properties
                .extend([0x21, 0, 9, 0x27, 0, 1, 0, 0, 0x22, 0, 5, 0x19, 1, 0x17, 1]);
        }
        let mut plain = Hello::v5("");
        plain.v5 = v5;
        let props: Vec<u8> = if v5 {
            [
                &[
                    1, 1, 2, 0, 0, 0, 60, 3, 0, 1, b't', 8, 0, 1, b'r', 9, 0, 1, 7, 0x23, 0, 1,
                ][..],
                &stamp(1, 2),
            ]
            .concat()
        } else {
            Vec::new()
        };
        for hello in [rich.bytes(), plain.bytes()] {
            sessions.push(vec![
                hello,
                packet(
                    0x82,
                    &[&[0, 1], p, &text("f/#"), &[2], &text("$share/g/f/+"), &[1]].concat(),
                ),
                publish(v5, 0, "f/a", 0, &[], b"zero"),
                publish(v5, 3, "f/a", 2, &props, b"one"),
                publish(v5, 4, "f/b", 3, &[], b"two"),
                packet(0x62, &[0, 3]),
                packet(0x40, &[0, 1]),
                packet(0x50, &[0, 2]),
                packet(0x70, &[0, 2]),
                vec![0xC0, 0],
                packet(0xA2, &[&[0, 4], p, &text("f/#")].concat()),
                if v5 {
                    packet(0xE0, &[&[4, 5][..], &expiry(1)].concat())
                } else {
                    vec![0xE0, 0]
                },
            ]);
        }
    }
    sessions
}

fn mutate(session: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut packets = session.to_vec();
    // Mostly the CONNECT stays good, so that what follows is reached.
    let first = usize::from(numbers.below(4) != 0);
    for _ in 0..=numbers.below(3) {
        let at = first + numbers.below(packets.len() - first);
        let other = packets[numbers.below(packets.len())].clone();
        let length = packets[at].len();
        let byte = numbers.below(length);
        match numbers.below(9) {
            0 => packets[at][byte] ^= 1 << numbers.below(8),
            1 => packets[at][byte] = u8::try_from(numbers.below(256)).unwrap(),
            2 => packets[at].truncate(byte + 1),
            3 => packets[at].insert(byte, u8::try_from(numbers.below(256)).unwrap()),
            4 => {
                packets[at].remove(byte);
                packets[at].push(0);
            }
            5 => packets.insert(at, other),
            6 => packets[at] = other,
            7 => {
                // The body changes, its declared length too.
                let tail = numbers.below(64);
                packets[at].extend(std::iter::repeat_n(0xA5, tail));
                packets[at][1] = u8::try_from((packets[at].len() - 2) & 0x7F).unwrap();
            }
            _ => packets[at][byte] = [0, 1, 0x7F, 0x80, 0xFF][numbers.below(5)],
        }
    }
    packets.concat()
}

fn length() -> Duration {
    let wished = std::env::var("HOLDFAST_FUZZ_SECONDS").ok();
    let seconds = wished.and_then(|text| text.parse().ok());
    seconds.map_or(LENGTH, Duration::from_secs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2_mutated_sessions_do_no_harm() {
    let server = server().await;
    panics();
    let mut witness = server.v5("witness").await;
    witness.subscribe("witness/#", 1).await;
    let sessions = std::sync::Arc::new(corpus());
    let length = length();
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8u64 {
        let (sessions, address) = (std::sync::Arc::clone(&sessions), server.address);
        tasks.spawn(async move {
            let mut numbers = Numbers(0xF022_0000 + lane);
            let mut count = 0usize;
            let mut sink = vec![0; 4096];
            while begun.elapsed() < length {
                let bytes = mutate(&sessions[numbers.below(sessions.len())], &mut numbers);
                let Ok(mut stream) = TcpStream::connect(address).await else {
                    continue;
                };
                let cut = numbers.below(bytes.len());
                let pieces = [&bytes[..cut], &bytes[cut..]];
                for piece in pieces {
                    let _ = stream.write_all(piece).await;
                }
                let _ = stream.shutdown().await;
                // Whatever it says, it must come to an end.
                let end = async { while matches!(stream.read(&mut sink).await, Ok(1..)) {} };
                let ended = tokio::time::timeout(Duration::from_secs(10), end).await;
                assert!(ended.is_ok(), "hangs after {bytes:?}");
                count += 1;
            }
            count
        });
    }
    // Meanwhile a well-behaved pair is served.
    let mut giver = server.v5("good").await;
    let (mut before, mut rounds) = (0, 0);
    while begun.elapsed() < length {
        assert_eq!(giver.publish("witness/x", 1, "m").await, 0);
        assert_eq!(witness.receive().await.text(), "m");
        rounds += 1;
        if before == 0 && begun.elapsed() > Duration::from_secs(2) {
            before = resident();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut count = 0;
    while let Some(ended) = tasks.join_next().await {
        count += ended.unwrap();
    }
    eprintln!("{count} mutated sessions, {rounds} good round trips");
    assert!(count > 200);
    until("only the two are left", || {
        server.broker.metrics().connections == 2
    })
    .await;
    assert_eq!(panics(), 0);
    let grown = resident().saturating_sub(before);
    assert!(grown < 48 << 20, "grew by {grown}");
    // Still well: old and new clients of both versions.
    giver.publish("witness/x", 2, "end").await;
    assert_eq!(witness.receive().await.text(), "end");
    for v5 in VERSIONS {
        let mut wire = client(&server, v5, "after").await;
        wire.subscribe("after", 2).await;
        giver.publish("after", 2, "m").await;
        assert_eq!(wire.receive().await.text(), "m");
    }
}
