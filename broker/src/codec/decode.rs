//! One frame to one packet, with every rule that needs no session checked.
//!
//! Called by `session` for each frame after CONNECT (which is `connect`'s). A packet type that only
//! servers send, wrong flag bits, packet id 0, bad UTF-8, properties twice or in the wrong place: all are
//! faults, none is mended.

use mqtt_protocol_core::mqtt::packet::{Property, v5_0};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::subscribe::{Subscribe, Unsubscribe, subscribe, unsubscribe};
use super::{Fault, property};
use crate::{Qos, topic};

/// A packet from a client, after CONNECT.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    Publish(Publish<'a>),
    Ack(Ack),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Pingreq,
    Disconnect(Disconnect),
}

#[derive(Debug)]
pub(crate) struct Publish<'a> {
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Empty when the alias stands for it.
    pub(crate) topic: &'a str,
    /// 0 with QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) properties: property::Checked,
    pub(crate) payload: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckKind {
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) kind: AckKind,
    pub(crate) packet_id: u16,
    pub(crate) code: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnect {
    pub(crate) code: u8,
    pub(crate) session_expiry: Option<u32>,
}

/// Decodes a frame of a connected client.
pub(crate) fn decode(first: u8, body: &[u8], v5: bool) -> Result<Packet<'_>, Fault> {
    match (first >> 4, first & 0x0F) {
        (3, flags) => publish(flags, body, v5).map(Packet::Publish),
        (4, 0) => acknowledgement(AckKind::Puback, body, v5).map(Packet::Ack),
        (5, 0) => acknowledgement(AckKind::Pubrec, body, v5).map(Packet::Ack),
        (6, 2) => acknowledgement(AckKind::Pubrel, body, v5).map(Packet::Ack),
        (7, 0) => acknowledgement(AckKind::Pubcomp, body, v5).map(Packet::Ack),
        (8, 2) => subscribe(body, v5).map(Packet::Subscribe),
        (10, 2) => unsubscribe(body, v5).map(Packet::Unsubscribe),
        (12, 0) if body.is_empty() => Ok(Packet::Pingreq),
        (14, 0) => disconnect(body, v5).map(Packet::Disconnect),
        // A second CONNECT [MQTT-3.1.0-2], or AUTH without a method having been agreed.
        (1, 0) | (15, 0) => Err(Fault::Protocol),
        // What only servers send.
        (2 | 9 | 11 | 13, 0) => Err(Fault::Protocol),
        _ => Err(Fault::Malformed),
    }
}

fn publish(flags: u8, body: &[u8], v5: bool) -> Result<Publish<'_>, Fault> {
    let qos = Qos::from_bits((flags >> 1) & 3).ok_or(Fault::Malformed)?;
    if flags & 8 != 0 && qos == Qos::AtMostOnce {
        // [MQTT-3.3.1-2]
        return Err(Fault::Malformed);
    }
    let (name, rest) = prefixed(body)?;
    let topic = std::str::from_utf8(name).map_err(|_| Fault::Malformed)?;
    if topic.contains('\0') {
        return Err(Fault::Malformed);
    }
    if !topic.is_empty() && !topic::is_topic(topic) {
        return Err(Fault::TopicName);
    }
    let (packet_id, rest) = if qos == Qos::AtMostOnce {
        (0, rest)
    } else {
        packet_id(rest)?
    };
    let (properties, payload) = if v5 {
        let (bytes, payload) = property_bytes(rest)?;
        (property::check(bytes).map_err(wrong)?, payload)
    } else {
        (property::Checked::default(), rest)
    };
    if topic.is_empty() && properties.alias.is_none() {
        // 3.1.1 has no alias; without one an empty name is nobody's topic [MQTT-4.7.3-1].
        return Err(if v5 {
            Fault::Protocol
        } else {
            Fault::Malformed
        });
    }
    Ok(Publish {
        qos,
        retain: flags & 1 != 0,
        topic,
        packet_id,
        properties,
        payload,
    })
}

