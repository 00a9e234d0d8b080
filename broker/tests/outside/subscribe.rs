//! SUBSCRIBE, UNSUBSCRIBE, their options, wildcards.

use crate::common::{Wire, packet, text};
use crate::kit::{VERSIONS, client, ends, hello, lasting, server};

fn many(v5: bool, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if v5 {
        body.push(0);
    }
    for (filter, options) in filters {
        body.extend(text(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}

async fn suback(wire: &mut Wire, id: u16) -> Vec<u8> {
    let (first, body) = wire.packet().await.unwrap();
    assert_eq!((first, &body[..2]), (0x90, &id.to_be_bytes()[..]));
    let codes = if wire.v5 {
        assert_eq!(body[2], 0, "[MQTT-2.2.2-1]");
        3
    } else {
        2
    };
    body[codes..].to_vec()
}

#[tokio::test]
async fn mqtt5_3_8_4_5_to_7_many_filters_get_one_code_each_in_their_order() {
    let server = server().await;
    crate::common::TestRights::forbid(&server.rights.no_subscribe, "closed");
    for v5 in VERSIONS {
        let mut wire = client(&server, v5, "x").await;
        let filters = [
            ("a", 0),
            ("b/#", 1),
            ("a/#/b", 0),
            ("closed", 1),
            ("c", 2),
            ("a", 1),
        ];
        wire.send(&many(v5, 0xABCD, &filters)).await;
        let expected: &[u8] = if v5 {
            &[0, 1, 0x8F, 0x87, 2, 1]
        } else {
            &[0, 1, 0x80, 0x80, 2, 1]
        };
        assert_eq!(suback(&mut wire, 0xABCD).await, expected);
        // The last of two equal filters holds.
        let mut giver = client(&server, v5, "giver").await;
        giver.publish("a", 2, "m").await;
        assert_eq!(wire.receive().await.qos(), 1);
        wire.nothing().await;
    }
}

#[tokio::test]
async fn mqtt5_4_7_1_filters_against_the_rules_are_refused_one_by_one() {
    let server = server().await;
    let long = "x".repeat(65_535);
    let deep = "a/".repeat(100);
    for v5 in VERSIONS {
        for filter in [
            "a#",
            "a/#/b",
            "##",
            "#/",
            "+a",
            "a+",
            "a/b+/c",
            "$share/",
            "$share//a",
            "$share/g",
            "$share/g/",
            "$share/+/a",
            "$share/a#/b",
            "$share/g/a#",
            &long,
            &deep,
        ] {
            let mut wire = client(&server, v5, "x").await;
            wire.send(&many(v5, 1, &[(filter, 0)])).await;
            let (first, body) = wire.packet().await.unwrap_or((0xE0, vec![0x81]));
            let head = &filter[..filter.len().min(20)];
            if first == 0x90 {
                assert_eq!(body.last(), Some(if v5 { &0x8F } else { &0x80 }), "{head}");
            } else {
                // A broken share name is malformed as a packet [MQTT-4.8.2-1].
                assert_eq!(
                    (first, body[0], filter.starts_with("$share")),
                    (0xE0, 0x81, true),
                    "{head}"
                );
            }
        }
    }
}

#[tokio::test]
async fn mqtt5_4_7_3_1_an_empty_filter_ends_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        let unsubscribe = [
            &[0xA2, 4 + u8::from(v5), 0, 1][..],
            &[0; 3][..2 + usize::from(v5)],
        ];
        for bytes in [
            many(v5, 1, &[("", 0)]),
            many(v5, 1, &[("a", 0), ("", 0)]),
            unsubscribe.concat(),
        ] {
            let mut wire = client(&server, v5, "x").await;
            wire.send(&bytes).await;
            assert_eq!(wire.closed().await, v5.then_some(0x81), "{bytes:?}");
        }
    }
    assert_eq!(server.broker.metrics().subscriptions, 0);
}

#[tokio::test]
async fn mqtt5_4_7_wildcards_match_what_the_standard_says() {
    let server = server().await;
    for (filter, matching, others) in [
        (
            "#",
            &["a", "a/b", "/", "/a", "a/"][..],
            &["$own/a", "$a"][..],
        ),
        ("a/#", &["a", "a/", "a/b/c"], &["b", "/a", "ab", "a1/b"]),
        ("+", &["a", "b"], &["/a", "a/", "$a", "a/b"]),
        ("+/+", &["/a", "a/b", "/"], &["a", "a/b/c", "$a/b"]),
        ("+/b/#", &["a/b", "/b", "a/b/c/d"], &["$a/b", "b/b1", "b"]),
        ("a/+/c", &["a/b/c", "a//c"], &["a/c", "a/b/d", "a/b/c/d"]),
        ("$own/#", &["$own/a", "$own"], &["own/a", "a"]),
        ("$a/+", &["$a/b"], &["$b/a", "a/b"]),
    ] {
        for v5 in VERSIONS {
            let mut taker = client(&server, v5, "taker").await;
            assert!(taker.subscribe(filter, 1).await < 0x80);
            let mut giver = server.v5("giver").await;
            for topic in others {
                giver.publish(topic, 1, "no").await;
            }
            for topic in matching {
                giver.publish(topic, 1, "yes").await;
            }
            for topic in matching {
                assert_eq!(taker.receive().await.topic, *topic, "{filter}");
            }
            taker.nothing().await;
        }
    }
}

#[tokio::test]
async fn mqtt5_3_8_3_malformed_subscribes_end_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        let p: &[u8] = if v5 { &[0] } else { &[] };
        for (what, body, told) in [
            ("no filter [MQTT-3.8.3-2]", [&[0, 1], p].concat(), 0x82),
            ("no options", [&[0, 1], p, &text("x")].concat(), 0x81),
            ("QoS 3", [&[0, 1], p, &text("x"), &[3]].concat(), 0x81),
            (
                "reserved bit 6",
                [&[0, 1], p, &text("x"), &[0x40]].concat(),
                0x81,
            ),
            (
                "reserved bit 7",
                [&[0, 1], p, &text("x"), &[0x80]].concat(),
                0x81,
            ),
            (
                "a cut filter",
                [&[0, 1], p, &[0, 9, b'x', 0]].concat(),
                0x81,
            ),
            ("NUL", [&[0, 1], p, &text("a\0b"), &[0]].concat(), 0x81),
            ("bad UTF-8", [&[0, 1], p, &[0, 1, 0xFF, 0]].concat(), 0x81),
            (
                "a surrogate",
                [&[0, 1], p, &[0, 3, 0xED, 0xA0, 0x80, 0]].concat(),
                0x81,
            ),
            (
                "a good filter, then a cut one",
                [&[0, 1], p, &text("x"), &[0, 0, 9]].concat(),
                0x81,
            ),
            ("nothing", vec![], 0x81),
        ] {
            let code = ends(&server, v5, &packet(0x82, &body)).await;
            assert_eq!(code, v5.then_some(told), "{what}");
        }
        // 3 is a protocol error by its own words, 3.8.3.1.
        let body = [&[0, 1], p, &text("x"), &[0x30]].concat();
        let code = ends(&server, v5, &packet(0x82, &body)).await;
        assert!(
            !v5 || matches!(code, Some(0x81 | 0x82)),
            "retain handling 3"
        );
        for (what, body, told) in [
            ("no filter [MQTT-3.10.3-2]", [&[0, 1], p].concat(), 0x82),
            ("a cut filter", [&[0, 1], p, &[0, 9, b'x']].concat(), 0x81),
            ("bad UTF-8", [&[0, 1], p, &[0, 1, 0xFF]].concat(), 0x81),
            ("nothing", vec![], 0x81),
        ] {
            let code = ends(&server, v5, &packet(0xA2, &body)).await;
            assert_eq!(code, v5.then_some(told), "{what}");
        }
    }
    // None of them left anything behind.
    assert_eq!(server.broker.metrics().subscriptions, 0);
    // Only MQTT 5 has options beside the QoS, and only 3.1.1 refuses them.
    for options in [4, 8, 0x10, 0x20] {
        ends(&server, false, &many(false, 1, &[("x", options)])).await;
        let mut wire = server.v5("x").await;
        assert_eq!(wire.subscribe("x", options).await, 0);
    }
}

