//! Takes what arrives at the broker into the telemetry ledger: journal -> ledger -> acknowledge.
//!
//! Run by [`crate::app`] as a task of its own. The broker's durable consumer keeps every message
//! until the ledger has committed it; a message read twice is a repeat that the ledger drops. So a
//! kill at any point loses nothing and doubles nothing. It never looks into a payload.

use std::time::Duration;

use holdfast_broker::{
    Broker, Consumer, ConsumerError, ConsumerOptions, Filter, Message, Row, RowId,
};
use holdfast_cps::telemetry::{self, Ledger};
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_protocol::id::ServerId;
use holdfast_protocol::topic::Topic;
use holdfast_store::StoreError;
use tokio_util::sync::CancellationToken;

/// Name of the durable consumer; never to be changed, since the journal remembers by it.
const CONSUMER: &str = "telemetry";
/// What it takes: what devices say, by either tree.
const FILTERS: [&str; 2] = ["hf/v1/+/+/up/#", "svc/v1/+/+/+/telemetry"];
/// Waits after a fault of the ledger or the journal.
const RETRY: Policy = Policy {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// The names of the stamp that senders put on their messages.
const EPOCH: &str = "hf-epoch";
const SEQ: &str = "hf-seq";

/// Where the messages go from the broker.
#[derive(Debug)]
pub struct Intake {
    consumer: Consumer,
    ledger: Ledger,
    unstamped: Unstamped,
    batch: usize,
}

/// How messages without a sender's stamp are known: by this server's own count.
#[derive(Debug, Clone)]
pub struct Unstamped {
    /// This server.
    pub server: ServerId,
    /// Grows whenever the journal's row ids begin anew.
    pub epoch: u64,
}

impl Intake {
    /// Opens the durable consumer.
    ///
    /// # Errors
    /// The journal failed.
    pub async fn open(
        broker: &Broker,
        ledger: Ledger,
        unstamped: Unstamped,
        batch: usize,
    ) -> Result<Self, ConsumerError> {
        let filters = FILTERS
            .iter()
            .map(|text| Filter::new(text).expect("filters of ours"))
            .collect();
        let options = ConsumerOptions {
            max_bytes: u64::MAX,
            ..ConsumerOptions::default()
        };
        let consumer = broker.consumer(CONSUMER, filters, options).await?;
        Ok(Self {
            consumer,
            ledger,
            unstamped,
            batch: batch.max(1),
        })
    }

    /// Messages that the ledger does not have yet.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.consumer.waiting()
    }

    /// The consumer, for figures.
    #[must_use]
    pub fn consumer(&self) -> Consumer {
        self.consumer.clone()
    }

    /// Works until cancelled. Faults of the disk are waited out: the senders keep, or the journal.
    pub async fn run(self, now: impl Fn() -> u64 + Send, cancel: CancellationToken) {
        let mut after = RowId::START;
        let mut backoff = Backoff::new(RETRY);
        loop {
            let step = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                step = self.step(after, &now) => step,
            };
            match step {
                Ok(last) => {
                    after = last;
                    backoff.worked();
                }
                Err(fault) => {
                    tracing::warn!(%fault, "telemetry waits in the journal");
                    // What was read but not acknowledged is read again.
                    after = RowId::START;
                    let wait = backoff.failed(&mut SystemRandom);
                    if cancel
                        .run_until_cancelled(tokio::time::sleep(wait))
                        .await
                        .is_none()
                    {
                        return;
                    }
                }
            }
        }
    }

    /// Moves one batch; returns the last row that was moved.
    async fn step(&self, after: RowId, now: &(impl Fn() -> u64 + Send)) -> Result<RowId, Fault> {
        self.consumer.ready(after).await;
        let rows = self.consumer.read(after, self.batch).await?;
        let Some(last) = rows.last().map(|row| row.id) else {
            return Ok(after);
        };
        let messages = rows.iter().map(|row| self.message(row)).collect();
        self.ledger.record_all(messages, now()).await?;
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        self.consumer.acknowledge(&ids).await?;
        Ok(last)
    }

    fn message(&self, row: &Row) -> telemetry::Message {
        let message = &row.message;
        let (source, epoch, seq) = match stamp(message) {
            Some((epoch, seq)) => (source(message.topic()), epoch, seq),
            None => (
                self.unstamped.server.to_string(),
                self.unstamped.epoch,
                row.id.0,
            ),
        };
        telemetry::Message {
            source: source.into(),
            topic: message.topic().into(),
            epoch,
            seq,
            payload: message.payload().clone(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Journal(#[from] ConsumerError),
    #[error(transparent)]
    Ledger(#[from] StoreError),
}

/// The sender's stamp, if it put a whole one on.
fn stamp(message: &Message) -> Option<(u64, u64)> {
    let number = |name| message.user_value(name)?.parse().ok();
    Some((number(EPOCH)?, number(SEQ)?))
}

/// Whom a stamped message is from: the device of its topic.
fn source(topic: &str) -> String {
    let device = topic.parse::<Topic>().ok().and_then(|topic| topic.device());
    device.map_or_else(|| topic.to_owned(), |device| device.to_string())
}
