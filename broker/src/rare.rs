//! Collections that most sessions never use: one word until something is put in.
//!
//! An idle session is most of what a broker with many devices holds, and an empty queue is 24 to 48 bytes
//! of it. Reading and taking never make room; only putting in does.

use std::collections::VecDeque;
use std::collections::vec_deque::IterMut;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// One that is perhaps not there yet, which looks as if it were empty.
pub(crate) struct Rare<T>(Option<Box<T>>);

/// What is empty without having been made.
pub(crate) trait Vacant: Default + 'static {
    const VACANT: &'static Self;
}

impl<T: 'static> Vacant for VecDeque<T> {
    const VACANT: &'static Self = &Self::new();
}

impl<T: 'static> Vacant for Vec<T> {
    const VACANT: &'static Self = &Self::new();
}

impl<T> Default for Rare<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Vacant> Deref for Rare<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::VACANT)
    }
}

impl<T: Vacant> DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Vacant + fmt::Debug> fmt::Debug for Rare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Vacant> Rare<T> {
    /// All that is in it.
    pub(crate) fn take(&mut self) -> T {
        self.0
            .as_deref_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Nothing is in it any more, and it holds no room.
    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}

impl<T: 'static> Rare<Vec<T>> {
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.0.as_mut()?.pop()
    }

    pub(crate) fn retain_mut(&mut self, keep: impl FnMut(&mut T) -> bool) {
        if let Some(list) = &mut self.0 {
            list.retain_mut(keep);
        }
    }
}

impl<T: 'static> Rare<VecDeque<T>> {
    pub(crate) fn pop_front(&mut self) -> Option<T> {
        self.0.as_mut()?.pop_front()
    }

    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        self.0.as_mut()?.remove(index)
    }

    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        if let Some(queue) = &mut self.0 {
            queue.retain(keep);
        }
    }

    pub(crate) fn iter_mut(&mut self) -> IterMut<'_, T> {
        self.0
            .as_deref_mut()
            .map(VecDeque::iter_mut)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_taking_make_no_room() {
        let mut queue: Rare<VecDeque<u8>> = Rare::default();
        let mut list: Rare<Vec<u8>> = Rare::default();
        assert!(queue.is_empty() && list.is_empty());
        assert!(queue.pop_front().is_none() && queue.remove(0).is_none());
        queue.retain(|_| true);
        list.retain_mut(|_| true);
        assert!(list.pop().is_none());
        assert_eq!(
            queue.iter_mut().count() + list.take().len() + queue.take().len(),
            0
        );
        assert!(queue.0.is_none() && list.0.is_none());
    }

    #[test]
    fn what_was_put_in_is_there_until_it_is_taken() {
        let mut queue: Rare<VecDeque<u8>> = Rare::default();
        queue.extend([1, 2, 3, 4]);
        queue.retain(|one| *one != 2);
        queue.iter_mut().for_each(|one| *one *= 10);
        assert_eq!((queue.pop_front(), queue.remove(1)), (Some(10), Some(40)));
        assert_eq!(queue.take(), [30]);
        assert!(queue.is_empty());
        queue.push_back(5);
        queue.clear();
        assert!(queue.0.is_none());
    }
}
