//! One probe: is it under way, is it up, is it slow.

use std::time::Duration;

use super::Settings;

/// The state of one probe. It starts down, so that the first answers are news.
#[derive(Debug, Clone, Default)]
pub(super) struct Track {
    sent: Option<Duration>,
    up: bool,
    slow: bool,
    failures: u32,
    successes: u32,
    /// Run of slow answers, or of fast ones while `slow`.
    contrary: u32,
}

impl Track {
    /// Marks it as sent, unless one is still under way.
    pub(super) fn send(&mut self, now: Duration) -> bool {
        let free = self.sent.is_none();
        self.sent.get_or_insert(now);
        free
    }

    /// Counts a probe that ran out of time; says whether there was one.
    pub(super) fn expire(&mut self, now: Duration, settings: &Settings) -> bool {
        let over = self
            .deadline(settings)
            .is_some_and(|deadline| now >= deadline);
        if over {
            self.failed(settings);
        }
        over
    }

    pub(super) fn deadline(&self, settings: &Settings) -> Option<Duration> {
        self.sent.map(|sent| sent + settings.timeout)
    }

    pub(super) fn answered(&mut self, rtt: Duration, settings: &Settings) {
        if self.sent.take().is_none() {
            return;
        }
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        if self.successes >= settings.successes {
            self.up = true;
        }
        let (slow, needed) = (
            rtt > settings.slow,
            if self.slow {
                settings.successes
            } else {
                settings.failures
            },
        );
        self.contrary = if slow == self.slow {
            0
        } else {
            self.contrary + 1
        };
        if self.contrary >= needed {
            (self.slow, self.contrary) = (slow, 0);
        }
    }

    pub(super) fn failed(&mut self, settings: &Settings) {
        self.sent = None;
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        if self.failures >= settings.failures {
            self.up = false;
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    pub(super) fn is_slow(&self) -> bool {
        self.slow
    }

    /// Whether the last probe failed.
    pub(super) fn is_suspect(&self) -> bool {
        self.failures > 0
    }
}
