//! PUBLISH and its acknowledgements, retained messages, topic names and aliases.

use std::time::Duration;

use crate::common::{Wire, expiry, packet, publish, text};
use crate::kit::{VERSIONS, client, ends, hello, lasting, server};

fn user(name: &str, value: &str) -> Vec<u8> {
    [&[0x26][..], &text(name), &text(value)].concat()
}

#[tokio::test]
async fn mqtt5_4_3_1_to_3_every_qos_goes_from_every_version_to_every_version_at_the_lower_qos() {
    let server = server().await;
    for from in VERSIONS {
        for to in VERSIONS {
            let mut giver = client(&server, from, "giver").await;
            for asked in 0..=2u8 {
                let mut taker = client(&server, to, "taker").await;
                assert_eq!(taker.subscribe("a/b", asked).await, asked, "[MQTT-3.8.4-8]");
                for sent in 0..=2u8 {
                    assert_eq!(giver.publish("a/b", sent, "payload").await, 0);
                    let got = taker.receive().await;
                    assert_eq!(
                        (
                            got.topic.as_str(),
                            got.text(),
                            got.qos(),
                            got.dup(),
                            got.retain()
                        ),
                        ("a/b", "payload", sent.min(asked), false, false)
                    );
                }
                taker.nothing().await;
            }
        }
    }
}

#[tokio::test]
async fn mqtt5_3_3_1_4_qos_3_and_3_3_1_2_dup_with_qos_0_end_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        for flags in [6, 7, 14, 15, 8, 9] {
            let code = ends(&server, v5, &publish(v5, flags, "x", 1, &[], b"m")).await;
            assert_eq!(code, v5.then_some(0x81), "{flags}");
        }
    }
}

#[tokio::test]
async fn mqtt5_2_2_1_3_a_packet_id_of_0_ends_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        let properties: &[u8] = if v5 { &[0] } else { &[] };
        for bytes in [
            publish(v5, 2, "x", 0, &[], b"m"),
            publish(v5, 4, "x", 0, &[], b"m"),
            packet(0x82, &[&[0, 0], properties, &text("x"), &[0]].concat()),
            packet(0xA2, &[&[0, 0], properties, &text("x")].concat()),
            packet(0x40, &[0, 0]),
            packet(0x50, &[0, 0]),
            packet(0x62, &[0, 0]),
            packet(0x70, &[0, 0]),
        ] {
            let code = ends(&server, v5, &bytes).await;
            assert_eq!(code, v5.then_some(0x82), "{bytes:?}");
        }
    }
}

#[tokio::test]
async fn mqtt5_2_1_3_1_wrong_reserved_flags_end_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        for kind in [4u8, 5, 6, 7, 8, 10, 12, 14] {
            let right = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
            for flags in (0..16u8).filter(|flags| *flags != right) {
                let body: &[u8] = if kind < 12 {
                    &[0, 1, 0, 0, 1, b'x', 0]
                } else {
                    &[]
                };
                let code = ends(&server, v5, &packet(kind << 4 | flags, body)).await;
                assert_eq!(code, v5.then_some(0x81), "{kind} {flags}");
            }
        }
    }
}

#[tokio::test]
async fn mqtt5_3_3_2_2_and_4_7_3_1_names_that_are_no_topics_end_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        for qos in 0..=2u8 {
            for name in ["#", "+", "a/#", "a/+/b", "a+", "#a", ""] {
                let code = ends(&server, v5, &publish(v5, qos << 1, name, 1, &[], b"m")).await;
                let told = if name.is_empty() { 0x82 } else { 0x90 };
                assert_eq!(code, v5.then_some(told), "{name}");
            }
        }
        for bad in [
            &b"a\0"[..],
            b"\xED\xBF\xBF",
            b"\xC0\x80",
            b"\xFF",
            b"\xE2\x82",
        ] {
            let length = u16::try_from(bad.len()).unwrap().to_be_bytes();
            let properties: &[u8] = if v5 { &[0] } else { &[] };
            let bytes = packet(0x30, &[&length, bad, properties].concat());
            let code = ends(&server, v5, &bytes).await;
            assert_eq!(code, v5.then_some(0x81), "[MQTT-1.5.4-1] {bad:?}");
        }
        // A name longer than the packet.
        let code = ends(&server, v5, &packet(0x30, &[0xFF, 0xFF, b'x'])).await;
        assert_eq!(code, v5.then_some(0x81));
    }
}

