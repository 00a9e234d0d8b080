//! One address floods the doors: it is turned away with an answer that its kind understands, counted,
//! and nobody else waits for it.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::kit::*;

async fn bounded() -> Served {
    cloud_with(|config| {
        config.limits.connections_per_address = 4;
        config.limits.handshakes_per_address = 2;
        config.limits.requests_per_address = 3;
        config.limits.handshake = Duration::from_millis(400);
    })
    .await
}

/// A connection from another address of the loopback network.
async fn from(source: &str, to: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

async fn ask(stream: &mut TcpStream, path: &str) -> String {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/cbor\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).to_ascii_lowercase()
}

#[tokio::test]
async fn connections_of_one_address_are_bounded_and_others_get_in() {
    let cloud = bounded().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(from("127.0.0.7", cloud.fdo).await);
    }
    // Accepted in order, so the fifth finds four places taken.
    let mut fifth = from("127.0.0.7", cloud.fdo).await;
    let mut answer = String::new();
    fifth.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    let refusals = |reason| cloud.cps.metrics().refusals("http", reason);
    assert_eq!(refusals("connections of one address"), 1);
    let mut other = from("127.0.0.8", cloud.fdo).await;
    let answer = ask(&mut other, "/fdo/101/msg/20").await;
    assert!(answer.starts_with("http/1.1 "), "{answer}");
    assert_eq!(refusals("connections of one address"), 1);
    drop(held);
}

#[tokio::test]
async fn requests_over_the_budget_are_answered_429_or_by_fdo_s_error() {
    let cloud = bounded().await;
    let mut answers = Vec::new();
    for _ in 0..14 {
        let mut stream = from("127.0.0.7", cloud.fdo).await;
        answers.push(ask(&mut stream, "/fdo/101/msg/20").await);
    }
    let over: Vec<&String> = answers
        .iter()
        .filter(|it| it.contains("retry-after"))
        .collect();
    assert!(!over.is_empty() && over.len() < 14, "{}", over.len());
    for answer in over {
        assert!(answer.starts_with("http/1.1 500"), "{answer}");
        assert!(answer.contains("message-type: 255"), "{answer}");
    }
    let mut stream = from("127.0.0.7", cloud.fdo).await;
    let answer = ask(&mut stream, "/elsewhere").await;
    assert!(answer.starts_with("http/1.1 429"), "{answer}");
    assert!(answer.contains("too many requests"), "{answer}");
    assert!(
        cloud
            .cps
            .metrics()
            .refusals("http", "requests of one address")
            > 1
    );
    let mut stream = from("127.0.0.8", cloud.fdo).await;
    let answer = ask(&mut stream, "/elsewhere").await;
    assert!(answer.starts_with("http/1.1 404"), "{answer}");
}

#[tokio::test]
async fn slow_handshakes_end_and_do_not_hold_up_others() {
    let cloud = bounded().await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(from("127.0.0.7", cloud.api).await);
    }
    // Two may be under way, the others are closed at once, the two after their time.
    let (mut closed, begun) = (0, tokio::time::Instant::now());
    for stream in &mut slow {
        let mut byte = [0];
        // Closed or reset: both are an end.
        let read = stream.read(&mut byte).await;
        assert!(!matches!(read, Ok(1)), "{read:?}");
        closed += 1;
    }
    assert_eq!(closed, 4);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let refusals = |reason| cloud.cps.metrics().refusals("http", reason);
    assert_eq!(refusals("handshakes at once"), 2);
    assert_eq!(refusals("handshake too slow"), 2);
    // Meanwhile, and after it, a gateway enrols.
    let gateway = gateway(&cloud, "north", "gw1").await;
    assert_eq!(gateway.cps.cloud().unwrap().epoch, 1);
}
