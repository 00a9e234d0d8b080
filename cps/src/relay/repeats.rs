//! Devices that ask again and again where their owner is. Used by `relay` alone: no I/O, no clock.
//!
//! Who was led to the remote owner and is back soon did not get there: its LAN may have no way to the
//! Internet though the gateway has one, or that server is down though the rendezvous is not.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_protocol::id::Guid;
use tokio::time::Instant;

/// So often a device is led to the remote owner before it is led to this server once.
const TRIES: u32 = 3;
/// Questions further apart have nothing to do with each other.
const SOON: Duration = Duration::from_secs(10 * 60);
/// Most devices that are remembered; beyond it the longest silent one is forgotten.
const MOST: usize = 1024;

/// How often each was led to the remote owner.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<Guid, (u32, Instant)>);

impl Repeats {
    /// A device is led to the remote owner.
    pub(super) fn led(&mut self, guid: Guid, now: Instant) {
        let before = self.lately(guid, now);
        if self.0.len() >= MOST && !self.0.contains_key(&guid) {
            let longest = self.0.iter().min_by_key(|(_, (_, last))| *last);
            if let Some(longest) = longest.map(|(guid, _)| *guid) {
                self.0.remove(&longest);
            }
        }
        self.0.insert(guid, (before.saturating_add(1), now));
    }

    /// Whether a device that asks now should be led here instead. Its next tries go to the remote
    /// owner again.
    pub(super) fn is_lost(&mut self, guid: Guid, now: Instant) -> bool {
        let lost = self.lately(guid, now) >= TRIES;
        if lost {
            self.0.remove(&guid);
        }
        lost
    }

    fn lately(&self, guid: Guid, now: Instant) -> u32 {
        let known = self.0.get(&guid);
        let known = known.filter(|(_, last)| now.saturating_duration_since(*last) < SOON);
        known.map_or(0, |(count, _)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guid(number: usize) -> Guid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Guid(bytes)
    }

    #[test]
    fn each_fourth_question_of_a_device_that_is_back_soon_is_answered_here() {
        let (mut repeats, mut now) = (Repeats::default(), Instant::now());
        for _ in 0..3 {
            for _ in 0..TRIES {
                assert!(!repeats.is_lost(guid(1), now));
                repeats.led(guid(1), now);
                now += SOON / 2;
                assert!(!repeats.is_lost(guid(2), now), "another device");
            }
            assert!(repeats.is_lost(guid(1), now));
        }
        // Not so soon.
        for _ in 0..10 {
            repeats.led(guid(1), now);
            now += SOON;
            assert!(!repeats.is_lost(guid(1), now));
        }
    }

    #[test]
    fn a_crowd_is_forgotten_by_age() {
        let (mut repeats, mut now) = (Repeats::default(), Instant::now());
        for number in 0..2 * MOST {
            for _ in 0..TRIES {
                repeats.led(guid(number), now);
            }
            now += Duration::from_millis(1);
        }
        assert_eq!(repeats.0.len(), MOST);
        assert!(!repeats.is_lost(guid(0), now));
        assert!(repeats.is_lost(guid(2 * MOST - 1), now));
    }
}
