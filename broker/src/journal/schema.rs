//! How operations become tables, and who hears of it after the commit.
//!
//! Runs on the store's writer thread alone, so that quotas and high-water marks are exact. What it
//! keeps in memory is loaded again after any failed commit.

use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use holdfast_store::{Halt, Reader, Schema, StoreError};
use redb::{ReadableTable as _, WriteTransaction};
use tracing::error;

use super::disk::Disk;
use super::fresh::Fresh;
use super::log::{At, Staged};
use super::op::{ConsumerRecord, Kind, Op, SubscriptionRecord, WillRecord};
use super::recall::write_head;
use super::recent::{ByConsumer, MOST_ROWS, Recent};
use super::record;
use super::tables::Tables;
use super::told::Head;
use crate::codec::code;
use crate::exchange::{ConsumerId, Mailbox};
use crate::shared::Core;
use crate::{Event, WhenFull};

/// Rows of a removed consumer deleted in one step.
const SWEEP: usize = 10_000;

/// Batches that go straight to the tables when hardly anybody takes rows away; then the log is tried again.
const STRAIGHT: u32 = 128;

/// What the journal held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) consumers: Vec<(ConsumerId, ConsumerRecord, Arc<Mailbox>)>,
    pub(crate) subscriptions: Vec<(ConsumerId, String, SubscriptionRecord)>,
    pub(crate) received: Vec<(ConsumerId, u16)>,
    pub(crate) wills: Vec<WillRecord>,
}

/// The schema.
pub(crate) struct Ledger {
    pub(super) core: Arc<Core>,
    pub(super) accounts: ByConsumer<Account>,
    pub(super) next_row: u64,
    pub(super) next_consumer: u32,
    /// (Sender, topic) pairs with a mark of the repeat filter, and each sender's part of them.
    pub(super) repeats: usize,
    pub(super) repeats_of: HashMap<Arc<str>, usize>,
    pub(super) most_repeats: usize,
    pub(super) retained_bytes: usize,
    pub(super) retained_count: usize,
    /// By the client id of their owners.
    pub(super) retained_of: HashMap<Box<str>, usize>,
    /// The largest of these, unless it is to be looked for.
    pub(super) most_retained: usize,
    pub(super) most_is_old: bool,
    /// Where the disk's room is asked for, and whether it is too little for this batch.
    pub(super) disk: Disk,
    pub(super) disk_low: bool,
    /// When the batch under way was begun, and whether it is told in the log.
    pub(super) begun: Instant,
    pub(super) is_told: bool,
    pub(super) recent: Arc<Mutex<Recent>>,
    pub(super) staged: Staged,
    /// So many batches go straight to the tables.
    straight: u32,
    /// What the last record of the log says first, at the opening.
    pub(super) recalled: Option<Head>,
    /// Of all consumers together.
    pub(super) bytes: u64,
    pub(super) rows: u64,
    /// Consumers whose counts this batch changes.
    pub(super) touched: BTreeSet<u32>,
    /// Consumers whose counts the tables have not got yet.
    pub(super) uncounted: BTreeSet<u32>,
    pub(super) scratch: Vec<u8>,
    pub(super) fresh: Fresh,
    /// What was loaded is not for the first time: the readers look at it once it can be read.
    pub(super) reread: bool,
    /// Until the first preparation.
    pub(super) opening: Option<SyncSender<Loaded>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

/// One consumer's part of the journal.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) max_rows: u64,
    pub(super) max_bytes: u64,
    /// `None` = by topic.
    pub(super) when_full: Option<WhenFull>,
    pub(super) mailbox: Arc<Mailbox>,
}

impl Ledger {
    /// The schema and where it puts what it loads at the opening.
    pub(super) fn new(
        core: Arc<Core>,
        disk: Disk,
        recent: Arc<Mutex<Recent>>,
    ) -> (Self, Receiver<Loaded>) {
        let (opening, loaded) = sync_channel(1);
        let ledger = Self {
            core,
            accounts: ByConsumer::default(),
            next_row: 1,
            next_consumer: 1,
            repeats: 0,
            repeats_of: HashMap::new(),
            most_repeats: 0,
            retained_bytes: 0,
            retained_count: 0,
            retained_of: HashMap::new(),
            most_retained: 0,
            most_is_old: false,
            disk,
            disk_low: false,
            begun: Instant::now(),
            is_told: false,
            recent,
            staged: Staged::default(),
            straight: 0,
            recalled: None,
            bytes: 0,
            rows: 0,
            touched: BTreeSet::new(),
            uncounted: BTreeSet::new(),
            scratch: Vec::new(),
            fresh: Fresh::default(),
            reread: false,
            opening: Some(opening),
        };
        (ledger, loaded)
    }

