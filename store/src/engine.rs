//! The thread behind a [`crate::Writer`]: takes what waits, makes it safe, answers; and puts the store in order after a failure.
//!
//! Owned by the writer's handle. All calls of a [`Schema`] come from here.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::{ReadableTable as _, TableDefinition, WriteTransaction};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;
use tracing::{error, info, warn};

use crate::log::{Epoch, Log};
use crate::reserve::Reserve;
use crate::writer::PATIENCE;
use crate::{Halt, Health, Medium, Options, Reader, Schema, State, StoreError, medium};

/// Which records of the log are not in the tables yet: (number, secret).
const EPOCH: TableDefinition<(), (u64, u64)> = TableDefinition::new("store_log_epoch");

/// What comes to the thread.
#[derive(Debug)]
pub(crate) enum Letter<Op> {
    Op(Op),
    /// There is something [`Ready`].
    Ready,
}

/// Operations whose record is put together, or could not be.
type Ready<Op> = (Vec<Op>, Result<(), StoreError>);

/// The thread's end of the mailbox.
pub(crate) struct Incoming<Op> {
    pub(crate) letters: mpsc::Receiver<Letter<Op>>,
    /// Operations handed in and not done yet, but for patient ones: while there are any, nobody may overtake them.
    pub(crate) pending: Arc<AtomicUsize>,
}

impl<Op> Incoming<Op> {
    fn done(&self, count: usize) {
        self.pending.fetch_sub(count, Ordering::AcqRel);
    }
}

/// What the thread has and what senders may have for a moment.
pub(crate) type Shared<S> = Arc<Mutex<Engine<S>>>;

pub(crate) struct Engine<S: Schema> {
    pub(crate) schema: S,
    /// Told by its sender in a record that is to be made safe before anything else is done.
    pub(crate) ready: Option<Ready<S::Op>>,
    pub(crate) reader: Reader,
    pub(crate) log: Option<Log>,
    pub(crate) medium: Medium,
    pub(crate) options: Options,
    pub(crate) reserve: Reserve,
    pub(crate) health: watch::Sender<Health>,
    /// The schema's memory may differ from the file: prepare before the next batch.
    pub(crate) unprepared: bool,
}

/// However the thread ends, nobody reads on or waits for it.
struct Closing<'a, S: Schema>(&'a Shared<S>);

impl<S: Schema> Drop for Closing<'_, S> {
    fn drop(&mut self) {
        let mut engine = lock(self.0);
        if let Some((ops, _)) = engine.ready.take() {
            engine.schema.failed(ops, &StoreError::Closed);
        }
        engine.log = None;
        engine.reader.replace(None);
        engine
            .health
            .send_modify(|health| health.state = State::Closed);
    }
}

impl<S: Schema> Engine<S> {
    /// Prepares for the first time; on a full disk with the reserve's space.
    pub(crate) fn begin(&mut self) -> Result<(), StoreError> {
        match self.prepare() {
            Err(error) if error.is_full() && !self.reserve.in_use() && self.reserve.release() => {
                warn!("the store works on its reserve: free some disk space");
                self.close_for(&error, 0);
                self.reopen_once()
            }
            done => done,
        }
    }

    /// Puts one operation into a record on its sender's own thread, while the engine's sleeps and owes nobody anything; gives
    /// it back when that cannot be. What may be done before the commit is done now, two wake-ups earlier.
    pub(crate) fn make_ready(&mut self, op: S::Op) -> Result<(), S::Op> {
        if self.unprepared || self.ready.is_some() || self.reserve.in_use() {
            return Err(op);
        }
        let ops = std::slice::from_ref(&op);
        if self.schema.checkpoint_due() || !self.is_loggable(ops, Log::left) {
            return Err(op);
        }
        let Self {
            schema,
            reader,
            log: Some(log),
            ..
        } = self
        else {
            return Err(op);
        };
        let mut ops = vec![op];
        let told = unwinding(|| {
            schema.log(reader, &mut ops, log.record())?;
            schema.applied(&mut ops);
            Ok(())
        });
        self.ready = Some((ops, told));
        Ok(())
    }

