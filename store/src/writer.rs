//! The one thread that writes: a bounded mailbox in, group commits out.
//!
//! A caller declares its operations and how they are applied ([`Schema`]) and gets a cheap handle
//! ([`Writer`]). The thread drains what waits, up to a bound, into one transaction, commits it (two
//! phases, quick repair), and only then answers. It never delays what somebody waits for to gather
//! more, and never applies a failed batch a second time.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::WriteTransaction;
use tokio::sync::{mpsc, watch};
use tracing::error;

use crate::engine::{self, Engine, Incoming, Letter, Shared};
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

    /// How much of [`Options::max_batch`] the operation takes.
    fn size(_op: &Self::Op) -> usize {
        1
    }

    /// Whether the operation is taken from the reserve when the disk is full (revocations,
    /// acknowledgements that free space, counters).
    fn essential(_op: &Self::Op) -> bool {
        true
    }

    // The log in front of the tables, for schemas that use it ([`Options::log_bytes`]): a batch that is told there is safe by
    // one write and one sync. What was told gets into the tables with the next commit of theirs, which the engine asks for
    // by a checkpoint when the log is full or the schema says so.

    /// The most bytes that [`Schema::log`] would write for this batch; `None` when it must go to the tables.
    fn loggable(&self, _ops: &[Self::Op]) -> Option<usize> {
        None
    }

    /// Tells the batch in `record`, behind what is there, in place of [`Schema::apply`]. `reader` gives the tables as they are.
    ///
    /// # Errors
    /// The batch fails.
    fn log(
        &mut self,
        _reader: &Reader,
        _ops: &mut [Self::Op],
        _record: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        Err(StoreError::Misuse("a schema that tells nothing".into()))
    }

    /// Whether what was told should get into the tables before more is.
    fn checkpoint_due(&self) -> bool {
        false
    }

    /// Puts all that was told into the tables. [`Schema::apply`] does so too, before anything else.
    ///
    /// # Errors
    /// The engine's.
    fn checkpoint(&mut self, _tx: &WriteTransaction) -> Result<(), StoreError> {
        Ok(())
    }

    /// What was told is in the tables: that commit is on the disk.
    fn checkpointed(&mut self) {}

    /// Before [`Schema::prepare`]: forgets what was told, since the records follow that are on the disk.
    fn begin_replay(&mut self) {}

    /// One record of the log, oldest first. [`Schema::prepare`] then puts all of them into the tables.
    ///
    /// # Errors
    /// The record is none of this schema's.
    fn replay(&mut self, _record: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    /// What [`Schema::prepare`] wrote is on the disk.
    fn prepared(&mut self) {}

    /// Whether the operation may wait for others to share their commit, [`PATIENCE`] at most: nobody
    /// waits for it, and losing it with the power does no harm.
    fn patient(_op: &Self::Op) -> bool {
        false
    }
}

/// An operation of no more than this size is put into its record by its sender: nobody's turn takes long for it.
const LITTLE: usize = 16;

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
pub struct Writer<S: Schema> {
    inner: Arc<Inner<S>>,
}

impl<S: Schema> fmt::Debug for Writer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
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
        let (opened, quarantined) = match medium::open_first(&medium, &options) {
            // A daemon that stays down on a full disk helps nobody: what is kept back is for this too.
            Err(error) if error.is_full() && Reserve::give_free(&medium, &options) => {
                medium::open_first(&medium, &options)?
            }
            other => other?,
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
        let (mailbox, letters) = mpsc::channel(options.mailbox.max(1));
        let reader = Reader::new(opened.database);
        let name = options.name;
        let mut engine = Engine {
            schema,
            ready: None,
            reader: reader.clone(),
            log: opened.log,
            medium,
            options,
            reserve,
            health,
            unprepared: true,
        };
        engine.begin()?;
        let most = engine.options.max_batch;
        let engine = Arc::new(Mutex::new(engine));
        let pending = Arc::default();
        let incoming = Incoming {
            letters,
            pending: Arc::clone(&pending),
        };
        let running = Arc::clone(&engine);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || engine::run(&running, incoming, most))?;
        let inner = Inner {
            mailbox: Some(mailbox),
            engine,
            pending,
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
        let Err(op) = self.inner.make_ready(op) else {
            return Ok(());
        };
        match self.inner.mailbox().reserve().await {
            Ok(place) => {
                place.send(self.inner.letter(op));
                Ok(())
            }
            Err(_) => Err(SendError(op)),
        }
    }

    /// Hands an operation in if there is room.
    ///
    /// # Errors
    /// The operation, when the mailbox is full or the writer gone.
    pub fn try_send(&self, op: S::Op) -> Result<(), TrySendError<S::Op>> {
        match self.inner.mailbox().try_reserve() {
            Ok(place) => {
                place.send(self.inner.letter(op));
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => Err(TrySendError::Full(op)),
            Err(mpsc::error::TrySendError::Closed(())) => Err(TrySendError::Closed(op)),
        }
    }

    /// Hands an operation in from a thread outside the async runtime; waits while the mailbox is full.
    ///
    /// # Errors
    /// The operation, when the writer is gone.
    ///
    /// # Panics
    /// When called within an async context.
    pub fn blocking_send(&self, op: S::Op) -> Result<(), SendError<S::Op>> {
        let letter = self.inner.letter(op);
        let sent = self.inner.mailbox().blocking_send(letter);
        sent.map_err(|back| match back.0 {
            Letter::Op(op) => SendError(op),
            Letter::Ready => unreachable!("an operation was sent"),
        })
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

struct Inner<S: Schema> {
    /// `Some` until dropped: closing it is what ends the thread.
    mailbox: Option<mpsc::Sender<Letter<S::Op>>>,
    engine: Shared<S>,
    pending: Arc<AtomicUsize>,
    reader: Reader,
    health: watch::Receiver<Health>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<S: Schema> Inner<S> {
    /// Counts the operation as pending.
    fn letter(&self, op: S::Op) -> Letter<S::Op> {
        if !S::patient(&op) {
            self.pending.fetch_add(1, Ordering::AcqRel);
        }
        Letter::Op(op)
    }

    /// Lets the sender itself do what comes before the disk, if nobody else is at it.
    fn make_ready(&self, op: S::Op) -> Result<(), S::Op> {
        let idle = || self.pending.load(Ordering::Acquire) == 0;
        if S::patient(&op) || S::size(&op) > LITTLE || !idle() {
            return Err(op);
        }
        let (Ok(place), Ok(mut engine)) = (self.mailbox().try_reserve(), self.engine.try_lock())
        else {
            return Err(op);
        };
        // Looked at again: the thread has the lock while it works on what is pending.
        if !idle() {
            return Err(op);
        }
        engine.make_ready(op)?;
        drop(engine);
        place.send(Letter::Ready);
        Ok(())
    }

    fn mailbox(&self) -> &mpsc::Sender<Letter<S::Op>> {
        self.mailbox
            .as_ref()
            .expect("the mailbox is there until the last handle is dropped")
    }
}

impl<S: Schema> Drop for Inner<S> {
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
