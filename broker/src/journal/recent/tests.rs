//! What is known lately against a plain map of all rows, with the tables beside it as the journal keeps them.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;
use redb::backends::InMemoryBackend;
use redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _};

use super::super::tables::rows_after;
use super::*;
use crate::Qos;

const CONSUMERS: u32 = 3;

/// One step of the journal; rows are named by a number that picks one there is, or any.
#[derive(Debug, Clone)]
enum Step {
    /// Messages, each for the consumers of a bit pattern, in the log or in the tables.
    Publish {
        told: bool,
        to: Vec<(u8, u8)>,
    },
    /// As many in the log for one consumer as make it forget.
    Many(u32),
    Settle(u32, Vec<u16>),
    Release(u32, Vec<u16>),
    Checkpoint,
    Drop(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let consumer = || 1..=CONSUMERS;
    let rows = || prop::collection::vec(any::<u16>(), 1..12);
    let to = prop::collection::vec((1..8_u8, any::<u8>()), 1..20);
    prop_oneof![
        12 => (prop::bool::weighted(0.8), to).prop_map(|(told, to)| Step::Publish { told, to }),
        1 => consumer().prop_map(Step::Many),
        12 => (consumer(), rows()).prop_map(|(consumer, rows)| Step::Settle(consumer, rows)),
        4 => (consumer(), rows()).prop_map(|(consumer, rows)| Step::Release(consumer, rows)),
        4 => Just(Step::Checkpoint),
        1 => consumer().prop_map(Step::Drop),
    ]
}

/// What the test itself does wrong, to see that it is caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A checkpoint that writes nothing.
    NotWritten,
    /// A row that is settled in the log is taken away at once in the tables' stead: nobody remembers it.
    SettledAsInTables,
    /// The number of the next row is told too low after a checkpoint that forgets.
    Low,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    weight: u32,
    /// In the log, not in the tables.
    told: bool,
    released: bool,
}

struct World {
    database: Database,
    recent: Recent,
    rows: BTreeMap<(u32, u64), Known>,
    next: u64,
    defect: Defect,
}

fn message(length: u8) -> Arc<Message> {
    let payload = vec![length; usize::from(length)];
    Arc::new(Message::new("t", payload).qos(Qos::AtLeastOnce))
}

fn options() -> Arc<Options> {
    Arc::new(Options {
        qos: Qos::AtLeastOnce,
        retain_as_published: false,
        ids: vec![7],
        group: None,
    })
}

impl World {
    fn new(defect: Defect) -> Self {
        let database = Builder::new().create_with_backend(InMemoryBackend::new());
        let database = database.unwrap();
        let tx = database.begin_write().unwrap();
        Tables::open(&tx).unwrap();
        tx.commit().unwrap();
        let mut recent = Recent::default();
        recent.begin_from(1);
        Self {
            database,
            recent,
            rows: BTreeMap::new(),
            next: 1,
            defect,
        }
    }

