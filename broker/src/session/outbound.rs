//! What waits for a client, turned into bytes within its windows.
//!
//! Called by `run` whenever the mailbox changed or the socket took something. Checks at the last
//! moment: right, expiry, size. Reads the journal's snapshot when memory does not hold the rows.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_store::StoreError;

use super::inbound::Client;
use super::inflight::{Inflight, Kept, Sent, Stage};
use crate::codec::{self, AckKind, Alias, Hop};
use crate::exchange::{Delivery, Options, TailRow, Taken};
use crate::journal::{Journal, StoredRow};
use crate::metrics::Way;
use crate::{DropReason, Message, Qos, rights};

/// Bytes of output above which nothing more is taken from the queues.
pub(super) const OUT_SOFT: usize = 64 << 10;

impl Client {
    /// Moves what waits to the output, as far as window and output bound allow.
    pub(super) fn fill(&mut self, journal: &Journal) -> Result<(), StoreError> {
        while self.out.len() < OUT_SOFT {
            let mut moved = !self.keepsakes.is_empty() && self.bring_retained();
            if let Some(delivery) = self.mailbox.next_fast() {
                self.send_fast(&delivery);
                moved = true;
            }
            if self.held.inflight.resuming() {
                // What is new stays behind what is sent again [MQTT-4.6.0-1].
                moved |= self.send_again(journal)?;
            } else {
                let room = self.room();
                if room > 0
                    && let Some(delivery) = self.mailbox.next_careful(room)
                {
                    self.send_careful(&delivery);
                    moved = true;
                }
                moved |= self.send_rows(journal)?;
            }
            if !moved {
                break;
            }
        }
        Ok(())
    }

    /// QoS 1 and 2 messages that may go out now.
    fn room(&self) -> usize {
        self.window.saturating_sub(self.held.inflight.open())
    }

    /// Sends messages of an earlier connection again, within this one's window and sizes and by today's
    /// rights; true when something was done.
    fn send_again(&mut self, journal: &Journal) -> Result<bool, StoreError> {
        let mut page = VecDeque::new();
        let mut moved = false;
        while self.room() > 0 && self.out.len() < OUT_SOFT && self.held.inflight.resuming() {
            moved = true;
            let Some(sent) = self.held.inflight.first_again() else {
                self.held.inflight.sent_again();
                continue;
            };
            let (packet_id, published) = (sent.packet_id, sent.stage == Stage::Published);
            if let Some(row) = sent.row.filter(|_| published) {
                let stored = self.read_again(journal, &mut page, row)?;
                self.send_row_again(packet_id, stored);
            } else if published {
                // Live messages end with their connection.
                self.held.inflight.discard(packet_id);
            } else {
                self.held.inflight.sent_again();
                codec::ack(&mut self.out, AckKind::Pubrel, packet_id, 0, self.v5);
            }
        }
        Ok(moved)
    }

    /// A row that is in flight, from the journal; `None` when its commit has failed.
    fn read_again(
        &self,
        journal: &Journal,
        page: &mut VecDeque<StoredRow>,
        row: u64,
    ) -> Result<Option<StoredRow>, StoreError> {
        let Some(consumer) = self.consumer() else {
            return Ok(None);
        };
        while page.front().is_some_and(|stored| stored.row.id < row) {
            page.pop_front();
        }
        if page.front().is_none_or(|stored| stored.row.id != row) {
            let before = row.saturating_sub(1);
            let (found, _) = journal.rows_within(consumer, before, self.room(), OUT_SOFT)?;
            *page = found.into();
        }
        let found = page.front().is_some_and(|stored| stored.row.id == row);
        Ok(found.then(|| page.pop_front()).flatten())
    }

