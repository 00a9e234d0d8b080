//! How things end: connects, messages, subscriptions, connections.
//!
//! Called by every user of the MQTT client. Codes are those of MQTT 5 and come through unchanged.

use std::time::Duration;

use crate::dial::DialError;

/// An MQTT 5 reason code as it came over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Done.
    pub const SUCCESS: Self = Self(0);

    /// Whether it tells success (below 0x80).
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 < 0x80
    }

    const fn meaning(self) -> &'static str {
        match self.0 {
            0x00 => "success",
            0x10 => "no matching subscribers",
            0x80 => "unspecified error",
            0x81 => "malformed packet",
            0x82 => "protocol error",
            0x84 => "protocol version not supported",
            0x85 => "client id not valid",
            0x86 => "bad user name or password",
            0x87 => "not authorised",
            0x88 => "server unavailable",
            0x89 => "server busy",
            0x8a => "banned",
            0x8b => "server shutting down",
            0x8d => "keep-alive timeout",
            0x8e => "session taken over",
            0x8f => "topic filter invalid",
            0x90 => "topic name invalid",
            0x93 => "receive maximum exceeded",
            0x95 => "packet too large",
            0x96 => "message rate too high",
            0x97 => "quota exceeded",
            0x98 => "administrative action",
            0x99 => "payload format invalid",
            0x9a => "retain not supported",
            0x9b => "QoS not supported",
            0x9c => "use another server",
            0x9d => "server moved",
            0x9e => "shared subscriptions not supported",
            0x9f => "connection rate exceeded",
            0xa2 => "wildcard subscriptions not supported",
            _ => "other reason",
        }
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (0x{:02x})", self.meaning(), self.0)
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address led to the server.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// An option cannot be put in a CONNECT packet. Misuse by the caller.
    #[error("the connect options cannot be sent: {0}")]
    BadOptions(String),
    /// The server refused, by MQTT 5 reason code.
    #[error("the server refused the connection: {0}")]
    Refused(ReasonCode),
    /// No CONNACK in time.
    #[error("the server did not answer CONNECT within {0:?}")]
    Timeout(Duration),
    /// The server ended the connection, or spoke no MQTT 5, before accepting it. With TLS 1.3 this
    /// is also how it refuses our certificate.
    #[error("the server ended the connection before accepting it: {0}")]
    Broken(String),
}

/// What became of a message of QoS 1, by the tag the caller gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The caller's tag from [`super::Publish::tag`].
    pub tag: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a message of QoS 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server took it over. The code tells whether anybody was subscribed (0x10: nobody).
    Acknowledged(ReasonCode),
    /// The server refused it and will not deliver it.
    Refused(ReasonCode),
    /// The connection ended first: the server may have it or not.
    Lost,
}

/// Why a message was not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The connection has ended; nothing was sent.
    #[error("the connection has ended")]
    Closed,
    /// The message cannot be a PUBLISH packet for this server. Misuse by the caller.
    #[error("the message cannot be published: {0}")]
    BadMessage(String),
    /// Longer than the server's maximum packet size: it would close the connection.
    #[error("the message of {size} bytes is over the server's limit of {limit}")]
    TooLarge {
        /// Size of the packet.
        size: usize,
        /// The server's maximum.
        limit: u32,
    },
}

/// Why a subscription was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
    /// A filter is not one. Misuse by the caller.
    #[error("the subscription cannot be sent: {0}")]
    BadFilter(String),
    /// The server refused a filter.
    #[error("the server refused the subscription to {filter}: {code}")]
    Refused {
        /// The first filter refused.
        filter: String,
        /// Why.
        code: ReasonCode,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// By our own [`super::Client::disconnect`].
    #[error("we disconnected")]
    ByUs,
    /// The server sent DISCONNECT.
    #[error("the server disconnected us: {0}")]
    ByServer(ReasonCode),
    /// Not a byte for the ping timeout: silently cut or hung.
    #[error("the server has been silent for {0:?}")]
    Silent(Duration),
    /// The stream ended or failed.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}
