//! What MQTT 5 tells and may leave out: reason strings, response information, aliases of ours.

use std::sync::Arc;

use holdfast_broker::{Config, JournalMedium};
use holdfast_store::fault::{Call, CrashBackend, FailingBackend, Fault, Times};

use crate::common::{Hello, Server, TestRights, Wire, packet, publish, text};
use crate::kit::{hello, lasting, server};

/// The properties of a packet as (identifier, value); the server sends no user properties of its own.
fn properties(mut rest: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let Some((&kind, after)) = rest.split_first() {
        let length = match kind {
            0x11 | 0x27 => 4,
            0x13 | 0x21 | 0x22 | 0x23 => 2,
            0x12 | 0x1A | 0x1F => 2 + usize::from(u16::from_be_bytes([after[0], after[1]])),
            other => panic!("property {other:#x} is not expected"),
        };
        found.push((kind, after[..length].to_vec()));
        rest = &after[length..];
    }
    found
}

fn value(properties: &[(u8, Vec<u8>)], kind: u8) -> Option<&[u8]> {
    let found = properties.iter().find(|(known, _)| *known == kind);
    found.map(|(_, value)| &value[..])
}

/// The CONNACK's code and properties.
async fn connack(server: &Server, hello: &Hello) -> (Wire, u8, Vec<(u8, Vec<u8>)>) {
    let mut wire = server.raw().await;
    wire.v5 = true;
    wire.send(&hello.bytes()).await;
    let (first, body) = wire.packet().await.unwrap();
    assert_eq!((first, body[0]), (0x20, 0), "[MQTT-3.2.2-1]");
    assert_eq!(usize::from(body[2]), body.len() - 3);
    (wire, body[1], properties(&body[3..]))
}

#[tokio::test]
async fn mqtt5_3_1_2_28_response_information_comes_only_where_it_was_asked_for() {
    let server = Server::start(Config {
        response_topics: Some("answers".into()),
        ..Config::default()
    })
    .await;
    for (asked, told) in [
        (None, None),
        (Some(0), None),
        (Some(1), Some(text("answers/asker"))),
    ] {
        let mut greeting = Hello::v5("asker");
        greeting.properties = asked.map_or_else(Vec::new, |asked| vec![0x19, asked]);
        let (_wire, code, found) = connack(&server, &greeting).await;
        assert_eq!(
            (code, value(&found, 0x1A)),
            (0, told.as_deref()),
            "{asked:?}"
        );
    }
    // Nothing is said where nothing is configured.
    let silent = self::server().await;
    let mut greeting = Hello::v5("asker");
    greeting.properties = vec![0x19, 1];
    let (_wire, _, found) = connack(&silent, &greeting).await;
    assert_eq!(value(&found, 0x1A), None);
}

#[tokio::test]
async fn mqtt5_3_1_2_29_reason_strings_come_unless_they_were_declined() {
    let server = server().await;
    TestRights::forbid(&server.rights.no_publish, "closed");
    for (wanted, said) in [(None, true), (Some(1), true), (Some(0), false)] {
        let mut greeting = Hello::v5("x");
        greeting.properties = wanted.map_or_else(Vec::new, |wanted| vec![0x17, wanted]);
        let mut wire = hello(&server, &greeting).await;
        for (flags, first) in [(2, 0x40), (4, 0x50)] {
            wire.send(&publish(true, flags, "closed", 7, &[], b"m"))
                .await;
            let (kind, body) = wire.packet().await.unwrap();
            assert_eq!((kind, &body[..3]), (first, &[0, 7, 0x87][..]));
            let found = properties(body.get(4..).unwrap_or_default());
            assert_eq!(value(&found, 0x1F).is_some(), said, "{wanted:?} {first:#x}");
        }
        // PUBREL and PUBCOMP of ids that are not under way.
        for (sent, answer) in [(0x62, 0x70), (0x50, 0x62)] {
            wire.send(&packet(sent, &[0, 9])).await;
            let (kind, body) = wire.packet().await.unwrap();
            assert_eq!((kind, &body[..3]), (answer, &[0, 9, 0x92][..]));
            let found = properties(body.get(4..).unwrap_or_default());
            assert_eq!(
                value(&found, 0x1F).is_some(),
                said,
                "{wanted:?} {answer:#x}"
            );
        }
        // The end of the connection.
        wire.send(&Hello::v5("again").bytes()).await;
        let (kind, body) = wire.packet().await.unwrap();
        assert_eq!((kind, body[0]), (0xE0, 0x82));
        let found = properties(body.get(2..).unwrap_or_default());
        assert_eq!(value(&found, 0x1F).is_some(), said, "{wanted:?}");
        assert_eq!(value(&found, 0x11), None, "[MQTT-3.14.2-2]");
    }
}

