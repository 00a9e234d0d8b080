//! The codec against an independent judge (mqtt-protocol-core's own parser and builder), and against
//! mutations.

use bytes::BytesMut;
use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};
use proptest::prelude::*;

use super::*;
use crate::{Message, Qos};

fn frames(bytes: &[u8], step: usize, bound: usize) -> Result<Vec<(u8, Vec<u8>)>, Fault> {
    let mut found = Vec::new();
    let mut frames = Frames::default();
    for chunk in bytes.chunks(step) {
        frames.feed(chunk, bound, |first, body| {
            found.push((first, body.to_vec()));
            Ok(Flow::Go)
        })?;
    }
    Ok(found)
}

fn hop(v5: bool, qos: Qos, ids: &[u32]) -> Hop<'_> {
    Hop {
        v5,
        qos,
        retain: false,
        dup: false,
        packet_id: 7,
        expiry: v5.then_some(60),
        subscription_ids: ids,
        alias: None,
    }
}

proptest! {
    #[test]
    fn property_a_publish_reads_the_same_in_the_judge(
        topic in "[a-zA-Z0-9/]{1,60}",
        payload in proptest::collection::vec(any::<u8>(), 0..2000),
        name in "[a-z]{0,40}",
        value in "\\PC{0,40}",
        qos in 0u8..3,
        ids in proptest::collection::vec(1u32..268_435_455, 0..4),
        v5: bool,
    ) {
        let qos = Qos::from_bits(qos).unwrap();
        let message = Message::new(&topic, payload.clone()).user_property(&name, &value);
        let hop = hop(v5, qos, &ids);
        let mut out = BytesMut::new();
        publish(&mut out, &message, &hop);
        prop_assert_eq!(out.len(), publish_size(&message, &hop));
        let found = frames(&out, 10_000, usize::MAX).unwrap();
        prop_assert_eq!(found.len(), 1);
        let (first, body) = &found[0];
        prop_assert_eq!((first >> 1) & 3, qos as u8);
        let flags = first & 0x0F;
        let body: std::sync::Arc<[u8]> = body.clone().into();
        let (found_topic, found_payload) = if v5 {
            let (judged, used) = v5_0::Publish::parse(flags, body.clone()).unwrap();
            prop_assert_eq!(used, body.len());
            (judged.topic_name().to_owned(), judged.payload().as_slice().to_vec())
        } else {
            let (judged, used) = v3_1_1::Publish::parse(flags, body.clone()).unwrap();
            prop_assert_eq!(used, body.len());
            (judged.topic_name().to_owned(), judged.payload().as_slice().to_vec())
        };
        prop_assert_eq!(found_topic, topic);
        prop_assert_eq!(found_payload, payload);
    }

    #[test]
    fn property_chunks_make_no_difference(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8),
        step in 1usize..50,
    ) {
        let mut bytes = BytesMut::new();
        for body in &bodies {
            let message = Message::new("t", body.clone());
            publish(&mut bytes, &message, &hop(false, Qos::AtMostOnce, &[]));
        }
        let whole = frames(&bytes, bytes.len(), usize::MAX).unwrap();
        prop_assert_eq!(whole.len(), bodies.len());
        prop_assert_eq!(frames(&bytes, step, usize::MAX).unwrap(), whole);
    }

    #[test]
    fn property_a_judges_subscribe_and_connect_read_the_same(
        filter in "[a-z+/]{1,20}",
        id in "[a-z0-9]{0,30}",
        clean: bool,
        keep_alive: u16,
    ) {
        let packet = v5_0::Connect::builder()
            .client_id(id.as_str()).unwrap()
            .clean_start(clean)
            .keep_alive(keep_alive)
            .will_message("w/t", b"gone".to_vec(), mqtt_protocol_core::mqtt::packet::Qos::AtLeastOnce, true).unwrap()
            .build().unwrap();
        let bytes = packet.to_continuous_buffer();
        let found = frames(&bytes, 3, usize::MAX).unwrap();
        let read = connect(found[0].0, &found[0].1).unwrap();
        prop_assert_eq!((read.client_id, read.clean, read.keep_alive), (id, clean, keep_alive));
        let will = read.will.unwrap();
        prop_assert_eq!((will.qos, will.retain, will.topic.as_str()), (Qos::AtLeastOnce, true, "w/t"));
        let mut body = vec![0, 9, 0];
        body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
        body.extend(filter.as_bytes());
        body.push(1);
        let Ok(Packet::Subscribe(read)) = decode(0x82, &body, true) else {
            return Err(TestCaseError::fail("not read"));
        };
        prop_assert_eq!(&read.entries[0].filter, &filter);
    }

    #[test]
    fn mutation_no_bytes_make_the_decoder_panic(
        first: u8,
        body in proptest::collection::vec(any::<u8>(), 0..200),
        v5: bool,
    ) {
        let _ = decode(first, &body, v5);
        let _ = connect(first, &body);
        let mut stream = vec![first];
        stream.extend(&body);
        let _ = frames(&stream, 7, 4096);
    }
}

