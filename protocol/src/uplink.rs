//! The uplink's mode, decided from two probes and virtual time.
//!
//! The gateway's driver sends what [`Uplink::poll`] asks for (an MQTT ping on the bridge, and a
//! request end to end through the cloud), reports each [`ProbeResult`] and the bridge's backlog,
//! and publishes each [`Transition`]. Nothing here sends, sleeps or reads a clock: `now` is a
//! [`Duration`] since any fixed moment that never goes back.
//!
//! - `outage`: both probes are down. A silent cut is noticed within [`Settings::notice_within`].
//! - `degraded`: one probe is down, or answers are slow.
//! - `recovering`: after an outage, until the backlog is drained.
//! - `online`: all is well.
//!
//! Hysteresis goes both ways: a probe is down after `failures` in a row and up after `successes` in
//! a row; a worse mode is taken at once, a better one only when it held for a while, and that while
//! doubles with each relapse up to `hold_max` and halves again with each `calm` period. So a link
//! that flaps cannot make the mode flap: [`Settings::most_relapses`] states the rate.

mod settings;
mod track;

use std::{fmt, time::Duration};

pub use settings::{NOTICE_LIMIT, Settings, SettingsFault};
use track::Track;

/// What the uplink is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All is well.
    Online,
    /// One probe is down, or answers are slow.
    Degraded,
    /// Neither probe is answered.
    Outage,
    /// Back after an outage; the backlog is not drained yet.
    Recovering,
}

impl Mode {
    /// The word that is published.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Degraded => "degraded",
            Self::Outage => "outage",
            Self::Recovering => "recovering",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The two probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Probe {
    /// An MQTT ping on the bridge's connection.
    Ping,
    /// A request through the cloud's servers and back.
    EndToEnd,
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, after this time.
    Answered {
        /// From sending to the answer.
        rtt: Duration,
    },
    /// It failed before its time was up: refused, reset, not connected.
    Failed,
}

/// A probe's end. The driver need not report timeouts: [`Uplink::poll`] counts them itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeResult {
    /// Which one.
    pub probe: Probe,
    /// How it ended.
    pub outcome: Outcome,
}

/// Why the mode is what it is, as one sentence for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Just started.
    NotReachedYet,
    /// Both probes are down.
    NothingAnswers,
    /// The ping is down, the request is answered.
    BrokerSilent,
    /// The request is down, the ping is answered.
    CloudSilent,
    /// Answers take too long.
    Slow,
    /// Messages wait.
    Backlog,
    /// Both probes are answered in time and nothing waits.
    Well,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReachedYet => "the cloud has not been reached since the start",
            Self::NothingAnswers => "neither the cloud's broker nor its servers answer",
            Self::BrokerSilent => "the cloud's broker does not answer, its servers do",
            Self::CloudSilent => "the cloud's servers do not answer, its broker does",
            Self::Slow => "the cloud answers slowly",
            Self::Backlog => "the cloud answers again, messages of the outage are on their way",
            Self::Well => "the cloud answers and nothing waits",
        })
    }
}

/// A change of mode, or (`from` equal to `to`) of the reason for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// Mode before.
    pub from: Mode,
    /// Mode from now on.
    pub to: Mode,
    /// Why.
    pub reason: Reason,
    /// Since when the mode `to` holds.
    pub since: Duration,
}

/// What to do now and when to ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// Probes to send now.
    pub probes: Vec<Probe>,
    /// A change of mode that time alone brought.
    pub transition: Option<Transition>,
    /// Poll again no later than this.
    pub wake: Duration,
}

/// The state of the decision.
#[derive(Debug, Clone)]
pub struct Uplink {
    settings: Settings,
    mode: Mode,
    reason: Reason,
    since: Duration,
    ping: Track,
    end_to_end: Track,
    last_tick: Duration,
    next_tick: Duration,
    ticks: u64,
    backlog: u64,
    /// An outage's backlog is not drained yet.
    unsettled: bool,
    /// Since when a better mode would have been right.
    better_since: Option<Duration>,
    /// Relapses not yet forgotten.
    relapses: u32,
    /// Since when nothing is worse than `recovering`; counts only then.
    calm_since: Duration,
    /// The last change was for the worse: a further step down belongs to the same relapse.
    descending: bool,
}

