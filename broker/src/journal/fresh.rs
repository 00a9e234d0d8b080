//! The rows of the batch under way, gathered and written in runs at its end.
//!
//! Part of `schema`, on the writer thread. New rows come behind all earlier ones of their consumer:
//! written in one go they fill page after page, instead of each being searched its place, with
//! pages split on the way. A third of the time for a row that is alone, a tenth for a thousand.

use std::ops::{Bound, Range};

use holdfast_store::StoreError;

use super::record::{self, Claim};
use super::tables::Tables;
use crate::Message;

/// Fewer rows than this of one consumer are put in one by one: a run would not pay.
const RUN: usize = 4;
/// Memory that is kept from one batch to the next.
const KEPT: usize = 256 << 10;

/// What is to be written before the commit.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    bytes: Vec<u8>,
    rows: Vec<((u32, u64), Range<usize>)>,
    messages: Vec<(u64, Range<usize>)>,
    /// Rows of a message that more than one consumer has.
    shared: Vec<(u64, u32)>,
}

impl Fresh {
    /// Forgets what a failed batch has left.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.rows.clear();
        self.messages.clear();
        self.shared.clear();
    }

    /// A consumer's claim on the row.
    pub(super) fn row(&mut self, consumer: u32, row: u64, claim: &Claim<'_>) {
        let from = self.bytes.len();
        record::append_claim(&mut self.bytes, claim);
        let range = from..self.bytes.len();
        self.rows.push(((consumer, row), range));
    }

    /// A message that `sharers` consumers have.
    pub(super) fn message(&mut self, row: u64, message: &Message, sharers: u32) {
        let from = self.bytes.len();
        record::append_message(&mut self.bytes, message);
        let range = from..self.bytes.len();
        self.messages.push((row, range));
        self.shared.push((row, sharers));
    }

    /// Writes all that was gathered: before the commit, and before anything reads the rows of this
    /// very batch.
    pub(super) fn write(&mut self, tables: &mut Tables<'_>) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        // Each consumer's rows are in order already.
        self.rows.sort_by_key(|(key, _)| *key);
        for run in self.rows.chunk_by(|(a, _), (b, _)| a.0 == b.0) {
            let [((consumer, first), _), ..] = run else {
                continue;
            };
            if run.len() < RUN {
                for (key, range) in run {
                    tables.rows.insert(key, &self.bytes[range.clone()])?;
                }
                continue;
            }
            let end = Bound::Included((*consumer, *first));
            let mut cursor = tables.rows.upper_bound_mut(end)?;
            for (key, range) in run {
                cursor.insert_before(key, &self.bytes[range.clone()])?;
            }
            cursor.close()?;
        }
        if !self.messages.is_empty() {
            let mut cursor = tables.messages.upper_bound_mut(Bound::<u64>::Unbounded)?;
            for (row, range) in &self.messages {
                cursor.insert_before(row, &self.bytes[range.clone()])?;
            }
            cursor.close()?;
            let mut cursor = tables.shared.upper_bound_mut(Bound::<u64>::Unbounded)?;
            for (row, sharers) in &self.shared {
                cursor.insert_before(row, sharers)?;
            }
            cursor.close()?;
        }
        self.clear();
        Ok(())
    }
}
