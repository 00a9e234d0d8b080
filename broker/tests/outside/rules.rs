//! Single normative statements that no other file here comes past.

use std::time::Duration;

use holdfast_broker::{Config, DropReason};

use crate::common::{Hello, TestRights, expiry, packet, publish, text};
use crate::kit::{VERSIONS, client, hello, lasting, server, until};

#[tokio::test]
async fn mqtt5_3_3_4_10_a_full_window_delays_no_other_packet() {
    let server = server().await;
    let mut greeting = Hello::v5("taker");
    greeting.properties = vec![0x21, 0, 1];
    let mut taker = hello(&server, &greeting).await;
    taker.subscribe("one", 1).await;
    let mut giver = server.v5("giver").await;
    for payload in ["a", "b"] {
        giver.publish("one", 1, payload).await;
    }
    let first = taker.arrived().await;
    assert_eq!(first.text(), "a");
    // The window is full: pings, subscriptions, publishes of both sides go on [MQTT-4.9.0-3].
    taker.nothing().await;
    assert_eq!(taker.subscribe("zero", 0).await, 0);
    giver.publish("zero", 0, "now").await;
    assert_eq!(taker.arrived().await.text(), "now");
    assert_eq!(taker.publish("elsewhere", 2, "m").await, 0);
    assert_eq!(taker.unsubscribe("zero").await, [0, 0]);
    taker.send(&packet(0x40, &first.id.to_be_bytes())).await;
    assert_eq!(taker.receive().await.text(), "b");
}

#[tokio::test]
async fn mqtt5_3_14_0_1_before_its_connack_a_client_hears_no_disconnect() {
    let server = server().await;
    server.rights.banned.lock().unwrap().insert("banned".into());
    let bad_flags = {
        let mut bytes = Hello::v5("x").bytes();
        bytes[9] |= 1;
        bytes
    };
    for bytes in [
        Hello::v5("banned").bytes(),
        bad_flags,
        packet(0x82, &[&[0, 1, 0][..], &text("a"), &[0]].concat()),
        packet(0xF0, &[]),
        vec![0xC0, 0],
        vec![0xE0, 0],
        publish(true, 0, "a", 0, &[], b"m"),
    ] {
        let mut wire = server.raw().await;
        wire.send(&bytes).await;
        while let Some((first, body)) = wire.packet().await {
            assert_eq!(first, 0x20, "{body:?}");
            assert!(body[1] >= 0x80);
        }
    }
}

#[tokio::test]
async fn mqtt5_4_3_3_7_a_message_that_was_sent_does_not_expire() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut taker = hello(&server, &lasting(v5, "taker")).await;
        taker.subscribe("a", 2).await;
        let mut giver = server.v5("giver").await;
        let soon = [&[2][..], &1u32.to_be_bytes()].concat();
        giver.publish_with("a", 4, &soon, "m").await;
        let sent = taker.arrived().await;
        drop(taker);
        until("away", || server.broker.metrics().connections == 1).await;
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let mut taker = hello(&server, &lasting(v5, "taker")).await;
        let again = taker.receive().await;
        assert!(again.dup());
        assert_eq!((again.id, again.text()), (sent.id, "m"));
        let mut clean = Hello::v5("taker");
        clean.v5 = v5;
        hello(&server, &clean).await.disconnect().await;
        giver.disconnect().await;
    }
}

#[tokio::test]
async fn mqtt5_4_3_3_7_nor_does_it_over_a_restart_and_what_was_not_sent_does() {
    let server = server().await;
    let soon = [&[2][..], &1u32.to_be_bytes()].concat();
    let mut all = Vec::new();
    for v5 in VERSIONS {
        for qos in [1, 2] {
            let topic = format!("{v5}/{qos}");
            let mut greeting = lasting(v5, &topic);
            if v5 {
                // One message at a time: the second waits for the first.
                greeting.properties.extend([0x21, 0, 1]);
            }
            let mut taker = hello(&server, &greeting).await;
            taker.subscribe(&topic, 2).await;
            let mut giver = server.v5("giver").await;
            giver.publish_with(&topic, qos << 1, &soon, "sent").await;
            let sent = taker.arrived().await;
            if v5 {
                let flags = qos << 1;
                giver.publish_with(&topic, flags, &soon, "not sent").await;
                taker.nothing().await;
            }
            all.push((greeting, sent));
        }
    }
    let server = server.restart(Config::default()).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    for (greeting, sent) in all {
        let mut taker = hello(&server, &greeting).await;
        // Under its id, to its end [MQTT-4.4.0-1].
        let again = taker.receive().await;
        assert_eq!(
            (again.id, again.dup(), again.text()),
            (sent.id, true, "sent")
        );
        taker.nothing().await;
    }
    // Two others were not sent, and their time is over [MQTT-3.3.2-5].
    let expired = || {
        server
            .broker
            .metrics()
            .dropped
            .get(&DropReason::Expired)
            .copied()
    };
    until("two expired", || expired() == Some(2)).await;
}

#[tokio::test]
async fn mqtt5_4_3_3_13_an_expired_publish_is_acknowledged_to_its_end() {
    let server = server().await;
    for session in [false, true] {
        let mut giver = if session {
            hello(&server, &lasting(true, "giver")).await
        } else {
            server.v5("giver").await
        };
        let soon = [&[2][..], &1u32.to_be_bytes()].concat();
        giver.send(&publish(true, 4, "a", 9, &soon, b"m")).await;
        assert!(giver.ack(0x50, 9).await < 0x80);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        giver.send(&packet(0x62, &[0, 9])).await;
        assert_eq!(giver.ack(0x70, 9).await, 0);
    }
}

