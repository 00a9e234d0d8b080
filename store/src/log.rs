//! A log in front of the tables: a batch told there is safe by one write and one sync, and gets into the tables later,
//! together with others.
//!
//! Kept by the writer thread, in the first part of the store's own file; the engine's part lies behind ([`Behind`]). The log
//! is written from its beginning again after every commit of the tables, which holds all that the log has told: the commit
//! names the next epoch, and records of earlier ones count for nothing. A record is whole or does not count: its hash goes by
//! a secret of the store, so that nobody can send content that makes a torn record look whole.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use redb::{BackendError, StorageBackend};
use tracing::error;
use twox_hash::XxHash3_64;

use crate::StoreError;

/// The first page of a file with a log says so.
const PAGE: usize = 4096;
const MAGIC: &[u8; 16] = b"holdfast log 1\r\n";
/// Before each record: its hash, its length, epoch and place.
const HEAD: usize = 8 + 4 + 8 + 8;
/// So far before the end of what was ever written the next piece is: a sync of bytes that the file has already is a third
/// cheaper than one that makes it longer.
const AHEAD: u64 = 256 << 10;
/// Memory that is kept from one record to the next.
const KEPT: usize = 1 << 20;

/// A life of the log: what it told is in the tables once they name the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    pub(crate) secret: u64,
}

impl Epoch {
    pub(crate) fn next(self) -> Self {
        Self {
            number: self.number + 1,
            secret: self.secret,
        }
    }
}

/// The log of an open store.
#[derive(Debug)]
pub(crate) struct Log {
    file: Arc<dyn StorageBackend>,
    /// Bytes that it may have.
    size: u64,
    /// Where the next record begins, and up to where there are bytes of ours.
    at: u64,
    filled: u64,
    epoch: Epoch,
    record: Vec<u8>,
}

impl Log {
    /// Bytes that a record may have now.
    pub(crate) fn left(&self) -> usize {
        length(self.size - self.at).saturating_sub(HEAD)
    }

