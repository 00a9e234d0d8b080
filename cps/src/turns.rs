//! Whether a gateway is the machine that it was: a counter kept by the cloud, by which a restored
//! snapshot and a cloned disk give themselves away.
//!
//! A gateway takes a turn at each start and every ten minutes after: a number one higher than the last,
//! with a random mark of its own, in its state folder ([`Own`]) before the cloud sees it. Each
//! exchange of `sync` shows the turn, and the mark of the turn before. The cloud commits a new turn
//! before it answers ([`judge`], pure). An honest gateway that crashed or lost an answer shows again
//! what it showed before, or the very next; a copy shows an older number, or its own mark under a
//! number that has one. Then the gateway is locked out, both machines of it, until an operator has
//! seen which one is right. Called by `sync`'s client and the API; signs nothing, trusts no clock.

mod own;

use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_store::{StoreError, WriteError, Written};
use serde::{Deserialize, Serialize};

pub(crate) use own::Own;

use crate::Core;
use crate::refusals::Refusals;
use crate::tables::{LockCause, LockRow};

/// Starts remembered for one turn: more of them without an answer of the cloud, and the oldest gives way.
const MOST_STARTS: usize = 16;
/// Requests of a turn that is over which are taken for late ones: a process that was killed may have
/// left some on their way, which a bad link delivers long after.
const MOST_LATE: u32 = 3;
/// The reason under which a copy is counted and put on record.
const COPY: &str = "copy";

/// 16 random bytes as hex; empty before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Mark(String);

impl Mark {
    fn of(bytes: [u8; 16]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl TryFrom<String> for Mark {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match hex && (text.is_empty() || text.len() == 32) {
            true => Ok(Self(text)),
            false => Err("a mark has 32 hex digits"),
        }
    }
}

impl From<Mark> for String {
    fn from(mark: Mark) -> Self {
        mark.0
    }
}

/// What a gateway shows with each request of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// One higher than the turn before.
    number: u64,
    /// The mark of the turn before, which the cloud has answered.
    last: Mark,
    /// The mark of this one.
    this: Mark,
    /// The starts of the gateway's program since it took this turn, the one that asks last.
    starts: Vec<Mark>,
}

/// What the cloud keeps of a gateway's enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TurnRow {
    number: u64,
    this: Mark,
    starts: Vec<Mark>,
    /// The turn before, for its late requests.
    before: Option<Before>,
    /// An operator let the gateway in again: whoever asks next is it.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    number: u64,
    this: Mark,
    starts: Vec<Mark>,
    late: u32,
}

impl TurnRow {
    /// After `unlock`: the next one who asks is believed.
    pub(crate) fn open() -> Self {
        Self {
            number: 0,
            this: Mark::default(),
            starts: Vec::new(),
            before: None,
            open: true,
        }
    }

    fn of(shown: &Turn, before: Option<Before>) -> Self {
        Self {
            number: shown.number,
            this: shown.this.clone(),
            starts: bounded(shown.starts.clone()),
            before,
            open: false,
        }
    }

    fn over(&self) -> Before {
        Before {
            number: self.number,
            this: self.this.clone(),
            starts: self.starts.clone(),
            late: 0,
        }
    }
}

/// How a copy gave itself away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Copy {
    /// A copy of an earlier state.
    #[error("it showed turn {shown} when turn {kept} was over: a copy of an earlier state")]
    Older { shown: u64, kept: u64 },
    /// Two went on from one state.
    #[error("turn {0} was taken by two machines")]
    Parted(u64),
    /// It lost its counter, or never had it.
    #[error("it showed no turn, though it took {0} before: its counter is lost, or it is a copy")]
    Silent(u64),
    /// It was let in again, and had forgotten what it wrote.
    #[error("it has {has} entries of its own where it wrote {wrote}: a copy of an earlier state")]
    Behind { has: u64, wrote: u64 },
}

/// What the cloud makes of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As kept.
    Same,
    /// To be kept before it is answered.
    Keep(TurnRow),
    /// A request on its way for long, of a turn that is over: not served, and no harm. To be kept.
    Late(TurnRow),
    /// Another machine, or an earlier state of this one.
    Copy(Copy),
}

/// Judges what a gateway shows against what is kept of its enrolment.
pub(crate) fn judge(kept: Option<&TurnRow>, shown: Option<&Turn>) -> Verdict {
    let (kept, shown) = match (kept, shown) {
        (None, None) => return Verdict::Same,
        (None, Some(shown)) => return Verdict::Keep(TurnRow::of(shown, None)),
        (Some(kept), None) if kept.open => return Verdict::Same,
        (Some(kept), None) => return Verdict::Copy(Copy::Silent(kept.number)),
        (Some(kept), Some(shown)) => (kept, shown),
    };
    if kept.open {
        return Verdict::Keep(TurnRow::of(shown, None));
    }
    if shown.number < kept.number {
        return older(kept, shown);
    }
    if shown.number == kept.number {
        return match shown.this == kept.this {
            true => known_starts(kept, shown),
            false => Verdict::Copy(Copy::Parted(shown.number)),
        };
    }
    if shown.number == kept.number + 1 && shown.last != kept.this {
        return Verdict::Copy(Copy::Parted(kept.number));
    }
    // More than one ahead: the cloud itself has forgotten, which is no gateway's fault.
    Verdict::Keep(TurnRow::of(shown, Some(kept.over())))
}

