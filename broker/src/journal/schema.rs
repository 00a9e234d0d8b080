//! How operations become tables, and who hears of it after the commit.
//!
//! Runs on the store's writer thread alone, so that quotas and high-water marks are exact. What it
//! keeps in memory is loaded again after any failed commit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use holdfast_store::{Halt, Schema, StoreError};
use redb::{ReadableTable as _, WriteTransaction};
use tracing::{error, warn};

use super::op::{ConsumerRecord, Entry, Kind, Op, Reply, SubscriptionRecord, Verdict};
use super::record::{self, Row};
use super::tables::{Tables, damaged};
use crate::codec::code;
use crate::exchange::{Batch, ConsumerId, Mailbox, Options, Outcome, TailRow};
use crate::shared::Core;
use crate::{DropReason, Event, Message, Qos, WhenFull};

/// Rows of a removed consumer deleted in one step.
const SWEEP: usize = 10_000;

/// What the journal held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) consumers: Vec<(ConsumerId, ConsumerRecord, Arc<Mailbox>)>,
    pub(crate) subscriptions: Vec<(ConsumerId, String, SubscriptionRecord)>,
    pub(crate) received: Vec<(ConsumerId, u16)>,
}

/// The schema.
pub(crate) struct Ledger {
    core: Arc<Core>,
    accounts: HashMap<u32, Account>,
    next_row: u64,
    next_consumer: u32,
    repeat_topics: u64,
    retained_bytes: usize,
    retained_count: usize,
    bytes: u64,
    rows: u64,
    touched: BTreeSet<u32>,
    scratch: Vec<u8>,
    /// Until the first preparation.
    opening: Option<SyncSender<Loaded>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

/// One consumer's part of the journal.
#[derive(Debug)]
struct Account {
    rows: u64,
    bytes: u64,
    max_rows: u64,
    max_bytes: u64,
    /// `None` = by topic.
    when_full: Option<WhenFull>,
    mailbox: Arc<Mailbox>,
}

/// What a message finds at a consumer.
enum Room {
    Free,
    Drop(WhenFull),
    Refuse,
}

impl Ledger {
    /// The schema and where it puts what it loads at the opening.
    pub(super) fn new(core: Arc<Core>) -> (Self, Receiver<Loaded>) {
        let (opening, loaded) = sync_channel(1);
        let ledger = Self {
            core,
            accounts: HashMap::new(),
            next_row: 1,
            next_consumer: 1,
            repeat_topics: 0,
            retained_bytes: 0,
            retained_count: 0,
            bytes: 0,
            rows: 0,
            touched: BTreeSet::new(),
            scratch: Vec::new(),
            opening: Some(opening),
        };
        (ledger, loaded)
    }

