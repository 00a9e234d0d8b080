//! The protocol state of one connection: mqtt-protocol-core's client role and who waits for what.
//!
//! Called by [`super::pump`] alone. No I/O and no clock: bytes in, bytes out, happenings out. Keeps of
//! a message only whom to tell; mqtt-protocol-core's own copy of what is in flight goes with it.

use std::collections::{HashMap, HashSet};

use bytes::BytesMut;
use mqtt_protocol_core::mqtt::Connection;
use mqtt_protocol_core::mqtt::Version as Spoken;
use mqtt_protocol_core::mqtt::common::Cursor;
use mqtt_protocol_core::mqtt::connection::{ConnectionOptions, Event};
use mqtt_protocol_core::mqtt::packet::{GenericPacketTrait, Packet, Property, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::MqttError;
use mqtt_protocol_core::mqtt::role::Client as ClientRole;
use tokio::sync::oneshot;

use super::message::{Incoming, Qos};
use super::options::{LARGEST_WINDOW, Options, Version};
use super::outcome::{Ended, Outcome, ReasonCode};
use super::packet;

/// Who is told what became of a message of QoS 1.
#[derive(Debug)]
pub(super) enum Waiter {
    Tag(u64),
    Once(oneshot::Sender<Outcome>),
}

/// What the server says in its CONNACK.
#[derive(Debug, Clone)]
pub(super) struct Accepted {
    pub(super) session_present: bool,
    pub(super) receive_maximum: u16,
    pub(super) max_packet: u32,
    pub(super) acknowledges: bool,
    pub(super) retains: bool,
    pub(super) keep_alive: Option<u16>,
    pub(super) user: Vec<(String, String)>,
}

impl Accepted {
    /// What holds for a server that says nothing else.
    fn told_nothing(session_present: bool) -> Self {
        Self {
            session_present,
            receive_maximum: u16::MAX,
            max_packet: u32::MAX,
            acknowledges: true,
            retains: true,
            keep_alive: None,
            user: Vec::new(),
        }
    }
}

/// What the bytes of the server amount to.
#[derive(Debug)]
pub(super) enum Happening {
    Accepted(Accepted),
    Refused(ReasonCode),
    Settled {
        id: u16,
        waiter: Waiter,
        outcome: Outcome,
    },
    Incoming(Incoming),
    Pong,
    Ended(Ended),
}

/// The answer to SUBSCRIBE or UNSUBSCRIBE: a code per filter, or why the packet cannot be sent.
pub(super) type Answer = Result<Vec<ReasonCode>, String>;

/// SUBSCRIBE and UNSUBSCRIBE wait for their answers under these ids.
const ASKING_IDS: std::ops::RangeInclusive<u16> = LARGEST_WINDOW + 1..=u16::MAX;

pub(super) struct Session {
    version: Version,
    connection: Connection<ClientRole>,
    accepted: bool,
    open: HashMap<u16, Waiter>,
    /// How many filters were asked for, and who asked.
    asking: HashMap<u16, (usize, oneshot::Sender<Answer>)>,
    /// Received with QoS 1 and not yet acknowledged.
    owed: HashSet<u16>,
    most_owed: usize,
    next_asking: u16,
    /// Bytes to write.
    pub(super) out: BytesMut,
}

impl Session {
    /// Begins with CONNECT in [`Session::out`].
    pub(super) fn begin(options: &Options) -> Result<Self, MqttError> {
        let limits = ConnectionOptions::new().maximum_packet_size_recv(options.max_packet.max(1));
        let spoken = match options.version {
            Version::Five => Spoken::V5_0,
            Version::Three => Spoken::V3_1_1,
        };
        let mut connection = Connection::<ClientRole>::with_options(spoken, limits);
        // The taker of a message decides when it is acknowledged.
        connection.set_auto_pub_response(false);
        let mut session = Self {
            version: options.version,
            connection,
            accepted: false,
            open: HashMap::new(),
            asking: HashMap::new(),
            owed: HashSet::new(),
            most_owed: owed_bound(options),
            next_asking: *ASKING_IDS.start(),
            out: BytesMut::new(),
        };
        // mqtt-protocol-core would insist on the receive maximum to the letter; see `owed_bound`.
        session.send(packet::connect(options, false)?)?;
        session.out.clear();
        session.write(&packet::connect(options, true)?);
        Ok(session)
    }

    /// Whether so many messages wait for our acknowledgement that no more are taken for now.
    pub(super) fn is_full(&self) -> bool {
        self.owed.len() >= self.most_owed
    }

    /// Takes bytes of the server, until it [is full](Self::is_full); how many. After an `Ended` or
    /// `Refused` nothing more may be fed.
    pub(super) fn receive(&mut self, bytes: &[u8], happenings: &mut Vec<Happening>) -> usize {
        let mut cursor = Cursor::new(bytes);
        while (cursor.position() as usize) < bytes.len() && !self.is_full() {
            for event in self.connection.recv(&mut cursor) {
                if let Some(happening) = self.event(event) {
                    let over = matches!(happening, Happening::Ended(_) | Happening::Refused(_));
                    happenings.push(happening);
                    if over {
                        return bytes.len();
                    }
                }
            }
        }
        cursor.position() as usize
    }

    fn event(&mut self, event: Event) -> Option<Happening> {
        match event {
            Event::NotifyPacketReceived(packet) => self.packet(packet),
            Event::RequestSendPacket { packet, .. } => {
                self.write(&packet);
                None
            }
            // Some errors come without a request to close: any error is the end.
            Event::NotifyError(error) => Some(Happening::Ended(Ended::Protocol(error.to_string()))),
            // An error says more and comes in the same batch, unless the peer caused none.
            Event::RequestClose
            | Event::NotifyPacketIdReleased(_)
            | Event::RequestTimerReset { .. }
            | Event::RequestTimerCancel(_) => None,
        }
    }

    fn packet(&mut self, packet: Packet) -> Option<Happening> {
        match packet {
            Packet::V5_0Connack(packet) if !self.accepted => Some(self.connack(&packet)),
            Packet::V3_1_1Connack(packet) if !self.accepted => Some(self.old_connack(&packet)),
            // A second one would change the limits under mqtt-protocol-core's counters.
            Packet::V5_0Connack(_) | Packet::V3_1_1Connack(_) => Some(broke("a second CONNACK")),
            _ if !self.accepted => Some(broke("a packet before CONNACK")),
            Packet::V5_0Puback(packet) => {
                self.puback(packet.packet_id(), packet::puback_code(&packet))
            }
            Packet::V3_1_1Puback(packet) => self.puback(packet.packet_id(), ReasonCode::SUCCESS),
            Packet::V5_0Publish(packet) => Some(self.published(packet::incoming(&packet))),
            Packet::V3_1_1Publish(packet) => Some(self.published(packet::old_incoming(&packet))),
            Packet::V5_0Pingresp(_) | Packet::V3_1_1Pingresp(_) => Some(Happening::Pong),
            Packet::V5_0Suback(packet) => {
                let codes = packet.reason_codes().into_iter().map(|code| code as u8);
                self.answer(packet.packet_id(), codes);
                None
            }
            Packet::V3_1_1Suback(packet) => {
                let codes = packet.return_codes().into_iter().map(|code| code as u8);
                self.answer(packet.packet_id(), codes);
                None
            }
            Packet::V5_0Unsuback(packet) => {
                let codes = packet.reason_codes().into_iter().map(|code| code as u8);
                self.answer(packet.packet_id(), codes);
                None
            }
            Packet::V3_1_1Unsuback(packet) => {
                // It has no codes: all of them are done.
                self.answer(packet.packet_id(), std::iter::repeat(0));
                None
            }
            Packet::V5_0Disconnect(packet) => {
                let code = packet.reason_code().map_or(0, |code| code as u8);
                Some(Happening::Ended(Ended::ByServer(ReasonCode(code))))
            }
            _ => Some(broke("a packet only clients send, or AUTH")),
        }
    }

    fn puback(&mut self, id: u16, code: ReasonCode) -> Option<Happening> {
        let outcome = if code.is_success() {
            Outcome::Acknowledged(code)
        } else {
            Outcome::Refused(code)
        };
        let waiter = self.open.remove(&id)?;
        Some(Happening::Settled {
            id,
            waiter,
            outcome,
        })
    }

    fn published(&mut self, message: Option<Incoming>) -> Happening {
        let Some(message) = message else {
            return broke("a message of QoS 2 nobody subscribed to");
        };
        self.owed.extend(message.packet_id);
        Happening::Incoming(message)
    }

    fn old_connack(&mut self, packet: &v3_1_1::Connack) -> Happening {
        let code = packet::connack_code(packet.return_code());
        if !code.is_success() {
            return Happening::Refused(code);
        }
        self.accepted = true;
        Happening::Accepted(Accepted::told_nothing(packet.session_present()))
    }

    fn connack(&mut self, packet: &v5_0::Connack) -> Happening {
        let code = ReasonCode(packet.reason_code() as u8);
        if !code.is_success() {
            return Happening::Refused(code);
        }
        self.accepted = true;
        let mut accepted = Accepted::told_nothing(packet.session_present());
        for property in packet.props() {
            match property {
                Property::ReceiveMaximum(value) => accepted.receive_maximum = value.val(),
                Property::MaximumPacketSize(value) => accepted.max_packet = value.val(),
                Property::MaximumQos(value) => accepted.acknowledges = value.val() > 0,
                Property::RetainAvailable(value) => accepted.retains = value.val() > 0,
                Property::ServerKeepAlive(value) => accepted.keep_alive = Some(value.val()),
                Property::UserProperty(pair) => {
                    let (name, value) = (pair.key().to_owned(), pair.val().to_owned());
                    accepted.user.push((name, value));
                }
                _ => {}
            }
        }
        Happening::Accepted(accepted)
    }

    fn answer(&mut self, id: u16, codes: impl Iterator<Item = u8>) {
        if let Some((count, asker)) = self.asking.remove(&id) {
            // An asker that went away wants no answer.
            let _ = asker.send(Ok(codes.take(count).map(ReasonCode).collect()));
        }
    }

    /// Sends a message; of QoS 1 with the id the packet carries, which is then open.
    pub(super) fn publish(
        &mut self,
        packet: Packet,
        waiter: Option<Waiter>,
    ) -> Result<(), MqttError> {
        if !self.accepted {
            return Err(MqttError::PacketNotAllowedToSend);
        }
        if let (Some(id), Some(waiter)) = (packet::publish_id(&packet), waiter) {
            self.open.insert(id, waiter);
            self.connection.register_packet_id(id)?;
        }
        self.send(packet)
    }

    /// Acknowledges a message of QoS 1 received. Twice is once: the server would take the second
    /// for a fault.
    pub(super) fn acknowledge(&mut self, id: u16) -> Result<(), MqttError> {
        if !self.owed.remove(&id) {
            return Ok(());
        }
        self.send(packet::puback(self.version, id)?)
    }

    pub(super) fn subscribe(&mut self, filters: &[(String, Qos)], asker: oneshot::Sender<Answer>) {
        let id = self.asking_id();
        let packet = packet::subscribe(self.version, filters, id);
        self.ask(id, packet, (filters.len(), asker));
    }

    pub(super) fn unsubscribe(&mut self, filters: &[String], asker: oneshot::Sender<Answer>) {
        let id = self.asking_id();
        let packet = packet::unsubscribe(self.version, filters, id);
        self.ask(id, packet, (filters.len(), asker));
    }

    /// Ids go round; the mailbox bounds how many ask at once, far below the number of ids.
    fn asking_id(&mut self) -> u16 {
        let id = self.next_asking;
        self.next_asking = id.checked_add(1).unwrap_or(*ASKING_IDS.start());
        id
    }

    fn ask(
        &mut self,
        id: u16,
        packet: Result<Packet, MqttError>,
        (count, asker): (usize, oneshot::Sender<Answer>),
    ) {
        let sent = packet.and_then(|packet| {
            self.connection.register_packet_id(id)?;
            self.send(packet)
        });
        match sent {
            Ok(()) => {
                self.asking.insert(id, (count, asker));
            }
            Err(error) => {
                let _ = asker.send(Err(error.to_string()));
            }
        }
    }

    pub(super) fn ping(&mut self) -> Result<(), MqttError> {
        self.send(packet::ping(self.version))
    }

    pub(super) fn disconnect(&mut self) -> Result<(), MqttError> {
        self.send(packet::disconnect(self.version)?)
    }

    /// Everybody still waiting for a message's outcome.
    pub(super) fn abandon(&mut self) -> Vec<Waiter> {
        self.asking.clear();
        self.open.drain().map(|(_, waiter)| waiter).collect()
    }

    fn send(&mut self, packet: Packet) -> Result<(), MqttError> {
        for event in self.connection.send(packet) {
            match event {
                Event::RequestSendPacket { packet, .. } => self.write(&packet),
                Event::NotifyError(error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&mut self, packet: &Packet) {
        self.out.extend_from_slice(&packet.to_continuous_buffer());
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("accepted", &self.accepted)
            .field("open", &self.open.len())
            .field("out", &self.out.len())
            .finish_non_exhaustive()
    }
}

/// How many messages of QoS 1 are taken without our acknowledgement: twice what we announce, and one.
/// What is beyond it stays in the socket until some are acknowledged. mosquitto 2.0.11 sends all that
/// waits when a session is resumed, however much that is; a client that insisted on its maximum would
/// be cut off from its session for ever.
pub(super) fn owed_bound(options: &Options) -> usize {
    2 * usize::from(options.receive_maximum.max(1)) + 1
}

fn broke(what: &str) -> Happening {
    Happening::Ended(Ended::Protocol(what.to_owned()))
}
