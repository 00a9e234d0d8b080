//! Wills: when they come, when not, with what.

use std::time::Duration;

use crate::common::{Hello, Server, Wire, expiry, text};
use crate::kit::{VERSIONS, client, hello, server};

fn with_will(v5: bool, id: &str, flags: u8, properties: &[u8]) -> Hello {
    let mut hello = Hello::v5(id);
    hello.v5 = v5;
    hello.will = Some((
        flags,
        properties.to_vec(),
        "will/x".into(),
        b"gone".to_vec(),
    ));
    hello
}

async fn taker(server: &Server) -> Wire {
    let mut taker = server.v5("taker").await;
    taker.subscribe("will/#", 2).await;
    taker
}

#[tokio::test]
async fn mqtt5_3_1_2_8_every_ungraceful_end_sends_the_will() {
    let server = server().await;
    let mut taker = taker(&server).await;
    for v5 in VERSIONS {
        let ends: [(&str, &[u8]); 4] = [
            ("protocol error", &[0xF0, 0]),
            ("malformed", &[0xC1, 0]),
            ("too large", &[0x30, 0xFF, 0xFF, 0xFF, 0x7F]),
            ("a server's packet", &[0xD0, 0]),
        ];
        for (what, bytes) in ends {
            let mut wire = hello(&server, &with_will(v5, "dying", 0x08, &[])).await;
            wire.send(bytes).await;
            wire.closed().await;
            assert_eq!(taker.receive().await.text(), "gone", "{what}");
        }
        // Takeover is an end too.
        let old = hello(&server, &with_will(v5, "dying", 0x08, &[])).await;
        let new = client(&server, v5, "dying").await;
        assert_eq!(taker.receive().await.text(), "gone");
        drop((old, new));
        // So is being cut.
        let _wire = hello(&server, &with_will(v5, "cut", 0x08, &[])).await;
        server
            .broker
            .cut("cut", holdfast_broker::CutReason::Administrative);
        assert_eq!(taker.receive().await.text(), "gone");
    }
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_1_2_8_keep_alive_running_out_sends_the_will() {
    let server = server().await;
    let mut taker = taker(&server).await;
    for v5 in VERSIONS {
        let mut greeting = with_will(v5, "silent", 0x10, &[]);
        greeting.keep_alive = 1;
        let _wire = hello(&server, &greeting).await;
        let got = taker.receive().await;
        assert_eq!((got.text(), got.qos()), ("gone", 2));
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_10_a_graceful_end_takes_the_will_away_for_good() {
    let server = server().await;
    let mut taker = taker(&server).await;
    for v5 in VERSIONS {
        let wire = hello(&server, &with_will(v5, "polite", 0x08, &[])).await;
        wire.disconnect().await;
        // The next connection has none of its own: nothing comes from the one before.
        let wire = client(&server, v5, "polite").await;
        drop(wire);
    }
    // A DISCONNECT with an error keeps it.
    let mut wire = hello(&server, &with_will(true, "impolite", 0x08, &[])).await;
    wire.send(&[0xE0, 1, 0x80]).await;
    assert_eq!(taker.receive().await.text(), "gone");
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_1_2_14_and_15_a_will_is_retained_if_and_only_if_it_says_so() {
    let server = server().await;
    for v5 in VERSIONS {
        for retain in [false, true] {
            let mut live = taker(&server).await;
            let flags = if retain { 0x28 } else { 0x08 };
            let wire = hello(&server, &with_will(v5, "dying", flags, &[])).await;
            drop(wire);
            assert!(!live.receive().await.retain(), "[MQTT-3.3.1-12]");
            let mut late = server.v5("late").await;
            late.subscribe("will/#", 2).await;
            if retain {
                let got = late.receive().await;
                assert_eq!((got.retain(), got.qos(), got.text()), (true, 1, "gone"));
                late.publish_with("will/x", 1, &[], "").await;
                late.receive().await;
            }
            late.nothing().await;
        }
    }
}

#[tokio::test]
async fn mqtt5_3_1_3_10_a_wills_properties_arrive_in_order_with_its_expiry() {
    let server = server().await;
    let mut taker = taker(&server).await;
    let mut properties = vec![0x02, 0, 0, 0, 99];
    let mut passed = vec![1, 1];
    passed.extend([&[3][..], &text("text/plain")].concat());
    passed.extend([&[8][..], &text("answer")].concat());
    passed.extend([9, 0, 1, 7]);
    for (name, value) in [("b", "1"), ("a", "2"), ("b", "1")] {
        passed.extend([&[0x26][..], &text(name), &text(value)].concat());
    }
    properties.extend(&passed);
    drop(hello(&server, &with_will(true, "dying", 0x08, &properties)).await);
    let got = taker.receive().await;
    assert_eq!(got.properties[..4], [2, 0, 0, 0]);
    assert!((97..=99).contains(&got.properties[4]));
    assert_eq!(got.properties[5..], passed);
}

#[tokio::test]
async fn mqtt5_3_1_3_2_a_delayed_will_comes_no_later_than_the_sessions_end() {
    let server = server().await;
    let mut taker = taker(&server).await;
    let begun = tokio::time::Instant::now();
    // Delay 60 s, session 1 s.
    let mut greeting = with_will(true, "dying", 0, &[0x18, 0, 0, 0, 60]);
    greeting.properties = expiry(1);
    drop(hello(&server, &greeting).await);
    assert_eq!(taker.receive().await.text(), "gone");
    assert!((800..5000).contains(&begun.elapsed().as_millis()));
    // No session beyond the connection: no delay.
    let greeting = with_will(true, "dying", 0, &[0x18, 0, 0, 0, 60]);
    drop(hello(&server, &greeting).await);
    assert_eq!(taker.receive().await.text(), "gone");
    // A clean start ends the session, and so brings it.
    let mut greeting = with_will(true, "dying", 0, &[0x18, 0, 0, 0, 60]);
    greeting.properties = expiry(600);
    drop(hello(&server, &greeting).await);
    tokio::time::sleep(Duration::from_millis(200)).await;
    taker.nothing().await;
    let _wire = server.v5("dying").await;
    assert_eq!(taker.receive().await.text(), "gone");
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_1_2_9_an_empty_will_payload_is_a_message_too() {
    let server = server().await;
    let mut taker = taker(&server).await;
    for v5 in VERSIONS {
        let mut greeting = with_will(v5, "dying", 0x08, &[]);
        greeting.will.as_mut().unwrap().3 = Vec::new();
        drop(hello(&server, &greeting).await);
        assert_eq!(taker.receive().await.text(), "");
    }
}