    /// Bytes that a record may have in an empty log.
    pub(crate) fn room(&self) -> usize {
        length(self.size).saturating_sub(HEAD)
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// From the beginning again, with the epoch that the tables name now.
    pub(crate) fn restart(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.at = 0;
    }

    /// Shows each record of `epoch`, in order.
    pub(crate) fn each(
        &self,
        epoch: Epoch,
        mut visit: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut at = 0;
        let mut record = Vec::new();
        while let Some(is_whole) = self.read_record(at, epoch, &mut record)? {
            let next = at + record.len() as u64;
            if is_whole {
                visit(&record[HEAD..])?;
            } else if self.read_record(next, epoch, &mut Vec::new())? == Some(true) {
                // One that was torn by a power cut is the last: this one was safe once.
                error!(
                    at,
                    "a record of the store's log is damaged: check the disk; what it held is lost, the records behind it count"
                );
            } else {
                break;
            }
            at = next;
        }
        Ok(())
    }

    /// Reads the record at a place. `None` = there is none of that epoch; else whether it is whole.
    fn read_record(
        &self,
        at: u64,
        epoch: Epoch,
        record: &mut Vec<u8>,
    ) -> Result<Option<bool>, StoreError> {
        if at + HEAD as u64 >= self.size {
            return Ok(None);
        }
        record.resize(HEAD, 0);
        self.read(at, record)?;
        let told = usize::try_from(number(&record[8..12])).unwrap_or(usize::MAX);
        let ours = number(&record[12..20]) == epoch.number && number(&record[20..28]) == at;
        if !ours || told == 0 || told as u64 > self.size - at - HEAD as u64 {
            return Ok(None);
        }
        record.resize(HEAD + told, 0);
        self.read(at + HEAD as u64, &mut record[HEAD..])?;
        Ok(Some(number(&record[..8]) == hash(record, epoch)))
    }

    /// Where the next record is to be put together.
    pub(crate) fn record(&mut self) -> &mut Vec<u8> {
        self.record.clear();
        self.record.shrink_to(KEPT);
        self.record.resize(HEAD, 0);
        &mut self.record
    }

    /// Makes the record safe. After a failure nothing more can be told: what of it is on the disk is not known, and whoever
    /// reads on should not find it.
    pub(crate) fn append(&mut self) -> Result<(), StoreError> {
        let told = self.record.len() - HEAD;
        if told == 0 {
            return Ok(());
        }
        if told > self.left() {
            return Err(StoreError::Misuse("a record longer than the log".into()));
        }
        let written = self.write_record();
        if written.is_err() {
            let _ = self.file.write(PAGE as u64 + self.at, &[0; HEAD]);
        }
        written
    }

    fn write_record(&mut self) -> Result<(), StoreError> {
        let told = u32::try_from(self.record.len() - HEAD);
        let told = told.map_err(|_| StoreError::Misuse("a record that is too long".into()))?;
        self.record[8..12].copy_from_slice(&told.to_be_bytes());
        self.record[12..20].copy_from_slice(&self.epoch.number.to_be_bytes());
        self.record[20..28].copy_from_slice(&self.at.to_be_bytes());
        let hash = hash(&self.record, self.epoch);
        self.record[..8].copy_from_slice(&hash.to_be_bytes());
        let end = self.at + self.record.len() as u64;
        if end > self.filled {
            let to = (end + AHEAD).min(self.size);
            let zeros = vec![0; length(to - end)];
            self.file.write(PAGE as u64 + end, &zeros)?;
            self.filled = to;
        }
        self.file.write(PAGE as u64 + self.at, &self.record)?;
        self.file.sync_data()?;
        self.at = end;
        Ok(())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(PAGE as u64 + at, out)
    }
}

fn hash(record: &[u8], epoch: Epoch) -> u64 {
    XxHash3_64::oneshot_with_seed(epoch.secret, &record[8..])
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Whether a file that begins so has no log: it was made without one.
pub(crate) fn is_without(first: &[u8]) -> bool {
    !first.starts_with(MAGIC)
}

/// The two parts of a file: the log, if it has one, and what lies behind. An empty file gets a log of so many bytes.
pub(crate) fn divide(
    file: Box<dyn StorageBackend>,
    size: u64,
) -> Result<(Option<Log>, Box<dyn StorageBackend>), StoreError> {
    let empty = file.len()? == 0;
    if empty && size == 0 {
        return Ok((None, file));
    }
    if empty {
        let (page, from) = front(size);
        file.set_len(from)?;
        file.write(0, &page)?;
        file.sync_data()?;
    }
    let mut first = [0; MAGIC.len() + 8];
    if file.len()? >= PAGE as u64 {
        file.read(0, &mut first)?;
    }
    if is_without(&first) {
        return Ok((None, file));
    }
    let size = number(&first[MAGIC.len()..]);
    let from = (PAGE as u64).saturating_add(size);
    if file.len()? < from {
        return Err(StoreError::damaged("it is shorter than its log"));
    }
    let file: Arc<dyn StorageBackend> = file.into();
    let log = Log {
        file: Arc::clone(&file),
        size,
        at: 0,
        filled: 0,
        epoch: Epoch::default(),
        record: Vec::new(),
    };
    Ok((Some(log), Box::new(Behind { file, from })))
}

/// The first page of a file with a log of so many bytes, and how many bytes come before the engine's part.
pub(crate) fn front(size: u64) -> (Vec<u8>, u64) {
    let mut page = MAGIC.to_vec();
    page.extend(size.to_be_bytes());
    page.resize(PAGE, 0);
    (page, PAGE as u64 + size)
}

/// The part of a file behind its log.
#[derive(Debug)]
struct Behind {
    file: Arc<dyn StorageBackend>,
    from: u64,
}

impl StorageBackend for Behind {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.len()?.saturating_sub(self.from))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(self.from + offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(self.from + len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(self.from + offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    // Who locks a part locks it against others who divide the file as we do: numbers need no moving.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
#[path = "log/tests.rs"]
mod tests;