fn older(kept: &TurnRow, shown: &Turn) -> Verdict {
    let late = kept.before.as_ref().filter(|before| {
        let same = before.number == shown.number && before.this == shown.this;
        let known = shown
            .starts
            .last()
            .is_some_and(|it| before.starts.contains(it));
        same && known && before.late < MOST_LATE
    });
    match late {
        Some(before) => {
            let late = before.late + 1;
            let before = Some(Before {
                late,
                ..before.clone()
            });
            Verdict::Late(TurnRow {
                before,
                ..kept.clone()
            })
        }
        None => Verdict::Copy(Copy::Older {
            shown: shown.number,
            kept: kept.number,
        }),
    }
}

/// The same turn again, perhaps by a program that was started anew.
fn known_starts(kept: &TurnRow, shown: &Turn) -> Verdict {
    let mut starts = kept.starts.clone();
    let new = shown.starts.iter().filter(|it| !kept.starts.contains(it));
    starts.extend(new.cloned());
    match starts == kept.starts {
        true => Verdict::Same,
        false => Verdict::Keep(TurnRow {
            starts: bounded(starts),
            ..kept.clone()
        }),
    }
}

fn bounded(mut starts: Vec<Mark>) -> Vec<Mark> {
    let over = starts.len().saturating_sub(MOST_STARTS);
    starts.drain(..over);
    starts
}

/// Why an exchange is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unserved {
    /// Not to be answered, and nothing follows from it.
    #[error("this request is of a turn that is over; ask again")]
    Late,
    /// The gateway is locked out now.
    #[error("{0}")]
    Locked(String),
    /// Our own store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes note of what a gateway shows; `own` is how far its own log reaches, if it said so. Returns
/// when a new turn is committed, or the lock is.
pub(crate) async fn take(
    core: &Core,
    refusals: &Refusals,
    (server, site): (&ServerId, &SiteId),
    (shown, own): (Option<Turn>, Option<u64>),
) -> Result<(), Unserved> {
    // It is the cloud that keeps count.
    if core.cloud.is_some() {
        return Ok(());
    }
    let asked = server.clone();
    let (epoch, kept) = core.registry.read(|view| {
        let epoch = view.gateway(&asked)?.map_or(0, |row| row.epoch);
        Ok((epoch, view.turn(&asked, epoch)?))
    })?;
    if judge(kept.as_ref(), shown.as_ref()) == Verdict::Same {
        return Ok(());
    }
    let (gateway, at, place) = (server.clone(), core.clock.now().secs, site.clone());
    let done: Written<Verdict> = core
        .registry
        .write(move |it| {
            let kept = it.tables.turn(&gateway, epoch)?;
            let wrote = it.tables.head(&place, &gateway, epoch)?;
            let verdict = match judge(kept.as_ref(), shown.as_ref()) {
                // Let in by an operator's word, it must at least know what it wrote.
                Verdict::Keep(_)
                    if kept.is_some_and(|row| row.open) && own.is_some_and(|has| has < wrote) =>
                {
                    let has = own.unwrap_or(0);
                    Verdict::Copy(Copy::Behind { has, wrote })
                }
                verdict => verdict,
            };
            match &verdict {
                Verdict::Same => {}
                Verdict::Keep(row) | Verdict::Late(row) => {
                    it.tables.put_turn(&gateway, epoch, row)?;
                }
                Verdict::Copy(copy) => {
                    let gateway = gateway.clone();
                    let cause = LockCause::Copy(copy.to_string());
                    it.tables.put_lock(&LockRow {
                        gateway,
                        epoch,
                        at,
                        cause,
                    })?;
                    it.rights_changed();
                }
            }
            Ok(verdict)
        })
        .await;
    let verdict = done.map_err(|error| match error {
        WriteError::Store(error) => error,
        WriteError::Job(never) => match never {},
    })?;
    match verdict {
        Verdict::Same | Verdict::Keep(_) => Ok(()),
        Verdict::Late(_) => {
            core.metrics.refused("sync", "late turn");
            Err(Unserved::Late)
        }
        Verdict::Copy(copy) => {
            core.metrics.refused("sync", COPY);
            tracing::error!(%server, %site, epoch, %copy,
                "ALARM: two machines speak as one gateway, or it was set back to a copy; it is locked out");
            let why = sentence(server, &copy.to_string());
            refusals
                .turned_away((server, site), (COPY, why.clone()))
                .await?;
            Err(Unserved::Locked(why))
        }
    }
}

/// One sentence, and what to do.
pub(crate) fn sentence(gateway: impl std::fmt::Display, why: &str) -> String {
    format!(
        "{gateway} is locked out: {why}; find out which machine is the right one and stop every other, \
         then run 'gateways unlock' at the cloud; if it was restored from a copy, or in doubt, run \
         'gateways replace' and enrol it with an empty state folder"
    )
}

#[cfg(test)]
mod tests;
