//! Who writes entries: numbers and ranks them, one author per (site, server, enrolment).

use super::{
    change::Change,
    entry::{Entry, EntryId, RecordFault, SignedEntry},
};
use crate::{
    crypto::SigningKey,
    id::{DeviceId, ServerId, SiteId},
    time::Time,
};

/// Numbers the entries of one server for one site. Rebuilt at start by [`Author::observe`] over
/// the stored log; the caller stores each entry in the transaction that makes the change, and
/// drops the author (and rebuilds it) when that transaction failed, so that no number is skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    origin: ServerId,
    epoch: u32,
    site: SiteId,
    last_seq: u64,
    last_rank: u64,
}

impl Author {
    /// An author that has seen nothing yet.
    #[must_use]
    pub fn new(origin: ServerId, epoch: u32, site: SiteId) -> Self {
        Self {
            origin,
            epoch,
            site,
            last_seq: 0,
            last_rank: 0,
        }
    }

    /// Takes note of an entry of this site, its own or another's; entries of other sites are
    /// ignored.
    pub fn observe(&mut self, entry: &Entry) {
        if entry.site != self.site {
            return;
        }
        self.last_rank = self.last_rank.max(entry.rank);
        if entry.id.origin == self.origin && entry.id.epoch == self.epoch {
            self.last_seq = self.last_seq.max(entry.id.seq);
        }
    }

    /// Makes and signs the next entry.
    ///
    /// # Errors
    /// [`RecordFault::TooLarge`]; the number is then not used up.
    pub fn write(
        &mut self,
        at: Time,
        device: Option<DeviceId>,
        change: Change,
        key: &SigningKey,
    ) -> Result<SignedEntry, RecordFault> {
        let entry = Entry {
            id: EntryId {
                origin: self.origin.clone(),
                epoch: self.epoch,
                seq: self.last_seq + 1,
            },
            // A peer may have pushed ranks to the end; order then falls back on the id.
            rank: self.last_rank.saturating_add(1),
            site: self.site.clone(),
            at,
            device,
            change,
        };
        let signed = SignedEntry::sign(entry, key)?;
        self.observe(signed.entry());
        Ok(signed)
    }

    /// The number of the last entry that it wrote, 0 for none.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The server that it writes for.
    #[must_use]
    pub fn origin(&self) -> &ServerId {
        &self.origin
    }

    /// The enrolment that it writes in.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}
