//! What the handles and the task of a connection share: the window, the settlements, the end.
//!
//! Called by [`super::client`] and [`super::pump`]. The window is counted here, so that a publisher
//! waits in its own task and the connection's task never waits for anybody. No lock is held over an
//! await.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mqtt_protocol_core::mqtt::packet::{GenericPacketTrait as _, Packet};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use super::message::{Incoming, Publish, Qos};
use super::options::{Granted, Version};
use super::outcome::{Ended, Outcome, PublishError, Settled};
use super::packet;
use super::session::Waiter;

/// What the handles and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    version: Version,
    granted: Granted,
    /// Messages of QoS 0 waiting to be taken, and how many may.
    loose: AtomicUsize,
    loose_bound: usize,
    /// Places for messages of QoS 1, from hand-over until their settlement is taken.
    window: Semaphore,
    /// Free packet ids; never fewer than places.
    ids: Mutex<Vec<u16>>,
    /// Never holds more than the window.
    settlements: Mutex<Settlements>,
    news: Notify,
    ended: watch::Sender<Option<Ended>>,
    round_trip: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Settlements {
    ready: Vec<Settled>,
    finished: bool,
}

impl Shared {
    pub(super) fn new(version: Version, granted: Granted, loose_bound: usize) -> Self {
        Self {
            version,
            window: Semaphore::new(usize::from(granted.window)),
            ids: Mutex::new((1..=granted.window).rev().collect()),
            granted,
            loose: AtomicUsize::new(0),
            loose_bound,
            settlements: Mutex::default(),
            news: Notify::new(),
            ended: watch::Sender::new(None),
            round_trip: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    pub(super) fn check(&self, message: &Publish) -> Result<(), PublishError> {
        if message.retain && !self.granted.retains {
            let text = "the server keeps no retained messages";
            return Err(PublishError::BadMessage(text.to_owned()));
        }
        if message.qos > Qos::AtMostOnce && !self.granted.acknowledges {
            let text = "the server takes QoS 0 only";
            return Err(PublishError::BadMessage(text.to_owned()));
        }
        Ok(())
    }

    pub(super) fn build(&self, message: &Publish, id: Option<u16>) -> Result<Packet, PublishError> {
        let packet = packet::publish(self.version, message, id)
            .map_err(|error| PublishError::BadMessage(error.to_string()))?;
        let (size, limit) = (packet.size(), self.granted.max_packet);
        if size > limit as usize {
            return Err(PublishError::TooLarge { size, limit });
        }
        Ok(packet)
    }

    pub(super) fn take_id(&self) -> u16 {
        lock(&self.ids)
            .pop()
            .expect("there are as many ids as places in the window")
    }

    pub(super) fn give_back_id(&self, id: u16) {
        lock(&self.ids).push(id);
    }

    pub(super) fn give_back_place(&self) {
        self.window.add_permits(1);
    }

    /// Makes `settled` available, emptying it.
    pub(super) fn settle(&self, settled: &mut Vec<Settled>) {
        if !settled.is_empty() {
            self.settlements().ready.append(settled);
            self.news.notify_waiters();
        }
    }

    pub(super) fn lose(&self, waiter: Waiter) {
        let outcome = Outcome::Lost;
        match waiter {
            Waiter::Tag(tag) => self.settlements().ready.push(Settled { tag, outcome }),
            Waiter::Once(asker) => {
                let _ = asker.send(outcome);
            }
        }
    }

    pub(super) fn end(&self, ended: Ended) {
        self.ended.send_replace(Some(ended));
    }

    /// Nothing more will be settled; publishers stop waiting.
    pub(super) fn finish(&self) {
        self.ended.send_if_modified(|ended| {
            let open = ended.is_none();
            if open {
                *ended = Some(stopped());
            }
            open
        });
        self.window.close();
        self.settlements().finished = true;
        self.news.notify_waiters();
    }

    pub(super) fn set_round_trip(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.round_trip.store(nanos, Ordering::Relaxed);
    }

    /// Counts a message of QoS 0 in, or as dropped when too many wait.
    pub(super) fn admit_loose(&self) -> bool {
        let admitted = self.loose.load(Ordering::Relaxed) < self.loose_bound;
        if admitted {
            self.loose.fetch_add(1, Ordering::Relaxed);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    pub(super) fn took(&self, message: &Incoming) {
        if message.qos == Qos::AtMostOnce {
            self.loose.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A place in the window, waited for; `None` after the end.
    pub(super) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.window.acquire().await.ok()
    }

    pub(super) fn room(&self) -> usize {
        self.window.available_permits()
    }

    /// See [`super::Client::settled`].
    pub(super) async fn settled(&self) -> Option<Vec<Settled>> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Registered before looking, so that nothing is missed in between.
            news.as_mut().enable();
            {
                let mut settlements = self.settlements();
                if !settlements.ready.is_empty() {
                    let taken = std::mem::take(&mut settlements.ready);
                    self.window.add_permits(taken.len());
                    return Some(taken);
                }
                if settlements.finished {
                    return None;
                }
            }
            news.await;
        }
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        match self.round_trip.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    pub(super) async fn ended(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        let told = match ended.wait_for(Option::is_some).await {
            Ok(told) => told.clone(),
            Err(_) => None,
        };
        told.unwrap_or_else(stopped)
    }

    fn settlements(&self) -> MutexGuard<'_, Settlements> {
        lock(&self.settlements)
    }
}

fn stopped() -> Ended {
    Ended::Broken("its task was stopped".to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
