//! Clocks that stand in for the machine's own: one that doubts, and one that a test sets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Clock, Moment, Reading, Time, TimeQuality, Traced};

/// A clock that doubts itself: to ask a server for the time by. A machine whose counter stood still (a
/// virtual one that was paused) believes a time that is over, and would refuse as "not valid yet" the
/// very server that could tell it.
#[derive(Debug)]
pub struct Doubting(pub Arc<dyn Clock>);

impl Clock for Doubting {
    fn now(&self) -> Time {
        let now = self.0.now();
        Time::new(now.secs, now.quality.min(TimeQuality::Floor))
    }

    fn certain(&self) -> Time {
        let certain = self.0.certain();
        Time::new(certain.secs, certain.quality.min(TimeQuality::Floor))
    }
}

/// A clock that stands still until it is set: for tests and simulations. Its machine runs on for as
/// long as the clock is moved on by [`ManualClock::advance`].
#[derive(Debug)]
pub struct ManualClock(Mutex<(Time, Moment)>);

impl ManualClock {
    /// A clock that shows `secs` since 1970, authenticated.
    #[must_use]
    pub const fn at(secs: u64) -> Self {
        let time = Time {
            secs,
            quality: TimeQuality::Authenticated,
        };
        let moment = Moment {
            run: 1,
            uptime: Duration::ZERO,
        };
        Self(Mutex::new((time, moment)))
    }

    /// Sets time and quality, backwards too.
    pub fn set(&self, time: Time) {
        self.lock().0 = time;
    }

    /// Moves the time on, by whole seconds.
    pub fn advance(&self, by: Duration) {
        let mut state = self.lock();
        state.0.secs += by.as_secs();
        state.1.uptime += by;
    }

    /// Off and on again: nobody knows how long it was off.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.1 = Moment {
            run: state.1.run + 1,
            uptime: Duration::ZERO,
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Time, Moment)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        self.lock().0
    }

    fn read(&self) -> Reading {
        let (time, moment) = *self.lock();
        Reading {
            time,
            least: time.secs,
            moment,
        }
    }

    fn trace(&self, moment: Moment) -> Traced {
        let (time, now) = *self.lock();
        moment.traced(time, now)
    }
}
