//! Clients that are unusual and well within the standard: every length and every property that may be
//! there, all extremes, all at once.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::common::{Hello, Wire, packet, publish, text, variable};
use crate::kit::{VERSIONS, answer, client, ends, hello, server};

fn pair(name: &[u8], value: &[u8]) -> Vec<u8> {
    let part = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length, bytes].concat()
    };
    [&[0x26][..], &part(name), &part(value)].concat()
}

/// A body with these properties behind its packet id, and what follows them.
fn with(properties: &[u8], rest: &[u8]) -> Vec<u8> {
    [&[0, 7][..], &variable(properties.len()), properties, rest].concat()
}

#[tokio::test]
async fn mqtt5_2_2_2_text_in_the_properties_of_every_packet_is_checked() {
    let server = server().await;
    for (bad, well) in [
        (&b"a"[..], true),
        (b"", true),
        ("\u{FEFF}ü€😀".as_bytes(), true),
        (b"a\0b", false),
        (b"\xED\xA0\x80", false),
        (b"\xC0\xAF", false),
        (b"\xFF", false),
    ] {
        for user in [pair(bad, b"v"), pair(b"n", bad)] {
            let mut greeting = Hello::v5("p");
            greeting.properties = user.repeat(2);
            let taken = answer(&server, &greeting.bytes()).await;
            assert_eq!(taken.is_some_and(|body| body[1] == 0), well, "{bad:?}");
            greeting.properties.clear();
            greeting.will = Some((0, user.clone(), "w".into(), Vec::new()));
            let taken = answer(&server, &greeting.bytes()).await;
            assert_eq!(taken.is_some_and(|body| body[1] == 0), well, "{bad:?}");
            let acknowledged = [&[0][..], &variable(user.len()), &user].concat();
            for (first, body) in [
                (0x82, with(&user, &[&text("x")[..], &[0]].concat())),
                (0xA2, with(&user, &text("x"))),
                (0x40, [&[0, 7][..], &acknowledged].concat()),
                (0x50, [&[0, 7][..], &acknowledged].concat()),
                (0x62, [&[0, 7][..], &acknowledged].concat()),
                (0x70, [&[0, 7][..], &acknowledged].concat()),
                (0xE0, acknowledged.clone()),
            ] {
                // A PINGREQ behind it, and the end: whatever is well is answered.
                let bytes = [packet(first, &body), vec![0xC0, 0, 0xE0, 0]].concat();
                let code = ends(&server, true, &bytes).await;
                assert_eq!(code, (!well).then_some(0x81), "{first:#x} {bad:?}");
            }
        }
    }
}

#[tokio::test]
async fn properties_of_other_packets_are_malformed_in_every_packet() {
    let server = server().await;
    let all: [(u8, &[u8]); 27] = [
        (0x01, &[0]),
        (0x02, &[0, 0, 0, 9]),
        (0x03, &[0, 0]),
        (0x08, &[0, 1, b'r']),
        (0x09, &[0, 0]),
        (0x0B, &[1]),
        (0x11, &[0, 0, 0, 0]),
        (0x12, &[0, 0]),
        (0x13, &[0, 9]),
        (0x15, &[0, 1, b'm']),
        (0x16, &[0, 0]),
        (0x17, &[1]),
        (0x18, &[0, 0, 0, 9]),
        (0x19, &[1]),
        (0x1A, &[0, 0]),
        (0x1C, &[0, 0]),
        (0x1F, &[0, 0]),
        (0x21, &[0, 9]),
        (0x22, &[0, 9]),
        (0x23, &[0, 9]),
        (0x24, &[1]),
        (0x25, &[1]),
        (0x26, &[0, 0, 0, 0]),
        (0x27, &[0, 1, 0, 0]),
        (0x28, &[1]),
        (0x29, &[1]),
        (0x2A, &[1]),
    ];
    for (kind, value) in all {
        let one = [&[kind][..], value].concat();
        let length = variable(one.len());
        let ack = [&[0, 7, 0][..], &length, &one].concat();
        let goodbye = [&[0][..], &length, &one].concat();
        for (first, body, may) in [
            (
                0x82,
                with(&one, &[&text("x")[..], &[0]].concat()),
                &[0x0B, 0x26][..],
            ),
            (0xA2, with(&one, &text("x")), &[0x26]),
            (0x40, ack.clone(), &[0x1F, 0x26]),
            (0x50, ack.clone(), &[0x1F, 0x26]),
            (0x62, ack.clone(), &[0x1F, 0x26]),
            (0x70, ack, &[0x1F, 0x26]),
            (0xE0, goodbye, &[0x11, 0x1C, 0x1F, 0x26]),
        ] {
            let mut bytes = [packet(first, &body), vec![0xE0, 0]].concat();
            let told = (!may.contains(&kind)).then_some(0x81);
            let code = ends(&server, true, &bytes).await;
            assert_eq!(code, told, "{kind:#x} in {first:#x}");
            // Cut by a byte it is malformed in any case, and so is a value that is left out.
            bytes = packet(first, &body[..body.len() - 1]);
            let code = ends(&server, true, &bytes).await;
            assert_eq!(code, Some(0x81), "{kind:#x} in {first:#x}, cut");
        }
    }
}

