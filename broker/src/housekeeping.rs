//! What happens by time alone: delayed wills, sessions that end, retained messages that expire, and
//! the forgetting of remembered rights.
//!
//! One task for the whole broker, owned by the handle.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::broker::Shared;
use crate::journal::Op;

/// Remembered rights live this long; wills and sessions are looked at as often.
const BEAT: Duration = Duration::from_millis(500);
/// Beats between two looks at retained messages, and between two notes of the clock.
const SLOW_BEATS: u64 = 120;

pub(crate) async fn run(shared: Weak<Shared>) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for beat in 1u64.. {
        beats.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.core.exchange.forget();
        shared.show_figures();
        for will in shared.wills.due(Instant::now()) {
            shared.fire(will).await;
        }
        end_sessions(&shared).await;
        if beat % SLOW_BEATS == 0 {
            let topics = shared.core.retained.expired(shared.core.clock.now());
            if !topics.is_empty() {
                shared.journal.offer(Op::Unretain { topics });
            }
            // When the journal is busy, its commits note the clock themselves.
            shared.journal.offer(Op::Tick);
        }
    }
}

async fn end_sessions(shared: &Shared) {
    let now = shared.core.clock.now();
    for client_id in shared.sessions.due(now) {
        let Some(mut held) = shared.sessions.take_expired(&client_id, now) else {
            continue;
        };
        debug!(client = &*client_id, "session expired");
        if let Err(error) = shared.end_session(&mut held).await {
            warn!(client = &*client_id, %error, "an expired session could not be removed; tried again");
            held.exists = true;
            shared.sessions.expires(&client_id, Some(now + 1));
            continue;
        }
        if let Some(will) = shared.wills.take(&client_id) {
            shared.fire(will).await;
        }
        shared.sessions.remove(&client_id);
    }
}
