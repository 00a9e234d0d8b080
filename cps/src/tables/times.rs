//! When an entry was written, as far as it is known by now. What a log says afterwards of its own
//! earlier times counts; where nothing was learnt, the entry stands between its neighbours.

use std::time::Duration;

use holdfast_link::time::Moment;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::record::{Entry, EntryId, LearntSpan, real_time, spans_of};
use holdfast_protocol::time::{Time, TimeQuality};
use redb::{ReadableTable as _, WriteTransaction};
use serde::Serialize;

use super::*;

/// The word for a time that became known afterwards.
const LEARNT_LATER: &str = "learnt later";

/// When something was recorded, as far as it is known by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct When {
    /// Unix seconds: the time itself, or, where it never became known, what the clock showed.
    pub at: u64,
    /// `authenticated`; `learnt later` when it became known afterwards; `floor` or `none` while it is
    /// not known, or never will be.
    pub quality: String,
    /// Not known, but not before this: something recorded before it bears this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// Not known, but not after this: something recorded after it bears this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
}

impl When {
    /// What a clock showed, without anything learnt since.
    #[must_use]
    pub fn shown(time: Time) -> Self {
        Self {
            at: time.secs,
            quality: time.quality.to_string(),
            not_before: None,
            not_after: None,
        }
    }

    /// What was shown by a clock that was off by so much.
    #[must_use]
    pub(crate) fn learnt(shown: Time, shift: i64) -> Self {
        Self {
            quality: LEARNT_LATER.to_owned(),
            ..Self::shown(shown.learnt(shift))
        }
    }

    /// Whether it is the time itself.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.quality == LEARNT_LATER || self.quality == TimeQuality::Authenticated.to_string()
    }
}

/// An entry of this server whose time was not known when it wrote it.
#[derive(Clone, Debug)]
pub(crate) struct Untimed {
    pub(crate) site: SiteId,
    pub(crate) id: EntryId,
    pub(crate) moment: Moment,
}

type Learnt = Vec<(EntryId, LearntSpan)>;

impl<S: Source> Tables<S> {
    /// What a log says of its own earlier times.
    fn learnt(&self, site: &SiteId, origin: &ServerId, epoch: u32) -> Answer<Learnt> {
        let table = self.0.open(LEARNT)?;
        let key = |by, n| (site.as_str(), origin.as_str(), epoch, by, n);
        let range = table.range(key(0, 0)..=key(u64::MAX, u32::MAX))?;
        let mut learnt = Learnt::new();
        for found in range.take(SPANS) {
            let (key, value) = found?;
            let ((first, last, shift), origin) = (value.value(), origin.clone());
            let seq = key.value().3;
            let id = EntryId { origin, epoch, seq };
            learnt.push((id, LearntSpan { first, last, shift }));
        }
        Ok(learnt)
    }

    /// When an entry was written; where nobody knows, between which others of its log.
    pub(crate) fn when(&self, entry: &Entry) -> Answer<When> {
        if entry.at.is_authenticated() {
            return Ok(When::shown(entry.at));
        }
        let learnt = self.learnt(&entry.site, &entry.id.origin, entry.id.epoch)?;
        let mut when = seen(entry, &learnt);
        if !when.is_known() {
            when.not_before = self.neighbour(entry, &learnt, false)?;
            when.not_after = self.neighbour(entry, &learnt, true)?;
        }
        Ok(when)
    }

    /// The same for a row that an entry of that site's log made.
    pub(crate) fn when_told(
        &self,
        site: &SiteId,
        told: Option<&(String, u32, u64)>,
    ) -> Answer<Option<When>> {
        let Some((origin, epoch, seq)) = told else {
            return Ok(None);
        };
        let origin = origin.parse().map_err(|_| damaged("origin"))?;
        let (epoch, seq) = (*epoch, *seq);
        self.when_of(site, &EntryId { origin, epoch, seq })
    }

    /// When the entry of that number was written, if it is here.
    pub(crate) fn when_of(&self, site: &SiteId, id: &EntryId) -> Answer<Option<When>> {
        let entry = self.entry(site, id)?;
        entry.map(|it| self.when(it.entry())).transpose()
    }

