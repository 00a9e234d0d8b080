//! When messages arrived, as far as it is known by now. Called by the ledger alone.
//!
//! A message bears what the clock showed. From which message on the clock was how good is noted where
//! it changes, in the commit of that message; while all is well nothing is noted. Once the time is
//! known, it is known for every stretch of the same run of the machine by how much it is off.

use std::time::Duration;

use holdfast_link::time::{Clock, Moment, Reading, Time, TimeQuality, Traced};
use holdfast_store::{Store, StoreError, WriteError, Written};
use redb::{
    ReadTransaction, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
    WriteTransaction,
};

use crate::tables::When;

/// First arrival -> quality, run, milliseconds of it, what the clock showed then, what had passed for
/// certain, shift once it is known.
type Noted = (u8, u64, u64, u64, u64, Option<i64>);
const TIMES: TableDefinition<'_, u64, Noted> = TableDefinition::new("ledger.times");

/// Stretches whose clocks differ by no more are one.
const ROUNDING: u64 = 1;
/// Most stretches kept; of more the two oldest are joined.
const MOST: u64 = 1_024;

pub(super) fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(TIMES)?;
    Ok(())
}

/// From an arrival on, the clock was like this.
#[derive(Clone, Copy, Debug)]
struct Segment {
    first: u64,
    shown: Time,
    moment: Moment,
    least: u64,
    shift: Option<i64>,
}

impl Segment {
    fn read(first: u64, (quality, run, millis, secs, least, shift): Noted) -> Self {
        Self {
            first,
            shown: Time::new(secs, TimeQuality::from_code(quality.into())),
            moment: Moment {
                run,
                uptime: Duration::from_millis(millis),
            },
            least,
            shift,
        }
    }

    fn noted(&self) -> Noted {
        let millis = u64::try_from(self.moment.uptime.as_millis()).unwrap_or(u64::MAX);
        let (run, quality) = (self.moment.run, self.shown.quality.code());
        (
            quality,
            run,
            millis,
            self.shown.secs,
            self.least,
            self.shift,
        )
    }

    /// Whether what is read now is still of the same stretch.
    fn goes_on(&self, now: &Reading) -> bool {
        if self.shown.is_authenticated() || now.time.is_authenticated() {
            return self.shown.quality == now.time.quality;
        }
        let passed = now.moment.uptime.checked_sub(self.moment.uptime);
        let expected = passed.map(|passed| self.shown.secs.saturating_add(passed.as_secs()));
        let even = expected.is_some_and(|secs| secs.abs_diff(now.time.secs) <= ROUNDING);
        self.shown.quality == now.time.quality && self.moment.run == now.moment.run && even
    }

    /// The time at which it began, if that is known.
    fn began(&self) -> Option<u64> {
        match self.shown.is_authenticated() {
            true => Some(self.shown.secs),
            false => Some(self.shown.learnt(self.shift?).secs),
        }
    }
}

/// Notes how good the clock is from the arrival `first` on, if that is not what it was.
pub(super) fn note(tx: &WriteTransaction, first: u64, now: &Reading) -> Result<(), StoreError> {
    let mut table = tx.open_table(TIMES)?;
    let last = table.last()?;
    let last = last.map(|(first, row)| Segment::read(first.value(), row.value()));
    let goes_on = match &last {
        Some(last) => last.goes_on(now),
        // Nothing noted: all arrived on a clock that knew.
        None => now.time.is_authenticated(),
    };
    if goes_on {
        return Ok(());
    }
    let segment = Segment {
        first,
        shown: now.time,
        moment: now.moment,
        least: now.least,
        shift: None,
    };
    table.insert(first, segment.noted())?;
    if table.len()? > MOST {
        join_oldest(&mut table)?;
    }
    Ok(())
}

/// Two stretches become one of which less is known; a mark is never lost by it.
fn join_oldest(table: &mut redb::Table<'_, u64, Noted>) -> Result<(), StoreError> {
    let mut oldest = [None; 2];
    for place in &mut oldest {
        let row = table.pop_first()?;
        *place = row.map(|(first, row)| Segment::read(first.value(), row.value()));
    }
    let [Some(one), Some(other)] = oldest else {
        return Ok(());
    };
    let joined = Segment {
        shown: Time::new(one.shown.secs, one.shown.quality.min(other.shown.quality)),
        moment: Moment::UNKNOWN,
        shift: None,
        ..one
    };
    table.insert(joined.first, joined.noted())?;
    Ok(())
}

/// All stretches, oldest first.
#[derive(Debug, Default)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    pub(super) fn of(tx: &ReadTransaction) -> Result<Self, StoreError> {
        let table = tx.open_table(TIMES)?;
        let rows = table.iter()?.map(|found| {
            let (first, row) = found?;
            Ok(Segment::read(first.value(), row.value()))
        });
        rows.collect::<Result<_, StoreError>>().map(Self)
    }

    /// When a message arrived whose clock showed `secs`.
    pub(super) fn when(&self, arrival: u64, secs: u64) -> When {
        let next = self.0.partition_point(|one| one.first <= arrival);
        let Some(segment) = next.checked_sub(1).map(|at| &self.0[at]) else {
            return When::shown(Time::new(secs, TimeQuality::Authenticated));
        };
        let shown = Time::new(secs, segment.shown.quality);
        match segment.shift {
            _ if shown.is_authenticated() => When::shown(shown),
            Some(shift) => When::learnt(shown, shift),
            None => When {
                not_before: Some(segment.least),
                not_after: self.0[next..].iter().find_map(Segment::began),
                ..When::shown(shown)
            },
        }
    }
}

/// Gives the stretches of this run of the machine their time, if it is known.
pub(super) async fn learn(store: &Store, clock: &dyn Clock) -> Result<(), StoreError> {
    let Segments(all) = store.read(Segments::of)?;
    let is_open = |one: &&Segment| !one.shown.is_authenticated() && one.shift.is_none();
    let known = |one: &Segment| match clock.trace(one.moment) {
        Traced::Known(secs) => {
            let shift = secs.cast_signed() - one.shown.secs.cast_signed();
            Some(Segment {
                shift: Some(shift),
                ..*one
            })
        }
        Traced::NotYet | Traced::Never => None,
    };
    let learnt: Vec<Segment> = all.iter().filter(is_open).filter_map(known).collect();
    if learnt.is_empty() {
        return Ok(());
    }
    let done: Written<()> = store
        .write(move |tx| {
            let mut table = tx.open_table(TIMES)?;
            for one in &learnt {
                table.insert(one.first, one.noted())?;
            }
            Ok(())
        })
        .await;
    done.map_err(|error| match error {
        WriteError::Store(error) => error,
        WriteError::Job(never) => match never {},
    })
}
