//! Counters and gauges of the broker.
//!
//! Counted by all rooms, per batch where it can be; read as [`Figures`] or through a Prometheus
//! registry.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::{Broker, CutReason, DropReason};

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
}

/// The live counters.
#[derive(Debug, Default)]
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
    commits: AtomicU64,
    failed_commits: AtomicU64,
    rare: Mutex<Rare>,
}

#[derive(Debug, Default)]
struct Rare {
    dropped: BTreeMap<DropReason, u64>,
    ended: BTreeMap<CutReason, u64>,
}

impl Counters {
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
        self.unfiltered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused_full(&self, count: u64) {
        self.refused_full.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn refused_quota(&self) {
        self.refused_subscriptions.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn journal(&self, rows: u64, bytes: u64) {
        self.journal_rows.store(rows, Ordering::Relaxed);
        self.journal_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn commit_failed(&self) {
        self.failed_commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, reason: DropReason, count: u64) {
        *self.rare().dropped.entry(reason).or_default() += count;
    }

    pub(crate) fn ended(&self, reason: CutReason) {
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

/// The figures as Prometheus metrics, read when they are asked for.
#[derive(Debug)]
pub(crate) struct Exposition(pub(crate) Broker);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let figures = self.0.metrics();
        let gauges = [
            ("connections", "Clients connected now", figures.connections),
            (
                "sessions",
                "Sessions now, connected or not",
                figures.sessions,
            ),
            ("subscriptions", "Subscriptions now", figures.subscriptions),
            (
                "retained_messages",
                "Retained messages now",
                figures.retained,
            ),
            (
                "journal_rows",
                "Messages waiting in the journal",
                figures.journal_rows,
            ),
            (
                "journal_waiting",
                "Operations waiting for the journal",
                figures.journal_waiting,
            ),
            (
                "journal_bytes",
                "Bytes waiting in the journal",
                figures.journal_bytes,
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("broker_{name}");
            gauge.encode(encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?)?;
        }
        let counters = [
            ("received", "Publishes accepted", figures.received),
            ("sent", "Messages sent to clients", figures.sent),
            (
                "unfiltered",
                "Numbered publishes without the repeat filter",
                figures.unfiltered,
            ),
            ("repeats", "Publishes dropped as repeats", figures.repeats),
            (
                "denied",
                "Publishes refused for want of rights",
                figures.denied,
            ),
            (
                "refused_full",
                "Publishes refused for want of room",
                figures.refused_full,
            ),
            ("commits", "Commits of the journal", figures.commits),
            (
                "failed_commits",
                "Failed commits of the journal",
                figures.failed_commits,
            ),
        ];
        for (name, help, value) in counters {
            let name = format!("broker_{name}");
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(&name, help, None, MetricType::Counter)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "broker_dropped",
            "Messages dropped",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in &figures.dropped {
            let labels = [("reason", format!("{reason:?}"))];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "broker_ended",
            "Connections ended",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in &figures.ended {
            let labels = [("reason", format!("{reason:?}"))];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
