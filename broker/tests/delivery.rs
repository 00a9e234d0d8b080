//! Who gets which message and how, over real sockets: QoS, retained, options, properties, repeats.

mod common;

use std::time::Duration;

use common::{Hello, Server, packet, publish, stamp, text};
use holdfast_broker::{Config, DropReason};

async fn server() -> Server {
    Server::start(Config::default()).await
}

#[tokio::test]
async fn qos_0_and_1_go_through_both_versions() {
    let server = server().await;
    let mut old = server.v3("old").await;
    let mut new = server.v5("new").await;
    assert_eq!(old.subscribe("a/+", 1).await, 1);
    assert_eq!(new.subscribe("a/b", 0).await, 0);
    assert_eq!(new.publish("a/b", 1, "one").await, 0);
    let got = old.receive().await;
    assert_eq!(
        (got.text(), got.qos(), got.topic.as_str()),
        ("one", 1, "a/b")
    );
    let got = new.receive().await;
    assert_eq!((got.text(), got.qos()), ("one", 0));
    old.publish("a/b", 0, "two").await;
    assert_eq!(old.receive().await.text(), "two");
    assert_eq!(new.receive().await.text(), "two");
    old.nothing().await;
    new.nothing().await;
}

#[tokio::test]
async fn mqtt_4_3_3_qos_2_goes_through() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    let mut giver = server.v3("giver").await;
    taker.subscribe("x", 2).await;
    assert_eq!(giver.publish("x", 2, "once").await, 0);
    let got = taker.receive().await;
    assert_eq!((got.text(), got.qos()), ("once", 2));
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt_4_3_3_10_a_qos_2_duplicate_is_not_delivered_again() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    let mut giver = server.v5("giver").await;
    taker.subscribe("x", 0).await;
    for dup in [0, 8, 8] {
        giver
            .send(&publish(true, 4 | dup, "x", 9, &[], b"once"))
            .await;
        assert_eq!(giver.ack(0x50, 9).await, 0);
    }
    assert_eq!(taker.receive().await.text(), "once");
    taker.nothing().await;
    giver.send(&packet(0x62, &[0, 9])).await;
    assert_eq!(giver.ack(0x70, 9).await, 0);
    giver.send(&packet(0x62, &[0, 9])).await;
    assert_eq!(giver.ack(0x70, 9).await, 0x92);
}

#[tokio::test]
async fn mqtt_3_3_1_5_a_retained_message_is_kept_for_later_subscribers() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    assert_eq!(giver.publish_with("state/a", 3, &[], "on").await, 0x10);
    giver.publish_with("state/b", 3, &[], "off").await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("state/#", 1).await;
    let first = taker.receive().await;
    assert!(first.retain());
    let second = taker.receive().await;
    assert_eq!((first.text(), second.text()), ("on", "off"));
    // A live one comes without the flag [MQTT-3.3.1-12], or with it when asked for.
    giver.publish_with("state/a", 3, &[], "again").await;
    assert!(!taker.receive().await.retain());
    taker.subscribe("state/a", 1 | 8 | 0x20).await;
    giver.publish_with("state/a", 3, &[], "published").await;
    assert!(taker.receive().await.retain());
}

#[tokio::test]
async fn mqtt_3_3_1_6_an_empty_payload_clears_the_slot() {
    let server = server().await;
    let mut wire = server.v5("one").await;
    wire.publish_with("state", 3, &[], "on").await;
    wire.publish_with("state", 3, &[], "").await;
    wire.subscribe("state", 1).await;
    wire.nothing().await;
}

#[tokio::test]
async fn mqtt_3_3_1_10_retain_handling_is_obeyed() {
    let server = server().await;
    let mut wire = server.v5("one").await;
    wire.publish_with("state", 3, &[], "on").await;
    wire.subscribe("state", 0x20).await;
    wire.nothing().await;
    wire.unsubscribe("state").await;
    wire.subscribe("state", 0x10).await;
    assert_eq!(wire.receive().await.text(), "on");
    wire.subscribe("state", 0x10).await;
    wire.nothing().await;
    wire.subscribe("state", 0).await;
    assert_eq!(wire.receive().await.text(), "on");
}

#[tokio::test]
async fn mqtt_3_3_4_9_the_client_gets_no_more_at_once_than_its_receive_maximum() {
    let server = server().await;
    let mut taker = server.raw().await;
    taker.v5 = true;
    let mut hello = Hello::v5("taker");
    hello.properties = vec![0x21, 0, 2];
    taker.send(&hello.bytes()).await;
    taker.connack(0).await;
    taker.subscribe("x", 1).await;
    let mut giver = server.v5("giver").await;
    for number in 0..5 {
        giver.publish("x", 1, &number.to_string()).await;
    }
    let first = taker.arrived().await;
    let second = taker.arrived().await;
    assert_eq!((first.text(), second.text()), ("0", "1"));
    taker.nothing().await;
    taker.send(&packet(0x40, &first.id.to_be_bytes())).await;
    assert_eq!(taker.arrived().await.text(), "2");
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt_3_3_2_6_the_expiry_is_counted_down_and_the_expired_left_out() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    drop(taker);
    let mut giver = server.v5("giver").await;
    giver.publish_with("x", 2, &[2, 0, 0, 0, 1], "short").await;
    giver.publish_with("x", 2, &[2, 0, 0, 0, 100], "long").await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let (mut taker, _) = server.lasting("taker").await;
    let got = taker.receive().await;
    assert_eq!(got.text(), "long");
    assert_eq!(got.properties[..4], [2, 0, 0, 0]);
    assert!(
        (96..=99).contains(&got.properties[4]),
        "{:?}",
        got.properties
    );
    taker.nothing().await;
    assert_eq!(server.broker.metrics().dropped[&DropReason::Expired], 1);
}

