//! What must survive: messages, the rows of durable consumers, sessions and their subscriptions,
//! retained messages, wills, high-water marks of repeats, QoS 2 packet ids. One commit per batch.
//!
//! Connections hand in operations and hear of them after the commit, through their mailbox or a
//! oneshot. Fresh rows go to their reader's memory at once; what does not fit is read back from a
//! snapshot. Nothing is acknowledged here before the store says that it is on the disk.

mod accept;
mod answer;
mod disk;
mod fresh;
mod handing;
mod load;
mod log;
mod op;
mod recall;
mod recent;
mod record;
mod schema;
mod settle;
mod tables;
#[cfg(test)]
mod tests;
mod told;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use holdfast_store::{Damaged, Medium, Options as StoreOptions, StoreError, Writer};
use redb::ReadTransaction;
use tokio::sync::oneshot;

pub(crate) use op::{
    ConsumerRecord, Entry, Kind, Op, Reply, Stamp, SubscriptionRecord, Verdict, WillRecord,
};
pub(crate) use schema::{Ledger, Loaded};

use recent::Recent;

use crate::exchange::{ConsumerId, Options, TailRow};
use crate::shared::Core;

/// Operations that wait for the writer.
const MAILBOX: usize = 1024;
/// Messages and other operations in one commit. While it is on its way to the disk the connections go on with the next: with
/// more at once more stands still.
const BATCH: usize = 768;

/// The handle.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    writer: Writer<Ledger>,
    recent: Arc<Mutex<Recent>>,
    #[cfg(test)]
    core: Arc<Core>,
}

/// A row read back, with what the row itself says.
#[derive(Debug)]
pub(crate) struct StoredRow {
    pub(crate) row: TailRow,
    /// Outgoing QoS 2, PUBREC seen: only PUBREL is to be sent.
    pub(crate) released: bool,
}

impl StoredRow {
    /// A fresh row: no PUBREC can have come.
    pub(crate) fn unreleased(row: TailRow) -> Self {
        Self {
            row,
            released: false,
        }
    }
}

impl Journal {
    /// Opens the store and loads what is kept in memory.
    pub(crate) fn open(medium: Medium, core: &Arc<Core>) -> Result<(Self, Loaded), StoreError> {
        let disk = disk::Disk::of(&medium);
        let recent = Arc::default();
        let log_bytes = disk.log_bytes(core.config.log_bytes);
        let (ledger, loaded) = Ledger::new(Arc::clone(core), disk, Arc::clone(&recent));
        let options = StoreOptions {
            name: "journal",
            mailbox: MAILBOX,
            max_batch: BATCH,
            log_bytes,
            reserve_bytes: core.config.reserve_bytes,
            damaged: if core.config.quarantine {
                Damaged::Quarantine
            } else {
                Damaged::Refuse
            },
            ..StoreOptions::default()
        };
        let writer = Writer::open(medium, options, ledger)?;
        let loaded = loaded.recv().map_err(|_| StoreError::Closed)?;
        let journal = Self {
            writer,
            recent,
            #[cfg(test)]
            core: Arc::clone(core),
        };
        Ok((journal, loaded))
    }

    /// Hands an operation in; waits while the journal's mailbox is full.
    pub(crate) async fn send(&self, op: Op) -> Result<(), StoreError> {
        #[cfg(test)]
        let op = if self.core.early.load(std::sync::atomic::Ordering::Relaxed) {
            tests::answered_early(op)
        } else {
            op
        };
        self.writer.send(op).await.map_err(|_| StoreError::Closed)
    }

    /// Hands an operation in and waits for its commit.
    pub(crate) async fn call<T>(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Op,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(op(reply)).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Hands an operation in from outside the async world if there is room; it is lost otherwise.
    pub(crate) fn offer(&self, op: Op) -> bool {
        self.writer.try_send(op).is_ok()
    }

    /// At most `max` rows of a consumer after `after`, from a snapshot.
    pub(crate) fn rows(
        &self,
        consumer: ConsumerId,
        after: u64,
        max: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        Ok(self.rows_within(consumer, after, max, usize::MAX)?.0)
    }

    /// [`Journal::rows`] up to the one with which so many bytes are reached; and whether there may be
    /// more.
    pub(crate) fn rows_within(
        &self,
        consumer: ConsumerId,
        after: u64,
        max: usize,
        bytes: usize,
    ) -> Result<(Vec<StoredRow>, bool), StoreError> {
        let (tx, told) = self.look(|recent| recent.after(consumer.0, after, max, bytes))?;
        tables::rows_after(&tx, consumer.0, after, max, bytes, told)
    }

    /// The tables as they are, and what is to be said beside them, at the same moment.
    fn look<T>(&self, ask: impl FnOnce(&Recent) -> T) -> Result<(ReadTransaction, T), StoreError> {
        let recent = schema::lock(&self.recent);
        if !recent.is_ready() {
            return Err(StoreError::Poisoned);
        }
        let tx = self.writer.reader().begin()?;
        Ok((tx, ask(&recent)))
    }

    /// The incoming QoS 2 packet ids of a session between PUBREC and PUBREL.
    pub(crate) fn received(&self, consumer: ConsumerId) -> Result<HashSet<u16>, StoreError> {
        let (tx, lately) =
            self.look(|recent| recent.received_of(consumer.0).collect::<Vec<_>>())?;
        let mut found = tables::received_of(&tx, consumer.0)?;
        for (packet_id, is_in) in lately {
            if is_in {
                found.insert(packet_id);
            } else {
                found.remove(&packet_id);
            }
        }
        Ok(found)
    }

    /// Operations that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.writer.waiting()
    }

    pub(crate) fn health(&self) -> tokio::sync::watch::Receiver<holdfast_store::Health> {
        self.writer.health()
    }
}

/// Options of a row as they were when it was written.
pub(crate) fn row_options(
    qos: crate::Qos,
    retain_as_published: bool,
    ids: Vec<u32>,
    group: Option<Arc<str>>,
) -> Arc<Options> {
    Arc::new(Options {
        qos,
        retain_as_published,
        ids,
        group,
    })
}
