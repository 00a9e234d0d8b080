//! One publish at the journal: repeat, room, rows, retained slot, high-water mark.
//!
//! Part of `schema`, on the writer thread; either everything of a publish is stored or nothing is.

use std::sync::Arc;

use holdfast_store::StoreError;
use redb::ReadableTable as _;
use smallvec::smallvec;

use super::log::At;
use super::op::{Claimed, Entry, Receivers, Stamp, Verdict};
use super::recent::{Held, Mark};
use super::record::{self, Claim};
use super::schema::{Account, Ledger, lock};
use super::tables::{Tables, damaged};
use crate::{DropReason, Message, WhenFull};

/// What a message finds at a consumer.
enum Room {
    Free,
    Drop(WhenFull),
    Refuse,
}

impl Ledger {
    /// Stores one publish for all who want it durably, or refuses it whole.
    pub(super) fn accept(
        &mut self,
        at: &mut At<'_, '_>,
        entry: &mut Entry,
    ) -> Result<(), StoreError> {
        entry.verdict = self.store(at, entry)?;
        note_refusal(entry, entry.verdict == Verdict::Full);
        if let Some((consumer, packet_id)) = entry.received
            && entry.verdict != Verdict::Full
            && self.accounts.contains_key(&consumer.0)
        {
            match at {
                At::Tables(tables) => {
                    tables.received.insert((consumer.0, packet_id), ())?;
                }
                At::Log(log) => {
                    log.telling.received(consumer.0, packet_id, true);
                    self.staged.received.insert((consumer.0, packet_id), true);
                }
            }
        }
        Ok(())
    }

    fn store(&mut self, at: &mut At<'_, '_>, entry: &mut Entry) -> Result<Verdict, StoreError> {
        if self.disk_low {
            return Ok(Verdict::Full);
        }
        let topic = Arc::clone(&entry.message.topic);
        let mut is_first = false;
        if let Some(stamp) = &entry.stamp {
            let known = self.known_mark(at, stamp, &topic)?;
            is_first = known.is_none();
            if known.is_some_and(|known| stamp.number <= known) {
                return Ok(Verdict::Repeat);
            }
            if overtakes(stamp, &topic) {
                return Ok(Verdict::Full);
            }
            if known.is_none() && !self.repeats_fit(&stamp.sender) {
                self.core.unfiltered(&stamp.sender, &topic);
                entry.stamp = None;
            }
        }
        let wanted = pick(entry);
        let retain = entry.message.retain && entry.only.is_none();
        if retain && !self.retained_fits(at.tables()?, &entry.message)? {
            return Ok(Verdict::Full);
        }
        let weight = entry.message.weight() as u64;
        let mut all_free = true;
        for claimed in &wanted {
            match self.room_for(claimed, weight, &topic) {
                Some((_, Room::Free)) => {}
                Some((_, Room::Refuse)) => return Ok(Verdict::Full),
                Some((_, Room::Drop(_))) | None => all_free = false,
            }
        }
        entry.rows_for = if all_free {
            wanted
        } else {
            self.clear_room(at, wanted, weight, &topic)?
        };
        self.insert(at, entry)?;
        if retain {
            self.keep(at.tables()?, &entry.message)?;
        }
        if let Some(stamp) = &entry.stamp {
            self.note_mark(at, stamp, &topic)?;
            if is_first {
                let sender = Arc::clone(&stamp.sender);
                let own = self.repeats_of.entry(sender).or_default();
                *own += 1;
                self.most_repeats = self.most_repeats.max(*own);
                self.repeats += 1;
            }
        }
        Ok(Verdict::Taken)
    }

    fn known_mark(
        &self,
        at: &mut At<'_, '_>,
        stamp: &Stamp,
        topic: &Arc<str>,
    ) -> Result<Option<Mark>, StoreError> {
        if let Some(mark) = lock(&self.recent).mark(&stamp.sender, topic) {
            return Ok(Some(mark));
        }
        let known = match at {
            At::Tables(tables) => {
                let key = (&*stamp.sender, &**topic);
                tables.repeats.get(key)?.map(|mark| mark.value())
            }
            At::Log(log) => log.mark(&stamp.sender, topic)?,
        };
        if let Some(mark) = known {
            lock(&self.recent).set_mark(&stamp.sender, topic, mark, false);
        }
        Ok(known)
    }