    fn send_row_again(&mut self, packet_id: u16, stored: Option<StoredRow>) {
        let Some(StoredRow { row, released }) = stored else {
            // Its sender was not told that it is in, and sends it anew.
            self.held.inflight.discard(packet_id);
            return;
        };
        if released {
            // The PUBREC was written down as the connection ended.
            self.held.inflight.released(row.id);
            self.held.inflight.sent_again();
            codec::ack(&mut self.out, AckKind::Pubrel, packet_id, 0, self.v5);
            return;
        }
        let content = Content::of(row.message, row.options, row.retained);
        let hop = Hop {
            alias: self.alias(&content.message.topic),
            v5: self.v5,
            qos: content.qos(),
            retain: content.retain_flag(),
            dup: true,
            packet_id,
            expiry: content.message.seconds_left(self.core.clock.now()),
            subscription_ids: &content.options.ids,
        };
        let fault = if !self.may_receive(&content.message.topic) {
            Some(DropReason::Rights)
        } else if codec::publish_size(&content.message, &hop) > self.max_packet {
            // As if it had been sent and acknowledged [MQTT-3.1.2-25].
            Some(DropReason::TooLarge)
        } else {
            None
        };
        let Some(reason) = fault else {
            codec::publish(&mut self.out, &content.message, &hop);
            self.learnt(&content.message.topic, hop.alias);
            self.held.inflight.sent_again();
            return;
        };
        self.drop_live(reason, 1);
        self.held.inflight.discard(packet_id);
        self.settle(row.id);
    }

    fn send_fast(&mut self, delivery: &Delivery) {
        let messages = delivery.messages();
        let Some(first) = messages.first() else {
            return;
        };
        if !self.may_receive(&first.topic) {
            self.drop_live(DropReason::Rights, messages.len());
            return;
        }
        if self.alias_max == 0
            && let Some(bytes) = delivery.shared(self.v5)
            && bytes.len() <= self.max_packet
        {
            // One copy of what was encoded once for all receivers.
            self.out.extend_from_slice(bytes);
            self.core.counters.sent(messages.len() as u64);
            self.note_live(first, messages.len(), delivery.retained);
            return;
        }
        let now = self.core.clock.now();
        for message in messages {
            let hop = Hop {
                alias: self.alias(&message.topic),
                v5: self.v5,
                qos: Qos::AtMostOnce,
                retain: delivery.retained
                    || (delivery.options.retain_as_published && message.retain),
                dup: false,
                packet_id: 0,
                expiry: message.seconds_left(now),
                subscription_ids: &delivery.options.ids,
            };
            match self.fault_of(message, &hop, now) {
                Some(reason) => self.drop_live(reason, 1),
                None => {
                    codec::publish(&mut self.out, message, &hop);
                    self.learnt(&message.topic, hop.alias);
                    self.core.counters.sent(1);
                    self.note_live(message, 1, delivery.retained);
                }
            }
        }
    }

    fn send_careful(&mut self, delivery: &Delivery) {
        for message in delivery.messages() {
            if !self.may_receive(&message.topic) {
                self.drop_live(DropReason::Rights, 1);
                continue;
            }
            let packet_id = self.held.inflight.free_id();
            let options = Arc::clone(&delivery.options);
            let content = Content::of(Arc::clone(message), options, delivery.retained);
            if let Some(reason) = self.send_counted(content, packet_id, None) {
                self.drop_live(reason, 1);
            }
        }
    }

    /// Sends rows of the journal; true when some were taken.
    fn send_rows(&mut self, journal: &Journal) -> Result<bool, StoreError> {
        let Some(consumer) = self.consumer() else {
            return Ok(false);
        };
        if self.room() > 0
            && let Some(row) = self.stalled.take()
        {
            self.send_row(*row);
        }
        let room = self.room();
        if self.stalled.is_some() || room == 0 || !self.unmarked.is_empty() {
            return Ok(false);
        }
        // Not more than the output has room for, but one.
        let bytes = OUT_SOFT.saturating_sub(self.out.len()).max(1);
        match self.mailbox.take_rows(room, bytes) {
            Taken::Rows(rows) => {
                let some = !rows.is_empty();
                if rows.iter().any(|row| self.needs_mark(row)) {
                    self.mark(rows.into_iter().map(StoredRow::unreleased).collect());
                } else {
                    self.send_each(rows);
                }
                Ok(some)
            }
            Taken::Behind(after) => {
                let (stored, more) = match journal.rows_within(consumer, after, room, bytes) {
                    Ok(stored) => stored,
                    Err(error) => {
                        // Nothing was read: it is still behind.
                        self.mailbox.read_done(None, true);
                        return Err(error);
                    }
                };
                let last = stored.last().map(|stored| stored.row.id);
                self.mailbox.read_done(last, more);
                let some = !stored.is_empty();
                if stored.iter().any(|stored| self.needs_mark(&stored.row)) {
                    self.mark(stored);
                } else {
                    self.send_stored(stored);
                }
                Ok(some)
            }
        }
    }

