//! What a client sends, turned into deliveries, entries for the journal, and acknowledgements.
//!
//! Fed frame by frame by `run` between two awaits; does no I/O itself. Acknowledgements leave in the
//! order of the publishes [MQTT-4.6.0-2]; those of journalled messages wait for their outcome.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedMutexGuard;
use tracing::warn;

use super::inflight::Step;
use super::registry::{Held, consumer};
use crate::codec::{
    self, Ack, AckKind, Disconnect, Fault, Flow, Packet, Publish, Subscribe, Unsubscribe, code,
};
use crate::exchange::{ConsumerId, Mailbox, Outcome, Route};
use crate::journal::{Entry, Op, Reply, Stamp};
use crate::shared::Core;
use crate::{CutReason, Identity, Message, Qos};

/// Topics whose route and right one connection remembers.
const REMEMBERED_TOPICS: usize = 16;
/// Entries handed to the journal at once.
const ENTRIES: usize = 256;
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
    pub(super) out: BytesMut,
    /// Something slow that the last frame asked for.
    pub(super) slow: Option<Slow>,
    /// A whole packet came since this was last looked at [MQTT-3.1.2-22].
    pub(super) heard: bool,
    /// A receiver's queue is getting full: let others run.
    pub(super) crowded: bool,
    /// Operations at the journal whose outcome is to come.
    pub(super) outstanding: usize,
    /// A row taken that has to wait for its packet id.
    pub(super) stalled: Option<crate::exchange::TailRow>,
    pub(super) receivable: HashMap<Arc<str>, bool>,
    pub(super) receivable_of: u64,
    topics: HashMap<Arc<str>, (Arc<Route>, bool)>,
    topics_of: u64,
    aliases: HashMap<u16, Arc<str>>,
    slots: VecDeque<Slot>,
    /// Incoming QoS 2 ids whose PUBCOMP waits for the journal.
    completing: VecDeque<u16>,
    run: Option<Run>,
    entries: Vec<Entry>,
    settled: Vec<u64>,
    releasing: Vec<u64>,
    forgotten: Vec<u16>,
    /// PINGREQs to be answered.
    pings: usize,
    denied_before: bool,
    pub(super) denied_filter_before: bool,
    /// Broker seconds of this read.
    now: u64,
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
struct Slot {
    qos: Qos,
    packet_id: u16,
    /// `None` until the journal has spoken.
    code: Option<u8>,
}

/// Messages of one topic and QoS that need no commit.
struct Run {
    route: Arc<Route>,
    messages: Vec<Arc<Message>>,
}

