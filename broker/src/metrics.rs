//! Counters and gauges of the broker.
//!
//! Counted by all rooms, per batch where it can be; read as [`Figures`], or by `exposition` for a
//! Prometheus registry.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;

use crate::times::Times;
use crate::{CutReason, DropReason, Quota};

/// Bounds of the times, in seconds: from a fast disk to the patience of a client.
const TIMES: [f64; 13] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// A snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Connections now, past CONNECT.
    pub connections: u64,
    /// Sessions now, connected or not.
    pub sessions: u64,
    /// Subscriptions now.
    pub subscriptions: u64,
    /// Retained messages now.
    pub retained: u64,
    /// Bytes of retained messages now.
    pub retained_bytes: u64,
    /// Messages in the memory queues of connected sessions now, rows on their way among them.
    pub queued_messages: u64,
    /// Bytes in the memory queues of connected sessions now, rows on their way and output that no
    /// socket has taken yet among them.
    pub queued_bytes: u64,
    /// Messages sent to clients at QoS 1 or 2 and not acknowledged yet.
    pub inflight: u64,
    /// Wills that wait for their delay now.
    pub wills_waiting: u64,
    /// PUBLISH packets and in-process publishes accepted, since the start.
    pub received: u64,
    /// Messages handed to receivers' sockets.
    pub sent: u64,
    /// Publishes dropped as repeats.
    pub repeats: u64,
    /// Numbered publishes taken without the repeat filter: no room for another topic's mark.
    pub unfiltered: u64,
    /// Publishes refused: no right.
    pub denied: u64,
    /// Publishes refused: no room.
    pub refused_full: u64,
    /// Subscriptions refused: no room.
    pub refused_subscriptions: u64,
    /// Rows in the journal now.
    pub journal_rows: u64,
    /// Bytes in the journal now.
    pub journal_bytes: u64,
    /// Operations waiting for the journal now.
    pub journal_waiting: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Failed commits since the start.
    pub failed_commits: u64,
    /// Dropped messages by reason, since the start.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Ended connections by reason, since the start.
    pub ended: BTreeMap<CutReason, u64>,
    /// Every quota, with what is used of it.
    pub quotas: Vec<Quota>,
}

/// How a message came to its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through memory alone.
    Live,
    /// As a row of the journal.
    Row,
}

/// The live counters.
#[derive(Debug)]
pub(crate) struct Counters {
    connections: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    repeats: AtomicU64,
    unfiltered: AtomicU64,
    denied: AtomicU64,
    refused_full: AtomicU64,
    refused_subscriptions: AtomicU64,
    journal_rows: AtomicU64,
    journal_bytes: AtomicU64,
    retained_bytes: AtomicU64,
    commits: AtomicU64,
    failed_commits: AtomicU64,
    /// From an operation's hand-over to its answer, and of commits alone.
    acknowledgements: Histogram,
    commit_times: Histogram,
    /// From the publisher's socket to the receiver's, by [`Way`].
    deliveries: [Times; 2],
    /// Marks of the repeat filter, those of the sender that has the most, and the most retained
    /// messages of one client.
    repeat_topics: AtomicU64,
    most_repeat_topics: AtomicU64,
    most_retained: AtomicU64,
    rare: Mutex<Rare>,
    /// A planted defect of the quota tests: losses and refusals are not counted.
    #[cfg(test)]
    pub(crate) blind: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Rare {
    dropped: BTreeMap<DropReason, u64>,
    ended: BTreeMap<CutReason, u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            connections: AtomicU64::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            repeats: AtomicU64::default(),
            unfiltered: AtomicU64::default(),
            denied: AtomicU64::default(),
            refused_full: AtomicU64::default(),
            refused_subscriptions: AtomicU64::default(),
            journal_rows: AtomicU64::default(),
            journal_bytes: AtomicU64::default(),
            retained_bytes: AtomicU64::default(),
            commits: AtomicU64::default(),
            failed_commits: AtomicU64::default(),
            acknowledgements: Histogram::new(TIMES),
            commit_times: Histogram::new(TIMES),
            deliveries: Default::default(),
            repeat_topics: AtomicU64::default(),
            most_repeat_topics: AtomicU64::default(),
            most_retained: AtomicU64::default(),
            rare: Mutex::default(),
            #[cfg(test)]
            blind: std::sync::atomic::AtomicBool::new(false),
        }
    }
}

