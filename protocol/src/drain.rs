//! What to send next over one link, out of a journal that may be longer than memory.
//!
//! The bridge asks [`Drain::wants`] which page of its journal to read, gives it to
//! [`Drain::offer`], sends what [`Drain::next`] hands out, and reports acknowledgements, refusals
//! and the loss of the link. It deletes a journal row when [`Drain::acknowledged`] (or a dead
//! letter) says so, never before. Nothing here reads, sends or waits.
//!
//! # What holds
//!
//! - Per (topic, class), rows are sent in the order of their ids, over one link and after a loss
//!   ([`Drain::link_lost`] puts back what was under way, in order, under the same ids).
//! - A row is handed out once per link; an acknowledged one never again.
//! - A topic waits only behind its own backlog: topics take turns, urgent ones before all others.
//! - Memory is bounded by [`Settings`], however long the journal is.
//!
//! # How it looks past a long backlog
//!
//! It reads the journal ahead to its end ([`Drain::wants`] keeps asking). Of a topic with too many
//! rows it holds the first ones and remembers from which id on it does not hold any (`beyond`);
//! when the held ones run low it asks for the page that begins there. So a live message of another
//! topic is found though 70,000 rows stand before it, and none is sent before its elders.
//!
//! Ids must grow in the order in which rows become readable. Known to callers: a receiver that
//! drops repeats by "not above the highest of this topic" must, after refusing a row for now, go on
//! refusing later rows of that topic until the refused one came again.

mod queue;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use queue::Queue;

/// A journal row's number; grows with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u64);

/// Which rows overtake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Before all others: alarms, notices.
    Urgent,
    /// In turn.
    Normal,
}

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Most rows under way.
    pub window: usize,
    /// That many places of the window are kept for urgent rows.
    pub urgent_reserve: usize,
    /// Most rows held in memory; each topic may hold one more when it has none.
    pub rows: usize,
    /// Most bytes held in memory (as the caller counts them), with the same exception.
    pub bytes: usize,
    /// Most rows held of one topic.
    pub rows_per_topic: usize,
    /// Most topics known at a time; reading ahead pauses when there are more.
    pub topics: usize,
    /// Most rows asked for at a time.
    pub page: usize,
    /// After so many refusals a row becomes a dead letter.
    pub attempts: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: 256,
            urgent_reserve: 32,
            rows: 8_192,
            bytes: 8 * 1024 * 1024,
            rows_per_topic: 1_024,
            topics: 16_384,
            page: 1_024,
            attempts: 5,
        }
    }
}

/// A page that the drain would like to see; goes back to it with the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Rows with ids above this, in order.
    pub after: RowId,
    /// At most so many.
    pub max: usize,
    /// How often the journal had grown when it was asked for: what came in between is not in the
    /// page, however exhausted the journal then was.
    grown: u64,
}

/// A row out of the journal.
#[derive(Debug, Clone)]
pub struct Offered<T> {
    /// Its number.
    pub id: RowId,
    /// Its topic.
    pub topic: Arc<str>,
    /// Whether it overtakes.
    pub class: Class,
    /// Its weight against [`Settings::bytes`].
    pub size: usize,
    /// What the caller needs to send it.
    pub item: T,
}

/// A row to send now.
#[derive(Debug, PartialEq, Eq)]
pub struct Sending<'a, T> {
    /// Its number, to be named in the acknowledgement.
    pub id: RowId,
    /// What to send.
    pub item: &'a T,
    /// It may have arrived before: it was under way when a link was lost, or was refused.
    pub again: bool,
}

/// What the receiver said in place of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not now (quota exceeded, busy): again after [`Drain::retry`].
    Later,
    /// Never (not authorised, bad topic, too large).
    Never,
}

/// What became of a refused row.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// It waits, and its topic with it, until [`Drain::retry`].
    Kept,
    /// It will not be sent again: store it as a dead letter and delete the journal row.
    Dead(T),
    /// It was not under way.
    Unknown,
}

/// Topic and class: what has an order of its own.
type Key = (Class, Arc<str>);

#[derive(Debug)]
struct UnderWay<T> {
    key: Key,
    row: queue::Row<T>,
}

/// The state of the decision for one rule over one link.
#[derive(Debug)]
pub struct Drain<T> {
    settings: Settings,
    queues: HashMap<Key, Queue<T>>,
    /// Keys with something to send, in turn; urgent first.
    turns: [VecDeque<Key>; 2],
    under_way: BTreeMap<RowId, UnderWay<T>>,
    urgent_under_way: usize,
    /// Every row up to here was seen.
    frontier: RowId,
    /// There may be rows after the frontier.
    more: bool,
    /// How often the journal grew.
    grown: u64,
    /// Memory ran out; no topic that still holds rows is refilled until a quarter is free again.
    full: bool,
    /// Reading ahead waits for a free place among the topics.
    crowded: bool,
    held_rows: usize,
    held_bytes: usize,
}

