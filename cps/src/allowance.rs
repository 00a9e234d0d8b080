//! How much a gateway may write into its site's log at the cloud in a day: entries and bytes. One that
//! is enrolled and hostile, or gone wild, fills no disk; an honest one that had much to tell after an
//! outage is told to come again, and loses nothing. Asked by the API before a delivery is taken.
//!
//! Each gateway's allowance fills evenly over the day, up to a whole day's. It lives in memory: the
//! cloud's own restart fills it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_protocol::id::ServerId;

use crate::Core;

/// Seconds in which an allowance that was used up is full again.
const DAY: u64 = 24 * 60 * 60;

/// The allowances of all gateways; cheap to clone. There are no more rows than gateways, whose names
/// come from their certificates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowances(Arc<Mutex<BTreeMap<ServerId, Left>>>);

/// What one gateway has left.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Left {
    entries: u64,
    bytes: u64,
    /// When it was filled last, unix seconds.
    at: u64,
}

impl Left {
    /// Fills evenly. What is less than one waits for the next time.
    fn fill(&mut self, (entries, bytes): (u64, u64), now: u64) {
        let past = now.saturating_sub(self.at).min(DAY);
        let share = |all: u64| all.saturating_mul(past) / DAY;
        if now < self.at {
            // Set back: what is used up must not stay so until the old time.
            self.at = now;
        }
        if share(entries) > 0 && share(bytes) > 0 {
            self.entries = entries.min(self.entries.saturating_add(share(entries)));
            self.bytes = bytes.min(self.bytes.saturating_add(share(bytes)));
            self.at = now;
        }
    }
}

impl Allowances {
    /// How many of these entries, in their order, the gateway may deliver now; they are used up.
    pub(crate) fn take(&self, core: &Core, gateway: &ServerId, entries: &[Vec<u8>]) -> usize {
        let limits = &core.config.limits;
        let day = (limits.log_entries_per_day, limits.log_bytes_per_day);
        let now = core.clock.now().secs;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = Left {
            entries: day.0,
            bytes: day.1,
            at: now,
        };
        let left = all.entry(gateway.clone()).or_insert(full);
        left.fill(day, now);
        let mut count = 0;
        for entry in entries {
            let (Some(entries), Some(bytes)) = (
                left.entries.checked_sub(1),
                left.bytes.checked_sub(entry.len() as u64),
            ) else {
                break;
            };
            (left.entries, left.bytes, count) = (entries, bytes, count + 1);
        }
        count
    }

    /// What was delivered and known before is no growth.
    pub(crate) fn give_back(&self, gateway: &ServerId, entries: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = all.get_mut(gateway) {
            left.entries = left.entries.saturating_add(entries);
        }
    }
}

/// One sentence, and what to do.
pub(crate) fn sentence(gateway: &ServerId, (entries, bytes): (u64, u64)) -> String {
    format!(
        "gateway {gateway} has written as much into its site's log as it may in a day ({entries} entries, \
         {bytes} bytes); the rest waits there and is taken later; if that is right for this site, raise \
         [limits] log_entries_per_day and log_bytes_per_day at the cloud, else look what it does"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_evenly_and_never_beyond_a_day() {
        let day = (48, 4_800);
        let mut left = Left {
            entries: 0,
            bytes: 0,
            at: 1_000,
        };
        left.fill(day, 1_000 + DAY / 96);
        assert_eq!((left.entries, left.at), (0, 1_000), "half an entry waits");
        left.fill(day, 1_000 + DAY / 24);
        assert_eq!((left.entries, left.bytes), (2, 200));
        left.fill(day, 10 * DAY);
        assert_eq!((left.entries, left.bytes), day);
        left = Left {
            entries: 0,
            bytes: 0,
            at: 10 * DAY,
        };
        left.fill(day, 5 * DAY);
        left.fill(day, 5 * DAY + DAY / 2);
        assert_eq!(left.entries, 24, "a clock that was set back");
    }
}