#[tokio::test]
async fn mqtt_3_8_3_3_no_local_keeps_ones_own_messages_away() {
    let server = server().await;
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    one.subscribe("x", 1 | 4).await;
    two.subscribe("x", 1 | 4).await;
    one.publish("x", 1, "hello").await;
    assert_eq!(two.receive().await.text(), "hello");
    one.nothing().await;
}

#[tokio::test]
async fn mqtt_3_3_4_2_overlapping_subscriptions_give_one_copy_at_the_highest_qos_with_all_ids() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe_with("a/#", 2, &[0x0B, 7]).await;
    taker.subscribe_with("a/+", 1, &[0x0B, 0x80, 2]).await;
    taker.subscribe("a/b", 0).await;
    let mut giver = server.v5("giver").await;
    giver.publish("a/b", 2, "m").await;
    let got = taker.receive().await;
    assert_eq!(got.qos(), 2);
    assert_eq!(got.properties, [0x0B, 7, 0x0B, 0x80, 2]);
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt_3_3_2_15_properties_are_passed_on_unaltered_and_in_order() {
    let server = server().await;
    let mut wire = server.v5("one").await;
    wire.subscribe("x", 1).await;
    let mut properties = vec![1, 1];
    for (name, value) in [("b", "1"), ("a", "2"), ("b", "3")] {
        properties.push(0x26);
        properties.extend(text(name));
        properties.extend(text(value));
    }
    properties.push(8);
    properties.extend(text("reply/to"));
    properties.extend([9, 0, 2, 0, 255]);
    let id = wire.id();
    wire.send(&publish(true, 2, "x", id, &properties, b"m"))
        .await;
    let (mut acked, mut got) = (false, None);
    while !acked || got.is_none() {
        let (first, body) = wire.packet().await.unwrap();
        if first == 0x40 {
            acked = true;
        } else {
            got = Some(wire.parse(first, &body));
        }
    }
    assert_eq!(got.unwrap().properties, properties);
}

#[tokio::test]
async fn mqtt_3_3_2_12_topic_aliases_stand_for_their_topics() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 0).await;
    let mut giver = server.v5("giver").await;
    giver
        .publish_with("long/topic", 0, &[0x23, 0, 3], "1")
        .await;
    giver.publish_with("", 0, &[0x23, 0, 3], "2").await;
    giver.publish_with("other", 0, &[0x23, 0, 3], "3").await;
    giver.publish_with("", 0, &[0x23, 0, 3], "4").await;
    for (topic, payload) in [
        ("long/topic", "1"),
        ("long/topic", "2"),
        ("other", "3"),
        ("other", "4"),
    ] {
        let got = taker.receive().await;
        assert_eq!((got.topic.as_str(), got.text()), (topic, payload));
        assert!(got.properties.is_empty());
    }
    giver.publish_with("x", 0, &[0x23, 0, 200], "").await;
    assert_eq!(giver.closed().await, Some(0x94));
}

#[tokio::test]
async fn a_repeat_is_acknowledged_and_neither_stored_nor_delivered_again() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    let mut live = server.v5("live").await;
    live.subscribe("x", 0).await;
    let mut giver = server.v5("giver").await;
    for (epoch, seq, payload) in [
        (1, 1, "a"),
        (1, 2, "b"),
        (1, 2, "b"),
        (1, 1, "a"),
        (2, 1, "c"),
    ] {
        assert_eq!(
            giver
                .publish_with("x", 2, &stamp(epoch, seq), payload)
                .await,
            0
        );
    }
    drop(giver);
    let server = server.restart(Config::default()).await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("x", 2, &stamp(2, 1), "c").await;
    giver.publish_with("x", 2, &stamp(2, 2), "d").await;
    let (mut taker, _) = server.lasting("taker").await;
    for payload in ["a", "b", "c", "d"] {
        assert_eq!(taker.receive().await.text(), payload);
    }
    taker.nothing().await;
    assert_eq!(server.broker.metrics().repeats, 1);
    for payload in ["a", "b", "c"] {
        assert_eq!(live.receive().await.text(), payload);
    }
}

#[tokio::test]
async fn mqtt_4_8_2_5_each_message_goes_to_one_member_of_a_shared_subscription() {
    let server = server().await;
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    one.subscribe("$share/g/x", 1).await;
    two.subscribe("$share/g/x", 1).await;
    let mut giver = server.v5("giver").await;
    for number in 0..10 {
        giver.publish("x", 1, &number.to_string()).await;
    }
    for _ in 0..5 {
        one.receive().await;
        two.receive().await;
    }
    one.nothing().await;
    two.nothing().await;
}

#[tokio::test]
async fn a_lasting_session_gets_a_copy_of_its_own_beside_the_shared_one_and_both_are_taken_away() {
    let server = server().await;
    let (mut one, _) = server.lasting("one").await;
    one.subscribe("x", 1).await;
    one.subscribe("$share/g/x", 1).await;
    let mut giver = server.v5("giver").await;
    for number in 0..3 {
        giver.publish("x", 1, &number.to_string()).await;
    }
    for number in 0..3 {
        // `receive` acknowledges.
        assert_eq!(one.receive().await.text(), number.to_string());
        assert_eq!(one.receive().await.text(), number.to_string());
    }
    one.nothing().await;
    while server.broker.metrics().journal_rows > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
