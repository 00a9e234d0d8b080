//! The broker's durable consumer as the ledger's inbox: journal -> ledger -> acknowledge.
//!
//! Driven by [`holdfast_cps::telemetry::intake`]. The journal keeps every message until the ledger
//! has committed it. It never looks into a payload.

use holdfast_broker::{
    Broker, Consumer, ConsumerError, ConsumerOptions, Filter, Message, Row, RowId, WhenFull,
};
use holdfast_cps::telemetry;
use holdfast_cps::telemetry::intake::Inbox;
use holdfast_protocol::id::ServerId;
use holdfast_protocol::topic::Topic;

/// Name of the durable consumer; never to be changed, since the journal remembers by it.
const CONSUMER: &str = "telemetry";
/// What it takes: what devices say, by either tree.
const FILTERS: [&str; 2] = ["hf/v1/+/+/up/#", "svc/v1/+/+/+/telemetry"];
/// Messages that may wait for a ledger that has a copy elsewhere.
const MAX_ROWS: u64 = 200_000;
/// The names of the stamp that senders put on their messages.
const EPOCH: &str = "hf-epoch";
const SEQ: &str = "hf-seq";

/// The journal's rows that the ledger wants.
#[derive(Debug)]
pub struct Intake {
    consumer: Consumer,
    unstamped: Unstamped,
    /// The last row given.
    place: RowId,
}

/// What this server's ledger is to the installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ledger {
    /// The cloud's: what it does not take waits, up to the journal's own bound.
    Last,
    /// A site's, beside the cloud's: when it fails, the oldest messages pass it by, so that it does
    /// not fill the journal that feeds the cloud.
    Copy,
}

impl Ledger {
    fn options(self) -> ConsumerOptions {
        match self {
            Self::Last => ConsumerOptions {
                max_rows: u64::MAX,
                max_bytes: u64::MAX,
                ..ConsumerOptions::default()
            },
            Self::Copy => ConsumerOptions {
                max_rows: MAX_ROWS,
                when_full: WhenFull::DropOldest,
                ..ConsumerOptions::default()
            },
        }
    }
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
    ) -> Result<Self, ConsumerError> {
        let filters = FILTERS
            .map(|text| Filter::new(text).expect("filters of ours"))
            .to_vec();
        let consumer = broker.consumer(CONSUMER, filters, ledger.options()).await?;
        Ok(Self {
            consumer,
            unstamped,
            place: RowId::START,
        })
    }

    /// The consumer, for figures.
    #[must_use]
    pub fn consumer(&self) -> Consumer {
        self.consumer.clone()
    }

    /// Whom a message is from: the device of its topic, else whoever let it in here.
    fn source(&self, topic: &str) -> Box<str> {
        let device = topic.parse::<Topic>().ok().and_then(|topic| topic.device());
        device.map_or_else(
            || self.unstamped.server.as_str().into(),
            |device| device.as_str().into(),
        )
    }

    fn message(&self, row: &Row) -> telemetry::Message {
        let message = &row.message;
        let (epoch, seq) = stamp(message).unwrap_or((self.unstamped.epoch, row.id.0));
        telemetry::Message {
            source: self.source(message.topic()),
            topic: message.topic().into(),
            epoch,
            seq,
            payload: message.payload().clone(),
        }
    }
}

impl Inbox for Intake {
    type Error = ConsumerError;

    async fn next(&mut self, max: usize) -> Result<Vec<(u64, telemetry::Message)>, ConsumerError> {
        self.consumer.ready(self.place).await;
        let rows = self.consumer.read(self.place, max).await?;
        self.place = rows.last().map_or(self.place, |row| row.id);
        Ok(rows
            .iter()
            .map(|row| (row.id.0, self.message(row)))
            .collect())
    }

    async fn done(&mut self, rows: &[u64]) -> Result<(), ConsumerError> {
        let rows: Vec<RowId> = rows.iter().copied().map(RowId).collect();
        self.consumer.acknowledge(&rows).await
    }

    fn rewind(&mut self) {
        self.place = RowId::START;
    }
}

/// The sender's stamp, if it put a whole one on.
fn stamp(message: &Message) -> Option<(u64, u64)> {
    let number = |name| message.user_value(name)?.parse().ok();
    Some((number(EPOCH)?, number(SEQ)?))
}
