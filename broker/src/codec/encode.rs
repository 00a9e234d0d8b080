//! Packets to bytes, appended to a connection's output.
//!
//! Called by `session`. A PUBLISH is written straight from the shared message: one copy, no
//! allocation. Nothing here decides; sizes are checked by the caller with [`publish_size`].

use bytes::{BufMut, BytesMut};

use super::AckKind;
use super::property::id;
use crate::{Message, Qos};

/// What a PUBLISH carries beside the message, on this hop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hop<'a> {
    pub(crate) v5: bool,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    /// 0 with QoS 0.
    pub(crate) packet_id: u16,
    /// Seconds left.
    pub(crate) expiry: Option<u32>,
    pub(crate) subscription_ids: &'a [u32],
    /// A topic alias of ours.
    pub(crate) alias: Option<Alias>,
}

/// A topic alias on its way to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) number: u16,
    /// The client knows it: the topic's name is left out [MQTT-3.3.2-12].
    pub(crate) known: bool,
}

impl Hop<'_> {
    fn names_topic(&self) -> bool {
        !self.alias.is_some_and(|alias| alias.known)
    }
}

fn properties_size(message: &Message, hop: &Hop<'_>) -> usize {
    let ids: usize = hop
        .subscription_ids
        .iter()
        .map(|id| 1 + variable_size(*id as usize))
        .sum();
    let expiry = if hop.expiry.is_some() { 5 } else { 0 };
    let alias = if hop.alias.is_some() { 3 } else { 0 };
    message.properties.len() + ids + expiry + alias
}

fn body_size(message: &Message, hop: &Hop<'_>) -> usize {
    let mut size = 2 + message.payload.len();
    if hop.names_topic() {
        size += message.topic.len();
    }
    if hop.qos != Qos::AtMostOnce {
        size += 2;
    }
    if hop.v5 {
        let properties = properties_size(message, hop);
        size += variable_size(properties) + properties;
    }
    size
}

/// Bytes of the whole packet.
pub(crate) fn publish_size(message: &Message, hop: &Hop<'_>) -> usize {
    let body = body_size(message, hop);
    1 + variable_size(body) + body
}

/// Appends a PUBLISH.
pub(crate) fn publish(out: &mut BytesMut, message: &Message, hop: &Hop<'_>) {
    let body = body_size(message, hop);
    out.reserve(5 + body);
    let flags = (u8::from(hop.dup) << 3) | ((hop.qos as u8) << 1) | u8::from(hop.retain);
    out.put_u8(0x30 | flags);
    put_variable(out, body);
    if hop.names_topic() {
        put_prefixed(out, message.topic.as_bytes());
    } else {
        out.put_u16(0);
    }
    if hop.qos != Qos::AtMostOnce {
        out.put_u16(hop.packet_id);
    }
    if hop.v5 {
        put_variable(out, properties_size(message, hop));
        if let Some(seconds) = hop.expiry {
            out.put_u8(id::MESSAGE_EXPIRY);
            out.put_u32(seconds);
        }
        if let Some(alias) = hop.alias {
            out.put_u8(id::TOPIC_ALIAS);
            out.put_u16(alias.number);
        }
        for subscription in hop.subscription_ids {
            out.put_u8(id::SUBSCRIPTION_ID);
            put_variable(out, *subscription as usize);
        }
        out.put_slice(&message.properties);
    }
    out.put_slice(&message.payload);
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP. The code is left out for success and for 3.1.1.
pub(crate) fn ack(out: &mut BytesMut, kind: AckKind, packet_id: u16, code: u8, v5: bool) {
    let first = (kind as u8) << 4 | if kind == AckKind::Pubrel { 2 } else { 0 };
    let [high, low] = packet_id.to_be_bytes();
    if v5 && code != 0 {
        out.put_slice(&[first, 3, high, low, code]);
    } else {
        out.put_slice(&[first, 2, high, low]);
    }
}

/// Appends an acknowledgement of MQTT 5 that says why.
pub(crate) fn ack_why(out: &mut BytesMut, kind: AckKind, packet_id: u16, code: u8, why: &str) {
    let properties = reason_size(why);
    out.put_u8((kind as u8) << 4 | if kind == AckKind::Pubrel { 2 } else { 0 });
    put_variable(out, 3 + variable_size(properties) + properties);
    out.put_u16(packet_id);
    out.put_u8(code);
    put_variable(out, properties);
    put_reason(out, why);
}

/// Bytes of a reason string as a property; none when it is empty.
fn reason_size(why: &str) -> usize {
    if why.is_empty() { 0 } else { 3 + why.len() }
}

fn put_reason(out: &mut BytesMut, why: &str) {
    if !why.is_empty() {
        out.put_u8(id::REASON_STRING);
        put_prefixed(out, why.as_bytes());
    }
}

/// Appends a PINGRESP.
pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xD0, 0]);
}

