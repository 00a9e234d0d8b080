//! What one receiver has subscribed to, by the filter as it sent it.
//!
//! Changed by the session's connection, read by the console at any time. A sorted list: most sessions have
//! one filter or a few, and there are many sessions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::journal::SubscriptionRecord;

/// Its subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Wanted(Mutex<Vec<(Box<str>, SubscriptionRecord)>>);

impl Wanted {
    /// Adds or replaces.
    pub(crate) fn insert(&self, filter: &str, record: SubscriptionRecord) {
        let mut list = self.lock();
        match list.binary_search_by(|(known, _)| (**known).cmp(filter)) {
            Ok(at) => list[at].1 = record,
            Err(at) => {
                if list.is_empty() {
                    list.reserve_exact(1);
                }
                list.insert(at, (filter.into(), record));
            }
        }
    }

    pub(crate) fn remove(&self, filter: &str) {
        let mut list = self.lock();
        if let Ok(at) = list.binary_search_by(|(known, _)| (**known).cmp(filter)) {
            list.remove(at);
        }
    }

    pub(crate) fn contains(&self, filter: &str) -> bool {
        self.lock()
            .binary_search_by(|(known, _)| (**known).cmp(filter))
            .is_ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// All of them, as of now.
    pub(crate) fn all(&self) -> Vec<(Box<str>, SubscriptionRecord)> {
        self.lock().clone()
    }

    /// Takes all of them away.
    pub(crate) fn take(&self) -> Vec<(Box<str>, SubscriptionRecord)> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Box<str>, SubscriptionRecord)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Qos;

    fn record(id: u32) -> SubscriptionRecord {
        SubscriptionRecord {
            qos: Qos::AtMostOnce,
            no_local: false,
            retain_as_published: false,
            id: Some(id),
        }
    }

    #[test]
    fn a_filter_is_there_once_and_the_last_one_counts() {
        let wanted = Wanted::default();
        for (id, filter) in ["b/#", "a", "c", "a"].into_iter().enumerate() {
            wanted.insert(filter, record(u32::try_from(id).unwrap()));
        }
        let ids: Vec<_> = wanted
            .all()
            .iter()
            .map(|(text, record)| (text.to_string(), record.id))
            .collect();
        let expected = [("a", 3), ("b/#", 0), ("c", 2)];
        assert_eq!(ids, expected.map(|(text, id)| (text.to_owned(), Some(id))));
        wanted.remove("b/#");
        wanted.remove("never");
        assert!(wanted.contains("a") && !wanted.contains("b/#"));
        assert_eq!((wanted.len(), wanted.take().len(), wanted.len()), (2, 2, 0));
    }
}