#[test]
fn our_answers_read_the_same_in_the_judge() {
    let mut out = BytesMut::new();
    let sent = Connack {
        user: &[],
        session_present: true,
        code: 0,
        session_expiry: Some(5),
        receive_maximum: Some(10),
        maximum_packet: Some(1000),
        assigned_client_id: Some("auto-1"),
        topic_alias_maximum: Some(3),
        server_keep_alive: Some(60),
        response_information: Some("answers/x"),
        reason: "why",
    };
    connack(&mut out, &sent, true);
    let (judged, used) = v5_0::Connack::parse(&out[2..]).unwrap();
    assert!(judged.session_present());
    assert_eq!(used, out.len() - 2);
    out.clear();
    suback(&mut out, 9, &[0, 1, 2, 0x87], true);
    let (judged, used) = v5_0::Suback::parse(&out[2..]).unwrap();
    assert_eq!(
        (judged.packet_id(), judged.reason_codes().len(), used),
        (9, 4, out.len() - 2)
    );
    out.clear();
    unsuback(&mut out, 9, &[0, 0x11], true);
    assert_eq!(v5_0::Unsuback::parse(&out[2..]).unwrap().1, out.len() - 2);
    out.clear();
    suback(&mut out, 9, &[0x80], false);
    assert_eq!(v3_1_1::Suback::parse(&out[2..]).unwrap().1, out.len() - 2);
    out.clear();
    unsuback(&mut out, 9, &[0x11], false);
    assert_eq!(&out[..], [0xB0, 2, 0, 9]);
    out.clear();
    for why in ["", code::text(code::TAKEN_OVER)] {
        out.clear();
        disconnect(&mut out, code::TAKEN_OVER, why);
        assert_eq!(v5_0::Disconnect::parse(&out[2..]).unwrap().1, out.len() - 2);
    }
    out.clear();
    ack_why(&mut out, AckKind::Puback, 9, 0x87, "no");
    assert_eq!(v5_0::Puback::parse(&out[2..]).unwrap().1, out.len() - 2);
    for kind in [
        AckKind::Puback,
        AckKind::Pubrec,
        AckKind::Pubrel,
        AckKind::Pubcomp,
    ] {
        out.clear();
        ack(&mut out, kind, 9, 0x92, true);
        let (first, body) = frames(&out, 1, 100).unwrap().remove(0);
        if matches!(kind, AckKind::Pubrel | AckKind::Pubcomp) {
            let Ok(Packet::Ack(read)) = decode(first, &body, true) else {
                panic!("{kind:?}");
            };
            assert_eq!((read.kind, read.packet_id, read.code), (kind, 9, 0x92));
        }
    }
}

#[test]
fn mqtt_1_5_5_1_lengths_have_one_form_and_a_bound() {
    assert_eq!(frames(&[0xC0, 0x80, 0x00], 1, 100), Err(Fault::Malformed));
    assert_eq!(
        frames(&[0xC0, 0x80, 0x80, 0x80, 0x80, 1], 1, 100),
        Err(Fault::Malformed)
    );
    assert_eq!(
        frames(&[0xC0, 0xFF, 0xFF, 0xFF, 0x7F], 5, 100),
        Err(Fault::PacketTooLarge)
    );
    assert_eq!(frames(&[0xC0, 0x00], 1, 100), Ok(vec![(0xC0, Vec::new())]));
}

#[test]
fn an_unfinished_frame_keeps_only_what_came() {
    let mut kept = Frames::default();
    let paused = kept.feed(&[0x30, 0xFF, 0xFF, 0x7F, 1, 2, 3], 1 << 28, |_, _| {
        Ok(Flow::Go)
    });
    assert_eq!(paused, Ok(false));
    assert_eq!(kept.held(), 7);
}

#[test]
fn a_pause_keeps_whole_frames_for_later() {
    let mut kept = Frames::default();
    let bytes = [0xC0, 0, 0xC0, 0, 0xC0, 0];
    let mut count = 0;
    let paused = kept.feed(&bytes, 100, |_, _| {
        count += 1;
        Ok(Flow::Pause)
    });
    assert_eq!((paused, count, kept.held()), (Ok(true), 1, 4));
    let paused = kept.feed(&[], 100, |_, _| {
        count += 1;
        Ok(Flow::Go)
    });
    assert_eq!((paused, count, kept.held()), (Ok(false), 3, 0));
}

#[test]
fn mqtt_3_1_2_connect_flags_are_checked() {
    let body = |flags: u8| vec![0, 4, b'M', b'Q', b'T', b'T', 4, flags, 0, 0, 0, 1, b'x'];
    assert!(connect(0x10, &body(2)).is_ok());
    // Reserved bit, will QoS 3, will QoS or retain without a will.
    for flags in [3, 0x1E, 0x0A, 0x22] {
        assert_eq!(
            connect(0x10, &body(flags)).unwrap_err(),
            Fault::Malformed,
            "{flags:#x}"
        );
    }
    // Password without user name [MQTT-3.1.2-22].
    assert!(connect(0x10, &body(0x42)).is_err());
    assert_eq!(connect(0x11, &body(2)).unwrap_err(), Fault::Malformed);
    assert_eq!(connect(0x30, &body(2)).unwrap_err(), Fault::Protocol);
}