/// The properties of a CONNACK; `None` = the default, not sent.
#[derive(Debug, Default)]
pub(crate) struct Connack<'a> {
    pub(crate) session_present: bool,
    pub(crate) code: u8,
    pub(crate) session_expiry: Option<u32>,
    pub(crate) receive_maximum: Option<u16>,
    pub(crate) maximum_packet: Option<u32>,
    pub(crate) assigned_client_id: Option<&'a str>,
    pub(crate) topic_alias_maximum: Option<u16>,
    pub(crate) server_keep_alive: Option<u16>,
    pub(crate) user: &'a [(Box<str>, Box<str>)],
    pub(crate) response_information: Option<&'a str>,
    /// Why it is refused; empty = not said.
    pub(crate) reason: &'a str,
}

/// Appends a CONNACK; for 3.1.1 the code is already one of that version's.
pub(crate) fn connack(out: &mut BytesMut, connack: &Connack<'_>, v5: bool) {
    if !v5 {
        out.put_slice(&[0x20, 2, u8::from(connack.session_present), connack.code]);
        return;
    }
    let mut properties = BytesMut::new();
    if let Some(value) = connack.session_expiry {
        properties.put_u8(0x11);
        properties.put_u32(value);
    }
    if let Some(value) = connack.receive_maximum {
        properties.put_u8(0x21);
        properties.put_u16(value);
    }
    if let Some(value) = connack.maximum_packet {
        properties.put_u8(0x27);
        properties.put_u32(value);
    }
    if let Some(value) = connack.assigned_client_id {
        properties.put_u8(0x12);
        put_prefixed(&mut properties, value.as_bytes());
    }
    if let Some(value) = connack.topic_alias_maximum {
        properties.put_u8(0x22);
        properties.put_u16(value);
    }
    if let Some(value) = connack.server_keep_alive {
        properties.put_u8(0x13);
        properties.put_u16(value);
    }
    for (name, value) in connack.user {
        properties.put_u8(0x26);
        put_prefixed(&mut properties, name.as_bytes());
        put_prefixed(&mut properties, value.as_bytes());
    }
    if let Some(value) = connack.response_information {
        properties.put_u8(0x1A);
        put_prefixed(&mut properties, value.as_bytes());
    }
    put_reason(&mut properties, connack.reason);
    out.put_u8(0x20);
    put_variable(out, 2 + variable_size(properties.len()) + properties.len());
    out.put_slice(&[u8::from(connack.session_present), connack.code]);
    put_variable(out, properties.len());
    out.put_slice(&properties);
}

/// Appends a SUBACK.
pub(crate) fn suback(out: &mut BytesMut, packet_id: u16, codes: &[u8], v5: bool) {
    answer(out, 0x90, packet_id, codes, v5);
}

/// Appends an UNSUBACK; 3.1.1 has no codes in it.
pub(crate) fn unsuback(out: &mut BytesMut, packet_id: u16, codes: &[u8], v5: bool) {
    answer(out, 0xB0, packet_id, if v5 { codes } else { &[] }, v5);
}

fn answer(out: &mut BytesMut, first: u8, packet_id: u16, codes: &[u8], v5: bool) {
    out.put_u8(first);
    put_variable(out, 2 + usize::from(v5) + codes.len());
    out.put_u16(packet_id);
    if v5 {
        out.put_u8(0);
    }
    out.put_slice(codes);
}

/// Appends a DISCONNECT; only MQTT 5 servers send one.
pub(crate) fn disconnect(out: &mut BytesMut, code: u8, why: &str) {
    if why.is_empty() {
        out.put_slice(&[0xE0, 1, code]);
        return;
    }
    let properties = reason_size(why);
    out.put_u8(0xE0);
    put_variable(out, 1 + variable_size(properties) + properties);
    out.put_u8(code);
    put_variable(out, properties);
    put_reason(out, why);
}

fn put_prefixed(out: &mut BytesMut, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("checked when the text was taken in");
    out.put_u16(length);
    out.put_slice(bytes);
}

fn put_variable(out: &mut BytesMut, mut value: usize) {
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

fn variable_size(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}
