//! What the log has told and the tables have not got yet, and which of their last rows they have.
//!
//! Part of `schema`, shared with those who read: rows are looked for in the tables and here, under one lock, so that none is
//! missed while it moves. The writer thread alone changes it. A row that is settled before it reaches the tables never costs
//! them anything; that is what most rows of a bridge or of a connected session do.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use holdfast_store::StoreError;

use super::StoredRow;
use super::fresh::Fresh;
use super::record::Claim;
use super::settle::{Gone, take_away};
use super::tables::Tables;
use crate::Message;
use crate::exchange::{Options, TailRow};

/// Bytes of rows that the tables lack, and rows that are known in all: then a checkpoint is due.
const MOST_BYTES: u64 = 4 << 20;
pub(super) const MOST_ROWS: usize = 128 << 10;
/// Rows of one consumer that stay known after they have got into the tables, and of all.
const KNOWN_ROWS: usize = 8 << 10;
const KNOWN_ROWS_OF_ALL: usize = 64 << 10;
/// Marks of the repeat filter that stay known.
const KNOWN_MARKS: usize = 16 << 10;
/// Marks and packet ids that make a checkpoint due.
const MOST_MARKS: usize = 64 << 10;

/// By consumer. Their numbers are ours, one after the other: nobody can choose them so that they meet.
pub(super) type ByConsumer<T> = HashMap<u32, T, BuildHasherDefault<Numbers>>;

/// Spreads small numbers.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Numbers(u64);

impl Hasher for Numbers {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// (epoch, seq)
pub(super) type Mark = (u64, u64);

/// True = the tables lack it.
type ByTopic = HashMap<Arc<str>, (Mark, bool)>;

/// The row of a consumer as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) message: Arc<Message>,
    pub(super) options: Arc<Options>,
    /// Sent because of a new subscription.
    pub(super) retained: bool,
    /// Others have a row of this number too.
    pub(super) shared: bool,
    /// Outgoing QoS 2, PUBREC seen.
    pub(super) released: bool,
}

/// Where a row is.
#[derive(Debug)]
enum Place {
    /// Told in the log.
    Log(Held),
    Tables,
    Nowhere,
}

#[derive(Debug)]
struct Slot {
    row: u64,
    weight: u32,
    place: Place,
}

/// The rows of one consumer, oldest first.
#[derive(Debug)]
struct Lane {
    /// All its rows from this number on are here.
    from: u64,
    slots: VecDeque<Slot>,
    /// Rows that the tables still have and that are settled.
    settled: BTreeSet<u64>,
}

/// What became of a settled row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// It was there, and weighed so much.
    Was(u32),
    /// No such row any more.
    WasNot,
    /// Only the tables know.
    Unknown,
}

/// Whatever was told since the last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// False while it is being filled from the log: then nobody can say what there is.
    ready: bool,
    /// A consumer without a lane has no row here from this number on.
    from: u64,
    lanes: ByConsumer<Lane>,
    /// By sender.
    marks: HashMap<Arc<str>, ByTopic>,
    known_marks: usize,
    received: HashMap<(u32, u16), bool>,
    sent: HashMap<u32, u64>,
    rows: usize,
    bytes: u64,
    /// Bytes of all rows told since the last checkpoint, settled or not.
    told: u64,
}

impl Recent {
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Empty, and not to be asked.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    /// All that was told is in the tables, whose next row has this number.
    pub(super) fn begin_from(&mut self, next_row: u64) {
        self.begin();
        self.from = next_row;
        self.ready = true;
    }

