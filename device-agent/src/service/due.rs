//! When key and certificate of the service that runs are to be renewed: by the rule of
//! `protocol::renewal` and the operator's wish, as for the device's own certificate.
//!
//! Asked by the room of services while it has nothing else to do. It knows nothing of how.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_link::time::Clock;
use holdfast_protocol::lifecycle::Running;
use holdfast_protocol::renewal::Wish;
use tokio::time::Instant;

/// Looks at the certificate.
#[derive(Debug)]
pub(super) struct Due {
    clock: Arc<dyn Clock>,
    wish: Wish,
    /// Sessions begun with the present certificate.
    sessions: Arc<AtomicU32>,
    look: Duration,
    pauses: Backoff,
    /// Not before: however it goes, renewals do not follow one another at full speed.
    after: Instant,
}

impl Due {
    /// Looks each `look` on what is certain by `clock`; renewals that come to nothing pause by `pauses`.
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        wish: Wish,
        sessions: Arc<AtomicU32>,
        look: Duration,
        pauses: Policy,
    ) -> Self {
        Self {
            clock,
            wish,
            sessions,
            look,
            pauses: Backoff::new(pauses),
            after: Instant::now(),
        }
    }

    /// Returns once the certificate of what runs is due; never if nothing runs.
    pub(super) async fn come(&self, running: Option<&Running>) {
        let Some(running) = running else {
            return std::future::pending().await;
        };
        tokio::time::sleep_until(self.after).await;
        while !self.is_now(running) {
            tokio::time::sleep(self.look).await;
        }
    }

    fn is_now(&self, running: &Running) -> bool {
        // The first session of a certificate is the one by which it came into use.
        let sessions = self.sessions.load(Ordering::Relaxed).saturating_sub(1);
        let now = self.clock.certain().secs;
        self.wish.is_due(&running.certificate, now, sessions)
    }

    /// A renewal begins now.
    pub(super) fn begun(&mut self) {
        self.after = Instant::now() + self.pauses.failed(&mut SystemRandom);
    }

    /// Another certificate is in use.
    pub(super) fn changed(&mut self, running: &Running) {
        self.sessions.store(0, Ordering::Relaxed);
        if !self.is_now(running) {
            self.pauses.worked();
        }
    }
}