    /// A batch of the tables: first all that was told.
    fn in_tables(&mut self, work: impl FnOnce(&mut Self, &mut Tables<'_>)) {
        let tx = self.database.begin_write().unwrap();
        {
            let mut tables = Tables::open(&tx).unwrap();
            if self.defect != Defect::NotWritten {
                self.recent
                    .write(&mut tables, &mut Fresh::default())
                    .unwrap();
            }
            work(self, &mut tables);
        }
        tx.commit().unwrap();
        let next = if self.defect == Defect::Low {
            1
        } else {
            self.next
        };
        self.recent.written(next);
        self.rows.values_mut().for_each(|row| row.told = false);
    }

    fn publish(&mut self, told: bool, to: &[(u8, u8)]) {
        let mut fresh = Vec::new();
        for (pattern, length) in to {
            let message = message(*length);
            let row = self.next;
            self.next += 1;
            let weight = u32::try_from(message.weight()).unwrap();
            let mine: Vec<u32> = (1..=CONSUMERS)
                .filter(|consumer| pattern >> (consumer - 1) & 1 == 1)
                .collect();
            for consumer in &mine {
                let known = Known {
                    weight,
                    told,
                    released: false,
                };
                self.rows.insert((*consumer, row), known);
                if told {
                    let held = Held {
                        message: Arc::clone(&message),
                        options: options(),
                        retained: false,
                        shared: mine.len() > 1,
                        released: false,
                    };
                    self.recent.push(*consumer, row, weight, Some(held));
                }
            }
            fresh.push((row, message, mine));
        }
        if told {
            return;
        }
        self.in_tables(|_, tables| put(tables, &fresh));
        for (row, message, mine) in fresh {
            let weight = u32::try_from(message.weight()).unwrap();
            mine.iter()
                .for_each(|consumer| self.recent.push(*consumer, row, weight, None));
        }
    }

    /// The rows that are meant: most of them are there.
    fn picked(&self, consumer: u32, picks: &[u16]) -> Vec<u64> {
        let mine: Vec<u64> = self.of(consumer).map(|(row, _)| row).collect();
        let pick = |pick: &u16| match mine.len() {
            0 => u64::from(*pick) % (self.next + 2),
            _ if pick % 8 == 7 => u64::from(*pick) % (self.next + 2),
            // The oldest ones above all, as receivers do.
            count if pick % 8 < 5 => mine[usize::from(pick / 8) % count.min(16)],
            count => mine[usize::from(pick / 8) % count],
        };
        picks.iter().map(pick).collect()
    }

    fn of(&self, consumer: u32) -> impl DoubleEndedIterator<Item = (u64, Known)> {
        let mine = self.rows.range((consumer, 0)..=(consumer, u64::MAX));
        mine.map(|((_, row), known)| (*row, *known))
    }

    fn settle(&mut self, consumer: u32, mut rows: Vec<u64>) -> TestCaseResult {
        if rows.iter().all(|row| self.recent.knows(consumer, *row)) {
            let told = self.defect != Defect::SettledAsInTables;
            for row in rows {
                let was = self.rows.remove(&(consumer, row));
                match self.recent.settle(consumer, row, told) {
                    Settled::Was(weight) => {
                        prop_assert_eq!(was.map(|was| was.weight), Some(weight));
                    }
                    Settled::WasNot => prop_assert_eq!(was, None),
                    // A second time in the batch: its place is forgotten by now.
                    Settled::Unknown => prop_assert_eq!(was, None),
                }
            }
            return Ok(());
        }
        for row in &rows {
            // What nobody knows is in the tables or nowhere.
            let there = self.rows.get(&(consumer, *row));
            prop_assert!(self.recent.knows(consumer, *row) || there.is_none_or(|row| !row.told));
        }
        rows.sort_unstable();
        let mut gone = Gone::default();
        self.in_tables(|world, tables| {
            gone = take_away(tables, consumer, &rows).unwrap();
            world.recent.settle_each(consumer, &rows, false, |_| ());
        });
        let was = rows
            .iter()
            .filter_map(|row| self.rows.remove(&(consumer, *row)));
        let was: Vec<Known> = was.collect();
        prop_assert_eq!(gone.rows, was.len() as u64);
        let bytes: u64 = was.iter().map(|row| u64::from(row.weight)).sum();
        prop_assert_eq!(gone.bytes, bytes);
        Ok(())
    }

    fn release(&mut self, consumer: u32, rows: &[u64]) -> TestCaseResult {
        for row in rows {
            let known = self.rows.get_mut(&(consumer, *row));
            let can = self.recent.can_release(consumer, *row);
            // The tables' own rows have to be released there.
            prop_assert!(!can || known.as_ref().is_none_or(|known| known.told));
            if let Some(known) = known.filter(|known| known.told) {
                prop_assert!(can);
                known.released = true;
                self.recent.release(consumer, *row);
            }
        }
        Ok(())
    }

    fn drop_consumer(&mut self, consumer: u32) {
        self.in_tables(|world, tables| {
            let rows = tables.rows_of(consumer, usize::MAX).unwrap();
            take_away(tables, consumer, &rows).unwrap();
            world.recent.forget(consumer);
        });
        self.rows.retain(|(of, _), _| *of != consumer);
    }

    fn take(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Publish { told, to } => self.publish(told, &to),
            Step::Many(consumer) => {
                let to = vec![(1 << (consumer - 1), 3); KNOWN_ROWS / 3];
                self.publish(true, &to);
            }
            Step::Settle(consumer, picks) => {
                self.settle(consumer, self.picked(consumer, &picks))?
            }
            Step::Release(consumer, picks) => {
                self.release(consumer, &self.picked(consumer, &picks))?;
            }
            Step::Checkpoint => {
                self.in_tables(|_, _| ());
                self.tables_hold_all()?;
            }
            Step::Drop(consumer) => self.drop_consumer(consumer),
        }
        self.counts_are_right()
    }

    fn counts_are_right(&self) -> TestCaseResult {
        let slots: usize = self
            .recent
            .lanes
            .values()
            .map(|lane| lane.slots.len())
            .sum();
        prop_assert_eq!(self.recent.rows, slots);
        let mut told: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for ((consumer, _), row) in self.rows.iter().filter(|(_, row)| row.told) {
            let (rows, bytes) = told.entry(*consumer).or_default();
            *rows += 1;
            *bytes += u64::from(row.weight);
        }
        prop_assert_eq!(self.recent.told_of(), told.clone());
        let bytes: u64 = told.values().map(|(_, bytes)| bytes).sum();
        prop_assert_eq!(self.recent.bytes, bytes);
        Ok(())
    }

