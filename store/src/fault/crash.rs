//! A disk in memory that remembers the order of writes and syncs, and can tell what a power cut at
//! any moment could leave behind.
//!
//! The model: a crash keeps everything before the last finished sync; of the writes after it any
//! subset of 4 KiB pieces may have reached the disk, in any order, and so may a change of length.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::OpenBackend;

/// Writes are torn at multiples of this many bytes.
const PIECE: u64 = 4096;

const EIO: i32 = 5;

/// The disk. Clones share it; as an [`OpenBackend`] it can be opened again and again.
#[derive(Debug, Clone, Default)]
pub struct CrashBackend {
    disk: Arc<Mutex<Disk>>,
}

/// What a crash left: a medium of its own, or bytes for a file.
#[derive(Debug, Clone)]
pub struct Image {
    /// The crash happened after this many events.
    pub at: usize,
    /// The content of the disk.
    pub bytes: Vec<u8>,
}

impl CrashBackend {
    /// An empty disk that keeps its promises.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk that answers every sync with success and does not do it: the control that a
    /// crash test must catch.
    #[must_use]
    pub fn without_sync() -> Self {
        let disk = Self::default();
        disk.lock().lying = true;
        disk
    }

    /// A disk that begins with `bytes`, all durable.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        {
            let mut inner = disk.lock();
            inner.start.clone_from(&bytes);
            inner.now = bytes;
        }
        disk
    }

    /// Plans that the `n`-th sync from now (counted from 1) fails with EIO and loses a part of what it
    /// should have written, although reads go on to show it: what Linux does after a failed fsync.
    pub fn fail_sync(&self, n: u64) {
        self.lock().failing_sync = Some(n);
    }

    /// Events so far (writes, changes of length, syncs). What was acknowledged when this was `n` must
    /// be in every image with `at >= n`.
    #[must_use]
    pub fn position(&self) -> usize {
        self.lock().events.len()
    }

    /// The positions right after each finished sync.
    #[must_use]
    pub fn boundaries(&self) -> Vec<usize> {
        let disk = self.lock();
        let after =
            |(index, event): (usize, &Event)| matches!(event, Event::Sync).then_some(index + 1);
        disk.events.iter().enumerate().filter_map(after).collect()
    }

    /// The image of a crash after `at` events. `keep` is asked for each 4 KiB piece and each change
    /// of length that no finished sync covers: did it reach the disk?
    #[must_use]
    pub fn image(&self, at: usize, mut keep: impl FnMut() -> bool) -> Image {
        let disk = self.lock();
        let mut bytes = disk.start.clone();
        for part in disk.events[..at].split_inclusive(Event::ends_part) {
            settle(part, &mut bytes, &mut keep);
        }
        Image { at, bytes }
    }

    /// Visits one image per finished sync and `subsets` torn ones between each sync and the next, in
    /// order, without building each from the beginning. `random` gives uniformly random numbers.
    pub fn each_image(
        &self,
        subsets: usize,
        mut random: impl FnMut() -> u64,
        mut visit: impl FnMut(Image),
    ) {
        let disk = self.lock();
        let mut bytes = disk.start.clone();
        let mut from = 0;
        for part in disk.events.split_inclusive(Event::ends_part) {
            for _ in 0..subsets {
                let writes = part.iter().filter(|event| !event.ends_part()).count();
                let cut = index(random() % (writes as u64 + 1));
                let mut torn = bytes.clone();
                // A new chance for each image, so that nearly all and nearly none occur too.
                let chance = random() % 101;
                tear(&part[..cut], &mut torn, || random() % 100 < chance);
                visit(Image {
                    at: from + cut,
                    bytes: torn,
                });
            }
            settle(part, &mut bytes, || random().is_multiple_of(2));
            from += part.len();
            if matches!(part.last(), Some(Event::Sync)) {
                visit(Image {
                    at: from,
                    bytes: bytes.clone(),
                });
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// The image as a medium to open.
    #[must_use]
    pub fn into_medium(self) -> crate::Medium {
        crate::Medium::Backend(Arc::new(CrashBackend::from_bytes(self.bytes)))
    }
}

impl OpenBackend for CrashBackend {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }
}

#[derive(Debug, Default)]
struct Disk {
    start: Vec<u8>,
    now: Vec<u8>,
    events: Vec<Event>,
    lying: bool,
    failing_sync: Option<u64>,
}

#[derive(Debug)]
enum Event {
    Write { offset: u64, data: Vec<u8> },
    Length(u64),
    Sync,
    FailedSync,
}

impl Event {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => put(bytes, *offset, data),
            Self::Length(length) => bytes.resize(index(*length), 0),
            Self::Sync | Self::FailedSync => {}
        }
    }

    fn ends_part(&self) -> bool {
        matches!(self, Self::Sync | Self::FailedSync)
    }
}

/// What of `part` is on the disk once it is over: all, if a finished sync ends it.
fn settle(part: &[Event], bytes: &mut Vec<u8>, keep: impl FnMut() -> bool) {
    match part.last() {
        Some(Event::Sync) => part.iter().for_each(|event| event.apply(bytes)),
        _ => tear(part, bytes, keep),
    }
}

fn tear(events: &[Event], bytes: &mut Vec<u8>, mut keep: impl FnMut() -> bool) {
    for event in events {
        match event {
            Event::Write { offset, data } => {
                let mut offset = *offset;
                let mut rest = data.as_slice();
                while !rest.is_empty() {
                    let room = index(PIECE - offset % PIECE).min(rest.len());
                    let (piece, after) = rest.split_at(room);
                    if keep() {
                        put(bytes, offset, piece);
                    }
                    offset += piece.len() as u64;
                    rest = after;
                }
            }
            Event::Length(length) if keep() => bytes.resize(index(*length), 0),
            Event::Length(_) | Event::Sync | Event::FailedSync => {}
        }
    }
}

/// A write past the end makes the file longer, as on a real disk.
fn put(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = index(offset);
    let end = start + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("a disk in memory fits the address space")
}

impl StorageBackend for CrashBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.lock();
        let start = index(offset);
        let found = disk.now.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.now.resize(index(len), 0);
        disk.events.push(Event::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        if let Some(left) = disk.failing_sync {
            disk.failing_sync = left.checked_sub(1).filter(|left| *left > 0);
            if left == 1 {
                disk.events.push(Event::FailedSync);
                return Err(io::Error::from_raw_os_error(EIO));
            }
        }
        if !disk.lying {
            disk.events.push(Event::Sync);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        put(&mut disk.now, offset, data);
        disk.events.push(Event::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }
}
