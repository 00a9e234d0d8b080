//! How often passwords may be guessed: wrong logins counted by address, and by address and user.
//!
//! Asked by [`super::Passwords`] before it hashes. A device with a wrong password uses up its own
//! guesses, not those of others behind the same address.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::door::network;

/// Counts kept; beyond them the oldest go.
const MOST_KEPT: usize = 10_000;

/// Wrong logins that are borne from one address (IPv4 address, IPv6 /64); beyond them none is checked
/// until the time is over. What was right does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guesses {
    /// For one user name.
    pub of_one_user: u32,
    /// For all user names together.
    pub in_all: u32,
    /// Within this time from the first of them.
    pub within: Duration,
}

impl Default for Guesses {
    fn default() -> Self {
        Self {
            of_one_user: 10,
            in_all: 100,
            within: Duration::from_secs(60),
        }
    }
}

/// Whose guesses: an address's, or an address's for one user (by a keyed hash of the name, which may
/// be long and is anybody's).
type Whose = (IpAddr, Option<u64>);

/// The counts.
pub(super) struct Tally {
    bounds: Guesses,
    counts: HashMap<Whose, Count>,
    names: RandomState,
}

struct Count {
    guesses: u32,
    since: Instant,
}

impl Tally {
    pub(super) fn new(bounds: Guesses) -> Self {
        Self {
            bounds,
            counts: HashMap::new(),
            names: RandomState::new(),
        }
    }

    /// Takes a guess; false when there is none left.
    pub(super) fn take(&mut self, from: IpAddr, user: &str, now: Instant) -> bool {
        let bounds = self.bounds;
        let [all, one] = self.whose(from, user);
        if self.spent(all, now) >= bounds.in_all || self.spent(one, now) >= bounds.of_one_user {
            return false;
        }
        for whose in [all, one] {
            self.make_room(now);
            let count = self.counts.entry(whose).or_insert(Count {
                guesses: 0,
                since: now,
            });
            count.guesses += 1;
        }
        true
    }

    /// It was no guess.
    pub(super) fn give_back(&mut self, from: IpAddr, user: &str) {
        for whose in self.whose(from, user) {
            if let Some(count) = self.counts.get_mut(&whose) {
                count.guesses = count.guesses.saturating_sub(1);
                if count.guesses == 0 {
                    self.counts.remove(&whose);
                }
            }
        }
    }

    fn whose(&self, from: IpAddr, user: &str) -> [Whose; 2] {
        let from = network(from);
        [(from, None), (from, Some(self.names.hash_one(user)))]
    }

    fn spent(&mut self, whose: Whose, now: Instant) -> u32 {
        let Some(count) = self.counts.get(&whose) else {
            return 0;
        };
        if now.duration_since(count.since) < self.bounds.within {
            return count.guesses;
        }
        self.counts.remove(&whose);
        0
    }

    fn make_room(&mut self, now: Instant) {
        if self.counts.len() < MOST_KEPT {
            return;
        }
        let within = self.bounds.within;
        self.counts
            .retain(|_, count| now.duration_since(count.since) < within);
        if self.counts.len() < MOST_KEPT {
            return;
        }
        // A quarter at a time, so that a flood does not cost a look at all of them for each guess.
        let mut begins: Vec<Instant> = self.counts.values().map(|count| count.since).collect();
        let (_, oldest, _) = begins.select_nth_unstable(MOST_KEPT / 4);
        let oldest = *oldest;
        self.counts.retain(|_, count| count.since > oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn guesses_end_for_the_name_then_for_the_address_and_come_back() {
        let bounds = Guesses {
            of_one_user: 3,
            in_all: 5,
            within: Duration::from_secs(60),
        };
        let mut tally = Tally::new(bounds);
        let start = Instant::now();
        for _ in 0..3 {
            assert!(tally.take(address(1), "meter", start));
        }
        assert!(!tally.take(address(1), "meter", start));
        assert!(tally.take(address(1), "pump", start), "its neighbour");
        tally.give_back(address(1), "pump");
        assert!(tally.take(address(1), "pump", start), "was right before");
        assert!(tally.take(address(1), "fan", start));
        assert!(!tally.take(address(1), "door", start), "the address's last");
        assert!(tally.take(address(2), "meter", start), "another address");
        let later = start + bounds.within;
        assert!(tally.take(address(1), "meter", later));
    }

    #[test]
    fn a_host_is_one_however_many_addresses_of_its_network_it_takes() {
        let mut tally = Tally::new(Guesses {
            of_one_user: 1,
            ..Guesses::default()
        });
        let now = Instant::now();
        let of = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        assert!(tally.take(of(1), "meter", now));
        assert!(!tally.take(of(2), "meter", now));
    }

    #[test]
    fn the_counts_are_bounded() {
        let mut tally = Tally::new(Guesses::default());
        let start = Instant::now();
        for n in 0..2 * u32::try_from(MOST_KEPT).unwrap() {
            let now = start + Duration::from_micros(n.into());
            assert!(tally.take(IpAddr::from(n.to_be_bytes()), "x", now));
        }
        assert!(tally.counts.len() <= MOST_KEPT);
    }
}
