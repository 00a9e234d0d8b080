//! What one side has of a site's log: the highest number without a gap per (origin, epoch).

use std::collections::BTreeMap;

use super::entry::{EntryId, RecordFault};
use crate::{
    id::ServerId,
    wire::cbor::{self, Reader},
};

/// Most (origin, epoch) pairs in one cursor: every enrolment a site ever had.
pub const MAX_ORIGINS: usize = 1024;
/// Longest id as text.
const MAX_ID: usize = 80;

/// Where a side stands in a site's log. "What have you after this?" is the sync request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    seen: BTreeMap<(ServerId, u32), u64>,
}

/// What a cursor says to an entry's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The next one: take it, then [`Cursor::advance`].
    Next,
    /// Already here: drop it.
    Known,
    /// Numbers before it are missing: drop it and ask again from the cursor.
    Gap {
        /// The number that is wanted.
        wanted: u64,
    },
}

/// A run of entries of one origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub origin: ServerId,
    /// Of which enrolment.
    pub epoch: u32,
    /// First number.
    pub first: u64,
    /// Last number.
    pub last: u64,
}

impl Cursor {
    /// The highest number here of that origin and epoch, 0 for none.
    #[must_use]
    pub fn after(&self, origin: &ServerId, epoch: u32) -> u64 {
        self.seen
            .get(&(origin.clone(), epoch))
            .copied()
            .unwrap_or(0)
    }

    /// Whether an entry of that number is the next, known, or too far ahead.
    #[must_use]
    pub fn admits(&self, id: &EntryId) -> Admission {
        let wanted = self.after(&id.origin, id.epoch).saturating_add(1);
        match id.seq.cmp(&wanted) {
            std::cmp::Ordering::Less => Admission::Known,
            std::cmp::Ordering::Equal => Admission::Next,
            std::cmp::Ordering::Greater => Admission::Gap { wanted },
        }
    }

    /// Moves past an entry if it is the next one; tells what it was.
    pub fn advance(&mut self, id: &EntryId) -> Admission {
        let admission = self.admits(id);
        if admission == Admission::Next {
            self.seen.insert((id.origin.clone(), id.epoch), id.seq);
        }
        admission
    }

    /// What this side has and `other` lacks, in order of origin and epoch.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Vec<Span> {
        let spans = self.seen.iter().map(|((origin, epoch), last)| Span {
            origin: origin.clone(),
            epoch: *epoch,
            first: other.after(origin, *epoch).saturating_add(1),
            last: *last,
        });
        spans.filter(|span| span.first <= span.last).collect()
    }

    /// All pairs of origin and epoch with their highest number.
    pub fn iter(&self) -> impl Iterator<Item = (&ServerId, u32, u64)> {
        self.seen
            .iter()
            .map(|((origin, epoch), seq)| (origin, *epoch, *seq))
    }

    /// The CBOR text: `[[origin, epoch, seq], ...]`.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(self.seen.len());
            for ((origin, epoch), seq) in &self.seen {
                w.array(3)
                    .text(origin.as_str())
                    .uint((*epoch).into())
                    .uint(*seq);
            }
        })
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`RecordFault`], blame: the peer.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, RecordFault> {
        let mut r = Reader::new(bytes)?;
        let mut seen = BTreeMap::new();
        for _ in 0..r.array_len(MAX_ORIGINS)? {
            r.array(3)?;
            let origin = r.text(MAX_ID)?.parse()?;
            let repeated = seen.insert((origin, r.small()?), r.uint()?).is_some();
            if repeated {
                return Err(cbor::CborError::Value("origin named twice").into());
            }
        }
        r.end()?;
        Ok(Self { seen })
    }
}

/// A cursor as a store keeps it: (origin, epoch, highest number without a gap).
impl FromIterator<(ServerId, u32, u64)> for Cursor {
    fn from_iter<I: IntoIterator<Item = (ServerId, u32, u64)>>(heads: I) -> Self {
        Self {
            seen: heads
                .into_iter()
                .map(|(origin, epoch, seq)| ((origin, epoch), seq))
                .collect(),
        }
    }
}
