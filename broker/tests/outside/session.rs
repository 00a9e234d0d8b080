//! Sessions: clean start, resumption over both versions, expiry, takeover, restarts.

use std::time::Duration;

use holdfast_broker::{Config, CutReason};

use crate::common::{Hello, expiry, packet};
use crate::kit::{VERSIONS, client, hello, hello_present, lasting, server, until};

#[tokio::test]
async fn mqtt5_3_1_2_4_to_6_clean_start_forgets_everything_else_resumes() {
    let server = server().await;
    for v5 in VERSIONS {
        let (mut wire, present) = hello_present(&server, &lasting(v5, "s")).await;
        assert!(!present, "[MQTT-3.1.2-6]");
        wire.subscribe("x", 1).await;
        drop(wire);
        let mut giver = client(&server, v5, "giver").await;
        giver.publish("x", 1, "old").await;
        let (mut wire, present) = hello_present(&server, &lasting(v5, "s")).await;
        assert!(present, "[MQTT-3.2.2-3]");
        assert_eq!(wire.arrived().await.text(), "old");
        drop(wire);
        let mut clean = lasting(v5, "s");
        clean.clean = true;
        let (mut wire, present) = hello_present(&server, &clean).await;
        assert!(!present, "[MQTT-3.2.2-2]");
        giver.publish("x", 1, "new").await;
        wire.nothing().await;
        wire.disconnect().await;
        // 3.1.1's clean session ends with the connection too; so does expiry 0.
        let (_, present) = hello_present(&server, &lasting(false, "s")).await;
        assert_eq!(present, v5);
        let mut gone = client(&server, v5, "s").await;
        gone.nothing().await;
        gone.disconnect().await;
    }
}

#[tokio::test]
async fn a_session_is_carried_from_one_version_to_the_other() {
    let server = server().await;
    for (from, to) in [(false, true), (true, false)] {
        let mut wire = hello(&server, &lasting(from, "both")).await;
        wire.subscribe("x", 2).await;
        drop(wire);
        let mut giver = server.v5("giver").await;
        let properties = [0x26, 0, 1, b'n', 0, 1, b'v'];
        giver.publish_with("x", 4, &properties, "m").await;
        let (mut wire, present) = hello_present(&server, &lasting(to, "both")).await;
        assert!(present);
        let got = wire.receive().await;
        assert_eq!((got.text(), got.qos()), ("m", 2));
        assert_eq!(got.properties, if to { &properties[..] } else { &[] });
        wire.nothing().await;
        let mut clean = Hello::v5("both");
        clean.v5 = to;
        hello(&server, &clean).await.disconnect().await;
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_23_session_expiry_runs_from_the_end_of_the_connection() {
    let server = server().await;
    let mut short = Hello::v5("short");
    short.clean = false;
    short.properties = expiry(1);
    let mut wire = hello(&server, &short).await;
    // Time within a connection does not count.
    tokio::time::sleep(Duration::from_millis(1700)).await;
    wire.nothing().await;
    drop(wire);
    let (wire, present) = hello_present(&server, &short).await;
    assert!(present);
    drop(wire);
    until("it expires", || server.broker.metrics().sessions == 0).await;
    assert!(!hello_present(&server, &short).await.1);
}

#[tokio::test]
async fn mqtt5_3_14_2_disconnect_may_set_the_expiry_anew() {
    let server = server().await;
    let (mut wire, _) = server.lasting("long").await;
    wire.subscribe("x", 1).await;
    let mut body = vec![0, 5];
    body.extend(expiry(1));
    wire.send(&packet(0xE0, &body)).await;
    assert_eq!(wire.closed().await, None, "[MQTT-3.14.4-1]");
    until("the session expires", || {
        server.broker.metrics().sessions == 0
    })
    .await;
    // Malformed ones are told so.
    for (body, code) in [
        (&[0u8, 5, 0x11, 0, 0][..], 0x81),
        (&[0, 0, 0], 0x81),
        (&[0, 10, 0x11, 0, 0, 0, 1, 0x11, 0, 0, 0, 1], 0x82),
        (&[0, 3, 0x23, 0, 1], 0x82),
    ] {
        let (mut wire, _) = server.lasting("long").await;
        wire.send(&packet(0xE0, body)).await;
        assert!(
            matches!(wire.closed().await, Some(0x81 | 0x82)),
            "{body:?} {code:#x}"
        );
    }
    // 3.1.1's has no body.
    let mut wire = server.v3("old").await;
    wire.send(&packet(0xE0, &[0])).await;
    wire.closed().await;
    until("counted", || {
        server
            .broker
            .metrics()
            .ended
            .contains_key(&CutReason::Malformed)
    })
    .await;
}

#[tokio::test]
async fn mqtt5_3_14_4_2_nothing_after_disconnect_is_processed() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("x", 0).await;
    for v5 in VERSIONS {
        let mut wire = client(&server, v5, "giver").await;
        let late = crate::common::publish(v5, 0, "x", 0, &[], b"late");
        wire.send(&[vec![0xE0, 0], late].concat()).await;
        wire.closed().await;
    }
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_1_4_3_takeover_moves_the_session_with_what_is_under_way() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut old = hello(&server, &lasting(v5, "same")).await;
        old.subscribe("x", 1).await;
        let mut giver = server.v5("giver").await;
        giver.publish("x", 1, "under way").await;
        let first = old.arrived().await;
        let (mut new, present) = hello_present(&server, &lasting(v5, "same")).await;
        assert!(present);
        assert_eq!(old.closed().await, v5.then_some(0x8E));
        let again = new.receive().await;
        assert_eq!(
            (again.id, again.dup(), again.text()),
            (first.id, true, "under way")
        );
        giver.publish("x", 1, "next").await;
        assert_eq!(new.receive().await.text(), "next");
        new.nothing().await;
        let mut clean = Hello::v5("same");
        clean.v5 = v5;
        hello(&server, &clean).await.disconnect().await;
    }
}

