//! The one thread that writes: a bounded mailbox in, group commits out.
//!
//! A caller declares its operations and how they are applied ([`Schema`]) and gets a cheap handle
//! ([`Writer`]). The thread drains what waits, up to a bound, into one transaction, commits it (two
//! phases, quick repair), and only then answers. It never delays what somebody waits for to gather
//! more, and never applies a failed batch a second time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::WriteTransaction;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;
use tracing::{error, info, warn};

use crate::reserve::Reserve;
use crate::{Halt, Health, Medium, Options, Quarantined, Reader, State, StoreError, medium};

/// Somebody's tables and operations.
///
/// All calls come from the writer thread, one at a time.
pub trait Schema: Send + 'static {
    /// One operation; it carries what is needed to answer it (a oneshot, a ticket).
    type Op: Send + 'static;

    /// Makes tables that are missing and (re)loads what the schema keeps in memory. Runs in a
    /// transaction of its own after each opening of the file, and again after a failed batch.
    ///
    /// # Errors
    /// The engine's; at the first opening it ends [`Writer::open`].
    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError>;

    /// Applies a batch within `tx`, in order. May run a second time on the same operations, in
    /// another transaction, after a [`Halt::Refused`]: it must not answer anybody.
    ///
    /// # Errors
    /// [`Halt::Store`] fails the batch, [`Halt::Refused`] one operation of it.
    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Self::Op]) -> Result<(), Halt>;

    /// The batch is applied and its commit is about to begin: what may be done whether or not it
    /// succeeds can be done now, while the disk works.
    fn applied(&mut self, _ops: &mut [Self::Op]) {}

    /// The commit that holds `ops` is on the disk: answer them.
    fn done(&mut self, ops: Vec<Self::Op>);

    /// Whether `ops` are in is not known (after a failed commit), or they are surely not (any other
    /// fault): tell their senders, who may send again.
    fn failed(&mut self, ops: Vec<Self::Op>, error: &StoreError);

    /// The operation was refused by [`Halt::Refused`] and has left nothing behind.
    fn refused(&mut self, op: Self::Op) {
        self.failed(
            vec![op],
            &StoreError::Misuse("refused by its own schema".into()),
        );
    }

    /// Whether the operation is taken from the reserve when the disk is full (revocations,
    /// acknowledgements that free space, counters).
    fn essential(_op: &Self::Op) -> bool {
        true
    }

    /// Whether the operation may wait for others to share their commit, [`PATIENCE`] at most: nobody
    /// waits for it, and losing it with the power does no harm.
    fn patient(_op: &Self::Op) -> bool {
        false
    }
}

/// How long patient operations wait for a commit that others need.
pub const PATIENCE: Duration = Duration::from_millis(20);

/// The writer is gone; the operation comes back.
#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
pub struct SendError<T>(pub T);

/// The operation was not taken and comes back.
#[derive(Debug, thiserror::Error)]
pub enum TrySendError<T> {
    /// The mailbox is at its bound.
    #[error("the store's mailbox is full")]
    Full(T),
    /// The writer is gone.
    #[error("the store is closed")]
    Closed(T),
}

/// The handle: clone it freely. The last one dropped lets the thread finish what waits and joins it.
#[derive(Debug)]
pub struct Writer<S: Schema> {
    inner: Arc<Inner<S::Op>>,
}