#[tokio::test]
async fn every_acknowledgement_may_be_short_or_long() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("x", 2).await;
    let reason = [
        &[0x1F][..],
        &text("why"),
        &pair(b"k", b"v"),
        &pair(b"k", b"v"),
    ]
    .concat();
    let long = [&[0][..], &variable(reason.len()), &reason].concat();
    for rest in [&[][..], &[0], &[0, 0], &long] {
        let answer = |first: u8, id: u16| packet(first, &[&id.to_be_bytes()[..], rest].concat());
        giver.publish("x", 1, "one").await;
        let got = taker.arrived().await;
        taker.send(&answer(0x40, got.id)).await;
        giver.publish("x", 2, "two").await;
        let got = taker.arrived().await;
        taker.send(&answer(0x50, got.id)).await;
        assert_eq!(taker.ack(0x62, got.id).await, 0);
        taker.send(&answer(0x70, got.id)).await;
        // Done with: the same answer again is to nothing.
        taker.send(&answer(0x50, got.id)).await;
        assert_eq!(taker.ack(0x62, got.id).await, 0x92);
        giver
            .send(&publish(true, 4, "nobody", 65_535, &[], b""))
            .await;
        assert_eq!(giver.ack(0x50, 65_535).await, 0x10);
        giver.send(&answer(0x62, 65_535)).await;
        assert_eq!(giver.ack(0x70, 65_535).await, 0);
    }
    // PUBREL and PUBCOMP with "not found" end their part too.
    giver.publish("x", 2, "three").await;
    let got = taker.arrived().await;
    let [high, low] = got.id.to_be_bytes();
    taker.send(&packet(0x50, &[high, low])).await;
    taker.ack(0x62, got.id).await;
    taker.send(&packet(0x70, &[high, low, 0x92])).await;
    taker.nothing().await;
}

#[tokio::test]
async fn every_reason_a_client_may_give_for_its_goodbye_is_taken() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("w", 0).await;
    for (body, keeps) in [
        (vec![], false),
        (vec![0], false),
        (vec![0, 0], false),
        (vec![4], true),
        (vec![4, 0], true),
        (vec![0x80], true),
        (vec![0x81], true),
        (vec![0x82], true),
        (vec![0x83], true),
        (vec![0x90], true),
        (vec![0x93], true),
        (vec![0x94], true),
        (vec![0x95], true),
        (vec![0x96], true),
        (vec![0x97], true),
        (vec![0x98], true),
        (vec![0x99], true),
        ([&[0, 8, 0x1F][..], &text("bye"), &[0x26]].concat(), false),
    ] {
        let mut greeting = Hello::v5("leaving");
        greeting.will = Some((0, Vec::new(), "w".into(), b"gone".to_vec()));
        let mut wire = hello(&server, &greeting).await;
        let mut body = body;
        if body.last() == Some(&0x26) {
            body.extend([0, 0, 0, 0]);
            body[1] = 6 + 5;
        }
        wire.send(&packet(0xE0, &body)).await;
        assert_eq!(wire.closed().await, None, "{body:?}");
        if keeps {
            assert_eq!(taker.receive().await.text(), "gone", "{body:?}");
        }
        taker.nothing().await;
    }
}

#[tokio::test]
async fn extremes_of_connect_are_taken() {
    let server = server().await;
    let mut greeting = Hello::v5("extreme");
    greeting.keep_alive = u16::MAX;
    greeting.properties = [
        &[0x11, 0xFF, 0xFF, 0xFF, 0xFF][..],
        &[0x21, 0xFF, 0xFF],
        &[0x22, 0xFF, 0xFF],
        &[0x27, 0xFF, 0xFF, 0xFF, 0xFF],
        &[0x17, 1, 0x19, 1],
        &pair(b"", b""),
        &pair(b"k", &[b'v'; 3000]),
    ]
    .concat();
    let will = [
        &[0x18, 0xFF, 0xFF, 0xFF, 0xFF][..],
        &[2, 0xFF, 0xFF, 0xFF, 0xFF],
    ]
    .concat();
    greeting.will = Some((0x30, will, "w".into(), Vec::new()));
    for _ in 0..2 {
        let mut wire = hello(&server, &greeting).await;
        assert_eq!(wire.subscribe("#", 2).await, 2);
        wire.nothing().await;
        // Its delay has no end before its session's.
        drop(wire);
    }
    hello(&server, &Hello::v5("extreme"))
        .await
        .disconnect()
        .await;
    // The smallest: a packet size that just holds what must be told.
    let mut small = Hello::v5("small");
    small.properties = vec![0x27, 0, 0, 0, 20];
    let mut wire = hello(&server, &small).await;
    assert_eq!(wire.subscribe("a", 1).await, 1);
    let mut giver = server.v5("giver").await;
    giver.publish("a", 1, &"l".repeat(20)).await;
    giver.publish("a", 1, "fits").await;
    assert_eq!(wire.receive().await.text(), "fits");
}

