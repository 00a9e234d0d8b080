//! The tables of the journal in redb, and the small operations on them.
//!
//! Used by `schema` within a write transaction and for snapshots. Row numbers grow for ever and are
//! never used again: a consumer's place and a QoS 2 packet id depend on that.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use holdfast_store::StoreError;
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};

use super::record::{self, Row};
use super::{StoredRow, row_options};
use crate::Message;
use crate::exchange::TailRow;

/// Numbers by name: `next_row`, `next_consumer`, the clocks.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Row number -> message, when more than one consumer has it.
pub(super) const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");
/// Row number -> how many consumers have it, when more than one.
pub(super) const SHARED: TableDefinition<u64, u32> = TableDefinition::new("shared");
/// (consumer, row number) -> its claim, and the message when no other consumer has it.
pub(super) const ROWS: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("rows");
/// Consumer -> (rows, bytes).
pub(super) const COUNTS: TableDefinition<u32, (u64, u64)> = TableDefinition::new("counts");
/// Consumer -> who it is.
pub(super) const CONSUMERS: TableDefinition<u32, &[u8]> = TableDefinition::new("consumers");
/// (consumer, filter as asked) -> options.
pub(super) const SUBSCRIPTIONS: TableDefinition<(u32, &str), &[u8]> =
    TableDefinition::new("subscriptions");
/// Topic -> message.
pub(super) const RETAINED: TableDefinition<&str, &[u8]> = TableDefinition::new("retained");
/// (sender, topic) -> highest (epoch, seq) committed.
pub(super) const REPEATS: TableDefinition<(&str, &str), (u64, u64)> =
    TableDefinition::new("repeats");
/// (consumer, packet id) of incoming QoS 2 messages between PUBREC and PUBREL.
pub(super) const RECEIVED: TableDefinition<(u32, u16), ()> = TableDefinition::new("received");

/// Consumer -> the last row of limited life that may have been sent: no such row after it was.
pub(super) const SENT: TableDefinition<u32, u64> = TableDefinition::new("sent");
/// Client id -> its will, while it is connected or the will waits.
pub(super) const WILLS: TableDefinition<&str, &[u8]> = TableDefinition::new("wills");

/// All tables of one transaction.
pub(super) struct Tables<'tx> {
    pub(super) meta: Table<'tx, &'static str, u64>,
    pub(super) messages: Table<'tx, u64, &'static [u8]>,
    pub(super) shared: Table<'tx, u64, u32>,
    pub(super) rows: Table<'tx, (u32, u64), &'static [u8]>,
    pub(super) counts: Table<'tx, u32, (u64, u64)>,
    pub(super) consumers: Table<'tx, u32, &'static [u8]>,
    pub(super) subscriptions: Table<'tx, (u32, &'static str), &'static [u8]>,
    pub(super) retained: Table<'tx, &'static str, &'static [u8]>,
    pub(super) repeats: Table<'tx, (&'static str, &'static str), (u64, u64)>,
    pub(super) received: Table<'tx, (u32, u16), ()>,
    pub(super) sent: Table<'tx, u32, u64>,
    pub(super) wills: Table<'tx, &'static str, &'static [u8]>,
}