impl<S: Schema> Clone for Writer<S> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<S: Schema> Writer<S> {
    /// Opens the medium, prepares the schema and starts the thread.
    ///
    /// # Errors
    /// When the medium cannot be opened, is damaged (unless it was quarantined, see
    /// [`Options::damaged`]), or the schema cannot be prepared.
    pub fn open(medium: Medium, options: Options, schema: S) -> Result<Self, StoreError> {
        let (database, quarantined) = match medium::open_first(&medium, &options) {
            // A daemon that stays down on a full disk helps nobody: what is kept back is for this too.
            Err(error) if error.is_full() && Reserve::give_free(&medium, &options) => {
                medium::open_first(&medium, &options)?
            }
            opened => opened?,
        };
        if let Some(Quarantined { path, why }) = &quarantined {
            error!(path = %path.display(), %why, "damaged store moved away; beginning empty");
        }
        let reserve = Reserve::new(&medium, &options);
        let (health, watching) = watch::channel(Health {
            state: State::Open,
            opened: 1,
            failed_batches: 0,
            last_error: None,
            quarantined,
        });
        let (mailbox, incoming) = mpsc::channel(options.mailbox.max(1));
        let reader = Reader::new(database);
        let name = options.name;
        let mut engine = Engine {
            schema,
            incoming,
            reader: reader.clone(),
            medium,
            options,
            reserve,
            health,
            unprepared: true,
        };
        engine.begin()?;
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || engine.run())?;
        let inner = Inner {
            mailbox: Some(mailbox),
            reader,
            health: watching,
            thread: Mutex::new(Some(thread)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Hands an operation in; waits while the mailbox is full.
    ///
    /// # Errors
    /// The operation, when the writer is gone.
    pub async fn send(&self, op: S::Op) -> Result<(), SendError<S::Op>> {
        self.inner
            .mailbox()
            .send(op)
            .await
            .map_err(|back| SendError(back.0))
    }

    /// Hands an operation in if there is room.
    ///
    /// # Errors
    /// The operation, when the mailbox is full or the writer gone.
    pub fn try_send(&self, op: S::Op) -> Result<(), TrySendError<S::Op>> {
        self.inner
            .mailbox()
            .try_send(op)
            .map_err(|back| match back {
                mpsc::error::TrySendError::Full(op) => TrySendError::Full(op),
                mpsc::error::TrySendError::Closed(op) => TrySendError::Closed(op),
            })
    }

    /// Hands an operation in from a thread outside the async runtime; waits while the mailbox is full.
    ///
    /// # Errors
    /// The operation, when the writer is gone.
    ///
    /// # Panics
    /// When called within an async context.
    pub fn blocking_send(&self, op: S::Op) -> Result<(), SendError<S::Op>> {
        self.inner
            .mailbox()
            .blocking_send(op)
            .map_err(|back| SendError(back.0))
    }

    /// Snapshots beside the writer.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.inner.reader.clone()
    }

    /// The store's health, now and as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.inner.health.clone()
    }

    /// How many operations wait in the mailbox (for metrics).
    #[must_use]
    pub fn waiting(&self) -> usize {
        let mailbox = self.inner.mailbox();
        mailbox.max_capacity() - mailbox.capacity()
    }
}

#[derive(Debug)]
struct Inner<Op> {
    /// `Some` until dropped: closing it is what ends the thread.
    mailbox: Option<mpsc::Sender<Op>>,
    reader: Reader,
    health: watch::Receiver<Health>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<Op> Inner<Op> {
    fn mailbox(&self) -> &mpsc::Sender<Op> {
        self.mailbox
            .as_ref()
            .expect("the mailbox is there until the last handle is dropped")
    }
}

impl<Op> Drop for Inner<Op> {
    fn drop(&mut self) {
        self.mailbox = None;
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            error!("the store's thread panicked");
        }
    }
}

struct Engine<S: Schema> {
    schema: S,
    incoming: mpsc::Receiver<S::Op>,
    reader: Reader,
    medium: Medium,
    options: Options,
    reserve: Reserve,
    health: watch::Sender<Health>,
    /// The schema's memory may differ from the file: prepare before the next batch.
    unprepared: bool,
}

impl<S: Schema> Drop for Engine<S> {
    fn drop(&mut self) {
        self.reader.replace(None);
        self.health
            .send_modify(|health| health.state = State::Closed);
    }
}

impl<S: Schema> Engine<S> {
    /// Prepares for the first time; on a full disk with the reserve's space.
    fn begin(&mut self) -> Result<(), StoreError> {
        match self.prepare() {
            Err(error) if error.is_full() && !self.reserve.in_use() && self.reserve.release() => {
                warn!("the store works on its reserve: free some disk space");
                self.close_for(&error, 0);
                self.reopen_once()
            }
            done => done,
        }
    }

