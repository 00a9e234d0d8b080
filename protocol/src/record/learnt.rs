//! What became known of the time afterwards: how far the times of a server's own entries are off.
//!
//! Written by `cps` when the time becomes known of entries that were made on untrusted time in the
//! same run of the machine, where a counter that nobody moves went on. Entries of earlier runs stay
//! as they are: of them only what stands before and after is known. Entries are never changed: this
//! is one of its own, and speaks of the author's own log alone, and only of what came before it.

use super::entry::{Entry, EntryId, RecordFault};
use crate::{
    time::Time,
    wire::cbor::{CborError, Reader, Writer},
};

/// Most spans in one entry.
pub const MAX_SPANS: usize = 256;

/// The times of these entries of the author's log, enrolment and site are off by so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LearntSpan {
    /// Number of the first.
    pub first: u64,
    /// Number of the last.
    pub last: u64,
    /// What to add to what they say, in seconds.
    pub shift: i64,
}

impl LearntSpan {
    /// Whether it speaks of an entry of that number.
    #[must_use]
    pub fn holds(&self, seq: u64) -> bool {
        (self.first..=self.last).contains(&seq)
    }

    /// `[first, last, shift]`.
    fn encode(&self, w: &mut Writer) {
        w.array(3).uint(self.first).uint(self.last).int(self.shift);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, RecordFault> {
        r.array(3)?;
        let span = Self {
            first: r.uint()?,
            last: r.uint()?,
            shift: r.int()?,
        };
        if span.first == 0 || span.last < span.first {
            return Err(CborError::Value("span of entries").into());
        }
        Ok(span)
    }
}

/// Which of the spans an entry's author may speak of: what came before it, by a clock that knows.
pub fn spans_of<'a>(
    entry: &Entry,
    spans: &'a [LearntSpan],
) -> impl Iterator<Item = &'a LearntSpan> + use<'a> {
    let (seq, knows) = (entry.id.seq, entry.at.is_authenticated());
    spans.iter().filter(move |span| knows && span.last < seq)
}

/// The real time of an entry, by what was learnt of its log; its own where that was known at once.
/// Of two that contradict each other the one that was written first counts.
#[must_use]
pub fn real_time(entry: &Entry, learnt: &[(EntryId, LearntSpan)]) -> Option<Time> {
    if entry.at.is_authenticated() {
        return Some(entry.at);
    }
    let same_log = |by: &EntryId| (&by.origin, by.epoch) == (&entry.id.origin, entry.id.epoch);
    let spans = learnt
        .iter()
        .filter(|(by, span)| same_log(by) && by.seq > entry.id.seq && span.holds(entry.id.seq));
    let (_, span) = spans.min_by_key(|(by, _)| by.seq)?;
    Some(entry.at.learnt(span.shift))
}

pub(super) fn encode(spans: &[LearntSpan], w: &mut Writer) {
    w.array(1).array(spans.len());
    spans.iter().for_each(|span| span.encode(w));
}

pub(super) fn decode(r: &mut Reader<'_>) -> Result<Vec<LearntSpan>, RecordFault> {
    let len = r.array_len(MAX_SPANS)?;
    (0..len).map(|_| LearntSpan::decode(r)).collect()
}
