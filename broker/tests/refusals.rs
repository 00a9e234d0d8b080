//! What is refused, over real sockets: malformed packets, missing rights, too much of anything.

mod common;

use std::time::Duration;

use common::{Hello, Server, TestRights, packet, publish};
use holdfast_broker::{Config, CutReason, DropReason};
use tokio::io::AsyncWriteExt as _;

async fn server() -> Server {
    Server::start(Config::default()).await
}

#[tokio::test]
async fn mqtt_3_3_4_7_more_than_our_receive_maximum_ends_the_connection() {
    let mut config = Config::default();
    config.limits.receive_maximum = 3;
    let server = Server::start(config).await;
    let mut wire = server.v5("eager").await;
    for id in 1..=3 {
        wire.send(&publish(true, 4, "x", id, &[], b"")).await;
        wire.ack(0x50, id).await;
    }
    wire.send(&publish(true, 4, "x", 4, &[], b"")).await;
    assert_eq!(wire.closed().await, Some(0x93));
}

#[tokio::test]
async fn mqtt_3_1_2_25_a_message_too_large_for_the_client_is_left_out_and_counted() {
    let server = server().await;
    let mut taker = server.raw().await;
    taker.v5 = true;
    let mut hello = Hello::v5("small");
    hello.properties = vec![0x27, 0, 0, 0, 60];
    taker.send(&hello.bytes()).await;
    taker.connack(0).await;
    taker.subscribe("x", 1).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, &"l".repeat(100)).await;
    giver.publish("x", 1, "short").await;
    assert_eq!(taker.receive().await.text(), "short");
    assert_eq!(server.broker.metrics().dropped[&DropReason::TooLarge], 1);
}

#[tokio::test]
async fn mqtt_3_1_2_24_a_packet_above_our_maximum_ends_the_connection() {
    let server = server().await;
    let mut wire = server.v5("large").await;
    wire.send(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]).await;
    assert_eq!(wire.closed().await, Some(0x95));
    // To the byte, and whatever the packet is [MQTT-3.2.2-15].
    let mut config = Config::default();
    config.limits.packet_bytes = 1000;
    let server = Server::start(config).await;
    for v5 in [false, true] {
        let whole = |size: usize| {
            let empty = publish(v5, 2, "x", 1, &[], &[7; 200]).len() - 200;
            publish(v5, 2, "x", 1, &[], &vec![7; size - empty])
        };
        assert_eq!(whole(1000).len(), 1000);
        let open = async || match v5 {
            true => server.v5("large").await,
            false => server.v3("large").await,
        };
        let mut wire = open().await;
        wire.send(&whole(1000)).await;
        assert!(wire.ack(0x40, 1).await < 0x80);
        wire.send(&whole(1001)).await;
        assert_eq!(wire.closed().await, v5.then_some(0x95));
        let mut wire = open().await;
        wire.send(&packet(0x82, &[0; 1000])).await;
        assert_eq!(wire.closed().await, v5.then_some(0x95));
    }
}

#[tokio::test]
async fn outside_its_rights_a_client_is_told_and_nothing_arrives() {
    let server = server().await;
    TestRights::forbid(&server.rights.no_publish, "secret/#");
    TestRights::forbid(&server.rights.no_subscribe, "secret/#");
    let mut spy = server.v5("spy").await;
    let mut old = server.v3("old").await;
    assert_eq!(spy.subscribe("secret/x", 1).await, 0x87);
    assert_eq!(old.subscribe("secret/x", 1).await, 0x80);
    spy.subscribe("#", 1).await;
    assert_eq!(spy.publish("secret/x", 1, "no").await, 0x87);
    spy.publish("secret/x", 0, "no").await;
    spy.nothing().await;
    // 3.1.1 has no word for it: the connection ends [MQTT-3.3.5-2].
    old.send(&publish(false, 2, "secret/x", 1, &[], b"no"))
        .await;
    old.closed().await;
    assert_eq!(server.broker.metrics().ended[&CutReason::NotAuthorized], 1);
    assert!(server.broker.metrics().denied >= 5);
}

#[tokio::test]
async fn rights_lost_while_away_hold_for_what_waits() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("#", 1).await;
    drop(taker);
    let mut giver = server.v5("giver").await;
    giver.publish("a/x", 1, "lost").await;
    giver.publish("b/x", 1, "kept").await;
    giver.publish_with("a/r", 3, &[], "retained").await;
    TestRights::forbid(&server.rights.no_receive, "a/#");
    server.broker.rights_changed();
    giver.publish("a/x", 1, "lost").await;
    let (mut taker, _) = server.lasting("taker").await;
    assert_eq!(taker.receive().await.text(), "kept");
    taker.subscribe("a/#", 1).await;
    taker.nothing().await;
}