    fn run(mut self) {
        // Without one, nothing is patient.
        let clock = Builder::new_current_thread().enable_time().build().ok();
        while let Some(first) = self.incoming.blocking_recv() {
            let mut batch = vec![first];
            self.drain(&mut batch);
            if let Some(clock) = &clock {
                self.wait_for_others(clock, &mut batch);
            }
            self.write(batch);
        }
    }

    /// Takes what waits, up to the bound of a commit.
    fn drain(&mut self, batch: &mut Vec<S::Op>) {
        while batch.len() < self.options.max_batch
            && let Ok(next) = self.incoming.try_recv()
        {
            batch.push(next);
        }
    }

    /// While nobody waits for any of these, others may come that need a commit anyway.
    fn wait_for_others(&mut self, clock: &Runtime, batch: &mut Vec<S::Op>) {
        let until = std::time::Instant::now() + PATIENCE;
        let mut seen = 0;
        while batch.len() < self.options.max_batch && batch[seen..].iter().all(S::patient) {
            seen = batch.len();
            let next = self.incoming.recv();
            let next = clock.block_on(async { timeout_at(until.into(), next).await });
            let Ok(Some(next)) = next else { return };
            batch.push(next);
            self.drain(batch);
        }
    }

    /// Commits the batch, or fails it and puts the store in order again.
    fn write(&mut self, batch: Vec<S::Op>) {
        let mut rest = self.admit(batch);
        while !rest.is_empty() {
            let mut batch = rest;
            rest = Vec::new();
            let outcome = self.commit(&mut batch);
            match outcome {
                Ok(()) => self.schema.done(batch),
                Err(Halt::Refused(index)) if index < batch.len() => {
                    rest = batch.split_off(index + 1);
                    self.refuse_last(batch);
                }
                Err(Halt::Refused(_)) => {
                    let error = StoreError::Misuse("refused an operation that is not there".into());
                    self.fail(batch, &error);
                }
                Err(Halt::Store(error)) => rest = self.fail_or_reserve(batch, &error),
            }
        }
    }

    /// The first batch that meets the full disk: what must get through is tried again with the
    /// reserve's space, the others fail. A disk that does not even open again fails all, at once.
    fn fail_or_reserve(&mut self, batch: Vec<S::Op>, error: &StoreError) -> Vec<S::Op> {
        if !error.is_full() || self.reserve.in_use() || !self.reserve.release() {
            self.fail(batch, error);
            return Vec::new();
        }
        warn!("the store works on its reserve: free some disk space");
        self.close_for(error, batch.len());
        let (again, failed): (Vec<_>, Vec<_>) = batch.into_iter().partition(S::essential);
        self.schema.failed(failed, error);
        if !error.poisons() {
            return again;
        }
        match self.reopen_once() {
            Ok(()) => again,
            Err(error) => {
                self.schema.failed(again, &error);
                self.reopen();
                Vec::new()
            }
        }
    }

    /// The last operation of `batch` was refused: commits the others, then answers all.
    fn refuse_last(&mut self, mut batch: Vec<S::Op>) {
        let Some(refused) = batch.pop() else { return };
        self.unprepared = true;
        if !batch.is_empty() {
            match self.commit(&mut batch) {
                Ok(()) => self.schema.done(batch),
                Err(halt) => {
                    let error = match halt {
                        Halt::Store(error) => error,
                        Halt::Refused(_) => {
                            StoreError::Misuse("refused at the second try only".into())
                        }
                    };
                    // The refusal was a judgement upon what the others had written.
                    batch.push(refused);
                    return self.fail(batch, &error);
                }
            }
        }
        self.schema.refused(refused);
    }

    /// When on the reserve: takes essential operations only, and tries to leave that state.
    fn admit(&mut self, batch: Vec<S::Op>) -> Vec<S::Op> {
        if !self.reserve.in_use() {
            return batch;
        }
        if self.reserve.restore() {
            info!("the store has space again");
            self.health.send_modify(|health| health.state = State::Open);
            return batch;
        }
        let (taken, left): (Vec<_>, Vec<_>) = batch.into_iter().partition(S::essential);
        if !left.is_empty() {
            self.schema.failed(left, &StoreError::Full);
        }
        taken
    }

