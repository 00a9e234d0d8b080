//! What waits for one receiver: live deliveries, fresh rows of the journal, and the journal's answers.
//!
//! Filled by publishing connections and by the journal's thread, emptied by the receiver's own task.
//! Bounded by messages and bytes; what does not fit is refused here and counted by the caller, or, for
//! rows, read from the journal later. The lock is never held over anything but this bookkeeping.

mod memory;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use super::wake::Wake;
use super::{ConsumerId, Delivery, Outcome, Patience, Place, Pool, TailRow, Taken, Wanted};
use crate::rare::Rare;
use crate::{Identity, Message, Qos};

/// One receiver.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// Unique in this run.
    pub(crate) key: u64,
    /// Client id or consumer name; never changes.
    pub(crate) name: Arc<str>,
    /// Whose it is now: a renewed certificate may give its owner another subject.
    identity: Mutex<Arc<Identity>>,
    /// What a session has subscribed to.
    pub(crate) wanted: Wanted,
    pub(crate) bounds: Arc<Bounds>,
    /// An in-process consumer rather than a session: everything it takes is a row.
    pub(crate) bridge: bool,
    take_qos0: AtomicBool,
    /// Its rows in the journal as of the last batch, and their bytes in units of 1,024.
    rows: AtomicU32,
    row_units: AtomicU32,
    /// 0 = none.
    consumer: AtomicU32,
    /// Publishes under way from its client, and to it: 16 bits each.
    under_way: AtomicU32,
    /// Its rows of limited life up to here may have been sent: in earlier runs, and by now.
    sent_before: AtomicU64,
    marked: AtomicU64,
    connected: AtomicBool,
    inner: Mutex<Inner>,
    wake: Wake,
    /// Its queue is more than half full.
    tight: AtomicBool,
    /// Its connection holds memory that others need.
    unwanted: AtomicBool,
    /// The broker's second from which on its socket has taken nothing; 0 = it takes.
    blocked_from: AtomicU32,
    patience: Patience,
}

/// Bounds of the memory queue.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Bytes of its own; what it holds beyond them comes from the pool.
    pub(crate) own: usize,
    pub(crate) pool: Arc<Pool>,
}

/// By topic, the lowest number of the repeat filter that was refused on this connection.
type Refusals = HashMap<Arc<str>, (u64, u64)>;

#[derive(Debug, Default)]
struct Inner {
    /// QoS 0: goes out whenever the socket takes it.
    fast: Rare<VecDeque<Delivery>>,
    /// QoS 1 and 2 of a session without journal: waits for the window.
    careful: Rare<VecDeque<Delivery>>,
    messages: usize,
    bytes: usize,
    tail: Rare<VecDeque<TailRow>>,
    tail_bytes: usize,
    /// Bytes that its connection holds beside the queue.
    held: u32,
    /// Bytes taken from the pool.
    beyond: usize,
    /// The pool knows that it is large.
    remembered: bool,
    /// Rows are in the journal that are not in `tail`.
    behind: bool,
    /// A reader is taking a snapshot: what it will see is not known yet.
    reading: bool,
    /// The highest row handed to the reader.
    taken: u64,
    outcomes: Rare<VecDeque<Outcome>>,
    refused: Option<Box<Refusals>>,
}

impl Mailbox {
    pub(crate) fn new(key: u64, identity: Identity, bounds: Arc<Bounds>) -> Self {
        Self {
            key,
            name: Arc::clone(&identity.client_id),
            identity: Mutex::new(Arc::new(identity)),
            wanted: Wanted::default(),
            bounds,
            bridge: false,
            take_qos0: AtomicBool::new(false),
            rows: AtomicU32::new(0),
            row_units: AtomicU32::new(0),
            consumer: AtomicU32::new(0),
            under_way: AtomicU32::new(0),
            sent_before: AtomicU64::new(0),
            marked: AtomicU64::new(0),
            connected: AtomicBool::new(false),
            inner: Mutex::default(),
            wake: Wake::reader(),
            tight: AtomicBool::new(false),
            unwanted: AtomicBool::new(false),
            blocked_from: AtomicU32::new(0),
            patience: Patience::default(),
        }
    }

    pub(crate) fn for_bridge(key: u64, name: &Arc<str>, bounds: &Bounds, take_qos0: bool) -> Self {
        let identity = Identity {
            client_id: Arc::clone(name),
            subject: Arc::clone(name),
        };
        // The own parts are split among the connections.
        let bounds = Bounds {
            own: 0,
            ..bounds.clone()
        };
        let mut mailbox = Self::new(key, identity, Arc::new(bounds));
        mailbox.bridge = true;
        mailbox.wake = Wake::listeners();
        mailbox.take_qos0 = AtomicBool::new(take_qos0);
        mailbox
    }