#[tokio::test]
async fn connect_refusals_carry_the_code_of_the_version() {
    let server = server().await;
    let mut hello = Hello::v5("x");
    hello.user = Some("user".into());
    hello.password = Some(b"wrong".to_vec());
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0x86).await;
    assert_eq!(wire.packet().await, None);
    hello.v5 = false;
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(4).await;
    assert_eq!(wire.packet().await, None);
    // An unknown version: 3.1.1's code 1 [MQTT-3.1.2-2].
    let mut wire = server.raw().await;
    wire.send(&packet(
        0x10,
        &[0, 4, b'M', b'Q', b'T', b'T', 9, 2, 0, 0, 0, 1, b'x'],
    ))
    .await;
    wire.connack(1).await;
    assert_eq!(wire.packet().await, None);
    // Enhanced authentication: a method we do not have.
    let mut hello = Hello::v5("x");
    hello.properties = vec![0x15, 0, 1, b'm'];
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0x8C).await;
}

#[tokio::test]
async fn mqtt_3_1_0_1_any_other_first_packet_ends_the_connection_at_once() {
    let server = server().await;
    for kind in (0..=15u8).filter(|kind| *kind != 1) {
        let mut wire = server.raw().await;
        // Remaining length 268,435,455: nothing is allocated for it.
        wire.send(&[kind << 4, 0xFF, 0xFF, 0xFF, 0x7F]).await;
        assert_eq!(wire.packet().await, None, "{kind}");
        let mut wire = server.raw().await;
        wire.send(&[kind << 4, 0]).await;
        assert_eq!(wire.packet().await, None, "{kind}");
    }
    server.v5("good").await.nothing().await;
    let ended = server.broker.metrics().ended;
    assert_eq!(ended[&CutReason::PacketTooLarge], 15);
    assert_eq!(ended[&CutReason::Protocol], 15);
}

#[tokio::test]
async fn malformed_packets_end_the_connection_with_their_code() {
    let server = server().await;
    let cases: Vec<(&str, Vec<u8>, u8)> = vec![
        ("a second CONNECT", Hello::v5("x").bytes(), 0x82),
        (
            "five bytes of length",
            vec![0x30, 0x80, 0x80, 0x80, 0x80, 1],
            0x81,
        ),
        ("a length longer than needed", vec![0xC0, 0x80, 0], 0x81),
        ("QoS 3", publish(true, 6, "x", 1, &[], b""), 0x81),
        ("DUP with QoS 0", publish(true, 8, "x", 0, &[], b""), 0x81),
        ("packet id 0", publish(true, 2, "x", 0, &[], b""), 0x82),
        (
            "a wildcard topic",
            publish(true, 0, "a/#", 0, &[], b""),
            0x90,
        ),
        (
            "no topic, no alias",
            publish(true, 0, "", 0, &[], b""),
            0x82,
        ),
        (
            "alias 0",
            publish(true, 0, "x", 0, &[0x23, 0, 0], b""),
            0x94,
        ),
        (
            "an alias twice",
            publish(true, 0, "x", 0, &[0x23, 0, 1, 0x23, 0, 1], b""),
            0x82,
        ),
        (
            "a subscription id from a client",
            publish(true, 0, "x", 0, &[0x0B, 1], b""),
            0x82,
        ),
        (
            "an unknown property",
            publish(true, 0, "x", 0, &[0x7F, 1], b""),
            0x81,
        ),
        (
            "NUL in a topic",
            publish(true, 0, "a\0b", 0, &[], b""),
            0x81,
        ),
        ("bad UTF-8", packet(0x30, &[0, 2, 0xC3, 0x28, 0]), 0x81),
        (
            "a surrogate",
            packet(0x30, &[0, 3, 0xED, 0xA0, 0x80, 0]),
            0x81,
        ),
        (
            "flags on SUBSCRIBE",
            packet(0x80, &[0, 1, 0, 0, 1, b'x', 0]),
            0x81,
        ),
        ("an empty SUBSCRIBE", packet(0x82, &[0, 1, 0]), 0x82),
        (
            "a truncated SUBSCRIBE",
            packet(0x82, &[0, 1, 0, 0, 9, b'x']),
            0x81,
        ),
        (
            "reserved options",
            packet(0x82, &[0, 1, 0, 0, 1, b'x', 0xC0]),
            0x81,
        ),
        (
            "subscription id 0",
            packet(0x82, &[0, 1, 2, 0x0B, 0, 0, 1, b'x', 0]),
            0x82,
        ),
        ("flags on PINGREQ", vec![0xC1, 0], 0x81),
        ("PINGREQ with a body", vec![0xC0, 1, 0], 0x81),
        ("a server's packet", vec![0xD0, 0], 0x82),
        ("AUTH", vec![0xF0, 0], 0x82),
        (
            "bytes behind a PUBACK",
            packet(0x40, &[0, 1, 0, 0, 9]),
            0x81,
        ),
    ];
    for (what, bytes, code) in cases {
        let mut wire = server.v5("bad").await;
        wire.send(&bytes).await;
        assert_eq!(wire.closed().await, Some(code), "{what}");
    }
    // 3.1.1 is closed without a word [MQTT-4.8.0-1].
    for bytes in [
        Hello::v3("x").bytes(),
        vec![0x30, 0x80, 0x80, 0x80, 0x80, 1],
        vec![0xC0, 0x80, 0],
        publish(false, 6, "x", 1, &[], b""),
        publish(false, 8, "x", 0, &[], b""),
        publish(false, 2, "x", 0, &[], b""),
        publish(false, 0, "a/#", 0, &[], b""),
        publish(false, 0, "", 0, &[], b""),
        packet(0x30, &[0, 2, 0xC3, 0x28]),
        packet(0x80, &[0, 1, 0, 1, b'x', 0]),
        packet(0x82, &[0, 1]),
        packet(0x82, &[0, 1, 0, 9, b'x']),
        packet(0x82, &[0, 1, 0, 1, b'x', 0xC0]),
        vec![0xC1, 0],
        vec![0xC0, 1, 0],
        vec![0xD0, 0],
        vec![0xF0, 0],
        packet(0x40, &[0, 1, 0]),
        packet(0x40, &[0]),
    ] {
        let mut wire = server.v3("bad").await;
        wire.send(&bytes).await;
        assert_eq!(wire.packet().await, None, "{bytes:?}");
    }
    server.v5("good").await.nothing().await;
}

