//! Every quota with what is used of it: for consoles, and for `exposition`.
//!
//! Made when it is asked for. A quota of one client shows the client that has used most of it.

#[cfg(test)]
mod tests;

use crate::broker::Shared;
use crate::{Figures, Limits};

/// A bound of [`Limits`] and how near it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quota {
    /// The name, as in [`Limits`].
    pub name: &'static str,
    /// The bound.
    pub limit: u64,
    /// What is used of it now, by the fullest client where each has its own; `None` where the bound
    /// is one of a single packet.
    pub used: Option<u64>,
}

/// The most that any one session uses.
#[derive(Debug, Default)]
struct Fullest {
    receiving: u64,
    inflight: u64,
    subscriptions: u64,
    queue_messages: u64,
    queue_bytes: u64,
    rows: u64,
    row_bytes: u64,
}

impl Shared {
    /// What all sessions hold, into the figures: sums, and the quotas.
    pub(crate) fn count_sessions(&self, figures: &mut Figures) {
        let mut most = Fullest::default();
        for cell in self.sessions.all() {
            let mailbox = cell.shown();
            let held = mailbox.held();
            figures.queued_messages += held.messages as u64;
            figures.queued_bytes += held.bytes as u64;
            let (receiving, inflight) = mailbox.under_way();
            figures.inflight += u64::from(inflight);
            let (rows, row_bytes) = mailbox.rows_and_bytes();
            let grow = |most: &mut u64, value: u64| *most = value.max(*most);
            grow(&mut most.receiving, receiving.into());
            grow(&mut most.inflight, inflight.into());
            grow(&mut most.subscriptions, mailbox.wanted.len() as u64);
            grow(&mut most.queue_messages, held.fuller_messages as u64);
            grow(&mut most.queue_bytes, held.fuller_bytes as u64);
            grow(&mut most.rows, rows);
            grow(&mut most.row_bytes, row_bytes);
        }
        let (marks, marks_of_one) = self.core.counters.repeat_topics();
        let in_all = [
            self.budget.connections() as u64,
            self.budget.most_handshakes() as u64,
            marks,
            marks_of_one,
            self.core.counters.most_retained(),
        ];
        figures.quotas = quotas(&self.core.config.limits, figures, &most, in_all);
    }
}

/// All of them: a new one does not compile until it is here.
fn quotas(limits: &Limits, figures: &Figures, most: &Fullest, in_all: [u64; 5]) -> Vec<Quota> {
    let Limits {
        connections,
        handshakes_per_address,
        connect_bytes,
        packet_bytes,
        topic_bytes,
        topic_levels,
        receive_maximum,
        inflight,
        topic_aliases,
        sessions,
        subscriptions,
        subscriptions_in_all,
        queue_messages,
        queue_bytes,
        queued_bytes,
        session_rows,
        session_row_bytes,
        journal_rows,
        journal_bytes,
        retained,
        retained_per_client,
        retained_bytes,
        repeat_topics,
        repeat_topics_per_client,
    } = limits.clone();
    let [
        all_connections,
        handshakes,
        marks,
        marks_of_one,
        retained_of_one,
    ] = in_all;
    let used = |name, limit, used| Quota {
        name,
        limit,
        used: Some(used),
    };
    let one = |name, limit| Quota {
        name,
        limit,
        used: None,
    };
    let wide = |limit: usize| limit as u64;
    vec![
        used("connections", wide(connections), all_connections),
        used(
            "handshakes_per_address",
            wide(handshakes_per_address),
            handshakes,
        ),
        one("connect_bytes", wide(connect_bytes)),
        one("packet_bytes", wide(packet_bytes)),
        one("topic_bytes", wide(topic_bytes)),
        one("topic_levels", wide(topic_levels)),
        used("receive_maximum", receive_maximum.into(), most.receiving),
        used("inflight", inflight.into(), most.inflight),
        one("topic_aliases", topic_aliases.into()),
        used("sessions", wide(sessions), figures.sessions),
        used("subscriptions", wide(subscriptions), most.subscriptions),
        used(
            "subscriptions_in_all",
            wide(subscriptions_in_all),
            figures.subscriptions,
        ),
        used("queue_messages", wide(queue_messages), most.queue_messages),
        used("queue_bytes", wide(queue_bytes), most.queue_bytes),
        used("queued_bytes", wide(queued_bytes), figures.queued_bytes),
        used("session_rows", session_rows, most.rows),
        used("session_row_bytes", session_row_bytes, most.row_bytes),
        used("journal_rows", journal_rows, figures.journal_rows),
        used("journal_bytes", journal_bytes, figures.journal_bytes),
        used("retained", wide(retained), figures.retained),
        used(
            "retained_per_client",
            wide(retained_per_client),
            retained_of_one,
        ),
        used(
            "retained_bytes",
            wide(retained_bytes),
            figures.retained_bytes,
        ),
        used("repeat_topics", wide(repeat_topics), marks),
        used(
            "repeat_topics_per_client",
            wide(repeat_topics_per_client),
            marks_of_one,
        ),
    ]
}
