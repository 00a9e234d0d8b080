//! An MQTT 5 client for one connection: a pipe that keeps no message for itself.
//!
//! Called by the bridge, the agent and the drill's tools. One [`connect`] is one connection: when it
//! ends, every message not yet settled is reported [`Outcome::Lost`] and the caller, who has the
//! message, sends it again over the next. QoS 0 and 1. Everything is bounded: the in-flight window,
//! the bytes waiting to be written, the messages waiting to be taken.

mod message;

use std::time::Duration;

pub use message::{Incoming, Publish, Qos, UserProperty};

use crate::dial::{DialError, Endpoint};

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whom to reach.
    pub endpoint: Endpoint,
    /// The client id; brokers of ours take the certificate's in its place.
    pub client_id: String,
    /// User name and password, for foreign brokers.
    pub login: Option<Login>,
    /// Whether the server forgets an earlier session.
    pub clean_start: bool,
    /// How long the server keeps the session after the connection ends; whole seconds.
    pub session_expiry: Duration,
    /// What the server publishes when the connection ends without [`Client::disconnect`].
    pub will: Option<Publish>,
    /// The longest silence promised to the server; whole seconds.
    pub keep_alive: Duration,
    /// How often a ping measures the round trip, traffic or not. Never longer than half the
    /// keep-alive.
    pub ping_interval: Duration,
    /// No byte from the server for this long while a ping is open: the link is dead.
    pub ping_timeout: Duration,
    /// For name resolution, TCP, TLS and CONNACK, per address.
    pub connect_timeout: Duration,
    /// Messages of QoS 1 published and not yet settled and taken; the server's receive maximum
    /// lowers it.
    pub window: u16,
    /// Messages of QoS 1 received and not yet acknowledged.
    pub receive_maximum: u16,
    /// Messages of QoS 0 received and not yet taken; more are dropped and counted.
    pub loose_bound: u16,
    /// The longest packet accepted, in bytes.
    pub max_packet: u32,
}

/// User name and password.
#[derive(Clone)]
pub struct Login {
    /// Shown in logs.
    pub user: String,
    /// Never shown.
    pub password: zeroize::Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.user)
    }
}

impl Options {
    /// Usual settings: session of one hour kept, keep-alive 30 s, ping each 2 s with 3 s of
    /// patience, window 256.
    #[must_use]
    pub fn new(endpoint: Endpoint, client_id: impl Into<String>) -> Self {
        Self {
            endpoint,
            client_id: client_id.into(),
            login: None,
            clean_start: false,
            session_expiry: Duration::from_secs(3600),
            will: None,
            keep_alive: Duration::from_secs(30),
            ping_interval: Duration::from_secs(2),
            ping_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(5),
            window: 256,
            receive_maximum: 256,
            loose_bound: 1024,
            max_packet: 1 << 20,
        }
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
    /// The server closed or spoke no MQTT 5 before its CONNACK.
    #[error("the server ended the connection before accepting it: {0}")]
    Broken(String),
}

/// An MQTT 5 reason code as it came over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// Whether it tells success (below 0x80).
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 < 0x80
    }
}

impl std::fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "reason code 0x{:02x}", self.0)
    }
}

/// What became of a message of QoS 1, by the tag the caller gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The caller's tag from [`Publish::tag`].
    pub tag: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a message of QoS 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The server took it over. The code tells whether anybody was subscribed (0x10: nobody).
    Acknowledged(ReasonCode),
    /// The server refused it and it will not be delivered.
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
    /// The message cannot be a PUBLISH packet. Misuse by the caller.
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
    /// By our own [`Client::disconnect`].
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

/// What the server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Whether the server had a session for us (its subscriptions stand).
    pub session_present: bool,
    /// The in-flight window in force.
    pub window: u16,
    /// The longest packet the server takes.
    pub max_packet: u32,
    /// The address that answered.
    pub peer: std::net::SocketAddr,
}

/// The sending side of a connection. Cheap to clone. When the last clone is dropped without
/// [`Client::disconnect`] the connection is cut, and the server publishes the will.
#[derive(Debug, Clone)]
pub struct Client {}

/// The receiving side of a connection: one owner.
#[derive(Debug)]
pub struct Inbox {}

/// Dials and says CONNECT.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(_options: Options) -> Result<(Client, Inbox, Granted), ConnectError> {
    todo!()
}

impl Client {
    /// Hands a message to the connection. QoS 1 waits for a place in the window; how it ended comes
    /// by [`Client::settled`] under the message's tag. QoS 0 is gone with the return.
    ///
    /// # Errors
    /// See [`PublishError`]; nothing was sent then and the tag will not be settled.
    pub async fn publish(&self, _message: Publish) -> Result<(), PublishError> {
        todo!()
    }

    /// As [`Client::publish`] with QoS 1, and waits for the outcome; the tag is not used.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub async fn publish_and_wait(&self, _message: Publish) -> Result<Outcome, PublishError> {
        todo!()
    }

    /// Waits for settled messages and takes all there are (their places in the window become free).
    /// After the end of the connection the rest comes out, the lost ones too, then `None`.
    pub async fn settled(&self) -> Option<Vec<Settled>> {
        todo!()
    }

    /// Subscribes, at most QoS 1; waits for the server's word.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn subscribe(&self, _filters: &[(&str, Qos)]) -> Result<(), SubscribeError> {
        todo!()
    }

    /// Ends subscriptions; waits for the server's word.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub async fn unsubscribe(&self, _filters: &[&str]) -> Result<(), SubscribeError> {
        todo!()
    }

    /// The last measured round trip, `None` before the first.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        todo!()
    }

    /// Pings now and waits for the answer.
    ///
    /// # Errors
    /// Why the connection ended first.
    pub async fn ping(&self) -> Result<Duration, Ended> {
        todo!()
    }

    /// QoS 0 messages dropped since the connection began because nobody took them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        todo!()
    }

    /// Writes what is waiting, says DISCONNECT (no will) and ends the connection.
    pub async fn disconnect(&self) {
        todo!()
    }

    /// Waits for the end of the connection and tells why.
    pub async fn ended(&self) -> Ended {
        todo!()
    }
}

impl Inbox {
    /// The next message, in the server's order; `None` after the end of the connection. A message of
    /// QoS 1 must be handed to [`Inbox::acknowledge`] once its taker has it safe; the server sends
    /// at most `receive_maximum` unacknowledged ones.
    pub async fn next(&mut self) -> Option<Incoming> {
        todo!()
    }

    /// Acknowledges a message of QoS 1; of QoS 0 nothing happens.
    pub async fn acknowledge(&self, _message: &Incoming) {
        todo!()
    }
}
