//! Counters and gauges of the broker.
//!
//! Counted by all rooms, per batch where it can be; read as [`Figures`] or through a Prometheus
//! registry.

use std::collections::BTreeMap;

use crate::{CutReason, DropReason};

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
    /// Publishes refused: no right.
    pub denied: u64,
    /// Publishes refused: no room.
    pub refused_full: u64,
    /// Rows in the journal now.
    pub journal_rows: u64,
    /// Bytes in the journal now.
    pub journal_bytes: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Failed commits since the start.
    pub failed_commits: u64,
    /// Dropped messages by reason, since the start.
    pub dropped: BTreeMap<DropReason, u64>,
    /// Ended connections by reason, since the start.
    pub ended: BTreeMap<CutReason, u64>,
}