impl Uplink {
    /// Starts in `outage` until the cloud answers; the first answers are believed at once.
    #[must_use]
    pub fn new(settings: Settings, now: Duration) -> Self {
        Self {
            settings,
            mode: Mode::Outage,
            reason: Reason::NotReachedYet,
            since: now,
            ping: Track::default(),
            end_to_end: Track::default(),
            last_tick: now,
            next_tick: now,
            ticks: 0,
            backlog: 0,
            unsettled: true,
            better_since: None,
            relapses: 0,
            calm_since: now,
            descending: true,
        }
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Lets time pass: counts probes that ran out of time and says which to send now. A probe that
    /// is asked for counts as sent at `now`.
    pub fn poll(&mut self, now: Duration) -> Poll {
        for track in [&mut self.ping, &mut self.end_to_end] {
            if track.expire(now, &self.settings) && track.is_up() {
                self.next_tick = self.next_tick.min(self.last_tick + self.settings.timeout);
            }
        }
        let transition = self.decide(now);
        let probes = if now >= self.next_tick {
            self.tick(now)
        } else {
            Vec::new()
        };
        Poll {
            probes,
            transition,
            wake: self.wake(now),
        }
    }

    /// Takes the end of a probe. An answer to a probe that ran out of time counts for nothing.
    pub fn observe(&mut self, result: ProbeResult, now: Duration) -> Option<Transition> {
        let track = match result.probe {
            Probe::Ping => &mut self.ping,
            Probe::EndToEnd => &mut self.end_to_end,
        };
        match result.outcome {
            Outcome::Answered { rtt } => track.answered(rtt, &self.settings),
            Outcome::Failed => {
                track.failed(&self.settings);
                // What is only doubted needs haste, what is known to be down does not. And not at
                // once: a refusal comes in no time, and asking again would be a hot loop.
                if track.is_up() {
                    self.next_tick = self.next_tick.min(self.last_tick + self.settings.timeout);
                }
            }
        }
        self.decide(now)
    }

    /// Takes the number of messages that wait for the bridge.
    pub fn backlog(&mut self, waiting: u64, now: Duration) -> Option<Transition> {
        self.backlog = waiting;
        self.decide(now)
    }

    fn tick(&mut self, now: Duration) -> Vec<Probe> {
        let tracks = [&self.ping, &self.end_to_end];
        let suspect = tracks.iter().any(|track| track.is_suspect());
        let in_turn = self
            .ticks
            .is_multiple_of(self.settings.end_to_end_every.into());
        let mut probes = Vec::with_capacity(2);
        if self.ping.send(now) {
            probes.push(Probe::Ping);
        }
        if (suspect || in_turn) && self.end_to_end.send(now) {
            probes.push(Probe::EndToEnd);
        }
        self.ticks += 1;
        self.last_tick = now;
        self.next_tick = now + self.settings.interval;
        probes
    }

    fn wake(&self, now: Duration) -> Duration {
        let deadlines = [&self.ping, &self.end_to_end].map(|track| track.deadline(&self.settings));
        let held = self.better_since.map(|since| since + self.hold());
        // What lies in the past was dealt with in this call.
        let ahead = deadlines
            .into_iter()
            .flatten()
            .chain(held)
            .filter(|at| *at > now);
        ahead.fold(self.next_tick, Duration::min)
    }

    /// The mode that the probes speak for, whatever was before.
    fn indicated(&self) -> (Mode, Reason) {
        match (self.ping.is_up(), self.end_to_end.is_up()) {
            (false, false) => (Mode::Outage, Reason::NothingAnswers),
            (false, true) => (Mode::Degraded, Reason::BrokerSilent),
            (true, false) if !self.unsettled => (Mode::Degraded, Reason::CloudSilent),
            (true, _) if self.unsettled => (Mode::Recovering, Reason::Backlog),
            (true, _) if self.ping.is_slow() => (Mode::Degraded, Reason::Slow),
            (true, _) => (Mode::Online, Reason::Well),
        }
    }

    fn decide(&mut self, now: Duration) -> Option<Transition> {
        self.forget_relapses(now);
        let (to, reason) = self.indicated();
        if to == Mode::Recovering && self.mode == Mode::Recovering {
            // Only in `recovering` itself, so that every outage's end is told as one.
            self.unsettled = self.backlog > self.settings.drained;
            let (to, reason) = self.indicated();
            return self.turn(to, reason, now);
        }
        match rank(to).cmp(&rank(self.mode)) {
            std::cmp::Ordering::Equal => {
                self.better_since = None;
                self.explain(reason)
            }
            std::cmp::Ordering::Less => {
                if !self.descending {
                    self.relapses = (self.relapses + 1).min(self.settings.most_doublings() + 1);
                }
                self.turn(to, reason, now)
            }
            std::cmp::Ordering::Greater => {
                let since = *self.better_since.get_or_insert(now);
                if now >= since + self.hold() {
                    self.turn(to, reason, now)
                } else {
                    None
                }
            }
        }
    }

    fn turn(&mut self, to: Mode, reason: Reason, now: Duration) -> Option<Transition> {
        if to == self.mode {
            return None;
        }
        let transition = Transition {
            from: self.mode,
            to,
            reason,
            since: now,
        };
        self.descending = rank(to) < rank(self.mode);
        (self.mode, self.reason, self.since) = (to, reason, now);
        self.better_since = None;
        if to == Mode::Outage {
            self.unsettled = true;
        }
        Some(transition)
    }

    /// The same mode for another reason; a start that reaches nobody stays one.
    fn explain(&mut self, reason: Reason) -> Option<Transition> {
        if reason == self.reason || self.reason == Reason::NotReachedYet {
            return None;
        }
        self.reason = reason;
        Some(Transition {
            from: self.mode,
            to: self.mode,
            reason,
            since: self.since,
        })
    }

    /// How long a better mode must have been right before it is taken.
    fn hold(&self) -> Duration {
        match self.relapses {
            0 => Duration::ZERO,
            n => self
                .settings
                .hold
                .saturating_mul(1 << (n - 1))
                .min(self.settings.hold_max),
        }
    }

    fn forget_relapses(&mut self, now: Duration) {
        // A mode that is held down would look calm; only what is well is.
        if rank(self.mode) < rank(Mode::Recovering) {
            self.calm_since = now;
        }
        while self.relapses > 0 && now >= self.calm_since + self.settings.calm {
            self.relapses -= 1;
            self.calm_since += self.settings.calm;
        }
    }
}

/// Better modes rank higher.
fn rank(mode: Mode) -> u8 {
    match mode {
        Mode::Outage => 0,
        Mode::Degraded => 1,
        Mode::Recovering => 2,
        Mode::Online => 3,
    }
}

#[cfg(test)]
mod tests;
