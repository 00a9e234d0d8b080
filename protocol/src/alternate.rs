//! Which server now: an ordered choice with back-off, jitter and a calm way back.
//!
//! A device (or the bridge) knows a few servers, the preferred first. When one fails it is left
//! alone for a while that doubles with each failure, and the next in order is tried at once; while
//! a lesser one serves, better ones are checked from time to time, and only one that was reachable
//! for [`Settings::steady`] is returned to, so that a flapping link moves nobody to and fro.
//! Nothing here dials or sleeps: `now` is a [`Duration`] since any fixed moment that never goes
//! back, and jitter comes from the caller's randomness.

use std::time::Duration;

use rand_core::CryptoRng;

use crate::id::ServerId;

/// Waits of the choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long a server is left alone after its first failure; doubles with each further one.
    pub first_wait: Duration,
    /// Upper bound of that time.
    pub longest_wait: Duration,
    /// A connection that lived as long as this was a success: its server's failures are forgotten.
    pub settled: Duration,
    /// A better server must have been reachable for so long before it is returned to.
    pub steady: Duration,
    /// From one check of a better server to the next, while it is reachable.
    pub check: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            settled: Duration::from_secs(10),
            steady: Duration::from_secs(15),
            check: Duration::from_secs(5),
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Connect to this server, then report [`Alternate::connected`] or [`Alternate::failed`].
    Dial(ServerId),
    /// Stay connected. See whether this better server can be reached (a handshake, no more), then
    /// report [`Alternate::checked`].
    Check(ServerId),
    /// Leave the present server in good order and report [`Alternate::left`].
    Leave,
    /// Nothing until then, or until something happens.
    Wait(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    server: ServerId,
    failures: u32,
    /// Left alone until then.
    rests_until: Duration,
    /// Reachable at every check since then.
    reachable_since: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// Nowhere.
    Idle,
    /// Dialling that candidate.
    Dialling(usize),
    /// Connected to that candidate since then.
    Connected(usize, Duration),
}

/// The state of the choice.
#[derive(Debug, Clone)]
pub struct Alternate {
    settings: Settings,
    candidates: Vec<Candidate>,
    stand: Stand,
    /// The candidate being checked.
    checking: Option<usize>,
}

impl Alternate {
    /// A choice among `servers`, the preferred first; repeated ones count once.
    #[must_use]
    pub fn new(settings: Settings, servers: &[ServerId]) -> Self {
        let mut choice = Self {
            settings,
            candidates: Vec::new(),
            stand: Stand::Idle,
            checking: None,
        };
        choice.set_servers(servers);
        choice
    }

    /// Replaces the list (a notice came); what is known of servers that stay is kept. Says whether
    /// the server in use is gone from it: the caller then leaves it and reports
    /// [`Alternate::left`].
    pub fn set_servers(&mut self, servers: &[ServerId]) -> bool {
        let present = self.current().cloned();
        let mut next: Vec<Candidate> = Vec::with_capacity(servers.len());
        for server in servers {
            if next.iter().all(|known| known.server != *server) {
                let known = self.candidates.iter().find(|known| known.server == *server);
                next.push(
                    known
                        .cloned()
                        .unwrap_or_else(|| Candidate::new(server.clone())),
                );
            }
        }
        self.candidates = next;
        self.checking = None;
        let Some(server) = present else { return false };
        let place = self
            .candidates
            .iter()
            .position(|candidate| candidate.server == server);
        self.stand = match (place, self.stand) {
            (Some(at), Stand::Dialling(_)) => Stand::Dialling(at),
            (Some(at), Stand::Connected(_, since)) => Stand::Connected(at, since),
            (None, _) | (_, Stand::Idle) => Stand::Idle,
        };
        place.is_none()
    }

    /// The server that is dialled or connected.
    #[must_use]
    pub fn current(&self) -> Option<&ServerId> {
        match self.stand {
            Stand::Idle => None,
            Stand::Dialling(at) | Stand::Connected(at, _) => Some(&self.candidates[at].server),
        }
    }

