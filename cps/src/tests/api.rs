//! Bad HTTP of every kind: answered, counted, and the server is well after it.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_protocol::fdo::ErrorMessage;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::kit::*;

async fn raw(at: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    // The server may answer and close before all is written.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    let _ = read.await.expect("the server ends the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(number: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /fdo/101/msg/{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

const CBOR: &str = "Content-Type: application/cbor\r\n";

#[tokio::test]
async fn every_fdo_answer_has_type_token_and_length() {
    let cloud = cloud().await;
    let answer = raw(cloud.fdo, &post("20", CBOR, &[0x80]))
        .await
        .to_lowercase();
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(answer.contains("message-type: 21\r\n"), "{answer}");
    assert!(answer.contains("authorization: bearer "), "{answer}");
    assert!(
        answer.contains("content-type: application/cbor\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("chunked"), "{answer}");
    let token = "Authorization: Bearer abc\r\n";
    let answer = raw(cloud.fdo, &post("22", &format!("{CBOR}{token}"), &[0x80])).await;
    let answer = answer.to_lowercase();
    assert!(answer.starts_with("http/1.1 500"), "{answer}");
    assert!(answer.contains("message-type: 255\r\n"), "{answer}");
    assert!(
        answer.contains("authorization: bearer abc\r\n"),
        "the same token comes back"
    );
}

#[tokio::test]
async fn malformed_fdo_is_refused_with_255_and_the_server_goes_on() {
    let cloud = cloud().await;
    let big = vec![0; 70_000];
    let chunked = b"POST /fdo/101/msg/20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
        Content-Type: application/cbor\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\x80\r\n0\r\n\r\n";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("not CBOR", post("20", CBOR, b"hello")),
        ("trailing bytes", post("60", CBOR, &[0x80, 0x80])),
        ("empty", post("60", CBOR, b"")),
        ("too large", post("60", CBOR, &big)),
        (
            "wrong type",
            post("20", "Content-Type: text/plain\r\n", &[0x80]),
        ),
        ("no type", post("20", "", &[0x80])),
        ("chunked", chunked.to_vec()),
        ("nobody's message", post("10", CBOR, &[0x80])),
        ("no such number", post("99", CBOR, &[0x80])),
        ("not a number", post("abc", CBOR, &[0x80])),
    ];
    for (name, request) in cases {
        let answer = raw(cloud.fdo, &request).await.to_lowercase();
        assert!(answer.contains("message-type: 255\r\n"), "{name}: {answer}");
        assert!(answer.starts_with("http/1.1 500"), "{name}: {answer}");
    }
    let good = raw(cloud.fdo, &post("20", CBOR, &[0x80])).await;
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
}

#[tokio::test]
async fn a_peer_that_gives_up_ends_its_run() {
    let cloud = cloud().await;
    let mut run = fdo_client(cloud.fdo).start();
    run.exchange(&holdfast_protocol::fdo::to0::hello().1)
        .await
        .unwrap();
    let report = holdfast_protocol::fdo::Error::Own("test");
    let report = report
        .report(holdfast_protocol::fdo::MessageType::To0HelloAck)
        .unwrap();
    assert_eq!(ErrorMessage::parse(&report).code.number(), 500);
    run.give_up(report).await;
    let answer = raw(cloud.fdo, &post("22", CBOR, &[0x80]))
        .await
        .to_lowercase();
    assert!(answer.contains("message-type: 255"));
}

#[tokio::test]
async fn oversized_heads_and_slow_senders_are_cut() {
    let cloud = cloud_with(|config| {
        config.limits.headers = Duration::from_millis(300);
        config.limits.request = Duration::from_millis(300);
    })
    .await;
    let many: String = (0..10_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let answer = raw(cloud.fdo, &post("20", &many, &[0x80])).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let url = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(65_536));
    let answer = raw(cloud.fdo, url.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    let answer = raw(cloud.fdo, b"POST /fdo/101/msg/20 HTTP/1.1\r\nHost: x\r\n").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "slow head: {answer}"
    );
    let slow =
        format!("POST /fdo/101/msg/20 HTTP/1.1\r\nHost: x\r\n{CBOR}Content-Length: 9\r\n\r\n");
    let answer = raw(cloud.fdo, slow.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "slow body: {answer}");
    let good = raw(cloud.fdo, &post("20", CBOR, &[0x80])).await;
    assert!(good.starts_with("HTTP/1.1 200"), "{good}");
}

#[tokio::test]
async fn sync_wants_a_gateways_certificate() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let client = https_client(&gateway, cloud.api).await;
    let response = client.get("/api/v1/health").await.unwrap();
    assert_eq!(response.status.as_u16(), 200);
    let response = client
        .post("/api/v1/sync/pull", "application/json", "nonsense")
        .await
        .unwrap();
    assert_eq!(response.status.as_u16(), 400);
    // Revoked, it may not sync any more; the cloud's other business goes on.
    let own = gateway
        .cps
        .authority()
        .own_identity(&[LOCAL])
        .await
        .unwrap();
    let serial = crate::authority::serial_of(&own.chain()[0]).unwrap();
    crate::sync::Client::new(&gateway.cps, client.clone())
        .once()
        .await
        .unwrap();
    cloud.cps.authority().revoke(serial).await.unwrap();
    let error = crate::sync::Client::new(&gateway.cps, client)
        .once()
        .await
        .unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    assert_eq!(cloud.cps.metrics().refusals("api", "revoked"), 1);
}
