//! The telemetry ledger: what devices sent, each message once, in the order of its sender. Called
//! by the broker's consumer in the binaries and by query and export. It has a store of its own, so
//! that a full ledger never blocks an onboarding. It never interprets a payload.
//!
//! A message is known by (source, topic, epoch, seq). A repeat is dropped, for ever: what the
//! retention bound removed leaves the highest removed (epoch, seq) of its topic behind.

pub mod intake;
mod times;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_link::time::{Clock, Reading, TimeQuality};
use holdfast_store::{Store, StoreError, WriteError, Written};
use redb::{ReadableTable as _, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

use crate::metrics::Metrics;
use crate::tables::When;
use times::Segments;

type Stamped<'a> = (&'a str, &'a str, u64, u64);
/// Messages kept of a topic, and the highest (epoch, seq) that retention removed.
type Kept = (u64, Option<(u64, u64)>);

/// (source, topic, epoch, seq) -> arrival number, received at (unix seconds), payload.
const MESSAGES: TableDefinition<'_, Stamped<'static>, (u64, u64, &[u8])> =
    TableDefinition::new("ledger.messages");
const TOPICS: TableDefinition<'_, (&str, &str), Kept> = TableDefinition::new("ledger.topics");
/// The last arrival number.
const ARRIVALS: TableDefinition<'_, (), u64> = TableDefinition::new("ledger.arrivals");

/// Most messages recorded in one transaction.
pub const BATCH: usize = 4_096;

/// Makes the ledger's tables; given to `Store::open` by the binary.
///
/// # Errors
/// The store failed.
pub fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(MESSAGES)?;
    tx.open_table(TOPICS)?;
    tx.open_table(ARRIVALS)?;
    times::prepare(tx)?;
    Ok(())
}

/// One message with its sender's stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The device, or the gateway that stamped a foreign device's message.
    pub source: Box<str>,
    /// The whole topic.
    pub topic: Box<str>,
    /// The sender's epoch: grows when its counter starts anew.
    pub epoch: u64,
    /// The sender's counter for this topic.
    pub seq: u64,
    /// What it said.
    pub payload: Bytes,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is in the ledger now, durably.
    New,
    /// It was there before.
    Repeat,
}

/// One recorded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The message.
    pub message: Message,
    /// Its number in the order of arrival, over all sources.
    pub arrival: u64,
    /// When it arrived, as far as it is known by now.
    pub received: When,
}

/// Which messages a query wants.
#[derive(Clone, Debug)]
pub struct Query {
    /// Of this source.
    pub source: Box<str>,
    /// Of this topic, or of all.
    pub topic: Option<Box<str>>,
    /// Only those after this (topic, epoch, seq), in the ledger's order.
    pub after: Option<(Box<str>, u64, u64)>,
    /// At most so many.
    pub max: usize,
}

/// The ledger; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Store,
    keep: u64,
    metrics: Metrics,
}

impl Ledger {
    /// A ledger in `store` that keeps `keep` messages per (source, topic).
    #[must_use]
    pub fn new(store: Store, keep: u64, metrics: Metrics) -> Self {
        Self {
            store,
            keep: keep.max(1),
            metrics,
        }
    }

    /// Records one message; returns after the commit.
    ///
    /// # Errors
    /// The store failed; the message counts as not recorded, and may be given again.
    pub async fn record(&self, message: Message, now: Reading) -> Result<Recorded, StoreError> {
        let done = self.record_all(vec![message], now).await?;
        Ok(done.first().copied().unwrap_or(Recorded::Repeat))
    }

    /// Records up to [`BATCH`] messages in one commit, in the order given; the answers stand in
    /// the same order.
    ///
    /// # Errors
    /// The store failed; all may be given again.
    pub async fn record_all(
        &self,
        messages: Vec<Message>,
        now: Reading,
    ) -> Result<Vec<Recorded>, StoreError> {
        let mut all = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while !rest.is_empty() {
            let next = rest.split_off(rest.len().min(BATCH));
            let batch = std::mem::replace(&mut rest, next);
            let keep = self.keep;
            let written = self
                .store
                .write(move |tx| insert(tx, &batch, keep, now))
                .await;
            let (done, pruned) = written.map_err(store_fault)?;
            let new = done.iter().filter(|one| **one == Recorded::New).count() as u64;
            self.metrics.recorded(new, done.len() as u64 - new, pruned);
            all.extend(done);
        }
        Ok(all)
    }

    /// Messages in the order (topic, epoch, seq).
    ///
    /// # Errors
    /// The store failed.
    pub fn query(&self, query: &Query) -> Result<Vec<Row>, StoreError> {
        self.store.read(|tx| {
            let table = tx.open_table(MESSAGES)?;
            let segments = Segments::of(tx)?;
            let (topic, epoch, seq) = match (&query.after, &query.topic) {
                (Some((topic, epoch, seq)), _) => (&**topic, *epoch, *seq),
                (None, Some(topic)) => (&**topic, 0, 0),
                (None, None) => ("", 0, 0),
            };
            let mut rows = Vec::new();
            for found in table.range((&*query.source, topic, epoch, seq)..)? {
                let (key, value) = found?;
                let (source, topic, epoch, seq) = key.value();
                let beyond = query.topic.as_deref().is_some_and(|wanted| wanted != topic);
                if rows.len() >= query.max || source != &*query.source || beyond {
                    break;
                }
                let stamp = (topic, epoch, seq);
                if query
                    .after
                    .as_ref()
                    .is_some_and(|(t, e, s)| (&**t, *e, *s) == stamp)
                {
                    continue;
                }
                rows.push(row(key.value(), value.value(), &segments));
            }
            Ok(rows)
        })
    }

