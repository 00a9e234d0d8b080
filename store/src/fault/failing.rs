//! A backend that fails the n-th call of a kind, once or from then on.
//!
//! Wraps any other medium. The count goes on over reopenings, so that a fault can hit the repair too.

use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{BackendError, StorageBackend};

use crate::OpenBackend;

/// Which calls are counted and failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Syncs.
    Sync,
    /// Changes of length.
    SetLen,
    /// All of the above together.
    Any,
}

/// Whether the disk gets well again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// One call fails.
    Once,
    /// All calls from that one on fail.
    Forever,
}

/// One planned fault.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// The calls it concerns.
    pub call: Call,
    /// The n-th such call fails, counted from 1.
    pub at: u64,
    /// What the system says: 5 is EIO, 28 is ENOSPC.
    pub os_error: i32,
    /// Once or for ever.
    pub times: Times,
}

/// The failing medium. Clones share the plan and the count.
#[derive(Debug, Clone)]
pub struct FailingBackend {
    inner: Arc<dyn OpenBackend>,
    plan: Arc<Plan>,
}

impl FailingBackend {
    /// Wraps `inner`; no fault is planned yet.
    #[must_use]
    pub fn new(inner: Arc<dyn OpenBackend>) -> Self {
        Self {
            inner,
            plan: Arc::default(),
        }
    }

    /// Plans a fault and starts to count anew; `None` makes the disk well.
    pub fn plan(&self, fault: Option<Fault>) {
        let mut planned = self
            .plan
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.plan.seen.store(0, Ordering::SeqCst);
        *planned = fault;
    }

    /// How many calls have failed so far.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.plan.failed.load(Ordering::SeqCst)
    }
}

impl OpenBackend for FailingBackend {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Opened {
            inner: self.inner.open()?,
            plan: Arc::clone(&self.plan),
        }))
    }
}

#[derive(Debug, Default)]
struct Plan {
    fault: Mutex<Option<Fault>>,
    seen: AtomicU64,
    failed: AtomicU64,
}

impl Plan {
    fn pass(&self, call: Call) -> io::Result<()> {
        let planned = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fault) = *planned else { return Ok(()) };
        if fault.call != Call::Any && fault.call != call {
            return Ok(());
        }
        let seen = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
        let hit = match fault.times {
            Times::Once => seen == fault.at,
            Times::Forever => seen >= fault.at,
        };
        if !hit {
            return Ok(());
        }
        self.failed.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::from_raw_os_error(fault.os_error))
    }
}

#[derive(Debug)]
struct Opened {
    inner: Box<dyn StorageBackend>,
    plan: Arc<Plan>,
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.plan.pass(Call::Read)?;
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.plan.pass(Call::SetLen)?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.plan.pass(Call::Sync)?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.plan.pass(Call::Write)?;
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }
}
