//! What a connection holds beside its queue, as the memory of all queues counts it: output that the
//! socket does not take, and messages that may go to another member of a shared subscription.
//!
//! Kept by `run`. A connection whose socket has taken nothing for a while is stuck: it goes when its
//! memory is needed.

use tracing::debug;

use super::inbound::OUTSTANDING;
use super::outbound::OUT_SOFT;
use super::run::Connection;
use crate::exchange::Mailbox;

/// Output above which the client's packets wait: it does not read our answers.
const OUT_HARD: usize = 4 * OUT_SOFT;
/// It is counted in steps of this many bytes.
const STEP: usize = 16 << 10;

/// One connection's.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    /// Bytes that the pool knows of.
    counted: u32,
}

impl Unwritten {
    /// It holds so much now.
    pub(super) fn count(&mut self, mailbox: &Mailbox, held: usize) {
        let known = self.counted as usize;
        if held.abs_diff(known) >= STEP || (held == 0 && known > 0) {
            self.counted = u32::try_from(held).unwrap_or(u32::MAX);
            mailbox.hold(self.counted);
        }
    }
}

impl Connection {
    /// Whether there is room for more output: little, when memory is short, while some is unwritten.
    pub(super) fn takes_more(&self) -> bool {
        self.out.is_empty() || self.out.len() < OUT_SOFT && !self.shared.core.memory_is_short()
    }

    /// Takes from the queues what the output has room for, and shows what is under way then.
    pub(super) fn fill(&mut self) {
        let takes = self.takes_more();
        let filled = if takes {
            self.client.fill(&self.shared.journal)
        } else {
            Ok(())
        };
        if let Err(error) = &filled {
            debug!(client = self.client.client_id(), %error, "rows cannot be read now");
            // The journal reopens by itself; the rows are asked for again then.
        }
        self.cut_short = !takes || filled.is_err() || self.client.out.len() >= OUT_SOFT;
        #[cfg(test)]
        {
            let content = &self.shared.core.content;
            self.cut_short &= !content.load(std::sync::atomic::Ordering::Relaxed);
        }
        self.client.show_under_way();
    }

    /// Whether the client's packets are read now.
    pub(super) fn may_read(&self) -> bool {
        self.listens() && self.out.len() < OUT_HARD
    }

    /// Whether neither the journal nor a busy receiver keeps us from hearing it.
    pub(super) fn listens(&self) -> bool {
        !self.paused && self.client.rest.is_empty() && self.client.outstanding < OUTSTANDING
    }

    /// Whether its memory is needed, and its socket takes nothing.
    pub(super) fn must_go(&self) -> bool {
        let mailbox = &self.client.mailbox;
        mailbox.asked_to_go() && self.shared.core.is_stuck(mailbox)
    }

    /// Tells the pool what this connection holds beside its queue.
    pub(super) fn count_held(&mut self) {
        let held = self.out.len() + self.client.held.inflight.kept_bytes();
        self.unwritten.count(&self.client.mailbox, held);
    }

    /// The socket took so many bytes: messages have arrived.
    pub(super) fn took(&mut self, bytes: usize) {
        let mailbox = &self.client.mailbox;
        if mailbox.blocked_from() != 0 {
            mailbox.set_blocked_from(0);
        }
        if !self.client.delivered_to.is_empty() {
            let core = &self.shared.core;
            let (_, now) = core.clock.now_and_micros();
            self.client
                .delivered_to
                .written(bytes, |came, way, messages| {
                    core.counters.delivered(way, now, came, messages);
                });
        }
    }

    /// The socket takes nothing now.
    pub(super) fn blocked(&self) {
        let mailbox = &self.client.mailbox;
        if mailbox.blocked_from() == 0 {
            mailbox.set_blocked_from(self.shared.core.second());
        }
    }
}
