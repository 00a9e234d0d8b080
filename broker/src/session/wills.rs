//! Wills: those that wait for their delay, and the firing of those that are due.
//!
//! A connection's end puts one in, a reconnect takes it out, the housekeeping fires what is due. The
//! journal has each from CONNECT to its end, so that a restart forgets none [MQTT-3.1.2-7].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::broker::Shared;
use crate::journal::{Op, WillRecord};
use crate::{PublishError, rights};

/// A will that the journal could not take is tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// Added to a delay: it is no shorter than was asked for by the watch of who sees the client go a
/// little later than we do.
const LATER: Duration = Duration::from_millis(100);

/// A will on its way.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) record: WillRecord,
    pub(crate) due: Instant,
}

/// At most one per client id.
#[derive(Debug, Default)]
pub(crate) struct Wills {
    waiting: Mutex<HashMap<Box<str>, Pending>>,
}

impl Wills {
    pub(crate) fn put(&self, record: WillRecord, after: Duration) {
        let client_id: Box<str> = (&*record.identity.client_id).into();
        let due = Instant::now() + after + LATER;
        self.waiting().insert(client_id, Pending { record, due });
    }

    pub(crate) fn take(&self, client_id: &str) -> Option<WillRecord> {
        self.waiting()
            .remove(client_id)
            .map(|pending| pending.record)
    }

    pub(crate) fn count(&self) -> usize {
        self.waiting().len()
    }

    pub(crate) fn due(&self, now: Instant) -> Vec<WillRecord> {
        let mut waiting = self.waiting();
        let due: Vec<Box<str>> = waiting
            .iter()
            .filter(|(_, pending)| pending.due <= now)
            .map(|(client_id, _)| client_id.clone())
            .collect();
        due.iter()
            .filter_map(|client_id| waiting.remove(client_id))
            .map(|pending| pending.record)
            .collect()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Box<str>, Pending>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// A number that no other will has had.
    pub(crate) fn will_serial(&self) -> u64 {
        // The seconds grow over restarts, the keys within one run.
        (self.core.clock.now() << 24) ^ self.core.next_key()
    }

    /// Writes a will down; without room for that the client is served all the same.
    pub(crate) async fn keep_will(&self, record: &WillRecord) {
        let record = Box::new(record.clone());
        let client = record.identity.client_id.clone();
        let kept = self
            .journal
            .call(|answer| Op::Will {
                record,
                answer: Some(answer),
            })
            .await;
        if let Err(error) = kept {
            warn!(%client, %error, "a will is kept in memory only: it would not survive a restart");
        }
    }

    /// A will that is done with, or was taken back.
    pub(crate) async fn forget_will(&self, record: &WillRecord) {
        let op = Op::NoWill {
            client_id: (&*record.identity.client_id).into(),
            serial: record.serial,
        };
        // Should the journal fail now, it fires at a restart: rather once too often.
        let _ = self.journal.send(op).await;
    }

    /// The connection of this will's client has ended without taking it back.
    pub(crate) async fn will_begins(&self, mut record: WillRecord, delay: u32) {
        if delay == 0 {
            return self.fire(record).await;
        }
        record.delay = delay;
        record.due = Some(self.core.clock.now() + u64::from(delay));
        self.keep_will(&record).await;
        self.wills
            .put(record, Duration::from_secs(u64::from(delay)));
    }

    /// Puts a stored will in its place at the start: the restart ended its connection.
    pub(crate) fn restore_will(&self, record: WillRecord) {
        let now = self.core.clock.now();
        let left = match record.due {
            Some(due) => due.saturating_sub(now),
            None => u64::from(record.delay),
        };
        self.wills.put(record, Duration::from_secs(left));
    }

    /// Publishes a will whose time has come, if its owner still may.
    pub(crate) async fn fire(&self, record: WillRecord) {
        let topic = &record.message.topic;
        if rights::may_publish(&*self.core.rights, &record.identity, topic) {
            match self.publish(record.message.clone()).await {
                Ok(()) => {}
                Err(PublishError::Store(error)) => {
                    warn!(client = &*record.identity.client_id, %error, "a will waits for the journal");
                    self.wills.put(record, AGAIN);
                    return;
                }
                Err(error) => {
                    warn!(client = &*record.identity.client_id, %error, "a will was not taken");
                }
            }
        } else {
            self.core.counters.denied();
        }
        self.forget_will(&record).await;
    }
}