    fn account(&self, record: &ConsumerRecord, mailbox: Arc<Mailbox>) -> Account {
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

    /// Loads counters and marks; at the first opening everything else too.
    fn load(&mut self, tables: &Tables<'_>) -> Result<(), StoreError> {
        self.next_row = tables.number("next_row")?.unwrap_or(1);
        self.next_consumer = u32::try_from(tables.number("next_consumer")?.unwrap_or(1))
            .map_err(|_| damaged("the number of consumers"))?;
        self.repeat_topics = tables.number("repeat_topics")?.unwrap_or(0);
        self.touched.clear();
        let mut loaded = Loaded::default();
        let first = self.opening.is_some();
        if first {
            self.load_clock(tables)?;
        }
        let mut known = HashMap::new();
        for entry in tables.consumers.iter()? {
            let (key, value) = entry?;
            let id = key.value();
            let record = record::consumer(value.value()).ok_or_else(|| damaged("a consumer"))?;
            let mailbox = match self.accounts.remove(&id) {
                Some(account) => account.mailbox,
                None => new_mailbox(&self.core, &record),
            };
            mailbox.set_consumer(Some(ConsumerId(id)));
            let mut account = self.account(&record, Arc::clone(&mailbox));
            if let Some(counts) = tables.counts.get(id)? {
                (account.rows, account.bytes) = counts.value();
            }
            mailbox.set_rows(account.rows);
            if first {
                mailbox.rewind(0);
                loaded.consumers.push((ConsumerId(id), record, mailbox));
            } else {
                mailbox.reread();
            }
            known.insert(id, account);
        }
        self.accounts = known;
        self.rows = self.accounts.values().map(|account| account.rows).sum();
        self.bytes = self.accounts.values().map(|account| account.bytes).sum();
        self.load_retained(tables)?;
        if let Some(opening) = self.opening.take() {
            load_rest(tables, &mut loaded)?;
            // The opener waits for exactly this.
            let _ = opening.send(loaded);
        }
        self.show_figures();
        Ok(())
    }

    /// We were away for as long as the wall clock says, and never for less than nothing.
    fn load_clock(&self, tables: &Tables<'_>) -> Result<(), StoreError> {
        let seconds = tables.number("broker_seconds")?.unwrap_or(0);
        let wall = self.core.config.wall.seconds();
        let away = tables
            .number("wall_seconds")?
            .map_or(0, |then| wall.saturating_sub(then));
        self.core.clock.set_base(seconds + away);
        Ok(())
    }

    fn load_retained(&mut self, tables: &Tables<'_>) -> Result<(), StoreError> {
        let mut all = Vec::new();
        self.retained_bytes = 0;
        for entry in tables.retained.iter()? {
            let (_, value) = entry?;
            let message = record::message(value.value()).ok_or_else(|| damaged("a retained"))?;
            self.retained_bytes += message.weight();
            all.push(Arc::new(message));
        }
        self.retained_count = all.len();
        self.core.retained.replace(all);
        Ok(())
    }

    fn apply_one(&mut self, tables: &mut Tables<'_>, op: &mut Op) -> Result<(), StoreError> {
        match op {
            Op::Accept { entries, .. } => {
                for entry in entries {
                    self.accept(tables, entry)?;
                }
            }
            Op::Settle { consumer, rows, .. } => {
                for row in rows {
                    self.settle(tables, consumer.0, *row)?;
                }
            }
            Op::Release { consumer, rows, .. } => {
                for row in rows {
                    release(tables, consumer.0, *row, &mut self.scratch)?;
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
                    codes.push(if known {
                        code::SUCCESS
                    } else {
                        code::PACKET_ID_NOT_FOUND
                    });
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
        loop {
            let rows = tables.rows_of(id, SWEEP)?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                self.settle(tables, id, row)?;
            }
        }
        tables.consumers.remove(id)?;
        tables.counts.remove(id)?;
        let ids = (id, "")..(id + 1, "");
        tables.subscriptions.retain_in(ids, |_, _| false)?;
        tables
            .received
            .retain_in((id, 0)..=(id, u16::MAX), |_, ()| false)?;
        self.accounts.remove(&id);
        self.touched.remove(&id);
        Ok(())
    }

    fn settle(
        &mut self,
        tables: &mut Tables<'_>,
        consumer: u32,
        row: u64,
    ) -> Result<(), StoreError> {
        let Some((weight, _)) = tables.settle(consumer, row)? else {
            return Ok(());
        };
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(weight);
        if let Some(account) = self.accounts.get_mut(&consumer) {
            account.rows = account.rows.saturating_sub(1);
            account.bytes = account.bytes.saturating_sub(weight);
            self.touched.insert(consumer);
        }
        Ok(())
    }

    fn unretain(&mut self, tables: &mut Tables<'_>, topics: &[Arc<str>]) -> Result<(), StoreError> {
        let now = self.core.clock.now();
        for topic in topics {
            let gone = match tables.retained.get(&**topic)? {
                Some(found) => record::message(found.value())
                    .filter(|message| message.expired(now))
                    .map(|message| message.weight()),
                None => None,
            };
            if let Some(weight) = gone {
                tables.retained.remove(&**topic)?;
                self.retained_count = self.retained_count.saturating_sub(1);
                self.retained_bytes = self.retained_bytes.saturating_sub(weight);
            }
        }
        Ok(())
    }

    /// Stores one publish for all who want it durably, or refuses it whole.
    fn accept(&mut self, tables: &mut Tables<'_>, entry: &mut Entry) -> Result<(), StoreError> {
        entry.verdict = self.store(tables, entry)?;
        if let Some((consumer, packet_id)) = entry.received
            && entry.verdict != Verdict::Full
            && self.accounts.contains_key(&consumer.0)
        {
            tables.received.insert((consumer.0, packet_id), ())?;
        }
        Ok(())
    }

    fn store(&mut self, tables: &mut Tables<'_>, entry: &mut Entry) -> Result<Verdict, StoreError> {
        let topic = Arc::clone(&entry.message.topic);
        if let Some(stamp) = entry.stamp {
            let known = tables.repeats.get(&*topic)?.map(|mark| mark.value());
            if known.is_some_and(|known| stamp <= known) {
                return Ok(Verdict::Repeat);
            }
            if known.is_none() && self.repeat_topics >= self.core.config.limits.repeat_topics as u64
            {
                warn!(%topic, "no room for another repeat filter: a repeat would be stored twice");
                entry.stamp = None;
            }
        }
        let wanted = pick(entry);
        let retain = entry.message.retain && entry.only.is_none();
        if retain && !self.retained_fits(tables, &entry.message)? {
            return Ok(Verdict::Full);
        }
        let mut rooms = Vec::with_capacity(wanted.len());
        let weight = entry.message.weight() as u64;
        for (mailbox, options) in wanted {
            let Some(consumer) = mailbox.consumer() else {
                continue;
            };
            let Some(account) = self.accounts.get(&consumer.0) else {
                continue;
            };
            match self.room(account, weight, &topic) {
                Room::Refuse => return Ok(Verdict::Full),
                room => rooms.push((consumer.0, mailbox, options, room)),
            }
        }
        for (consumer, mailbox, options, room) in rooms {
            if let Room::Drop(policy) = room
                && !self.make_room(tables, consumer, policy)?
            {
                self.core
                    .dropped(&mailbox.identity.client_id, DropReason::JournalFull, 1);
                continue;
            }
            entry.rows_for.push((mailbox, options));
        }
        self.insert(tables, entry)?;
        if retain {
            self.keep(tables, &entry.message)?;
        }
        if let Some(stamp) = entry.stamp
            && tables.repeats.insert(&*topic, stamp)?.is_none()
        {
            self.repeat_topics += 1;
            tables.meta.insert("repeat_topics", self.repeat_topics)?;
        }
        Ok(Verdict::Taken)
    }

    fn insert(&mut self, tables: &mut Tables<'_>, entry: &mut Entry) -> Result<(), StoreError> {
        if entry.rows_for.is_empty() {
            return Ok(());
        }
        entry.row = self.next_row;
        self.next_row += 1;
        record::put_message(&mut self.scratch, &entry.message);
        tables.messages.insert(entry.row, self.scratch.as_slice())?;
        let sharers = u32::try_from(entry.rows_for.len()).map_err(|_| damaged("a route"))?;
        if sharers > 1 {
            tables.shared.insert(entry.row, sharers)?;
        }
        let weight = entry.message.weight() as u64;
        for (mailbox, options) in &entry.rows_for {
            let Some(consumer) = mailbox.consumer() else {
                continue;
            };
            let row = Row {
                qos: entry.message.qos.min(options.qos),
                retain_as_published: options.retain_as_published,
                retained: entry.only.is_some(),
                released: false,
                sole: sharers == 1,
                weight: u32::try_from(weight).unwrap_or(u32::MAX),
                ids: options.ids.clone(),
            };
            row.encode(&mut self.scratch);
            tables
                .rows
                .insert((consumer.0, entry.row), self.scratch.as_slice())?;
            if let Some(account) = self.accounts.get_mut(&consumer.0) {
                account.rows += 1;
                account.bytes += weight;
            }
            self.rows += 1;
            self.bytes += weight;
            self.touched.insert(consumer.0);
        }
        Ok(())
    }

    fn room(&self, account: &Account, weight: u64, topic: &str) -> Room {
        let own = account.rows < account.max_rows && account.bytes + weight <= account.max_bytes;
        let all = self.bytes + weight <= self.core.config.limits.journal_bytes;
        if own && all {
            return Room::Free;
        }
        let by_topic = self
            .core
            .config
            .when_full
            .iter()
            .find(|(filter, _)| filter.matches(topic))
            .map(|(_, policy)| *policy);
        let policy = if own {
            // All are full: an unanswered question refuses, so that nothing is lost.
            by_topic.or(account.when_full).unwrap_or(WhenFull::Refuse)
        } else {
            // One session's fault is that session's loss, unless it was said otherwise.
            account
                .when_full
                .or(by_topic)
                .unwrap_or(WhenFull::DropNewest)
        };
        match policy {
            WhenFull::Refuse => Room::Refuse,
            other => Room::Drop(other),
        }
    }

    /// Drops the consumer's oldest row that its reader has not had; false when there is none.
    fn make_room(
        &mut self,
        tables: &mut Tables<'_>,
        consumer: u32,
        policy: WhenFull,
    ) -> Result<bool, StoreError> {
        if policy != WhenFull::DropOldest {
            return Ok(false);
        }
        let Some(mailbox) = self
            .accounts
            .get(&consumer)
            .map(|account| Arc::clone(&account.mailbox))
        else {
            return Ok(false);
        };
        let Some(oldest) = tables.first_after(consumer, mailbox.taken())? else {
            return Ok(false);
        };
        if !mailbox.may_drop(oldest) {
            return Ok(false);
        }
        self.settle(tables, consumer, oldest)?;
        self.core
            .dropped(&mailbox.identity.client_id, DropReason::JournalFull, 1);
        Ok(true)
    }

    fn retained_fits(&self, tables: &Tables<'_>, message: &Message) -> Result<bool, StoreError> {
        let limits = &self.core.config.limits;
        if message.payload.is_empty() {
            return Ok(true);
        }
        let known = tables.retained.get(&*message.topic)?.is_some();
        Ok((known || self.retained_count < limits.retained)
            && self.retained_bytes + message.weight() <= limits.retained_bytes)
    }

    fn keep(&mut self, tables: &mut Tables<'_>, message: &Message) -> Result<(), StoreError> {
        let old = if message.payload.is_empty() {
            tables.retained.remove(&*message.topic)?
        } else {
            record::put_message(&mut self.scratch, message);
            tables
                .retained
                .insert(&*message.topic, self.scratch.as_slice())?
        };
        let old = old.and_then(|old| record::message(old.value()));
        if let Some(old) = old {
            self.retained_count = self.retained_count.saturating_sub(1);
            self.retained_bytes = self.retained_bytes.saturating_sub(old.weight());
        }
        if !message.payload.is_empty() {
            self.retained_count += 1;
            self.retained_bytes += message.weight();
        }
        Ok(())
    }

    /// What changes with every commit.
    fn close_batch(&mut self, tables: &mut Tables<'_>) -> Result<(), StoreError> {
        for consumer in std::mem::take(&mut self.touched) {
            if let Some(account) = self.accounts.get(&consumer) {
                account.mailbox.set_rows(account.rows);
                tables
                    .counts
                    .insert(consumer, (account.rows, account.bytes))?;
            }
        }
        tables.meta.insert("next_row", self.next_row)?;
        let now = self.core.clock.now();
        tables.meta.insert("broker_seconds", now)?;
        let wall = self.core.config.wall.seconds();
        tables.meta.insert("wall_seconds", wall)?;
        Ok(())
    }

    fn show_figures(&self) {
        self.core.counters.journal(self.rows, self.bytes);
    }

    /// After the commit: delivers, fills retained slots, answers.
    fn accepted(&self, entries: Vec<Entry>, reply: Reply) {
        let answers = answers(&entries);
        let full = entries
            .iter()
            .filter(|entry| entry.verdict == Verdict::Full)
            .count() as u64;
        if let Some(first) = entries.iter().find(|entry| entry.verdict == Verdict::Full) {
            self.core.counters.refused_full(full);
            self.core.tell(Event::JournalFull {
                topic: Arc::clone(&first.message.topic),
                count: full,
            });
        }
        let repeats = entries
            .iter()
            .filter(|entry| entry.verdict == Verdict::Repeat)
            .count();
        self.core.counters.repeats(repeats as u64);
        let verdicts: Vec<Verdict> = entries.iter().map(|entry| entry.verdict).collect();
        self.deliver(entries);
        match reply {
            Reply::None => {}
            Reply::Mailbox(mailbox) => mailbox.push_outcome(Outcome::Codes(answers)),
            Reply::Caller(answer) => {
                let _ = answer.send(Ok(verdicts));
            }
        }
    }

    fn deliver(&self, entries: Vec<Entry>) {
        let mut run: Vec<Entry> = Vec::new();
        for entry in entries {
            if entry.verdict != Verdict::Taken {
                continue;
            }
            let goes_on = run.last().is_some_and(|last| {
                Arc::ptr_eq(&last.route, &entry.route)
                    && last.message.qos == entry.message.qos
                    && last.publisher == entry.publisher
                    && last.only.is_none()
                    && entry.only.is_none()
            });
            if !goes_on {
                self.deliver_run(std::mem::take(&mut run));
            }
            run.push(entry);
        }
        self.deliver_run(run);
    }

    /// Entries of one route and QoS: live to those who take them so, rows to their readers.
    fn deliver_run(&self, run: Vec<Entry>) {
        let Some(first) = run.first() else { return };
        if first.only.is_none() {
            let messages = run.iter().map(|entry| Arc::clone(&entry.message)).collect();
            self.core
                .deliver(&first.route, first.publisher, messages, false);
        }
        for entry in run {
            for (mailbox, options) in &entry.live_picks {
                let batch = Arc::new(Batch::new(vec![Arc::clone(&entry.message)]));
                self.core.put(mailbox, options, &batch, 0..1, false);
            }
            for (mailbox, options) in entry.rows_for {
                mailbox.push_row(TailRow {
                    id: entry.row,
                    message: Arc::clone(&entry.message),
                    options,
                    retained: entry.only.is_some(),
                });
            }
            if entry.message.retain && entry.only.is_none() {
                self.core.retained.set(&entry.message);
            }
        }
    }

    fn answer(&self, op: Op) {
        match op {
            Op::Accept { entries, reply } => self.accepted(entries, reply),
            Op::Settle { answer, .. } | Op::Drop { answer, .. } => {
                if let Some(answer) = answer {
                    let _ = answer.send(Ok(()));
                }
            }
            Op::Release { rows, mailbox, .. } => mailbox.push_outcome(Outcome::Released(rows)),
            Op::Forget { codes, mailbox, .. } => mailbox.push_outcome(Outcome::Completed(codes)),
            Op::Open {
                id,
                mailbox,
                answer,
                ..
            } => {
                mailbox.set_consumer(id);
                if let (Some(answer), Some(id)) = (answer, id) {
                    let _ = answer.send(Ok(id));
                }
            }
            Op::Subscriptions { answer, .. } => {
                let _ = answer.send(Ok(()));
            }
            Op::Unretain { topics } => {
                let now = self.core.clock.now();
                for topic in topics {
                    self.core.retained.remove_expired(&topic, now);
                }
            }
            Op::Left { .. } | Op::Tick => {}
        }
    }
}

impl Schema for Ledger {
    type Op = Op;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        let tables = Tables::open(tx)?;
        self.load(&tables)
    }

    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Op]) -> Result<(), Halt> {
        let mut tables = Tables::open(tx)?;
        for op in ops {
            self.apply_one(&mut tables, op)?;
        }
        self.close_batch(&mut tables)?;
        Ok(())
    }