    /// Makes safe what is ready: before anything else is written.
    fn finish_ready(&mut self, incoming: &mut Incoming<S::Op>) {
        let Some((ops, told)) = self.ready.take() else {
            return;
        };
        let log = &mut self.log;
        let safe =
            told.and_then(|()| unwinding(|| log.as_mut().ok_or(StoreError::Closed)?.append()));
        match safe {
            Ok(()) => self.schema.done(ops),
            Err(error) => {
                let rest = self.fail_or_reserve(ops, &error, incoming);
                self.write(rest, incoming);
            }
        }
    }

    /// Commits the batch, or fails it and puts the store in order again.
    fn write(&mut self, batch: Vec<S::Op>, incoming: &mut Incoming<S::Op>) {
        let mut rest = self.admit(batch);
        while !rest.is_empty() {
            let mut batch = rest;
            rest = Vec::new();
            let outcome = self.commit(&mut batch);
            match outcome {
                Ok(()) => self.schema.done(batch),
                Err(Halt::Refused(index)) if index < batch.len() => {
                    rest = batch.split_off(index + 1);
                    self.refuse_last(batch, incoming);
                }
                Err(Halt::Refused(_)) => {
                    let error = StoreError::Misuse("refused an operation that is not there".into());
                    self.fail(batch, &error, incoming);
                }
                Err(Halt::Store(error)) => rest = self.fail_or_reserve(batch, &error, incoming),
            }
        }
    }

    /// The first batch that meets the full disk: what must get through is tried again with the
    /// reserve's space, the others fail. A disk that does not even open again fails all, at once.
    fn fail_or_reserve(
        &mut self,
        batch: Vec<S::Op>,
        error: &StoreError,
        incoming: &mut Incoming<S::Op>,
    ) -> Vec<S::Op> {
        if !error.is_full() || self.reserve.in_use() || !self.reserve.release() {
            self.fail(batch, error, incoming);
            return Vec::new();
        }
        warn!("the store works on its reserve: free some disk space");
        self.close_for(error, batch.len());
        let (again, failed): (Vec<_>, Vec<_>) = batch.into_iter().partition(S::essential);
        self.schema.failed(failed, error);
        if !self.is_spoilt_by(error) {
            return again;
        }
        match self.reopen_once() {
            Ok(()) => again,
            Err(error) => {
                self.schema.failed(again, &error);
                self.reopen(incoming);
                Vec::new()
            }
        }
    }

