//! The sessions by client id: takeover, restart, expiry.
//!
//! A cell holds one session's lasting state behind an async lock; holding the lock is being the
//! session's connection. A newcomer tells the holder to go and waits for the lock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::inflight::Inflight;
use crate::exchange::{ConsumerId, Mailbox};
use crate::journal::{ConsumerRecord, Kind};
use crate::{CutReason, Identity};

/// A session's state that outlives a connection.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) mailbox: Arc<Mailbox>,
    /// Seconds it outlives its connection; `u32::MAX` = for ever.
    pub(crate) expiry: u32,
    pub(crate) inflight: Inflight,
    /// Incoming QoS 2 packet ids between PUBREC and PUBREL.
    pub(crate) received: Received,
    /// Broker seconds when the last connection ended.
    pub(crate) left_at: u64,
    /// Whether there is a session to resume.
    pub(crate) exists: bool,
}

impl Held {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self {
            mailbox,
            expiry: 0,
            inflight: Inflight::default(),
            received: Received::default(),
            left_at: 0,
            exists: false,
        }
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.mailbox.identity()
    }

    /// As it is stored.
    pub(crate) fn record(&self, left_at: Option<u64>) -> ConsumerRecord {
        ConsumerRecord {
            kind: Kind::Session {
                identity: Identity::clone(&self.identity()),
                expiry: self.expiry,
                left_at,
            },
        }
    }

    /// When it ends, if nobody comes back: not a moment before its time is over, so the second that had
    /// begun when the connection ended does not count [MQTT-3.1.2-23].
    pub(crate) fn deadline(&self) -> Option<u64> {
        (self.expiry != u32::MAX).then(|| self.left_at + u64::from(self.expiry) + 1)
    }
}

/// Packet ids of QoS 2 publishes that have their PUBREC and wait for PUBREL: most sessions have none.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "an empty set is 48 bytes")]
pub(crate) struct Received(Option<Box<HashSet<u16>>>);

impl Received {
    pub(crate) fn insert(&mut self, packet_id: u16) {
        self.0.get_or_insert_default().insert(packet_id);
    }

    /// True when it was there.
    pub(crate) fn remove(&mut self, packet_id: u16) -> bool {
        self.0.as_mut().is_some_and(|ids| ids.remove(&packet_id))
    }

    pub(crate) fn contains(&self, packet_id: u16) -> bool {
        self.0.as_ref().is_some_and(|ids| ids.contains(&packet_id))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |ids| ids.len())
    }
}

impl From<HashSet<u16>> for Received {
    fn from(ids: HashSet<u16>) -> Self {
        Self((!ids.is_empty()).then(|| Box::new(ids)))
    }
}

/// Who is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// Connections with an older ticket.
    before: u64,
    reason: CutReason,
}

/// One client id.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) held: Arc<tokio::sync::Mutex<Held>>,
    /// What the console shows without waiting for the lock.
    shown: Mutex<Arc<Mailbox>>,
    tickets: AtomicU64,
    cut: Mutex<Cut>,
}

impl Cell {
    fn new(held: Held) -> Self {
        Self {
            shown: Mutex::new(Arc::clone(&held.mailbox)),
            held: Arc::new(tokio::sync::Mutex::new(held)),
            tickets: AtomicU64::new(0),
            cut: Mutex::new(Cut {
                before: 0,
                reason: CutReason::TakenOver,
            }),
        }
    }

    /// A newcomer's ticket; all before it are told to go.
    pub(crate) fn enter(&self) -> u64 {
        self.end(CutReason::TakenOver)
    }

    /// Tells all connections so far to go.
    pub(crate) fn end(&self, reason: CutReason) -> u64 {
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        {
            let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
            if ticket > cut.before {
                *cut = Cut {
                    before: ticket,
                    reason,
                };
            }
        }
        // A connection that is about to show another mailbox looks for its cut after that.
        self.shown().nudge();
        ticket
    }

    /// Why the connection with this ticket is to go, if it is.
    pub(crate) fn cut(&self, ticket: u64) -> Option<CutReason> {
        if self.tickets.load(Ordering::SeqCst) == ticket {
            return None;
        }
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        (cut.before > ticket).then_some(cut.reason)
    }

    pub(crate) fn shown(&self) -> Arc<Mailbox> {
        Arc::clone(&self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn show(&self, held: &Held) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&held.mailbox);
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    cells: Mutex<HashMap<Arc<str>, Arc<Cell>>>,
    /// (broker seconds, client id) of sessions that end by themselves.
    deadlines: Mutex<BTreeSet<(u64, Box<str>)>>,
}

impl Sessions {
    /// The cell of a client id, made when missing; `None` when there are `max` sessions already.
    pub(crate) fn cell(
        &self,
        client_id: &Arc<str>,
        max: usize,
        new: impl FnOnce() -> Held,
    ) -> Option<Arc<Cell>> {
        let mut cells = self.cells();
        if let Some(cell) = cells.get(&**client_id) {
            return Some(Arc::clone(cell));
        }
        if cells.len() >= max {
            return None;
        }
        let cell = Arc::new(Cell::new(new()));
        cells.insert(Arc::clone(client_id), Arc::clone(&cell));
        Some(cell)
    }

    /// Puts a stored session in its place, at the start.
    pub(crate) fn restore(&self, held: Held) {
        let client_id: Arc<str> = held.identity().client_id.clone();
        self.expires(&client_id, held.deadline());
        self.cells().insert(client_id, Arc::new(Cell::new(held)));
    }

    pub(crate) fn find(&self, client_id: &str) -> Option<Arc<Cell>> {
        self.cells().get(client_id).cloned()
    }

    /// Whether this cell is still the client id's.
    pub(crate) fn holds(&self, client_id: &str, cell: &Arc<Cell>) -> bool {
        self.cells()
            .get(client_id)
            .is_some_and(|known| Arc::ptr_eq(known, cell))
    }

    /// Takes a cell out; only the holder of its lock may.
    pub(crate) fn remove(&self, client_id: &str) {
        self.cells().remove(client_id);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Cell>> {
        self.cells().values().cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.cells().len()
    }

    /// Notes when a session ends by itself.
    pub(crate) fn expires(&self, client_id: &str, deadline: Option<u64>) {
        if let Some(deadline) = deadline {
            self.deadlines().insert((deadline, client_id.into()));
        }
    }

    /// The sessions whose time may be over.
    pub(crate) fn due(&self, now: u64) -> Vec<Box<str>> {
        let mut deadlines = self.deadlines();
        let later = deadlines.split_off(&(now + 1, "".into()));
        let due = std::mem::replace(&mut *deadlines, later);
        due.into_iter().map(|(_, client_id)| client_id).collect()
    }

    /// The state of a disconnected session whose time is over.
    pub(crate) fn take_expired(&self, client_id: &str, now: u64) -> Option<OwnedMutexGuard<Held>> {
        let cell = self.find(client_id)?;
        let held = Arc::clone(&cell.held).try_lock_owned().ok()?;
        let over = held.exists
            && !held.mailbox.connected()
            && held.deadline().is_some_and(|deadline| deadline <= now);
        over.then_some(held)
    }

    fn cells(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deadlines(&self) -> MutexGuard<'_, BTreeSet<(u64, Box<str>)>> {
        self.deadlines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The consumer number of a durable session.
pub(crate) fn consumer(held: &Held) -> Option<ConsumerId> {
    held.mailbox.consumer()
}
