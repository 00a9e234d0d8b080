//! MQTT 5 properties: which may stand in which packet, and those of PUBLISH, which are checked once, then
//! kept and passed on as they came.
//!
//! Used by the decoder (with checks), by `message` (trusting what was checked), by the encoder.

use bytes::{BufMut, BytesMut};

/// Property identifiers (MQTT 5, table 2-4) that a client may send.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET: u8 = 0x27;
}

/// What may stand in a packet of a client.
pub(crate) mod place {
    use super::id::*;

    pub(crate) const CONNECT: &[u8] = &[
        SESSION_EXPIRY,
        AUTHENTICATION_METHOD,
        AUTHENTICATION_DATA,
        PROBLEM_INFORMATION,
        RESPONSE_INFORMATION,
        RECEIVE_MAXIMUM,
        TOPIC_ALIAS_MAXIMUM,
        USER_PROPERTY,
        MAXIMUM_PACKET,
    ];
    pub(crate) const WILL: &[u8] = &[
        PAYLOAD_FORMAT,
        MESSAGE_EXPIRY,
        CONTENT_TYPE,
        RESPONSE_TOPIC,
        CORRELATION_DATA,
        WILL_DELAY,
        USER_PROPERTY,
    ];
    pub(crate) const ACK: &[u8] = &[REASON_STRING, USER_PROPERTY];
    pub(crate) const SUBSCRIBE: &[u8] = &[SUBSCRIPTION_ID, USER_PROPERTY];
    pub(crate) const UNSUBSCRIBE: &[u8] = &[USER_PROPERTY];
    pub(crate) const DISCONNECT: &[u8] = &[
        SESSION_EXPIRY,
        SERVER_REFERENCE,
        REASON_STRING,
        USER_PROPERTY,
    ];
}

/// What breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Bytes that are no property, or one that this packet does not have (section 2.2.2.2).
    Malformed,
    /// A property twice, or with a value that is forbidden.
    Protocol,
    /// A topic alias of zero.
    Alias,
}

/// The checked properties of a received PUBLISH.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) expiry: Option<u32>,
    pub(crate) alias: Option<u16>,
    /// The payload is said to be UTF-8.
    pub(crate) text: bool,
    /// What is to be passed on, in the order it came.
    pub(crate) forward: BytesMut,
}

/// Checks every property of a PUBLISH from a client [MQTT-3.3.2-4 and following].
pub(crate) fn check(mut rest: &[u8]) -> Result<Checked, Wrong> {
    let mut checked = Checked::default();
    let mut seen = 0u64;
    while let Some((&kind, after)) = rest.split_first() {
        match kind {
            id::PAYLOAD_FORMAT..=id::CONTENT_TYPE
            | id::RESPONSE_TOPIC
            | id::CORRELATION_DATA
            | id::TOPIC_ALIAS
            | id::USER_PROPERTY => {}
            // PUBLISH has it, but not from a client [MQTT-3.3.4-6].
            id::SUBSCRIPTION_ID => return Err(Wrong::Protocol),
            _ => return Err(Wrong::Malformed),
        }
        once(kind, &mut seen)?;
        let length = value_length(kind, after)?;
        let (value, next) = after.split_at(length);
        match kind {
            id::PAYLOAD_FORMAT => match value {
                [0] => {}
                [1] => checked.text = true,
                _ => return Err(Wrong::Protocol),
            },
            id::MESSAGE_EXPIRY => checked.expiry = number(value),
            id::TOPIC_ALIAS => match value {
                [0, 0] => return Err(Wrong::Alias),
                [high, low] => checked.alias = Some(u16::from_be_bytes([*high, *low])),
                _ => return Err(Wrong::Malformed),
            },
            id::RESPONSE_TOPIC => {
                let topic = text(value).ok_or(Wrong::Malformed)?;
                if !crate::topic::is_topic(topic) {
                    return Err(Wrong::Protocol);
                }
            }
            id::CONTENT_TYPE => {
                text(value).ok_or(Wrong::Malformed)?;
            }
            id::USER_PROPERTY => {
                pair(value).ok_or(Wrong::Malformed)?;
            }
            _ => {}
        }
        if !matches!(kind, id::MESSAGE_EXPIRY | id::TOPIC_ALIAS) {
            checked.forward.put_slice(&rest[..=length]);
        }
        rest = next;
    }
    Ok(checked)
}

/// Properties that were checked before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    pub(crate) fn trusted(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn each(self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (&kind, after) = rest.split_first()?;
            let length = value_length(kind, after).ok()?;
            let (value, next) = after.split_at(length);
            rest = next;
            Some((kind, value))
        })
    }

    fn first(self, wanted: u8) -> Option<&'a [u8]> {
        self.each()
            .find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    pub(crate) fn user(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.each()
            .filter(|(kind, _)| *kind == id::USER_PROPERTY)
            .filter_map(|(_, value)| pair(value))
    }

    pub(crate) fn content_type(self) -> Option<&'a str> {
        text(self.first(id::CONTENT_TYPE)?)
    }

    pub(crate) fn response_topic(self) -> Option<&'a str> {
        text(self.first(id::RESPONSE_TOPIC)?)
    }

    pub(crate) fn correlation_data(self) -> Option<&'a [u8]> {
        self.first(id::CORRELATION_DATA)?.get(2..)
    }
}

