//! The log's records at the opening: what they tell gets into the tables, with the counts.
//!
//! Part of `schema`, on the writer thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_store::StoreError;
use redb::ReadableTable as _;

use super::recent::{Held, Recent};
use super::row_options;
use super::schema::{Ledger, lock};
use super::tables::{Tables, damaged, decode_row};
use super::told::{self, Head, Item};
use super::{fresh::Fresh, record};
use crate::Message;

impl Ledger {
    pub(super) fn begin_recall(&mut self) {
        lock(&self.recent).begin();
        self.recalled = None;
        self.is_told = false;
        self.staged.clear();
        self.uncounted.clear();
    }

    /// One record, oldest first.
    pub(super) fn recall(&mut self, mut record: &[u8]) -> Result<(), StoreError> {
        let unreadable = || damaged("a record");
        self.recalled = Some(told::head(&mut record).ok_or_else(unreadable)?);
        let mut recent = lock(&self.recent);
        let mut message = None;
        while !record.is_empty() {
            let item = told::item(&mut record).ok_or_else(unreadable)?;
            take(&mut recent, &mut message, item)?;
        }
        Ok(())
    }

    /// Puts what was recalled into the tables.
    pub(super) fn write_recalled(&mut self, tables: &mut Tables<'_>) -> Result<(), StoreError> {
        let Some(head) = self.recalled.take() else {
            return Ok(());
        };
        let recent = lock(&self.recent);
        let new = recent.told_of();
        let mut fresh = Fresh::default();
        let gone = recent.write(tables, &mut fresh)?;
        let consumers: BTreeSet<u32> = new.keys().chain(gone.keys()).copied().collect();
        for consumer in consumers {
            let (rows, bytes) = tables
                .counts
                .get(consumer)?
                .map_or((0, 0), |counts| counts.value());
            let (new_rows, new_bytes) = new.get(&consumer).copied().unwrap_or_default();
            let gone = gone.get(&consumer).copied().unwrap_or_default();
            let rows = (rows + new_rows).saturating_sub(gone.rows);
            let bytes = (bytes + new_bytes).saturating_sub(gone.bytes);
            tables.counts.insert(consumer, (rows, bytes))?;
        }
        drop(recent);
        write_head(tables, head)
    }
}

/// The numbers that change with every batch.
pub(super) fn write_head(tables: &mut Tables<'_>, head: Head) -> Result<(), StoreError> {
    tables.meta.insert("next_row", head.next_row)?;
    tables.meta.insert("broker_seconds", head.broker_seconds)?;
    tables.meta.insert("wall_seconds", head.wall_seconds)?;
    Ok(())
}

/// `message` is the last one that several consumers have.
fn take(
    recent: &mut Recent,
    message: &mut Option<(u64, Arc<Message>)>,
    item: Item<'_>,
) -> Result<(), StoreError> {
    match item {
        Item::Message {
            row,
            message: bytes,
        } => {
            let read = record::message(bytes).ok_or_else(|| damaged("a message"))?;
            *message = Some((row, Arc::new(read)));
        }
        Item::Row {
            consumer,
            row,
            claim,
        } => {
            let head = record::head(claim).ok_or_else(|| damaged("a row"))?;
            let read = decode_row(claim)?;
            let message = match (read.message, &message) {
                (Some(own), _) => Arc::new(own),
                (None, Some((of, message))) if *of == row => Arc::clone(message),
                (None, _) => return Err(damaged("a row without its message")),
            };
            let held = Held {
                message,
                options: row_options(read.qos, read.retain_as_published, read.ids, read.group),
                retained: read.retained,
                shared: !head.sole,
                released: read.released,
            };
            recent.push(consumer, row, head.weight, Some(held));
        }
        Item::Settled { consumer, rows } => {
            for row in rows {
                recent.settle_recalled(consumer, row);
            }
        }
        Item::Released { consumer, rows } => {
            rows.into_iter()
                .for_each(|row| recent.release(consumer, row));
        }
        Item::Mark {
            sender,
            topic,
            mark,
        } => recent.set_mark(&sender.into(), &topic.into(), mark, true),
        Item::Received {
            consumer,
            packet_id,
            is_in,
        } => recent.set_received(consumer, packet_id, is_in),
        Item::Sent { consumer, up_to } => recent.set_sent(consumer, up_to),
    }
    Ok(())
}