    fn done(&mut self, ops: Vec<Op>) {
        self.core.counters.committed();
        self.show_figures();
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
            fail(op, failure);
        }
    }

    fn essential(op: &Op) -> bool {
        !matches!(op, Op::Accept { .. })
    }
}

fn fail(op: Op, failure: &StoreError) {
    let failure = failure.clone();
    match op {
        Op::Accept { entries, reply } => match reply {
            Reply::None => {}
            Reply::Mailbox(mailbox) => {
                let waiting = answers(&entries).len();
                mailbox.push_outcome(Outcome::Failed(waiting));
            }
            Reply::Caller(answer) => {
                let _ = answer.send(Err(failure));
            }
        },
        // A row whose release is not in stays as it was: after a reconnect it is sent again.
        Op::Forget { mailbox, .. } | Op::Release { mailbox, .. } => {
            mailbox.push_outcome(Outcome::NotCompleted);
        }
        Op::Settle { answer, .. } | Op::Drop { answer, .. } => {
            if let Some(answer) = answer {
                let _ = answer.send(Err(failure));
            }
        }
        Op::Open { answer, .. } => {
            if let Some(answer) = answer {
                let _ = answer.send(Err(failure));
            }
        }
        Op::Subscriptions { answer, .. } => {
            let _ = answer.send(Err(failure));
        }
        Op::Left { .. } | Op::Unretain { .. } | Op::Tick => {}
    }
}