#[tokio::test]
async fn mqtt5_3_2_2_19_a_reason_that_does_not_fit_is_left_out() {
    let server = server().await;
    server.rights.banned.lock().unwrap().insert("banned".into());
    TestRights::forbid(&server.rights.no_publish, "closed");
    for (largest, said) in [(None, true), (Some(40u32), false)] {
        let mut greeting = Hello::v5("banned");
        if let Some(largest) = largest {
            greeting.properties = [&[0x27][..], &largest.to_be_bytes()].concat();
        }
        let (mut wire, code, found) = connack(&server, &greeting).await;
        assert_eq!((code, value(&found, 0x1F).is_some()), (0x8A, said));
        assert_eq!(wire.packet().await, None);
        // Refused while it was read: nobody knows what fits.
        let mut method = Hello::v5("x");
        method.properties = [&greeting.properties[..], &[0x15], &text("SCRAM-SHA-1")].concat();
        let (mut wire, code, found) = connack(&server, &method).await;
        assert_eq!((code, value(&found, 0x1F)), (0x8C, None));
        assert_eq!(wire.packet().await, None);
        greeting.id = "good".into();
        let mut wire = hello(&server, &greeting).await;
        // PUBACK [MQTT-3.4.2-2], PUBREC [MQTT-3.5.2-2], PUBREL [MQTT-3.6.2-2], PUBCOMP [MQTT-3.7.2-2].
        for (bytes, kind, code) in [
            (publish(true, 2, "closed", 7, &[], b"m"), 0x40, 0x87),
            (publish(true, 4, "closed", 7, &[], b"m"), 0x50, 0x87),
            (packet(0x50, &[0, 7]), 0x62, 0x92),
            (packet(0x62, &[0, 7]), 0x70, 0x92),
        ] {
            wire.send(&bytes).await;
            let (first, body) = wire.packet().await.unwrap();
            assert_eq!((first, &body[..3]), (kind, &[0, 7, code][..]));
            assert_eq!(body.len() > 3, said, "{kind:#x}");
        }
        wire.send(&Hello::v5("again").bytes()).await;
        let (kind, body) = wire.packet().await.unwrap();
        assert_eq!((kind, body.len() > 1), (0xE0, said), "[MQTT-3.14.2-3]");
    }
}

#[tokio::test]
async fn mqtt5_3_3_2_11_our_aliases_stay_within_the_clients_maximum_and_mean_their_topics() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    for qos in 0..3 {
        let mut greeting = Hello::v5("taker");
        greeting.properties = vec![0x22, 0, 2];
        let mut taker = hello(&server, &greeting).await;
        taker.subscribe("a/#", qos).await;
        let mut known: Vec<Option<String>> = vec![None; 3];
        for topic in ["a/1", "a/1", "a/2", "a/3", "a/2", "a/1", "a/3"] {
            giver.publish(topic, qos, topic).await;
            let arrived = taker.receive().await;
            let found = properties(&arrived.properties);
            let alias = value(&found, 0x23).map(|v| usize::from(u16::from_be_bytes([v[0], v[1]])));
            let meant = match alias {
                None => arrived.topic.clone(),
                Some(number) => {
                    assert!((1..=2).contains(&number), "{number} [MQTT-3.1.2-26]");
                    if arrived.topic.is_empty() {
                        known[number].clone().expect("told before")
                    } else {
                        known[number] = Some(arrived.topic.clone());
                        arrived.topic.clone()
                    }
                }
            };
            assert_eq!((meant.as_str(), arrived.text()), (topic, topic));
        }
        assert_eq!(known[1].as_deref(), Some("a/1"));
        assert_eq!(known[2].as_deref(), Some("a/2"));
    }
}

