//! Moments by the machine's own counter: what makes a record's time known afterwards.
//!
//! Made by a [`super::Clock`], kept by `cps` beside what it recorded on untrusted time. The counter
//! goes on evenly for as long as the machine is not started anew, whatever the wall clock does: once
//! the time is known, the time of every earlier moment of the same run is known as well.

use std::time::Duration;

use super::Time;

/// A moment by the machine's own counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// In which run of the machine; 0 if nobody knows.
    pub run: u64,
    /// How long the machine had been running.
    pub uptime: Duration,
}

/// One look at a clock, for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The best guess.
    pub time: Time,
    /// Had passed for certain, unix seconds.
    pub least: u64,
    /// When, by the machine's own counter.
    pub moment: Moment,
}

/// What is known of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traced {
    /// The time of it, unix seconds.
    Known(u64),
    /// The time is not known yet; that of this moment will be with it.
    NotYet,
    /// It was in another run of the machine: it will never be known.
    Never,
}

impl Moment {
    /// Of a clock that has no counter.
    pub const UNKNOWN: Self = Self {
        run: 0,
        uptime: Duration::ZERO,
    };

    /// What is known of this moment, when it is `time` at the moment `now`.
    #[must_use]
    pub fn traced(self, time: Time, now: Self) -> Traced {
        let ago = now.uptime.checked_sub(self.uptime);
        match ago.filter(|_| self.run != 0 && self.run == now.run) {
            None => Traced::Never,
            Some(_) if !time.is_authenticated() => Traced::NotYet,
            Some(ago) => {
                // The nearest second: whole ones were cut off of both.
                let ago = ago.as_secs() + u64::from(ago.subsec_millis() >= 500);
                Traced::Known(time.secs.saturating_sub(ago))
            }
        }
    }
}
