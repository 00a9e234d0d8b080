//! The rows of one topic and class that are held, and from where on others are not.

use std::collections::VecDeque;

use super::RowId;

/// A held row.
#[derive(Debug)]
pub(super) struct Row<T> {
    pub(super) id: RowId,
    pub(super) size: usize,
    pub(super) item: T,
    pub(super) again: bool,
    pub(super) refusals: u32,
}

/// Rows in order of their ids.
#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: VecDeque<Row<T>>,
    under_way: usize,
    /// Rows of this topic from this id on may exist that were never held.
    beyond: Option<RowId>,
    /// During one page: rows from here on found no place.
    full_at: Option<RowId>,
    /// Stands in the turns.
    in_turn: bool,
    /// Waits for a retry.
    paused: bool,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            under_way: 0,
            beyond: None,
            full_at: None,
            in_turn: false,
            paused: false,
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn held(&self) -> usize {
        self.waiting.len() + self.under_way
    }

    pub(super) fn beyond(&self) -> Option<RowId> {
        self.beyond
    }

    pub(super) fn first(&self) -> Option<RowId> {
        self.waiting.front().map(|row| row.id)
    }

    /// Nothing held and nothing known of that is not.
    pub(super) fn is_empty(&self) -> bool {
        self.held() == 0 && self.beyond.is_none()
    }

    /// Whether an elder of this id found no place in this page.
    pub(super) fn is_full_at(&self, id: RowId) -> bool {
        self.full_at.is_some_and(|full| full <= id)
    }

    /// This row finds no place, and so none after it does.
    pub(super) fn overflow(&mut self, id: RowId) {
        self.full_at.get_or_insert(id);
    }

    /// A page from above `after` up to `reached` is through; the journal was seen up to `frontier`.
    pub(super) fn seen(&mut self, after: RowId, reached: RowId, frontier: RowId) {
        if let Some(full) = self.full_at.take() {
            self.beyond = Some(full);
            return;
        }
        // Only a page that begins at or before `beyond` closes the hole there.
        if self
            .beyond
            .is_some_and(|beyond| after < beyond && beyond <= reached)
        {
            self.beyond = (reached < frontier).then_some(RowId(reached.0 + 1));
        }
    }

    pub(super) fn push(&mut self, row: Row<T>) {
        self.waiting.push_back(row);
    }

    pub(super) fn pop(&mut self) -> Option<Row<T>> {
        let row = self.waiting.pop_front()?;
        self.under_way += 1;
        Some(row)
    }

    /// Back among the waiting, where its id belongs.
    pub(super) fn put_back(&mut self, row: Row<T>) {
        let at = self.waiting.partition_point(|other| other.id < row.id);
        self.waiting.insert(at, row);
    }

    /// One under way came to its end.
    pub(super) fn settled(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Whether it may be sent from.
    pub(super) fn ready(&self) -> bool {
        !self.paused && !self.waiting.is_empty()
    }

    /// Whether it must be put into the turns; it then counts as standing there.
    pub(super) fn wakes(&mut self) -> bool {
        let wakes = self.ready() && !self.in_turn;
        self.in_turn |= wakes;
        wakes
    }

    /// It left the turns.
    pub(super) fn sleep(&mut self) {
        self.in_turn = false;
    }

    pub(super) fn pause(&mut self) {
        (self.paused, self.in_turn) = (true, false);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Ends a pause if nothing is under way; says whether it must be put into the turns.
    pub(super) fn resume(&mut self) -> bool {
        if !self.paused || self.under_way > 0 {
            return false;
        }
        self.paused = false;
        self.wakes()
    }

    /// A new link begins: no pause; in the turns if it has anything.
    pub(super) fn awaken(&mut self) {
        self.paused = false;
        self.in_turn = !self.waiting.is_empty();
    }
}
