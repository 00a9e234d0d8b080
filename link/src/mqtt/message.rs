//! Messages as the callers of the MQTT client see them.
//!
//! Called by every user of [`super::Client`]. Payloads are shared, never copied by cloning.

use std::time::Duration;

use bytes::Bytes;

/// How hard the two sides try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Sent once, nobody knows (0).
    AtMostOnce,
    /// Sent until acknowledged (1).
    AtLeastOnce,
}

/// A name and a value carried beside the payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserProperty {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// A message to publish. `..Publish::new(topic, payload)` fills the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Topic name, no wildcards.
    pub topic: String,
    /// The message.
    pub payload: Bytes,
    /// Default: at least once.
    pub qos: Qos,
    /// Whether the server keeps it as the topic's last word.
    pub retain: bool,
    /// Carried in this order.
    pub user: Vec<UserProperty>,
    /// After this the server may drop it; whole seconds.
    pub expiry: Option<Duration>,
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// Where an answer is expected.
    pub response_topic: Option<String>,
    /// What the answer must carry.
    pub correlation: Option<Bytes>,
    /// The payload is UTF-8 text.
    pub text: bool,
    /// The caller's mark, by which [`super::Client::settled`] reports; not sent.
    pub tag: u64,
}

impl Publish {
    /// A message of QoS 1 without properties.
    #[must_use]
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            user: Vec::new(),
            expiry: None,
            content_type: None,
            response_topic: None,
            correlation: None,
            text: false,
            tag: 0,
        }
    }

    /// Adds a user property.
    #[must_use]
    pub fn with_user(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.user.push(UserProperty {
            name: name.into(),
            value: value.into(),
        });
        self
    }
}

/// A message received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Topic name.
    pub topic: String,
    /// The message.
    pub payload: Bytes,
    /// As delivered.
    pub qos: Qos,
    /// Its sender asked servers to keep it; also set on a kept message sent for a new subscription.
    pub retain: bool,
    /// The server may have sent it before.
    pub duplicate: bool,
    /// In the sender's order.
    pub user: Vec<UserProperty>,
    /// What is left of its life.
    pub expiry: Option<Duration>,
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// Where an answer is expected.
    pub response_topic: Option<String>,
    /// What the answer must carry.
    pub correlation: Option<Bytes>,
    /// Its packet id, for the acknowledgement of QoS 1.
    pub(super) packet_id: Option<u16>,
}

impl Incoming {
    /// The value of the first user property of that name.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&str> {
        self.user
            .iter()
            .find(|property| property.name == name)
            .map(|property| property.value.as_str())
    }
}
