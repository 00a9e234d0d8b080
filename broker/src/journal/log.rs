//! Batches that the log can tell: publishes, acknowledgements, packet ids and marks, while no quota is near.
//!
//! Part of `schema`, on the writer thread. All else goes to the tables, and takes along what was told before: see `schema`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use holdfast_store::{Reader, StoreError};
use redb::ReadTransaction;

use super::op::{Entry, Op};
use super::recent::{Held, MOST_ROWS, Mark};
use super::record;
use super::schema::{Ledger, lock};
use super::tables::{RECEIVED, REPEATS, Tables};
use super::told::{HEAD, Head, ITEM, Telling};
use crate::exchange::Mailbox;

/// Where a batch is being put.
pub(super) enum At<'a, 'tx> {
    Tables(&'a mut Tables<'tx>),
    Log(Log<'a>),
}

impl<'tx> At<'_, 'tx> {
    /// The tables, for what no batch is loggable with.
    pub(super) fn tables(&mut self) -> Result<&mut Tables<'tx>, StoreError> {
        match self {
            At::Tables(tables) => Ok(tables),
            At::Log(_) => Err(StoreError::Misuse(
                "told in the log what needs tables".into(),
            )),
        }
    }
}

/// A record of the log under way.
pub(super) struct Log<'a> {
    pub(super) telling: Telling<'a>,
    reader: &'a Reader,
    /// The tables as they are, once somebody has asked.
    snapshot: Option<ReadTransaction>,
}

impl Log<'_> {
    fn snapshot(&mut self) -> Result<&ReadTransaction, StoreError> {
        match &mut self.snapshot {
            Some(snapshot) => Ok(snapshot),
            none => Ok(none.insert(self.reader.begin()?)),
        }
    }

    pub(super) fn mark(&mut self, sender: &str, topic: &str) -> Result<Option<Mark>, StoreError> {
        let repeats = self.snapshot()?.open_table(REPEATS)?;
        Ok(repeats.get((sender, topic))?.map(|mark| mark.value()))
    }

    fn received(&mut self, consumer: u32, packet_id: u16) -> Result<bool, StoreError> {
        let received = self.snapshot()?.open_table(RECEIVED)?;
        Ok(received.get((consumer, packet_id))?.is_some())
    }
}

/// Places kept from one batch to the next.
const KEPT: usize = 4096;

/// What a batch asks for at most.
#[derive(Default)]
struct Asked {
    entries: u64,
    /// Of one consumer.
    bytes: u64,
    /// Of all together.
    rows: u64,
    all_bytes: u64,
    /// Rows that one consumer may get of a message: more than one when it shares a subscription.
    copies: u64,
    told: usize,
}

impl Ledger {
    /// The most bytes of the batch's record; `None` when the tables are needed.
    pub(super) fn most_told(&self, ops: &[Op]) -> Option<usize> {
        let mut asked = Asked {
            copies: 1,
            ..Asked::default()
        };
        for op in ops {
            asked.told += match op {
                Op::Accept { entries, .. } => asked.entries_of(entries)?,
                Op::Settle { consumer, rows, .. } => {
                    let recent = lock(&self.recent);
                    if !rows.iter().all(|row| recent.knows(consumer.0, *row)) {
                        return None;
                    }
                    ITEM + 8 * rows.len()
                }
                Op::Release { consumer, rows, .. } => {
                    let recent = lock(&self.recent);
                    if !rows.iter().all(|row| recent.can_release(consumer.0, *row)) {
                        return None;
                    }
                    ITEM + 8 * rows.len()
                }
                Op::Forget { packet_ids, .. } => ITEM * packet_ids.len(),
                Op::Sent { .. } => ITEM,
                Op::Tick => 0,
                Op::Open { .. }
                | Op::Left { .. }
                | Op::Drop { .. }
                | Op::Subscriptions { .. }
                | Op::Will { .. }
                | Op::NoWill { .. }
                | Op::Unretain { .. } => return None,
            };
        }
        self.has_room_for(ops, &asked).then_some(HEAD + asked.told)
    }

    /// Whether no quota comes into question: what is to be dropped then, the tables say.
    fn has_room_for(&self, ops: &[Op], asked: &Asked) -> bool {
        let limits = &self.core.config.limits;
        if asked.entries == 0 {
            return true;
        }
        if asked.rows > MOST_ROWS as u64 {
            return false;
        }
        if self.rows.saturating_add(asked.rows) > limits.journal_rows
            || self.bytes.saturating_add(asked.all_bytes) > limits.journal_bytes
        {
            return false;
        }
        let (rows, bytes) = (asked.entries * asked.copies, asked.bytes * asked.copies);
        let fits = |mailbox: &Mailbox| {
            let Some(id) = mailbox.consumer() else {
                return true;
            };
            // One that is gone gets nothing: the tables' way sees to it.
            self.accounts.get(&id.0).is_some_and(|account| {
                account.rows.saturating_add(rows) <= account.max_rows
                    && account.bytes.saturating_add(bytes) <= account.max_bytes
            })
        };
        let mut seen = None;
        ops.iter().filter_map(entries_of).flatten().all(|entry| {
            if let Some((mailbox, _)) = &entry.only {
                return fits(mailbox);
            }
            let again = seen == Some(Arc::as_ptr(&entry.route));
            seen = Some(Arc::as_ptr(&entry.route));
            again || entry.route.receivers().all(|target| fits(&target.mailbox))
        })
    }

