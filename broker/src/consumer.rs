//! A durable in-process consumer: a bridge rule reads its rows, and takes them away one by one.
//!
//! Made by [`crate::Broker::consumer`]. A row stays until it is acknowledged, over restarts.

use std::sync::Arc;

use crate::{Message, WhenFull};

/// Identifies a row of one consumer; later rows have higher ids, ids are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u64);

impl RowId {
    /// Before the first row.
    pub const START: Self = Self(0);
}

/// One journalled message of a consumer.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its id.
    pub id: RowId,
    /// The message.
    pub message: Arc<Message>,
}

/// The bounds of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// Messages it may have waiting.
    pub max_rows: u64,
    /// Bytes it may have waiting.
    pub max_bytes: u64,
    /// What happens to the next one.
    pub when_full: WhenFull,
    /// Whether QoS 0 messages are journalled for it too (they are never acknowledged).
    pub take_qos0: bool,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            max_rows: 10_000_000,
            max_bytes: 1 << 30,
            when_full: WhenFull::Refuse,
            take_qos0: false,
        }
    }
}

/// Why a consumer cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConsumerError {
    /// The journal's disk.
    #[error("the journal failed: {0}")]
    Store(#[from] holdfast_store::StoreError),
    /// A filter that is none.
    #[error("not a topic filter: {0}")]
    Filter(Box<str>),
    /// The consumer was removed.
    #[error("the consumer {0} was removed")]
    Gone(Arc<str>),
}

/// The handle of a durable consumer. One reader at a time makes sense; clones see the same rows.
#[derive(Clone, Debug)]
pub struct Consumer {}

impl Consumer {
    /// The rows after `after`, oldest first, at most `max`; reads memory or the journal's snapshot.
    /// Rows stay until acknowledged, so a reader keeps its own place. Expired messages are left out
    /// (and removed).
    ///
    /// # Errors
    /// When the journal fails.
    #[allow(clippy::unused_async)]
    pub async fn read(&self, after: RowId, max: usize) -> Result<Vec<Row>, ConsumerError> {
        let _ = (after, max);
        todo!()
    }

    /// Waits until a row after `after` is there.
    #[allow(clippy::unused_async)]
    pub async fn ready(&self, after: RowId) {
        let _ = after;
        todo!()
    }

    /// Takes rows away for good; returns after the commit. Unknown ids do nothing.
    ///
    /// # Errors
    /// When the journal fails: acknowledge again.
    #[allow(clippy::unused_async)]
    pub async fn acknowledge(&self, rows: &[RowId]) -> Result<(), ConsumerError> {
        let _ = rows;
        todo!()
    }

    /// How many rows wait.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        todo!()
    }
}