    pub(super) fn account(&self, record: &ConsumerRecord, mailbox: Arc<Mailbox>) -> Account {
        let limits = &self.core.config.limits;
        let (max_rows, max_bytes, when_full) = match &record.kind {
            Kind::Session { .. } => (limits.session_rows, limits.session_row_bytes, None),
            Kind::Bridge { options, .. } => {
                (options.max_rows, options.max_bytes, Some(options.when_full))
            }
        };
        Account {
            rows: 0,
            bytes: 0,
            max_rows,
            max_bytes,
            when_full,
            mailbox,
        }
    }

    fn apply_one(&mut self, tables: &mut Tables<'_>, op: &mut Op) -> Result<(), StoreError> {
        match op {
            Op::Accept { entries, .. } => {
                let mut at = At::Tables(tables);
                for entry in entries {
                    self.accept(&mut at, entry)?;
                }
            }
            Op::Settle { consumer, rows, .. } => {
                // Rows of this very batch are known to nobody yet.
                self.settle_all(tables, consumer.0, rows)?;
            }
            Op::Release { consumer, rows, .. } => {
                for row in rows {
                    release(tables, consumer.0, *row)?;
                }
            }
            Op::Sent {
                consumer, up_to, ..
            } => {
                if self.accounts.contains_key(&consumer.0) {
                    tables.sent.insert(consumer.0, *up_to)?;
                }
            }
            Op::Forget {
                consumer,
                packet_ids,
                codes,
                ..
            } => {
                codes.clear();
                for packet_id in packet_ids {
                    let known = tables.received.remove((consumer.0, *packet_id))?.is_some();
                    codes.push(forgotten(known));
                }
            }
            Op::Open {
                id,
                record,
                mailbox,
                ..
            } => self.open(tables, id, record, mailbox)?,
            Op::Left { id, record } => {
                if self.accounts.contains_key(&id.0) {
                    let bytes = record::consumer_bytes(record);
                    tables.consumers.insert(id.0, bytes.as_slice())?;
                }
            }
            Op::Drop { id, .. } => self.drop_consumer(tables, id.0)?,
            Op::Subscriptions {
                consumer, changes, ..
            } => change_subscriptions(tables, consumer.0, changes)?,
            Op::Will { record, .. } => {
                let bytes = record::will_bytes(record);
                let client_id = &*record.identity.client_id;
                tables.wills.insert(client_id, bytes.as_slice())?;
            }
            Op::NoWill { client_id, serial } => forget_will(tables, client_id, *serial)?,
            Op::Unretain { topics } => self.unretain(tables, topics)?,
            Op::Tick => {}
        }
        Ok(())
    }

    fn open(
        &mut self,
        tables: &mut Tables<'_>,
        id: &mut Option<ConsumerId>,
        record: &ConsumerRecord,
        mailbox: &Arc<Mailbox>,
    ) -> Result<(), StoreError> {
        let given = *id.get_or_insert(ConsumerId(self.next_consumer));
        if given.0 >= self.next_consumer {
            self.next_consumer = given.0 + 1;
            tables
                .meta
                .insert("next_consumer", u64::from(self.next_consumer))?;
        }
        let bytes = record::consumer_bytes(record);
        tables.consumers.insert(given.0, bytes.as_slice())?;
        let mut account = self.account(record, Arc::clone(mailbox));
        if let Some(old) = self.accounts.get(&given.0) {
            (account.rows, account.bytes) = (old.rows, old.bytes);
        }
        self.accounts.insert(given.0, account);
        Ok(())
    }

