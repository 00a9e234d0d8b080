//! The retained messages, by topic, in memory; the journal holds the same durably.
//!
//! Written by the journal's thread after each commit, read when somebody subscribes.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use crate::{Filter, Message};

/// The slots.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    slots: RwLock<BTreeMap<Arc<str>, Arc<Message>>>,
}

impl Retained {
    /// Fills or, with an empty payload, clears a slot [MQTT-3.3.1-6].
    pub(crate) fn set(&self, message: &Arc<Message>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if message.payload.is_empty() {
            slots.remove(&message.topic);
        } else {
            slots.insert(Arc::clone(&message.topic), Arc::clone(message));
        }
    }

    /// Empties all, before the journal loads them again.
    pub(crate) fn replace(&self, all: Vec<Arc<Message>>) {
        let slots = all
            .into_iter()
            .map(|message| (Arc::clone(&message.topic), message))
            .collect();
        *self.slots.write().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    /// Empties a slot whose time is over.
    pub(crate) fn remove_expired(&self, topic: &str, now: u64) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.get(topic).is_some_and(|message| message.expired(now)) {
            slots.remove(topic);
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.slots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// At most `max` live ones that fall under the filter and stand behind `after`, by topic; only
    /// the part of the order that shares the filter's plain beginning is looked at.
    pub(crate) fn page(
        &self,
        filter: &Filter,
        after: Option<&str>,
        max: usize,
        now: u64,
    ) -> Vec<Arc<Message>> {
        let text = filter.as_str();
        let wild = text.find(['+', '#']).unwrap_or(text.len());
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        if wild == text.len() {
            let found = slots.get(text).filter(|message| !message.expired(now));
            return found
                .filter(|_| after.is_none())
                .cloned()
                .into_iter()
                .collect();
        }
        // `a/#` also matches `a`, which sorts before `a/`.
        let prefix = text[..wild].trim_end_matches('/');
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        slots
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(topic, _)| topic.starts_with(prefix))
            .filter(|(topic, message)| filter.matches(topic) && !message.expired(now))
            .take(max)
            .map(|(_, message)| Arc::clone(message))
            .collect()
    }

    /// Topics whose message has expired.
    pub(crate) fn expired(&self, now: u64) -> Vec<Arc<str>> {
        self.slots
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|(_, message)| message.expired(now))
            .map(|(topic, _)| Arc::clone(topic))
            .collect()
    }
}
