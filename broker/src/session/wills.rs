//! Wills that wait for their delay.
//!
//! A connection's end puts one in, a reconnect takes it out, the housekeeping fires what is due.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{Identity, Message};

/// A will on its way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) identity: Identity,
    pub(crate) message: Message,
    pub(crate) due: Instant,
}

/// At most one per client id.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    waiting: Mutex<HashMap<Box<str>, Pending>>,
}

impl Wills {
    pub(crate) fn put(&self, pending: Pending) {
        let client_id = pending.identity.client_id.clone();
        self.waiting().insert(client_id, pending);
    }

    pub(crate) fn take(&self, client_id: &str) -> Option<Pending> {
        self.waiting().remove(client_id)
    }

    pub(crate) fn due(&self, now: Instant) -> Vec<Pending> {
        let mut waiting = self.waiting();
        let due: Vec<Box<str>> = waiting
            .iter()
            .filter(|(_, pending)| pending.due <= now)
            .map(|(client_id, _)| client_id.clone())
            .collect();
        due.iter()
            .filter_map(|client_id| waiting.remove(client_id))
            .collect()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Box<str>, Pending>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