    /// The time of the nearest entry of the same log, after or before, of which it is known.
    fn neighbour(&self, entry: &Entry, learnt: &Learnt, after: bool) -> Answer<Option<u64>> {
        let id = &entry.id;
        let key = |seq| (entry.site.as_str(), id.origin.as_str(), id.epoch, seq);
        let table = self.0.open(ENTRIES)?;
        let (first, last) = match after {
            true => (id.seq.saturating_add(1), u64::MAX),
            false => (0, id.seq.saturating_sub(1)),
        };
        let mut range = table.range(key(first)..=key(last))?;
        for _ in 0..NEIGHBOURS {
            let next = match after {
                true => range.next(),
                false => range.next_back(),
            };
            let Some((_, bytes)) = next.transpose()? else {
                break;
            };
            let other = parse_entry(bytes.value())?;
            if let Some(time) = real_time(other.entry(), learnt) {
                return Ok(Some(time.secs));
            }
        }
        Ok(None)
    }

    /// The last `max` entries of each log of a site, or of all sites, in no order.
    pub(crate) fn latest(&self, site: Option<&SiteId>, max: usize) -> Answer<Vec<SignedEntry>> {
        let (heads, table) = (self.0.open(HEADS)?, self.0.open(ENTRIES)?);
        let mut entries = Vec::new();
        for found in heads.iter()? {
            let key = found?.0;
            let (of, origin, epoch) = key.value();
            if site.is_some_and(|site| site.as_str() != of) {
                continue;
            }
            let range = table.range((of, origin, epoch, 0)..=(of, origin, epoch, u64::MAX))?;
            for found in range.rev().take(max) {
                entries.push(parse_entry(found?.1.value())?);
            }
        }
        Ok(entries)
    }

    /// The first of this server's entries on untrusted time whose time is not on record yet.
    pub(crate) fn untimed(&self, max: usize) -> Answer<Vec<Untimed>> {
        let table = self.0.open(UNTIMED)?;
        let mut all = Vec::new();
        for found in table.iter()?.take(max) {
            let (key, value) = found?;
            let ((site, origin, epoch, seq), (run, millis)) = (key.value(), value.value());
            let origin = origin.parse().map_err(|_| damaged("origin"))?;
            all.push(Untimed {
                site: SiteId::from_record(site).map_err(|_| damaged("site"))?,
                id: EntryId { origin, epoch, seq },
                moment: Moment {
                    run,
                    uptime: Duration::from_millis(millis),
                },
            });
        }
        Ok(all)
    }
}

fn seen(entry: &Entry, learnt: &Learnt) -> When {
    match real_time(entry, learnt) {
        None => When::shown(entry.at),
        Some(time) if entry.at.is_authenticated() => When::shown(time),
        Some(time) => When {
            quality: LEARNT_LATER.to_owned(),
            ..When::shown(time)
        },
    }
}

impl Tables<&WriteTransaction> {
    /// Keeps what an entry says of the times before it, as far as it may speak of them.
    pub(crate) fn put_learnt(&self, by: &Entry, spans: &[LearntSpan]) -> Answer<()> {
        let (id, mut table) = (&by.id, self.0.open_table(LEARNT)?);
        for (n, span) in (0..).zip(spans_of(by, spans)) {
            let key = (by.site.as_str(), id.origin.as_str(), id.epoch, id.seq, n);
            table.insert(key, (span.first, span.last, span.shift))?;
        }
        Ok(())
    }

    /// Takes note that an entry of this server was written at a moment whose time nobody knows yet.
    pub(crate) fn put_untimed(&self, entry: &Entry, moment: Moment) -> Answer<()> {
        if moment.run == 0 {
            return Ok(());
        }
        let id = &entry.id;
        let key = (entry.site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        let millis = u64::try_from(moment.uptime.as_millis()).unwrap_or(u64::MAX);
        let mut table = self.0.open_table(UNTIMED)?;
        table.insert(key, (moment.run, millis))?;
        Ok(())
    }

    pub(crate) fn remove_untimed(&self, one: &Untimed) -> Answer<()> {
        let id = &one.id;
        let key = (one.site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        self.0.open_table(UNTIMED)?.remove(key)?;
        Ok(())
    }
}
