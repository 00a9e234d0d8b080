//! The closure form of the store, for callers with many kinds of small writes (`cps`).
//!
//! A job is a closure over the write transaction; jobs of many callers share a commit, and one that
//! refuses leaves nothing behind while the others go on. On the same engine as [`crate::Writer`].

use std::fmt;

use redb::WriteTransaction;
use tokio::sync::{oneshot, watch};

use crate::{
    Halt, Health, Medium, Options, Reader, Schema, StoreError, WriteError, Writer, Written,
};

/// A store written by closures: clone it freely.
#[derive(Debug, Clone)]
pub struct Store {
    writer: Writer<Jobs>,
}

/// Makes the tables at each opening.
type Prepare = dyn FnMut(&WriteTransaction) -> Result<(), StoreError> + Send;

impl Store {
    /// Opens the medium. `prepare` makes the tables; it runs after each (re)opening.
    ///
    /// # Errors
    /// As [`Writer::open`].
    pub fn open(
        medium: Medium,
        options: Options,
        prepare: impl FnMut(&WriteTransaction) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Self, StoreError> {
        let jobs = Jobs {
            prepare: Box::new(prepare),
        };
        Ok(Self {
            writer: Writer::open(medium, options, jobs)?,
        })
    }

    /// Runs `job` in a write transaction and returns its value after the commit.
    ///
    /// The job may run more than once (when another job of the same commit refuses), so it does
    /// nothing but read and write tables. Dropping the future does not take the job back.
    ///
    /// # Errors
    /// [`WriteError::Job`] as the job returned it, and nothing of it stays; [`WriteError::Store`]
    /// when the store failed: after a failed commit whether the write is in shows by reading.
    pub async fn write<T, E, F>(&self, job: F) -> Written<T, E>
    where
        F: FnMut(&WriteTransaction) -> Written<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.submit(job, false).await
    }

    /// As [`Store::write`], for what must get through on a full disk, from the reserve.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn write_essential<T, E, F>(&self, job: F) -> Written<T, E>
    where
        F: FnMut(&WriteTransaction) -> Written<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.submit(job, true).await
    }

    /// Runs `read` on a snapshot of the last commit, on the caller's thread.
    ///
    /// # Errors
    /// Those of [`Reader::begin`] and of `read` itself.
    pub fn read<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        self.writer.reader().read(read)
    }

    /// Snapshots beside the writer.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.writer.reader()
    }

    /// The store's health, now and as it changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.writer.health()
    }

    async fn submit<T, E, F>(&self, run: F, essential: bool) -> Written<T, E>
    where
        F: FnMut(&WriteTransaction) -> Written<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work = Work {
            run,
            result: None,
            reply,
        };
        let job = Job {
            work: Box::new(work),
            essential,
        };
        self.writer
            .send(job)
            .await
            .map_err(|_| StoreError::Closed)?;
        answer
            .await
            .unwrap_or(Err(WriteError::Store(StoreError::Closed)))
    }
}

/// One closure waiting for its commit.
struct Job {
    work: Box<dyn Run>,
    essential: bool,
}

trait Run: Send {
    fn run(&mut self, tx: &WriteTransaction) -> Result<(), Stop>;
    /// Sends the result of the last run, or the store's fault in its place.
    fn finish(self: Box<Self>, fault: Option<&StoreError>);
}

enum Stop {
    Refused,
    Store(StoreError),
}

struct Work<F, T, E> {
    run: F,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Written<T, E>>,
}

impl<F, T, E> Run for Work<F, T, E>
where
    F: FnMut(&WriteTransaction) -> Written<T, E> + Send,
    T: Send,
    E: Send,
{
    fn run(&mut self, tx: &WriteTransaction) -> Result<(), Stop> {
        match (self.run)(tx) {
            Ok(value) => {
                self.result = Some(Ok(value));
                Ok(())
            }
            Err(WriteError::Job(refusal)) => {
                self.result = Some(Err(refusal));
                Err(Stop::Refused)
            }
            Err(WriteError::Store(error)) => Err(Stop::Store(error)),
        }
    }

    fn finish(self: Box<Self>, fault: Option<&StoreError>) {
        let answer = match (fault, self.result) {
            (Some(fault), _) => Err(WriteError::Store(fault.clone())),
            (None, Some(result)) => result.map_err(WriteError::Job),
            (None, None) => Err(WriteError::Store(StoreError::Closed)),
        };
        // Nobody may be waiting any more: the job was done all the same.
        let _ = self.reply.send(answer);
    }
}

struct Jobs {
    prepare: Box<Prepare>,
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("essential", &self.essential)
            .finish_non_exhaustive()
    }
}

impl Schema for Jobs {
    type Op = Job;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        (self.prepare)(tx)
    }

    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Job]) -> Result<(), Halt> {
        for (index, job) in ops.iter_mut().enumerate() {
            job.work.run(tx).map_err(|stop| match stop {
                Stop::Refused => Halt::Refused(index),
                Stop::Store(error) => Halt::Store(error),
            })?;
        }
        Ok(())
    }

    fn done(&mut self, ops: Vec<Job>) {
        for job in ops {
            job.work.finish(None);
        }
    }

    fn failed(&mut self, ops: Vec<Job>, error: &StoreError) {
        for job in ops {
            job.work.finish(Some(error));
        }
    }

    fn refused(&mut self, op: Job) {
        op.work.finish(None);
    }

    fn essential(op: &Job) -> bool {
        op.essential
    }
}
