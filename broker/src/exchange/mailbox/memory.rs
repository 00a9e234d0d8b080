//! A mailbox's part of the memory of all queues: what is counted, and what is given back when others
//! need it.
//!
//! Part of `mailbox`; `pool` asks and is asked.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Bounds, Inner, Mailbox};

/// What a mailbox has in memory, rows of the journal and unwritten output among it; and the fuller of
/// its two queues, which have their bounds each.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Of these, those beside the queue.
    pub(crate) beside: usize,
    pub(crate) fuller_messages: usize,
    pub(crate) fuller_bytes: usize,
}

impl Mailbox {
    /// What it has in memory.
    pub(crate) fn held(&self) -> Held {
        let inner = self.lock();
        Held {
            messages: inner.messages + inner.tail.len(),
            bytes: inner.bytes + inner.tail_bytes + inner.held as usize,
            beside: inner.held as usize,
            fuller_messages: inner.messages.max(inner.tail.len()),
            fuller_bytes: inner.bytes.max(inner.tail_bytes),
        }
    }

    /// Empties the queue for want of memory: how many live messages are lost. Rows are read again.
    pub(in crate::exchange) fn shed(&self) -> usize {
        let mut inner = self.lock();
        let lost = std::mem::take(&mut inner.messages);
        inner.fast.clear();
        inner.careful.clear();
        inner.bytes = 0;
        if !inner.tail.is_empty() {
            inner.tail.clear();
            inner.tail_bytes = 0;
            inner.behind = true;
        }
        inner.give_back(&self.bounds);
        self.tight.store(false, Ordering::Relaxed);
        drop(inner);
        self.patience.next();
        self.wake.tell();
        lost
    }

    /// What its connection holds beside the queue: output that the socket does not take, and messages
    /// that may go to another member of a shared subscription.
    pub(crate) fn hold(&self, bytes: u32) {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.held, bytes);
        self.bounds.pool.hold(before as usize, bytes as usize);
    }

    /// Asks its connection to go, if it is stuck, for the memory that it holds.
    pub(crate) fn ask_to_go(&self) {
        self.unwanted.store(true, Ordering::Relaxed);
        self.wake.tell();
    }

    /// The broker's second from which on its socket has taken nothing; 0 = it takes.
    pub(crate) fn blocked_from(&self) -> u32 {
        self.blocked_from.load(Ordering::Relaxed)
    }

    pub(crate) fn set_blocked_from(&self, second: u32) {
        self.blocked_from.store(second, Ordering::Relaxed);
    }

    /// Whether its connection was asked to go; once.
    pub(crate) fn asked_to_go(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed) && self.unwanted.swap(false, Ordering::Relaxed)
    }

    /// Bytes taken from the pool.
    pub(in crate::exchange) fn beyond(&self) -> usize {
        self.lock().beyond
    }

    /// True when it takes nothing from the pool; it is to be remembered anew when it grows.
    pub(in crate::exchange) fn small_again(&self) -> bool {
        let mut inner = self.lock();
        let small = inner.beyond == 0;
        inner.remembered &= !small;
        small
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.bounds.pool.give(inner.beyond);
        self.bounds.pool.hold(inner.held as usize, 0);
    }
}

impl Inner {
    /// Bytes beyond the own part when so many more come.
    pub(super) fn wants(&self, bounds: &Bounds, more: usize) -> usize {
        (self.bytes + self.tail_bytes + more).saturating_sub(bounds.own)
    }

    /// Takes from the pool what so much more needs beyond the own part; false when it is not there.
    pub(super) fn reserve(&mut self, bounds: &Bounds, more: usize) -> bool {
        let beyond = self.wants(bounds, more);
        if beyond > self.beyond {
            if !bounds.pool.take(beyond - self.beyond) {
                return false;
            }
            self.beyond = beyond;
        }
        true
    }

    /// Gives the pool what is not needed any more.
    pub(super) fn give_back(&mut self, bounds: &Bounds) {
        let beyond = self.wants(bounds, 0);
        if beyond < self.beyond {
            bounds.pool.give(self.beyond - beyond);
            self.beyond = beyond;
        }
    }

    /// True once when it has grown beyond its own part.
    pub(super) fn grown(&mut self) -> bool {
        self.beyond > 0 && !std::mem::replace(&mut self.remembered, true)
    }
}