/// How a connection begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) v5: bool,
    pub(super) window: usize,
    pub(super) max_packet: usize,
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
            out: BytesMut::new(),
            slow: None,
            heard: false,
            crowded: false,
            outstanding: 0,
            stalled: None,
            receivable: HashMap::new(),
            receivable_of: 0,
            topics: HashMap::new(),
            topics_of: 0,
            aliases: HashMap::new(),
            slots: VecDeque::new(),
            completing: VecDeque::new(),
            run: None,
            entries: Vec::new(),
            settled: Vec::new(),
            releasing: Vec::new(),
            forgotten: Vec::new(),
            pings: 0,
            denied_before: false,
            denied_filter_before: false,
            now: 0,
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
        self.now = self.core.clock.now();
    }

    /// Takes one frame.
    pub(super) fn take(&mut self, first: u8, body: &[u8]) -> Result<Flow, Fault> {
        self.heard = true;
        match codec::decode(first, body, self.v5)? {
            Packet::Publish(publish) => self.publish(publish)?,
            Packet::Ack(ack) => self.acknowledged(ack),
            Packet::Pingreq => self.pings += 1,
            Packet::Subscribe(subscribe) => self.slow = Some(Slow::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => self.slow = Some(Slow::Unsubscribe(unsubscribe)),
            Packet::Disconnect(disconnect) => self.slow = Some(Slow::Disconnect(disconnect)),
        }
        if self.slow.is_some() || self.entries.len() >= ENTRIES {
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
        let topic: Arc<str> = match publish.properties.alias {
            Some(alias) if alias > limits.topic_aliases => return Err(Fault::TopicAlias),
            Some(alias) if publish.topic.is_empty() => {
                Arc::clone(self.aliases.get(&alias).ok_or(Fault::Protocol)?)
            }
            Some(alias) => {
                let topic: Arc<str> = publish.topic.into();
                self.aliases.insert(alias, Arc::clone(&topic));
                topic
            }
            None => match self.topics.get_key_value(publish.topic) {
                Some((known, _)) => Arc::clone(known),
                None => publish.topic.into(),
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
            if self.held.received.contains(&id) {
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
        if self.topics_of != generation || self.topics.len() >= REMEMBERED_TOPICS {
            self.topics.clear();
            self.topics_of = generation;
        }
        if let Some((route, allowed)) = self.topics.get(topic) {
            return (Arc::clone(route), *allowed);
        }
        let route = self.core.route(topic);
        let allowed = self.core.rights.may_publish(&self.identity, topic);
        self.topics
            .insert(Arc::clone(&route.topic), (Arc::clone(&route), allowed));
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
        if let Some(run) = &mut self.run
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
        self.run = Some(Run {
            route,
            messages: vec![message],
        });
    }

    /// Delivers what was gathered.
    pub(super) fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            let publisher = Some(self.mailbox.key);
            self.crowded |= self.core.deliver(&run.route, publisher, run.messages, true);
        }
    }

    fn acknowledged(&mut self, ack: Ack) {
        let id = ack.packet_id;
        match ack.kind {
            AckKind::Puback => {
                let step = self.held.inflight.acknowledged(id, Qos::AtLeastOnce);
                self.done(step);
            }
            AckKind::Pubrec if ack.code >= 0x80 => {
                let step = self.held.inflight.acknowledged(id, Qos::ExactlyOnce);
                self.done(step);
            }
            AckKind::Pubrec => match self.held.inflight.received(id) {
                Step::Release(row) => self.releasing.push(row),
                Step::Pubrel => codec::ack(&mut self.out, AckKind::Pubrel, id, 0, self.v5),
                Step::Nothing => {}
                Step::Unknown | Step::Done(_) => {
                    // The client asks about a message we do not know: let it end its part.
                    let code = code::PACKET_ID_NOT_FOUND;
                    codec::ack(&mut self.out, AckKind::Pubrel, id, code, self.v5);
                }
            },
            AckKind::Pubcomp => {
                let step = self.held.inflight.completed(id);
                self.done(step);
            }
            AckKind::Pubrel => self.pubrel(id),
        }
    }

    fn pubrel(&mut self, id: u16) {
        let known = self.held.received.remove(&id);
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
        codec::ack(&mut self.out, AckKind::Pubcomp, id, code, self.v5);
    }

    fn done(&mut self, step: Step) {
        // An acknowledgement of nothing changes nothing.
        if let Step::Done(Some(row)) = step {
            self.settled.push(row);
        }
    }

    /// A row that is not sent, for good.
    pub(super) fn settle(&mut self, row: u64) {
        self.settled.push(row);
    }

    /// What is to be handed to the journal now, in this order.
    pub(super) fn operations(&mut self) -> Vec<Op> {
        self.end_run();
        let mut ops = Vec::new();
        if !self.entries.is_empty() {
            let entries = std::mem::take(&mut self.entries);
            // A retained QoS 0 message has no acknowledgement, but a later SUBSCRIBE of this
            // connection must find it.
            let waits = entries
                .iter()
                .any(|entry| entry.message.qos != Qos::AtMostOnce || entry.message.retain);
            if waits {
                self.outstanding += 1;
            }
            ops.push(Op::Accept {
                entries,
                reply: if waits {
                    Reply::Mailbox(Arc::clone(&self.mailbox))
                } else {
                    Reply::None
                },
            });
        }
        let Some(consumer) = self.consumer() else {
            return ops;
        };
        let mailbox = &self.mailbox;
        if !self.settled.is_empty() {
            ops.push(Op::Settle {
                consumer,
                rows: std::mem::take(&mut self.settled),
                answer: None,
            });
        }
        if !self.releasing.is_empty() {
            self.outstanding += 1;
            ops.push(Op::Release {
                consumer,
                rows: std::mem::take(&mut self.releasing),
                mailbox: Arc::clone(mailbox),
            });
        }
        if !self.forgotten.is_empty() {
            self.outstanding += 1;
            ops.push(Op::Forget {
                consumer,
                packet_ids: std::mem::take(&mut self.forgotten),
                codes: Vec::new(),
                mailbox: Arc::clone(mailbox),
            });
        }
        ops
    }

    /// Takes what the journal says. A failed commit ends a 3.1.1 connection, which cannot be told.
    pub(super) fn outcomes(&mut self) -> Result<(), CutReason> {
        while let Some(outcome) = self.mailbox.next_outcome() {
            self.outstanding = self.outstanding.saturating_sub(1);
            match outcome {
                Outcome::Codes(codes) => self.fill_slots(&codes),
                Outcome::Completed(codes) => {
                    for code in codes {
                        if let Some(id) = self.completing.pop_front() {
                            codec::ack(&mut self.out, AckKind::Pubcomp, id, code, self.v5);
                        }
                    }
                }
                Outcome::Released(rows) => {
                    for row in rows {
                        if let Some(id) = self.held.inflight.released(row) {
                            codec::ack(&mut self.out, AckKind::Pubrel, id, 0, self.v5);
                        }
                    }
                }
                Outcome::Failed(count) if self.v5 && self.are_qos_1(count) => {
                    self.fill_slots(&vec![code::UNSPECIFIED; count]);
                }
                // The client comes back and goes on where the journal is: after a failed commit a
                // QoS 2 publish may be in all the same, and only its packet id can tell.
                Outcome::Failed(_) | Outcome::NotCompleted => return Err(CutReason::Journal),
            }
        }
        Ok(())
    }

    /// Whether the next `count` slots without an answer are all QoS 1.
    fn are_qos_1(&self, count: usize) -> bool {
        let mut waiting = self.slots.iter().filter(|slot| slot.code.is_none());
        waiting
            .by_ref()
            .take(count)
            .all(|slot| slot.qos == Qos::AtLeastOnce)
    }

    fn fill_slots(&mut self, codes: &[u8]) {
        let mut waiting = self.slots.iter_mut().filter(|slot| slot.code.is_none());
        for code in codes {
            if let Some(slot) = waiting.next() {
                slot.code = Some(*code);
            }
        }
        self.answer_slots();
    }

    /// Sends the acknowledgements at the head whose time has come.
    fn answer_slots(&mut self) {
        while let Some(slot) = self.slots.front()
            && let Some(code) = slot.code
        {
            let (qos, id) = (slot.qos, slot.packet_id);
            self.slots.pop_front();
            if qos == Qos::ExactlyOnce && code < 0x80 {
                self.held.received.insert(id);
            }
            if !self.v5 && code == code::QUOTA {
                // 3.1.1 cannot say "no": it gets no acknowledgement, and may send again.
                continue;
            }
            let kind = if qos == Qos::ExactlyOnce {
                AckKind::Pubrec
            } else {
                AckKind::Puback
            };
            codec::ack(&mut self.out, kind, id, code, self.v5);
        }
    }
}
