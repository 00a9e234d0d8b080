//! A message as it travels through the broker: topic, payload, forwardable properties.
//!
//! Made by `session` from a PUBLISH or by the embedding program; shared by reference everywhere.
//! It holds no packet id, no topic alias and no subscription identifier: those belong to one hop.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::Identity;
use crate::codec::property::{self, Properties};

/// Quality of service: how often a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

impl Qos {
    /// 0, 1 or 2; anything else is no QoS.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// One application message.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub(crate) topic: Arc<str>,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Forwardable MQTT 5 properties as they stand on the wire (payload format, content type,
    /// response topic, correlation data, user properties in order), without their length.
    pub(crate) properties: Bytes,
    /// Message expiry interval in seconds, as published.
    pub(crate) expiry: Option<u32>,
    /// When it was accepted, in the broker's own seconds; set by the broker.
    pub(crate) at: u64,
    /// The microsecond of the broker's running time when it came; 0 = it was read from the journal, or
    /// nobody sent it.
    pub(crate) came: u64,
    /// Whose it is, when it is to be kept: it is given to nobody once its owner has lost the right
    /// to publish it. `None` = the embedding program's.
    pub(crate) owner: Option<Arc<Identity>>,
}

impl Message {
    /// A QoS 0 message without properties.
    #[must_use]
    pub fn new(topic: &str, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: Bytes::new(),
            expiry: None,
            at: 0,
            came: 0,
            owner: None,
        }
    }

    /// Sets the quality of service.
    #[must_use]
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// Asks for the message to be kept for later subscribers (an empty payload clears the slot).
    #[must_use]
    pub fn retain(mut self, retain: bool) -> Self {
        self.retain = retain;
        self
    }

    /// Adds a user property; order is kept. Name and value longer than 65,535 bytes are cut off at
    /// a character boundary.
    #[must_use]
    pub fn user_property(mut self, name: &str, value: &str) -> Self {
        let mut properties = BytesMut::from(&self.properties[..]);
        property::put_user(&mut properties, name, value);
        self.properties = properties.freeze();
        self
    }

    /// Sets the content type.
    #[must_use]
    pub fn content_type(mut self, text: &str) -> Self {
        let mut properties = BytesMut::new();
        property::put_content_type(&mut properties, text);
        properties.put_slice(&self.properties);
        self.properties = properties.freeze();
        self
    }

    /// Lets the message expire after so many seconds.
    #[must_use]
    pub fn expires_in(mut self, seconds: u32) -> Self {
        self.expiry = Some(seconds);
        self
    }

    /// The topic name.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The quality of service it was published with.
    #[must_use]
    pub fn quality(&self) -> Qos {
        self.qos
    }

    /// Whether it was published to be kept.
    #[must_use]
    pub fn is_retained(&self) -> bool {
        self.retain
    }

    /// The user properties, in order.
    pub fn user_properties(&self) -> impl Iterator<Item = (&str, &str)> {
        Properties::trusted(&self.properties).user()
    }

    /// The first user property of that name.
    #[must_use]
    pub fn user_value(&self, name: &str) -> Option<&str> {
        self.user_properties()
            .find_map(|(found, value)| (found == name).then_some(value))
    }

    /// The content type, if given.
    #[must_use]
    pub fn content_type_text(&self) -> Option<&str> {
        Properties::trusted(&self.properties).content_type()
    }

    /// The response topic, if given.
    #[must_use]
    pub fn response_topic(&self) -> Option<&str> {
        Properties::trusted(&self.properties).response_topic()
    }

    /// The correlation data, if given.
    #[must_use]
    pub fn correlation_data(&self) -> Option<&[u8]> {
        Properties::trusted(&self.properties).correlation_data()
    }

    /// The message expiry interval it was published with, in seconds.
    #[must_use]
    pub fn expiry_seconds(&self) -> Option<u32> {
        self.expiry
    }

    /// What it counts against a quota, in bytes: content and a flat charge for the bookkeeping.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len() + OVERHEAD
    }

    /// Seconds left to live at `now` (broker seconds): `None` = for ever, `Some(0)` = expired. It lives
    /// its whole time: the second that had begun when it came does not count.
    pub(crate) fn seconds_left(&self, now: u64) -> Option<u32> {
        let expiry = self.expiry?;
        let age = u32::try_from(now.saturating_sub(self.at)).unwrap_or(u32::MAX);
        if expiry == 0 || age > expiry {
            return Some(0);
        }
        Some((expiry - age).max(1))
    }

    pub(crate) fn expired(&self, now: u64) -> bool {
        self.seconds_left(now) == Some(0)
    }
}

/// What a queued message costs beside its content, in bytes (struct, reference counts, queue slot).
const OVERHEAD: usize = 112;

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The payload may be anybody's secret: its length is enough for a log.
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mqtt5_3_3_2_5_a_message_lives_its_whole_time_and_no_second_more_than_begun() {
        let mut message = Message::new("t", "m");
        assert_eq!(message.seconds_left(u64::MAX), None);
        message.at = 10;
        for (expiry, now, left) in [
            (0, 10, 0),
            (1, 10, 1),
            // It may have come at the end of second 10: a moment ago.
            (1, 11, 1),
            (1, 12, 0),
            (6, 13, 3),
            (6, 16, 1),
            (6, 17, 0),
            (u32::MAX, 10, u32::MAX),
        ] {
            message.expiry = Some(expiry);
            assert_eq!(message.seconds_left(now), Some(left), "{expiry} {now}");
            assert_eq!(message.expired(now), left == 0, "{expiry} {now}");
        }
    }
}
