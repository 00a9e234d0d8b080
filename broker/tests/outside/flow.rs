//! Flow control: receive maximum both ways and over resumption, packet sizes, refusals by the client.

use holdfast_broker::DropReason;

use crate::common::{Hello, expiry, packet, publish};
use crate::kit::{VERSIONS, hello, hello_present, lasting, server};

fn windowed(id: &str, window: u8) -> Hello {
    let mut hello = lasting(true, id);
    hello.properties.extend([0x21, 0, window]);
    hello
}

#[tokio::test]
async fn mqtt5_3_3_4_9_the_receive_maximum_holds_for_every_qos_and_frees_by_puback_and_pubcomp() {
    let server = server().await;
    for durable in [false, true] {
        let mut greeting = windowed("taker", 2);
        if !durable {
            greeting.properties = vec![0x21, 0, 2];
            greeting.clean = true;
        }
        let mut taker = hello(&server, &greeting).await;
        taker.subscribe("#", 2).await;
        let mut giver = server.v5("giver").await;
        for number in 0..4 {
            giver.publish("x", 2, &number.to_string()).await;
        }
        // QoS 0 passes a full window.
        let first = taker.arrived().await;
        let second = taker.arrived().await;
        taker.nothing().await;
        giver.publish("y", 0, "zero").await;
        giver.nothing().await;
        assert_eq!(taker.arrived().await.text(), "zero");
        // PUBREC alone frees nothing, PUBCOMP does.
        taker.send(&packet(0x50, &first.id.to_be_bytes())).await;
        assert_eq!(taker.ack(0x62, first.id).await, 0);
        taker.nothing().await;
        taker.send(&packet(0x70, &first.id.to_be_bytes())).await;
        let third = taker.arrived().await;
        assert_eq!(third.text(), "2");
        taker.nothing().await;
        // A PUBREC with an error frees at once.
        let [high, low] = second.id.to_be_bytes();
        taker.send(&packet(0x50, &[high, low, 0x97])).await;
        assert_eq!(taker.arrived().await.text(), "3");
        taker.nothing().await;
        hello(&server, &Hello::v5("taker")).await.disconnect().await;
    }
}

#[tokio::test]
async fn mqtt5_3_3_4_9_a_smaller_receive_maximum_holds_when_the_session_resumes() {
    let server = server().await;
    let mut taker = hello(&server, &windowed("taker", 10)).await;
    taker.subscribe("x", 1).await;
    let mut giver = server.v5("giver").await;
    for number in 0..10 {
        giver.publish("x", 1, &number.to_string()).await;
    }
    for _ in 0..10 {
        taker.arrived().await;
    }
    drop(taker);
    let mut taker = hello(&server, &windowed("taker", 3)).await;
    let mut open = Vec::new();
    for number in 0..3 {
        let got = taker.arrived().await;
        assert_eq!(got.text(), number.to_string());
        open.push(got.id);
    }
    taker.nothing().await;
    for number in 3..10 {
        taker
            .send(&packet(0x40, &open.remove(0).to_be_bytes()))
            .await;
        let got = taker.arrived().await;
        assert_eq!(got.text(), number.to_string());
        open.push(got.id);
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_24_a_smaller_packet_size_holds_when_the_session_resumes() {
    let server = server().await;
    let mut taker = hello(&server, &windowed("taker", 1)).await;
    taker.subscribe("x", 1).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, &"l".repeat(300)).await;
    giver.publish("x", 1, "short").await;
    taker.arrived().await;
    drop(taker);
    let mut greeting = windowed("taker", 1);
    greeting.properties.extend([0x27, 0, 0, 0, 100]);
    let mut taker = hello(&server, &greeting).await;
    // The large one is discarded as if it had been acknowledged [MQTT-3.1.2-25]: it may not block.
    taker.send(&[0xC0, 0]).await;
    let mut got = Vec::new();
    while got.is_empty() {
        let (first, body) = taker.packet().await.unwrap();
        match first >> 4 {
            3 => got.push(taker.parse(first, &body).text().to_owned()),
            _ => assert!(got.len() == 1, "blocked by a message that cannot be sent"),
        }
    }
    assert_eq!(got, ["short"]);
    assert_eq!(server.broker.metrics().dropped[&DropReason::TooLarge], 1);
}

#[tokio::test]
async fn mqtt5_3_1_2_24_no_packet_is_larger_than_the_client_takes_to_the_byte() {
    let server = server().await;
    // Fixed header 2, topic 3, id 2, properties 1: 8 beside the payload at QoS 1.
    for (payload, arrives) in [(92, true), (93, false)] {
        for durable in [false, true] {
            let mut greeting = Hello::v5("taker");
            greeting.properties = vec![0x27, 0, 0, 0, 100];
            if durable {
                greeting.properties.extend(expiry(100));
            }
            let mut taker = hello(&server, &greeting).await;
            taker.subscribe("x", 1).await;
            let mut giver = server.v5("giver").await;
            giver.publish("x", 1, &"p".repeat(payload)).await;
            giver.publish("x", 1, "end").await;
            if arrives {
                assert_eq!(taker.receive().await.payload.len(), payload);
            }
            assert_eq!(taker.receive().await.text(), "end");
        }
    }
}

#[tokio::test]
async fn mqtt5_3_3_4_7_and_8_our_receive_maximum_is_counted_exactly() {
    let mut config = holdfast_broker::Config::default();
    config.limits.receive_maximum = 5;
    let server = crate::common::Server::start(config).await;
    // Exactly the maximum, again and again, is fine.
    let mut wire = server.v5("good").await;
    for _ in 0..10 {
        let mut bytes = Vec::new();
        for id in 1..=5 {
            bytes.extend(publish(true, 4, "x", id, &[], b""));
        }
        wire.send(&bytes).await;
        for id in 1..=5 {
            assert!(wire.ack(0x50, id).await < 0x80);
        }
        for id in 1..=5u16 {
            wire.send(&packet(0x62, &id.to_be_bytes())).await;
            assert_eq!(wire.ack(0x70, id).await, 0);
        }
    }
    // QoS 1 messages are acknowledged as they come: a long run of them is no offence.
    let mut bytes = Vec::new();
    for id in 1..=100 {
        bytes.extend(publish(true, 2, "x", id, &[], b""));
    }
    for chunk in bytes.chunks(40) {
        wire.send(chunk).await;
    }
    for id in 1..=100 {
        assert!(wire.ack(0x40, id).await < 0x80);
    }
    wire.nothing().await;
}

#[tokio::test]
async fn mqtt5_3_3_4_7_ids_of_an_earlier_connection_count_too() {
    let mut config = holdfast_broker::Config::default();
    config.limits.receive_maximum = 3;
    let server = crate::common::Server::start(config).await;
    let (mut wire, _) = server.lasting("giver").await;
    for id in 1..=3 {
        wire.send(&publish(true, 4, "x", id, &[], b"")).await;
        wire.ack(0x50, id).await;
    }
    drop(wire);
    let (mut wire, present) = hello_present(&server, &lasting(true, "giver")).await;
    assert!(present);
    // A duplicate of an open one is not a fourth.
    wire.send(&publish(true, 12, "x", 2, &[], b"")).await;
    assert_eq!(wire.ack(0x50, 2).await, 0);
    for id in 1..=3u16 {
        wire.send(&packet(0x62, &id.to_be_bytes())).await;
        assert_eq!(wire.ack(0x70, id).await, 0);
    }
    wire.nothing().await;
}

#[tokio::test]
async fn mqtt5_2_2_1_4_ids_in_use_are_not_given_twice() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("x", 2).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "one").await;
    giver.publish("x", 2, "two").await;
    let one = taker.arrived().await;
    let two = taker.arrived().await;
    // Answers to what is not under way: nothing moves, nothing ends.
    for answer in [0x40, 0x70] {
        taker.send(&packet(answer, &[0xFF, 0xF0])).await;
    }
    taker.nothing().await;
    let mut used = vec![one.id, two.id];
    for _ in 0..98 {
        giver.publish("x", 1, "more").await;
        used.push(taker.arrived().await.id);
    }
    assert!(used.iter().all(|id| *id != 0), "[MQTT-2.3.1-1]");
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), 100);
    // The window is full: 100 by default.
    giver.publish("x", 1, "waits").await;
    taker.nothing().await;
    taker.send(&packet(0x40, &one.id.to_be_bytes())).await;
    assert_eq!(taker.arrived().await.text(), "waits");
}

