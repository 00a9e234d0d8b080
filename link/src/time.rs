//! What time it is and how far to believe it.
//!
//! Called by everything that checks a validity or writes a history. A machine may boot in 1970
//! without any network, and its wall clock may be anything: there are two readings. [`Clock::now`] is
//! the best guess, for histories; [`Clock::certain`] is what has passed for certain, and validity is
//! judged by it alone. Only an authenticated peer moves the second one; NTP, HTTP dates, DHCP and the
//! battery clock move nothing but the guess, and that once, at the start. Intervals are measured with
//! `tokio::time`, never with this clock. Why: decision record 0006.

mod floor;
mod machine;
mod moment;
mod stand_in;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use floor::FloorError;
use floor::{FloorFile, Kept};
pub use holdfast_protocol::time::{Time, TimeQuality};
use machine::{Kernel, Machine};
pub use moment::{Moment, Reading, Traced};
use rand_core::Rng as _;
pub use stand_in::{Doubting, ManualClock};
use tokio::sync::Notify;

use crate::random::SystemRandom;

/// The seam through which every part asks for the time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The best known time, never below the floor: for histories and for people.
    fn now(&self) -> Time;

    /// The latest moment that has passed for certain, and whether it is the present: for every
    /// question of validity. It lags behind by the time that the machine was off; it never leads.
    fn certain(&self) -> Time {
        self.now()
    }

    /// What goes into a record: the guess, and the moment by the machine's own counter.
    fn read(&self) -> Reading {
        Reading {
            time: self.now(),
            least: self.certain().secs,
            moment: Moment::UNKNOWN,
        }
    }

    /// The real time of a moment that was read before.
    fn trace(&self, _moment: Moment) -> Traced {
        Traced::Never
    }
}

/// No part of Holdfast existed before this moment (2026-01-01T00:00:00Z), so it is the floor of a
/// machine that knows nothing better.
pub const BUILD_FLOOR: u64 = 1_767_225_600;

/// How often the floor goes to disk while a daemon runs. Flash wears; an hour lost is harmless.
pub const FLOOR_INTERVAL: Duration = Duration::from_secs(600);

/// Two clocks this close together agree.
const DRIFT: Duration = Duration::from_secs(60);
/// A counter of seconds errs by less than one in this many.
const STEADINESS: u32 = 1_000;

/// Where the operating system's clock stands in this machine's trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemTrust {
    /// The operator vouches for it (a server under NTP with authentication): its reading counts as
    /// authenticated as long as it is not below the floor.
    Vouched,
    /// It may be anything: read once, for a guess that histories show as untrusted.
    Hint,
}

/// The operating system's clock, lifted by a durable floor and by what authenticated peers told.
///
/// Cheap to share behind an `Arc`. [`SystemClock::now`] never touches the disk.
#[derive(Debug)]
pub struct SystemClock {
    trust: SystemTrust,
    machine: Box<dyn Machine>,
    /// The boot, or, where nobody tells which it is, this run of the program.
    run: u64,
    state: Mutex<State>,
    file: Option<Mutex<FloorFile>>,
    /// Something was learnt that is worth a write.
    learnt: Notify,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Had passed for certain when the time since boot was `since`.
    least: Duration,
    since: Duration,
    /// Whether a floor was ever known, or only the build's.
    known: bool,
    /// Whether `least` is the time itself.
    authenticated: bool,
    /// How far the guess leads, on untrusted time.
    ahead: Duration,
    /// No authenticated peer is believed that tells this time or a later one.
    end: u64,
    /// Whether such a peer was met.
    doubted: bool,
    /// What to add to the untrusted times shown in this run, once the time is known.
    shift: Option<i64>,
}

impl State {
    fn starting(kept: Option<Kept>, machine: &dyn Machine) -> Self {
        let since = machine.uptime();
        let build = Duration::from_secs(BUILD_FLOOR);
        let (least, authenticated) = match kept {
            Some(kept) => kept.resumed(since, machine.boot()),
            None => (build, false),
        };
        let least = least.max(build);
        let wall = Duration::from_secs(machine.wall());
        Self {
            least,
            since,
            known: kept.is_some(),
            authenticated,
            ahead: match authenticated {
                true => Duration::ZERO,
                false => wall.saturating_sub(least),
            },
            end: u64::MAX,
            doubted: false,
            shift: None,
        }
    }

    /// What has passed for certain at the time since boot `uptime`.
    fn certain(&self, uptime: Duration) -> Duration {
        self.least.saturating_add(uptime.saturating_sub(self.since))
    }

    fn quality(&self) -> TimeQuality {
        match (self.authenticated, self.known) {
            (true, _) => TimeQuality::Authenticated,
            (false, true) => TimeQuality::Floor,
            (false, false) => TimeQuality::None,
        }
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
        Self::on(Box::new(Kernel), Some(path), trust)
    }

    /// A clock without a file: for commands that run for a moment.
    #[must_use]
    pub fn without_floor(trust: SystemTrust) -> Self {
        Self::on(Box::new(Kernel), None, trust).expect("no file can fail")
    }

    fn on(
        machine: Box<dyn Machine>,
        path: Option<&Path>,
        trust: SystemTrust,
    ) -> Result<Self, FloorError> {
        let (file, kept) = match path.map(FloorFile::open).transpose()? {
            Some((file, kept)) => (Some(Mutex::new(file)), kept),
            None => (None, None),
        };
        let state = Mutex::new(State::starting(kept, &*machine));
        let run = match machine.boot() {
            0 => SystemRandom.next_u64().max(1),
            boot => boot,
        };
        Ok(Self {
            trust,
            machine,
            run,
            state,
            file,
            learnt: Notify::new(),
        })
    }

