//! Malformed FDO messages at the plain HTTP door of both servers: answered by an FDO error, never by silence or an end.

use std::net::SocketAddr;

use holdfast_tests::world::{Part, Plan, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::watch::{Watch, is_well};

/// First messages of DI, TO0, TO1 and TO2.
const FIRST: [u8; 4] = [10, 20, 30, 60];

#[tokio::test]
async fn malformed_cbor_is_refused() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let (cloud, gateway) = (world.cloud_doors, world.gateway_doors);
    for message in FIRST {
        let watch = Watch::begin(&world.cloud, cloud.metrics).await;
        let door = match message {
            10 => cloud.manufacturing,
            _ => cloud.fdo,
        };
        assert_is_fdo_error(
            &post(door, message, b"\x9f\xff\xff not cbor").await,
            message,
        );
        watch
            .refused_once(&world.cloud, &format!("malformed message {message}"))
            .await;
    }
    assert_is_fdo_error(&post(gateway.fdo, 60, b"\xff").await, 60);
    // Where everybody may come, no device is made.
    let closed = post(cloud.fdo, 10, b"\x80").await;
    assert!(!closed.starts_with("HTTP/1.1 200"), "{closed}");
    for (part, doors) in [(&world.cloud, cloud), (&world.gateway, gateway)] {
        many_kinds_of_nonsense(part, doors.fdo, doors.metrics).await;
    }
    world.stop().await.unwrap();
}

/// Deep nesting, a length that lies, a message out of its turn, a body too large, an unknown number: all refused.
async fn many_kinds_of_nonsense(part: &Part, fdo: SocketAddr, metrics: SocketAddr) {
    let deep = [0x81; 5000];
    let lying = [0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let large = vec![0x40; 8 << 20];
    for (message, body) in [
        (30, &deep[..]),
        (60, &lying),
        (64, b"\x80"),
        (68, b"\xd0\x80"),
        (60, &large),
        (99, b"\x80"),
    ] {
        let answer = post(fdo, message, body).await;
        let is_ok = answer.starts_with("HTTP/1.1 200");
        assert!(
            !is_ok,
            "message {message} of {} bytes was answered with 200",
            body.len()
        );
    }
    is_well(part, metrics).await;
}

/// The answer's head and body as text; empty if the connection was closed without one.
async fn post(door: SocketAddr, message: u8, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(door).await.unwrap();
    let head = format!(
        "POST /fdo/101/msg/{message} HTTP/1.1\r\nHost: {door}\r\nContent-Type: application/cbor\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The server may refuse before it has read all.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn assert_is_fdo_error(answer: &str, message: u8) {
    let head = answer.to_lowercase();
    assert!(
        head.starts_with("http/1.1 500"),
        "message {message} was answered with {answer:?}"
    );
    assert!(
        head.contains("message-type: 255"),
        "message {message} was answered with {answer:?}"
    );
    assert!(
        head.contains("content-type: application/cbor"),
        "message {message} was answered with {answer:?}"
    );
}
