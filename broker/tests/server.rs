//! The broker over real sockets, spoken to in bytes: what MQTT 3.1.1 and 5 ask of a server.

mod common;

use std::time::Duration;

use common::{Hello, Server, TestRights, expiry, packet, publish, stamp, text};
use holdfast_broker::{Config, CutReason, DropReason};
use tokio::io::AsyncWriteExt as _;

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
async fn mqtt_3_1_2_5_a_lasting_session_gets_what_came_while_it_was_away() {
    let server = server().await;
    let (mut taker, present) = server.lasting("taker").await;
    assert!(!present);
    taker.subscribe("x/#", 1).await;
    drop(taker);
    let mut giver = server.v3("giver").await;
    for number in 0..300 {
        assert_eq!(giver.publish("x/y", 1, &number.to_string()).await, 0);
    }
    let (mut taker, present) = server.lasting("taker").await;
    assert!(present);
    for number in 0..300 {
        assert_eq!(taker.receive().await.text(), number.to_string());
    }
    taker.nothing().await;
    assert_eq!(giver.publish("x/z", 1, "live").await, 0);
    assert_eq!(taker.receive().await.text(), "live");
}

#[tokio::test]
async fn a_restart_keeps_sessions_subscriptions_messages_and_retained() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    taker.subscribe("q2", 2).await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("kept", 3, &[], "kept").await;
    drop(taker);
    giver.publish("x", 1, "one").await;
    giver.publish("q2", 2, "two").await;
    let server = server.restart(Config::default()).await;
    let (mut taker, present) = server.lasting("taker").await;
    assert!(present);
    assert_eq!(taker.receive().await.text(), "one");
    assert_eq!(taker.receive().await.text(), "two");
    taker.nothing().await;
    taker.subscribe("kept", 1).await;
    assert_eq!(taker.receive().await.text(), "kept");
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "after").await;
    assert_eq!(taker.receive().await.text(), "after");
}

#[tokio::test]
async fn mqtt_4_4_0_1_what_is_unacknowledged_comes_again_under_its_id() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 2).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "first").await;
    giver.publish("x", 2, "second").await;
    let first = taker.arrived().await;
    let second = taker.arrived().await;
    // The second is half done: PUBREC was taken, PUBREL came.
    taker.send(&packet(0x50, &second.id.to_be_bytes())).await;
    assert_eq!(taker.ack(0x62, second.id).await, 0);
    drop(taker);
    let (mut taker, _) = server.lasting("taker").await;
    let again = taker.arrived().await;
    assert!(again.dup());
    assert_eq!((again.id, again.text()), (first.id, "first"));
    assert_eq!(taker.ack(0x62, second.id).await, 0);
    drop(taker);
    // The same after a restart: the ids come from the journal.
    let server = server.restart(Config::default()).await;
    let (mut taker, _) = server.lasting("taker").await;
    assert_eq!(taker.receive().await.id, first.id);
    assert_eq!(taker.ack(0x62, second.id).await, 0);
    taker.send(&packet(0x70, &second.id.to_be_bytes())).await;
    taker.nothing().await;
    drop(taker);
    let (mut taker, _) = server.lasting("taker").await;
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt_3_1_4_3_a_second_connection_takes_the_session_over() {
    let server = server().await;
    let mut first = server.v5("same").await;
    let mut second = server.v5("same").await;
    assert_eq!(first.closed().await, Some(0x8E));
    second.nothing().await;
}

#[tokio::test]
async fn many_at_once_under_one_client_id_leave_exactly_one() {
    let server = server().await;
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = server.raw().await;
        wire.v5 = true;
        wire.send(&Hello::v5("same").bytes()).await;
        wires.push(wire);
    }
    let mut last = wires.pop().unwrap();
    last.packet().await.unwrap();
    for wire in &mut wires {
        let _ = tokio::time::timeout(common::PATIENCE, wire.closed()).await;
    }
    assert_eq!(server.broker.metrics().sessions, 1);
}

#[tokio::test]
async fn mqtt_3_1_2_8_the_will_comes_when_the_connection_is_lost_and_not_after_goodbye() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("will", 1).await;
    for (polite, version) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut wire = server.raw().await;
        let mut hello = Hello::v5("dying");
        hello.v5 = version;
        hello.will = Some((0x08, Vec::new(), "will".into(), b"gone".to_vec()));
        wire.send(&hello.bytes()).await;
        wire.connack(0).await;
        if polite {
            wire.disconnect().await;
            taker.nothing().await;
        } else {
            drop(wire);
            assert_eq!(taker.receive().await.text(), "gone");
        }
    }
}

#[tokio::test]
async fn mqtt_3_1_3_9_a_delayed_will_is_cancelled_by_a_return() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("will", 1).await;
    let mut hello = Hello::v5("dying");
    hello.clean = false;
    hello.properties = expiry(100);
    hello.will = Some((0, vec![0x18, 0, 0, 0, 1], "will".into(), b"gone".to_vec()));
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    drop(wire);
    let (wire, present) = server.lasting("dying").await;
    assert!(present);
    tokio::time::sleep(Duration::from_millis(2200)).await;
    taker.nothing().await;
    wire.disconnect().await;
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    drop(wire);
    let before = tokio::time::Instant::now();
    assert_eq!(taker.receive().await.text(), "gone");
    assert!(before.elapsed() > Duration::from_millis(800));
}

