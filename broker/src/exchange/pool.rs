//! The memory of all queues together: one bound, and who gives way when it is reached.
//!
//! Each connection has a small part of its own that nobody counts; what a queue holds beyond it comes
//! from here, by one atomic addition. When nothing is left, the fullest queues are emptied: rows of
//! the journal are read again later, live messages are lost and counted. What sockets have not taken
//! yet has a room of its own: when it is used up, those that have taken nothing for a while go. So
//! those who read slowest pay, and the others find room.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Mailbox;

/// Queues known to be large before those that are gone are looked for.
const FEW: usize = 64;

/// What all queues share.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Bytes of one connection that are not counted here.
    own: usize,
    /// Bytes beyond the own parts, of all queues together.
    room: usize,
    used: AtomicUsize,
    /// Bytes that all connections may hold beside their queues, and do.
    beside: usize,
    held: AtomicUsize,
    large: Mutex<Large>,
}

#[derive(Debug)]
struct Large {
    queues: Vec<Weak<Mailbox>>,
    /// So many are too many to be all alive.
    look_at: usize,
}

impl Pool {
    /// `bytes` for all: half of it split into the own parts of `connections`, an eighth for what is held
    /// beside the queues.
    pub(crate) fn new(bytes: usize, connections: usize) -> Self {
        let own = bytes / 2 / connections.max(1);
        Self {
            own,
            room: bytes - own * connections.max(1) - bytes / 8,
            used: AtomicUsize::new(0),
            beside: bytes / 8,
            held: AtomicUsize::new(0),
            large: Mutex::new(Large {
                queues: Vec::new(),
                look_at: FEW,
            }),
        }
    }

    /// A connection's own part.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    /// Takes so much, if it is there.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.room;
        if !fits {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// What a connection holds beside its queue has changed: it is used already, so it is not asked for.
    pub(super) fn hold(&self, before: usize, now: usize) {
        if now > before {
            self.held.fetch_add(now - before, Ordering::Relaxed);
        } else if before > now {
            self.held.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether half of what may be held beside the queues is: who has unwritten output takes no more.
    pub(crate) fn is_short(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.beside / 2
    }

    /// So much more is held beside the queues than may be.
    pub(crate) fn overdrawn(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed);
        held.saturating_sub(self.beside)
    }

    pub(super) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Remembers a queue that has grown beyond its own part.
    pub(crate) fn remember(&self, mailbox: &Arc<Mailbox>) {
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        if large.queues.len() >= large.look_at {
            large.queues.retain(|queue| queue.strong_count() > 0);
            large.look_at = FEW.max(large.queues.len() * 2);
        }
        large.queues.push(Arc::downgrade(mailbox));
    }

    /// Empties the fullest queues until a quarter is free: whose they were, and the live messages
    /// that each has lost.
    pub(crate) fn relieve(&self) -> Vec<(Arc<Mailbox>, usize)> {
        let goal = self.room - self.room / 4;
        let mut queues: Vec<(usize, Arc<Mailbox>)> = {
            let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
            let alive = large.queues.iter().filter_map(Weak::upgrade);
            let (small, queues): (Vec<_>, Vec<_>) = alive
                .map(|queue| (queue.beyond(), queue))
                .partition(|(bytes, queue)| *bytes == 0 && queue.small_again());
            drop(small);
            large.queues = queues
                .iter()
                .map(|(_, queue)| Arc::downgrade(queue))
                .collect();
            queues
        };
        queues.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut emptied = Vec::new();
        for (_, queue) in queues {
            if self.used.load(Ordering::Relaxed) <= goal {
                break;
            }
            let lost = queue.shed();
            emptied.push((queue, lost));
        }
        emptied
    }
}
