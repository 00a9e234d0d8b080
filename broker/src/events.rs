//! What happens in the broker, for logs, consoles and alarms: a bounded broadcast.
//!
//! Sent by all rooms; a listener that is too slow loses the oldest and is told how many.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::{Identity, Refusal};

/// Events kept for slow listeners.
pub(crate) const EVENTS_KEPT: usize = 1024;

/// One event.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A client is connected.
    Connected {
        /// Who.
        identity: Identity,
        /// From where.
        address: SocketAddr,
        /// Whether an earlier session goes on.
        resumed: bool,
    },
    /// A client's connection has ended.
    Disconnected {
        /// Who.
        identity: Identity,
        /// Why, in words for a log.
        reason: CutReason,
    },
    /// A CONNECT was refused.
    Refused {
        /// From where.
        address: SocketAddr,
        /// The client id it claimed.
        client_id: Box<str>,
        /// Why.
        refusal: Refusal,
    },
    /// A connection ended before a session began.
    TurnedAway {
        /// From where.
        address: SocketAddr,
        /// Why.
        reason: CutReason,
    },
    /// Messages were dropped for one client or consumer.
    Dropped {
        /// Client id or consumer name.
        name: Arc<str>,
        /// Why.
        reason: DropReason,
        /// How many at this moment.
        count: u64,
    },
    /// Publishes were refused because there is no room.
    JournalFull {
        /// The first topic concerned.
        topic: Arc<str>,
        /// How many at this moment.
        count: u64,
    },
    /// The journal failed; it reopens by itself.
    JournalFailed {
        /// The fault, as one sentence.
        error: Arc<str>,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CutReason {
    /// The client said goodbye.
    Goodbye,
    /// The client said goodbye and asked for its will.
    GoodbyeWithWill,
    /// The other end closed without a word.
    Closed,
    /// The network failed.
    Network,
    /// Nothing came in one and a half keep-alive times.
    KeepAlive,
    /// CONNECT was not there in time.
    ConnectDeadline,
    /// The TLS handshake failed.
    Tls,
    /// The WebSocket handshake failed.
    WebSocket,
    /// Bytes that are no MQTT.
    Malformed,
    /// A packet that is not allowed here.
    Protocol,
    /// A packet above the announced size.
    PacketTooLarge,
    /// More unacknowledged messages than announced.
    ReceiveMaximum,
    /// A topic alias out of range or unknown.
    TopicAlias,
    /// A protocol version we do not speak.
    Version,
    /// Enhanced authentication was asked for.
    AuthenticationMethod,
    /// The CONNECT was refused by the rights.
    Refused,
    /// The rights were lost.
    NotAuthorized,
    /// Another connection took the session over.
    TakenOver,
    /// Cut by the operator.
    Administrative,
    /// Too many connections or sessions.
    Quota,
    /// The client read too slowly for what it must be told.
    TooSlow,
    /// The journal failed while a 3.1.1 client waited for it.
    Journal,
    /// The server stops.
    Shutdown,
}

impl CutReason {
    /// Whether the client sent what it may not, and perhaps is sending still.
    pub(crate) fn is_the_clients_fault(self) -> bool {
        matches!(
            self,
            Self::Malformed
                | Self::Protocol
                | Self::PacketTooLarge
                | Self::ReceiveMaximum
                | Self::TopicAlias
        )
    }

    /// Whether it is part of an ordinary day.
    pub(crate) fn is_usual(self) -> bool {
        matches!(
            self,
            Self::Goodbye | Self::Closed | Self::Network | Self::TakenOver | Self::Shutdown
        )
    }
}

impl fmt::Display for CutReason {
    /// What happened, and what can be done about it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Goodbye => "the client said goodbye",
            Self::GoodbyeWithWill => "the client said goodbye and asked for its will",
            Self::Closed => "the other end closed the connection",
            Self::Network => "the network failed",
            Self::KeepAlive => "nothing was heard in one and a half keep-alive times: check the client and the network",
            Self::ConnectDeadline => "no CONNECT came in time: a port scan, or a client that is stuck",
            Self::Tls => "the TLS handshake failed: the client needs a valid certificate of an authority that this door trusts, and must trust ours",
            Self::WebSocket => "the WebSocket handshake failed: the client must ask for the subprotocol mqtt, and its page's origin must be allowed here",
            Self::Malformed => "what came is no MQTT 3.1.1 or 5: update the client",
            Self::Protocol => "the packet is not allowed here by MQTT: update the client",
            Self::PacketTooLarge => "the packet is above the limit: send smaller ones, or raise the packet limit",
            Self::ReceiveMaximum => "more unacknowledged messages than the receive maximum: update the client",
            Self::TopicAlias => "a topic alias above the limit: update the client",
            Self::Version => "the client speaks another MQTT version: it must use 3.1.1 or 5",
            Self::AuthenticationMethod => "the client asks for enhanced authentication, which is not offered",
            Self::Refused => "the CONNECT was refused: check the client's certificate, credentials and client id",
            Self::NotAuthorized => "the client used a topic outside its rights, or lost its rights",
            Self::TakenOver => "another connection with the same client id took the session over",
            Self::Administrative => "cut by the operator",
            Self::Quota => "too many connections or sessions: raise the limit, or find who opens them",
            Self::TooSlow => "the client had read nothing for a while, and the memory for all queues was used up: check the client and the network, or raise `queued_bytes`",
            Self::Journal => "the message journal failed: check the disk",
            Self::Shutdown => "the server stops",
        })
    }
}

/// Why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// The session's memory queue was full.
    QueueFull,
    /// The memory of all queues together was used up, and this was one of the fullest.
    MemoryFull,
    /// The consumer's part of the journal was full.
    JournalFull,
    /// Its time was over.
    Expired,
    /// The receiver has no right to it (any more).
    Rights,
    /// Larger than the receiver takes.
    TooLarge,
    /// QoS 0 for a session that is not connected, or unsent when it ended.
    Offline,
}