    fn commit(&mut self, ops: &mut [S::Op]) -> Result<(), Halt> {
        self.prepare()?;
        let Self { schema, reader, .. } = self;
        catch_unwind(AssertUnwindSafe(|| {
            let tx = begin(reader)?;
            schema.apply(&tx, ops)?;
            schema.applied(ops);
            tx.commit()?;
            Ok(())
        }))
        .unwrap_or_else(|_| Err(StoreError::Panicked.into()))
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        if !self.unprepared {
            return Ok(());
        }
        let Self { schema, reader, .. } = self;
        catch_unwind(AssertUnwindSafe(|| {
            let tx = begin(reader)?;
            schema.prepare(&tx)?;
            tx.commit()?;
            Ok::<_, StoreError>(())
        }))
        .unwrap_or(Err(StoreError::Panicked))?;
        self.unprepared = false;
        Ok(())
    }

    fn fail(&mut self, batch: Vec<S::Op>, error: &StoreError) {
        self.close_for(error, batch.len());
        self.schema.failed(batch, error);
        if error.is_full() && self.reserve.release() {
            warn!("the store works on its reserve: free some disk space");
        }
        if error.poisons() {
            self.reopen();
        }
    }

    /// Before anybody hears of the failure: no answer and no read may come from a handle that has
    /// seen a failed call.
    fn close_for(&mut self, error: &StoreError, operations: usize) {
        self.unprepared = true;
        self.health.send_modify(|health| {
            health.failed_batches += 1;
            health.last_error = Some(error.clone());
        });
        if error.poisons() {
            self.reader.replace(None);
            self.health
                .send_modify(|health| health.state = State::Reopening);
            error!(%error, operations, "the store failed a batch; reopening");
        } else {
            warn!(%error, operations, "the store refused a batch");
        }
    }

    /// Tries until the file is open again. After the first attempt whatever arrives is refused, so
    /// that nobody waits for a dead disk.
    fn reopen(&mut self) {
        let mut pause = (self.options.reopen_pause / 64).max(Duration::from_millis(1));
        loop {
            let error = match self.reopen_once() {
                Ok(()) => return,
                Err(error) => error,
            };
            self.reader.replace(None);
            self.health
                .send_modify(|health| health.last_error = Some(error.clone()));
            if self.refuse_for(pause, &error) {
                return;
            }
            pause = (pause * 2).min(self.options.reopen_pause);
        }
    }

    fn reopen_once(&mut self) -> Result<(), StoreError> {
        let database = medium::open(&self.medium, &self.options)?;
        self.reader.replace(Some(database));
        self.unprepared = true;
        self.prepare()?;
        let state = if self.reserve.in_use() {
            State::Full
        } else {
            State::Open
        };
        self.health.send_modify(|health| {
            health.state = state;
            health.opened += 1;
        });
        info!("the store is open again");
        Ok(())
    }

    /// Refuses what arrives during `pause`; true when all handles are gone.
    fn refuse_for(&mut self, pause: Duration, error: &StoreError) -> bool {
        let until = std::time::Instant::now() + pause;
        loop {
            match self.incoming.try_recv() {
                Ok(op) => self.schema.failed(vec![op], error),
                Err(mpsc::error::TryRecvError::Disconnected) => return true,
                Err(mpsc::error::TryRecvError::Empty) => {
                    let left = until.saturating_duration_since(std::time::Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    std::thread::sleep(left.min(REFUSAL_TICK));
                }
            }
        }
    }
}

/// How long an operation may wait for its refusal while the store is down.
const REFUSAL_TICK: Duration = Duration::from_millis(5);

fn begin(reader: &Reader) -> Result<WriteTransaction, StoreError> {
    let mut tx = reader.begin_write()?;
    tx.set_two_phase_commit(true);
    tx.set_quick_repair(true);
    Ok(tx)
}