    fn note_mark(
        &self,
        at: &mut At<'_, '_>,
        stamp: &Stamp,
        topic: &Arc<str>,
    ) -> Result<(), StoreError> {
        let is_told = match at {
            At::Tables(tables) => {
                let key = (&*stamp.sender, &**topic);
                tables.repeats.insert(key, stamp.number)?;
                false
            }
            At::Log(log) => {
                log.telling.mark(&stamp.sender, topic, stamp.number);
                true
            }
        };
        lock(&self.recent).set_mark(&stamp.sender, topic, stamp.number, is_told);
        Ok(())
    }

    /// Whether another topic of this sender may have its mark: a sender has a share, so that one
    /// cannot take the filter from the others.
    fn repeats_fit(&self, sender: &str) -> bool {
        let limits = &self.core.config.limits;
        let own = self.repeats_of.get(sender).copied().unwrap_or(0);
        self.repeats < limits.repeat_topics && own < limits.repeat_topics_per_client
    }

    /// What a message finds at a consumer; `None` when that is gone by now.
    fn room_for(&self, claimed: &Claimed, weight: u64, topic: &str) -> Option<(u32, Room)> {
        let consumer = claimed.mailbox.consumer()?.0;
        let account = self.accounts.get(&consumer)?;
        Some((consumer, self.room(account, weight, topic)))
    }

    /// Who gets a row where some have no room: those for whom it could be made.
    fn clear_room(
        &mut self,
        at: &mut At<'_, '_>,
        wanted: Receivers,
        weight: u64,
        topic: &str,
    ) -> Result<Receivers, StoreError> {
        let mut found = Receivers::with_capacity(wanted.len());
        for claimed in wanted {
            match self.room_for(&claimed, weight, topic) {
                None => {}
                Some((consumer, Room::Drop(policy)))
                    if !self.make_room(at, consumer, policy)? =>
                {
                    let name = &claimed.mailbox.name;
                    self.core.dropped(name, DropReason::JournalFull, 1);
                }
                Some(_) => found.push(claimed),
            }
        }
        Ok(found)
    }

    fn insert(&mut self, at: &mut At<'_, '_>, entry: &mut Entry) -> Result<(), StoreError> {
        if entry.rows_for.is_empty() {
            return Ok(());
        }
        let row = self.next_row;
        self.next_row += 1;
        let copies = entry.number_rows(row, &mut self.next_row);
        let sharers =
            u32::try_from(entry.rows_for.len() - copies).map_err(|_| damaged("a route"))?;
        if sharers > 1 {
            match at {
                At::Tables(_) => self.fresh.message(row, &entry.message, sharers),
                At::Log(log) => log.telling.message(row, &entry.message),
            }
        }
        let weight = entry.message.weight() as u64;
        for claimed in &entry.rows_for {
            let Some(consumer) = claimed.mailbox.consumer() else {
                continue;
            };
            let claim = Claim {
                message: &entry.message,
                options: &claimed.options,
                retained: entry.retained,
                released: false,
                sole: sharers == 1 || claimed.row != row,
                weight: u32::try_from(weight).unwrap_or(u32::MAX),
            };
            let held = match at {
                At::Tables(_) => {
                    self.fresh.row(consumer.0, claimed.row, &claim);
                    None
                }
                At::Log(log) => {
                    log.telling.row(consumer.0, claimed.row, &claim);
                    Some(held(&claim, entry, claimed))
                }
            };
            let staged = (consumer.0, claimed.row, claim.weight, held);
            self.staged.rows.push(staged);
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
        let limits = &self.core.config.limits;
        let all = self.rows < limits.journal_rows && self.bytes + weight <= limits.journal_bytes;
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
        at: &mut At<'_, '_>,
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
        let tables = at.tables()?;
        self.fresh.write(tables)?;
        let Some(oldest) = tables.first_after(consumer, mailbox.taken())? else {
            return Ok(false);
        };
        if !mailbox.may_drop(oldest) {
            return Ok(false);
        }
        self.settle_all(tables, consumer, &mut [oldest])?;
        self.staged.remove(consumer, oldest);
        self.core.dropped(&mailbox.name, DropReason::JournalFull, 1);
        Ok(true)
    }

    fn retained_fits(&self, tables: &Tables<'_>, message: &Message) -> Result<bool, StoreError> {
        let limits = &self.core.config.limits;
        if message.payload.is_empty() {
            return Ok(true);
        }
        let known = match tables.retained.get(&*message.topic)? {
            Some(known) => record::message(known.value()),
            None => None,
        };
        let same_owner = known.as_ref().map(owner_of) == Some(owner_of(message));
        let mut own = 0;
        if let Some(owner) = owner_of(message).filter(|_| !same_owner) {
            own = self.retained_of.get(owner).copied().unwrap_or(0);
        }
        Ok((known.is_some() || self.retained_count < limits.retained)
            && own < limits.retained_per_client
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
            self.disown(&old);
        }
        if !message.payload.is_empty() {
            self.own(message);
            self.retained_count += 1;
            self.retained_bytes += message.weight();
        }
        Ok(())
    }
}

impl Ledger {
    /// Counts a retained message to its owner's part.
    pub(super) fn own(&mut self, message: &Message) {
        if let Some(owner) = owner_of(message) {
            let own = self.retained_of.entry(owner.into()).or_default();
            *own += 1;
            if *own >= self.most_retained {
                (self.most_retained, self.most_is_old) = (*own, false);
            }
        }
    }