/// One code per entry that somebody waits for.
fn answers(entries: &[Entry]) -> Vec<u8> {
    entries
        .iter()
        .filter(|entry| entry.message.qos != Qos::AtMostOnce && entry.only.is_none())
        .map(|entry| match entry.verdict {
            Verdict::Full => code::QUOTA,
            Verdict::Taken if entry.route.is_empty() => code::NO_MATCHING_SUBSCRIBERS,
            Verdict::Taken | Verdict::Repeat => code::SUCCESS,
        })
        .collect()
}

/// Who wants a row of it; members of shared subscriptions are picked here.
fn pick(entry: &mut Entry) -> Vec<(Arc<Mailbox>, Arc<Options>)> {
    if let Some((mailbox, options)) = &entry.only {
        return vec![(Arc::clone(mailbox), Arc::clone(options))];
    }
    let qos = entry.message.qos;
    let mut wanted: Vec<_> = entry
        .route
        .targets
        .iter()
        .filter_map(|target| {
            let options = target.options_for(entry.publisher)?;
            let keeps = target.mailbox.keeps(qos, options.qos);
            keeps.then(|| (Arc::clone(&target.mailbox), Arc::clone(options)))
        })
        .collect();
    entry.live_picks.clear();
    for group in &entry.route.groups {
        let Some(target) = group.pick() else { continue };
        let picked = (Arc::clone(&target.mailbox), Arc::clone(&target.options));
        if target.mailbox.keeps(qos, target.options.qos) {
            wanted.push(picked);
        } else {
            entry.live_picks.push(picked);
        }
    }
    wanted
}

