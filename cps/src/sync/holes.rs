//! Numbers that were passed over. An entry that is not authentic must not hold up the honest ones
//! behind it, and must not use up its number either: the number stays wanted, and an honest entry
//! that bears it is taken whenever it comes. Used by `sync` within one delivery.

use std::collections::BTreeSet;

use holdfast_protocol::id::SiteId;
use holdfast_protocol::record::{Cursor, EntryId};
use holdfast_store::StoreError;

use crate::registry::Writing;

/// Most numbers of one origin and enrolment that are wanted at once; beyond it what follows waits.
pub(super) const MOST: usize = 64;

/// What may be missing from one delivery.
#[derive(Debug)]
pub(super) struct Holes {
    site: SiteId,
    /// Deliveries that were no entry of this log, so far: each may stand for one number.
    spoilt: usize,
    /// What the other side says that it lacks itself.
    told: BTreeSet<EntryId>,
}

impl Holes {
    pub(super) fn new(site: &SiteId, told: &[EntryId]) -> Self {
        Self {
            site: site.clone(),
            spoilt: 0,
            told: told.iter().cloned().collect(),
        }
    }

    /// Something came that was no authentic entry.
    pub(super) fn spoilt(&mut self) {
        self.spoilt += 1;
    }

    /// Whether an entry may be taken though the numbers from `wanted` to it are missing; these are
    /// then on record as wanted.
    pub(super) fn pass(
        &mut self,
        it: &Writing<'_>,
        id: &EntryId,
        wanted: u64,
    ) -> Result<bool, StoreError> {
        if id.seq.saturating_sub(wanted) > MOST as u64 {
            return Ok(false);
        }
        let of = |seq| EntryId { seq, ..id.clone() };
        let missing: Vec<EntryId> = (wanted..id.seq).map(of).collect();
        let untold = missing
            .iter()
            .filter(|one| !self.told.contains(one))
            .count();
        let known = it.tables.holes(&self.site)?;
        let same = |one: &&EntryId| one.origin == id.origin && one.epoch == id.epoch;
        let open = known.iter().filter(same).count();
        if untold > self.spoilt || open + missing.len() > MOST {
            return Ok(false);
        }
        self.spoilt -= untold;
        missing
            .iter()
            .try_for_each(|one| it.tables.put_hole(&self.site, one))?;
        Ok(true)
    }
}

/// The cursor past an entry that may be taken.
pub(super) fn past(cursor: &Cursor, id: &EntryId) -> Cursor {
    let heads = cursor
        .iter()
        .map(|(origin, epoch, seq)| (origin.clone(), epoch, seq));
    heads
        .chain([(id.origin.clone(), id.epoch, id.seq)])
        .collect()
}
