//! The outbox's tables and the operations on them, as the store's writer thread runs them.
//!
//! Used by `outbox` alone.

use std::collections::BTreeMap;

use holdfast_store::{Halt, Reader, Schema, StoreError};
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::{oneshot, watch};

use super::Append;

/// Row id -> (name, epoch, seq, reading). Ids only grow.
const ROWS: TableDefinition<u64, (&str, u64, u64, &[u8])> = TableDefinition::new("rows");
/// Name -> (last seq given, last seq acknowledged, readings acknowledged).
const TOPICS: TableDefinition<&str, (u64, u64, u64)> = TableDefinition::new("topics");
/// Name -> where the sensor goes on.
const POSITIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("positions");
/// Single numbers, by the names below.
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");

const EPOCH: &str = "epoch";
const NEXT_ROW: &str = "next row";
const BYTES: &str = "bytes";

/// Counted for each row beside its reading.
const ROW_OVERHEAD: u64 = 64;

/// What is numbered in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// The readings of each sensor, since each has a topic of its own.
    Each,
    /// All readings, since they share one topic.
    All,
}

/// The one row of [`Numbering::All`].
const ALL: &str = "telemetry";

/// A reading with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the outbox.
    pub id: u64,
    /// Its sensor; the last part of its topic, if each has one.
    pub name: String,
    /// With `seq`: its number, unique within its topic for ever.
    pub epoch: u64,
    /// Counts within (topic, epoch), from 1.
    pub seq: u64,
    /// What was measured.
    pub reading: Vec<u8>,
}

/// How much waits in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Level {
    /// Readings.
    pub rows: u64,
    /// Their bytes, as counted against the bound.
    pub bytes: u64,
    /// The id of the newest row ever: grows when there is something new to send.
    pub newest: u64,
}

/// The counters of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Topic {
    /// The number given to its newest reading.
    pub last: u64,
    /// The number of the reading acknowledged last.
    pub acknowledged: u64,
    /// How many of its readings were acknowledged in all.
    pub count: u64,
}

type Reply = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
pub(crate) enum Op {
    Append { append: Append, reply: Reply },
    Acknowledge { ids: Vec<u64>, reply: Reply },
    Restamp { id: u64, reply: Reply },
    Epoch { epoch: u64, reply: Reply },
}

impl Op {
    fn reply(self, result: Result<(), StoreError>) {
        let (Self::Append { reply, .. }
        | Self::Acknowledge { reply, .. }
        | Self::Restamp { reply, .. }
        | Self::Epoch { reply, .. }) = self;
        // Whoever asked may be gone: the work is done all the same.
        let _ = reply.send(result);
    }
}

/// The schema, with the numbers that every commit changes.
#[derive(Debug)]
pub(crate) struct Rows {
    numbering: Numbering,
    level: watch::Sender<Level>,
    epoch: u64,
    next: u64,
    rows: u64,
    bytes: u64,
}

impl Rows {
    pub(crate) fn new(numbering: Numbering) -> (Self, watch::Receiver<Level>) {
        let (level, watching) = watch::channel(Level::default());
        (
            Self {
                numbering,
                level,
                epoch: 0,
                next: 1,
                rows: 0,
                bytes: 0,
            },
            watching,
        )
    }

    fn lane<'a>(&self, name: &'a str) -> &'a str {
        match self.numbering {
            Numbering::Each => name,
            Numbering::All => ALL,
        }
    }

    fn tell(&self) {
        let level = Level {
            rows: self.rows,
            bytes: self.bytes,
            newest: self.next - 1,
        };
        self.level.send_if_modified(|former| {
            let changed = *former != level;
            *former = level;
            changed
        });
    }
}

/// The tables of one transaction.
struct Open<'t> {
    rows: Table<'t, u64, (&'static str, u64, u64, &'static [u8])>,
    topics: Table<'t, &'static str, (u64, u64, u64)>,
    positions: Table<'t, &'static str, &'static [u8]>,
    numbers: Table<'t, &'static str, u64>,
}

impl<'t> Open<'t> {
    fn new(tx: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            rows: tx.open_table(ROWS)?,
            topics: tx.open_table(TOPICS)?,
            positions: tx.open_table(POSITIONS)?,
            numbers: tx.open_table(NUMBERS)?,
        })
    }

    fn number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        Ok(self.numbers.get(name)?.map(|number| number.value()))
    }

    fn topic(&self, name: &str) -> Result<Topic, StoreError> {
        let found = self.topics.get(name)?.map(|found| found.value());
        let (last, acknowledged, count) = found.unwrap_or_default();
        Ok(Topic {
            last,
            acknowledged,
            count,
        })
    }

    fn set_topic(&mut self, name: &str, topic: Topic) -> Result<(), StoreError> {
        self.topics
            .insert(name, (topic.last, topic.acknowledged, topic.count))?;
        Ok(())
    }
}

