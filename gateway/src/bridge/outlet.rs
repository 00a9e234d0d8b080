//! One outgoing rule: its durable consumer in the journal and the drain that orders its rows.
//!
//! Used by [`super::Bridge`] alone. It holds no message longer than the drain's bounds say; the
//! journal is the truth.

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Broker, Consumer, ConsumerError, ConsumerOptions, Filter, Message, RowId};
use holdfast_link::mqtt::{Publish, ReasonCode};
use holdfast_protocol::drain::{self, Class, Drain, Offered, Refused, Settings};

use super::convert::{self, Stamp};
use super::denial::Denials;
use crate::config::moved;

/// Pages read in one turn; then the other outlets and the answers have theirs.
const PAGES: usize = 4;

/// Why a rule cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A filter is none. Blame: the configuration.
    #[error("{0}; correct the filter of that [[bridge]] rule")]
    Filter(#[from] holdfast_broker::NotAFilter),
    /// The journal failed.
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
}

/// What an outlet carries and how.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    /// The consumer's name, by which the journal remembers.
    pub(super) name: String,
    /// What it takes.
    pub(super) filters: Vec<String>,
    /// Taken off the front of each topic.
    pub(super) strip: String,
    /// Put before what is left.
    pub(super) prefix: String,
    /// Rows under way at once.
    pub(super) window: usize,
    /// How long a denied topic is tried again.
    pub(super) denied_for: Duration,
}

/// What to do with the next row.
#[derive(Debug)]
pub(super) enum Next {
    /// Send it.
    Send(drain::RowId, Box<Publish>),
    /// Its life is over; take it away.
    Expired(drain::RowId),
    /// It has no topic at the remote.
    Nowhere(drain::RowId),
}

/// One outgoing rule.
#[derive(Debug)]
pub(super) struct Outlet {
    consumer: Consumer,
    drain: Drain<Arc<Message>>,
    lane: Lane,
    denials: Denials,
    /// The last row seen, to be told of later ones.
    seen: RowId,
    /// Where `seen` stood when the drain was last told of more and could not take it: to be told
    /// again at once would be a hot loop.
    told: Option<RowId>,
}

impl Outlet {
    /// Opens the durable consumer.
    ///
    /// # Errors
    /// The journal failed.
    pub(super) async fn open(broker: &Broker, lane: Lane) -> Result<Self, OpenError> {
        // Built-in filters are ours, those of rules were parsed by the configuration.
        let filters = lane
            .filters
            .iter()
            .map(|text| Filter::new(text))
            .collect::<Result<_, _>>()?;
        // The journal as a whole is bounded; the bridge may have all of it.
        let options = ConsumerOptions {
            max_rows: u64::MAX,
            max_bytes: u64::MAX,
            ..ConsumerOptions::default()
        };
        let consumer = broker.consumer(&lane.name, filters, options).await?;
        Ok(Self {
            consumer,
            drain: Drain::new(settings(lane.window)),
            denials: Denials::new(lane.denied_for),
            lane,
            seen: RowId::START,
            told: None,
        })
    }

    /// The consumer, for figures.
    pub(super) fn consumer(&self) -> Consumer {
        self.consumer.clone()
    }

    /// Reads ahead as far as the drain wants, a few pages at a time; whether it wants more.
    pub(super) async fn fill(&mut self) -> Result<bool, ConsumerError> {
        for _ in 0..PAGES {
            let Some(want) = self.drain.wants() else {
                return Ok(false);
            };
            let rows = self.consumer.read(RowId(want.after.0), want.max).await?;
            let last = rows.last().map_or(RowId(want.after.0), |row| row.id);
            self.seen = self.seen.max(last);
            // A short page alone proves nothing: expired rows are left out of pages.
            let exhausted = rows.len() < want.max && self.is_end(last).await;
            if exhausted {
                self.told = None;
            }
            let offered = rows.into_iter().map(|row| Offered {
                id: drain::RowId(row.id.0),
                topic: row.message.topic().into(),
                class: class(row.message.topic()),
                size: row.message.weight(),
                item: row.message,
            });
            self.drain.offer(want, offered, exhausted);
        }
        Ok(self.drain.wants().is_some())
    }

    /// Whether there is no row after `last` at this moment.
    async fn is_end(&self, last: RowId) -> bool {
        tokio::select! {
            biased;
            () = self.consumer.ready(last) => false,
            () = std::future::ready(()) => true,
        }
    }

