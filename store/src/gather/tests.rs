//! The gathering file against a plain run of bytes, over a disk that fails now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

/// A disk in memory: counts its calls, fails those that it is told to, and can forget a write.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Inside>);

#[derive(Debug, Default)]
struct Inside {
    bytes: Mutex<Vec<u8>>,
    writes: AtomicU32,
    syncs: AtomicU32,
    /// As many writes as this fail from now on.
    failing: AtomicU32,
    /// The planted defect: a write that is answered and not done.
    forgets: AtomicU32,
}

impl Disk {
    fn bytes(&self) -> Vec<u8> {
        self.0.bytes.lock().unwrap().clone()
    }

    fn writes(&self) -> u32 {
        self.0.writes.load(Ordering::Relaxed)
    }
}

fn counted_down(counter: &AtomicU32) -> bool {
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        let bytes = self.0.bytes.lock().unwrap();
        let found = bytes.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.0.bytes.lock().unwrap().resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if counted_down(&self.0.failing) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        if counted_down(&self.0.forgets) {
            return Ok(());
        }
        let from = usize::try_from(offset).unwrap();
        let mut bytes = self.0.bytes.lock().unwrap();
        let end = from + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[from..end].copy_from_slice(data);
        Ok(())
    }
}

const LENGTH: usize = 4096;

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Read(usize, usize),
    Sync,
    Length(usize),
    /// The next writes to the disk fail.
    Fail(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Whole pages of 64 bytes as the engine writes them, and anything between.
        6 => (0usize..64, any::<u8>()).prop_map(|(page, byte)| Step::Write(page * 64, vec![byte; 64])),
        2 => (0usize..LENGTH - 200, proptest::collection::vec(any::<u8>(), 1..200))
            .prop_map(|(from, bytes)| Step::Write(from, bytes)),
        4 => (0usize..LENGTH - 300, 1usize..300).prop_map(|(from, length)| Step::Read(from, length)),
        1 => Just(Step::Sync),
        1 => (LENGTH..LENGTH + 64).prop_map(Step::Length),
        1 => (1u32..3).prop_map(Step::Fail),
    ]
}

/// Goes through the steps; says where the file and the plain bytes part.
fn compare(steps: &[Step], most: usize, disk: &Disk) -> Result<(), String> {
    disk.set_len(LENGTH as u64).unwrap();
    let file = Gathering::up_to(Box::new(disk.clone()), most);
    let mut plain = vec![0; LENGTH];
    for (index, step) in steps.iter().enumerate() {
        match step {
            Step::Write(from, bytes) => {
                // One that failed was not taken: the engine keeps the page and writes it again.
                while file.write(*from as u64, bytes).is_err() {}
                plain[*from..from + bytes.len()].copy_from_slice(bytes);
            }
            Step::Read(from, length) => {
                let mut out = vec![0; *length];
                while file.read(*from as u64, &mut out).is_err() {}
                if out != plain[*from..from + length] {
                    return Err(format!("step {index} reads something else"));
                }
            }
            Step::Sync => {
                while file.sync_data().is_err() {}
                if disk.bytes() != plain {
                    return Err(format!("step {index} synced something else"));
                }
            }
            Step::Length(length) => {
                while file.set_len(*length as u64).is_err() {}
                plain.resize(*length, 0);
            }
            Step::Fail(times) => disk.0.failing.store(*times, Ordering::Relaxed),
        }
        if file.waiting().bytes.len() > most {
            return Err(format!("step {index} holds more than {most} bytes"));
        }
    }
    while file.sync_data().is_err() {}
    if disk.bytes() != plain {
        return Err("the end is another".to_owned());
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_was_written_is_read_and_synced(
        steps in proptest::collection::vec(step(), 1..120),
        most in prop_oneof![Just(0usize), Just(100), Just(1000), Just(100_000)],
    ) {
        prop_assert_eq!(compare(&steps, most, &Disk::default()), Ok(()));
    }
}

#[test]
fn control_a_forgotten_write_is_found() {
    let disk = Disk::default();
    disk.0.forgets.store(1, Ordering::Relaxed);
    let steps = [Step::Write(64, vec![7; 64]), Step::Sync];
    assert!(compare(&steps, 1000, &disk).is_err());
}

#[test]
fn pages_side_by_side_go_in_one_write_whatever_their_order() {
    let disk = Disk::default();
    let file = Gathering::new(Box::new(disk.clone()));
    // As the engine does it: every fifteenth page, then the ones behind those.
    for first in 0..15u64 {
        for page in (first..75).step_by(15) {
            file.write(page * 4096, &[1; 4096]).unwrap();
        }
    }
    assert_eq!(disk.writes(), 0, "nothing is promised before the sync");
    file.sync_data().unwrap();
    assert_eq!(disk.writes(), 1);
    assert_eq!(disk.bytes(), vec![1; 75 * 4096]);
    assert_eq!(disk.0.syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn a_sync_whose_writes_fail_is_no_sync() {
    let disk = Disk::default();
    let file = Gathering::new(Box::new(disk.clone()));
    file.write(0, &[1; 64]).unwrap();
    file.write(4096, &[2; 64]).unwrap();
    disk.0.failing.store(1, Ordering::Relaxed);
    file.sync_data().unwrap_err();
    assert_eq!(disk.0.syncs.load(Ordering::Relaxed), 0);
    file.sync_data().unwrap();
    assert_eq!(disk.bytes()[4096..], [2; 64]);
    assert_eq!(disk.bytes()[..64], [1; 64]);
}

#[test]
fn what_waits_when_it_is_closed_was_never_committed() {
    let disk = Disk::default();
    let file = Gathering::new(Box::new(disk.clone()));
    file.write(0, &[1; 64]).unwrap();
    file.close().unwrap();
    assert_eq!(disk.writes(), 0);
}
