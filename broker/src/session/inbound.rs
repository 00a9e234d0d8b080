//! What a client sends, turned into deliveries, entries for the journal, and acknowledgements.
//!
//! Fed frame by frame by `run` between two awaits; does no I/O itself. Acknowledgements leave in the
//! order of the publishes [MQTT-4.6.0-2]; those of journalled messages wait for their outcome.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedMutexGuard;
use tracing::warn;

use super::delivered::Delivered;
use super::inflight::Step;
use super::keepsake::Keepsake;
use super::registry::{Held, consumer};
use crate::codec::{
    self, Ack, AckKind, Disconnect, Fault, Flow, Packet, Publish, Subscribe, Unsubscribe, code,
};
use crate::exchange::{ConsumerId, Mailbox, Rest, Route, TailRow};
use crate::journal::{Entry, Stamp, StoredRow};
use crate::rare::Rare;
use crate::shared::Core;
use crate::{Identity, Message, Qos, rights};

/// Topics whose route and right one connection remembers.
const REMEMBERED_TOPICS: usize = 16;
/// Entries handed to the journal at once.
const ENTRIES: usize = 256;
/// Messages delivered at once.
const RUN: usize = 1024;
/// Operations one connection may have at the journal before it stops reading.
pub(super) const OUTSTANDING: usize = 4;

/// One connection's protocol state.
pub(crate) struct Client {
    pub(super) core: Arc<Core>,
    pub(super) held: OwnedMutexGuard<Held>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) identity: Arc<Identity>,
    pub(super) v5: bool,
    /// QoS 1 and 2 messages the client takes at once.
    pub(super) window: usize,
    /// The largest packet the client takes.
    pub(super) max_packet: usize,
    /// Whether failures are explained to it [MQTT-3.1.2-29].
    pub(super) reasons: bool,
    /// Topic aliases of ours that it takes.
    pub(super) alias_max: u16,
    pub(super) out: BytesMut,
    /// Something slow that the last frame asked for.
    pub(super) slow: Option<Box<Slow>>,
    /// A whole packet came since this was last looked at [MQTT-3.1.2-22].
    pub(super) heard: bool,
    /// A packet came by which more may go out than before, or other than what is shown is under way.
    pub(super) acted: bool,
    /// A receiver's queue is getting full: let others run.
    pub(super) crowded: bool,
    /// Who got something that is acknowledged now: it comes before the acknowledgement.
    pub(super) served: Option<Arc<Mailbox>>,
    /// What waits for receivers that are busy: nothing more is read before.
    pub(super) rest: Rare<Vec<Rest>>,
    /// Subscriptions whose retained messages are on their way.
    pub(super) keepsakes: Rare<VecDeque<Keepsake>>,
    /// Operations at the journal whose outcome is to come, and when those with publishes were handed in.
    pub(super) outstanding: usize,
    pub(super) handed: Rare<VecDeque<std::time::Instant>>,
    /// A row taken that has to wait for its packet id.
    pub(super) stalled: Option<Box<TailRow>>,
    /// Rows taken that wait until the journal has it that they are sent, and up to where it is to say so.
    pub(super) unmarked: Rare<Vec<StoredRow>>,
    pub(super) to_mark: Option<u64>,
    /// What it remembers of topics; a connection that is merely there has none.
    pub(super) memory: Option<Box<Memory>>,
    pub(super) slots: Rare<VecDeque<Slot>>,
    /// Incoming QoS 2 ids whose PUBCOMP waits for the journal.
    pub(super) completing: Rare<VecDeque<u16>>,
    pub(super) entries: Rare<Vec<Entry>>,
    pub(super) settled: Rare<Vec<u64>>,
    pub(super) releasing: Rare<Vec<u64>>,
    pub(super) forgotten: Rare<Vec<u16>>,
    /// PINGREQs to be answered.
    pings: usize,
    denied_before: bool,
    pub(super) denied_filter_before: bool,
    /// Broker seconds of this read, and microseconds of running time.
    now: u64,
    came: u64,
    /// What was made into output, and when it came.
    pub(super) delivered_to: Delivered,
}