    /// Waits for rows that were not seen yet.
    pub(super) async fn ready(&self) {
        if self.told == Some(self.seen) {
            std::future::pending::<()>().await;
        }
        self.consumer.ready(self.seen).await;
    }

    pub(super) fn journal_grew(&mut self) {
        self.told = Some(self.seen);
        self.drain.journal_grew();
    }

    /// The next message, and what to do with it.
    pub(super) fn next(&mut self, stamp: Stamp) -> Option<Next> {
        let sending = self.drain.next()?;
        let (id, message) = (sending.id, sending.item);
        let left = self.consumer.seconds_left(message);
        if left == Some(0) {
            return Some(Next::Expired(id));
        }
        let Some(topic) = moved(message.topic(), &self.lane.strip, &self.lane.prefix) else {
            return Some(Next::Nowhere(id));
        };
        let publish = convert::outgoing(message, id.0, topic, left, stamp);
        Some(Next::Send(id, Box::new(publish)))
    }

    pub(super) fn under_way(&self) -> usize {
        self.drain.under_way()
    }

    /// The remote has it: the row may go, once.
    pub(super) fn acknowledged(&mut self, id: drain::RowId) -> Option<drain::RowId> {
        self.told = None;
        if let Some(topic) = self.drain.topic_of(id) {
            self.denials.allowed(topic);
        }
        self.drain.acknowledged(id).map(|_| id)
    }

    /// The remote denies its topic: for now, until it has done so for long enough.
    pub(super) fn deny(&mut self, id: drain::RowId, code: ReasonCode) -> drain::Refusal {
        match self.drain.topic_of(id) {
            Some(topic) => self.denials.denied(topic, code),
            None => drain::Refusal::Later,
        }
    }

    /// How many topics the remote denies now, and one of them with its words.
    pub(super) fn denied(&self) -> (usize, Option<String>) {
        self.denials.summary()
    }

    /// The remote refused it; gives it back when it will never be sent again.
    pub(super) fn refused(
        &mut self,
        id: drain::RowId,
        refusal: drain::Refusal,
    ) -> Option<Arc<Message>> {
        match self.drain.refused(id, refusal) {
            Refused::Dead(message) => Some(message),
            Refused::Kept | Refused::Unknown => None,
        }
    }

    /// Takes rows out of the journal, durably.
    pub(super) async fn acknowledge(&self, ids: &[drain::RowId]) -> Result<(), ConsumerError> {
        if ids.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = ids.iter().map(|id| RowId(id.0)).collect();
        self.consumer.acknowledge(&rows).await
    }

    /// Comes about once a second: refused topics try again, and the journal is asked again.
    pub(super) fn retry(&mut self) {
        self.told = None;
        if self.drain.has_refused() {
            self.drain.retry();
        }
    }

    pub(super) fn link_made(&mut self) {
        self.denials.link_made();
    }

    pub(super) fn link_lost(&mut self) {
        self.denials.link_lost();
        self.drain.link_lost();
    }
}

/// A remote whose disk is full says "not now" for hours: a message that it may take later is kept
/// for as long as that lasts. Only what it will never take is put aside.
fn settings(window: usize) -> Settings {
    Settings {
        window,
        urgent_reserve: (window / 8).min(window.saturating_sub(1)),
        attempts: u32::MAX,
        ..Settings::default()
    }
}

/// What a device says of its service overtakes its measurements.
fn class(topic: &str) -> Class {
    if topic.ends_with("/service/reported") {
        Class::Urgent
    } else {
        Class::Normal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row, refused again and again.
    fn refused(times: usize, refusal: drain::Refusal) -> Option<usize> {
        let mut drain = Drain::new(settings(8));
        let want = drain.wants().expect("the journal's beginning");
        let row = Offered {
            id: drain::RowId(1),
            topic: "a".into(),
            class: Class::Normal,
            size: 1,
            item: (),
        };
        drain.offer(want, [row], true);
        for time in 1..=times {
            let id = drain.next().expect("it is sent again").id;
            if let Refused::Dead(()) = drain.refused(id, refusal) {
                return Some(time);
            }
            drain.retry();
        }
        None
    }

    #[test]
    fn a_full_cloud_costs_no_message() {
        assert_eq!(refused(1000, drain::Refusal::Later), None);
        assert_eq!(refused(1000, drain::Refusal::Never), Some(1), "control");
    }
}