    /// Of rows that the tables lack.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn checkpoint_due(&self) -> bool {
        let marks = self.known_marks.max(self.received.len());
        self.bytes >= MOST_BYTES || self.rows >= MOST_ROWS || marks >= MOST_MARKS
    }

    /// Whether hardly anybody takes rows away: most of what was told is still there, and the log only doubles the work.
    pub(super) fn grows(&self) -> bool {
        self.bytes >= MOST_BYTES && self.bytes > self.told / 4 * 3
    }

    /// A new row, in the log (`Some`) or in the tables; its number is above all earlier ones of its consumer.
    pub(super) fn push(&mut self, consumer: u32, row: u64, weight: u32, held: Option<Held>) {
        if held.is_some() {
            self.bytes += u64::from(weight);
            self.told += u64::from(weight);
        }
        self.rows += 1;
        // The first one since the checkpoint, or of the batch that was one.
        let from = self.from.min(row);
        let lane = self
            .lanes
            .entry(consumer)
            .or_insert_with(|| Lane::new(from));
        lane.slots.push_back(Slot {
            row,
            weight,
            place: held.map_or(Place::Tables, Place::Log),
        });
    }

    /// Whether all is known about a row without asking the tables.
    pub(super) fn knows(&self, consumer: u32, row: u64) -> bool {
        match self.lanes.get(&consumer) {
            Some(lane) => row >= lane.from || lane.find(row).is_some(),
            None => row >= self.from,
        }
    }

    /// Takes a row away. `told` = in the log only, the tables keep it until the checkpoint.
    pub(super) fn settle(&mut self, consumer: u32, row: u64, told: bool) -> Settled {
        let mut settled = Settled::WasNot;
        self.settle_each(consumer, &[row], told, |found| settled = found);
        settled
    }

    /// The same for many rows of one consumer; says what became of each.
    pub(super) fn settle_each(
        &mut self,
        consumer: u32,
        rows: &[u64],
        told: bool,
        mut tell: impl FnMut(Settled),
    ) {
        let unseen = |from: u64, row: u64| {
            if row < from {
                Settled::Unknown
            } else {
                Settled::WasNot
            }
        };
        let Some(lane) = self.lanes.get_mut(&consumer) else {
            rows.iter().for_each(|row| tell(unseen(self.from, *row)));
            return;
        };
        for row in rows {
            let from = lane.from;
            let Some(slot) = lane.slot(*row) else {
                tell(unseen(from, *row));
                continue;
            };
            let weight = slot.weight;
            match std::mem::replace(&mut slot.place, Place::Nowhere) {
                Place::Nowhere => {
                    tell(Settled::WasNot);
                    continue;
                }
                Place::Tables if told => _ = lane.settled.insert(*row),
                Place::Tables => {}
                Place::Log(_) => self.bytes -= u64::from(weight),
            }
            self.rows -= lane.drop_ends();
            tell(Settled::Was(weight));
        }
    }

    /// Takes a row away as the log says at the opening: one that it has not told itself is in the tables.
    pub(super) fn settle_recalled(&mut self, consumer: u32, row: u64) {
        if matches!(self.settle(consumer, row, false), Settled::Was(_)) {
            return;
        }
        let lane = self.lanes.entry(consumer).or_insert_with(|| Lane::new(0));
        lane.settled.insert(row);
    }

    /// Whether the release of this row can be told: it is in the log, or is nowhere.
    pub(super) fn can_release(&self, consumer: u32, row: u64) -> bool {
        self.knows(consumer, row)
            && self.lanes.get(&consumer).is_none_or(|lane| {
                lane.find(row)
                    .is_none_or(|at| !matches!(lane.slots[at].place, Place::Tables))
            })
    }

    pub(super) fn release(&mut self, consumer: u32, row: u64) {
        if let Some(lane) = self.lanes.get_mut(&consumer)
            && let Some(slot) = lane.slot(row)
            && let Place::Log(held) = &mut slot.place
        {
            held.released = true;
        }
    }

    /// The consumer is gone, and its rows with it.
    pub(super) fn forget(&mut self, consumer: u32) {
        if let Some(lane) = self.lanes.remove(&consumer) {
            self.rows -= lane.slots.len();
            self.bytes -= lane.bytes();
        }
        self.sent.remove(&consumer);
        self.received.retain(|(of, _), _| *of != consumer);
    }

    pub(super) fn mark(&self, sender: &str, topic: &str) -> Option<Mark> {
        self.marks.get(sender)?.get(topic).map(|(mark, _)| *mark)
    }

    /// Notes a mark; `new` = the tables lack it.
    pub(super) fn set_mark(&mut self, sender: &Arc<str>, topic: &Arc<str>, mark: Mark, new: bool) {
        let of_sender = self.marks.entry(Arc::clone(sender)).or_default();
        if of_sender.insert(Arc::clone(topic), (mark, new)).is_none() {
            self.known_marks += 1;
        }
    }

    /// Whether an incoming QoS 2 packet id was noted or forgotten lately.
    pub(super) fn received(&self, consumer: u32, packet_id: u16) -> Option<bool> {
        self.received.get(&(consumer, packet_id)).copied()
    }

    pub(super) fn set_received(&mut self, consumer: u32, packet_id: u16, is_in: bool) {
        self.received.insert((consumer, packet_id), is_in);
    }

    pub(super) fn received_of(&self, consumer: u32) -> impl Iterator<Item = (u16, bool)> {
        let lately = self.received.iter();
        lately
            .filter(move |((of, _), _)| *of == consumer)
            .map(|((_, id), is_in)| (*id, *is_in))
    }

    pub(super) fn set_sent(&mut self, consumer: u32, up_to: u64) {
        self.sent.insert(consumer, up_to);
    }

    /// The rows of a consumer after `after` that are in the log, at most `max` and up to the one with which `bytes` are
    /// reached; and those that the tables have in vain.
    pub(super) fn after(
        &self,
        consumer: u32,
        after: u64,
        max: usize,
        bytes: usize,
    ) -> (Vec<StoredRow>, BTreeSet<u64>) {
        let Some(lane) = self.lanes.get(&consumer) else {
            return (Vec::new(), BTreeSet::new());
        };
        let mut found = Vec::new();
        let mut weight = 0;
        let first = lane.slots.partition_point(|slot| slot.row <= after);
        for slot in lane.slots.range(first..) {
            if let Place::Log(held) = &slot.place {
                found.push(StoredRow {
                    row: held.row(slot.row),
                    released: held.released,
                });
                // One more than asked for says that there is more.
                if found.len() > max || weight >= bytes {
                    break;
                }
                weight += held.message.weight();
            }
        }
        (found, lane.settled.clone())
    }

    /// Puts everything into the tables. Gives what went from them, by consumer.
    pub(super) fn write(
        &self,
        tables: &mut Tables<'_>,
        fresh: &mut Fresh,
    ) -> Result<BTreeMap<u32, Gone>, StoreError> {
        let mut gone = BTreeMap::new();
        for (consumer, lane) in &self.lanes {
            if !lane.settled.is_empty() {
                let rows: Vec<u64> = lane.settled.iter().copied().collect();
                gone.insert(*consumer, take_away(tables, *consumer, &rows)?);
            }
        }
        self.gather(fresh);
        fresh.write(tables)?;
        for (sender, topics) in &self.marks {
            for (topic, (mark, new)) in topics {
                if *new {
                    tables.repeats.insert((&**sender, &**topic), *mark)?;
                }
            }
        }
        for (key, is_in) in &self.received {
            if *is_in {
                tables.received.insert(key, ())?;
            } else {
                tables.received.remove(key)?;
            }
        }
        for (consumer, up_to) in &self.sent {
            tables.sent.insert(consumer, up_to)?;
        }
        Ok(gone)
    }

    /// The rows of the log as they are written. Of a message that more than one had, those count that have it still.
    fn gather(&self, fresh: &mut Fresh) {
        let mut shared: BTreeMap<u64, (&Arc<Message>, u32)> = BTreeMap::new();
        for (_, slot, held) in self.told() {
            if held.shared {
                shared.entry(slot.row).or_insert((&held.message, 0)).1 += 1;
            }
        }
        shared.retain(|_, (_, sharers)| *sharers > 1);
        for (row, (message, sharers)) in &shared {
            fresh.message(*row, message, *sharers);
        }
        for (consumer, slot, held) in self.told() {
            let claim = Claim {
                message: &held.message,
                options: &held.options,
                retained: held.retained,
                released: held.released,
                sole: !(held.shared && shared.contains_key(&slot.row)),
                weight: slot.weight,
            };
            fresh.row(consumer, slot.row, &claim);
        }
    }

    fn told(&self) -> impl Iterator<Item = (u32, &Slot, &Held)> {
        self.lanes.iter().flat_map(|(consumer, lane)| {
            let told = lane.slots.iter().filter_map(|slot| match &slot.place {
                Place::Log(held) => Some((slot, held)),
                Place::Tables | Place::Nowhere => None,
            });
            told.map(|(slot, held)| (*consumer, slot, held))
        })
    }

    /// Rows and bytes in the log, by consumer.
    pub(super) fn told_of(&self) -> BTreeMap<u32, (u64, u64)> {
        let mut of: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for (consumer, slot, _) in self.told() {
            let (rows, bytes) = of.entry(consumer).or_default();
            *rows += 1;
            *bytes += u64::from(slot.weight);
        }
        of
    }

    /// All rows are in the tables, and need not be known.
    pub(super) fn forget_rows(&mut self) {
        self.lanes.clear();
        self.rows = 0;
    }

    /// What [`Recent::write`] wrote is on the disk; the next row has this number.
    pub(super) fn written(&mut self, next_row: u64) {
        for lane in self.lanes.values_mut() {
            lane.settled.clear();
            lane.slots
                .retain(|slot| !matches!(slot.place, Place::Nowhere));
            for slot in &mut lane.slots {
                slot.place = Place::Tables;
            }
            while lane.slots.len() > KNOWN_ROWS
                && let Some(slot) = lane.slots.pop_front()
            {
                lane.from = slot.row + 1;
            }
            lane.slots.shrink_to(2 * lane.slots.len());
        }
        self.lanes.retain(|_, lane| !lane.slots.is_empty());
        self.rows = self.lanes.values().map(|lane| lane.slots.len()).sum();
        if self.rows > KNOWN_ROWS_OF_ALL {
            self.forget_rows();
        }
        self.from = next_row;
        self.bytes = 0;
        self.told = 0;
        if self.known_marks > KNOWN_MARKS {
            self.marks.clear();
            self.known_marks = 0;
        }
        for (_, new) in self.marks.values_mut().flat_map(HashMap::values_mut) {
            *new = false;
        }
        self.received.clear();
        self.sent.clear();
    }
}

