//! Bytes to packets and back.
//!
//! Framing, PUBLISH, the acknowledgements and the pings are our own code (the paths every message
//! takes: no allocation but the message itself, strict about every rule); CONNECT, SUBSCRIBE,
//! UNSUBSCRIBE and DISCONNECT are parsed by mqtt-protocol-core behind stricter checks of ours.
//! Its connection object is not used: it answers QoS 2 duplicates by itself, keeps a second copy of
//! what is in flight, and closes on acknowledgements it did not see go out.
//! Pure: called by `session`, touches no socket and no clock.

mod connect;
mod decode;
mod encode;
mod frame;
#[cfg(test)]
mod fuzz;
pub(crate) mod property;
mod subscribe;
#[cfg(test)]
mod tests;

pub(crate) use connect::{Connect, Will, connect};
pub(crate) use decode::{Ack, AckKind, Disconnect, Packet, Publish, decode};
pub(crate) use encode::{
    Alias, Connack, Hop, ack, ack_why, connack, disconnect, pingresp, publish, publish_size,
    suback, unsuback,
};
pub(crate) use frame::{Flow, Frames};
pub(crate) use subscribe::{Entry, Subscribe, Unsubscribe};

use crate::CutReason;

/// MQTT 5 reason codes that we send (table 2-6).
pub(crate) mod code {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
    pub(crate) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
    pub(crate) const UNSPECIFIED: u8 = 0x80;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL: u8 = 0x82;
    pub(crate) const VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID: u8 = 0x85;
    pub(crate) const BAD_CREDENTIALS: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const BUSY: u8 = 0x89;
    pub(crate) const BANNED: u8 = 0x8A;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8B;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE: u8 = 0x8D;
    pub(crate) const TAKEN_OVER: u8 = 0x8E;
    pub(crate) const FILTER: u8 = 0x8F;
    pub(crate) const TOPIC: u8 = 0x90;
    pub(crate) const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x93;
    pub(crate) const TOPIC_ALIAS: u8 = 0x94;
    pub(crate) const PACKET_TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;
    pub(crate) const ADMINISTRATIVE: u8 = 0x98;
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x99;

    /// Bytes of the longest of the texts below, as a property.
    pub(crate) const TEXT_BYTES: usize = 96;

    /// The reason string that goes with a code: what is wrong, and nothing about anybody else.
    pub(crate) fn text(code: u8) -> &'static str {
        match code {
            UNSPECIFIED => "the server could not do it now; try again",
            MALFORMED => "the packet breaks the rules of its form",
            PROTOCOL => "the packet is not allowed here",
            VERSION => "this server speaks MQTT 3.1.1 and 5",
            CLIENT_ID => "the client id is not valid for this client",
            BAD_CREDENTIALS => "wrong user name or password",
            NOT_AUTHORIZED => "no right to this",
            BUSY => "the server is busy; try again",
            BANNED => "this client is shut out",
            SHUTTING_DOWN => "the server stops",
            AUTHENTICATION_METHOD => "enhanced authentication is not offered",
            KEEP_ALIVE => "nothing was heard in one and a half keep-alive times",
            TAKEN_OVER => "another connection took the session over",
            FILTER => "the topic filter is not valid",
            TOPIC => "the topic name is not valid",
            PACKET_ID_NOT_FOUND => "no message with this packet id is under way",
            RECEIVE_MAXIMUM => "more unacknowledged messages than the receive maximum",
            TOPIC_ALIAS => "the topic alias is zero or above the maximum",
            PACKET_TOO_LARGE => "the packet is larger than the maximum",
            QUOTA => "no room for this",
            ADMINISTRATIVE => "cut by the operator",
            PAYLOAD_FORMAT => "the payload is not UTF-8 as was said",
            _ => "",
        }
    }
}

/// What is wrong with bytes from a client; each ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Malformed,
    Protocol,
    PacketTooLarge,
    TopicAlias,
    ReceiveMaximum,
    TopicName,
    Version,
    AuthenticationMethod,
    NotAuthorized,
}

impl Fault {
    /// The code of the DISCONNECT or CONNACK that tells the client.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Malformed => code::MALFORMED,
            Self::Protocol => code::PROTOCOL,
            Self::PacketTooLarge => code::PACKET_TOO_LARGE,
            Self::TopicAlias => code::TOPIC_ALIAS,
            Self::ReceiveMaximum => code::RECEIVE_MAXIMUM,
            Self::TopicName => code::TOPIC,
            Self::Version => code::VERSION,
            Self::AuthenticationMethod => code::AUTHENTICATION_METHOD,
            Self::NotAuthorized => code::NOT_AUTHORIZED,
        }
    }

    /// How it is counted and logged.
    pub(crate) fn reason(self) -> CutReason {
        match self {
            Self::Malformed => CutReason::Malformed,
            Self::Protocol | Self::TopicName => CutReason::Protocol,
            Self::PacketTooLarge => CutReason::PacketTooLarge,
            Self::TopicAlias => CutReason::TopicAlias,
            Self::ReceiveMaximum => CutReason::ReceiveMaximum,
            Self::Version => CutReason::Version,
            Self::AuthenticationMethod => CutReason::AuthenticationMethod,
            Self::NotAuthorized => CutReason::NotAuthorized,
        }
    }
}