    /// The last operation of `batch` was refused: commits the others, then answers all.
    fn refuse_last(&mut self, mut batch: Vec<S::Op>, incoming: &mut Incoming<S::Op>) {
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
                    return self.fail(batch, &error, incoming);
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

    /// Makes the batch safe: told in the log if that can be, in the tables else.
    fn commit(&mut self, ops: &mut [S::Op]) -> Result<(), Halt> {
        self.prepare()?;
        if self.has_place_for(ops)? {
            return self.tell(ops);
        }
        self.in_tables(|schema, tx| {
            schema.apply(tx, ops)?;
            schema.applied(ops);
            Ok(())
        })
    }

    /// A commit of the tables: what was told is in them with it, and the log begins anew.
    fn in_tables<E: From<StoreError>>(
        &mut self,
        write: impl FnOnce(&mut S, &WriteTransaction) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self {
            schema,
            reader,
            log,
            ..
        } = self;
        unwinding(|| {
            let tx = begin(reader)?;
            let next = name_next(&tx, log.as_ref())?;
            write(schema, &tx)?;
            tx.commit().map_err(StoreError::from)?;
            restart(log, next);
            Ok(())
        })
    }

    /// Whether the batch can be told in the log; makes place for it there. A checkpoint changes what the schema knows of the
    /// tables, so that it is asked after one.
    fn has_place_for(&mut self, ops: &[S::Op]) -> Result<bool, Halt> {
        // On the reserve the log must not grow.
        if self.log.is_none() || self.reserve.in_use() {
            return Ok(false);
        }
        if self.schema.checkpoint_due() {
            self.checkpoint()?;
        }
        if !self.is_loggable(ops, Log::room) {
            return Ok(false);
        }
        if self.is_loggable(ops, Log::left) {
            return Ok(true);
        }
        self.checkpoint()?;
        Ok(self.is_loggable(ops, Log::left))
    }

    fn is_loggable(&self, ops: &[S::Op], room: impl Fn(&Log) -> usize) -> bool {
        self.log.as_ref().is_some_and(|log| {
            let most = unwinding(|| Ok::<_, StoreError>(self.schema.loggable(ops)));
            most.is_ok_and(|most| most.is_some_and(|most| most <= room(log)))
        })
    }

    fn tell(&mut self, ops: &mut [S::Op]) -> Result<(), Halt> {
        let Self {
            schema,
            reader,
            log,
            ..
        } = self;
        unwinding(|| {
            let log = log.as_mut().ok_or(StoreError::Closed)?;
            schema.log(reader, ops, log.record())?;
            schema.applied(ops);
            log.append()?;
            Ok(())
        })
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.in_tables(|schema, tx| schema.checkpoint(tx))?;
        let schema = &mut self.schema;
        unwinding(|| {
            schema.checkpointed();
            Ok(())
        })
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        if !self.unprepared {
            return Ok(());
        }
        let Self {
            schema,
            reader,
            log,
            ..
        } = self;
        unwinding(|| {
            let tx = begin(reader)?;
            schema.begin_replay();
            if let Some(log) = log {
                let told = epoch_of(&tx)?;
                log.each(told, |record| schema.replay(record))?;
                log.restart(told);
            }
            let next = name_next(&tx, log.as_ref())?;
            schema.prepare(&tx)?;
            tx.commit()?;
            restart(log, next);
            schema.prepared();
            Ok::<_, StoreError>(())
        })?;
        self.unprepared = false;
        Ok(())
    }

    fn fail(&mut self, batch: Vec<S::Op>, error: &StoreError, incoming: &mut Incoming<S::Op>) {
        self.close_for(error, batch.len());
        self.schema.failed(batch, error);
        if error.is_full() && self.reserve.release() {
            warn!("the store works on its reserve: free some disk space");
        }
        if self.is_spoilt_by(error) {
            self.reopen(incoming);
        }
    }

    /// Whether all is to be opened and read again: a batch that is told changes what the schema keeps in memory as it goes.
    fn is_spoilt_by(&self, error: &StoreError) -> bool {
        error.poisons() || self.options.log_bytes > 0
    }

    /// Before anybody hears of the failure: no answer and no read may come from a handle that has
    /// seen a failed call.
    fn close_for(&mut self, error: &StoreError, operations: usize) {
        self.unprepared = true;
        self.health.send_modify(|health| {
            health.failed_batches += 1;
            health.last_error = Some(error.clone());
        });
        if self.is_spoilt_by(error) {
            // The file is open as long as one of the two has it.
            self.log = None;
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
    fn reopen(&mut self, incoming: &mut Incoming<S::Op>) {
        let mut pause = (self.options.reopen_pause / 64).max(Duration::from_millis(1));
        loop {
            let error = match self.reopen_once() {
                Ok(()) => return,
                Err(error) => error,
            };
            self.log = None;
            self.reader.replace(None);
            self.health
                .send_modify(|health| health.last_error = Some(error.clone()));
            if self.refuse_for(pause, &error, incoming) {
                return;
            }
            pause = (pause * 2).min(self.options.reopen_pause);
        }
    }

    fn reopen_once(&mut self) -> Result<(), StoreError> {
        let opened = medium::open(&self.medium, &self.options)?;
        self.log = opened.log;
        // Nobody may look at the new handle together with what the failed batch has left in memory.
        self.schema.begin_replay();
        self.reader.replace(Some(opened.database));
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
    fn refuse_for(
        &mut self,
        pause: Duration,
        error: &StoreError,
        incoming: &mut Incoming<S::Op>,
    ) -> bool {
        let until = std::time::Instant::now() + pause;
        loop {
            match incoming.letters.try_recv() {
                Ok(Letter::Op(op)) => {
                    let owed = owed::<S>(std::slice::from_ref(&op));
                    self.schema.failed(vec![op], error);
                    incoming.done(owed);
                }
                Ok(Letter::Ready) => {}
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

/// The thread: takes what waits, makes it safe, answers, until all handles are gone.
pub(crate) fn run<S: Schema>(engine: &Shared<S>, mut incoming: Incoming<S::Op>, most: usize) {
    let _closing = Closing(engine);
    // Without one, nothing is patient.
    let clock = Builder::new_current_thread().enable_time().build().ok();
    let mut batch = Vec::new();
    while let Some(first) = incoming.letters.blocking_recv() {
        take::<S>(first, &mut batch);
        drain::<S>(&mut incoming, &mut batch, most);
        if let Some(clock) = &clock {
            wait_for_others(engine, clock, &mut incoming, &mut batch, most);
        }
        let owed = owed::<S>(&batch);
        let mut engine = lock(engine);
        engine.finish_ready(&mut incoming);
        engine.write(std::mem::take(&mut batch), &mut incoming);
        drop(engine);
        incoming.done(owed);
    }
}

pub(crate) fn lock<S: Schema>(engine: &Shared<S>) -> MutexGuard<'_, Engine<S>> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take<S: Schema>(letter: Letter<S::Op>, batch: &mut Vec<S::Op>) {
    if let Letter::Op(op) = letter {
        batch.push(op);
    }
}

/// How many of these count as pending.
fn owed<S: Schema>(ops: &[S::Op]) -> usize {
    ops.iter().filter(|op| !S::patient(op)).count()
}

/// Takes what waits, up to the bound of a commit.
fn drain<S: Schema>(incoming: &mut Incoming<S::Op>, batch: &mut Vec<S::Op>, most: usize) {
    let mut size: usize = batch.iter().map(S::size).sum();
    while size < most
        && let Ok(next) = incoming.letters.try_recv()
    {
        if let Letter::Op(op) = next {
            size += S::size(&op);
            batch.push(op);
        }
    }
}

/// While nobody waits for any of these, others may come that need a commit anyway.
fn wait_for_others<S: Schema>(
    engine: &Shared<S>,
    clock: &Runtime,
    incoming: &mut Incoming<S::Op>,
    batch: &mut Vec<S::Op>,
    most: usize,
) {
    let until = std::time::Instant::now() + PATIENCE;
    let mut seen = 0;
    while !batch.is_empty() && batch.len() < most && batch[seen..].iter().all(S::patient) {
        lock(engine).finish_ready(incoming);
        seen = batch.len();
        let next = incoming.letters.recv();
        let next = clock.block_on(async { timeout_at(until.into(), next).await });
        let Ok(Some(next)) = next else { return };
        take::<S>(next, batch);
        drain::<S>(incoming, batch, most);
    }
}

/// How long an operation may wait for its refusal while the store is down.
const REFUSAL_TICK: Duration = Duration::from_millis(5);

/// A panic within the schema or the engine is a failure like any other.
fn unwinding<T, E: From<StoreError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(StoreError::Panicked.into()))
}

/// Names the log's next epoch in the tables: with this commit all that it told is in them.
fn name_next(tx: &WriteTransaction, log: Option<&Log>) -> Result<Epoch, StoreError> {
    let Some(log) = log else {
        return Ok(Epoch::default());
    };
    let next = log.epoch().next();
    let mut table = tx.open_table(EPOCH)?;
    table.insert((), (next.number, next.secret))?;
    Ok(next)
}

fn restart(log: &mut Option<Log>, epoch: Epoch) {
    if let Some(log) = log {
        log.restart(epoch);
    }
}

/// The epoch that the tables name; a store that names none has told nothing yet.
fn epoch_of(tx: &WriteTransaction) -> Result<Epoch, StoreError> {
    let table = tx.open_table(EPOCH)?;
    if let Some(found) = table.get(())? {
        let (number, secret) = found.value();
        return Ok(Epoch { number, secret });
    }
    let mut secret = [0; 8];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    Ok(Epoch {
        number: 0,
        secret: u64::from_le_bytes(secret),
    })
}

fn begin(reader: &Reader) -> Result<WriteTransaction, StoreError> {
    let mut tx = reader.begin_write()?;
    tx.set_two_phase_commit(true);
    tx.set_quick_repair(true);
    Ok(tx)
}
