//! How to connect, and what the server granted.
//!
//! Called by whoever connects; read by [`super::session`] and [`super::pump`].

use std::net::SocketAddr;
use std::time::Duration;

use super::message::Publish;
use crate::dial::Endpoint;

/// The protocol spoken with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// MQTT 5.
    #[default]
    Five,
    /// MQTT 3.1.1, for foreign brokers: no properties and no reasons. User properties, expiry and
    /// content type of messages are left out, an acknowledgement says nothing of who got it, and a
    /// broker that denies a message may drop it in silence.
    Three,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whom to reach.
    pub endpoint: Endpoint,
    /// What to speak.
    pub version: Version,
    /// The client id; brokers of ours take the certificate's in its place.
    pub client_id: String,
    /// User name and password, for foreign brokers.
    pub login: Option<Login>,
    /// Whether the server forgets an earlier session.
    pub clean_start: bool,
    /// How long the server keeps the session after the connection ends; whole seconds. In MQTT
    /// 3.1.1 zero or for ever.
    pub session_expiry: Duration,
    /// What the server publishes when the connection ends without [`super::Client::disconnect`].
    pub will: Option<Publish>,
    /// The longest silence promised to the server; whole seconds, 1 to 65,535.
    pub keep_alive: Duration,
    /// How often a ping measures the round trip, traffic or not. Lowered to half the keep-alive
    /// in force.
    pub ping_interval: Duration,
    /// No byte from the server for this long while a ping is open: the link is dead.
    pub ping_timeout: Duration,
    /// For name resolution, TCP and TLS, per address; and again for the server's CONNACK.
    pub connect_timeout: Duration,
    /// Messages of QoS 1 published and not yet settled and taken, 1 to [`LARGEST_WINDOW`]; the
    /// server's receive maximum lowers it.
    pub window: u16,
    /// Messages of QoS 1 received and not yet acknowledged; at least 1. A server that sends more
    /// than twice as many breaks the protocol.
    pub receive_maximum: u16,
    /// Messages of QoS 0 received and not yet taken; more are dropped and counted.
    pub loose_bound: u16,
    /// The longest packet accepted, in bytes.
    pub max_packet: u32,
}

/// Packet ids above this belong to subscriptions.
pub const LARGEST_WINDOW: u16 = 60_000;

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
    /// patience, window 256, packets up to 1 MiB.
    #[must_use]
    pub fn new(endpoint: Endpoint, client_id: impl Into<String>) -> Self {
        Self {
            endpoint,
            version: Version::Five,
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

    pub(super) fn keep_alive_secs(&self) -> u16 {
        u16::try_from(self.keep_alive.as_secs())
            .unwrap_or(u16::MAX)
            .max(1)
    }
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
    /// The server takes QoS 1.
    pub acknowledges: bool,
    /// The server keeps retained messages.
    pub retains: bool,
    /// The keep-alive in force.
    pub keep_alive: Duration,
    /// What the server told beside, by name.
    pub user: Vec<(String, String)>,
    /// The address that answered.
    pub peer: SocketAddr,
}