#[tokio::test]
async fn mqtt5_1_5_4_3_and_4_7_3_4_names_are_compared_byte_by_byte() {
    let server = server().await;
    let names = [
        "a/b",
        "A/b",
        "/a/b",
        "a/b/",
        "a//b",
        "\u{FEFF}a/b",
        "a/b ",
        "a\u{301}",
        "\u{E1}",
        "😀/x",
    ];
    for v5 in VERSIONS {
        let mut giver = client(&server, v5, "giver").await;
        for name in names {
            let mut taker = client(&server, v5, "taker").await;
            taker.subscribe(name, 0).await;
            for other in names {
                giver.publish(other, 0, other).await;
            }
            giver.nothing().await;
            let got = taker.receive().await;
            assert_eq!((got.topic.as_str(), got.text()), (name, name));
            taker.nothing().await;
        }
    }
}

#[tokio::test]
async fn mqtt5_3_3_1_5_to_8_the_retained_slot_of_a_topic() {
    let server = server().await;
    for from in VERSIONS {
        let run = async |steps: &[(u8, &str)], expected: Option<(&str, u8)>| {
            let mut giver = client(&server, from, "giver").await;
            for (flags, payload) in steps {
                giver.publish_with("slot", *flags, &[], payload).await;
                // QoS 0 has no answer: this one's comes after it.
                giver.publish_with("other", 3, &[], "m").await;
            }
            // What is kept outlives the session of its publisher [MQTT-3.1.2.7].
            giver.disconnect().await;
            for v5 in VERSIONS {
                let mut taker = client(&server, v5, "taker").await;
                taker.subscribe("slot", 2).await;
                if let Some((payload, qos)) = expected {
                    let got = taker.receive().await;
                    let found = (got.text(), got.qos(), got.retain(), got.dup());
                    assert_eq!(found, (payload, qos, true, false), "{steps:?}");
                }
                taker.nothing().await;
            }
        };
        run(&[(3, "one")], Some(("one", 1))).await;
        run(&[(5, "two")], Some(("two", 2))).await;
        run(&[(1, "three")], Some(("three", 0))).await;
        // Without the flag it neither replaces nor removes [MQTT-3.3.1-8].
        run(
            &[(2, "other"), (2, ""), (0, ""), (4, "")],
            Some(("three", 0)),
        )
        .await;
        run(&[(1, "")], None).await;
        run(&[(3, "four"), (5, "")], None).await;
        // An empty one is not stored as a message of its own [MQTT-3.3.1-7].
        run(&[(3, ""), (3, "")], None).await;
        run(&[(3, "five"), (3, "six")], Some(("six", 1))).await;
        run(&[(5, "")], None).await;
    }
}

#[tokio::test]
async fn mqtt5_3_3_1_12_and_13_live_messages_are_retained_only_where_it_was_asked_for() {
    let server = server().await;
    for lasts in [false, true] {
        for qos in 0..=2u8 {
            let mut takers = Vec::new();
            for (v5, options, as_published) in
                [(false, 0, false), (true, 0, false), (true, 8, true)]
            {
                let id = format!("{v5}-{options}");
                let mut greeting = lasting(v5, &id);
                greeting.clean = !lasts;
                if v5 && !lasts {
                    greeting.properties.clear();
                }
                let mut taker = hello(&server, &greeting).await;
                taker.subscribe("live", qos | options).await;
                takers.push((taker, as_published));
            }
            let mut giver = server.v5("giver").await;
            for sent in [0, 1, 0, 1] {
                giver.publish_with("live", qos << 1 | sent, &[], "m").await;
                for (taker, as_published) in &mut takers {
                    let got = taker.receive().await;
                    let expected = *as_published && sent == 1;
                    assert_eq!((got.qos(), got.retain()), (qos, expected));
                }
            }
            giver.publish_with("live", 3, &[], "").await;
            for (mut taker, _) in takers {
                taker.receive().await;
                taker.unsubscribe("live").await;
                taker.disconnect().await;
            }
        }
    }
}

#[tokio::test]
async fn mqtt5_3_3_1_8_a_live_subscriber_hears_of_a_cleared_slot() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut taker = client(&server, v5, "taker").await;
        taker.subscribe("slot", 1).await;
        let mut giver = client(&server, v5, "giver").await;
        for flags in [1, 3, 5] {
            giver.publish_with("slot", flags, &[], "").await;
            let got = taker.receive().await;
            assert_eq!((got.text(), got.retain()), ("", false));
        }
    }
}

