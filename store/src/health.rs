//! The store's health, for alarms and status pages: a `tokio::sync::watch` fed by the writer thread.
//!
//! It never blocks the writer; a slow watcher sees the latest value only.

use crate::{Quarantined, StoreError};

/// Whether the store takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Open and taking every operation.
    Open,
    /// Open on its reserve: only essential operations are taken until there is space again.
    Full,
    /// Closed after a failed call, being opened again; what arrives waits for the first attempt and
    /// is refused after it.
    Reopening,
    /// The writer thread has ended.
    Closed,
}

/// One snapshot of the store's health.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether the store takes work.
    pub state: State,
    /// How often the file was opened since the start (1 = never reopened).
    pub opened: u64,
    /// How many batches failed.
    pub failed_batches: u64,
    /// The last fault, if any.
    pub last_error: Option<StoreError>,
    /// The damaged file that was moved away at the start, if any.
    pub quarantined: Option<Quarantined>,
}
