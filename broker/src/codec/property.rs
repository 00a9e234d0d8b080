//! MQTT 5 properties of PUBLISH: checked once, then kept and passed on as they came.
//!
//! Used by the decoder (with checks), by `message` (trusting what was checked), by the encoder.

use bytes::{BufMut, BytesMut};

/// Property identifiers (MQTT 5, table 2-4) that PUBLISH may carry.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
}

/// What breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Bytes that are no property.
    Malformed,
    /// A property that may not be here, or twice.
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
        if kind != id::USER_PROPERTY {
            let bit = 1u64 << (kind & 63);
            if kind > 63 || seen & bit != 0 {
                return Err(Wrong::Protocol);
            }
            seen |= bit;
        }
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

/// Checks the properties of an acknowledgement: one reason string, any user properties.
pub(crate) fn check_ack(mut rest: &[u8]) -> Result<(), Wrong> {
    let mut reason = false;
    while let Some((&kind, after)) = rest.split_first() {
        let length = match kind {
            id::REASON_STRING if !reason => {
                reason = true;
                let length = prefixed(after)?;
                text(after.get(..length).ok_or(Wrong::Malformed)?).ok_or(Wrong::Malformed)?;
                length
            }
            id::USER_PROPERTY => {
                let length = value_length(kind, after)?;
                pair(&after[..length]).ok_or(Wrong::Malformed)?;
                length
            }
            _ => return Err(Wrong::Protocol),
        };
        rest = &after[length..];
    }
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

/// The length of the value at the head of `rest`, when it is all there and may be in a PUBLISH.
fn value_length(kind: u8, rest: &[u8]) -> Result<usize, Wrong> {
    let length = match kind {
        id::PAYLOAD_FORMAT => 1,
        id::MESSAGE_EXPIRY => 4,
        id::TOPIC_ALIAS => 2,
        id::CONTENT_TYPE | id::RESPONSE_TOPIC | id::CORRELATION_DATA => prefixed(rest)?,
        id::USER_PROPERTY => {
            let name = prefixed(rest)?;
            name + prefixed(rest.get(name..).ok_or(Wrong::Malformed)?)?
        }
        // A client may not send one [MQTT-3.3.4-6].
        id::SUBSCRIPTION_ID => return Err(Wrong::Protocol),
        _ => return Err(Wrong::Protocol),
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