#[tokio::test]
async fn payloads_of_every_length_of_a_length_go_both_ways() {
    let server = server().await;
    for v5 in VERSIONS {
        for qos in 0..=2u8 {
            let mut taker = client(&server, v5, "taker").await;
            taker.subscribe("x", 2).await;
            let mut giver = client(&server, v5, "giver").await;
            let head = publish(v5, qos << 1, "x", 1, &[], &[]).len() - 2;
            for body in [127, 128, 16_383, 16_384, 200_000] {
                let payload = "p".repeat(body - head);
                giver.publish("x", qos, &payload).await;
                let got = taker.receive().await;
                assert!(got.text() == payload, "{body} {qos} {v5}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_says_all_it_has_to_say_and_shuts_its_side_hears_all_answers() {
    let server = server().await;
    for v5 in VERSIONS {
        for goodbye in [true, false] {
            let mut greeting = Hello::v5("brief");
            greeting.v5 = v5;
            let p: &[u8] = if v5 { &[0] } else { &[] };
            let mut bytes = greeting.bytes();
            bytes.extend(packet(0x82, &[&[0, 1], p, &text("x"), &[1]].concat()));
            bytes.extend(publish(v5, 2, "x", 5, &[], b"to itself"));
            bytes.extend(publish(v5, 4, "elsewhere", 6, &[], b"m"));
            bytes.extend(packet(0x62, &[0, 6]));
            bytes.extend([0xC0, 0]);
            if goodbye {
                bytes.extend([0xE0, 0]);
            }
            let mut wire: Wire = server.raw().await;
            wire.v5 = v5;
            wire.send(&bytes).await;
            wire.stream.shutdown().await.unwrap();
            let mut kinds = Vec::new();
            while let Some((first, _)) = wire.packet().await {
                kinds.push(first >> 4);
            }
            // What its own subscription has for it is no answer: it comes if it did not say goodbye.
            kinds.retain(|kind| *kind != 3);
            kinds.sort_unstable();
            assert_eq!(kinds, [2, 4, 5, 7, 9, 13], "{v5} {goodbye}");
        }
    }
}

#[tokio::test]
async fn names_with_a_dollar_that_mean_nothing_are_names_like_others() {
    let server = server().await;
    for v5 in VERSIONS {
        let mut wire = client(&server, v5, "x").await;
        for name in [
            "$",
            "$share",
            "$shared/g/x",
            "$SHARE/g/x",
            "a/$share/g",
            "$own",
            "/",
            "//",
            " ",
        ] {
            assert_eq!(wire.subscribe(name, 0).await, 0, "{name}");
            wire.publish(name, 0, name).await;
            assert_eq!(wire.receive().await.topic, name);
            wire.unsubscribe(name).await;
        }
    }
}

#[tokio::test]
async fn a_message_of_no_time_is_nobodys_and_one_of_all_time_stays() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    drop(taker);
    let mut giver = server.v5("giver").await;
    assert_eq!(
        giver.publish_with("x", 2, &[2, 0, 0, 0, 0], "none").await,
        0
    );
    let all = [2, 0xFF, 0xFF, 0xFF, 0xFF];
    assert_eq!(giver.publish_with("x", 2, &all, "all").await, 0);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let (mut taker, _) = server.lasting("taker").await;
    let got = taker.receive().await;
    assert_eq!((got.text(), got.properties[0]), ("all", 2));
    assert!(u32::from_be_bytes(got.properties[1..5].try_into().unwrap()) > u32::MAX - 10);
    taker.nothing().await;
}

#[tokio::test]
async fn many_and_large_properties_go_through_unaltered() {
    let server = server().await;
    let (mut away, _) = server.lasting("away").await;
    away.subscribe("p/#", 1).await;
    drop(away);
    let mut giver = server.v5("giver").await;
    let mut sent = Vec::new();
    for size in [120, 121, 122, 123, 16_370, 40_000] {
        // A property length of one, two and three bytes, and at its steps.
        let mut properties = pair(b"large", &vec![b'v'; size]);
        properties.extend(pair(b"k", b"1"));
        properties.extend(pair(b"k", b"1"));
        let topic = format!("p/{size}");
        giver.publish_with(&topic, 3, &properties, "m").await;
        sent.push((topic, properties));
    }
    let (away, _) = server.lasting("away").await;
    let mut late = server.v5("late").await;
    late.subscribe("p/#", 1).await;
    for mut wire in [away, late] {
        let mut found = Vec::new();
        for _ in 0..sent.len() {
            let got = wire.receive().await;
            found.push((got.topic, got.properties));
        }
        // What is kept comes by topic.
        found.sort();
        sent.sort();
        assert!(found == sent);
        wire.nothing().await;
    }
}