    /// Whether the server in use is the preferred one.
    #[must_use]
    pub fn is_preferred(&self) -> bool {
        matches!(self.stand, Stand::Connected(0, _))
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Step {
        match self.stand {
            Stand::Idle => self.pick(now),
            // Its end is bounded by the dialler's own deadline.
            Stand::Dialling(_) => Step::Wait(now + self.settings.longest_wait),
            Stand::Connected(at, since) => self.look_up(at, since, now),
        }
    }

    fn pick(&mut self, now: Duration) -> Step {
        let rested = self
            .candidates
            .iter()
            .position(|candidate| candidate.rests_until <= now);
        if let Some(at) = rested {
            self.stand = Stand::Dialling(at);
            return Step::Dial(self.candidates[at].server.clone());
        }
        let earliest = self
            .candidates
            .iter()
            .map(|candidate| candidate.rests_until)
            .min();
        Step::Wait(earliest.unwrap_or(now + self.settings.longest_wait))
    }

    /// While connected: is a better one worth a check, or steady enough to go back to?
    fn look_up(&mut self, at: usize, since: Duration, now: Duration) -> Step {
        let Settings {
            steady,
            settled,
            longest_wait,
            ..
        } = self.settings;
        let better = &self.candidates[..at];
        let ready = |candidate: &Candidate| {
            candidate
                .reachable_since
                .is_some_and(|since| now >= since + steady)
        };
        if better.iter().any(ready) && now >= since + settled {
            return Step::Leave;
        }
        if self.checking.is_none()
            && let Some(due) = better
                .iter()
                .position(|candidate| candidate.rests_until <= now)
        {
            self.checking = Some(due);
            return Step::Check(self.candidates[due].server.clone());
        }
        let next = better
            .iter()
            .map(|candidate| candidate.rests_until)
            .filter(|at| *at > now)
            .min();
        Step::Wait(next.unwrap_or(now + longest_wait))
    }

    /// The dialled server took us.
    pub fn connected(&mut self, now: Duration) {
        if let Stand::Dialling(at) = self.stand {
            self.stand = Stand::Connected(at, now);
        }
    }

    /// The dialled server could not be reached or refused us.
    pub fn failed(&mut self, now: Duration, rng: &mut dyn CryptoRng) {
        if let Stand::Dialling(at) = self.stand {
            self.stand = Stand::Idle;
            self.rest(at, now, rng);
        }
    }

    /// The connection broke. A server that had served for a while is dialled again soon; one that
    /// had not is treated as one that failed.
    pub fn lost(&mut self, now: Duration, rng: &mut dyn CryptoRng) {
        if let Stand::Connected(at, since) = self.stand {
            self.stand = Stand::Idle;
            self.checking = None;
            if now >= since + self.settings.settled {
                self.candidates[at].failures = 0;
            }
            self.rest(at, now, rng);
        }
    }

    /// We left the server, because of [`Step::Leave`] or a new list.
    pub fn left(&mut self, now: Duration) {
        self.stand = Stand::Idle;
        self.checking = None;
        for candidate in &mut self.candidates {
            if candidate.reachable_since.take().is_some() {
                (candidate.failures, candidate.rests_until) = (0, now);
            }
        }
    }

    /// A better server was checked.
    pub fn checked(&mut self, reachable: bool, now: Duration, rng: &mut dyn CryptoRng) {
        let Some(at) = self.checking.take() else {
            return;
        };
        let candidate = &mut self.candidates[at];
        if reachable {
            candidate.failures = 0;
            candidate.reachable_since.get_or_insert(now);
            candidate.rests_until = now + self.settings.check;
        } else {
            candidate.reachable_since = None;
            self.rest(at, now, rng);
        }
    }

    /// Leaves a candidate alone: a doubling time, of which the second half is drawn by lot so that
    /// many devices do not come back at one moment.
    fn rest(&mut self, at: usize, now: Duration, rng: &mut dyn CryptoRng) {
        let Settings {
            first_wait,
            longest_wait,
            ..
        } = self.settings;
        let candidate = &mut self.candidates[at];
        let whole = first_wait
            .saturating_mul(1 << candidate.failures.min(30))
            .min(longest_wait);
        candidate.failures = candidate.failures.saturating_add(1);
        candidate.reachable_since = None;
        candidate.rests_until = now + whole / 2 + fraction(whole / 2, rng);
    }
}

impl Candidate {
    fn new(server: ServerId) -> Self {
        Self {
            server,
            failures: 0,
            rests_until: Duration::ZERO,
            reachable_since: None,
        }
    }
}

/// A time from zero up to `whole`, drawn evenly.
fn fraction(whole: Duration, rng: &mut dyn CryptoRng) -> Duration {
    let nanos = (u128::from(rng.next_u32()) * whole.as_nanos()) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