    /// Whether the journal must know of it before it is sent: its time may run out, but not once it was
    /// sent.
    fn needs_mark(&self, row: &TailRow) -> bool {
        row.message.expiry.is_some()
            && row.id > self.mailbox.marked()
            && !row.message.expired(self.core.clock.now())
    }

    /// Holds rows back until the journal has it that they may have been sent.
    fn mark(&mut self, rows: Vec<StoredRow>) {
        self.to_mark = rows.last().map(|stored| stored.row.id);
        *self.unmarked = rows;
    }

    pub(super) fn send_stored(&mut self, stored: Vec<StoredRow>) {
        let mut rows = Vec::new();
        for stored in stored {
            if stored.released {
                self.send_each(std::mem::take(&mut rows));
                self.send_released(&stored.row);
            } else {
                rows.push(stored.row);
            }
        }
        self.send_each(rows);
    }

    /// A QoS 2 row whose PUBREC was written down before a restart: only PUBREL goes out.
    fn send_released(&mut self, row: &TailRow) {
        let packet_id = Inflight::id_of_row(row.id);
        self.held.inflight.push(Sent {
            packet_id,
            qos: Qos::ExactlyOnce,
            stage: Stage::Released,
            row: Some(row.id),
            shared: row.options.group.is_some(),
            kept: None,
        });
        codec::ack(&mut self.out, AckKind::Pubrel, packet_id, 0, self.v5);
    }

    fn send_each(&mut self, rows: Vec<TailRow>) {
        let mut rows = rows.into_iter();
        for row in rows.by_ref() {
            let id = row.id;
            self.send_row(row);
            if self.stalled.is_some() {
                // What follows is read back from the journal later.
                self.mailbox.rewind(id);
                return;
            }
        }
    }

    fn send_row(&mut self, row: TailRow) {
        let packet_id = Inflight::id_of_row(row.id);
        if self.held.inflight.uses(packet_id) {
            // 65,535 rows later than one that is still open: wait for that one.
            self.stalled = Some(Box::new(row));
            return;
        }
        let id = row.id;
        let reason = if self.may_receive(&row.message.topic) {
            let content = Content::of(row.message, row.options, row.retained);
            self.send_counted(content, packet_id, Some(id))
        } else {
            Some(DropReason::Rights)
        };
        if let Some(reason) = reason {
            self.drop_live(reason, 1);
            self.settle(id);
        }
    }

    /// Sends a QoS 1 or 2 message, or says why not.
    fn send_counted(
        &mut self,
        content: Content,
        packet_id: u16,
        row: Option<u64>,
    ) -> Option<DropReason> {
        let now = self.core.clock.now();
        let qos = content.qos();
        let hop = Hop {
            alias: self.alias(&content.message.topic),
            v5: self.v5,
            qos,
            retain: content.retain_flag(),
            // After a restart nobody knows whether it had been sent: it might be a second time
            // [MQTT-3.3.1-1].
            dup: row.is_some_and(|row| row < self.core.first_row.load(Ordering::Relaxed)),
            packet_id,
            expiry: content.message.seconds_left(now),
            subscription_ids: &content.options.ids,
        };
        // What may have been sent before a restart is brought to its end [MQTT-4.3.3-7].
        let begun = row.is_some_and(|row| row <= self.mailbox.sent_before());
        let at = if begun { content.message.at } else { now };
        if let Some(reason) = self.fault_of(&content.message, &hop, at) {
            return Some(reason);
        }
        codec::publish(&mut self.out, &content.message, &hop);
        self.learnt(&content.message.topic, hop.alias);
        self.core.counters.sent(1);
        if row.is_none() {
            self.note_live(&content.message, 1, content.retained);
        } else if !content.retained {
            self.note_row(&content.message);
        }
        self.held.inflight.push(Sent {
            packet_id,
            qos,
            stage: Stage::Published,
            row,
            shared: content.options.group.is_some(),
            kept: content.kept(row),
        });
        None
    }

