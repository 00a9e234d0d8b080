//! Between a client's packets and the journal: what is handed in, what comes back, and the
//! acknowledgements that wait for it; also what waits for busy receivers.
//!
//! Called by `run` between two awaits; does no I/O itself.

use std::sync::Arc;
use std::time::Instant;

use super::inbound::Client;
use crate::codec::{self, AckKind, code};
use crate::exchange::{Outcome, Rest, Route};
use crate::journal::{Entry, Op, Reply};
use crate::{CutReason, Qos};

impl Client {
    /// Delivers what had to wait; true when nothing waits any more.
    pub(super) fn settle_rest(&mut self) -> bool {
        let core = &self.core;
        self.rest.retain_mut(|rest| match rest.settle() {
            None => true,
            Some(lost) => {
                core.lost(&rest.mailbox, lost);
                false
            }
        });
        self.rest.is_empty()
    }

    /// A live receiver of what goes to the journal may be busy: it is waited for like the others.
    fn mind_busy(&mut self, entries: &[Entry]) {
        let mut last: Option<&Arc<Route>> = None;
        for entry in entries {
            if last.is_some_and(|last| Arc::ptr_eq(last, &entry.route)) {
                continue;
            }
            last = Some(&entry.route);
            let busy = entry.route.targets.iter().map(|target| &target.mailbox);
            for mailbox in busy.filter(|mailbox| mailbox.tight()) {
                if mailbox.connected() && mailbox.patience().worth_waiting() {
                    self.rest.push(Rest::new(mailbox, None));
                }
            }
        }
    }

    /// What is to be handed to the journal now, in this order.
    pub(super) fn operations(&mut self) -> Vec<Op> {
        self.end_run();
        let mut ops = Vec::new();
        if !self.entries.is_empty() {
            let entries = self.entries.take();
            self.mind_busy(&entries);
            // A retained QoS 0 message has no acknowledgement, but a later SUBSCRIBE of this
            // connection must find it.
            let waits = entries
                .iter()
                .any(|entry| entry.message.qos != Qos::AtMostOnce || entry.message.retain);
            if waits {
                self.outstanding += 1;
                self.handed.push_back(Instant::now());
            }
            ops.push(Op::Accept {
                entries,
                reply: if waits {
                    Reply::Mailbox(Arc::clone(&self.mailbox))
                } else {
                    Reply::None
                },
            });
        }
        let Some(consumer) = self.consumer() else {
            return ops;
        };
        let mailbox = &self.mailbox;
        if !self.settled.is_empty() {
            ops.push(Op::Settle {
                consumer,
                rows: self.settled.take(),
                answer: None,
            });
        }
        if !self.releasing.is_empty() {
            self.outstanding += 1;
            ops.push(Op::Release {
                consumer,
                rows: self.releasing.take(),
                mailbox: Arc::clone(mailbox),
            });
        }
        if let Some(up_to) = self.to_mark.take() {
            self.outstanding += 1;
            ops.push(Op::Sent {
                consumer,
                up_to,
                mailbox: Arc::clone(mailbox),
            });
        }
        if !self.forgotten.is_empty() {
            self.outstanding += 1;
            ops.push(Op::Forget {
                consumer,
                packet_ids: self.forgotten.take(),
                codes: Vec::new(),
                mailbox: Arc::clone(mailbox),
            });
        }
        ops
    }

    /// Takes what the journal says. A failed commit ends a 3.1.1 connection, which cannot be told.
    pub(super) fn outcomes(&mut self) -> Result<(), CutReason> {
        while let Some(outcome) = self.mailbox.next_outcome() {
            self.outstanding = self.outstanding.saturating_sub(1);
            if matches!(outcome, Outcome::Codes(_) | Outcome::Failed(_))
                && let Some(handed) = self.handed.pop_front()
            {
                self.core.counters.acknowledged_after(handed.elapsed());
            }
            match outcome {
                Outcome::Codes(codes) => self.fill_slots(&codes),
                Outcome::Completed(codes) => {
                    for code in codes {
                        if let Some(id) = self.completing.pop_front() {
                            codec::ack(&mut self.out, AckKind::Pubcomp, id, code, self.v5);
                        }
                    }
                }
                Outcome::Marked => {
                    let rows = self.unmarked.take();
                    self.send_stored(rows);
                }
                Outcome::Released(rows) => {
                    for row in rows {
                        if let Some(id) = self.held.inflight.released(row) {
                            codec::ack(&mut self.out, AckKind::Pubrel, id, 0, self.v5);
                        }
                    }
                }
                Outcome::Failed(count) if self.v5 && self.are_qos_1(count) => {
                    self.fill_slots(&vec![code::UNSPECIFIED; count]);
                }
                // The client comes back and goes on where the journal is: after a failed commit a
                // QoS 2 publish may be in all the same, and only its packet id can tell.
                Outcome::Failed(_) | Outcome::NotCompleted => return Err(CutReason::Journal),
            }
        }
        Ok(())
    }

    /// Shows how much is under way in both directions.
    pub(super) fn show_under_way(&self) {
        let receiving = self.slots.len() + self.held.received.len();
        let inflight = self.held.inflight.open();
        self.mailbox.set_under_way(receiving, inflight);
    }

    /// Whether the next `count` slots without an answer are all QoS 1.
    fn are_qos_1(&self, count: usize) -> bool {
        let mut waiting = self.slots.iter().filter(|slot| slot.code.is_none());
        waiting
            .by_ref()
            .take(count)
            .all(|slot| slot.qos == Qos::AtLeastOnce)
    }

    fn fill_slots(&mut self, codes: &[u8]) {
        let mut waiting = self.slots.iter_mut().filter(|slot| slot.code.is_none());
        for code in codes {
            if let Some(slot) = waiting.next() {
                slot.code = Some(*code);
            }
        }
        self.answer_slots();
    }

    /// Sends the acknowledgements at the head whose time has come.
    pub(super) fn answer_slots(&mut self) {
        while let Some(slot) = self.slots.front()
            && let Some(code) = slot.code
        {
            let (qos, id) = (slot.qos, slot.packet_id);
            self.slots.pop_front();
            if qos == Qos::ExactlyOnce && code < 0x80 {
                self.held.received.insert(id);
            }
            if !self.v5 && code == code::QUOTA {
                // 3.1.1 cannot say "no": it gets no acknowledgement, and may send again.
                continue;
            }
            let kind = if qos == Qos::ExactlyOnce {
                AckKind::Pubrec
            } else {
                AckKind::Puback
            };
            self.put_ack(kind, id, code);
        }
    }
}