/// What a connection remembers of topics, and what it gathers for one.
#[derive(Default)]
pub(super) struct Memory {
    /// Our aliases that the client knows.
    pub(super) known_aliases: HashMap<Arc<str>, u16>,
    /// Whether it may receive them, as of a generation.
    pub(super) receivable: HashMap<Arc<str>, bool>,
    pub(super) receivable_of: u64,
    /// The last of these that it may receive.
    pub(super) last_received: Option<Arc<str>>,
    /// Where they go and whether it may publish them, as of a generation.
    topics: HashMap<Arc<str>, (Arc<Route>, bool)>,
    topics_of: u64,
    /// The one of these that was last published: most clients have no other.
    last: Option<(Arc<str>, Arc<Route>, bool)>,
    /// The client's own aliases.
    aliases: HashMap<u16, Arc<str>>,
    run: Option<Run>,
}

/// What needs the journal or ends the connection.
#[derive(Debug)]
pub(super) enum Slow {
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Disconnect(Disconnect),
}

/// An acknowledgement that is due in this place.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) qos: Qos,
    pub(super) packet_id: u16,
    /// `None` until the journal has spoken.
    pub(super) code: Option<u8>,
}

/// Messages of one topic and QoS that need no commit.
pub(super) struct Run {
    route: Arc<Route>,
    messages: Vec<Arc<Message>>,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) v5: bool,
    pub(super) window: usize,
    pub(super) max_packet: usize,
    pub(super) reasons: bool,
    pub(super) alias_max: u16,
}

/// Also of a task that was aborted, and before the session's next connection has its turn (`held`).
impl Drop for Client {
    fn drop(&mut self) {
        self.mailbox.leaves();
    }
}

impl Client {
    pub(super) fn new(core: Arc<Core>, held: OwnedMutexGuard<Held>, terms: Terms) -> Self {
        Self {
            mailbox: Arc::clone(&held.mailbox),
            identity: held.identity(),
            core,
            held,
            v5: terms.v5,
            window: terms.window,
            max_packet: terms.max_packet,
            reasons: terms.reasons,
            alias_max: terms.alias_max,
            out: BytesMut::new(),
            slow: None,
            heard: false,
            acted: false,
            crowded: false,
            served: None,
            rest: Rare::default(),
            keepsakes: Rare::default(),
            outstanding: 0,
            handed: Rare::default(),
            stalled: None,
            unmarked: Rare::default(),
            to_mark: None,
            memory: None,
            slots: Rare::default(),
            completing: Rare::default(),
            entries: Rare::default(),
            settled: Rare::default(),
            releasing: Rare::default(),
            forgotten: Rare::default(),
            pings: 0,
            denied_before: false,
            denied_filter_before: false,
            now: 0,
            came: 0,
            delivered_to: Delivered::default(),
        }
    }

    pub(super) fn client_id(&self) -> &str {
        &self.mailbox.name
    }

    pub(super) fn consumer(&self) -> Option<ConsumerId> {
        consumer(&self.held)
    }

    /// Answers PINGREQs, after whatever was due before them.
    pub(super) fn answer_pings(&mut self) {
        for _ in 0..std::mem::take(&mut self.pings) {
            codec::pingresp(&mut self.out);
        }
    }

    /// Before the frames of one read.
    pub(super) fn begin_read(&mut self) {
        (self.now, self.came) = self.core.clock.now_and_micros();
    }