#[tokio::test]
async fn retained_messages_survive_a_restart_and_cleared_ones_do_not_come_back() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    let properties = [user("a", "1"), user("a", "2")].concat();
    giver.publish_with("keep/1", 3, &properties, "one").await;
    giver.publish_with("keep/2", 3, &[], "two").await;
    giver.publish_with("keep/2", 3, &[], "").await;
    giver.publish_with("keep/3", 1, &[], "three").await;
    // QoS 0 has no answer: this one's comes after it.
    giver.publish_with("other", 3, &[], "m").await;
    let server = server.restart(holdfast_broker::Config::default()).await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("keep/#", 1).await;
    // The two are of different QoS: no order between them.
    let mut both = [taker.receive().await, taker.receive().await];
    both.sort_by_key(|got| got.topic.clone());
    assert_eq!((both[0].text(), both[1].text()), ("one", "three"));
    assert!(both.iter().all(crate::common::Arrived::retain));
    assert_eq!(both[0].properties, properties);
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_3_2_5_and_6_a_retained_message_expires_and_counts_down() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    giver
        .publish_with("r/1", 3, &[2, 0, 0, 0, 1], "short")
        .await;
    giver
        .publish_with("r/2", 3, &[2, 0, 0, 0, 200], "long")
        .await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("r/#", 1).await;
    let got = taker.receive().await;
    assert_eq!(
        (got.text(), &got.properties[..4]),
        ("long", &[2, 0, 0, 0][..])
    );
    assert!(
        (196..=199).contains(&got.properties[4]),
        "{:?}",
        got.properties
    );
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_3_2_4_and_13_to_20_properties_reach_v5_unaltered_and_v3_not_at_all() {
    let server = server().await;
    let properties = [
        vec![1, 1],
        [&[3][..], &text("text/plain")].concat(),
        [&[8][..], &text("answer/here")].concat(),
        vec![9, 0, 3, 0, 255, 7],
        user("k", "1"),
        user("", ""),
        user("k", "1"),
        user("ä", "\u{FEFF}"),
    ]
    .concat();
    let mut giver = server.v5("giver").await;
    for qos in 0..=2u8 {
        let mut new = server.v5("new").await;
        let mut old = server.v3("old").await;
        new.subscribe("x", qos).await;
        old.subscribe("x", qos).await;
        giver.publish_with("x", qos << 1, &properties, "m").await;
        assert_eq!(new.receive().await.properties, properties);
        assert_eq!(old.receive().await.text(), "m");
    }
}

#[tokio::test]
async fn mqtt5_3_3_2_3_properties_twice_or_wrong_end_the_connection() {
    let server = server().await;
    let named = |kind: u8, text: &[u8]| {
        let length = u16::try_from(text.len()).unwrap().to_be_bytes();
        [&[kind][..], &length, text].concat()
    };
    let mut cases = vec![
        ("format twice", vec![1, 0, 1, 0], 0x82),
        ("format 2", vec![1, 2], 0x82),
        ("expiry twice", vec![2, 0, 0, 0, 1, 2, 0, 0, 0, 1], 0x82),
        ("content type twice", named(3, b"a").repeat(2), 0x82),
        ("response topic twice", named(8, b"a").repeat(2), 0x82),
        ("a wildcard response topic", named(8, b"a/#"), 0x82),
        ("a wildcard response topic", named(8, b"+"), 0x82),
        ("correlation data twice", vec![9, 0, 0, 9, 0, 0], 0x82),
        ("alias twice", vec![0x23, 0, 1, 0x23, 0, 1], 0x82),
        // [MQTT-3.3.4-6]
        ("a subscription id", vec![0x0B, 1], 0x82),
        // Those of other packets and those of none are malformed (section 2.2.2.2).
        ("a session expiry", expiry(1), 0x81),
        ("a reason string", named(0x1F, b"why"), 0x81),
        ("an unknown one", vec![0x7F, 1], 0x81),
        ("an unknown one of two bytes", vec![0x80, 1, 0], 0x81),
        ("a number of a set bit", vec![0x42, 0, 0, 0, 1], 0x81),
        ("cut", vec![2, 0, 0], 0x81),
        ("a cut text", vec![3, 0, 9, b'a'], 0x81),
    ];
    // Text that is none [MQTT-1.5.4-1], [MQTT-1.5.4-2], [MQTT-1.5.7-1].
    for bad in [
        &b"a\0b"[..],
        b"\xED\xA0\x80",
        b"\xC0\xAF",
        b"\xE2\x82",
        b"\xFF",
    ] {
        let pair =
            |name: &[u8], value: &[u8]| [&named(0x26, name)[..], &named(0, value)[1..]].concat();
        cases.push(("content type", named(3, bad), 0x81));
        cases.push(("response topic", named(8, bad), 0x81));
        cases.push(("the name of a pair", pair(bad, b"v"), 0x81));
        cases.push(("the value of a pair", pair(b"n", bad), 0x81));
    }
    for (what, properties, told) in cases {
        let code = ends(&server, true, &publish(true, 2, "x", 1, &properties, b"")).await;
        assert_eq!(code, Some(told), "{what} {properties:?}");
    }
    // A property length beyond the packet, and one in more bytes than needed.
    for bad in [
        &[0, 1, b'x', 9][..],
        &[0, 1, b'x', 0x80, 0],
        &[0, 1, b'x', 0xFF, 0xFF, 0xFF, 0xFF, 1],
        &[0, 1, b'x'],
    ] {
        assert_eq!(ends(&server, true, &packet(0x30, bad)).await, Some(0x81));
    }
}

