//! One frame to one packet, with every rule that needs no session checked.
//!
//! Called by `session` for each frame. A packet type that only servers send, wrong flag bits, packet
//! id 0, bad UTF-8, properties twice or in the wrong place: all are faults, none is mended.

use bytes::{Bytes, BytesMut};
use mqtt_protocol_core::mqtt::packet::{
    Properties as CoreProperties, Property, RetainHandling, SubEntry, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::MqttError;

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

#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) packet_id: u16,
    pub(crate) id: Option<u32>,
    pub(crate) entries: Vec<Entry>,
}

/// One filter of a SUBSCRIBE, as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) filter: String,
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// 0 = send, 1 = only if new, 2 = never.
    pub(crate) retain_handling: u8,
}

#[derive(Debug)]
pub(crate) struct Unsubscribe {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disconnect {
    pub(crate) code: u8,
    pub(crate) session_expiry: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) v5: bool,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    pub(crate) client_id: String,
    pub(crate) user_name: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
    pub(crate) will: Option<Will>,
    /// Seconds; for 3.1.1: 0 when clean, else for ever.
    pub(crate) session_expiry: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) maximum_packet: u32,
    pub(crate) topic_alias_maximum: u16,
    /// Whether reason strings and user properties may be sent on failures.
    pub(crate) problem_information: bool,
    /// Whether it wants to know where its responses may come to.
    pub(crate) response_information: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) delay: u32,
    pub(crate) expiry: Option<u32>,
    pub(crate) properties: Bytes,
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

/// Decodes the first frame of a connection [MQTT-3.1.0-1].
pub(crate) fn connect(first: u8, body: &[u8]) -> Result<Connect, Fault> {
    if first != 0x10 {
        return Err(if first >> 4 == 1 {
            Fault::Malformed
        } else {
            Fault::Protocol
        });
    }
    let flags = match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4 | 5, flags, ..] => *flags,
        [0, 4, b'M', b'Q', b'T', b'T', _, ..] => return Err(Fault::Version),
        [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => return Err(Fault::Version),
        _ => return Err(Fault::Protocol),
    };
    let v5 = body[6] == 5;
    check_connect_flags(flags)?;
    if v5 {
        connect_v5(flags, body)
    } else {
        connect_v3(flags, body)
    }
}

/// [MQTT-3.1.2-3], [MQTT-3.1.2-11] to [MQTT-3.1.2-15].
fn check_connect_flags(flags: u8) -> Result<(), Fault> {
    let will = flags & 0x04 != 0;
    let qos = (flags >> 3) & 3;
    let retain = flags & 0x20 != 0;
    if flags & 1 != 0 || qos == 3 || (!will && (qos != 0 || retain)) {
        return Err(Fault::Malformed);
    }
    Ok(())
}

fn connect_v3(flags: u8, body: &[u8]) -> Result<Connect, Fault> {
    let (found, used) = v3_1_1::Connect::parse(body).map_err(|error| fault(&error))?;
    whole(used, body)?;
    let will = match (found.will_topic(), found.will_payload()) {
        (Some(name), payload) => Some(will(
            flags,
            name,
            payload.unwrap_or_default(),
            &CoreProperties::new(),
        )?),
        (None, _) => None,
    };
    let clean = found.clean_session();
    Ok(Connect {
        v5: false,
        clean,
        keep_alive: found.keep_alive(),
        client_id: clear(found.client_id())?,
        user_name: found.user_name().map(clear).transpose()?,
        password: found.password().map(<[u8]>::to_vec),
        will,
        session_expiry: if clean { 0 } else { u32::MAX },
        receive_maximum: u16::MAX,
        maximum_packet: u32::MAX,
        topic_alias_maximum: 0,
        problem_information: false,
        response_information: false,
    })
}