    /// Reads as the journal does, from somewhere, so many rows and bytes.
    fn reads(&self, consumer: u32, after: u64, max: usize, bytes: usize) -> TestCaseResult {
        let (told, settled) = self.recent.after(consumer, after, max, bytes);
        let mut weight = 0;
        let mut expected = Vec::new();
        for (row, known) in self
            .of(consumer)
            .filter(|(row, known)| known.told && *row > after)
        {
            expected.push((row, known.released));
            // One more than was asked for says that there is more.
            if expected.len() > max || weight >= bytes {
                break;
            }
            weight += known.weight as usize;
        }
        let got: Vec<(u64, bool)> = told.iter().map(|row| (row.row.id, row.released)).collect();
        prop_assert_eq!(got, expected);
        let tx = self.database.begin_read().unwrap();
        let read = rows_after(&tx, consumer, after, max, bytes, (told, settled)).unwrap();
        let mut weight = 0;
        let mut all = self.of(consumer).filter(|(row, _)| *row > after).peekable();
        let mut expected = Vec::new();
        while expected.len() < max
            && weight < bytes
            && let Some((row, known)) = all.next()
        {
            expected.push((row, known.released));
            weight += known.weight as usize;
        }
        let got: Vec<(u64, bool)> = read
            .0
            .iter()
            .map(|row| (row.row.id, row.released))
            .collect();
        prop_assert_eq!(got, expected);
        // To look once more in vain does no harm; to stop too early would.
        prop_assert!(read.1 || all.peek().is_none());
        Ok(())
    }

    /// After a checkpoint: the rows, their messages, and how many share one.
    fn tables_hold_all(&self) -> TestCaseResult {
        let tx = self.database.begin_write().unwrap();
        let tables = Tables::open(&tx).unwrap();
        let mut sharers: BTreeMap<u64, u32> = BTreeMap::new();
        for consumer in 1..=CONSUMERS {
            let found = tables.rows_of(consumer, usize::MAX).unwrap();
            let mine: Vec<u64> = self.of(consumer).map(|(row, _)| row).collect();
            prop_assert!(found == mine, "consumer {consumer}");
            found
                .iter()
                .for_each(|row| *sharers.entry(*row).or_default() += 1);
        }
        for found in tables.messages.iter().unwrap() {
            let row = found.unwrap().0.value();
            prop_assert!(sharers.contains_key(&row), "a message of nobody");
        }
        for found in tables.shared.iter().unwrap() {
            let (row, count) = found.unwrap();
            prop_assert_eq!(sharers.get(&row.value()), Some(&count.value()));
        }
        let lanes = &self.recent.lanes;
        prop_assert!(lanes.values().all(|lane| lane.slots.len() <= KNOWN_ROWS));
        prop_assert!(self.recent.rows <= KNOWN_ROWS_OF_ALL);
        Ok(())
    }
}

fn put(tables: &mut Tables<'_>, messages: &[(u64, Arc<Message>, Vec<u32>)]) {
    let mut fresh = Fresh::default();
    for (row, message, mine) in messages {
        if mine.len() > 1 {
            fresh.message(*row, message, u32::try_from(mine.len()).unwrap());
        }
        for consumer in mine {
            let claim = Claim {
                message,
                options: &options(),
                retained: false,
                released: false,
                sole: mine.len() == 1,
                weight: u32::try_from(message.weight()).unwrap(),
            };
            fresh.row(*consumer, *row, &claim);
        }
    }
    fresh.write(tables).unwrap();
}