    /// Takes one frame.
    pub(super) fn take(&mut self, first: u8, body: &[u8]) -> Result<Flow, Fault> {
        self.heard = true;
        match codec::decode(first, body, self.v5)? {
            Packet::Publish(publish) => {
                let exactly = publish.qos == Qos::ExactlyOnce;
                self.publish(publish)?;
                self.acted |= exactly || !self.slots.is_empty();
            }
            Packet::Ack(ack) => {
                self.acknowledged(ack)?;
                self.acted = true;
            }
            Packet::Pingreq => self.pings += 1,
            Packet::Subscribe(subscribe) => self.slow = Some(Box::new(Slow::Subscribe(subscribe))),
            Packet::Unsubscribe(unsubscribe) => {
                self.slow = Some(Box::new(Slow::Unsubscribe(unsubscribe)));
            }
            Packet::Disconnect(disconnect) => {
                self.slow = Some(Box::new(Slow::Disconnect(disconnect)));
            }
        }
        let run = self.memory.as_ref().and_then(|memory| memory.run.as_ref());
        let run = run.map_or(0, |run| run.messages.len());
        if self.slow.is_some() || self.entries.len() >= ENTRIES || run >= RUN {
            return Ok(Flow::Pause);
        }
        Ok(Flow::Go)
    }

    fn publish(&mut self, publish: Publish<'_>) -> Result<(), Fault> {
        let topic = self.resolve(&publish)?;
        if publish.qos != Qos::AtMostOnce && self.refuse_or_repeat(&publish)? {
            return Ok(());
        }
        let (route, allowed) = self.route(&topic);
        if !allowed {
            return self.deny(&publish, &topic);
        }
        if publish.properties.text && std::str::from_utf8(publish.payload).is_err() {
            self.core.counters.denied();
            self.slot(&publish, Some(code::PAYLOAD_FORMAT));
            return Ok(());
        }
        self.core.counters.received(1);
        let stamp = self.stamp(&publish);
        let message = Arc::new(Message {
            topic: Arc::clone(&route.topic),
            payload: Bytes::copy_from_slice(publish.payload),
            qos: publish.qos,
            retain: publish.retain,
            expiry: publish.properties.expiry,
            properties: publish.properties.forward.clone().freeze(),
            at: self.now,
            came: self.came,
            owner: publish.retain.then(|| Arc::clone(&self.identity)),
        });
        if self.needs_journal(&publish, &route, stamp.is_some()) {
            self.slot(&publish, None);
            let mut entry = Entry::new(message, route, Some(self.mailbox.key));
            entry.stamp = stamp;
            if publish.qos == Qos::ExactlyOnce {
                entry.received = self
                    .consumer()
                    .map(|consumer| (consumer, publish.packet_id));
            }
            self.entries.push(entry);
        } else {
            let nobody = route.is_empty();
            self.slot(
                &publish,
                Some(if nobody {
                    code::NO_MATCHING_SUBSCRIBERS
                } else {
                    code::SUCCESS
                }),
            );
            self.run_on(route, message);
        }
        Ok(())
    }

    /// Topic aliases, length and depth.
    fn resolve(&mut self, publish: &Publish<'_>) -> Result<Arc<str>, Fault> {
        let limits = &self.core.config.limits;
        let memory = self.memory.get_or_insert_default();
        let topic: Arc<str> = match publish.properties.alias {
            Some(alias) if alias > limits.topic_aliases => return Err(Fault::TopicAlias),
            Some(alias) if publish.topic.is_empty() => {
                Arc::clone(memory.aliases.get(&alias).ok_or(Fault::Protocol)?)
            }
            Some(alias) => {
                let topic: Arc<str> = publish.topic.into();
                memory.aliases.insert(alias, Arc::clone(&topic));
                topic
            }
            None => match &memory.last {
                // What is remembered has been looked at.
                Some((last, ..)) if **last == *publish.topic => return Ok(Arc::clone(last)),
                _ => match memory.topics.get_key_value(publish.topic) {
                    Some((known, _)) => return Ok(Arc::clone(known)),
                    None => publish.topic.into(),
                },
            },
        };
        if topic.len() > limits.topic_bytes || crate::topic::levels(&topic) > limits.topic_levels {
            return Err(Fault::TopicName);
        }
        Ok(topic)
    }