#[tokio::test]
async fn mqtt5_3_3_2_7_our_aliases_end_with_the_connection() {
    let server = server().await;
    let mut greeting = Hello::v5("taker");
    greeting.clean = false;
    greeting.properties = [&[0x22, 0, 2, 0x11][..], &3600u32.to_be_bytes()].concat();
    let mut giver = server.v5("giver").await;
    for round in 0..2 {
        let mut taker = hello(&server, &greeting).await;
        if round == 0 {
            taker.subscribe("a", 1).await;
        }
        giver.publish("a", 1, "m").await;
        let first = taker.arrived().await;
        assert_eq!(first.topic, "a", "told anew on each connection");
        if round == 1 {
            // What was not acknowledged came first, under a new alias; the next needs no name.
            assert!(first.dup());
            assert_eq!(taker.arrived().await.topic, "");
        }
    }
}

#[tokio::test]
async fn mqtt5_4_12_0_7_auth_without_a_method_ends_the_connection() {
    let server = server().await;
    for body in [&[][..], &[0x18, 0], &[0x19, 0], &[0]] {
        let mut wire = server.v5("x").await;
        wire.send(&packet(0xF0, body)).await;
        assert_eq!(wire.closed().await, Some(0x82), "{body:?}");
    }
    let mut wire = server.v5("x").await;
    wire.send(&packet(0xF1, &[0x18, 0])).await;
    assert_eq!(wire.closed().await, Some(0x81), "[MQTT-3.15.1-1]");
}

#[tokio::test]
async fn mqtt5_3_3_1_3_the_publishers_dup_flag_is_its_own() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("a", 2).await;
    let mut giver = server.v5("giver").await;
    for flags in [0x0A, 0x0C] {
        giver.publish_with("a", flags, &[], "m").await;
        let arrived = taker.receive().await;
        assert!(!arrived.dup(), "sent for the first time");
        assert_eq!(arrived.qos(), (flags >> 1) & 3);
    }
}

#[tokio::test]
async fn mqtt5_3_11_3_1_unsuback_has_a_code_for_each_filter_in_its_order() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    for filter in ["a", "b/#"] {
        wire.subscribe(filter, 0).await;
    }
    let filters = ["b/#", "nothing", "a", "a", "b/#x"].map(text).concat();
    wire.send(&packet(0xA2, &[&[0, 77, 0][..], &filters].concat()))
        .await;
    let (first, body) = wire.packet().await.unwrap();
    assert_eq!(first, 0xB0);
    assert_eq!(body, [0, 77, 0, 0, 0x11, 0, 0x11, 0x11]);
}

#[tokio::test]
async fn mqtt5_3_12_4_1_each_ping_is_answered_and_the_only_connack_is_the_first() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    for _ in 0..3 {
        wire.nothing().await;
    }
    let mut wire = server.v3("y").await;
    wire.send(&[0xC0, 0, 0xC0, 0]).await;
    for _ in 0..2 {
        assert_eq!(wire.packet().await, Some((0xD0, Vec::new())));
    }
}

#[tokio::test]
async fn mqtt311_4_8_0_2_a_transient_error_ends_the_connection_it_came_on_and_no_other() {
    let backend = FailingBackend::new(Arc::new(CrashBackend::new()));
    let medium = JournalMedium::Backend(Arc::new(backend.clone()));
    let server = Server::on(Config::default(), medium).await;
    let mut offline = hello(&server, &lasting(false, "offline")).await;
    offline.subscribe("d", 2).await;
    offline.disconnect().await;
    let mut other = server.v3("other").await;
    let fail = || {
        backend.plan(Some(Fault {
            call: Call::Sync,
            at: 1,
            os_error: 5,
            times: Times::Forever,
        }));
    };
    for flags in [2, 4] {
        let mut three = server.v3("three").await;
        fail();
        three.send(&publish(false, flags, "d", 7, &[], b"m")).await;
        assert_eq!(three.packet().await, None, "no answer, and the end");
        backend.plan(None);
        other.nothing().await;
        // It comes back and sends again, until it is taken.
        loop {
            let mut three = server.v3("three").await;
            three.send(&publish(false, flags, "d", 7, &[], b"m")).await;
            if three.packet().await.is_some() {
                break;
            }
        }
    }
    // MQTT 5 has words for it, and stays.
    let mut five = server.v5("five").await;
    fail();
    assert_eq!(five.publish("d", 1, "m").await, 0x80);
    backend.plan(None);
    let begun = std::time::Instant::now();
    while five.publish("d", 1, "m").await != 0 {
        assert!(begun.elapsed() < crate::common::PATIENCE);
    }
    other.nothing().await;
}
