//! The first frame of a connection: CONNECT, its will, and every rule of theirs that needs no session.
//!
//! Called by `session` before there is one. A CONNECT that breaks a rule of its form gets no answer,
//! except for its version and its authentication method.

use bytes::{Bytes, BytesMut};
use mqtt_protocol_core::mqtt::packet::{Properties as CoreProperties, Property, v3_1_1, v5_0};

use super::decode::{clear, fault, placed, whole, wrong};
use super::property::place;
use super::{Fault, property};
use crate::{Qos, topic};

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
        [0, 4, b'M', b'Q', b'T', b'T', 4 | 5] => return Err(Fault::Malformed),
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
    check_properties(flags, body)?;
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

/// The properties of CONNECT and of its will.
fn check_properties(flags: u8, body: &[u8]) -> Result<(), Fault> {
    let id = placed(place::CONNECT, body, 10)?;
    if flags & 0x04 != 0 {
        let properties = field(body, id).ok_or(Fault::Malformed)?;
        placed(place::WILL, body, properties)?;
    }
    Ok(())
}

/// Where a field with its length before it ends.
fn field(body: &[u8], at: usize) -> Option<usize> {
    let length: [u8; 2] = body.get(at..at + 2)?.try_into().ok()?;
    Some(at + 2 + usize::from(u16::from_be_bytes(length)))
}

/// MQTT 5 allows a password without a user name (3.1.2.9); the parser wants one, so it gets an empty one.
fn with_empty_user_name(body: &[u8]) -> Option<Vec<u8>> {
    let properties = |at: usize| {
        let (length, used) = property::variable(body.get(at..)?)?;
        Some(at + used + length)
    };
    let mut at = field(body, properties(10)?)?;
    if body[7] & 0x04 != 0 {
        at = field(body, field(body, properties(at)?)?)?;
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