    fn drop_consumer(&mut self, tables: &mut Tables<'_>, id: u32) -> Result<(), StoreError> {
        self.fresh.write(tables)?;
        let settled = self.staged.settled.len();
        loop {
            // The lane goes as a whole.
            self.staged.settled.truncate(settled);
            let mut rows = tables.rows_of(id, SWEEP)?;
            if rows.is_empty() {
                break;
            }
            self.settle_all(tables, id, &mut rows)?;
        }
        lock(&self.recent).forget(id);
        self.staged.rows.retain(|(consumer, ..)| *consumer != id);
        tables.consumers.remove(id)?;
        tables.counts.remove(id)?;
        tables.sent.remove(id)?;
        let ids = (id, "")..(id + 1, "");
        tables.subscriptions.retain_in(ids, |_, _| false)?;
        tables
            .received
            .retain_in((id, 0)..=(id, u16::MAX), |_, ()| false)?;
        self.accounts.remove(&id);
        self.touched.remove(&id);
        self.uncounted.remove(&id);
        Ok(())
    }

    fn unretain(&mut self, tables: &mut Tables<'_>, topics: &[Arc<str>]) -> Result<(), StoreError> {
        let now = self.core.clock.now();
        for topic in topics {
            let gone = match tables.retained.get(&**topic)? {
                Some(found) => {
                    record::message(found.value()).filter(|message| message.expired(now))
                }
                None => None,
            };
            if let Some(gone) = gone {
                self.disown(&gone);
                tables.retained.remove(&**topic)?;
                self.retained_count = self.retained_count.saturating_sub(1);
                self.retained_bytes = self.retained_bytes.saturating_sub(gone.weight());
            }
        }
        Ok(())
    }

    /// What changes with every commit of the tables.
    fn close_batch(&mut self, tables: &mut Tables<'_>) -> Result<(), StoreError> {
        self.uncounted.extend(&self.touched);
        for consumer in &self.uncounted {
            if let Some(account) = self.accounts.get(consumer) {
                let counts = (account.rows, account.bytes);
                tables.counts.insert(consumer, counts)?;
            }
        }
        write_head(tables, self.head())
    }

    /// What the batch changed can be seen now: the figures of all first, so that nobody sees more there than at each.
    fn publish(&mut self) {
        self.show_figures();
        for consumer in std::mem::take(&mut self.touched) {
            if let Some(account) = self.accounts.get(&consumer) {
                account.mailbox.set_rows(account.rows, account.bytes);
            }
        }
        let mut recent = lock(&self.recent);
        if !self.is_told {
            for (consumer, row) in self.staged.settled.drain(..) {
                recent.settle(consumer, row, false);
            }
            recent.written(self.next_row);
            self.uncounted.clear();
        }
        if self.staged.rows.len() > MOST_ROWS {
            // So many are not worth knowing: they are in the tables.
            recent.forget_rows();
            self.staged.rows.clear();
        }
        for (consumer, row, weight, held) in self.staged.rows.drain(..) {
            recent.push(consumer, row, weight, held);
        }
        for (consumer, row) in self.staged.released.drain(..) {
            recent.release(consumer, row);
        }
        for ((consumer, packet_id), is_in) in self.staged.received.drain() {
            recent.set_received(consumer, packet_id, is_in);
        }
    }

    /// What the log has told gets into the tables.
    fn write_told(&mut self, tables: &mut Tables<'_>) -> Result<(), StoreError> {
        self.fresh.clear();
        lock(&self.recent).write(tables, &mut self.fresh)?;
        Ok(())
    }

    pub(super) fn show_figures(&mut self) {
        self.core.counters.journal(self.rows, self.bytes);
        self.core.counters.set_retained_bytes(self.retained_bytes);
        self.core
            .counters
            .set_repeat_topics(self.repeats, self.most_repeats);
        let most = self.most_retained();
        self.core.counters.set_most_retained(most);
    }
}