#[tokio::test]
async fn mqtt5_3_8_2_properties_of_subscribe_twice_or_out_of_place_end_the_connection() {
    let server = server().await;
    for (what, properties, told) in [
        ("subscription id 0", &[0x0Bu8, 0][..], 0x82),
        ("two subscription ids", &[0x0B, 1, 0x0B, 2], 0x82),
        (
            "an id of five bytes",
            &[0x0B, 0x80, 0x80, 0x80, 0x80, 1],
            0x81,
        ),
        ("an id longer than needed", &[0x0B, 0x81, 0], 0x81),
        ("a cut id", &[0x0B, 0x81], 0x81),
        ("an expiry", &[2, 0, 0, 0, 1], 0x81),
        ("unknown", &[0x7F, 0], 0x81),
    ] {
        let mut body = vec![0, 1, u8::try_from(properties.len()).unwrap()];
        body.extend(properties);
        body.extend(text("x"));
        body.push(0);
        let code = ends(&server, true, &packet(0x82, &body)).await;
        assert_eq!(code, Some(told), "{what}");
    }
}

#[tokio::test]
async fn mqtt5_3_3_4_3_to_5_identifiers_come_with_live_and_retained_messages() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("a/b", 3, &[], "kept").await;
    let mut taker = server.v5("taker").await;
    let largest = [0x0B, 0xFF, 0xFF, 0xFF, 0x7F];
    taker.subscribe_with("a/+", 1, &largest).await;
    let got = taker.receive().await;
    assert_eq!(
        (got.retain(), got.properties.clone()),
        (true, largest.to_vec())
    );
    giver.publish("a/b", 1, "live").await;
    assert_eq!(taker.receive().await.properties, largest);
    // A replaced subscription has the new identifier, or none [MQTT-3.8.4-3].
    taker.subscribe_with("a/+", 0x20, &[0x0B, 5]).await;
    giver.publish("a/b", 1, "live").await;
    assert_eq!(taker.receive().await.properties, [0x0B, 5]);
    taker.subscribe("a/+", 0x20).await;
    giver.publish("a/b", 1, "live").await;
    assert!(taker.receive().await.properties.is_empty());
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_8_4_3_and_4_a_repeated_subscription_replaces_and_sends_retained_again() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut giver = client(&server, v5, "giver").await;
        giver.publish_with("s", 3, &[], "kept").await;
        let mut taker = client(&server, v5, "taker").await;
        taker.subscribe("s", 0).await;
        assert_eq!(taker.receive().await.qos(), 0);
        taker.subscribe("s", 2).await;
        let again = taker.receive().await;
        assert_eq!(
            (again.qos(), again.retain(), again.text()),
            (1, true, "kept")
        );
        giver.publish("s", 2, "live").await;
        let got = taker.receive().await;
        assert_eq!((got.qos(), got.text()), (2, "live"));
        taker.nothing().await;
    }
}

