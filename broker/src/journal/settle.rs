//! Rows that are done with: taken away in runs where they lie close together, else one by one.
//!
//! Part of `schema`, on the writer thread.

use holdfast_store::StoreError;

use super::recent::Settled;
use super::record;
use super::schema::{Ledger, lock};
use super::tables::{Tables, damaged};

/// Rows of a run lie no further apart than this: so many others of the consumer may be looked at
/// between two of them.
const REACH: u64 = 64;
/// Fewer rows than this are taken one by one: a run would not pay.
const RUN: usize = 4;

/// What went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Gone {
    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.bytes += other.bytes;
    }
}

/// Takes these rows of a consumer from the tables, which are in order; unknown ones do nothing.
pub(super) fn take_away(
    tables: &mut Tables<'_>,
    consumer: u32,
    rows: &[u64],
) -> Result<Gone, StoreError> {
    let mut all = Gone::default();
    for run in rows.chunk_by(|a, b| b - a <= REACH) {
        if run.len() >= RUN {
            all.add(remove_run(tables, consumer, run)?);
            continue;
        }
        for row in run {
            if let Some(bytes) = tables.settle(consumer, *row)? {
                all.add(Gone { rows: 1, bytes });
            }
        }
    }
    Ok(all)
}

impl Ledger {
    /// Takes these rows of a consumer away, in any order; unknown ones do nothing.
    pub(super) fn settle_all(
        &mut self,
        tables: &mut Tables<'_>,
        consumer: u32,
        rows: &mut [u64],
    ) -> Result<(), StoreError> {
        rows.sort_unstable();
        let gone = take_away(tables, consumer, rows)?;
        self.account_for(consumer, gone);
        let settled = rows.iter().map(|row| (consumer, *row));
        self.staged.settled.extend(settled);
        Ok(())
    }

    /// The same, told in the log: all of them are known, since the batch was found loggable.
    pub(super) fn settle_told(&mut self, consumer: u32, rows: &[u64]) -> Result<(), StoreError> {
        let mut gone = Gone::default();
        let mut unknown = false;
        lock(&self.recent).settle_each(consumer, rows, true, |found| match found {
            Settled::Was(weight) => gone.add(Gone {
                rows: 1,
                bytes: weight.into(),
            }),
            Settled::WasNot => {}
            Settled::Unknown => unknown = true,
        });
        if unknown {
            return Err(StoreError::Panicked);
        }
        self.account_for(consumer, gone);
        Ok(())
    }

    fn account_for(&mut self, consumer: u32, gone: Gone) {
        if gone.rows == 0 {
            return;
        }
        self.rows = self.rows.saturating_sub(gone.rows);
        self.bytes = self.bytes.saturating_sub(gone.bytes);
        if let Some(account) = self.accounts.get_mut(&consumer) {
            account.rows = account.rows.saturating_sub(gone.rows);
            account.bytes = account.bytes.saturating_sub(gone.bytes);
            self.touched.insert(consumer);
        }
    }
}

