//! Rows on their way to their readers' memory: before the commit where that is no promise, else after.
//!
//! Part of `schema`, on the writer thread. The sender's acknowledgement waits for the commit in any
//! case. A connected session is sent a plain QoS 1 message while the disk works: should the commit
//! fail, or the power, the sender has no acknowledgement and sends again, and the session gets the
//! message twice, as QoS 1 allows. Whatever is promised once waits: QoS 2, numbered messages of the
//! repeat filter, retained slots, and the rows of bridge rules. After the commit all rows are handed
//! over, those of before too: a mailbox that forgot one in between (its reader began anew, and found
//! nothing in the journal yet) gets it now, every other knows it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::op::{Entry, Op, Verdict};
use super::schema::Ledger;
use crate::Qos;
use crate::exchange::{Mailbox, TailRow};

impl Ledger {
    /// Before the commit: gives connected sessions what they may have now.
    pub(super) fn hand_over_early(&self, ops: &[Op]) {
        let mut runs: HashMap<u64, (Arc<Mailbox>, Vec<TailRow>)> = HashMap::new();
        // Who has to wait for one row waits for those behind it too.
        let mut waits: HashSet<u64> = HashSet::new();
        for op in ops {
            let Op::Accept { entries, .. } = op else {
                continue;
            };
            for entry in entries {
                if entry.verdict != Verdict::Taken {
                    continue;
                }
                let plain = may_go_early(entry);
                let Entry {
                    message,
                    rows_for,
                    retained,
                    ..
                } = entry;
                for claimed in rows_for {
                    if claimed.mailbox.bridge {
                        continue;
                    }
                    let key = claimed.mailbox.key;
                    if !plain || !claimed.mailbox.connected() || waits.contains(&key) {
                        waits.insert(key);
                        continue;
                    }
                    runs.entry(key)
                        .or_insert_with(|| (Arc::clone(&claimed.mailbox), Vec::new()))
                        .1
                        .push(TailRow {
                            id: claimed.row,
                            message: Arc::clone(message),
                            options: Arc::clone(&claimed.options),
                            retained: *retained,
                        });
                }
            }
        }
        for (mailbox, rows) in runs.into_values() {
            hand(&mailbox, rows);
        }
    }
}

/// Whether nothing is promised of it but that it comes at least once.
fn may_go_early(entry: &Entry) -> bool {
    entry.message.qos == Qos::AtLeastOnce && entry.stamp.is_none() && !entry.message.retain
}

/// Rows that a reader's list has room for at first.
const ROOM: usize = 64;

/// Committed rows on their way to their readers' memory: a reader is called once for many of them.
#[derive(Debug)]
pub(super) struct Handing {
    open: Vec<(Arc<Mailbox>, Vec<TailRow>)>,
    most: usize,
}

impl Handing {
    /// For so many messages at most.
    pub(super) fn with_room_for(most: usize) -> Self {
        Self {
            open: Vec::new(),
            most: most.min(ROOM),
        }
    }

    /// The rows of a message; it has none after this.
    pub(super) fn take(&mut self, entry: &mut Entry) {
        let rows_for = std::mem::take(&mut entry.rows_for);
        let Entry {
            message, retained, ..
        } = entry;
        let goes_on = self.open.len() == rows_for.len()
            && (self.open.iter().zip(&rows_for))
                .all(|((open, _), claimed)| Arc::ptr_eq(open, &claimed.mailbox));
        if !goes_on {
            self.end();
        }
        // A reader that has two rows of one message must have them in order.
        let twice = rows_for.windows(2).any(|pair| pair[0].row != pair[1].row);
        for (index, claimed) in rows_for.into_iter().enumerate() {
            let row = TailRow {
                id: claimed.row,
                message: Arc::clone(message),
                options: claimed.options,
                retained: *retained,
            };
            match self.open.get_mut(index) {
                Some((_, rows)) => rows.push(row),
                None if twice => hand(&claimed.mailbox, vec![row]),
                None => {
                    let mut rows = Vec::with_capacity(self.most);
                    rows.push(row);
                    self.open.push((claimed.mailbox, rows));
                }
            }
        }
    }

    pub(super) fn end(&mut self) {
        for (mailbox, rows) in self.open.drain(..) {
            hand(&mailbox, rows);
        }
    }
}

fn hand(mailbox: &Arc<Mailbox>, rows: Vec<TailRow>) {
    if mailbox.push_rows(rows) {
        mailbox.bounds.pool.remember(mailbox);
    }
}