impl Counters {
    /// One batch of publishes has its answer.
    pub(crate) fn acknowledged_after(&self, time: Duration) {
        self.acknowledgements.observe(time.as_secs_f64());
    }

    /// A commit took so long.
    pub(crate) fn commit_took(&self, time: Duration) {
        self.commit_times.observe(time.as_secs_f64());
    }

    /// Messages that came at one microsecond of the running time are with a receiver at another.
    pub(crate) fn delivered(&self, way: Way, now: u64, came: i64, messages: u32) {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let time = Duration::from_micros(now.saturating_sub(came).unsigned_abs());
        let [live, row] = &self.deliveries;
        let times = match way {
            Way::Live => live,
            Way::Row => row,
        };
        times.add(time, messages.into());
    }

    /// Times of deliveries, and how they went.
    pub(crate) fn deliveries(&self) -> [(&'static str, &Times); 2] {
        let [live, row] = &self.deliveries;
        [("live", live), ("journal", row)]
    }

    pub(crate) fn set_repeat_topics(&self, all: usize, most: usize) {
        self.repeat_topics.store(all as u64, Ordering::Relaxed);
        self.most_repeat_topics
            .store(most as u64, Ordering::Relaxed);
    }

    /// Marks of the repeat filter, and those of the sender that has the most.
    pub(crate) fn repeat_topics(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.repeat_topics), read(&self.most_repeat_topics))
    }

    pub(crate) fn set_most_retained(&self, most: usize) {
        self.most_retained.store(most as u64, Ordering::Relaxed);
    }

    pub(crate) fn most_retained(&self) -> u64 {
        self.most_retained.load(Ordering::Relaxed)
    }

    /// Times of acknowledgements, and of commits.
    pub(crate) fn times(&self) -> [&Histogram; 2] {
        [&self.acknowledgements, &self.commit_times]
    }

    /// One more connection past CONNECT.
    pub(crate) fn enter(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, count: u64) {
        self.received.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, count: u64) {
        self.sent.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn repeats(&self, count: u64) {
        self.repeats.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn unfiltered(&self) {
        #[cfg(test)]
        if self.blind.load(Ordering::Relaxed) {
            return;
        }
        self.unfiltered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused_full(&self, count: u64) {
        #[cfg(test)]
        if self.blind.load(Ordering::Relaxed) {
            return;
        }
        self.refused_full.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn refused_quota(&self) {
        #[cfg(test)]
        if self.blind.load(Ordering::Relaxed) {
            return;
        }
        self.refused_subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn journal(&self, rows: u64, bytes: u64) {
        self.journal_rows.store(rows, Ordering::Relaxed);
        self.journal_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_retained_bytes(&self, bytes: usize) {
        self.retained_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn retained_bytes(&self) -> u64 {
        self.retained_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn committed(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn commit_failed(&self) {
        self.failed_commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        #[cfg(test)]
        if self.blind.load(Ordering::Relaxed) {
            return;
        }
        *self.rare().dropped.entry(reason).or_default() += count;
    }

    pub(crate) fn ended(&self, reason: CutReason) {
        #[cfg(test)]
        if self.blind.load(Ordering::Relaxed) {
            return;
        }
        *self.rare().ended.entry(reason).or_default() += 1;
    }

    fn rare(&self) -> MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted here; the rest is filled in by the handle.
    pub(crate) fn figures(&self) -> Figures {
        let rare = self.rare();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            connections: read(&self.connections),
            received: read(&self.received),
            sent: read(&self.sent),
            repeats: read(&self.repeats),
            unfiltered: read(&self.unfiltered),
            denied: read(&self.denied),
            refused_full: read(&self.refused_full),
            refused_subscriptions: read(&self.refused_subscriptions),
            journal_rows: read(&self.journal_rows),
            journal_bytes: read(&self.journal_bytes),
            commits: read(&self.commits),
            failed_commits: read(&self.failed_commits),
            dropped: rare.dropped.clone(),
            ended: rare.ended.clone(),
            ..Figures::default()
        }
    }
}
