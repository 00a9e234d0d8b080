//! How long messages took from their publisher's socket to this client's.
//!
//! Noted by `outbound` when messages become bytes, told to the counters by `run` when the socket has
//! taken those bytes. One note for what one read of a publisher brought; an idle connection holds none.

use crate::metrics::Way;
use crate::rare::Rare;

/// Notes that wait for the socket at one time; what comes then is added to the last.
const NOTES: usize = 128;

/// Messages that came together and go together.
#[derive(Debug)]
struct Note {
    /// Microseconds of the broker's running time when they came.
    came: i64,
    way: Way,
    messages: u32,
    /// Bytes of output that the socket has to take until all of them are out; `MAKING` = not known yet.
    left: usize,
}

/// The bytes are not in the connection's output yet.
const MAKING: usize = usize::MAX;

/// What is on its way to the socket.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    notes: Rare<Vec<Note>>,
}

impl Delivered {
    /// So many messages that came at that time have become bytes.
    pub(super) fn note(&mut self, came: i64, way: Way, messages: usize) {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        let full = self.notes.len() >= NOTES;
        if let Some(last) = self.notes.last_mut()
            && last.left == MAKING
            && (full || (last.came == came && last.way == way))
        {
            last.messages = last.messages.saturating_add(messages);
            return;
        }
        if full {
            // Slower than anything these times are asked for.
            return;
        }
        self.notes.push(Note {
            came,
            way,
            messages,
            left: MAKING,
        });
    }

    /// What was noted since the last call ends with these bytes of output.
    pub(super) fn place(&mut self, output: usize) {
        if self.is_empty() {
            return;
        }
        let made = self.notes.iter_mut().rev();
        for note in made.take_while(|note| note.left == MAKING) {
            note.left = output;
        }
    }

    /// The socket took so many bytes: tells of all that is out by now.
    pub(super) fn written(&mut self, bytes: usize, mut tell: impl FnMut(i64, Way, u32)) {
        if self.is_empty() {
            return;
        }
        let mut out = 0;
        for note in self.notes.iter_mut().filter(|note| note.left != MAKING) {
            note.left = note.left.saturating_sub(bytes);
            if note.left == 0 {
                out += 1;
                tell(note.came, note.way, note.messages);
            }
        }
        self.notes.drain(..out);
        if self.notes.is_empty() {
            *self.notes = Vec::new();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(delivered: &mut Delivered, bytes: usize) -> Vec<(i64, u32)> {
        let mut told = Vec::new();
        delivered.written(bytes, |came, _, messages| told.push((came, messages)));
        told
    }

    #[test]
    fn a_message_is_told_of_when_its_last_byte_is_out_and_once() {
        let mut delivered = Delivered::default();
        delivered.note(1, Way::Live, 3);
        delivered.note(1, Way::Live, 2);
        delivered.note(2, Way::Live, 1);
        delivered.note(2, Way::Row, 1);
        delivered.place(100);
        assert_eq!(written(&mut delivered, 99), []);
        delivered.note(3, Way::Live, 1);
        delivered.place(51);
        assert_eq!(written(&mut delivered, 1), [(1, 5), (2, 1), (2, 1)]);
        assert_eq!(written(&mut delivered, 50), [(3, 1)]);
        assert!(delivered.is_empty());
        assert_eq!(written(&mut delivered, 50), []);
    }

    #[test]
    fn a_socket_that_takes_nothing_costs_a_bounded_number_of_notes() {
        let mut delivered = Delivered::default();
        for came in 0..10 * NOTES {
            delivered.note(i64::try_from(came).unwrap(), Way::Live, 1);
            if came % 3 == 0 {
                delivered.place(came + 1);
            }
        }
        assert_eq!(delivered.notes.len(), NOTES);
    }
}
