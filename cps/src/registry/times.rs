//! The time of what was recorded before the time was known. Driven by the room `times`.
//!
//! An entry is signed and never changed. One that is made on untrusted time leaves, in the same
//! commit, the moment by the machine's own counter. Once the time is known, one further entry says of
//! the others by how much they are off, and the moments go, in one commit: a power cut in between
//! leaves both as they were. A moment of an earlier run of the machine goes too, since nothing can
//! ever be learnt of it: its entry stays marked.

use holdfast_link::time::Traced;
use holdfast_protocol::id::SiteId;
use holdfast_protocol::record::{Change, LearntSpan, MAX_SPANS};
use holdfast_store::{StoreError, WriteError};

use super::{Draft, Registry, RegistryError, Writing};
use crate::tables::Untimed;

/// Most entries looked at in one commit.
const STEP: usize = 4_096;
/// Times that differ by no more are off by the same: whole seconds were cut off of both.
const ROUNDING: u64 = 1;

impl Registry {
    /// Records the times that became known; how many entries got theirs.
    pub(crate) async fn learn_times(&self) -> Result<usize, RegistryError> {
        let mut learnt = 0;
        loop {
            let known = self.author.clock.certain().is_authenticated();
            if !known || self.read(|view| view.untimed(1))?.is_empty() {
                return Ok(learnt);
            }
            let done = self.write(|it: &mut Writing<'_>| it.learn_times()).await;
            let (looked, got) = done.map_err(|error| match error {
                WriteError::Store(error) => error.into(),
                WriteError::Job(error) => error,
            })?;
            learnt += got;
            if looked == 0 {
                return Ok(learnt);
            }
        }
    }
}

impl Writing<'_> {
    /// How many moments went, and of how many the time is known now.
    fn learn_times(&mut self) -> Result<(usize, usize), WriteError<RegistryError>> {
        let epoch = super::epoch_of(self.tables.meta(super::EPOCH)?);
        let (mut gone, mut learnt) = (0, 0);
        let mut spans: Vec<(SiteId, LearntSpan)> = Vec::new();
        for one in self.tables.untimed(STEP)? {
            let known = match self.author.clock.trace(one.moment) {
                Traced::NotYet => continue,
                Traced::Known(secs) => Some(secs),
                Traced::Never => None,
            };
            self.tables.remove_untimed(&one)?;
            gone += 1;
            // An earlier enrolment's log is closed: nobody speaks for it any more.
            if let Some(secs) = known.filter(|_| one.id.epoch == epoch)
                && let Some(shift) = self.shift(&one, secs)?
            {
                add(&mut spans, one, shift);
                learnt += 1;
            }
        }
        for of_site in spans.chunk_by(|one, other| one.0 == other.0) {
            for part in of_site.chunks(MAX_SPANS) {
                let spans = part.iter().map(|(_, span)| *span).collect();
                self.append(Draft {
                    site: part[0].0.clone(),
                    device: None,
                    change: Change::TimeLearnt { spans },
                })?;
            }
        }
        Ok((gone, learnt))
    }

    /// By how much an entry is off that was written at `secs`.
    fn shift(&self, one: &Untimed, secs: u64) -> Result<Option<i64>, StoreError> {
        let entry = self.tables.entry(&one.site, &one.id)?;
        Ok(entry.map(|it| secs.cast_signed() - it.entry().at.secs.cast_signed()))
    }
}

/// Puts an entry to those before it that are off by the same.
fn add(spans: &mut Vec<(SiteId, LearntSpan)>, one: Untimed, shift: i64) {
    let seq = one.id.seq;
    if let Some((site, open)) = spans.last_mut()
        && *site == one.site
        && open.last + 1 == seq
        && open.shift.abs_diff(shift) <= ROUNDING
    {
        open.last = seq;
        return;
    }
    let span = LearntSpan {
        first: seq,
        last: seq,
        shift,
    };
    spans.push((one.site, span));
}
