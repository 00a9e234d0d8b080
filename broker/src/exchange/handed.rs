//! What a mailbox hands to its reader: rows of the journal, and the journal's answers.

use std::sync::Arc;

use super::Options;
use crate::Message;

/// A durable consumer's number in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ConsumerId(pub(crate) u32);

/// A row that was committed just now, kept in memory for its reader.
#[derive(Debug, Clone)]
pub(crate) struct TailRow {
    pub(crate) id: u64,
    pub(crate) message: Arc<Message>,
    pub(crate) options: Arc<Options>,
    pub(crate) retained: bool,
}

/// What the journal says to a connection about what it handed in, in that order.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// One code per PUBACK or PUBREC that waits.
    Codes(Vec<u8>),
    /// One code per PUBCOMP that waits.
    Completed(Vec<u8>),
    /// So many PUBACKs and PUBRECs fail.
    Failed(usize),
    /// PUBCOMPs or PUBRELs fail, or rows may not be sent.
    NotCompleted,
    /// The rows that wait for it may be sent.
    Marked,
    /// These outgoing QoS 2 rows are released (PUBREL may go).
    Released(Vec<u64>),
}

/// What the reader got.
#[derive(Debug)]
pub(crate) enum Taken {
    /// These rows, from memory.
    Rows(Vec<TailRow>),
    /// Read the journal after this row, then say so with [`Mailbox::read_done`].
    Behind(u64),
}

/// Where a delivery went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Messages taken.
    pub(crate) taken: usize,
    /// Messages refused: the queue is full.
    pub(crate) refused: usize,
    /// The queue is more than half full: the sender should let others run.
    pub(crate) crowded: bool,
    /// Refused because the memory of all queues is used up.
    pub(crate) starved: bool,
    /// Beyond its own part for the first time: the pool should remember it.
    pub(crate) grown: bool,
}