/// Removes the rows of `run`, which is in order, in one pass over what lies between its ends.
fn remove_run(tables: &mut Tables<'_>, consumer: u32, run: &[u64]) -> Result<Gone, StoreError> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Ok(Gone::default());
    };
    let mut wanted = run.iter().copied().peekable();
    let mut gone = Gone::default();
    let mut elsewhere = Vec::new();
    let mut unreadable = false;
    let ends = (consumer, *first)..=(consumer, *last);
    tables.rows.retain_in(ends, |(_, row), value| {
        while wanted.next_if(|wanted| *wanted < row).is_some() {}
        if wanted.peek() != Some(&row) {
            return true;
        }
        let Some(head) = record::head(value) else {
            unreadable = true;
            return true;
        };
        gone.rows += 1;
        gone.bytes += u64::from(head.weight);
        if !head.holds {
            elsewhere.push((row, head.sole));
        }
        false
    })?;
    if unreadable {
        return Err(damaged("a row"));
    }
    for (row, sole) in elsewhere {
        tables.let_go(row, sole)?;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;
    use redb::{Builder, ReadableTable as _};

    use super::super::fresh::Fresh;
    use super::super::record::Claim;
    use super::*;
    use crate::exchange::Options;
    use crate::{Message, Qos};

    fn options() -> Options {
        Options {
            qos: Qos::AtLeastOnce,
            retain_as_published: false,
            ids: vec![7],
            group: None,
        }
    }

    /// As journals of earlier versions have it: the message of a single row in a table of its own.
    fn put_apart(tables: &mut Tables<'_>, consumer: u32, row: u64, message: &Message) {
        let options = options();
        let claim = Claim {
            message,
            options: &options,
            retained: false,
            released: false,
            sole: false,
            weight: 1,
        };
        let mut bytes = Vec::new();
        record::append_claim(&mut bytes, &claim);
        bytes[0] |= 1 << 5;
        tables
            .rows
            .insert((consumer, row), bytes.as_slice())
            .unwrap();
        bytes.clear();
        record::append_message(&mut bytes, message);
        tables.messages.insert(row, bytes.as_slice()).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Batches of rows for one, two or three consumers, some in the form of earlier versions;
        /// between them any rows go, in runs or alone: what is left is what a plain set says.
        #[test]
        fn what_is_left_is_what_was_not_taken_away(
            batches in proptest::collection::vec(
                (proptest::collection::vec((0u8..4, 1u64..90), 0..60), any::<u64>()),
                1..6,
            ),
        ) {
            let database = Builder::new().create_with_backend(InMemoryBackend::new()).unwrap();
            let message = Message::new("t", "content");
            let mut next = 1;
            let mut model: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
            for (publishes, seed) in batches {
                let tx = database.begin_write().unwrap();
                {
                    let mut tables = Tables::open(&tx).unwrap();
                    let mut fresh = Fresh::default();
                    let options = options();
                    for (kind, step) in publishes {
                        next += step;
                        let consumers = u32::from(kind.max(1));
                        for consumer in 1..=consumers {
                            model.entry(consumer).or_default().insert(next);
                        }
                        if kind == 0 {
                            fresh.write(&mut tables).unwrap();
                            put_apart(&mut tables, 1, next, &message);
                            continue;
                        }
                        if consumers > 1 {
                            fresh.message(next, &message, consumers);
                        }
                        for consumer in 1..=consumers {
                            let claim = Claim {
                                message: &message,
                                options: &options,
                                retained: false,
                                released: false,
                                sole: consumers == 1,
                                weight: 1,
                            };
                            fresh.row(consumer, next, &claim);
                        }
                    }
                    fresh.write(&mut tables).unwrap();
                    for (consumer, rows) in &mut model {
                        let mixed = |row: &u64| (row ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60;
                        let gone: Vec<u64> = rows
                            .iter()
                            .copied()
                            .filter(|row| mixed(row) < 4 + u64::from(*consumer) * 3)
                            .collect();
                        let count = take_away(&mut tables, *consumer, &gone).unwrap().rows;
                        prop_assert_eq!(count, gone.len() as u64);
                        // A second time there is nothing.
                        prop_assert_eq!(take_away(&mut tables, *consumer, &gone).unwrap(), Gone::default());
                        rows.retain(|row| !gone.contains(row));
                    }
                }
                tx.commit().unwrap();
                let tx = database.begin_write().unwrap();
                let tables = Tables::open(&tx).unwrap();
                let mut left: BTreeMap<u64, u32> = BTreeMap::new();
                for (consumer, rows) in &model {
                    let found = tables.rows_of(*consumer, usize::MAX).unwrap();
                    prop_assert_eq!(&found, &rows.iter().copied().collect::<Vec<_>>());
                    for row in found {
                        *left.entry(row).or_default() += 1;
                    }
                }
                // No message without a row, no row without its message, and the counts fit.
                for found in tables.messages.iter().unwrap() {
                    let row = found.unwrap().0.value();
                    prop_assert!(left.contains_key(&row));
                }
                for found in tables.shared.iter().unwrap() {
                    let (row, count) = found.unwrap();
                    prop_assert_eq!(left.get(&row.value()), Some(&count.value()));
                }
                drop(tables);
                tx.abort().unwrap();
                for consumer in model.keys() {
                    let tx = redb::ReadableDatabase::begin_read(&database).unwrap();
                    let read = super::super::tables::rows_after(&tx, *consumer, 0, usize::MAX, usize::MAX, Default::default()).unwrap();
                    prop_assert!(read.0.iter().all(|stored| *stored.row.message == message));
                }
            }
        }
    }
}