impl Schema for Rows {
    type Op = Op;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        use redb::ReadableTableMetadata;
        let tables = Open::new(tx)?;
        self.epoch = tables.number(EPOCH)?.unwrap_or(0);
        self.next = tables.number(NEXT_ROW)?.unwrap_or(1);
        self.bytes = tables.number(BYTES)?.unwrap_or(0);
        self.rows = tables.rows.len()?;
        self.tell();
        Ok(())
    }

    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Op]) -> Result<(), Halt> {
        let mut tables = Open::new(tx)?;
        for op in ops {
            match op {
                Op::Append { append, .. } => self.append(&mut tables, append)?,
                Op::Acknowledge { ids, .. } => self.acknowledge(&mut tables, ids)?,
                Op::Restamp { id, .. } => self.restamp(&mut tables, *id)?,
                Op::Epoch { epoch, .. } => self.begin_epoch(&mut tables, *epoch)?,
            }
        }
        tables.numbers.insert(NEXT_ROW, self.next)?;
        tables.numbers.insert(BYTES, self.bytes)?;
        Ok(())
    }

    fn done(&mut self, ops: Vec<Op>) {
        self.tell();
        ops.into_iter().for_each(|op| op.reply(Ok(())));
    }

    fn failed(&mut self, ops: Vec<Op>, error: &StoreError) {
        ops.into_iter().for_each(|op| op.reply(Err(error.clone())));
    }

    /// On a full disk: removing readings frees space, adding them does not.
    fn essential(op: &Op) -> bool {
        !matches!(op, Op::Append { .. })
    }
}

impl Rows {
    fn append(&mut self, tables: &mut Open<'_>, append: &Append) -> Result<(), StoreError> {
        let lane = self.lane(&append.name);
        let mut topic = tables.topic(lane)?;
        for reading in &append.readings {
            topic.last += 1;
            let value = (
                append.name.as_str(),
                self.epoch,
                topic.last,
                reading.as_slice(),
            );
            tables.rows.insert(self.next, value)?;
            self.next += 1;
            self.rows += 1;
            self.bytes += weight(reading);
        }
        tables.set_topic(lane, topic)?;
        tables
            .positions
            .insert(append.name.as_str(), append.position.as_slice())?;
        Ok(())
    }

    fn acknowledge(&mut self, tables: &mut Open<'_>, ids: &[u64]) -> Result<(), StoreError> {
        for id in ids {
            let Some(row) = take(tables, *id)? else {
                continue;
            };
            self.rows -= 1;
            self.bytes = self.bytes.saturating_sub(weight(&row.reading));
            let lane = self.lane(&row.name);
            let mut topic = tables.topic(lane)?;
            // Of a former epoch: its number says nothing about this one's.
            if row.epoch == self.epoch {
                topic.acknowledged = topic.acknowledged.max(row.seq);
            }
            topic.count += 1;
            tables.set_topic(lane, topic)?;
        }
        Ok(())
    }

    fn restamp(&mut self, tables: &mut Open<'_>, id: u64) -> Result<(), StoreError> {
        let Some(row) = take(tables, id)? else {
            return Ok(());
        };
        let lane = self.lane(&row.name);
        let mut topic = tables.topic(lane)?;
        topic.last += 1;
        let value = (
            row.name.as_str(),
            self.epoch,
            topic.last,
            row.reading.as_slice(),
        );
        tables.rows.insert(self.next, value)?;
        self.next += 1;
        tables.set_topic(lane, topic)
    }

    /// Numbers begin again; what waits keeps those of its own epoch.
    fn begin_epoch(&mut self, tables: &mut Open<'_>, epoch: u64) -> Result<(), StoreError> {
        let names: Vec<String> = names(&tables.topics)?;
        for name in names {
            let count = tables.topic(&name)?.count;
            tables.set_topic(
                &name,
                Topic {
                    count,
                    ..Topic::default()
                },
            )?;
        }
        tables.numbers.insert(EPOCH, epoch)?;
        self.epoch = epoch;
        Ok(())
    }
}

fn names(
    topics: &impl ReadableTable<&'static str, (u64, u64, u64)>,
) -> Result<Vec<String>, StoreError> {
    topics
        .iter()?
        .map(|row| Ok(row?.0.value().to_owned()))
        .collect()
}

fn take(tables: &mut Open<'_>, id: u64) -> Result<Option<Row>, StoreError> {
    Ok(tables.rows.remove(id)?.map(|found| row(id, found.value())))
}

fn row(id: u64, (name, epoch, seq, reading): (&str, u64, u64, &[u8])) -> Row {
    Row {
        id,
        name: name.to_owned(),
        epoch,
        seq,
        reading: reading.to_vec(),
    }
}

fn weight(reading: &[u8]) -> u64 {
    reading.len() as u64 + ROW_OVERHEAD
}

pub(crate) fn after(reader: &Reader, id: u64, most: usize) -> Result<Vec<Row>, StoreError> {
    reader.read(|tx| {
        let rows = tx.open_table(ROWS)?;
        let mut found = Vec::new();
        for entry in rows.range(id + 1..)?.take(most) {
            let (id, value) = entry?;
            found.push(row(id.value(), value.value()));
        }
        Ok(found)
    })
}

pub(crate) fn position(reader: &Reader, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    reader.read(|tx| {
        Ok(tx
            .open_table(POSITIONS)?
            .get(name)?
            .map(|found| found.value().to_vec()))
    })
}

pub(crate) fn epoch(reader: &Reader) -> Result<Option<u64>, StoreError> {
    reader.read(|tx| {
        Ok(tx
            .open_table(NUMBERS)?
            .get(EPOCH)?
            .map(|found| found.value()))
    })
}

pub(crate) fn topics(reader: &Reader) -> Result<BTreeMap<String, Topic>, StoreError> {
    reader.read(|tx| {
        let mut found = BTreeMap::new();
        for row in tx.open_table(TOPICS)?.iter()? {
            let (name, value) = row?;
            let (last, acknowledged, count) = value.value();
            found.insert(
                name.value().to_owned(),
                Topic {
                    last,
                    acknowledged,
                    count,
                },
            );
        }
        Ok(found)
    })
}