fn play(steps: Vec<Step>, reads: &[(u16, u8, u16)], defect: Defect) -> TestCaseResult {
    let mut world = World::new(defect);
    let mut reads = reads.iter().cycle();
    for step in steps {
        world.take(step)?;
        for consumer in 1..=CONSUMERS {
            let (after, max, bytes) = reads.next().copied().unwrap_or_default();
            let after = u64::from(after) % (world.next + 1);
            world.reads(consumer, after, max.into(), bytes.into())?;
            world.reads(consumer, 0, 20, usize::MAX)?;
        }
    }
    for consumer in 1..=CONSUMERS {
        world.reads(consumer, 0, usize::MAX, usize::MAX)?;
    }
    world.take(Step::Checkpoint)?;
    for consumer in 1..=CONSUMERS {
        world.reads(consumer, 0, usize::MAX, usize::MAX)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_known_is_what_there_is(
        steps in prop::collection::vec(step(), 1..40),
        reads in prop::collection::vec(any::<(u16, u8, u16)>(), 1..9),
    ) {
        play(steps, &reads, Defect::None)?;
    }
}

#[test]
fn control_each_planted_defect_is_caught() {
    let steps = || {
        let to = vec![(1, 9), (3, 9), (7, 9)];
        let old = |told| Step::Publish {
            told,
            to: to.clone(),
        };
        vec![
            old(false),
            old(true),
            Step::Settle(1, vec![0, 8]),
            Step::Checkpoint,
            Step::Many(1),
            Step::Many(1),
            Step::Many(1),
            Step::Many(1),
            Step::Checkpoint,
            Step::Settle(1, vec![0, 8, 16]),
        ]
    };
    let reads = [(0, 200, u16::MAX)];
    play(steps(), &reads, Defect::None).unwrap();
    for defect in [Defect::NotWritten, Defect::SettledAsInTables] {
        assert!(play(steps(), &reads, defect).is_err(), "{defect:?}");
    }
    // Who has no lane any more seems to have had no rows.
    let mut world = World::new(Defect::Low);
    world.take(Step::Many(1)).unwrap();
    world.take(Step::Checkpoint).unwrap();
    world.recent.lanes.clear();
    assert!(world.settle(1, vec![5]).is_err());
}

/// Each consumer keeps so many, and all together: what is dropped is unknown then, not gone.
#[test]
fn what_is_forgotten_is_unknown_and_not_gone() {
    let mut recent = Recent::default();
    recent.begin_from(1);
    let of_each = u64::try_from(KNOWN_ROWS).unwrap() + 100;
    for row in 1..=of_each {
        recent.push(1, row, 1, None);
    }
    recent.written(of_each + 1);
    assert_eq!(recent.rows, KNOWN_ROWS);
    for row in [1, 50, 100] {
        assert!(!recent.knows(1, row));
        assert_eq!(recent.settle(1, row, true), Settled::Unknown);
    }
    assert!(recent.knows(1, 101));
    assert_eq!(recent.settle(1, 101, true), Settled::Was(1));
    assert_ne!(recent.settle(1, 101, true), Settled::Was(1));
    // Beyond the last one there is nothing, and that is known.
    assert_eq!(recent.settle(1, of_each + 1, true), Settled::WasNot);
    assert_eq!(recent.settle(9, of_each + 1, true), Settled::WasNot);
    assert_eq!(recent.settle(9, of_each, true), Settled::Unknown);
    let mut next = of_each + 1;
    for consumer in 2..=9 {
        for _ in 0..KNOWN_ROWS {
            recent.push(consumer, next, 1, None);
            next += 1;
        }
    }
    assert!(recent.rows > KNOWN_ROWS_OF_ALL);
    recent.written(next);
    assert_eq!((recent.rows, recent.lanes.len()), (0, 0));
    for consumer in 1..=9 {
        assert_eq!(recent.settle(consumer, next - 1, true), Settled::Unknown);
        assert!(!recent.knows(consumer, next - 1));
    }
}

#[test]
fn a_checkpoint_is_due_by_bytes_and_by_rows() {
    let held = Held {
        message: message(1),
        options: options(),
        retained: false,
        shared: false,
        released: false,
    };
    let mut recent = Recent::default();
    recent.begin_from(1);
    let half = u32::try_from(MOST_BYTES / 2).unwrap();
    recent.push(1, 1, half, Some(held.clone()));
    assert!(!recent.checkpoint_due() && !recent.grows());
    recent.push(1, 2, half, Some(held.clone()));
    assert!(recent.checkpoint_due() && recent.grows());
    // Taken away, it costs nothing; and most was taken away.
    assert_eq!(recent.settle(1, 1, true), Settled::Was(half));
    assert!(!recent.checkpoint_due());
    recent.push(1, 3, half, Some(held.clone()));
    assert!(recent.checkpoint_due() && !recent.grows());
    recent.written(4);
    assert!(!recent.checkpoint_due() && !recent.grows());
    for row in 4..4 + u64::try_from(MOST_ROWS).unwrap() {
        recent.push(1, row, 0, Some(held.clone()));
    }
    assert!(recent.checkpoint_due());
}

#[test]
fn marks_stay_known_up_to_a_bound_and_until_they_are_written() {
    let mut recent = Recent::default();
    recent.begin_from(1);
    let sender: Arc<str> = "sender".into();
    let topic = |number: usize| Arc::from(number.to_string().as_str());
    for number in 0..KNOWN_MARKS {
        recent.set_mark(&sender, &topic(number), (1, 1), true);
        recent.set_mark(&sender, &topic(number), (1, 2), true);
    }
    recent.written(1);
    assert_eq!(recent.mark("sender", "0"), Some((1, 2)));
    recent.set_mark(&sender, &topic(KNOWN_MARKS), (1, 1), true);
    // Before it is written it may not be forgotten, however many there are.
    assert_eq!(recent.mark("sender", "0"), Some((1, 2)));
    recent.written(1);
    assert_eq!((recent.mark("sender", "0"), recent.known_marks), (None, 0));
}