fn acknowledgement(kind: AckKind, body: &[u8], v5: bool) -> Result<Ack, Fault> {
    let (packet_id, rest) = packet_id(body)?;
    let ack = |code| Ack {
        kind,
        packet_id,
        code,
    };
    if rest.is_empty() {
        return Ok(ack(0));
    }
    if !v5 {
        return Err(Fault::Malformed);
    }
    let code = rest[0];
    let known = match kind {
        AckKind::Puback | AckKind::Pubrec => matches!(
            code,
            0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99
        ),
        AckKind::Pubrel | AckKind::Pubcomp => matches!(code, 0 | 0x92),
    };
    if !known {
        return Err(Fault::Malformed);
    }
    if rest.len() > 1 {
        let (bytes, end) = property_bytes(&rest[1..])?;
        if !end.is_empty() {
            return Err(Fault::Malformed);
        }
        property::check_in(property::place::ACK, bytes).map_err(wrong)?;
    }
    Ok(ack(code))
}

fn disconnect(body: &[u8], v5: bool) -> Result<Disconnect, Fault> {
    let mut disconnect = Disconnect {
        code: 0,
        session_expiry: None,
    };
    if !v5 {
        return if body.is_empty() {
            Ok(disconnect)
        } else {
            Err(Fault::Malformed)
        };
    }
    if body.len() > 1 {
        placed(property::place::DISCONNECT, body, 1)?;
    }
    let (found, used) = v5_0::Disconnect::parse(body).map_err(|error| fault(&error))?;
    whole(used, body)?;
    disconnect.code = found.reason_code().map_or(0, |code| code as u8);
    for property in found.props().iter().flatten() {
        if let Property::SessionExpiryInterval(value) = property {
            disconnect.session_expiry = Some(value.val());
        }
    }
    Ok(disconnect)
}

/// The properties at `at` by the rules of their place, which are stricter than the parser's; where
/// they end.
pub(super) fn placed(place: &[u8], body: &[u8], at: usize) -> Result<usize, Fault> {
    let rest = body.get(at..).ok_or(Fault::Malformed)?;
    let (properties, after) = property_bytes(rest)?;
    property::check_in(place, properties).map_err(wrong)?;
    Ok(body.len() - after.len())
}

/// The parser may stop early: bytes behind the packet are a fault.
pub(super) fn whole(used: usize, body: &[u8]) -> Result<(), Fault> {
    if used == body.len() {
        Ok(())
    } else {
        Err(Fault::Malformed)
    }
}

/// NUL is not allowed in any string [MQTT-1.5.4-2].
pub(super) fn clear(text: &str) -> Result<String, Fault> {
    if text.contains('\0') {
        return Err(Fault::Malformed);
    }
    Ok(text.to_owned())
}

pub(super) fn packet_id(body: &[u8]) -> Result<(u16, &[u8]), Fault> {
    match body {
        // [MQTT-2.2.1-3]
        [0, 0, ..] => Err(Fault::Protocol),
        [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(Fault::Malformed),
    }
}

fn prefixed(body: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let [high, low, rest @ ..] = body else {
        return Err(Fault::Malformed);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > rest.len() {
        return Err(Fault::Malformed);
    }
    Ok(rest.split_at(length))
}

fn property_bytes(rest: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    let (length, used) = property::variable(rest).ok_or(Fault::Malformed)?;
    let rest = &rest[used..];
    if length > rest.len() {
        return Err(Fault::Malformed);
    }
    Ok(rest.split_at(length))
}

pub(super) fn wrong(wrong: property::Wrong) -> Fault {
    match wrong {
        property::Wrong::Malformed => Fault::Malformed,
        property::Wrong::Protocol => Fault::Protocol,
        property::Wrong::Alias => Fault::TopicAlias,
    }
}

pub(super) fn fault(error: &MqttError) -> Fault {
    match error {
        MqttError::ProtocolError => Fault::Protocol,
        MqttError::UnsupportedProtocolVersion => Fault::Version,
        MqttError::PacketTooLarge => Fault::PacketTooLarge,
        _ => Fault::Malformed,
    }
}