    /// Receive maximum, and QoS 2 duplicates: true when there is nothing more to do.
    fn refuse_or_repeat(&mut self, publish: &Publish<'_>) -> Result<bool, Fault> {
        let id = publish.packet_id;
        if publish.qos == Qos::ExactlyOnce {
            let waits = |slot: &Slot| slot.qos == Qos::ExactlyOnce && slot.packet_id == id;
            if self
                .slots
                .iter()
                .any(|slot| waits(slot) && slot.code.is_none())
            {
                // Its PUBREC comes with the commit, not before.
                return Ok(true);
            }
            if self.held.received.contains(id) {
                self.slot(publish, Some(code::SUCCESS));
                return Ok(true);
            }
        }
        let open = self.slots.len() + self.held.received.len();
        if self.v5 && open >= usize::from(self.core.config.limits.receive_maximum) {
            return Err(Fault::ReceiveMaximum);
        }
        Ok(false)
    }

    fn route(&mut self, topic: &Arc<str>) -> (Arc<Route>, bool) {
        let generation = self.core.exchange.generation();
        let memory = self.memory.get_or_insert_default();
        if memory.topics_of != generation || memory.topics.len() >= REMEMBERED_TOPICS {
            memory.topics.clear();
            memory.last = None;
            memory.topics_of = generation;
        }
        if let Some((last, route, allowed)) = &memory.last
            && Arc::ptr_eq(last, topic)
        {
            return (Arc::clone(route), *allowed);
        }
        let (route, allowed) = match memory.topics.get(topic) {
            Some((route, allowed)) => (Arc::clone(route), *allowed),
            None => {
                let route = self.core.route(topic);
                let allowed = rights::may_publish(&*self.core.rights, &self.identity, topic);
                let found = (Arc::clone(&route), allowed);
                memory.topics.insert(Arc::clone(&route.topic), found);
                (route, allowed)
            }
        };
        memory.last = Some((Arc::clone(&route.topic), Arc::clone(&route), allowed));
        (route, allowed)
    }

    /// No right: MQTT 5 is told, 3.1.1 is closed when it waits for an answer [MQTT-3.3.5-2].
    fn deny(&mut self, publish: &Publish<'_>, topic: &str) -> Result<(), Fault> {
        self.core.counters.denied();
        if !self.denied_before {
            self.denied_before = true;
            warn!(
                client = self.client_id(),
                topic,
                "publish refused: the client has no right to this topic; further ones of this connection are only counted"
            );
        }
        if publish.qos != Qos::AtMostOnce && !self.v5 {
            return Err(Fault::NotAuthorized);
        }
        self.slot(publish, Some(code::NOT_AUTHORIZED));
        Ok(())
    }

    fn stamp(&self, publish: &Publish<'_>) -> Option<Stamp> {
        if publish.qos == Qos::AtMostOnce || publish.properties.forward.is_empty() {
            return None;
        }
        Some(Stamp {
            number: self.core.stamp(&publish.properties.forward)?,
            sender: Arc::clone(&self.mailbox.name),
            from: Some(Arc::clone(&self.mailbox)),
        })
    }

    /// Whether somebody must have it durably, or order asks to stay behind what is at the journal.
    fn needs_journal(&self, publish: &Publish<'_>, route: &Route, stamped: bool) -> bool {
        let asks = publish.retain || stamped || route.durable(publish.qos);
        let exactly = publish.qos == Qos::ExactlyOnce && self.consumer().is_some();
        let behind =
            publish.qos != Qos::AtMostOnce && (self.outstanding > 0 || !self.entries.is_empty());
        asks || exactly || behind
    }

    /// Notes an acknowledgement; QoS 0 has none.
    fn slot(&mut self, publish: &Publish<'_>, code: Option<u8>) {
        if publish.qos == Qos::AtMostOnce {
            return;
        }
        self.slots.push_back(Slot {
            qos: publish.qos,
            packet_id: publish.packet_id,
            code,
        });
        self.answer_slots();
    }