fn connect_v5(flags: u8, body: &[u8]) -> Result<Connect, Fault> {
    shortest(body, 10)?;
    let nameless = flags & 0xC0 == 0x40;
    let named;
    let body = if nameless {
        named = with_empty_user_name(body).ok_or(Fault::Malformed)?;
        &named
    } else {
        body
    };
    let (found, used) = v5_0::Connect::parse(body).map_err(|error| fault(&error))?;
    whole(used, body)?;
    let will = match found.will_topic() {
        Some(name) => Some(will(
            flags,
            name,
            found.will_payload().unwrap_or_default(),
            found.will_props(),
        )?),
        None => None,
    };
    let mut connect = Connect {
        v5: true,
        clean: found.clean_start(),
        keep_alive: found.keep_alive(),
        client_id: clear(found.client_id())?,
        user_name: match found.user_name() {
            Some(name) if !nameless => Some(clear(name)?),
            _ => None,
        },
        password: found.password().map(<[u8]>::to_vec),
        will,
        session_expiry: 0,
        receive_maximum: u16::MAX,
        maximum_packet: u32::MAX,
        topic_alias_maximum: 0,
        problem_information: true,
        response_information: false,
    };
    for property in found.props() {
        match property {
            Property::SessionExpiryInterval(value) => connect.session_expiry = value.val(),
            Property::ReceiveMaximum(value) => connect.receive_maximum = value.val(),
            Property::MaximumPacketSize(value) => connect.maximum_packet = value.val(),
            Property::TopicAliasMaximum(value) => connect.topic_alias_maximum = value.val(),
            Property::RequestProblemInformation(value) => {
                connect.problem_information = value.val() != 0;
            }
            Property::RequestResponseInformation(value) => {
                connect.response_information = value.val() != 0;
            }
            Property::AuthenticationMethod(_) | Property::AuthenticationData(_) => {
                return Err(Fault::AuthenticationMethod);
            }
            _ => {}
        }
    }
    // Zero is a protocol error for both [3.1.2.11.3], [3.1.2.11.4].
    if connect.receive_maximum == 0 || connect.maximum_packet == 0 {
        return Err(Fault::Protocol);
    }
    Ok(connect)
}

/// MQTT 5 allows a password without a user name (3.1.2.9); the parser wants one, so it gets an empty one.
fn with_empty_user_name(body: &[u8]) -> Option<Vec<u8>> {
    let mut at = 10;
    let properties = |at: usize| {
        let (length, used) = property::variable(body.get(at..)?)?;
        Some(at + used + length)
    };
    let field = |at: usize| {
        let length: [u8; 2] = body.get(at..at + 2)?.try_into().ok()?;
        Some(at + 2 + usize::from(u16::from_be_bytes(length)))
    };
    at = field(properties(at)?)?;
    if body[7] & 0x04 != 0 {
        at = field(field(properties(at)?)?)?;
    }
    let mut named = [body.get(..at)?, &[0, 0], body.get(at..)?].concat();
    named[7] |= 0x80;
    Some(named)
}

fn will(flags: u8, name: &str, payload: &[u8], props: &CoreProperties) -> Result<Will, Fault> {
    if !topic::is_topic(name) {
        return Err(Fault::TopicName);
    }
    let mut will = Will {
        topic: name.to_owned(),
        payload: Bytes::copy_from_slice(payload),
        qos: Qos::from_bits((flags >> 3) & 3).ok_or(Fault::Malformed)?,
        retain: flags & 0x20 != 0,
        delay: 0,
        expiry: None,
        properties: Bytes::new(),
    };
    let mut forward = BytesMut::new();
    for found in props {
        match found {
            Property::WillDelayInterval(value) => will.delay = value.val(),
            Property::MessageExpiryInterval(value) => will.expiry = Some(value.val()),
            Property::PayloadFormatIndicator(value) => {
                let format = value.val();
                if format == 1 && std::str::from_utf8(payload).is_err() {
                    return Err(Fault::Protocol);
                }
                property::put_format(&mut forward, format);
            }
            Property::ContentType(value) => property::put_content_type(&mut forward, value.val()),
            Property::ResponseTopic(value) => {
                if !topic::is_topic(value.val()) {
                    return Err(Fault::Protocol);
                }
                property::put_response_topic(&mut forward, value.val());
            }
            Property::CorrelationData(value) => {
                property::put_correlation(&mut forward, value.val())
            }
            Property::UserProperty(value) => {
                property::put_user(&mut forward, value.key(), value.val());
            }
            _ => return Err(Fault::Protocol),
        }
    }
    // A will must read back like any other PUBLISH.
    property::check(&forward).map_err(wrong)?;
    will.properties = forward.freeze();
    Ok(will)
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
        property::check_ack(bytes).map_err(wrong)?;
    }
    Ok(ack(code))
}