#[tokio::test]
async fn mqtt5_3_10_4_unsubscribing_takes_away_exactly_that_filter() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut taker = client(&server, v5, "taker").await;
        for filter in ["a/b", "a/+", "a/#"] {
            taker.subscribe(filter, 1).await;
        }
        // [MQTT-3.10.4-1]: compared character by character; [MQTT-3.10.4-5]: answered anyway.
        for (filter, code) in [
            ("a/b/#", 0x11),
            ("+/+", 0x11),
            ("A/b", 0x11),
            ("a/b", 0),
            ("a/b", 0x11),
        ] {
            let codes = taker.unsubscribe(filter).await;
            assert_eq!(
                codes.last(),
                v5.then_some(&code).or(codes.last()),
                "{filter}"
            );
        }
        let mut giver = client(&server, v5, "giver").await;
        giver.publish("a/b", 1, "m").await;
        assert_eq!(taker.receive().await.text(), "m");
        taker.unsubscribe("a/+").await;
        taker.unsubscribe("a/#").await;
        giver.publish("a/b", 1, "m").await;
        taker.nothing().await;
        // Several at once [MQTT-3.10.4-6].
        let p: &[u8] = if v5 { &[0] } else { &[] };
        taker.subscribe("one", 1).await;
        let body = [&[0x77, 0x88], p, &text("one"), &text("two")].concat();
        taker.send(&packet(0xA2, &body)).await;
        let expected: &[u8] = if v5 {
            &[0x77, 0x88, 0, 0, 0x11]
        } else {
            &[0x77, 0x88]
        };
        assert_eq!(taker.packet().await, Some((0xB0, expected.to_vec())));
    }
}