impl Lane {
    fn new(from: u64) -> Self {
        Self {
            from,
            slots: VecDeque::new(),
            settled: BTreeSet::new(),
        }
    }

    /// Most are asked for in order.
    fn find(&self, row: u64) -> Option<usize> {
        if self.slots.front()?.row == row {
            return Some(0);
        }
        self.slots.binary_search_by_key(&row, |slot| slot.row).ok()
    }

    fn slot(&mut self, row: u64) -> Option<&mut Slot> {
        let at = self.find(row)?;
        self.slots.get_mut(at)
    }

    /// Drops the oldest slots that nothing is at; gives how many.
    fn drop_ends(&mut self) -> usize {
        let before = self.slots.len();
        while let Some(slot) = self.slots.front()
            && matches!(slot.place, Place::Nowhere)
        {
            self.slots.pop_front();
        }
        before - self.slots.len()
    }

    fn bytes(&self) -> u64 {
        let told = self
            .slots
            .iter()
            .filter(|slot| matches!(slot.place, Place::Log(_)));
        told.map(|slot| u64::from(slot.weight)).sum()
    }
}

impl Held {
    fn row(&self, id: u64) -> TailRow {
        TailRow {
            id,
            message: Arc::clone(&self.message),
            options: Arc::clone(&self.options),
            retained: self.retained,
        }
    }
}

#[cfg(test)]
#[path = "recent/tests.rs"]
mod tests;
