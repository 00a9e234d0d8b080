//! Waiting for a receiver that is merely busy, and not for one that is slow.
//!
//! A sender whose delivery does not fit waits for room, a little; senders are served in the order they
//! came. A receiver that made them wait in vain is not waited for again for a while, twice as long each
//! time until it has once kept up: what it cannot take is its own loss.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Delivery, Mailbox};

/// How long a receiver has for half of its queue while senders wait.
const WAIT: Duration = Duration::from_millis(20);
/// How long a sender waits at most, although the receiver is quick: others are served before it.
const LONGEST: Duration = Duration::from_millis(200);
/// How long a receiver is not waited for after the first time in vain.
const PENALTY: Duration = Duration::from_secs(1);
/// Doublings of it.
const DOUBLINGS: u32 = 6;

/// What a sender waits for.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) mailbox: Arc<Mailbox>,
    /// What did not fit; `None` = it only waits for the queue to be half empty.
    pub(crate) delivery: Option<Delivery>,
    pub(crate) deadline: Instant,
    /// Not beyond this.
    last: Instant,
    /// What the receiver had got through when the deadline was set.
    rounds: u32,
}

impl Rest {
    pub(crate) fn new(mailbox: &Arc<Mailbox>, delivery: Option<Delivery>) -> Self {
        let now = Instant::now();
        Self {
            mailbox: Arc::clone(mailbox),
            delivery,
            deadline: now + WAIT,
            last: now + LONGEST,
            rounds: mailbox.patience().rounds(),
        }
    }

    /// Tries again: how many messages are lost for good when it is over, `None` while it waits.
    pub(crate) fn settle(&mut self) -> Option<usize> {
        let left = match &mut self.delivery {
            None if !self.mailbox.tight() => return Some(0),
            None => 0,
            Some(delivery) => {
                let place = self.mailbox.deliver(delivery.clone());
                delivery.from += place.taken;
                if place.grown {
                    self.mailbox.bounds.pool.remember(&self.mailbox);
                }
                if !place.crowded {
                    self.mailbox.patience().next();
                }
                place.refused
            }
        };
        if left == 0 && self.delivery.is_some() {
            return Some(0);
        }
        if !self.mailbox.connected() {
            return Some(left);
        }
        let now = Instant::now();
        if self.deadline > now {
            return None;
        }
        let rounds = self.mailbox.patience().rounds();
        if rounds == self.rounds || self.last <= now {
            self.mailbox.patience().in_vain();
            return Some(left);
        }
        self.rounds = rounds;
        self.deadline = now + WAIT;
        None
    }
}

/// One receiver's; what only a slow one needs is elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    waiting: AtomicU32,
    /// Times that the queue went from tight to half empty.
    rounds: AtomicU32,
    /// Times in vain since it last kept up.
    failures: AtomicU32,
    slow: OnceLock<Box<Slow>>,
    /// The planted defect of the slow-receiver tests: everybody is waited for.
    #[cfg(test)]
    pub(crate) endless: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Slow {
    room: Notify,
    not_before: Mutex<Option<Instant>>,
}

/// Counts a sender that waits.
struct Waits<'a>(&'a AtomicU32);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Patience {
    /// Whether it is worth waiting for.
    pub(crate) fn worth_waiting(&self) -> bool {
        #[cfg(test)]
        if self.endless.load(Ordering::Relaxed) {
            return true;
        }
        if self.failures.load(Ordering::Relaxed) == 0 {
            return true;
        }
        self.not_before()
            .is_none_or(|instant| instant <= Instant::now())
    }

    /// Waits until there may be room, or until the deadline.
    pub(crate) async fn wait(&self, deadline: Instant) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        // In vain or not: the caller looks for itself.
        let _ = timeout_at(deadline, self.slow().room.notified()).await;
    }

    /// The queue is half empty again.
    pub(crate) fn eased(&self) {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        self.next();
    }

    fn rounds(&self) -> u32 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// There is room: the one that waits longest may come.
    pub(crate) fn next(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.slow().room.notify_one();
        }
    }

    /// Nobody needs to wait any more.
    pub(crate) fn all_clear(&self) {
        if let Some(slow) = self.slow.get() {
            slow.room.notify_waiters();
        }
    }

    /// A sender waited in vain.
    pub(crate) fn in_vain(&self) {
        let mut not_before = self.not_before();
        let now = Instant::now();
        if not_before.is_some_and(|instant| instant > now) {
            // Several waited at the same time: that is one failure.
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        *not_before = Some(now + PENALTY * 2u32.pow(failures.min(DOUBLINGS)));
    }

    /// Its queue is empty: all is forgiven.
    pub(crate) fn kept_up(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
            *self.not_before() = None;
        }
    }

    fn slow(&self) -> &Slow {
        self.slow.get_or_init(Box::default)
    }

    fn not_before(&self) -> MutexGuard<'_, Option<Instant>> {
        self.slow()
            .not_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_made_others_wait_in_vain_is_not_waited_for_until_it_keeps_up() {
        let patience = Patience::default();
        assert!(patience.worth_waiting());
        let mut pause = PENALTY;
        for _ in 0..3 {
            patience.in_vain();
            patience.in_vain();
            assert!(!patience.worth_waiting());
            tokio::time::advance(pause - Duration::from_millis(1)).await;
            assert!(!patience.worth_waiting());
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(patience.worth_waiting());
            pause *= 2;
        }
        patience.in_vain();
        patience.kept_up();
        assert!(patience.worth_waiting());
    }

    #[tokio::test(start_paused = true)]
    async fn room_goes_to_one_at_a_time_and_the_wait_ends() {
        let patience = std::sync::Arc::new(Patience::default());
        let begun = Instant::now();
        patience.wait(begun + WAIT).await;
        assert_eq!(begun.elapsed(), WAIT);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..2 {
            let patience = std::sync::Arc::clone(&patience);
            tasks.spawn(async move {
                patience.wait(Instant::now() + WAIT).await;
                begun.elapsed()
            });
        }
        tokio::task::yield_now().await;
        patience.next();
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), WAIT);
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), WAIT * 2);
    }
}