    /// Live messages of one read are on their way to the socket; a slot's message came long ago.
    fn note_live(&mut self, first: &Message, messages: usize, retained: bool) {
        if first.came > 0 && !retained {
            let came = i64::try_from(first.came).unwrap_or(i64::MAX);
            self.delivered_to.note(came, Way::Live, messages);
        }
    }

    /// A row is on its way to the socket for the first time. When it came is known to the second only,
    /// once it had to be read from the journal.
    fn note_row(&mut self, message: &Message) {
        let came = if message.came > 0 {
            i64::try_from(message.came).unwrap_or(i64::MAX)
        } else {
            let (now, micros) = self.core.clock.now_and_micros();
            let age = now.saturating_sub(message.at).saturating_mul(1_000_000);
            i64::try_from(micros).unwrap_or(i64::MAX) - i64::try_from(age).unwrap_or(i64::MAX)
        };
        self.delivered_to.note(came, Way::Row, 1);
    }

    /// Our alias for a topic: the one the client knows, or the next one while there are some.
    fn alias(&self, topic: &str) -> Option<Alias> {
        if self.alias_max == 0 {
            return None;
        }
        let known = self.memory.as_ref().map(|memory| &memory.known_aliases);
        if let Some(number) = known.and_then(|known| known.get(topic)) {
            return Some(Alias {
                number: *number,
                known: true,
            });
        }
        let number = u16::try_from(known.map_or(0, HashMap::len)).ok()?;
        (number < self.alias_max).then_some(Alias {
            number: number + 1,
            known: false,
        })
    }

    /// The client has been told an alias.
    fn learnt(&mut self, topic: &Arc<str>, alias: Option<Alias>) {
        if let Some(alias) = alias.filter(|alias| !alias.known) {
            let memory = self.memory.get_or_insert_default();
            memory.known_aliases.insert(Arc::clone(topic), alias.number);
        }
    }

    fn fault_of(&self, message: &Message, hop: &Hop<'_>, now: u64) -> Option<DropReason> {
        if message.expired(now) {
            // [MQTT-3.3.2-5]
            Some(DropReason::Expired)
        } else if codec::publish_size(message, hop) > self.max_packet {
            // [MQTT-3.1.2-24], [MQTT-3.1.2-25]
            Some(DropReason::TooLarge)
        } else {
            None
        }
    }

    /// Asked once per topic and change of rights.
    fn may_receive(&mut self, topic: &Arc<str>) -> bool {
        let generation = self.core.exchange.generation();
        let memory = self.memory.get_or_insert_default();
        if memory.receivable_of != generation || memory.receivable.len() >= 64 {
            memory.receivable.clear();
            memory.last_received = None;
            memory.receivable_of = generation;
        }
        let last = memory.last_received.as_ref();
        if last.is_some_and(|last| Arc::ptr_eq(last, topic)) {
            return true;
        }
        let may = match memory.receivable.get(topic) {
            Some(known) => *known,
            None => {
                let may = rights::may_receive(&*self.core.rights, &self.identity, topic);
                memory.receivable.insert(Arc::clone(topic), may);
                may
            }
        };
        if may {
            memory.last_received = Some(Arc::clone(topic));
        }
        may
    }

    fn drop_live(&self, reason: DropReason, count: usize) {
        self.core.dropped(self.client_id(), reason, count);
    }
}

/// A message and how it goes to this client.
struct Content {
    message: Arc<Message>,
    options: Arc<Options>,
    /// Sent because of a new subscription.
    retained: bool,
}

impl Content {
    fn of(message: Arc<Message>, options: Arc<Options>, retained: bool) -> Self {
        Self {
            message,
            options,
            retained,
        }
    }

    fn qos(&self) -> Qos {
        self.message.qos.min(self.options.qos)
    }

    /// [MQTT-3.3.1-8], [MQTT-3.3.1-9], [MQTT-3.3.1-12], [MQTT-3.3.1-13].
    fn retain_flag(&self) -> bool {
        self.retained || (self.options.retain_as_published && self.message.retain)
    }

    /// What is held until the answer comes: another member of a shared subscription may need it, and
    /// has it from nowhere else.
    fn kept(self, row: Option<u64>) -> Option<Kept> {
        if row.is_some() || self.qos() != Qos::AtLeastOnce {
            return None;
        }
        Some(Kept {
            group: self.options.group.clone()?,
            message: self.message,
        })
    }
}