    /// Takes a retained message from its owner's part.
    pub(super) fn disown(&mut self, message: &Message) {
        if let Some(owner) = owner_of(message)
            && let Some(count) = self.retained_of.get_mut(owner)
        {
            self.most_is_old |= *count == self.most_retained;
            *count -= 1;
            if *count == 0 {
                self.retained_of.remove(owner);
            }
        }
    }

    /// The most retained messages that one client has.
    pub(super) fn most_retained(&mut self) -> usize {
        if std::mem::take(&mut self.most_is_old) {
            self.most_retained = self.retained_of.values().copied().max().unwrap_or(0);
        }
        self.most_retained
    }
}

fn held(claim: &Claim<'_>, entry: &Entry, claimed: &Claimed) -> Held {
    Held {
        message: Arc::clone(&entry.message),
        options: Arc::clone(&claimed.options),
        retained: entry.retained,
        shared: !claim.sole,
        released: false,
    }
}

fn owner_of(message: &Message) -> Option<&str> {
    message.owner.as_deref().map(|owner| &*owner.client_id)
}

/// Who wants a row of it; members of shared subscriptions are picked here.
fn pick(entry: &mut Entry) -> Receivers {
    if let Some((mailbox, options)) = &entry.only {
        return smallvec![Claimed::new(mailbox, options)];
    }
    let qos = entry.message.qos;
    let mut wanted = Receivers::with_capacity(entry.route.targets.len() + entry.route.groups.len());
    for target in &entry.route.targets {
        if let Some(options) = target.options_for(entry.publisher)
            && target.mailbox.keeps(qos, options.qos)
        {
            wanted.push(Claimed::new(&target.mailbox, options));
        }
    }
    entry.live_picks.clear();
    for group in &entry.route.groups {
        let Some(target) = group.pick() else { continue };
        if target.mailbox.keeps(qos, target.options.qos) {
            wanted.push(Claimed::new(&target.mailbox, &target.options));
        } else {
            let picked = (Arc::clone(&target.mailbox), Arc::clone(&target.options));
            entry.live_picks.push(picked);
        }
    }
    wanted
}

/// Whether an earlier number of the same sender and topic was refused on this connection and has
/// not been taken since.
fn overtakes(stamp: &Stamp, topic: &str) -> bool {
    let from = stamp.from.as_ref();
    from.and_then(|from| from.refused(topic))
        .is_some_and(|refused| stamp.number > refused)
}

pub(super) fn note_refusal(entry: &Entry, refused: bool) {
    if let Some(stamp) = &entry.stamp
        && let Some(from) = &stamp.from
    {
        from.note_refusal(&entry.message.topic, stamp.number, refused);
    }
}