#[tokio::test]
async fn mqtt5_4_3_3_9_a_refused_packet_id_is_free_again() {
    let server = server().await;
    TestRights::forbid(&server.rights.no_publish, "closed");
    let mut taker = server.v5("taker").await;
    taker.subscribe("open", 2).await;
    for lasts in [false, true] {
        let mut giver = if lasts {
            hello(&server, &lasting(true, "giver")).await
        } else {
            server.v5("giver").await
        };
        for _ in 0..2 {
            giver.send(&publish(true, 4, "closed", 7, &[], b"m")).await;
            assert_eq!(giver.ack(0x50, 7).await, 0x87);
        }
        giver.send(&publish(true, 4, "open", 7, &[], b"new")).await;
        assert_eq!(giver.ack(0x50, 7).await, 0);
        assert_eq!(taker.receive().await.text(), "new");
        giver.send(&packet(0x62, &[0, 7])).await;
        assert_eq!(giver.ack(0x70, 7).await, 0);
    }
}

#[tokio::test]
async fn mqtt5_4_3_2_5_and_4_3_3_12_an_acknowledged_id_is_a_new_message_whatever_dup_says() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut taker = client(&server, v5, "taker").await;
        taker.subscribe("a", 2).await;
        let mut giver = client(&server, v5, "giver").await;
        for (flags, payload) in [(0x02, "1"), (0x0A, "2"), (0x04, "3"), (0x0C, "4")] {
            giver
                .send(&publish(v5, flags, "a", 5, &[], payload.as_bytes()))
                .await;
            if flags & 4 == 0 {
                giver.ack(0x40, 5).await;
            } else {
                giver.ack(0x50, 5).await;
                giver.send(&packet(0x62, &[0, 5])).await;
                giver.ack(0x70, 5).await;
            }
            assert_eq!(taker.receive().await.text(), payload);
        }
    }
}

#[tokio::test]
async fn mqtt5_4_4_0_2_a_message_the_client_refused_is_not_sent_again() {
    let server = server().await;
    for lasts in [0, 3600] {
        let mut greeting = Hello::v5("taker");
        greeting.clean = false;
        greeting.properties = expiry(lasts);
        let mut taker = hello(&server, &greeting).await;
        taker.subscribe("a", 2).await;
        let mut giver = server.v5("giver").await;
        giver.publish("a", 1, "one").await;
        giver.publish("a", 2, "two").await;
        for answer in [0x40, 0x50] {
            let arrived = taker.arrived().await;
            let [high, low] = arrived.id.to_be_bytes();
            taker.send(&packet(answer, &[high, low, 0x83])).await;
        }
        taker.nothing().await;
        taker.disconnect().await;
        let mut taker = hello(&server, &greeting).await;
        if lasts == 0 {
            taker.subscribe("a", 2).await;
        }
        taker.nothing().await;
        giver.publish("a", 1, "three").await;
        assert_eq!(taker.receive().await.text(), "three");
        taker.disconnect().await;
    }
}

#[tokio::test]
async fn mqtt311_3_9_3_2_a_subscription_refused_in_3_1_1_is_0x80() {
    let server = server().await;
    TestRights::forbid(&server.rights.no_subscribe, "closed");
    let mut wire = server.v3("x").await;
    for (filter, code) in [("open", 1), ("closed", 0x80), ("a/#/b", 0x80)] {
        assert_eq!(wire.subscribe(filter, 1).await, code, "{filter}");
    }
}

#[tokio::test]
async fn mqtt311_3_14_1_1_and_3_10_1_1_wrong_flag_bits_end_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        for (first, body) in [
            (0xE1, vec![]),
            (0xE8, vec![]),
            (
                0xA0,
                [&[0, 1][..], if v5 { &[0] } else { &[] }, &text("a")].concat(),
            ),
            (
                0x80,
                [&[0, 1][..], if v5 { &[0] } else { &[] }, &text("a"), &[0]].concat(),
            ),
            (0x60, vec![0, 1]),
            (0x41, vec![0, 1]),
            (0xC1, vec![]),
        ] {
            let mut wire = client(&server, v5, "x").await;
            wire.send(&packet(first, &body)).await;
            let code = wire.closed().await;
            assert_eq!(code, v5.then_some(0x81), "{first:#x}");
        }
    }
}

#[tokio::test]
async fn mqtt5_3_10_3_2_an_unsubscribe_without_a_filter_or_with_ill_formed_ones_ends_the_connection()
 {
    let server = server().await;
    for v5 in VERSIONS {
        let p: &[u8] = if v5 { &[0] } else { &[] };
        for body in [
            [&[0, 1][..], p].concat(),
            [&[0, 0][..], p, &text("a")].concat(),
            [&[0, 1][..], p, &[0, 2, 0xC3, 0x28]].concat(),
            [&[0, 1][..], p, &text("a\0b")].concat(),
            [&[0, 1][..], p, &[0, 9, b'a']].concat(),
        ] {
            let mut wire = client(&server, v5, "x").await;
            wire.send(&packet(0xA2, &body)).await;
            let code = wire.closed().await;
            assert!(
                !v5 || matches!(code, Some(0x81 | 0x82)),
                "{body:?} {code:?}"
            );
        }
    }
}
