//! What is kept in memory, read from the tables: at the opening, and after a failed commit.
//!
//! Part of `schema`, on the writer thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_store::StoreError;
use redb::ReadableTable as _;

use super::op::{ConsumerRecord, Kind};
use super::recent::ByConsumer;
use super::record;
use super::schema::{Ledger, Loaded};
use super::tables::{Tables, damaged};
use crate::exchange::{ConsumerId, Mailbox};
use crate::shared::Core;

impl Ledger {
    /// Loads counters and marks; at the first opening everything else too.
    pub(super) fn load(&mut self, tables: &Tables<'_>) -> Result<(), StoreError> {
        // A number that a failed commit has taken is not used again: a reader may have its row.
        let stored = tables.number("next_row")?.unwrap_or(1);
        self.next_row = self.next_row.max(stored);
        self.next_consumer = u32::try_from(tables.number("next_consumer")?.unwrap_or(1))
            .map_err(|_| damaged("the number of consumers"))?;
        self.load_repeats(tables)?;
        self.touched.clear();
        let mut loaded = Loaded::default();
        let first = self.opening.is_some();
        self.reread = !first;
        if first {
            self.load_clock(tables)?;
            self.core.first_row.store(self.next_row, Ordering::Relaxed);
        }
        let mut known = ByConsumer::default();
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
            mailbox.set_rows(account.rows, account.bytes);
            let sent = tables.sent.get(id)?.map_or(0, |sent| sent.value());
            mailbox.set_marked(sent);
            if first {
                mailbox.set_sent_before(sent);
                mailbox.rewind(0);
                loaded.consumers.push((ConsumerId(id), record, mailbox));
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

    fn load_repeats(&mut self, tables: &Tables<'_>) -> Result<(), StoreError> {
        self.repeats = 0;
        self.repeats_of.clear();
        self.most_repeats = 0;
        for entry in tables.repeats.iter()? {
            let key = entry?.0;
            let (sender, _) = key.value();
            self.repeats += 1;
            match self.repeats_of.get_mut(sender) {
                Some(count) => *count += 1,
                None => {
                    self.repeats_of.insert(sender.into(), 1);
                }
            }
        }
        self.most_repeats = self.repeats_of.values().copied().max().unwrap_or(0);
        Ok(())
    }

    fn load_retained(&mut self, tables: &Tables<'_>) -> Result<(), StoreError> {
        let mut all = Vec::new();
        self.retained_bytes = 0;
        self.retained_of.clear();
        self.most_retained = 0;
        for entry in tables.retained.iter()? {
            let (_, value) = entry?;
            let message = record::message(value.value()).ok_or_else(|| damaged("a retained"))?;
            self.retained_bytes += message.weight();
            self.own(&message);
            all.push(Arc::new(message));
        }
        self.retained_count = all.len();
        self.core.retained.replace(all);
        Ok(())
    }
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
    for entry in tables.wills.iter()? {
        let (_, value) = entry?;
        let record = record::will(value.value()).ok_or_else(|| damaged("a will"))?;
        loaded.wills.push(record);
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
            &core.queue_bounds(),
            options.take_qos0,
        ),
    })
}
