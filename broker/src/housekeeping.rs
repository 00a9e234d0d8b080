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
        send_off(&shared);
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

/// When connections hold more beside their queues than may be, asks those to go that hold the most and
/// whose sockets take nothing.
fn send_off(shared: &Shared) {
    let mut too_much = shared.core.overdrawn();
    if too_much == 0 {
        return;
    }
    let cells = shared.sessions.all();
    let mut all: Vec<_> = cells
        .iter()
        .map(|cell| cell.shown())
        .filter(|mailbox| shared.core.is_stuck(mailbox))
        .map(|mailbox| (mailbox.held().beside, mailbox))
        .collect();
    all.sort_unstable_by_key(|(held, _)| std::cmp::Reverse(*held));
    for (held, mailbox) in all {
        if too_much == 0 || held == 0 {
            return;
        }
        mailbox.ask_to_go();
        too_much = too_much.saturating_sub(held);
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
