//! How often to probe and how much hysteresis; checked as a whole before use.

use std::time::Duration;

/// A silent cut must be noticed within this time, unless the profile is metered.
pub const NOTICE_LIMIT: Duration = Duration::from_secs(5);
/// The same for the metered profile.
const METERED_NOTICE_LIMIT: Duration = Duration::from_secs(60);

/// Settings of the uplink's watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// From one round of probes to the next.
    pub interval: Duration,
    /// A probe not answered within this failed; also the pace of rounds while in doubt.
    pub timeout: Duration,
    /// The request end to end is sent in every n-th round, and in every round while in doubt.
    pub end_to_end_every: u32,
    /// Failures in a row that take a probe down.
    pub failures: u32,
    /// Answers in a row that bring it up again.
    pub successes: u32,
    /// A ping slower than this is slow; `failures` slow ones in a row make the mode `degraded`.
    pub slow: Duration,
    /// How long a better mode must have been right after one relapse.
    pub hold: Duration,
    /// Upper bound of that time, however many relapses.
    pub hold_max: Duration,
    /// One relapse is forgotten after each such time in which all was well.
    pub calm: Duration,
    /// A backlog of at most so many messages counts as drained: live traffic is always under way.
    pub drained: u64,
    /// A silent cut must be noticed within this time; the other values are checked against it.
    pub notice_limit: Duration,
}

impl Default for Settings {
    /// A silent cut is noticed after 3.75 s at the latest.
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(1_250),
            timeout: Duration::from_millis(1_250),
            end_to_end_every: 1,
            failures: 2,
            successes: 2,
            slow: Duration::from_millis(1_000),
            hold: Duration::from_secs(3),
            hold_max: Duration::from_secs(24),
            calm: Duration::from_secs(60),
            drained: 64,
            notice_limit: NOTICE_LIMIT,
        }
    }
}

impl Settings {
    /// For links that are paid by the byte: a cut is noticed within 60 s. One ping (about 170 bytes
    /// with TLS and TCP) every 40 s and one request (about 1.5 KB) every 5 minutes stay under
    /// 1 KB a minute.
    #[must_use]
    pub fn metered() -> Self {
        Self {
            interval: Duration::from_secs(40),
            timeout: Duration::from_secs(5),
            end_to_end_every: 8,
            slow: Duration::from_secs(4),
            hold: Duration::from_secs(30),
            hold_max: Duration::from_secs(240),
            calm: Duration::from_secs(600),
            notice_limit: METERED_NOTICE_LIMIT,
            ..Self::default()
        }
    }

    /// How long a silent cut can stay unnoticed: a round was just answered, the next one is an
    /// interval away, and then failures follow each other at the pace of the timeout. A request
    /// that is not sent in every round starts to fail one round later.
    #[must_use]
    pub fn notice_within(&self) -> Duration {
        let late = u32::from(self.end_to_end_every > 1);
        self.interval.saturating_add(
            self.timeout
                .saturating_mul(self.failures.saturating_add(late)),
        )
    }

    /// The most often that the mode can get worse within `window`, whatever the link does: a few
    /// times while the hold still doubles, then once per full hold, and once more per calm period.
    #[must_use]
    pub fn most_relapses(&self, window: Duration) -> u64 {
        let times = |period: Duration| u64::try_from(window.as_nanos() / period.as_nanos().max(1));
        let often = |period| times(period).unwrap_or(u64::MAX);
        let doubling = u64::from(self.most_doublings()) + 2;
        // Two modes can get worse one after the other within one hold: online, degraded, outage.
        (doubling
            .saturating_add(often(self.hold_max))
            .saturating_add(often(self.calm)))
            * 2
    }

    /// Doublings until `hold` reaches `hold_max`.
    pub(super) fn most_doublings(&self) -> u32 {
        (0..31)
            .find(|n| self.hold.saturating_mul(1 << n) >= self.hold_max)
            .unwrap_or(31)
    }

    /// All faults, not only the first.
    #[must_use]
    pub fn check(&self) -> Vec<SettingsFault> {
        let zero = |value: Duration| value.is_zero();
        let short = self.interval < Self::SHORTEST || self.timeout < Self::SHORTEST;
        let checks = [
            (short, SettingsFault::TooShort),
            (
                self.timeout > self.interval,
                SettingsFault::TimeoutOverInterval,
            ),
            (
                self.failures == 0 || self.successes == 0 || self.end_to_end_every == 0,
                SettingsFault::ZeroCount,
            ),
            (zero(self.hold) || zero(self.calm), SettingsFault::ZeroHold),
            (self.hold_max < self.hold, SettingsFault::HoldOrder),
            (
                self.notice_within() > self.notice_limit,
                SettingsFault::TooSlow {
                    within: self.notice_within(),
                    limit: self.notice_limit,
                },
            ),
        ];
        checks
            .into_iter()
            .filter_map(|(wrong, fault)| wrong.then_some(fault))
            .collect()
    }

    /// Shortest interval and timeout: below it a busy machine fails probes by itself.
    pub const SHORTEST: Duration = Duration::from_millis(100);
}

/// What is wrong with the settings. Blame: the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsFault {
    /// Interval or timeout under 100 ms.
    #[error("the probes' interval and timeout must be at least 100 ms")]
    TooShort,
    /// A round would begin before the last one ended.
    #[error("the probes' timeout must not be longer than their interval")]
    TimeoutOverInterval,
    /// A count of zero.
    #[error("failures, successes and end_to_end_every must be at least 1")]
    ZeroCount,
    /// No hysteresis.
    #[error("hold and calm must be longer than zero")]
    ZeroHold,
    /// `hold_max` under `hold`.
    #[error("hold_max must not be shorter than hold")]
    HoldOrder,
    /// A silent cut would be noticed too late.
    #[error(
        "a silent cut would be noticed only after {within:?}, the limit is {limit:?}; shorten \
         interval or timeout, or choose the metered profile"
    )]
    TooSlow {
        /// With these settings.
        within: Duration,
        /// Allowed.
        limit: Duration,
    },
}