    /// Takes over the time that an authenticated peer told (seconds since 1970): the owner in TO2, or
    /// a server over verified TLS. A time before what has passed for certain is ignored: it can only
    /// be a replay. Tells whether it was taken; [`SystemClock::keep_floor_until`] then writes it.
    pub fn learn(&self, secs: u64) -> bool {
        let (told, uptime) = (Duration::from_secs(secs), self.machine.uptime());
        let mut state = self.lock();
        if secs >= state.end {
            // Told once: whoever says it says it at every contact.
            if !std::mem::replace(&mut state.doubted, true) {
                tracing::error!(
                    told = secs,
                    end = state.end,
                    "a peer told a time at which this site's own authority would be over; not believed"
                );
            }
            return false;
        }
        let certain = state.certain(uptime);
        // The counter drifts: a peer seconds behind may be the more exact one.
        let slack = DRIFT + uptime.saturating_sub(state.since) / STEADINESS;
        let slack = if state.known { slack } else { Duration::ZERO };
        if told + slack < certain {
            return false;
        }
        if !state.authenticated {
            let shown = (certain + state.ahead).as_secs();
            let shift = secs.cast_signed() - shown.cast_signed();
            state.shift = Some(shift);
            tracing::info!(
                time = secs,
                shift,
                "the time is known now; what was recorded before is off by so many seconds"
            );
        }
        let news = !state.authenticated;
        state.least = told;
        state.since = uptime;
        state.known = true;
        state.authenticated = true;
        state.ahead = Duration::ZERO;
        drop(state);
        if news {
            self.learnt.notify_one();
        }
        true
    }

    /// Takes over that `secs` has passed for certain, though not that it is the present: what a peer
    /// tells that does not know the time either, or the begin of a certificate that our authority made.
    pub fn learn_least(&self, secs: u64) {
        let (told, uptime) = (Duration::from_secs(secs), self.machine.uptime());
        let mut state = self.lock();
        let certain = state.certain(uptime);
        if state.authenticated || told <= certain || secs >= state.end {
            return;
        }
        state.ahead = (certain + state.ahead).saturating_sub(told);
        state.least = told;
        state.since = uptime;
        state.known = true;
        drop(state);
        self.learnt.notify_one();
    }

    /// Takes what an authenticated peer told, as far as it knows itself.
    pub fn hear(&self, told: Time) {
        match told.quality {
            TimeQuality::Authenticated => _ = self.learn(told.secs),
            TimeQuality::Floor => self.learn_least(told.secs),
            TimeQuality::None => {}
        }
    }

    /// Sets the end of what can be believed: the end of this site's own authority. A peer that tells a
    /// later time would lock the site out for good; so would a wall clock.
    pub fn never_after(&self, end: u64) {
        let uptime = self.machine.uptime();
        let mut state = self.lock();
        state.end = end;
        if (state.certain(uptime) + state.ahead).as_secs() >= end {
            state.ahead = Duration::ZERO;
        }
    }

    /// What to add to the times shown in this run before the time was known; `None` while it is not,
    /// or if it was known from the start.
    #[must_use]
    pub fn shift(&self) -> Option<i64> {
        self.lock().shift
    }

    /// Writes the floor durably. Blocks on the disk for a few milliseconds.
    ///
    /// # Errors
    /// The disk refused; the older floor stands.
    pub fn keep_floor(&self) -> Result<(), FloorError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let certain = self.certain();
        // A floor nobody told us and no vouched clock confirms is the build's: not worth a write.
        if certain.quality == TimeQuality::None {
            return Ok(());
        }
        let kept = Kept {
            floor: certain.secs,
            uptime: self.machine.uptime(),
            boot: self.machine.boot(),
            authenticated: certain.is_authenticated(),
        };
        file.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(kept)
    }

    /// Writes the floor every [`FLOOR_INTERVAL`], whenever the time becomes known, and once more
    /// when `stop` resolves. For the daemon's own task set.
    pub async fn keep_floor_until(self: Arc<Self>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            let stopped = tokio::select! {
                () = &mut stop => true,
                () = self.learnt.notified() => false,
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

    /// The wall clock, where the operator vouches for it and it is not behind.
    fn vouched(&self, certain: Duration) -> Option<Time> {
        if self.trust != SystemTrust::Vouched {
            return None;
        }
        let (wall, certain) = (self.machine.wall(), certain.as_secs());
        (wall >= certain.saturating_sub(DRIFT.as_secs()))
            .then(|| Time::new(wall.max(certain), TimeQuality::Authenticated))
    }

    /// The guess and the bound, by one look at the counter.
    fn look(&self) -> (Time, Time, Duration) {
        let (state, uptime) = (*self.lock(), self.machine.uptime());
        let certain = state.certain(uptime);
        if let Some(time) = self.vouched(certain) {
            return (time, time, uptime);
        }
        let time = |secs: Duration| Time::new(secs.as_secs(), state.quality());
        (time(certain + state.ahead), time(certain), uptime)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Time {
        self.look().0
    }

    fn certain(&self) -> Time {
        self.look().1
    }

    fn read(&self) -> Reading {
        let (time, least, uptime) = self.look();
        let run = self.run;
        Reading {
            time,
            least: least.secs,
            moment: Moment { run, uptime },
        }
    }

    fn trace(&self, moment: Moment) -> Traced {
        let (_, certain, uptime) = self.look();
        let run = self.run;
        moment.traced(certain, Moment { run, uptime })
    }
}

#[cfg(test)]
mod tests;
