//! What time it is and how far to believe it.
//!
//! Called by everything that checks a validity or writes a history. A machine may boot in 1970
//! without any network: the time never falls below a durable floor, and its quality tells whether
//! anything irrevocable may be decided on it. Never takes the time from an unauthenticated source
//! as more than a hint. Intervals are measured with `tokio::time`, never with this clock.

mod floor;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

pub use floor::FloorError;
use floor::FloorFile;
pub use holdfast_protocol::time::{Time, TimeQuality};

/// The seam through which every part asks for the time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The best known time, never below the floor.
    fn now(&self) -> Time;
}

/// No part of Holdfast existed before this moment (2026-01-01T00:00:00Z), so it is the floor of a
/// machine that knows nothing better.
pub const BUILD_FLOOR: u64 = 1_767_225_600;

/// How often the floor goes to disk while a daemon runs. Flash wears; an hour lost is harmless.
pub const FLOOR_INTERVAL: Duration = Duration::from_secs(600);

/// Where the operating system's clock stands in this machine's trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemTrust {
    /// The operator vouches for it (a server under NTP with authentication): its reading counts as
    /// authenticated as long as it is not below the floor.
    Vouched,
    /// It may be anything: it moves the time forward but never raises its quality above `Floor`.
    Hint,
}

/// The operating system's clock, lifted by a durable floor and by what authenticated peers told.
///
/// Cheap to share behind an `Arc`. [`SystemClock::now`] never touches the disk.
#[derive(Debug)]
pub struct SystemClock {
    trust: SystemTrust,
    wall: fn() -> u64,
    state: Mutex<State>,
    file: Option<Mutex<FloorFile>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// True lower bound at `since`; grows with the monotonic clock.
    floor: u64,
    /// Whether a floor was ever known, or only the build's.
    known: bool,
    /// Whether an authenticated peer told `floor` in this run.
    authenticated: bool,
    since: Instant,
}

impl State {
    fn floor_now(&self) -> u64 {
        self.floor.saturating_add(self.since.elapsed().as_secs())
    }
}

impl SystemClock {
    /// Opens the clock with its floor kept in two small files beside `path` (`path.0`, `path.1`,
    /// written in turn, so that one good copy always stands).
    ///
    /// A missing or damaged floor is no error: the time is then of quality `None` until a peer
    /// tells it. Damage is logged.
    ///
    /// # Errors
    /// The files cannot be read or their folder cannot be written.
    pub fn open(path: &Path, trust: SystemTrust) -> Result<Self, FloorError> {
        Self::with_wall(path, trust, wall_clock)
    }

    /// A clock without a file: for commands that run for a moment.
    #[must_use]
    pub fn without_floor(trust: SystemTrust) -> Self {
        Self {
            trust,
            wall: wall_clock,
            state: Mutex::new(State::starting(None)),
            file: None,
        }
    }

    fn with_wall(path: &Path, trust: SystemTrust, wall: fn() -> u64) -> Result<Self, FloorError> {
        let (file, kept) = FloorFile::open(path)?;
        Ok(Self {
            trust,
            wall,
            state: Mutex::new(State::starting(kept)),
            file: Some(Mutex::new(file)),
        })
    }

    /// Takes over the time that an authenticated peer told (seconds since 1970): the owner's signed
    /// site record, or a server over verified TLS. A time below the floor is ignored: it can only
    /// be a replay. Tells whether it was taken. Call [`SystemClock::keep_floor`] soon after.
    pub fn learn(&self, secs: u64) -> bool {
        let mut state = self.lock();
        let floor = state.floor_now();
        if secs < floor {
            // The monotonic clock drifts; a peer seconds behind still confirms what we have.
            state.authenticated |= state.known && floor - secs <= DRIFT;
            return false;
        }
        *state = State {
            floor: secs,
            known: true,
            authenticated: true,
            since: Instant::now(),
        };
        true
    }

    /// Writes the floor durably. Blocks on the disk for a few milliseconds.
    ///
    /// # Errors
    /// The disk refused; the older floor stands.
    pub fn keep_floor(&self) -> Result<(), FloorError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let floor = {
            let state = self.lock();
            // A floor nobody told us and no vouched clock confirms is the build's: not worth a write.
            let vouched = self.vouched_reading(&state);
            match vouched {
                Some(secs) => secs,
                None if state.known => state.floor_now(),
                None => return Ok(()),
            }
        };
        file.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(floor)
    }

    /// Writes the floor every [`FLOOR_INTERVAL`] and once more when `stop` resolves. For the
    /// daemon's own task set.
    pub async fn keep_floor_until(self: Arc<Self>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let stopped = tokio::select! {
                () = &mut stop => true,
                () = tokio::time::sleep(FLOOR_INTERVAL) => false,
            };
            let clock = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || clock.keep_floor()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the time floor was not kept"),
                Err(error) => tracing::error!(%error, "the time floor task failed"),
            }
            if stopped {
                return;
            }
        }
    }

    fn vouched_reading(&self, state: &State) -> Option<u64> {
        let wall = (self.wall)();
        (self.trust == SystemTrust::Vouched && wall >= state.floor_now().saturating_sub(DRIFT))
            .then(|| wall.max(state.floor_now()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two clocks this close together (seconds) agree.
const DRIFT: u64 = 60;

impl State {
    fn starting(kept: Option<u64>) -> Self {
        Self {
            floor: kept.unwrap_or(0).max(BUILD_FLOOR),
            known: kept.is_some(),
            authenticated: false,
            since: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let state = *self.lock();
        if let Some(secs) = self.vouched_reading(&state) {
            return Time {
                secs,
                quality: TimeQuality::Authenticated,
            };
        }
        let floor = state.floor_now();
        // A machine that slept is behind until a peer tells it again; behind is the safe side.
        if state.authenticated {
            return Time {
                secs: floor,
                quality: TimeQuality::Authenticated,
            };
        }
        Time {
            secs: floor.max((self.wall)()),
            quality: if state.known {
                TimeQuality::Floor
            } else {
                TimeQuality::None
            },
        }
    }
}

fn wall_clock() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A clock that stands still until it is set: for tests and simulations.
#[derive(Debug)]
pub struct ManualClock(Mutex<Time>);

impl ManualClock {
    /// A clock that shows `secs` since 1970, authenticated.
    #[must_use]
    pub const fn at(secs: u64) -> Self {
        Self(Mutex::new(Time {
            secs,
            quality: TimeQuality::Authenticated,
        }))
    }

    /// Sets time and quality, backwards too.
    pub fn set(&self, time: Time) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }

    /// Moves the time on, by whole seconds.
    pub fn advance(&self, by: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).secs += by.as_secs();
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
