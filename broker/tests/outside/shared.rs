//! Shared subscriptions: who gets a message, with which options, and what becomes of it when a member goes.

use crate::common::packet;
use crate::kit::{hello, lasting, server};

#[tokio::test]
async fn mqtt5_4_8_2_a_group_gets_each_message_once_and_others_their_own_copy() {
    let server = server().await;
    for qos in 0..=2u8 {
        let mut takers = Vec::new();
        for (id, filter) in [
            ("g1", "$share/g/s/+"),
            ("g2", "$share/g/s/+"),
            ("g3", "$share/g/s/+"),
            ("h1", "$share/h/s/+"),
            ("plain", "s/#"),
        ] {
            let mut wire = server.v5(id).await;
            assert_eq!(wire.subscribe(filter, qos).await, qos);
            takers.push(wire);
        }
        let mut giver = server.v5("giver").await;
        for number in 0..30 {
            giver.publish("s/x", qos, &number.to_string()).await;
        }
        giver.nothing().await;
        let mut counts = Vec::new();
        for taker in &mut takers {
            let mut got = Vec::new();
            taker.send(&[0xC0, 0]).await;
            loop {
                let (first, body) = taker.packet().await.unwrap();
                match first >> 4 {
                    13 => break,
                    6 => taker.send(&packet(0x70, &body[..2])).await,
                    _ => {
                        let arrived = taker.parse(first, &body);
                        got.push(arrived.text().to_owned());
                        match arrived.qos() {
                            1 => taker.send(&packet(0x40, &arrived.id.to_be_bytes())).await,
                            2 => taker.send(&packet(0x50, &arrived.id.to_be_bytes())).await,
                            _ => {}
                        }
                    }
                }
            }
            counts.push(got);
        }
        let mut group: Vec<String> = counts[..3].concat();
        assert!(
            counts[..3].iter().all(|got| got.len() == 10),
            "fair: {counts:?}"
        );
        group.sort();
        group.dedup();
        assert_eq!(
            (group.len(), counts[3].len(), counts[4].len()),
            (30, 30, 30)
        );
    }
}

#[tokio::test]
async fn mqtt5_4_8_2_3_each_member_gets_its_granted_qos_with_its_own_options() {
    let server = server().await;
    for lasts in [false, true] {
        let mut giver = server.v5("giver").await;
        for granted in 0..=2u8 {
            let mut greeting = lasting(true, "member");
            greeting.clean = !lasts;
            if !lasts {
                greeting.properties.clear();
            }
            let mut member = hello(&server, &greeting).await;
            let options = granted | 8;
            let code = member
                .subscribe_with("$share/g/s/+", options, &[0x0B, 7])
                .await;
            assert_eq!(code, granted);
            for sent in 0..=2u8 {
                giver.publish_with("s/x", sent << 1 | 1, &[], "m").await;
                let got = member.receive().await;
                let found = (got.qos(), got.retain(), got.properties.clone());
                assert_eq!(found, (sent.min(granted), true, vec![0x0B, 7]));
            }
            giver.publish_with("s/x", 3, &[], "").await;
            member.receive().await;
            member.nothing().await;
            member.unsubscribe("$share/g/s/+").await;
            member.disconnect().await;
        }
    }
}

#[tokio::test]
async fn mqtt5_4_8_2_a_group_skips_members_that_left_and_sends_no_retained() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("s", 3, &[], "kept").await;
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    one.subscribe("$share/g/s", 1).await;
    two.subscribe("$share/g/s", 1).await;
    one.nothing().await;
    two.disconnect().await;
    for number in 0..10 {
        giver.publish("s", 1, &number.to_string()).await;
    }
    for number in 0..10 {
        assert_eq!(one.receive().await.text(), number.to_string());
    }
    one.unsubscribe("$share/g/s").await;
    giver.publish("s", 1, "nobody").await;
    one.nothing().await;
}

#[tokio::test]
async fn mqtt5_4_8_2_what_a_gone_member_had_not_acknowledged_goes_to_another() {
    let server = server().await;
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    one.subscribe("$share/g/s", 1).await;
    two.subscribe("$share/g/s", 1).await;
    let mut giver = server.v5("giver").await;
    giver.publish("s", 1, "a").await;
    giver.publish("s", 1, "b").await;
    one.arrived().await;
    let kept = two.receive().await;
    // Its session ends with it: the message it had not acknowledged is not lost.
    drop(one);
    let other = two.receive().await;
    assert_ne!(kept.text(), other.text());
}

#[tokio::test]
async fn mqtt5_4_8_2_6_a_message_refused_by_a_member_is_not_tried_on_another() {
    let server = server().await;
    let mut one = server.v5("one").await;
    let mut two = server.v5("two").await;
    one.subscribe("$share/g/s", 1).await;
    two.subscribe("$share/g/s", 1).await;
    let mut giver = server.v5("giver").await;
    giver.publish("s", 1, "a").await;
    giver.publish("s", 1, "b").await;
    let got = one.arrived().await;
    let [high, low] = got.id.to_be_bytes();
    one.send(&packet(0x40, &[high, low, 0x83])).await;
    one.nothing().await;
    two.receive().await;
    two.nothing().await;
    drop(one);
    giver.publish("s", 1, "c").await;
    assert_eq!(two.receive().await.text(), "c");
    two.nothing().await;
}