#[tokio::test]
async fn mqtt5_4_4_0_1_everything_unacknowledged_comes_again_in_order_at_once_and_only_then() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut taker = hello(&server, &lasting(v5, "taker")).await;
        taker.subscribe("x", 1).await;
        let mut giver = client(&server, v5, "giver").await;
        for number in 0..10 {
            giver.publish("x", 1, &number.to_string()).await;
        }
        let mut ids = Vec::new();
        for _ in 0..10 {
            ids.push(taker.arrived().await.id);
        }
        // The odd ones are acknowledged. Nothing is sent again on a living connection [MQTT-4.4.0-1].
        for id in ids.iter().skip(1).step_by(2) {
            taker.send(&packet(0x40, &id.to_be_bytes())).await;
        }
        taker.nothing().await;
        drop(taker);
        let mut taker = hello(&server, &lasting(v5, "taker")).await;
        for number in (0..10).step_by(2) {
            let got = taker.receive().await;
            assert_eq!(
                (got.text(), got.dup()),
                (number.to_string().as_str(), true),
                "[MQTT-3.3.1-1]"
            );
            assert_eq!(got.id, ids[number]);
        }
        taker.nothing().await;
        drop(taker);
        let mut clean = Hello::v5("taker");
        clean.v5 = v5;
        hello(&server, &clean).await.disconnect().await;
    }
}

#[tokio::test]
async fn subscriptions_with_their_options_survive_restarts() {
    let mut server = server().await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("kept", 3, &[], "kept").await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe_with("a/+", 1 | 8, &[0x0B, 9]).await;
    taker.subscribe("$share/g/b", 2).await;
    taker.subscribe("gone", 1).await;
    taker.unsubscribe("gone").await;
    drop(taker);
    for round in 0..3 {
        server = server.restart(Config::default()).await;
        let (mut taker, present) = server.lasting("taker").await;
        assert!(present, "{round}");
        let mut giver = server.v5("giver").await;
        giver.publish_with("a/b", 3, &[], "as published").await;
        giver.publish("b", 2, "shared").await;
        giver.publish("gone", 1, "no").await;
        let got = taker.receive().await;
        assert_eq!(
            (got.text(), got.retain(), got.properties.clone()),
            ("as published", true, vec![0x0B, 9])
        );
        let got = taker.receive().await;
        assert_eq!((got.text(), got.qos()), ("shared", 2));
        // Retained messages come with a subscription, not with a resumption.
        taker.nothing().await;
        giver.publish("a/c", 1, "live").await;
        assert_eq!(taker.receive().await.text(), "live");
        taker.nothing().await;
        taker.disconnect().await;
    }
}

#[tokio::test]
async fn an_expiry_goes_on_over_a_restart() {
    let server = server().await;
    let mut short = Hello::v5("short");
    short.clean = false;
    short.properties = expiry(2);
    let mut wire = hello(&server, &short).await;
    wire.subscribe("x", 1).await;
    wire.disconnect().await;
    let server = server.restart(Config::default()).await;
    until("the session expires", || {
        server.broker.metrics().sessions == 0
    })
    .await;
    assert!(!hello_present(&server, &short).await.1);
}