#[tokio::test]
async fn mqtt5_4_3_2_2_and_4_3_3_4_the_wrong_kind_of_answer_ends_the_connection() {
    let server = server().await;
    for v5 in VERSIONS {
        for lasts in [false, true] {
            // (QoS of the message, the answer); PUBCOMP comes before its PUBREL.
            for (qos, answer) in [(1, 0x50), (1, 0x70), (2, 0x40), (2, 0x70)] {
                let mut greeting = lasting(v5, "taker");
                greeting.clean = !lasts;
                let mut taker = hello(&server, &greeting).await;
                taker.subscribe("x", 2).await;
                server.v5("giver").await.publish("x", qos, "m").await;
                let arrived = taker.arrived().await;
                taker.send(&packet(answer, &arrived.id.to_be_bytes())).await;
                let code = taker.closed().await;
                assert_eq!(code, v5.then_some(0x82), "{qos} {answer:#x}");
                if lasts {
                    // The message is not done with: it comes again, under its id.
                    let mut taker = hello(&server, &greeting).await;
                    let again = taker.receive().await;
                    assert_eq!((again.id, again.dup()), (arrived.id, true));
                    taker.disconnect().await;
                }
                let mut clean = greeting;
                clean.clean = true;
                clean.properties.clear();
                hello(&server, &clean).await.disconnect().await;
            }
        }
    }
}

#[tokio::test]
async fn mqtt5_3_1_2_24_nothing_larger_than_the_client_takes_is_sent_whatever_it_is() {
    let server = server().await;
    for size in 2u32..=40 {
        let mut greeting = Hello::v5("small");
        greeting.properties = [&[0x27][..], &size.to_be_bytes()].concat();
        let mut wire = server.raw().await;
        wire.v5 = true;
        wire.send(&greeting.bytes()).await;
        let fits = |body: &Vec<u8>| body.len() + 2 <= size as usize;
        match wire.packet().await {
            // Not even a refusal fits: it hears nothing.
            None => assert!(size < 5, "{size}"),
            Some((_, body)) if body[1] >= 0x80 => assert!(fits(&body), "{size}"),
            Some((_, body)) => {
                assert!(fits(&body), "{size}");
                // A SUBACK with a code for each of 40 filters does not fit.
                let mut many = vec![0, 1, 0];
                for number in 0..40 {
                    many.extend(crate::common::text(&format!("f{number}")));
                    many.push(0);
                }
                wire.send(&packet(0x82, &many)).await;
                while let Some((first, body)) = wire.packet().await {
                    assert!(first == 0xE0 && fits(&body), "{size} {body:?}");
                    assert_eq!(body[0], 0x95);
                }
            }
        }
    }
}