#[tokio::test]
async fn mqtt5_3_10_4_3_what_was_begun_before_unsubscribe_is_brought_to_its_end() {
    let server = server().await;
    for v5 in VERSIONS {
        for again in [false, true] {
            let greeting = lasting(v5, "taker");
            let mut taker = hello(&server, &greeting).await;
            taker.subscribe("x", 2).await;
            let mut giver = client(&server, v5, "giver").await;
            giver.publish("x", 1, "one").await;
            giver.publish("x", 2, "two").await;
            let ids = [taker.arrived().await.id, taker.arrived().await.id];
            taker.unsubscribe("x").await;
            giver.publish("x", 2, "not for it any more").await;
            if again {
                drop(taker);
                taker = hello(&server, &greeting).await;
                for (id, payload) in ids.iter().zip(["one", "two"]) {
                    let got = taker.arrived().await;
                    assert_eq!((got.id, got.text(), got.dup()), (*id, payload, true));
                }
            }
            taker.send(&packet(0x40, &ids[0].to_be_bytes())).await;
            taker.send(&packet(0x50, &ids[1].to_be_bytes())).await;
            assert_eq!(taker.ack(0x62, ids[1]).await, 0);
            taker.send(&packet(0x70, &ids[1].to_be_bytes())).await;
            taker.nothing().await;
            taker.disconnect().await;
        }
        let mut clean = crate::common::Hello::v5("taker");
        clean.v5 = v5;
        hello(&server, &clean).await.disconnect().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqtt5_3_8_4_4_nothing_is_lost_while_a_subscription_is_replaced() {
    let server = server().await;
    for lasts in [false, true] {
        let mut greeting = lasting(true, "taker");
        greeting.clean = !lasts;
        if !lasts {
            greeting.properties.clear();
        }
        let mut taker = hello(&server, &greeting).await;
        taker.subscribe("x", 1).await;
        let mut giver = server.v5("giver").await;
        let giving = tokio::spawn(async move {
            for number in 0..300 {
                giver.publish("x", 1, &number.to_string()).await;
            }
        });
        let mut again = many(true, 9, &[("x", 1)]);
        let mut next = 0;
        while next < 300 {
            if next % 3 == 0 {
                let options = again.len() - 1;
                again[options] = if next % 2 == 0 { 1 } else { 2 | 8 };
                taker.send(&again).await;
            }
            let (first, body) = taker.packet().await.unwrap();
            if first == 0x90 {
                continue;
            }
            let got = taker.parse(first, &body);
            assert_eq!(got.text(), next.to_string(), "{lasts}");
            taker.send(&packet(0x40, &got.id.to_be_bytes())).await;
            next += 1;
        }
        giving.await.unwrap();
        drop(taker);
        hello(&server, &crate::common::Hello::v5("taker"))
            .await
            .disconnect()
            .await;
    }
}

#[tokio::test]
async fn mqtt5_3_8_3_4_no_local_on_a_shared_subscription_is_a_protocol_error() {
    let server = server().await;
    let code = ends(&server, true, &many(true, 1, &[("$share/g/x", 4)])).await;
    assert_eq!(code, Some(0x82));
}

#[tokio::test]
async fn mqtt5_3_8_3_3_no_local_counts_per_subscription_and_over_resumption() {
    let server = server().await;
    let (mut own, _) = server.lasting("own").await;
    own.subscribe("a/#", 1 | 4).await;
    own.subscribe("a/b", 1).await;
    own.publish("a/c", 1, "not to me").await;
    let id = own.id();
    own.send(&crate::common::publish(true, 2, "a/b", id, &[], b"to me"))
        .await;
    let mut seen = 0;
    for _ in 0..2 {
        let (first, body) = own.packet().await.unwrap();
        if first >> 4 == 3 {
            let got = own.parse(first, &body);
            assert_eq!(got.text(), "to me");
            own.send(&packet(0x40, &got.id.to_be_bytes())).await;
            seen += 1;
        }
    }
    assert_eq!(seen, 1);
    own.nothing().await;
    own.disconnect().await;
    let server = server.restart(holdfast_broker::Config::default()).await;
    let (mut own, present) = server.lasting("own").await;
    assert!(present);
    own.publish("a/c", 1, "not to me").await;
    own.nothing().await;
}