fn subscribe(body: &[u8], v5: bool) -> Result<Subscribe, Fault> {
    let (packet_id, _) = packet_id(body)?;
    let mut id = None;
    let entries = if v5 {
        shortest(body, 2)?;
        let (found, used) = v5_0::Subscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        for property in found.props() {
            if let Property::SubscriptionIdentifier(value) = property {
                // Zero and a second one are protocol errors [MQTT-3.8.2.1.2].
                if value.val() == 0 || id.is_some() {
                    return Err(Fault::Protocol);
                }
                id = Some(value.val());
            }
        }
        found
            .entries()
            .iter()
            .map(entry)
            .collect::<Result<_, _>>()?
    } else {
        let (found, used) = v3_1_1::Subscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        let entries: Vec<Entry> = found
            .entries()
            .iter()
            .map(entry)
            .collect::<Result<_, _>>()?;
        if entries
            .iter()
            .any(|entry| entry.no_local || entry.retain_as_published || entry.retain_handling != 0)
        {
            // Reserved bits of 3.1.1 [MQTT-3-8.3-4].
            return Err(Fault::Malformed);
        }
        entries
    };
    Ok(Subscribe {
        packet_id,
        id,
        entries,
    })
}

fn entry(found: &SubEntry) -> Result<Entry, Fault> {
    let options = found.sub_opts();
    let no_local = options.nl();
    let filter = some(clear(found.topic_filter())?)?;
    if no_local && filter.starts_with("$share/") {
        // [MQTT-3.8.3-4]
        return Err(Fault::Protocol);
    }
    Ok(Entry {
        filter,
        qos: Qos::from_bits(options.qos() as u8).ok_or(Fault::Malformed)?,
        no_local,
        retain_as_published: options.rap(),
        retain_handling: match options.rh() {
            RetainHandling::SendRetained => 0,
            RetainHandling::SendRetainedIfNotExists => 1,
            RetainHandling::DoNotSendRetained => 2,
        },
    })
}

/// A filter has a character at least [MQTT-4.7.3-1].
fn some(filter: String) -> Result<String, Fault> {
    if filter.is_empty() {
        return Err(Fault::Malformed);
    }
    Ok(filter)
}

fn unsubscribe(body: &[u8], v5: bool) -> Result<Unsubscribe, Fault> {
    let (packet_id, _) = packet_id(body)?;
    let filters: Result<Vec<String>, Fault> = if v5 {
        shortest(body, 2)?;
        let (found, used) = v5_0::Unsubscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        found
            .entries()
            .iter()
            .map(|text| some(clear(text.as_str())?))
            .collect()
    } else {
        let (found, used) = v3_1_1::Unsubscribe::parse(body).map_err(|error| fault(&error))?;
        whole(used, body)?;
        found
            .entries()
            .iter()
            .map(|text| some(clear(text.as_str())?))
            .collect()
    };
    Ok(Unsubscribe {
        packet_id,
        filters: filters?,
    })
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
        shortest(body, 1)?;
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

/// The parser takes a property length of more bytes than needed; we do not [MQTT-1.5.5-1].
fn shortest(body: &[u8], at: usize) -> Result<(), Fault> {
    let rest = body.get(at..).ok_or(Fault::Malformed)?;
    property::variable(rest).map(drop).ok_or(Fault::Malformed)
}

/// The parser may stop early: bytes behind the packet are a fault.
fn whole(used: usize, body: &[u8]) -> Result<(), Fault> {
    if used == body.len() {
        Ok(())
    } else {
        Err(Fault::Malformed)
    }
}

/// NUL is not allowed in any string [MQTT-1.5.4-2].
fn clear(text: &str) -> Result<String, Fault> {
    if text.contains('\0') {
        return Err(Fault::Malformed);
    }
    Ok(text.to_owned())
}

fn packet_id(body: &[u8]) -> Result<(u16, &[u8]), Fault> {
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

fn wrong(wrong: property::Wrong) -> Fault {
    match wrong {
        property::Wrong::Malformed => Fault::Malformed,
        property::Wrong::Protocol => Fault::Protocol,
        property::Wrong::Alias => Fault::TopicAlias,
    }
}

fn fault(error: &MqttError) -> Fault {
    match error {
        MqttError::ProtocolError => Fault::Protocol,
        MqttError::UnsupportedProtocolVersion => Fault::Version,
        MqttError::PacketTooLarge => Fault::PacketTooLarge,
        _ => Fault::Malformed,
    }
}
