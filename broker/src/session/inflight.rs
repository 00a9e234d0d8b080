//! What was sent to a client with QoS 1 or 2 and is not acknowledged yet, in order.
//!
//! Pure. A row of the journal determines its packet id, so that after a restart the same message goes
//! out under the same id without the id having been stored; live messages count up. The message itself
//! is not kept: a row is read again when it has to be sent again, and a session without rows ends with
//! its connection. Only what another member of a shared subscription is to have then is held.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::rare::Rare;
use crate::{Message, Qos};

/// One message on its way.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) packet_id: u16,
    pub(crate) qos: Qos,
    pub(crate) stage: Stage,
    /// The journal's row, when it has one.
    pub(crate) row: Option<u64>,
    /// It came by a shared subscription.
    pub(crate) shared: bool,
    /// For another member, should this one go without an answer: QoS 1, and nowhere else.
    pub(crate) kept: Option<Kept>,
}

/// A message that is held until it is acknowledged, with the shared subscription it came by.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) group: Arc<str>,
    pub(crate) message: Arc<Message>,
}

impl Kept {
    fn weight(&self) -> u32 {
        u32::try_from(self.message.weight()).unwrap_or(u32::MAX)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// PUBLISH is out: PUBACK or PUBREC is to come.
    Published,
    /// PUBREC came; the journal is writing it down.
    Releasing,
    /// PUBREL is out: PUBCOMP is to come.
    Released,
}

/// What an acknowledgement of the client means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Done with; the row may go.
    Done(Option<u64>),
    /// PUBREC for a row: write it down, then PUBREL.
    Release(u64),
    /// PUBREC without a row, or again: PUBREL at once.
    Pubrel,
    /// PUBREC is being written down already.
    Nothing,
    /// No such packet id.
    Unknown,
    /// The packet id is under way, and this is not the answer to it.
    Wrong,
}

impl Sent {
    fn is_shared_row(&self) -> bool {
        self.shared && self.row.is_some()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Inflight {
    sent: Rare<VecDeque<Sent>>,
    /// Ids of an earlier connection that this one has not been sent yet, in order.
    waiting: Rare<VecDeque<u16>>,
    last_id: u16,
    /// Bytes of the messages that are held here.
    kept: u32,
}

impl Inflight {
    /// How many are on their way on this connection.
    pub(crate) fn open(&self) -> usize {
        self.sent.len() - self.waiting.len()
    }

    /// Whether some of an earlier connection are still to be sent again.
    pub(crate) fn resuming(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next one to be sent again.
    pub(crate) fn first_again(&self) -> Option<&Sent> {
        let packet_id = *self.waiting.front()?;
        self.sent.get(self.position(packet_id)?)
    }

    /// It is sent again: it is on its way from now on.
    pub(crate) fn sent_again(&mut self) {
        self.waiting.pop_front();
    }

    /// Forgets a message that may not be sent again.
    pub(crate) fn discard(&mut self, packet_id: u16) {
        let found = self.position(packet_id);
        self.take(found);
    }

    /// QoS 1 messages of shared subscriptions that were not acknowledged and that the journal does not
    /// have: another member gets them when the session ends. Those of QoS 2 may not be sent to another
    /// [MQTT-4.8.2-5].
    pub(crate) fn take_shared(&mut self) -> Vec<Kept> {
        let kept = self.sent.iter_mut().filter_map(|sent| sent.kept.take());
        let found = kept.collect();
        self.kept = 0;
        self.sent.retain(|sent| !sent.shared || sent.row.is_some());
        found
    }

    /// Whether the journal has some that came by shared subscriptions.
    pub(crate) fn has_shared_rows(&self) -> bool {
        self.sent.iter().any(Sent::is_shared_row)
    }

    /// Forgets those of shared subscriptions that the journal has too.
    pub(crate) fn forget_shared_rows(&mut self) {
        self.sent.retain(|sent| !sent.is_shared_row());
    }

    /// Bytes of the messages that are held here.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept as usize
    }

    /// The packet id of a row.
    pub(crate) fn id_of_row(row: u64) -> u16 {
        let index = row.wrapping_sub(1) % u64::from(u16::MAX);
        u16::try_from(index).expect("a remainder of 65,535") + 1
    }

    pub(crate) fn uses(&self, packet_id: u16) -> bool {
        self.sent.iter().any(|sent| sent.packet_id == packet_id)
    }

    /// The next free packet id for a message without a row.
    pub(crate) fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if !self.uses(self.last_id) {
                return self.last_id;
            }
        }
    }

    pub(crate) fn push(&mut self, sent: Sent) {
        self.kept += sent.kept.as_ref().map_or(0, Kept::weight);
        self.sent.push_back(sent);
    }

    /// PUBACK, or PUBREC with an error code: the message is done with.
    pub(crate) fn acknowledged(&mut self, packet_id: u16, qos: Qos) -> Step {
        let Some(index) = self.position(packet_id) else {
            return Step::Unknown;
        };
        let sent = &self.sent[index];
        if sent.qos != qos {
            return Step::Wrong;
        }
        let open = sent.stage == Stage::Published;
        self.take(open.then_some(index))
    }