impl Schema for Ledger {
    type Op = Op;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        let mut tables = Tables::open(tx)?;
        self.write_recalled(&mut tables)?;
        self.load(&tables)
    }

    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Op]) -> Result<(), Halt> {
        self.begun = Instant::now();
        self.is_told = false;
        self.straight = self.straight.saturating_sub(1);
        self.fresh.clear();
        self.staged.clear();
        let mut tables = Tables::open(tx)?;
        self.write_told(&mut tables)?;
        self.disk_low = !self.disk.has_room_for(ops, lock(&self.recent).bytes());
        for op in ops {
            self.apply_one(&mut tables, op)?;
        }
        self.fresh.write(&mut tables)?;
        self.close_batch(&mut tables)?;
        Ok(())
    }

    fn applied(&mut self, ops: &mut [Op]) {
        self.hand_over_early(ops);
    }

    fn done(&mut self, ops: Vec<Op>) {
        self.publish();
        self.core.counters.committed();
        self.core.counters.commit_took(self.begun.elapsed());
        for op in ops {
            self.answer(op);
        }
    }

    fn failed(&mut self, ops: Vec<Op>, failure: &StoreError) {
        self.core.counters.commit_failed();
        error!(error = %failure, operations = ops.len(), "the message journal failed; nothing of this batch was acknowledged");
        self.core.tell(Event::JournalFailed {
            error: failure.to_string().into(),
        });
        for op in ops {
            self.fail(op, failure);
        }
    }

    fn loggable(&self, ops: &[Op]) -> Option<usize> {
        if self.straight > 0 {
            return None;
        }
        self.most_told(ops)
    }

    fn log(
        &mut self,
        reader: &Reader,
        ops: &mut [Op],
        record: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.tell(reader, ops, record)
    }

    fn checkpoint_due(&self) -> bool {
        lock(&self.recent).checkpoint_due()
    }

    fn checkpoint(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        let mut tables = Tables::open(tx)?;
        self.write_told(&mut tables)?;
        self.close_batch(&mut tables)
    }

    fn checkpointed(&mut self) {
        let mut recent = lock(&self.recent);
        if recent.grows() {
            self.straight = STRAIGHT;
        }
        recent.written(self.next_row);
        drop(recent);
        self.uncounted.clear();
    }

    fn begin_replay(&mut self) {
        self.begin_recall();
    }

    fn replay(&mut self, record: &[u8]) -> Result<(), StoreError> {
        self.recall(record)
    }

    fn prepared(&mut self) {
        lock(&self.recent).begin_from(self.next_row);
        if std::mem::take(&mut self.reread) {
            self.accounts
                .values()
                .for_each(|account| account.mailbox.reread());
        }
    }

    /// A row that was acknowledged may go a little later: after a power cut its client gets a QoS 1
    /// message once more, or a PUBREL.
    fn patient(op: &Op) -> bool {
        matches!(op, Op::Settle { answer: None, .. })
    }

    fn size(op: &Op) -> usize {
        match op {
            Op::Accept { entries, .. } => entries.len().max(1),
            _ => 1,
        }
    }

    fn essential(op: &Op) -> bool {
        !matches!(op, Op::Accept { .. } | Op::Will { .. })
    }
}

pub(super) fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The code of a PUBCOMP.
pub(super) fn forgotten(known: bool) -> u8 {
    if known {
        code::SUCCESS
    } else {
        code::PACKET_ID_NOT_FOUND
    }
}

fn release(tables: &mut Tables<'_>, consumer: u32, row: u64) -> Result<(), StoreError> {
    let Some(mut bytes) = tables
        .rows
        .get((consumer, row))?
        .map(|value| value.value().to_vec())
    else {
        return Ok(());
    };
    record::release(&mut bytes);
    tables.rows.insert((consumer, row), bytes.as_slice())?;
    Ok(())
}

fn forget_will(tables: &mut Tables<'_>, client_id: &str, serial: u64) -> Result<(), StoreError> {
    let known = match tables.wills.get(client_id)? {
        Some(found) => record::will(found.value()).is_none_or(|known| known.serial == serial),
        None => false,
    };
    if known {
        tables.wills.remove(client_id)?;
    }
    Ok(())
}

fn change_subscriptions(
    tables: &mut Tables<'_>,
    consumer: u32,
    changes: &[(String, Option<SubscriptionRecord>)],
) -> Result<(), StoreError> {
    for (filter, change) in changes {
        match change {
            Some(record) => {
                let bytes = record::subscription_bytes(record);
                tables
                    .subscriptions
                    .insert((consumer, filter.as_str()), bytes.as_slice())?;
            }
            None => {
                tables.subscriptions.remove((consumer, filter.as_str()))?;
            }
        }
    }
    Ok(())
}