impl<'tx> Tables<'tx> {
    pub(super) fn open(tx: &'tx WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            meta: tx.open_table(META)?,
            messages: tx.open_table(MESSAGES)?,
            shared: tx.open_table(SHARED)?,
            rows: tx.open_table(ROWS)?,
            counts: tx.open_table(COUNTS)?,
            consumers: tx.open_table(CONSUMERS)?,
            subscriptions: tx.open_table(SUBSCRIPTIONS)?,
            retained: tx.open_table(RETAINED)?,
            repeats: tx.open_table(REPEATS)?,
            received: tx.open_table(RECEIVED)?,
            sent: tx.open_table(SENT)?,
            wills: tx.open_table(WILLS)?,
        })
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.meta.get(name)?.map(|value| value.value()))
    }

    /// Takes a row away, and the message with its last one. Gives the weight, when it was there.
    pub(super) fn settle(&mut self, consumer: u32, row: u64) -> Result<Option<u64>, StoreError> {
        let head = {
            let Some(found) = self.rows.remove((consumer, row))? else {
                return Ok(None);
            };
            record::head(found.value()).ok_or_else(|| damaged("a row"))?
        };
        if !head.holds {
            self.let_go(row, head.sole)?;
        }
        Ok(Some(u64::from(head.weight)))
    }

    /// A row that does not hold its message is gone: with the last one the message goes.
    pub(super) fn let_go(&mut self, row: u64, sole: bool) -> Result<(), StoreError> {
        if !sole {
            let left = self.shared.get(row)?.map_or(1, |count| count.value());
            if left > 1 {
                self.shared.insert(row, left - 1)?;
                return Ok(());
            }
            self.shared.remove(row)?;
        }
        self.messages.remove(row)?;
        Ok(())
    }

    /// The first row of a consumer after `after`.
    pub(super) fn first_after(&self, consumer: u32, after: u64) -> Result<Option<u64>, StoreError> {
        let range = (consumer, after.saturating_add(1))..=(consumer, u64::MAX);
        let Some(found) = self.rows.range(range)?.next() else {
            return Ok(None);
        };
        Ok(Some(found?.0.value().1))
    }

    /// All rows of a consumer, at most `max`.
    pub(super) fn rows_of(&self, consumer: u32, max: usize) -> Result<Vec<u64>, StoreError> {
        let mut rows = Vec::new();
        for found in self
            .rows
            .range((consumer, 0)..=(consumer, u64::MAX))?
            .take(max)
        {
            rows.push(found?.0.value().1);
        }
        Ok(rows)
    }
}

/// At most `max` rows of a consumer after `after`, with their messages, up to the one with which
/// `bytes` are reached; and whether there may be more. With what [`super::recent::Recent::after`] gave when the transaction
/// began.
pub(super) fn rows_after(
    tx: &ReadTransaction,
    consumer: u32,
    after: u64,
    max: usize,
    bytes: usize,
    (told, settled): (Vec<StoredRow>, BTreeSet<u64>),
) -> Result<(Vec<StoredRow>, bool), StoreError> {
    let rows = tx.open_table(ROWS)?;
    let messages = tx.open_table(MESSAGES)?;
    let range = (consumer, after.saturating_add(1))..=(consumer, u64::MAX);
    let mut found = Vec::new();
    let mut weight = 0;
    for entry in rows.range(range)? {
        if found.len() >= max || weight >= bytes {
            return Ok((found, true));
        }
        let (key, value) = entry?;
        let id = key.value().1;
        if settled.contains(&id) {
            continue;
        }
        let row = decode_row(value.value())?;
        let message = match row.message {
            Some(message) => message,
            None => elsewhere(&messages, id)?,
        };
        weight += message.weight();
        found.push(StoredRow {
            row: TailRow {
                id,
                message: Arc::new(message),
                options: row_options(row.qos, row.retain_as_published, row.ids, row.group),
                retained: row.retained,
            },
            released: row.released,
        });
    }
    // Behind all of the tables, but for those that have just got there.
    let last = found.last().map_or(after, |stored| stored.row.id);
    for stored in told.into_iter().filter(|stored| stored.row.id > last) {
        if found.len() >= max || weight >= bytes {
            return Ok((found, true));
        }
        weight += stored.row.message.weight();
        found.push(stored);
    }
    Ok((found, false))
}

fn elsewhere(
    messages: &ReadOnlyTable<u64, &'static [u8]>,
    row: u64,
) -> Result<Message, StoreError> {
    let bytes = messages
        .get(row)?
        .ok_or_else(|| damaged("a row without its message"))?;
    record::message(bytes.value()).ok_or_else(|| damaged("a message"))
}

pub(super) fn received_of(tx: &ReadTransaction, consumer: u32) -> Result<HashSet<u16>, StoreError> {
    let received = tx.open_table(RECEIVED)?;
    let mut found = HashSet::new();
    for entry in received.range((consumer, 0)..=(consumer, u16::MAX))? {
        found.insert(entry?.0.value().1);
    }
    Ok(found)
}

pub(super) fn decode_row(bytes: &[u8]) -> Result<Row, StoreError> {
    Row::decode(bytes).ok_or_else(|| damaged("a row"))
}

pub(super) fn damaged(what: &str) -> StoreError {
    StoreError::Damaged {
        path: std::path::PathBuf::new(),
        why: format!("{what} in the journal cannot be read").into(),
    }
}