#[tokio::test]
async fn mqtt_3_14_4_3_disconnect_with_will_sends_it() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("will", 0).await;
    let mut wire = server.raw().await;
    let mut hello = Hello::v5("dying");
    hello.will = Some((0, Vec::new(), "will".into(), b"gone".to_vec()));
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    wire.send(&[0xE0, 1, 4]).await;
    assert_eq!(taker.receive().await.text(), "gone");
}

#[tokio::test]
async fn mqtt_3_1_2_24_silence_beyond_one_and_a_half_keep_alives_ends_the_connection() {
    let server = server().await;
    let mut wire = server.raw().await;
    wire.v5 = true;
    let mut hello = Hello::v5("silent");
    hello.keep_alive = 1;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    let before = tokio::time::Instant::now();
    assert_eq!(wire.closed().await, Some(0x8D));
    assert!(before.elapsed() >= Duration::from_millis(1400));
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
async fn a_will_needs_its_right_at_connect_and_when_it_fires() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 1).await;
    let mut hello = Hello::v5("dying");
    hello.will = Some((0, Vec::new(), "w/x".into(), b"gone".to_vec()));
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    TestRights::forbid(&server.rights.no_publish, "w/#");
    drop(wire);
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0x87).await;
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
    // Enhanced authentication: a method we do not have.
    let mut hello = Hello::v5("x");
    hello.properties = vec![0x15, 0, 1, b'm'];
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0x8C).await;
}

#[tokio::test]
async fn mqtt_3_1_3_6_an_empty_client_id_gets_one() {
    let server = server().await;
    let mut wire = server.raw().await;
    wire.send(&Hello::v5("").bytes()).await;
    let (_, body) = wire.packet().await.unwrap();
    assert_eq!(body[1], 0);
    assert!(body.windows(5).any(|part| part == b"auto-"));
    // 3.1.1 must ask for a clean session with it [MQTT-3.1.3-8].
    let mut hello = Hello::v3("");
    hello.clean = false;
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(2).await;
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
            0x82,
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
async fn a_full_session_drops_exactly_what_it_counts() {
    let mut config = Config::default();
    config.limits.session_rows = 100;
    let server = Server::start(config).await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    drop(taker);
    let mut giver = server.v5("giver").await;
    for number in 0..110 {
        assert_eq!(giver.publish("x", 1, &number.to_string()).await, 0);
    }
    let (mut taker, _) = server.lasting("taker").await;
    for number in 0..100 {
        assert_eq!(taker.receive().await.text(), number.to_string());
    }
    taker.nothing().await;
    assert_eq!(
        server.broker.metrics().dropped[&DropReason::JournalFull],
        10
    );
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
async fn an_expired_session_is_gone_with_its_messages() {
    let server = server().await;
    let mut wire = server.raw().await;
    wire.v5 = true;
    let mut hello = Hello::v5("short");
    hello.clean = false;
    hello.properties = expiry(1);
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    wire.subscribe("x", 1).await;
    drop(wire);
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "m").await;
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while server.broker.metrics().sessions > 1 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.broker.metrics().journal_rows, 0);
    assert!(!server.lasting("short").await.1);
}

#[tokio::test]
async fn mqtt_3_14_2_2_disconnect_may_change_the_expiry_but_not_from_zero() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    let mut body = vec![0, 5];
    body.extend(expiry(10));
    wire.send(&packet(0xE0, &body)).await;
    assert_eq!(wire.closed().await, Some(0x82));
    let (mut wire, _) = server.lasting("y").await;
    let mut body = vec![0, 5];
    body.extend(expiry(0));
    wire.send(&packet(0xE0, &body)).await;
    wire.closed().await;
    assert!(!server.lasting("y").await.1);
}

#[tokio::test]
async fn a_stopping_server_says_so_and_lets_sessions_live() {
    let server = server().await;
    let (mut wire, _) = server.lasting("x").await;
    server.cancel.cancel();
    assert_eq!(wire.closed().await, Some(0x8B));
    let server = server.restart(Config::default()).await;
    assert!(server.lasting("x").await.1);
}

#[tokio::test]
async fn the_operator_can_cut_a_client() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    assert!(server.broker.cut("x", CutReason::Administrative));
    assert_eq!(wire.closed().await, Some(0x98));
    assert!(!server.broker.cut("nobody", CutReason::Administrative));
    let mut wire = server.v5("y").await;
    let cut = server
        .broker
        .cut_where(CutReason::NotAuthorized, |identity| {
            &*identity.client_id == "y"
        });
    assert_eq!(cut, 1);
    assert_eq!(wire.closed().await, Some(0x87));
}