fn release(
    tables: &mut Tables<'_>,
    consumer: u32,
    row: u64,
    scratch: &mut Vec<u8>,
) -> Result<(), StoreError> {
    let Some(mut found) = tables
        .rows
        .get((consumer, row))?
        .map(|value| super::tables::decode_row(value.value()))
        .transpose()?
    else {
        return Ok(());
    };
    found.released = true;
    found.encode(scratch);
    tables.rows.insert((consumer, row), scratch.as_slice())?;
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

fn load_rest(tables: &Tables<'_>, loaded: &mut Loaded) -> Result<(), StoreError> {
    for entry in tables.subscriptions.iter()? {
        let (key, value) = entry?;
        let (consumer, filter) = key.value();
        let record =
            record::subscription(value.value()).ok_or_else(|| damaged("a subscription"))?;
        loaded
            .subscriptions
            .push((ConsumerId(consumer), filter.to_owned(), record));
    }
    for entry in tables.received.iter()? {
        let (consumer, packet_id) = entry?.0.value();
        loaded.received.push((ConsumerId(consumer), packet_id));
    }
    Ok(())
}

fn new_mailbox(core: &Core, record: &ConsumerRecord) -> Arc<Mailbox> {
    Arc::new(match &record.kind {
        Kind::Session { identity, .. } => {
            Mailbox::new(core.next_key(), identity.clone(), core.queue_bounds())
        }
        Kind::Bridge { name, options } => Mailbox::for_bridge(
            core.next_key(),
            name,
            core.queue_bounds(),
            options.take_qos0,
        ),
    })
}