#[tokio::test]
async fn mqtt5_4_3_3_a_publishers_qos_2_ids_survive_a_restart() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 2).await;
    drop(taker);
    let (mut giver, _) = server.lasting("giver").await;
    let bytes = crate::common::publish(true, 4, "x", 77, &[], b"once");
    giver.send(&bytes).await;
    giver.ack(0x50, 77).await;
    drop(giver);
    let server = server.restart(Config::default()).await;
    let (mut giver, present) = server.lasting("giver").await;
    assert!(present);
    // The client did not see its PUBREC.
    giver
        .send(&crate::common::publish(true, 12, "x", 77, &[], b"once"))
        .await;
    assert_eq!(giver.ack(0x50, 77).await, 0);
    giver.send(&packet(0x62, &77u16.to_be_bytes())).await;
    assert_eq!(giver.ack(0x70, 77).await, 0);
    drop(giver);
    let server = server.restart(Config::default()).await;
    let (mut giver, _) = server.lasting("giver").await;
    giver.send(&packet(0x62, &77u16.to_be_bytes())).await;
    assert_eq!(giver.ack(0x70, 77).await, 0x92);
    let (mut taker, _) = server.lasting("taker").await;
    assert_eq!(taker.receive().await.text(), "once");
    taker.nothing().await;
}

#[tokio::test]
async fn qos_0_is_not_kept_for_the_absent_and_is_counted() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    taker.disconnect().await;
    until("gone", || server.broker.metrics().connections == 0).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 0, "lost").await;
    giver.publish("x", 1, "kept").await;
    let (mut taker, _) = server.lasting("taker").await;
    assert_eq!(taker.receive().await.text(), "kept");
    taker.nothing().await;
    let dropped = &server.broker.metrics().dropped;
    assert_eq!(dropped.values().sum::<u64>(), 1, "{dropped:?}");
}

#[tokio::test]
async fn mqtt5_4_1_0_1_a_session_is_not_discarded_while_its_connection_is_open() {
    let server = server().await;
    let mut open = Vec::new();
    for seconds in [0, 1] {
        let mut greeting = Hello::v5(&format!("lasts-{seconds}"));
        greeting.clean = false;
        greeting.properties = expiry(seconds);
        let mut wire = hello(&server, &greeting).await;
        wire.subscribe("x", 1).await;
        open.push((wire, greeting));
    }
    // Longer than either lasts, and several looks of those who end sessions.
    tokio::time::sleep(Duration::from_millis(2600)).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "here").await;
    for (mut wire, greeting) in open {
        assert_eq!(wire.receive().await.text(), "here", "{}", greeting.id);
        // The time runs from the end of the connection.
        drop(wire);
        let present = hello_present(&server, &greeting).await.1;
        assert_eq!(present, greeting.id == "lasts-1");
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_23_no_session_ends_before_its_time() {
    let server = std::sync::Arc::new(server().await);
    let mut tasks = tokio::task::JoinSet::new();
    // At every phase of the second.
    for phase in 0..8 {
        let server = std::sync::Arc::clone(&server);
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(125 * phase)).await;
            let mut greeting = Hello::v5(&format!("phase-{phase}"));
            greeting.clean = false;
            greeting.properties = expiry(2);
            hello(&server, &greeting).await.disconnect().await;
            tokio::time::sleep(Duration::from_millis(1800)).await;
            assert!(hello_present(&server, &greeting).await.1, "{phase}");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn mqtt5_4_3_3_a_message_of_qos_2_is_sent_until_pubrec_and_released_until_pubcomp() {
    for (v5, restart) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut server = server().await;
        let greeting = lasting(v5, "taker");
        let mut taker = hello(&server, &greeting).await;
        taker.subscribe("x", 2).await;
        let mut giver = client(&server, v5, "giver").await;
        giver.publish("x", 2, "once").await;
        let first = taker.arrived().await;
        assert!(!first.dup() && first.id != 0);
        let id = first.id.to_be_bytes();
        drop(giver);
        // Unacknowledged until PUBREC [MQTT-4.3.3-3]: it comes again, as often as the client does.
        for _ in 0..2 {
            drop(taker);
            if restart {
                server = server.restart(Config::default()).await;
            }
            taker = hello(&server, &greeting).await;
            let again = taker.arrived().await;
            let found = (again.id, again.qos(), again.dup(), again.text());
            assert_eq!(found, (first.id, 2, true, "once"));
            taker.nothing().await;
        }
        taker.send(&packet(0x50, &id)).await;
        taker.ack(0x62, first.id).await;
        // After PUBREL only PUBREL [MQTT-4.3.3-6], until PUBCOMP [MQTT-4.3.3-5].
        for _ in 0..2 {
            drop(taker);
            if restart {
                server = server.restart(Config::default()).await;
            }
            taker = hello(&server, &greeting).await;
            assert_eq!(taker.ack(0x62, first.id).await, 0);
            taker.nothing().await;
        }
        // A PUBREC again is answered again, and changes nothing.
        taker.send(&packet(0x50, &id)).await;
        assert_eq!(taker.ack(0x62, first.id).await, 0);
        taker.send(&packet(0x70, &id)).await;
        taker.nothing().await;
        drop(taker);
        if restart {
            server = server.restart(Config::default()).await;
        }
        hello(&server, &greeting).await.nothing().await;
    }
}