    fn run_on(&mut self, route: Arc<Route>, message: Arc<Message>) {
        let memory = self.memory.get_or_insert_default();
        if let Some(run) = &mut memory.run
            && Arc::ptr_eq(&run.route, &route)
            && run
                .messages
                .last()
                .is_some_and(|last| last.qos == message.qos)
        {
            run.messages.push(message);
            return;
        }
        self.end_run();
        self.memory.get_or_insert_default().run = Some(Run {
            route,
            messages: vec![message],
        });
    }

    /// Delivers what was gathered.
    pub(super) fn end_run(&mut self) {
        if let Some(run) = self.memory.as_mut().and_then(|memory| memory.run.take()) {
            let publisher = Some(self.mailbox.key);
            let rest = Some(&mut self.rest);
            let counted = run.messages.first();
            if let Some(last) = run.route.targets.last()
                && counted.is_some_and(|first| first.qos != Qos::AtMostOnce)
            {
                self.served = Some(Arc::clone(&last.mailbox));
            }
            self.crowded |= self
                .core
                .deliver(&run.route, publisher, run.messages, true, rest);
        }
    }

    /// An answer of the wrong kind ends the connection [MQTT-4.3.2-2], [MQTT-4.3.3-4]; one to a message
    /// that is not under way changes nothing.
    fn acknowledged(&mut self, ack: Ack) -> Result<(), Fault> {
        let id = ack.packet_id;
        let step = match ack.kind {
            AckKind::Puback => self.held.inflight.acknowledged(id, Qos::AtLeastOnce),
            AckKind::Pubrec if ack.code >= 0x80 => {
                self.held.inflight.acknowledged(id, Qos::ExactlyOnce)
            }
            AckKind::Pubrec => {
                let step = self.held.inflight.received(id);
                if step == Step::Unknown {
                    // The client asks about a message we do not know: let it end its part.
                    let code = code::PACKET_ID_NOT_FOUND;
                    self.put_ack(AckKind::Pubrel, id, code);
                }
                step
            }
            AckKind::Pubcomp => self.held.inflight.completed(id),
            AckKind::Pubrel => {
                self.pubrel(id);
                Step::Nothing
            }
        };
        match step {
            Step::Done(Some(row)) => self.settled.push(row),
            Step::Release(row) => self.releasing.push(row),
            Step::Pubrel => codec::ack(&mut self.out, AckKind::Pubrel, id, 0, self.v5),
            Step::Done(None) | Step::Nothing | Step::Unknown => {}
            Step::Wrong => return Err(Fault::Protocol),
        }
        Ok(())
    }

    fn pubrel(&mut self, id: u16) {
        let known = self.held.received.remove(id);
        if self.consumer().is_some() && known {
            self.completing.push_back(id);
            self.forgotten.push(id);
            return;
        }
        let code = if known {
            code::SUCCESS
        } else {
            code::PACKET_ID_NOT_FOUND
        };
        self.put_ack(AckKind::Pubcomp, id, code);
    }

    /// An acknowledgement, with its reason where that is wanted and fits.
    pub(super) fn put_ack(&mut self, kind: AckKind, id: u16, code: u8) {
        if code >= 0x80 && self.v5 && self.explains() {
            codec::ack_why(&mut self.out, kind, id, code, code::text(code));
        } else {
            codec::ack(&mut self.out, kind, id, code, self.v5);
        }
    }

    /// Whether a reason string may go with a failure: asked for, and small enough for the client.
    pub(super) fn explains(&self) -> bool {
        self.reasons && self.max_packet >= code::TEXT_BYTES
    }

    /// A row that is not sent, for good.
    pub(super) fn settle(&mut self, row: u64) {
        self.settled.push(row);
    }
}
