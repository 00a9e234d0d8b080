//! When to try again: exponential back-off with jitter.
//!
//! Called by every reconnecting loop of the daemons. Pure: takes its randomness as an argument and
//! never sleeps; the caller waits.

use std::time::Duration;

use rand_core::Rng;

/// The bounds of a back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The wait after the first failure, before jitter.
    pub first: Duration,
    /// No wait is longer than this.
    pub longest: Duration,
}

impl Default for Policy {
    /// Half a second, doubling, up to 30 seconds.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
        }
    }
}

/// The state of one retrying loop.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: Policy,
    failures: u32,
}

/// Doublings beyond this change nothing: every policy has reached its longest wait.
const MOST_DOUBLINGS: u32 = 30;

impl Backoff {
    /// A loop that has not failed yet.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        Self {
            policy,
            failures: 0,
        }
    }

    /// Counts a failure and tells how long to wait: between half and the whole of the doubled wait,
    /// so that clients cut off together do not come back together.
    pub fn failed(&mut self, rng: &mut (impl Rng + ?Sized)) -> Duration {
        let doublings = self.failures.min(MOST_DOUBLINGS);
        self.failures = self.failures.saturating_add(1);
        let whole = self
            .policy
            .first
            .saturating_mul(1 << doublings)
            .min(self.policy.longest);
        let half = whole / 2;
        let span = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(rng.next_u64() % span.saturating_add(1))
    }

    /// Forgets the failures: it worked.
    pub const fn worked(&mut self) {
        self.failures = 0;
    }

    /// How often it failed in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SystemRandom;

    #[test]
    fn doubles_within_its_bounds_and_starts_over() {
        let policy = Policy {
            first: Duration::from_millis(100),
            longest: Duration::from_secs(1),
        };
        let mut backoff = Backoff::new(policy);
        for whole in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.failed(&mut SystemRandom);
            assert!(wait <= Duration::from_millis(whole), "{wait:?} of {whole}");
            assert!(
                wait >= Duration::from_millis(whole / 2),
                "{wait:?} of {whole}"
            );
        }
        for _ in 0..100 {
            backoff.failed(&mut SystemRandom);
        }
        assert_eq!(backoff.failures(), 106);
        backoff.worked();
        assert!(backoff.failed(&mut SystemRandom) <= Duration::from_millis(100));
    }

    #[test]
    fn waits_differ() {
        let waits: std::collections::BTreeSet<_> = (0..50)
            .map(|_| Backoff::new(Policy::default()).failed(&mut SystemRandom))
            .collect();
        assert!(waits.len() > 40, "only {} of 50 differ", waits.len());
    }
}