    /// Whose it is.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same client id came, perhaps with another subject.
    pub(crate) fn set_identity(&self, identity: &Identity) {
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if **known != *identity {
            *known = Arc::new(identity.clone());
        }
    }

    /// Its number in the journal, when it is durable.
    pub(crate) fn consumer(&self) -> Option<ConsumerId> {
        let id = self.consumer.load(Ordering::Acquire);
        (id != 0).then_some(ConsumerId(id))
    }

    pub(crate) fn set_consumer(&self, consumer: Option<ConsumerId>) {
        self.consumer
            .store(consumer.map_or(0, |id| id.0), Ordering::Release);
    }

    pub(crate) fn set_take_qos0(&self, take: bool) {
        self.take_qos0.store(take, Ordering::Relaxed);
    }

    /// Rows in the journal.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed).into()
    }

    /// Rows in the journal, and their bytes to the next multiple of 1,024.
    pub(crate) fn rows_and_bytes(&self) -> (u64, u64) {
        let units = self.row_units.load(Ordering::Relaxed);
        (self.rows(), u64::from(units) * 1024)
    }

    pub(crate) fn set_rows(&self, rows: u64, bytes: u64) {
        let narrow = |value| u32::try_from(value).unwrap_or(u32::MAX);
        self.rows.store(narrow(rows), Ordering::Relaxed);
        let units = narrow(bytes.div_ceil(1024));
        self.row_units.store(units, Ordering::Relaxed);
    }

    /// Publishes under way from its client, and to it.
    pub(crate) fn under_way(&self) -> (u16, u16) {
        let [a, b, c, d] = self.under_way.load(Ordering::Relaxed).to_be_bytes();
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }

    pub(crate) fn set_under_way(&self, receiving: usize, inflight: usize) {
        let narrow = |value| u32::from(u16::try_from(value).unwrap_or(u16::MAX));
        let both = narrow(receiving) << 16 | narrow(inflight);
        self.under_way.store(both, Ordering::Relaxed);
    }

    /// Rows of limited life up to this one may have been sent in an earlier run.
    pub(crate) fn sent_before(&self) -> u64 {
        self.sent_before.load(Ordering::Relaxed)
    }

    pub(crate) fn set_sent_before(&self, row: u64) {
        self.sent_before.store(row, Ordering::Relaxed);
    }

    /// Up to here the journal has it that they may have been sent.
    pub(crate) fn marked(&self) -> u64 {
        self.marked.load(Ordering::Acquire)
    }

    pub(crate) fn set_marked(&self, row: u64) {
        self.marked.store(row, Ordering::Release);
    }

    pub(crate) fn connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// Takes out all QoS 1 and 2 deliveries that wait because of a shared subscription.
    pub(crate) fn take_shared(&self) -> Vec<Delivery> {
        let mut inner = self.lock();
        let careful = inner.careful.take();
        let (shared, own): (VecDeque<Delivery>, _) = careful
            .into_iter()
            .partition(|delivery| delivery.options.group.is_some());
        if !own.is_empty() {
            *inner.careful = own;
        }
        for delivery in &shared {
            inner.forget(delivery.messages());
        }
        inner.give_back(&self.bounds);
        shared.into()
    }

    /// Marks the session connected or not; when not, live deliveries are refused, and those waiting
    /// are handed back by number so that they are counted.
    pub(crate) fn set_connected(&self, connected: bool) -> usize {
        let mut inner = self.lock();
        self.connected.store(connected, Ordering::Release);
        if connected {
            return 0;
        }
        let dropped = inner.messages;
        inner.fast.clear();
        inner.careful.clear();
        inner.messages = 0;
        inner.bytes = 0;
        inner.give_back(&self.bounds);
        let held = std::mem::take(&mut inner.held) as usize;
        self.bounds.pool.hold(held, 0);
        self.unwanted.store(false, Ordering::Relaxed);
        self.set_blocked_from(0);
        inner.outcomes.clear();
        inner.refused = None;
        self.tight.store(false, Ordering::Relaxed);
        self.patience.all_clear();
        dropped
    }

    /// Puts a live delivery in; the part that does not fit is refused.
    pub(crate) fn deliver(&self, mut delivery: Delivery) -> Place {
        let offered = delivery.messages().len();
        let mut inner = self.lock();
        if !self.connected() {
            return Place {
                refused: offered,
                ..Place::default()
            };
        }
        let mut taken = 0;
        let mut weights = 0;
        for message in delivery.messages() {
            let weight = message.weight();
            if inner.messages + taken >= self.bounds.messages
                || inner.bytes + weights + weight > self.bounds.bytes
            {
                break;
            }
            weights += weight;
            taken += 1;
        }
        let starved = !inner.reserve(&self.bounds, weights);
        if starved {
            (taken, weights) = (0, 0);
        }
        inner.messages += taken;
        inner.bytes += weights;
        delivery.to = delivery.from + taken;
        if taken > 0 {
            if delivery.careful() {
                inner.careful.push_back(delivery);
            } else {
                inner.fast.push_back(delivery);
            }
        }
        let crowded =
            inner.messages * 2 > self.bounds.messages || inner.bytes * 2 > self.bounds.bytes;
        if crowded {
            self.tight.store(true, Ordering::Relaxed);
        }
        let grown = inner.grown();
        drop(inner);
        if taken > 0 {
            self.wake.tell();
        }
        Place {
            taken,
            refused: offered - taken,
            crowded,
            starved,
            grown,
        }
    }

    /// Takes a QoS 0 delivery out.
    pub(crate) fn next_fast(&self) -> Option<Delivery> {
        let mut inner = self.lock();
        let delivery = inner.fast.pop_front()?;
        inner.forget(delivery.messages());
        inner.give_back(&self.bounds);
        self.eased(&inner);
        Some(delivery)
    }

    /// Takes at most `max` messages of a QoS 1 or 2 delivery out.
    pub(crate) fn next_careful(&self, max: usize) -> Option<Delivery> {
        let mut inner = self.lock();
        let mut delivery = inner.careful.pop_front()?;
        if delivery.messages().len() > max {
            let mut rest = delivery.clone();
            delivery.to = delivery.from + max;
            rest.from = delivery.to;
            inner.careful.push_front(rest);
        }
        inner.forget(delivery.messages());
        inner.give_back(&self.bounds);
        self.eased(&inner);
        Some(delivery)
    }

    /// Something was taken out: who waits for room may come when half of it is free.
    fn eased(&self, inner: &Inner) {
        if self.tight.load(Ordering::Relaxed)
            && inner.messages * 2 <= self.bounds.messages
            && inner.bytes * 2 <= self.bounds.bytes
        {
            self.tight.store(false, Ordering::Relaxed);
            self.patience.eased();
        }
        if inner.messages == 0 {
            self.patience.kept_up();
        }
    }

    /// Whether its queue is more than half full.
    pub(crate) fn tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// How long senders wait for it.
    pub(crate) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Hands rows over, in order; what memory has no room for the reader will find in the journal.
    /// Rows that it has or had are passed over. True when the pool should remember this queue.
    pub(crate) fn push_rows(&self, rows: Vec<TailRow>) -> bool {
        let mut inner = self.lock();
        let listening = self.bridge || self.connected();
        let mut new = false;
        for row in rows {
            let known = inner.tail.back().map_or(inner.taken, |last| last.id);
            if row.id <= known.max(inner.taken) {
                continue;
            }
            new = true;
            let weight = row.message.weight();
            let full = inner.tail.len() >= self.bounds.messages
                || inner.tail_bytes + weight > self.bounds.bytes;
            if inner.behind || full || !listening || !inner.reserve(&self.bounds, weight) {
                inner.behind = true;
            } else {
                inner.tail_bytes += weight;
                inner.tail.push_back(row);
            }
        }
        let grown = inner.grown();
        drop(inner);
        if !new {
            return grown;
        }
        self.wake.tell();
        grown
    }

    /// The next rows, at most `max`, up to the one with which `bytes` are reached, for a reader that
    /// goes through them once.
    pub(crate) fn take_rows(&self, max: usize, bytes: usize) -> Taken {
        let mut inner = self.lock();
        let mut rows = Vec::new();
        let mut taken = 0;
        while rows.len() < max
            && taken < bytes
            && let Some(row) = inner.tail.pop_front()
        {
            let weight = row.message.weight();
            inner.tail_bytes -= weight;
            taken += weight;
            if row.id > inner.taken {
                inner.taken = row.id;
                rows.push(row);
            }
        }
        inner.give_back(&self.bounds);
        if rows.is_empty() && inner.behind && max > 0 {
            // Rows committed from here on go to memory; the snapshot to be taken may hold them too,
            // and they are skipped then.
            inner.behind = false;
            inner.reading = true;
            return Taken::Behind(inner.taken);
        }
        Taken::Rows(rows)
    }

    /// After [`Taken::Behind`]: the last row that was read, and whether there may be more.
    pub(crate) fn read_done(&self, last: Option<u64>, more: bool) {
        let mut inner = self.lock();
        inner.reading = false;
        if let Some(last) = last {
            inner.taken = inner.taken.max(last);
        }
        if more {
            inner.behind = true;
            inner.tail.clear();
            inner.tail_bytes = 0;
            inner.give_back(&self.bounds);
        }
    }

    /// The reader starts again after `row`: what is in memory is forgotten.
    pub(crate) fn rewind(&self, row: u64) {
        let mut inner = self.lock();
        inner.tail.clear();
        inner.tail_bytes = 0;
        inner.give_back(&self.bounds);
        inner.taken = row;
        inner.behind = true;
    }

    /// The journal was opened again: whatever is in memory is read back from it.
    pub(crate) fn reread(&self) {
        let taken = self.taken();
        self.rewind(taken);
        self.wake.tell();
    }

    /// Whether the rows up to and including `row` may still be dropped: the reader has not had it.
    pub(crate) fn may_drop(&self, row: u64) -> bool {
        let mut inner = self.lock();
        if inner.reading || row <= inner.taken {
            return false;
        }
        inner.tail.retain(|kept| kept.id != row);
        inner.tail_bytes = inner.tail.iter().map(|kept| kept.message.weight()).sum();
        inner.give_back(&self.bounds);
        true
    }

    /// The highest row the reader has had.
    pub(crate) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Whether rows wait, in memory or in the journal.
    pub(crate) fn has_rows(&self) -> bool {
        let inner = self.lock();
        inner.behind || !inner.tail.is_empty()
    }

    pub(crate) fn push_outcome(&self, outcome: Outcome) {
        self.lock().outcomes.push_back(outcome);
        self.wake.tell();
    }

    pub(crate) fn next_outcome(&self) -> Option<Outcome> {
        self.lock().outcomes.pop_front()
    }

    /// The lowest number refused for a topic on this connection.
    pub(crate) fn refused(&self, topic: &str) -> Option<(u64, u64)> {
        self.lock().refused.as_ref()?.get(topic).copied()
    }

    /// Notes that a number was refused, or that it was taken at last.
    pub(crate) fn note_refusal(&self, topic: &Arc<str>, number: (u64, u64), refused: bool) {
        let mut inner = self.lock();
        if refused {
            let refusals = inner.refused.get_or_insert_default();
            let lowest = refusals.entry(Arc::clone(topic)).or_insert(number);
            *lowest = number.min(*lowest);
        } else if let Some(refusals) = &mut inner.refused
            && refusals.get(topic).is_some_and(|lowest| number >= *lowest)
        {
            refusals.remove(topic);
        }
    }

    /// Something else changed that its reader should look at.
    pub(crate) fn nudge(&self) {
        self.wake.tell();
    }

    /// A session's task waits for the next change.
    pub(crate) fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wake.poll(cx)
    }

    /// A session's task goes on for another reason: whether something changed since it last looked.
    pub(crate) fn looks(&self) -> bool {
        self.wake.looks()
    }

    /// A session's task is over.
    pub(crate) fn leaves(&self) {
        self.wake.leaves();
    }

    /// Whether `sender` is woken right after the turn for which this receiver has just been woken.
    pub(crate) fn follow(&self, sender: &Waker) -> bool {
        self.wake.follow(sender)
    }

    /// What a consumer's readers listen to; a session has none.
    pub(crate) fn listeners(&self) -> Option<&Notify> {
        match &self.wake {
            Wake::Listeners(listeners) => Some(listeners),
            Wake::Reader(_) => None,
        }
    }

    pub(crate) fn waiting(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.messages, inner.bytes)
    }

    /// Messages that wait for it or are unacknowledged, in memory and in the journal.
    pub(crate) fn load(&self) -> u64 {
        self.waiting().0 as u64 + self.rows()
    }

    /// Whether its queues are more than half full.
    pub(crate) fn crowded(&self) -> bool {
        let (messages, bytes) = self.waiting();
        let rows = usize::try_from(self.rows()).unwrap_or(usize::MAX);
        messages.saturating_add(rows) > self.bounds.messages / 2 || bytes > self.bounds.bytes / 2
    }

    /// Whether its memory queue is more than half full.
    pub(crate) fn crowded_live(&self) -> bool {
        let (messages, bytes) = self.waiting();
        messages > self.bounds.messages / 2 || bytes > self.bounds.bytes / 2
    }

    /// Whether a message of this quality is a row for it rather than a live delivery.
    pub(crate) fn keeps(&self, message: Qos, subscribed: Qos) -> bool {
        if self.bridge {
            return message != Qos::AtMostOnce || self.take_qos0.load(Ordering::Relaxed);
        }
        message.min(subscribed) != Qos::AtMostOnce && self.consumer().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, messages: &[Arc<Message>]) {
        self.messages -= messages.len();
        self.bytes -= messages
            .iter()
            .map(|message| message.weight())
            .sum::<usize>();
    }
}