#[tokio::test]
async fn mqtt5_3_3_2_3_payload_that_is_not_the_text_it_says_is_refused() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("x", 1).await;
    let mut giver = server.v5("giver").await;
    giver
        .send(&publish(true, 2, "x", 5, &[1, 1], b"\xFF"))
        .await;
    assert_eq!(giver.ack(0x40, 5).await, 0x99);
    giver
        .send(&publish(true, 4, "x", 6, &[1, 1], b"\xFF"))
        .await;
    assert_eq!(giver.ack(0x50, 6).await, 0x99);
    // A refused QoS 2 id is free again.
    assert_eq!(giver.publish_with("x", 4, &[1, 1], "text").await, 0);
    assert_eq!(taker.receive().await.text(), "text");
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_3_2_7_an_alias_does_not_outlive_its_connection() {
    let server = server().await;
    let (mut giver, _) = server.lasting("giver").await;
    giver.publish_with("long/name", 2, &[0x23, 0, 1], "m").await;
    drop(giver);
    let (mut giver, present) = server.lasting("giver").await;
    assert!(present);
    giver
        .send(&publish(true, 2, "", 9, &[0x23, 0, 1], b"m"))
        .await;
    assert_eq!(giver.closed().await, Some(0x82));
}

#[tokio::test]
async fn mqtt5_3_3_2_8_and_9_aliases_out_of_range_and_unknown_end_the_connection() {
    let server = server().await;
    for (alias, topic, code) in [
        (0u16, "x", 0x94),
        (17, "x", 0x94),
        (65535, "", 0x94),
        (16, "", 0x82),
    ] {
        let [high, low] = alias.to_be_bytes();
        let bytes = publish(true, 0, topic, 0, &[0x23, high, low], b"");
        assert_eq!(ends(&server, true, &bytes).await, Some(code), "{alias}");
    }
    // The largest that was announced is fine.
    let mut wire = server.v5("x").await;
    wire.publish_with("x", 2, &[0x23, 0, 16], "m").await;
    wire.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_1_2_26_no_alias_is_sent_to_a_client_that_takes_none() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 1).await;
    let mut giver = server.v5("giver").await;
    for _ in 0..5 {
        giver.publish("a/long/topic/name", 1, "m").await;
        let got = taker.receive().await;
        assert_eq!(
            (got.topic.as_str(), got.properties.len()),
            ("a/long/topic/name", 0)
        );
    }
}

#[tokio::test]
async fn mqtt5_4_6_0_acknowledgements_and_messages_keep_their_order() {
    let server = server().await;
    for (v5, lasts) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut greeting = lasting(v5, "taker");
        greeting.clean = !lasts;
        let mut taker = hello(&server, &greeting).await;
        taker.subscribe("x", 2).await;
        let mut giver = client(&server, v5, "giver").await;
        let mut bytes = Vec::new();
        for number in 1..=200u16 {
            let qos = 1 + u8::from(number % 3 == 0);
            let payload = number.to_string();
            bytes.extend(publish(v5, qos << 1, "x", number, &[], payload.as_bytes()));
        }
        giver.send(&bytes).await;
        for number in 1..=200u16 {
            let first = if number % 3 == 0 { 0x50 } else { 0x40 };
            assert_eq!(giver.ack(first, number).await, 0, "[MQTT-4.6.0-2/3]");
        }
        let mut releases = Vec::new();
        for number in (3..=200u16).step_by(3) {
            releases.extend(packet(0x62, &number.to_be_bytes()));
        }
        giver.send(&releases).await;
        for number in (3..=200u16).step_by(3) {
            assert_eq!(giver.ack(0x70, number).await, 0, "[MQTT-4.6.0-4]");
        }
        order(&mut taker).await;
        taker.disconnect().await;
    }
}

