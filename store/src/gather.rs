//! A file whose writes are gathered until the next sync, put in order, and written in long runs.
//!
//! The engine writes a commit page by page, in the order of its cache's locks: some eighty calls of 4 KiB that lie side by
//! side in the file. Nothing is promised of a write before its sync, so that they may just as well go together.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// The most bytes that wait for a sync; more are written at once.
pub(crate) const GATHERED_BYTES: usize = 512 << 10;

/// A backend behind one that gathers its writes.
#[derive(Debug)]
pub(crate) struct Gathering {
    inner: Box<dyn StorageBackend>,
    most: usize,
    waiting: Mutex<Waiting>,
}

/// Writes that the backend has not seen yet; no two of them overlap.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Offset in the file -> where its bytes are.
    places: BTreeMap<u64, Range<usize>>,
    /// Where a run is put together.
    run: Vec<u8>,
}

impl Gathering {
    /// Gathers up to [`GATHERED_BYTES`].
    pub(crate) fn new(inner: Box<dyn StorageBackend>) -> Self {
        Self::up_to(inner, GATHERED_BYTES)
    }

    fn up_to(inner: Box<dyn StorageBackend>, most: usize) -> Self {
        Self {
            inner,
            most,
            waiting: Mutex::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The one that has bytes of `offset..end` and lies furthest back.
    fn overlapping(&self, offset: u64, end: u64) -> Option<(u64, Range<usize>)> {
        let (from, place) = self.places.range(..end).next_back()?;
        let to = from + place.len() as u64;
        (to > offset).then(|| (*from, place.clone()))
    }

    /// Writes all of them. After a failure all of them still wait: whoever handed one in was told that it is written.
    fn write_to(&mut self, inner: &dyn StorageBackend) -> io::Result<()> {
        let mut places = self.places.iter().peekable();
        while let Some((offset, place)) = places.next() {
            let mut end = offset + place.len() as u64;
            self.run.clear();
            while let Some((_, next)) = places.next_if(|(next, _)| **next == end) {
                if self.run.is_empty() {
                    self.run.extend_from_slice(&self.bytes[place.clone()]);
                }
                self.run.extend_from_slice(&self.bytes[next.clone()]);
                end += next.len() as u64;
            }
            if self.run.is_empty() {
                inner.write(*offset, &self.bytes[place.clone()])?;
            } else {
                inner.write(*offset, &self.run)?;
            }
        }
        self.places.clear();
        self.bytes.clear();
        Ok(())
    }
}

impl StorageBackend for Gathering {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        let mut waiting = self.waiting();
        if let Some((from, place)) = waiting.overlapping(offset, end) {
            if from <= offset && end <= from + place.len() as u64 {
                let skipped = usize::try_from(offset - from).map_err(io::Error::other)?;
                let bytes = &waiting.bytes[place][skipped..];
                out.copy_from_slice(&bytes[..out.len()]);
                return Ok(());
            }
            waiting.write_to(&*self.inner)?;
        }
        drop(waiting);
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.waiting().write_to(&*self.inner)?;
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.waiting().write_to(&*self.inner)?;
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut waiting = self.waiting();
        if let Some((from, place)) = waiting.overlapping(offset, offset + data.len() as u64) {
            if from == offset && place.len() == data.len() {
                waiting.bytes[place].copy_from_slice(data);
                return Ok(());
            }
            waiting.write_to(&*self.inner)?;
        }
        if waiting.bytes.len() + data.len() > self.most {
            waiting.write_to(&*self.inner)?;
        }
        if data.len() > self.most {
            return self.inner.write(offset, data);
        }
        let from = waiting.bytes.len();
        waiting.bytes.extend_from_slice(data);
        let to = waiting.bytes.len();
        waiting.places.insert(offset, from..to);
        Ok(())
    }

    /// What still waits belongs to a transaction that never was: a commit ends with a sync.
    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
#[path = "gather/tests.rs"]
mod tests;
