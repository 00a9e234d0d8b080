//! The durable outbox: a reading gets its (epoch, seq) and is on the disk before anybody sends it,
//! and is removed only when a server has acknowledged it.
//!
//! Filled by the sensors (`source`), emptied by the `connection`. A reading and the position of the
//! sensor it came from are one commit, so a restart neither repeats nor skips a row. Knows topics'
//! last parts only; never drops a reading, never sends one.

mod table;

use std::collections::BTreeMap;
use std::path::Path;

use holdfast_store::twice::Twice;
use holdfast_store::{Damaged, Health, Medium, Options, Reader, StoreError, Writer};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

pub use table::{Level, Numbering, Row, Topic};
use table::{Op, Rows};

/// The longest reading, in bytes.
pub const MAX_READING: usize = 128 << 10;

/// The most readings in one [`Outbox::append`].
pub const MAX_APPEND: usize = 256;

/// The outbox: clone it freely.
#[derive(Debug, Clone)]
pub struct Outbox {
    writer: Writer<Rows>,
    level: watch::Receiver<Level>,
    max_bytes: u64,
}

/// The two of an agent: for the site, and for the service that it works for.
#[derive(Debug, Clone)]
pub struct Outboxes {
    /// Each sensor has a topic of its own.
    pub site: Outbox,
    /// All sensors share the service's one.
    pub service: Outbox,
}

/// Readings of one sensor, with its position after them.
#[derive(Debug)]
pub struct Append {
    /// The last part of the topic; also the sensor's name.
    pub name: String,
    /// The readings, in order; at most [`MAX_APPEND`], of [`MAX_READING`] bytes each.
    pub readings: Vec<Vec<u8>>,
    /// Where the sensor goes on after them; its own encoding.
    pub position: Vec<u8>,
}

impl Outbox {
    /// Opens the outbox in the folder `state`. `now` (seconds of Unix time, may be wrong) helps to
    /// choose the first epoch.
    ///
    /// A damaged file is moved away: its unsent readings are lost then, which is logged, and a new
    /// epoch begins, so that no later reading is taken for a repeat of an earlier one.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(
        state: &Path,
        numbering: Numbering,
        max_bytes: u64,
        now: u64,
    ) -> Result<Self, StoreError> {
        let epochs = Twice::open(state.join("epoch"))?;
        let options = Options {
            name: "outbox",
            damaged: Damaged::Quarantine,
            ..Options::default()
        };
        Self::with(
            Medium::File(state.join("outbox.redb")),
            options,
            epochs,
            numbering,
            max_bytes,
            now,
        )
    }

    pub(crate) fn with(
        medium: Medium,
        options: Options,
        mut epochs: Twice,
        numbering: Numbering,
        max_bytes: u64,
        now: u64,
    ) -> Result<Self, StoreError> {
        let (rows, level) = Rows::new(numbering);
        let writer = Writer::open(medium, options, rows)?;
        let outbox = Self {
            writer,
            level,
            max_bytes,
        };
        outbox.settle_epoch(&mut epochs, now)?;
        Ok(outbox)
    }

    /// Makes the readings durable; waits while the outbox is full.
    ///
    /// # Errors
    /// The store's. Whether they are in then shows by [`Outbox::position`].
    pub async fn append(&self, append: Append) -> Result<(), StoreError> {
        let mut level = self.level.clone();
        // The writer, and with it the sender of the level, lives as long as `self`.
        let _ = level.wait_for(|level| level.bytes < self.max_bytes).await;
        self.ask(|reply| Op::Append { append, reply }).await
    }

    /// The readings after row `id`, oldest first, at most `most`.
    ///
    /// # Errors
    /// The store's.
    pub fn after(&self, id: u64, most: usize) -> Result<Vec<Row>, StoreError> {
        table::after(&self.reader(), id, most)
    }

    /// Removes readings that a server has taken over.
    ///
    /// # Errors
    /// The store's; they are then sent again and recognised as repeats.
    pub async fn acknowledge(&self, ids: Vec<u64>) -> Result<(), StoreError> {
        self.ask(|reply| Op::Acknowledge { ids, reply }).await
    }

    /// Gives a refused reading a new number behind all others of its topic. For a reading that a
    /// server refused after it had got later ones, and would now take for a repeat.
    ///
    /// # Errors
    /// The store's; the reading is where it was then.
    pub async fn restamp(&self, id: u64) -> Result<(), StoreError> {
        self.ask(|reply| Op::Restamp { id, reply }).await
    }

    /// Where the sensor goes on.
    ///
    /// # Errors
    /// The store's.
    pub fn position(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        table::position(&self.reader(), name)
    }

    /// The counters of every topic, by its last part.
    ///
    /// # Errors
    /// The store's.
    pub fn topics(&self) -> Result<BTreeMap<String, Topic>, StoreError> {
        table::topics(&self.reader())
    }

    /// How much waits, now and as it changes.
    #[must_use]
    pub fn level(&self) -> watch::Receiver<Level> {
        self.level.clone()
    }

    /// The health of the store beneath.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.writer.health()
    }

    fn reader(&self) -> Reader {
        self.writer.reader()
    }

    async fn ask(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Op,
    ) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer
            .send(op(reply))
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Servers drop what is not above the highest (epoch, seq) they have seen. A fresh or restored
    /// file would begin its numbers again, so it gets an epoch above every former one: the twice
    /// written file remembers them, and the clock stands in when that is gone too.
    fn settle_epoch(&self, epochs: &mut Twice, now: u64) -> Result<(), StoreError> {
        let kept = epochs.content().try_into().map_or(0, u64::from_le_bytes);
        let stored = table::epoch(&self.reader())?;
        if kept != 0 && stored == Some(kept) {
            return Ok(());
        }
        let epoch = now.max(kept.max(stored.unwrap_or(0)).saturating_add(1));
        match stored {
            None => info!(epoch, "a new outbox"),
            Some(_) => warn!(
                epoch,
                "the outbox is not the one used last; a new epoch begins"
            ),
        }
        epochs.write(&epoch.to_le_bytes())?;
        let (reply, answer) = oneshot::channel();
        self.writer
            .try_send(Op::Epoch { epoch, reply })
            .map_err(|_| StoreError::Closed)?;
        wait(answer)
    }
}

/// Waits without a runtime: opening happens before the daemon's tasks start.
fn wait(mut answer: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), StoreError> {
    loop {
        match answer.try_recv() {
            Ok(result) => return result,
            Err(oneshot::error::TryRecvError::Closed) => return Err(StoreError::Closed),
            Err(oneshot::error::TryRecvError::Empty) => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests;