#[tokio::test]
async fn mqtt_3_2_2_an_acknowledgement_of_nothing_changes_nothing() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    wire.send(&packet(0x40, &[0, 7])).await;
    wire.send(&packet(0x70, &[0, 7])).await;
    wire.nothing().await;
}

#[tokio::test]
async fn no_connect_in_time_ends_the_connection() {
    let config = Config {
        connect_deadline: Duration::from_millis(200),
        ..Config::default()
    };
    let server = Server::start(config).await;
    let mut wire = server.raw().await;
    wire.stream.write_u8(0x10).await.unwrap();
    assert_eq!(wire.packet().await, None);
    assert_eq!(
        server.broker.metrics().ended[&CutReason::ConnectDeadline],
        1
    );
}

#[tokio::test]
async fn one_address_has_so_many_unfinished_connections_and_no_more() {
    let mut config = Config::default();
    config.limits.handshakes_per_address = 3;
    let server = Server::start(config).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut wire = server.raw().await;
        wire.stream.write_u8(0x10).await.unwrap();
        idle.push(wire);
    }
    let mut fourth = server.raw().await;
    assert_eq!(fourth.packet().await, None);
    idle.pop();
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    loop {
        let mut wire = server.raw().await;
        let _ = wire.stream.write_all(&Hello::v5("next").bytes()).await;
        if wire.packet().await.is_some() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline);
    }
}

#[tokio::test]
async fn a_slow_subscriber_costs_itself_its_cap_and_the_others_nothing() {
    let mut config = Config::default();
    config.limits.queue_messages = 50;
    let server = Server::start(config).await;
    let mut slow = server.v5("slow").await;
    let mut quick = server.v5("quick").await;
    slow.subscribe("x", 1).await;
    quick.subscribe("x", 1).await;
    let mut giver = server.v5("giver").await;
    // Nothing is acknowledged by the slow one: 100 are under way (the window), 50 wait.
    for number in 0..400 {
        giver.publish("x", 1, &number.to_string()).await;
        assert_eq!(quick.receive().await.text(), number.to_string());
    }
    let dropped = server.broker.metrics().dropped[&DropReason::QueueFull];
    assert_eq!(dropped, 400 - 150);
    let mut got = 0;
    while got < 150 {
        assert_eq!(slow.receive().await.text(), got.to_string());
        got += 1;
    }
    slow.nothing().await;
}