    /// Tells the batch.
    pub(super) fn tell(
        &mut self,
        reader: &Reader,
        ops: &mut [Op],
        record: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.begun = Instant::now();
        self.is_told = true;
        self.staged.clear();
        self.disk_low = !self.disk.has_room_for(ops, lock(&self.recent).bytes());
        let mut at = At::Log(Log {
            telling: Telling::begin(record),
            reader,
            snapshot: None,
        });
        for op in ops {
            self.tell_one(&mut at, op)?;
        }
        self.uncounted.extend(&self.touched);
        if let At::Log(log) = at {
            log.telling.end(self.head());
        }
        Ok(())
    }

    pub(super) fn head(&self) -> Head {
        Head {
            next_row: self.next_row,
            broker_seconds: self.core.clock.now(),
            wall_seconds: self.core.config.wall.seconds(),
        }
    }

    fn tell_one(&mut self, at: &mut At<'_, '_>, op: &mut Op) -> Result<(), StoreError> {
        if let Op::Accept { entries, .. } = op {
            for entry in entries {
                self.accept(at, entry)?;
            }
            return Ok(());
        }
        let At::Log(log) = at else { return Ok(()) };
        match op {
            Op::Settle { consumer, rows, .. } => {
                log.telling.settled(consumer.0, rows);
                self.settle_told(consumer.0, rows)?;
            }
            Op::Release { consumer, rows, .. } => {
                log.telling.released(consumer.0, rows);
                let released = rows.iter().map(|row| (consumer.0, *row));
                self.staged.released.extend(released);
            }
            Op::Sent {
                consumer, up_to, ..
            } if self.accounts.contains_key(&consumer.0) => {
                log.telling.sent(consumer.0, *up_to);
                lock(&self.recent).set_sent(consumer.0, *up_to);
            }
            Op::Forget {
                consumer,
                packet_ids,
                codes,
                ..
            } => {
                codes.clear();
                for packet_id in packet_ids {
                    let known = self.forget_told(log, consumer.0, *packet_id)?;
                    codes.push(super::schema::forgotten(known));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Forgets an incoming QoS 2 packet id; false when there is none.
    fn forget_told(
        &mut self,
        log: &mut Log<'_>,
        consumer: u32,
        packet_id: u16,
    ) -> Result<bool, StoreError> {
        let staged = self.staged.received.get(&(consumer, packet_id)).copied();
        let lately = staged.or_else(|| lock(&self.recent).received(consumer, packet_id));
        let known = match lately {
            Some(known) => known,
            None => log.received(consumer, packet_id)?,
        };
        if known {
            log.telling.received(consumer, packet_id, false);
            self.staged.received.insert((consumer, packet_id), false);
        }
        Ok(known)
    }
}

impl Asked {
    /// Adds these; gives the most bytes they take. `None` when one changes a retained slot.
    fn entries_of(&mut self, entries: &[Entry]) -> Option<usize> {
        let mut told = 0;
        let mut seen = None;
        let (mut receivers, mut claims) = (0, 0);
        for entry in entries {
            if entry.message.retain && entry.only.is_none() {
                return None;
            }
            let mut copies = 1;
            if let Some((_, options)) = &entry.only {
                (receivers, claims) = (1, ITEM + record::claim_bytes(options));
                seen = None;
            } else {
                let route = &entry.route;
                copies += route.groups.len();
                if seen != Some(Arc::as_ptr(route)) {
                    seen = Some(Arc::as_ptr(route));
                    let sizes = route.receivers().map(|to| record::claim_bytes(&to.options));
                    (receivers, claims) = sizes.fold((0, 0), |(count, bytes), size| {
                        (count + 1, bytes + ITEM + size)
                    });
                }
            }
            let stamp = entry.stamp.as_ref().map_or(0, |stamp| {
                ITEM + stamp.sender.len() + entry.message.topic.len()
            });
            told += copies * (ITEM + record::message_bytes(&entry.message)) + claims + stamp + ITEM;
            let weight = entry.message.weight() as u64;
            self.entries += 1;
            self.bytes += weight;
            self.rows += receivers;
            self.all_bytes += weight * receivers;
            self.copies = self.copies.max(copies as u64);
        }
        Some(told)
    }
}

fn entries_of(op: &Op) -> Option<&Vec<Entry>> {
    match op {
        Op::Accept { entries, .. } => Some(entries),
        _ => None,
    }
}

/// What a batch adds once it is safe: nobody may read it before.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// (consumer, row, weight, what is in the log).
    pub(super) rows: Vec<(u32, u64, u32, Option<Held>)>,
    pub(super) received: HashMap<(u32, u16), bool>,
    pub(super) released: Vec<(u32, u64)>,
    /// Rows that a batch of the tables took from them.
    pub(super) settled: Vec<(u32, u64)>,
}

impl Staged {
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.rows.shrink_to(KEPT);
        self.received.clear();
        self.released.clear();
        self.settled.clear();
        self.settled.shrink_to(KEPT);
    }

    /// Takes a row of this very batch back.
    pub(super) fn remove(&mut self, consumer: u32, row: u64) {
        let is_it =
            |(of, known, ..): &(u32, u64, u32, Option<Held>)| (*of, *known) == (consumer, row);
        if let Some(at) = self.rows.iter().position(is_it) {
            self.rows.remove(at);
        }
    }
}