/// Appends a payload format indicator.
pub(crate) fn put_format(out: &mut BytesMut, format: u8) {
    out.put_slice(&[id::PAYLOAD_FORMAT, format]);
}

/// Appends a response topic.
pub(crate) fn put_response_topic(out: &mut BytesMut, value: &str) {
    out.put_u8(id::RESPONSE_TOPIC);
    put_text(out, value);
}

/// Appends correlation data (at most 65,535 bytes; it came from a packet).
pub(crate) fn put_correlation(out: &mut BytesMut, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.put_u8(id::CORRELATION_DATA);
    out.put_u16(length);
    out.put_slice(&value[..usize::from(length)]);
}

/// Reads a variable byte integer in its shortest form: value and bytes used [MQTT-1.5.5-1].
pub(crate) fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0usize;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return (*byte != 0 || index == 0).then_some((value, index + 1));
        }
    }
    None
}

/// Checks the properties of any packet but PUBLISH by what may stand there: one that may not, or a
/// value that is not of its type, is malformed (section 2.2.2.2); all but user properties stand once.
pub(crate) fn check_in(place: &[u8], mut rest: &[u8]) -> Result<(), Wrong> {
    let mut seen = 0u64;
    while let Some((&kind, after)) = rest.split_first() {
        if !place.contains(&kind) {
            return Err(Wrong::Malformed);
        }
        once(kind, &mut seen)?;
        let (value, next) = after.split_at(value_length(kind, after)?);
        let well = match kind {
            id::USER_PROPERTY => pair(value).is_some(),
            id::CONTENT_TYPE
            | id::RESPONSE_TOPIC
            | id::AUTHENTICATION_METHOD
            | id::SERVER_REFERENCE
            | id::REASON_STRING => text(value).is_some(),
            _ => true,
        };
        if !well {
            return Err(Wrong::Malformed);
        }
        rest = next;
    }
    Ok(())
}

fn once(kind: u8, seen: &mut u64) -> Result<(), Wrong> {
    let bit = 1u64 << (kind & 63);
    if kind != id::USER_PROPERTY && *seen & bit != 0 {
        return Err(Wrong::Protocol);
    }
    *seen |= bit;
    Ok(())
}

/// Appends a user property; over-long parts are cut at a character boundary.
pub(crate) fn put_user(out: &mut BytesMut, name: &str, value: &str) {
    out.put_u8(id::USER_PROPERTY);
    put_text(out, name);
    put_text(out, value);
}

/// Appends a content type.
pub(crate) fn put_content_type(out: &mut BytesMut, value: &str) {
    out.put_u8(id::CONTENT_TYPE);
    put_text(out, value);
}

fn put_text(out: &mut BytesMut, value: &str) {
    let mut end = value.len().min(usize::from(u16::MAX));
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16(u16::try_from(end).unwrap_or(u16::MAX));
    out.put_slice(&value.as_bytes()[..end]);
}

/// The length of the value at the head of `rest`, when it is all there and a client may send it.
fn value_length(kind: u8, rest: &[u8]) -> Result<usize, Wrong> {
    let length = match kind {
        id::PAYLOAD_FORMAT | id::PROBLEM_INFORMATION | id::RESPONSE_INFORMATION => 1,
        id::TOPIC_ALIAS | id::RECEIVE_MAXIMUM | id::TOPIC_ALIAS_MAXIMUM => 2,
        id::MESSAGE_EXPIRY | id::SESSION_EXPIRY | id::WILL_DELAY | id::MAXIMUM_PACKET => 4,
        id::SUBSCRIPTION_ID => variable(rest).ok_or(Wrong::Malformed)?.1,
        id::CONTENT_TYPE
        | id::RESPONSE_TOPIC
        | id::CORRELATION_DATA
        | id::AUTHENTICATION_METHOD
        | id::AUTHENTICATION_DATA
        | id::SERVER_REFERENCE
        | id::REASON_STRING => prefixed(rest)?,
        id::USER_PROPERTY => {
            let name = prefixed(rest)?;
            name + prefixed(rest.get(name..).ok_or(Wrong::Malformed)?)?
        }
        _ => return Err(Wrong::Malformed),
    };
    if length > rest.len() {
        return Err(Wrong::Malformed);
    }
    Ok(length)
}

fn prefixed(rest: &[u8]) -> Result<usize, Wrong> {
    match rest {
        [high, low, ..] => Ok(2 + usize::from(u16::from_be_bytes([*high, *low]))),
        _ => Err(Wrong::Malformed),
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A length-prefixed UTF-8 string without NUL [MQTT-1.5.4-1], [MQTT-1.5.4-2].
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let found = std::str::from_utf8(value.get(2..)?).ok()?;
    (!found.contains('\0')).then_some(found)
}

fn pair(value: &[u8]) -> Option<(&str, &str)> {
    let name = prefixed(value).ok()?;
    if name > value.len() {
        return None;
    }
    let (name, value) = value.split_at(name);
    Some((text(name)?, text(value)?))
}
