//! The record of one batch in the log: what changes, in the journal's own words.
//!
//! Written by `log`, read by `recall` at the opening. The decoder gives `None` on anything it did not write.

use bytes::{Buf as _, BufMut as _};

use super::recent::Mark;
use super::record::{self, Claim, put_bytes, slice, text};
use crate::Message;

/// What every record says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) next_row: u64,
    pub(super) broker_seconds: u64,
    pub(super) wall_seconds: u64,
}

/// Bytes of a [`Head`].
pub(super) const HEAD: usize = 24;
/// Bytes of an item beside its content, at most.
pub(super) const ITEM: usize = 1 + 4 + 8 + 8 + 8;

const ROW: u8 = 1;
const MESSAGE: u8 = 2;
const SETTLED: u8 = 3;
const RELEASED: u8 = 4;
const MARK: u8 = 5;
const RECEIVED: u8 = 6;
const FORGOTTEN: u8 = 7;
const SENT: u8 = 8;

/// One change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// A consumer's claim on a row; a message of several comes first.
    Row {
        consumer: u32,
        row: u64,
        claim: &'a [u8],
    },
    Message {
        row: u64,
        message: &'a [u8],
    },
    Settled {
        consumer: u32,
        rows: Rows<'a>,
    },
    Released {
        consumer: u32,
        rows: Rows<'a>,
    },
    Mark {
        sender: &'a str,
        topic: &'a str,
        mark: Mark,
    },
    /// An incoming QoS 2 packet id is in, or forgotten.
    Received {
        consumer: u32,
        packet_id: u16,
        is_in: bool,
    },
    Sent {
        consumer: u32,
        up_to: u64,
    },
}

/// Row numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows<'a>(&'a [u8]);

impl Iterator for Rows<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }
}

/// A record that is being written.
#[derive(Debug)]
pub(super) struct Telling<'a> {
    out: &'a mut Vec<u8>,
    head: usize,
}

impl<'a> Telling<'a> {
    /// Begins behind what is in `out`.
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        let head = out.len();
        out.put_bytes(0, HEAD);
        Self { out, head }
    }

    pub(super) fn end(self, head: Head) {
        let mut place = &mut self.out[self.head..];
        place.put_u64(head.next_row);
        place.put_u64(head.broker_seconds);
        place.put_u64(head.wall_seconds);
    }

    pub(super) fn row(&mut self, consumer: u32, row: u64, claim: &Claim<'_>) {
        self.out.put_u8(ROW);
        self.out.put_u32(consumer);
        self.out.put_u64(row);
        self.sized(|out| record::append_claim(out, claim));
    }

    pub(super) fn message(&mut self, row: u64, message: &Message) {
        self.out.put_u8(MESSAGE);
        self.out.put_u64(row);
        self.sized(|out| record::append_message(out, message));
    }

    pub(super) fn settled(&mut self, consumer: u32, rows: &[u64]) {
        self.rows(SETTLED, consumer, rows);
    }

    pub(super) fn released(&mut self, consumer: u32, rows: &[u64]) {
        self.rows(RELEASED, consumer, rows);
    }

    pub(super) fn mark(&mut self, sender: &str, topic: &str, mark: Mark) {
        self.out.put_u8(MARK);
        put_bytes(self.out, sender.as_bytes());
        put_bytes(self.out, topic.as_bytes());
        self.out.put_u64(mark.0);
        self.out.put_u64(mark.1);
    }

    pub(super) fn received(&mut self, consumer: u32, packet_id: u16, is_in: bool) {
        self.out.put_u8(if is_in { RECEIVED } else { FORGOTTEN });
        self.out.put_u32(consumer);
        self.out.put_u16(packet_id);
    }

    pub(super) fn sent(&mut self, consumer: u32, up_to: u64) {
        self.out.put_u8(SENT);
        self.out.put_u32(consumer);
        self.out.put_u64(up_to);
    }

    fn rows(&mut self, kind: u8, consumer: u32, rows: &[u64]) {
        self.out.put_u8(kind);
        self.out.put_u32(consumer);
        self.sized(|out| rows.iter().for_each(|row| out.put_u64(*row)));
    }

    /// The length of what `fill` puts in, and that.
    fn sized(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let at = self.out.len();
        self.out.put_u32(0);
        fill(self.out);
        let length = u32::try_from(self.out.len() - at - 4).expect("bounded by the log");
        self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

pub(super) fn head(record: &mut &[u8]) -> Option<Head> {
    Some(Head {
        next_row: record.try_get_u64().ok()?,
        broker_seconds: record.try_get_u64().ok()?,
        wall_seconds: record.try_get_u64().ok()?,
    })
}

/// The next item of a record that has some left.
pub(super) fn item<'a>(record: &mut &'a [u8]) -> Option<Item<'a>> {
    Some(match record.try_get_u8().ok()? {
        ROW => Item::Row {
            consumer: record.try_get_u32().ok()?,
            row: record.try_get_u64().ok()?,
            claim: slice(record)?,
        },
        MESSAGE => Item::Message {
            row: record.try_get_u64().ok()?,
            message: slice(record)?,
        },
        SETTLED => Item::Settled {
            consumer: record.try_get_u32().ok()?,
            rows: rows(record)?,
        },
        RELEASED => Item::Released {
            consumer: record.try_get_u32().ok()?,
            rows: rows(record)?,
        },
        MARK => Item::Mark {
            sender: text(record)?,
            topic: text(record)?,
            mark: (record.try_get_u64().ok()?, record.try_get_u64().ok()?),
        },
        kind @ (RECEIVED | FORGOTTEN) => Item::Received {
            consumer: record.try_get_u32().ok()?,
            packet_id: record.try_get_u16().ok()?,
            is_in: kind == RECEIVED,
        },
        SENT => Item::Sent {
            consumer: record.try_get_u32().ok()?,
            up_to: record.try_get_u64().ok()?,
        },
        _ => return None,
    })
}

fn rows<'a>(record: &mut &'a [u8]) -> Option<Rows<'a>> {
    let bytes = slice(record)?;
    (bytes.len() % size_of::<u64>() == 0).then_some(Rows(bytes))
}

#[cfg(test)]
#[path = "told/tests.rs"]
mod tests;