/// 200 messages in order; their acknowledgements are sent at once, those of QoS 2 step by step.
async fn order(taker: &mut Wire) {
    let mut next = 1u16;
    let mut received = std::collections::VecDeque::new();
    while next <= 200 || !received.is_empty() {
        let (first, body) = taker.packet().await.unwrap();
        if first == 0x62 {
            let oldest: [u8; 2] = received.pop_front().unwrap();
            assert_eq!(body, oldest, "[MQTT-4.6.0-4]");
            taker.send(&packet(0x70, &body[..2])).await;
            continue;
        }
        let got = taker.parse(first, &body);
        assert_eq!(got.text(), next.to_string(), "[MQTT-4.6.0-6]");
        let id = got.id.to_be_bytes();
        if got.qos() == 2 {
            received.push_back(id);
            taker.send(&packet(0x50, &id)).await;
        } else {
            taker.send(&packet(0x40, &id)).await;
        }
        next += 1;
    }
}

#[tokio::test]
async fn mqtt5_4_3_3_qos_2_is_delivered_once_whatever_is_repeated() {
    let server = server().await;
    for v5 in VERSIONS {
        for durable in [false, true] {
            let mut taker = server.v5("taker").await;
            taker.subscribe("x", 0).await;
            let mut greeting = lasting(v5, "giver");
            if !durable {
                greeting.clean = true;
                greeting.properties = Vec::new();
            }
            let mut giver = hello(&server, &greeting).await;
            let bytes = publish(v5, 4, "x", 7, &[], b"once");
            let again = publish(v5, 12, "x", 7, &[], b"once");
            giver.send(&bytes).await;
            giver.ack(0x50, 7).await;
            for _ in 0..3 {
                giver.send(&again).await;
                assert_eq!(giver.ack(0x50, 7).await, 0);
            }
            for unknown in [false, true, true] {
                giver.send(&packet(0x62, &[0, 7])).await;
                let code = giver.ack(0x70, 7).await;
                assert_eq!(code, if unknown && v5 { 0x92 } else { 0 });
            }
            // The id is free now: the same bytes are a new message [MQTT-4.3.3-12].
            giver.send(&bytes).await;
            giver.ack(0x50, 7).await;
            assert_eq!(taker.receive().await.text(), "once");
            assert_eq!(taker.receive().await.text(), "once");
            taker.nothing().await;
            giver.send(&packet(0x62, &[0, 7])).await;
            giver.ack(0x70, 7).await;
        }
    }
}

#[tokio::test]
async fn mqtt5_4_3_3_10_repetitions_that_come_before_pubrec_are_no_messages_of_their_own() {
    let server = server().await;
    for v5 in VERSIONS {
        for lasts in [false, true] {
            // Whoever is served durably makes the first wait for the journal.
            let mut taker = hello(&server, &lasting(true, "taker")).await;
            taker.subscribe("x", 2).await;
            let mut greeting = lasting(v5, "giver");
            greeting.clean = !lasts;
            if !lasts {
                greeting.properties.clear();
            }
            let mut giver = hello(&server, &greeting).await;
            let first = publish(v5, 4, "x", 7, &[], b"once");
            let again = publish(v5, 12, "x", 7, &[], b"once");
            giver.send(&[first, again.repeat(20)].concat()).await;
            giver.ack(0x50, 7).await;
            giver.send(&again).await;
            giver.send(&[0xC0, 0]).await;
            loop {
                let (first, body) = giver.packet().await.unwrap();
                if first == 0xD0 {
                    break;
                }
                assert_eq!((first, body), (0x50, vec![0, 7]));
            }
            giver.send(&packet(0x62, &[0, 7])).await;
            assert_eq!(giver.ack(0x70, 7).await, 0);
            assert_eq!(taker.receive().await.text(), "once");
            taker.nothing().await;
            taker.unsubscribe("x").await;
        }
    }
}

#[tokio::test]
async fn mqtt5_3_4_2_1_a_message_for_nobody_is_acknowledged() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut giver = client(&server, v5, "giver").await;
        for qos in [1, 2] {
            let id = giver.id();
            giver
                .send(&publish(v5, qos << 1, "nobody", id, &[], b"m"))
                .await;
            let code = giver.ack(if qos == 1 { 0x40 } else { 0x50 }, id).await;
            assert!(code == 0 || (v5 && code == 0x10), "{code:#x}");
        }
    }
}