    /// Writes a source's messages as JSON lines (`topic`, `epoch`, `seq`, `arrival`, `received`,
    /// `payload` as text, or `payload_base64` where it is no text; `received_when` where the time
    /// was not known at once); the count.
    ///
    /// # Errors
    /// The store or the writer failed.
    pub fn export(&self, source: &str, out: &mut dyn Write) -> io::Result<u64> {
        const STEP: usize = 1_000;
        let (mut after, mut count) = (None, 0);
        loop {
            let query = Query {
                source: source.into(),
                topic: None,
                after,
                max: STEP,
            };
            let rows = self.query(&query).map_err(io::Error::other)?;
            let Some(last) = rows.last() else {
                return Ok(count);
            };
            after = Some((
                last.message.topic.clone(),
                last.message.epoch,
                last.message.seq,
            ));
            for row in &rows {
                serde_json::to_writer(&mut *out, &json(row))?;
                out.write_all(b"\n")?;
                count += 1;
            }
        }
    }

    /// Gives what arrived on untrusted time its real time, if the clock knows it now.
    ///
    /// # Errors
    /// The store failed; it can be learnt again.
    pub async fn learn_times(&self, clock: &dyn Clock) -> Result<(), StoreError> {
        times::learn(&self.store, clock).await
    }

    /// Messages kept in all.
    ///
    /// # Errors
    /// The store failed.
    pub fn len(&self) -> Result<u64, StoreError> {
        self.store.read(|tx| Ok(tx.open_table(MESSAGES)?.len()?))
    }

    /// Whether nothing is kept.
    ///
    /// # Errors
    /// The store failed.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.len()? == 0)
    }
}

fn insert(
    tx: &WriteTransaction,
    batch: &[Message],
    keep: u64,
    now: Reading,
) -> Written<(Vec<Recorded>, u64)> {
    let mut messages = tx.open_table(MESSAGES)?;
    let mut topics = tx.open_table(TOPICS)?;
    let mut arrivals = tx.open_table(ARRIVALS)?;
    let mut arrival = arrivals.get(())?.map_or(0, |last| last.value());
    times::note(tx, arrival + 1, &now)?;
    let (mut done, mut pruned) = (Vec::with_capacity(batch.len()), 0);
    for one in batch {
        let topic = (&*one.source, &*one.topic);
        let key = (topic.0, topic.1, one.epoch, one.seq);
        let (mut count, mut removed) = topics.get(topic)?.map_or((0, None), |row| row.value());
        let gone = removed.is_some_and(|removed| (one.epoch, one.seq) <= removed);
        if gone || messages.get(key)?.is_some() {
            done.push(Recorded::Repeat);
            continue;
        }
        arrival += 1;
        messages.insert(key, (arrival, now.time.secs, &*one.payload))?;
        count += 1;
        while count > keep {
            let first = (topic.0, topic.1, 0, 0);
            let lowest = messages.range(first..)?.next().transpose()?;
            let Some(stamp) = lowest.map(|(key, _)| (key.value().2, key.value().3)) else {
                break;
            };
            messages.remove((topic.0, topic.1, stamp.0, stamp.1))?;
            removed = removed.max(Some(stamp));
            count -= 1;
            pruned += 1;
        }
        topics.insert(topic, (count, removed))?;
        done.push(Recorded::New);
    }
    arrivals.insert((), arrival)?;
    Ok((done, pruned))
}

fn row(
    key: Stamped<'_>,
    (arrival, received, payload): (u64, u64, &[u8]),
    segments: &Segments,
) -> Row {
    let (source, topic, epoch, seq) = key;
    let payload = Bytes::copy_from_slice(payload);
    let message = Message {
        source: source.into(),
        topic: topic.into(),
        epoch,
        seq,
        payload,
    };
    Row {
        message,
        arrival,
        received: segments.when(arrival, received),
    }
}

/// A row as the operator sees it.
pub(crate) fn json(row: &Row) -> serde_json::Value {
    let message = &row.message;
    let mut value = serde_json::json!({
        "source": message.source, "topic": message.topic, "epoch": message.epoch,
        "seq": message.seq, "arrival": row.arrival, "received": row.received.at,
    });
    if row.received.quality != TimeQuality::Authenticated.to_string() {
        value["received_when"] = serde_json::json!(row.received);
    }
    match std::str::from_utf8(&message.payload) {
        Ok(text) => value["payload"] = text.into(),
        Err(_) => value["payload_base64"] = STANDARD.encode(&message.payload).into(),
    }
    value
}

fn store_fault(error: WriteError) -> StoreError {
    match error {
        WriteError::Store(error) => error,
        WriteError::Job(never) => match never {},
    }
}

#[cfg(test)]
mod tests;