    /// PUBREC with success.
    pub(crate) fn received(&mut self, packet_id: u16) -> Step {
        let Some(index) = self.position(packet_id) else {
            return Step::Unknown;
        };
        // The client has it: it need not be sent again.
        self.waiting.retain(|waiting| *waiting != packet_id);
        let sent = &mut self.sent[index];
        match (sent.qos, sent.stage, sent.row) {
            (Qos::ExactlyOnce, Stage::Published, Some(row)) => {
                sent.stage = Stage::Releasing;
                Step::Release(row)
            }
            (Qos::ExactlyOnce, Stage::Published, None) => {
                sent.stage = Stage::Released;
                Step::Pubrel
            }
            (Qos::ExactlyOnce, Stage::Releasing, _) => Step::Nothing,
            (Qos::ExactlyOnce, Stage::Released, _) => Step::Pubrel,
            _ => Step::Wrong,
        }
    }

    /// The journal has written a release down: the packet id for PUBREL.
    pub(crate) fn released(&mut self, row: u64) -> Option<u16> {
        let sent = self.sent.iter_mut().find(|sent| sent.row == Some(row))?;
        sent.stage = Stage::Released;
        Some(sent.packet_id)
    }

    /// PUBCOMP.
    pub(crate) fn completed(&mut self, packet_id: u16) -> Step {
        let Some(index) = self.position(packet_id) else {
            return Step::Unknown;
        };
        match self.sent[index].stage {
            Stage::Released => self.take(Some(index)),
            Stage::Published | Stage::Releasing => Step::Wrong,
        }
    }

    /// The session goes on on a new connection: all is to be sent again [MQTT-4.4.0-1]. When the old
    /// one ended in the middle of a release, the client will hear PUBLISH again.
    pub(crate) fn resume(&mut self) {
        self.waiting.clear();
        if !self.sent.is_empty() {
            *self.waiting = self.sent.iter().map(|sent| sent.packet_id).collect();
        }
        for sent in self.sent.iter_mut() {
            if sent.stage == Stage::Releasing {
                sent.stage = Stage::Published;
            }
        }
    }

    fn position(&self, packet_id: u16) -> Option<usize> {
        self.sent
            .iter()
            .position(|sent| sent.packet_id == packet_id)
    }

    fn take(&mut self, found: Option<usize>) -> Step {
        match found.and_then(|index| self.sent.remove(index)) {
            Some(sent) => {
                self.kept -= sent.kept.as_ref().map_or(0, Kept::weight);
                self.waiting.retain(|waiting| *waiting != sent.packet_id);
                Step::Done(sent.row)
            }
            None => Step::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(packet_id: u16, qos: Qos, row: Option<u64>) -> Sent {
        Sent {
            packet_id,
            qos,
            stage: Stage::Published,
            row,
            shared: false,
            kept: None,
        }
    }

    #[test]
    fn a_row_gives_the_same_id_for_ever_and_never_zero() {
        assert_eq!(Inflight::id_of_row(1), 1);
        assert_eq!(Inflight::id_of_row(65_535), 65_535);
        assert_eq!(Inflight::id_of_row(65_536), 1);
    }

    #[test]
    fn mqtt_2_2_1_4_a_free_id_is_one_that_is_not_in_use() {
        let mut inflight = Inflight::default();
        inflight.push(sent(1, Qos::AtLeastOnce, None));
        inflight.last_id = u16::MAX;
        assert_eq!(inflight.free_id(), 2);
    }

    #[test]
    fn mqtt_4_3_3_a_qos_2_message_is_done_only_after_its_pubcomp() {
        let mut inflight = Inflight::default();
        inflight.push(sent(7, Qos::ExactlyOnce, Some(6)));
        assert_eq!(inflight.completed(7), Step::Wrong);
        assert_eq!(inflight.acknowledged(7, Qos::AtLeastOnce), Step::Wrong);
        assert_eq!(inflight.received(7), Step::Release(6));
        assert_eq!(inflight.received(7), Step::Nothing);
        assert_eq!(inflight.released(6), Some(7));
        assert_eq!(inflight.received(7), Step::Pubrel);
        assert_eq!(inflight.completed(7), Step::Done(Some(6)));
        assert_eq!(inflight.open(), 0);
    }

    #[test]
    fn mqtt_4_4_0_1_what_waits_to_be_sent_again_takes_no_room_until_it_is() {
        let mut inflight = Inflight::default();
        inflight.push(sent(1, Qos::AtLeastOnce, None));
        inflight.push(sent(2, Qos::AtLeastOnce, None));
        inflight.push(sent(3, Qos::ExactlyOnce, None));
        assert_eq!((inflight.open(), inflight.resuming()), (3, false));
        inflight.resume();
        assert_eq!((inflight.open(), inflight.resuming()), (0, true));
        assert_eq!(inflight.first_again().unwrap().packet_id, 1);
        inflight.sent_again();
        // Acknowledged before it was sent again: it is not sent again.
        inflight.acknowledged(2, Qos::AtLeastOnce);
        assert_eq!(inflight.open(), 1);
        assert_eq!(inflight.first_again().unwrap().packet_id, 3);
        inflight.discard(3);
        assert_eq!((inflight.open(), inflight.resuming()), (1, false));
        assert!(inflight.first_again().is_none());
    }

    #[test]
    fn a_qos_1_message_is_done_with_its_puback() {
        let mut inflight = Inflight::default();
        inflight.push(sent(3, Qos::AtLeastOnce, None));
        assert_eq!(inflight.received(3), Step::Wrong);
        assert_eq!(inflight.acknowledged(3, Qos::AtLeastOnce), Step::Done(None));
        assert_eq!(inflight.acknowledged(3, Qos::AtLeastOnce), Step::Unknown);
    }
}