impl<T> Drain<T> {
    /// Starts before the first row of the journal; nothing needs to be remembered over a restart.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            queues: HashMap::new(),
            turns: [VecDeque::new(), VecDeque::new()],
            under_way: BTreeMap::new(),
            urgent_under_way: 0,
            frontier: RowId(0),
            more: true,
            grown: 0,
            full: false,
            crowded: false,
            held_rows: 0,
            held_bytes: 0,
        }
    }

    /// The topic of a row that is under way.
    #[must_use]
    pub fn topic_of(&self, id: RowId) -> Option<&Arc<str>> {
        self.under_way.get(&id).map(|one| &one.key.1)
    }

    /// The journal has new rows.
    pub fn journal_grew(&mut self) {
        self.more = true;
        self.grown += 1;
    }

    /// The page to read next, if any: for topics that run dry first, then ahead, then for topics
    /// that run low. Its cost grows with the number of topics: ask once per batch, not per row.
    #[must_use]
    pub fn wants(&self) -> Option<Want> {
        let page = |after| Want {
            after,
            max: self.settings.page,
            grown: self.grown,
        };
        let refill = |beyond: RowId| page(RowId(beyond.0 - 1));
        if let Some(beyond) = self.hungriest(0) {
            return Some(refill(beyond));
        }
        if self.more && !self.crowded {
            return Some(page(self.frontier));
        }
        self.hungriest(self.settings.rows_per_topic / 4).map(refill)
    }

    /// The first row not held of the topics that have at most `low` rows waiting and a place for
    /// more.
    fn hungriest(&self, low: usize) -> Option<RowId> {
        let may_hold = |queue: &&Queue<T>| {
            queue.held() == 0 || (!self.full && queue.held() < self.settings.rows_per_topic)
        };
        let hungry = self
            .queues
            .values()
            .filter(|queue| queue.waiting() <= low)
            .filter(may_hold);
        hungry.filter_map(Queue::beyond).min()
    }

    /// Takes a wanted page: rows with ids above `want.after` in order, nothing left out.
    /// `exhausted`: the journal had no further row when it was read.
    pub fn offer(
        &mut self,
        want: Want,
        rows: impl IntoIterator<Item = Offered<T>>,
        exhausted: bool,
    ) {
        let after = want.after;
        if after > self.frontier {
            return;
        }
        let (mut end, mut crowded) = (after, false);
        for row in rows {
            debug_assert!(
                row.id > end,
                "a page is in order and holds only what was asked for"
            );
            let id = row.id;
            crowded = !self.take(after, row);
            if crowded {
                // A topic too many: what was seen ends before it.
                break;
            }
            end = id;
        }
        self.crowded |= crowded;
        let at_end = exhausted && !crowded;
        let reached = if at_end { end.max(self.frontier) } else { end };
        for queue in self.queues.values_mut() {
            queue.seen(after, reached, self.frontier.max(end));
        }
        if end >= self.frontier {
            self.frontier = end;
            self.more &= !(at_end && want.grown == self.grown);
        }
        self.forget_empty();
    }

    /// Takes a row or marks that its topic has more; false when there is no place for its topic.
    fn take(&mut self, after: RowId, offered: Offered<T>) -> bool {
        let Offered {
            id,
            topic,
            class,
            size,
            item,
        } = offered;
        let key = (class, topic);
        let fresh = id > self.frontier;
        if fresh && !self.queues.contains_key(&key) {
            if self.queues.len() >= self.settings.topics {
                return false;
            }
            self.queues.insert(key.clone(), Queue::new());
        }
        let Some(queue) = self.queues.get_mut(&key) else {
            return true;
        };
        let wanted = match queue.beyond() {
            Some(beyond) => id >= beyond && after < beyond,
            None => fresh,
        };
        if !wanted {
            return true;
        }
        let room = self.held_rows < self.settings.rows
            && self.held_bytes.saturating_add(size) <= self.settings.bytes
            && queue.held() < self.settings.rows_per_topic;
        if queue.is_full_at(id) || !(room || queue.held() == 0) {
            self.full |= queue.held() < self.settings.rows_per_topic;
            queue.overflow(id);
            return true;
        }
        queue.push(queue::Row {
            id,
            size,
            item,
            again: false,
            refusals: 0,
        });
        self.held_rows += 1;
        self.held_bytes += size;
        if queue.wakes() {
            self.turns[class as usize].push_back(key);
        }
        true
    }

    /// The next row to send, if the window has a place; it is under way from now on.
    #[allow(
        clippy::should_implement_trait,
        reason = "what it gives is borrowed from it"
    )]
    pub fn next(&mut self) -> Option<Sending<'_, T>> {
        let normal = self.under_way.len() - self.urgent_under_way;
        let for_normal = self
            .settings
            .window
            .saturating_sub(self.settings.urgent_reserve)
            .max(1);
        let free = self.under_way.len() < self.settings.window;
        let class = match () {
            () if free && !self.turns[0].is_empty() => Class::Urgent,
            () if free && normal < for_normal && !self.turns[1].is_empty() => Class::Normal,
            () => return None,
        };
        let key = self.turns[class as usize].pop_front()?;
        let queue = self
            .queues
            .get_mut(&key)
            .expect("a key in turn has its queue");
        let row = queue.pop().expect("a key in turn has something to send");
        if queue.ready() {
            self.turns[class as usize].push_back(key.clone());
        } else {
            queue.sleep();
        }
        self.urgent_under_way += usize::from(class == Class::Urgent);
        let id = row.id;
        let row = &self
            .under_way
            .entry(id)
            .or_insert(UnderWay { key, row })
            .row;
        Some(Sending {
            id,
            item: &row.item,
            again: row.again,
        })
    }

    /// An acknowledgement came: gives the item back, once; the journal row may go.
    pub fn acknowledged(&mut self, id: RowId) -> Option<T> {
        let (_, row) = self.settle(id)?;
        self.let_go(row.size);
        self.forget_empty_if_crowded();
        Some(row.item)
    }

    /// The receiver refused a row.
    pub fn refused(&mut self, id: RowId, refusal: Refusal) -> Refused<T> {
        let Some((key, mut row)) = self.settle(id) else {
            return Refused::Unknown;
        };
        row.refusals += 1;
        if refusal == Refusal::Never || row.refusals >= self.settings.attempts {
            self.let_go(row.size);
            self.forget_empty_if_crowded();
            return Refused::Dead(row.item);
        }
        row.again = true;
        self.turns[key.0 as usize].retain(|turn| *turn != key);
        let queue = self.queues.entry(key).or_insert_with(Queue::new);
        queue.put_back(row);
        queue.pause();
        Refused::Kept
    }

    /// Lets topics that were refused try again, those of which nothing is under way any more (so
    /// that what was refused among them goes out in order).
    pub fn retry(&mut self) {
        for (key, queue) in &mut self.queues {
            if queue.resume() {
                self.turns[key.0 as usize].push_back(key.clone());
            }
        }
    }

    /// Whether any topic waits for [`Drain::retry`].
    #[must_use]
    pub fn has_refused(&self) -> bool {
        self.queues.values().any(Queue::is_paused)
    }

    /// The link is gone: everything under way goes back to the front, in order, under the same ids,
    /// and those topics come first, the longest waiting before the others.
    pub fn link_lost(&mut self) {
        self.urgent_under_way = 0;
        // From the last to the first, so that each lands before those put back already.
        for (_, UnderWay { key, mut row }) in std::mem::take(&mut self.under_way).into_iter().rev()
        {
            row.again = true;
            let queue = self.queues.entry(key).or_insert_with(Queue::new);
            queue.settled();
            queue.put_back(row);
        }
        let mut ready: Vec<(RowId, Key)> = Vec::new();
        for (key, queue) in &mut self.queues {
            queue.awaken();
            ready.extend(queue.first().map(|id| (id, key.clone())));
        }
        ready.sort();
        self.turns = [VecDeque::new(), VecDeque::new()];
        for (_, key) in ready {
            self.turns[key.0 as usize].push_back(key);
        }
    }

    /// Rows under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Rows held in memory, those under way included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held_rows
    }

    /// Topics known at the moment.
    #[must_use]
    pub fn topics(&self) -> usize {
        self.queues.len()
    }

    /// Whether nothing is held, under way or to be read.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held_rows == 0 && self.wants().is_none()
    }

    fn settle(&mut self, id: RowId) -> Option<(Key, queue::Row<T>)> {
        let UnderWay { key, row } = self.under_way.remove(&id)?;
        self.urgent_under_way -= usize::from(key.0 == Class::Urgent);
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.settled();
            if queue.is_empty() {
                self.queues.remove(&key);
            }
        }
        Some((key, row))
    }

    fn let_go(&mut self, size: usize) {
        self.held_rows -= 1;
        self.held_bytes -= size;
        let free = |held: usize, most: usize| held <= most - most / 4;
        self.full &= !(free(self.held_rows, self.settings.rows)
            && free(self.held_bytes, self.settings.bytes));
    }

    fn forget_empty(&mut self) {
        self.queues.retain(|_, queue| !queue.is_empty());
        self.forget_empty_if_crowded();
    }

    fn forget_empty_if_crowded(&mut self) {
        self.crowded = self.crowded && self.queues.len() >= self.settings.topics;
    }
}

#[cfg(test)]
mod tests;
