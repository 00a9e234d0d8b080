//! After the commit, or after its failure: who is delivered to and who is answered.
//!
//! Part of `schema`, on the writer thread. Nothing here waits: answers go to mailboxes and oneshots.

use std::sync::Arc;

use holdfast_store::StoreError;

use super::accept::note_refusal;
use super::handing::Handing;
use super::op::{Entry, Op, Reply, Verdict};
use super::schema::Ledger;
use crate::codec::code;
use crate::exchange::{Batch, Delivery, Outcome};
use crate::{Event, Qos};

impl Ledger {
    /// After the commit: delivers, fills retained slots, answers.
    fn accepted(&self, mut entries: Vec<Entry>, reply: Reply) {
        let answers = answers(&entries);
        if entries.iter().any(|entry| entry.verdict != Verdict::Taken) {
            self.tell_refused(&entries);
        }
        let verdicts = match reply {
            Reply::Caller(_) => entries.iter().map(|entry| entry.verdict).collect(),
            Reply::None | Reply::Mailbox(_) => Vec::new(),
        };
        self.deliver(&mut entries);
        match reply {
            Reply::None => {}
            Reply::Mailbox(mailbox) => mailbox.push_outcome(Outcome::Codes(answers)),
            Reply::Caller(answer) => {
                let _ = answer.send(Ok(verdicts));
            }
        }
    }

    /// Counts what was not taken.
    fn tell_refused(&self, entries: &[Entry]) {
        let count = |verdict| {
            let such = entries.iter().filter(|entry| entry.verdict == verdict);
            such.count() as u64
        };
        let full = count(Verdict::Full);
        if let Some(first) = entries.iter().find(|entry| entry.verdict == Verdict::Full) {
            self.core.counters.refused_full(full);
            self.core.tell(Event::JournalFull {
                topic: Arc::clone(&first.message.topic),
                count: full,
            });
        }
        self.core.counters.repeats(count(Verdict::Repeat));
    }

    fn deliver(&self, entries: &mut [Entry]) {
        let goes_on = |last: &Entry, entry: &Entry| {
            last.verdict == entry.verdict
                && Arc::ptr_eq(&last.route, &entry.route)
                && last.message.qos == entry.message.qos
                && last.publisher == entry.publisher
                && last.only.is_none()
                && entry.only.is_none()
        };
        for run in entries.chunk_by_mut(goes_on) {
            if run[0].verdict == Verdict::Taken {
                self.deliver_run(run);
            }
        }
    }

    /// Entries of one route and QoS: live to those who take them so, rows to their readers.
    fn deliver_run(&self, run: &mut [Entry]) {
        let Some(first) = run.first() else { return };
        // First of all: who has seen the message may look for it in its slot.
        for entry in &*run {
            if entry.message.retain && entry.only.is_none() {
                self.core.retained.set(&entry.message);
            }
        }
        if first.only.is_none() && first.route.live(first.message.qos) {
            let messages = run.iter().map(|entry| Arc::clone(&entry.message)).collect();
            self.core
                .deliver(&first.route, first.publisher, messages, false, None);
        }
        let mut handing = Handing::with_room_for(run.len());
        for entry in run {
            for (mailbox, options) in &entry.live_picks {
                let batch = Arc::new(Batch::new(vec![Arc::clone(&entry.message)]));
                let delivery = Delivery::new(&batch, 0..1, options, false);
                self.core.put(mailbox, delivery, None);
            }
            handing.take(entry);
        }
        handing.end();
    }

    /// The disk has no room: nothing of these is in.
    fn refused(&self, mut entries: Vec<Entry>, reply: Reply) {
        for entry in &mut entries {
            entry.verdict = Verdict::Full;
        }
        self.accepted(entries, reply);
    }

    pub(super) fn fail(&self, op: Op, failure: &StoreError) {
        let failure = failure.clone();
        if let Op::Accept { entries, .. } = &op {
            entries.iter().for_each(|entry| note_refusal(entry, true));
        }
        let op = match op {
            // Refused before anything of it was written: that is known, and the client is told so.
            Op::Accept { entries, reply } if matches!(failure, StoreError::Full) => {
                return self.refused(entries, reply);
            }
            op => op,
        };
        match op {
            Op::Accept { entries, reply } => match reply {
                Reply::None => {}
                Reply::Mailbox(mailbox) => {
                    let waiting = answers(&entries).len();
                    mailbox.push_outcome(Outcome::Failed(waiting));
                }
                Reply::Caller(answer) => {
                    let _ = answer.send(Err(failure));
                }
            },
            // A row whose release is not in stays as it was: after a reconnect it is sent again.
            Op::Forget { mailbox, .. } | Op::Release { mailbox, .. } | Op::Sent { mailbox, .. } => {
                mailbox.push_outcome(Outcome::NotCompleted);
            }
            Op::Settle { answer, .. } | Op::Drop { answer, .. } | Op::Will { answer, .. } => {
                if let Some(answer) = answer {
                    let _ = answer.send(Err(failure));
                }
            }
            Op::Open { answer, .. } => {
                if let Some(answer) = answer {
                    let _ = answer.send(Err(failure));
                }
            }
            Op::Subscriptions { answer, .. } => {
                let _ = answer.send(Err(failure));
            }
            Op::Left { .. } | Op::NoWill { .. } | Op::Unretain { .. } | Op::Tick => {}
        }
    }

    pub(super) fn answer(&self, op: Op) {
        match op {
            Op::Accept { entries, reply } => self.accepted(entries, reply),
            Op::Settle { answer, .. } | Op::Drop { answer, .. } | Op::Will { answer, .. } => {
                if let Some(answer) = answer {
                    let _ = answer.send(Ok(()));
                }
            }
            Op::Sent { up_to, mailbox, .. } => {
                mailbox.set_marked(up_to);
                mailbox.push_outcome(Outcome::Marked);
            }
            Op::Release { rows, mailbox, .. } => mailbox.push_outcome(Outcome::Released(rows)),
            Op::Forget { codes, mailbox, .. } => mailbox.push_outcome(Outcome::Completed(codes)),
            Op::Open {
                id,
                mailbox,
                answer,
                ..
            } => {
                mailbox.set_consumer(id);
                if let (Some(answer), Some(id)) = (answer, id) {
                    let _ = answer.send(Ok(id));
                }
            }
            Op::Subscriptions { answer, .. } => {
                let _ = answer.send(Ok(()));
            }
            Op::Unretain { topics } => {
                let now = self.core.clock.now();
                for topic in topics {
                    self.core.retained.remove_expired(&topic, now);
                }
            }
            Op::Left { .. } | Op::NoWill { .. } | Op::Tick => {}
        }
    }
}

/// One code per entry that somebody waits for.
fn answers(entries: &[Entry]) -> Vec<u8> {
    let mut answers = Vec::with_capacity(entries.len());
    let waited_for = entries
        .iter()
        .filter(|entry| entry.message.qos != Qos::AtMostOnce && entry.only.is_none());
    answers.extend(waited_for.map(|entry| match entry.verdict {
        Verdict::Full => code::QUOTA,
        Verdict::Taken if entry.route.is_empty() => code::NO_MATCHING_SUBSCRIBERS,
        Verdict::Taken | Verdict::Repeat => code::SUCCESS,
    }));
    answers
}
