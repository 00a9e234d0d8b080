//! Records on a disk in memory: a whole one counts, and nothing else does.

use proptest::prelude::*;

use super::*;
use crate::fault::{Call, CrashBackend, FailingBackend, Fault, Times};
use crate::medium::OpenBackend as _;

const SIZE: u64 = 4096;
const EPOCH: Epoch = Epoch {
    number: 7,
    secret: 0x5EC2_E700,
};

fn log_of(file: impl StorageBackend, size: u64) -> Log {
    let (log, _) = divide(Box::new(file), size).unwrap();
    let mut log = log.unwrap();
    log.restart(EPOCH);
    log
}

fn tell(log: &mut Log, content: &[u8]) -> Result<(), StoreError> {
    log.record().extend_from_slice(content);
    log.append()
}

/// What a reader finds that comes later.
fn found(disk: &CrashBackend, epoch: Epoch) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let keep = |record: &[u8]| {
        found.push(record.to_vec());
        Ok(())
    };
    log_of(disk.clone(), SIZE).each(epoch, keep).unwrap();
    found
}

fn bytes(disk: &CrashBackend) -> Vec<u8> {
    let mut bytes = vec![0; length(disk.len().unwrap())];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// A disk with a log that holds these, and ones behind it where the tables would be.
fn told(records: &[&[u8]]) -> (CrashBackend, Log) {
    let disk = CrashBackend::new();
    let mut log = log_of(disk.clone(), SIZE);
    disk.write(PAGE as u64 + SIZE, &[1; 100]).unwrap();
    for record in records {
        tell(&mut log, record).unwrap();
    }
    (disk, log)
}

#[test]
fn an_empty_log_holds_nothing() {
    let (disk, log) = told(&[]);
    assert!(found(&disk, EPOCH).is_empty());
    assert!(found(&disk, Epoch::default()).is_empty());
    assert_eq!((log.left(), log.room()), (4096 - HEAD, 4096 - HEAD));
}

#[test]
fn no_byte_of_a_record_can_change_and_it_still_counts() {
    let (disk, log) = told(&[b"first", b"second one", b"the last one"]);
    let whole = bytes(&disk);
    let end = PAGE + length(log.at);
    let begin = end - HEAD - b"the last one".len();
    for at in begin..end {
        for bit in [1, 0x80, 0xFF] {
            let mut changed = whole.clone();
            changed[at] ^= bit;
            let changed = CrashBackend::from_bytes(changed);
            let left = found(&changed, EPOCH);
            assert_eq!(left, [&b"first"[..], b"second one"], "byte {}", at - begin);
        }
    }
    // The control: whole, it counts.
    assert_eq!(found(&disk, EPOCH).len(), 3);
}

#[test]
fn a_record_of_an_earlier_epoch_does_not_count_behind_the_last_one() {
    let (disk, mut log) = told(&[b"old-1", b"old-2", b"old-3"]);
    let next = EPOCH.next();
    assert!(found(&disk, next).is_empty());
    log.restart(next);
    tell(&mut log, b"new-1").unwrap();
    assert_eq!(found(&disk, next), [b"new-1"]);
    assert!(found(&disk, EPOCH).is_empty());
    // The control: what follows would count, were it of this epoch.
    tell(&mut log, b"new-2").unwrap();
    assert_eq!(found(&disk, next), [b"new-1", b"new-2"]);
}

#[test]
fn a_record_with_another_secret_does_not_count() {
    let (disk, _) = told(&[b"record"]);
    let other = Epoch {
        secret: EPOCH.secret + 1,
        ..EPOCH
    };
    assert!(found(&disk, other).is_empty());
}

#[test]
fn a_record_moved_to_another_place_does_not_count() {
    let (disk, log) = told(&[b"same", b"same"]);
    let mut moved = bytes(&disk);
    let (from, to) = (PAGE, PAGE + length(log.at));
    moved.copy_within(from..from + HEAD + 4, to);
    assert_eq!(found(&CrashBackend::from_bytes(moved), EPOCH).len(), 2);
}

#[test]
fn a_length_beyond_the_log_does_not_count() {
    let (disk, log) = told(&[b"first", b"last"]);
    let last = PAGE + length(log.at) - HEAD - 4;
    let left = u32::try_from(PAGE + length(SIZE) - last - HEAD).unwrap();
    for told in [u32::MAX, 0x8000_0000, left + 1, left, 0] {
        let mut changed = bytes(&disk);
        changed[last + 8..last + 12].copy_from_slice(&told.to_be_bytes());
        // Its hash is right where there is content for one.
        let content = length(told.into()).min(changed.len() - last - HEAD);
        let hash = hash(&changed[last..last + HEAD + content], EPOCH);
        changed[last..last + 8].copy_from_slice(&hash.to_be_bytes());
        let count = found(&CrashBackend::from_bytes(changed), EPOCH).len();
        assert_eq!(count, if told == left { 2 } else { 1 }, "{told}");
    }
}

#[test]
fn a_record_may_be_as_long_as_the_room_and_no_longer() {
    let (disk, mut log) = told(&[]);
    let mut most = vec![7; log.room()];
    tell(&mut log, &most).unwrap();
    assert_eq!((log.left(), found(&disk, EPOCH).len()), (0, 1));
    assert!(found(&disk, EPOCH)[0] == most);
    log.restart(EPOCH.next());
    most.push(7);
    refused_without_a_trace(&disk, &mut log, &most);
    assert_eq!(found(&disk, EPOCH).len(), 1);
}

#[test]
fn what_does_not_fit_behind_the_others_is_refused_without_a_trace() {
    // From much room to none, and to less than a head.
    for short in [100, HEAD + 1, HEAD, HEAD - 1, 1, 0] {
        let first = vec![3; length(SIZE) - HEAD - short];
        let (disk, mut log) = told(&[&first]);
        let more = vec![4; log.left() + 1];
        refused_without_a_trace(&disk, &mut log, &more);
        assert!(found(&disk, EPOCH) == [first], "{short}");
    }
}

fn refused_without_a_trace(disk: &CrashBackend, log: &mut Log, record: &[u8]) {
    let (position, before) = (disk.position(), bytes(disk));
    let refused = tell(log, record);
    assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
    assert_eq!(disk.position(), position);
    assert!(bytes(disk) == before);
}

#[test]
fn nothing_to_tell_hides_nothing_behind_it() {
    let (disk, mut log) = told(&[b"first"]);
    tell(&mut log, b"").unwrap();
    tell(&mut log, b"second").unwrap();
    assert_eq!(found(&disk, EPOCH), [&b"first"[..], b"second"]);
    // In a full log too, and the tables behind it stay as they are.
    let rest = vec![5; log.left()];
    tell(&mut log, &rest).unwrap();
    tell(&mut log, b"").unwrap();
    assert_eq!(found(&disk, EPOCH).len(), 3);
    assert!(bytes(&disk)[PAGE + length(SIZE)..] == [1; 100]);
}

#[test]
fn a_record_whose_sync_failed_is_not_found() {
    let (disk, mut log) = told(&[b"first"]);
    disk.fail_sync(1);
    assert!(tell(&mut log, b"second").is_err());
    assert_eq!(found(&disk, EPOCH), [b"first"]);
    assert_eq!(log.left(), 4096 - 2 * HEAD - b"first".len());
    // The control: it had got there, and only its head went again.
    let content = |disk: &CrashBackend| {
        let all = bytes(disk);
        all.windows(6).any(|found| found == b"second")
    };
    assert!(content(&disk));
}

#[test]
fn a_record_whose_write_failed_is_not_found() {
    // The first write of a new log makes place ahead, the next one is the record.
    for at in [1, 2] {
        let disk = CrashBackend::new();
        let failing = FailingBackend::new(Arc::new(disk.clone()));
        let (log, _) = divide(failing.open().unwrap(), SIZE).unwrap();
        let mut log = log.unwrap();
        log.restart(EPOCH);
        failing.plan(Some(Fault {
            call: Call::Write,
            at,
            os_error: 5,
            times: Times::Once,
        }));
        assert!(tell(&mut log, b"lost").is_err());
        assert_eq!(failing.failures(), 1);
        assert!(found(&disk, EPOCH).is_empty());
    }
}

#[test]
fn a_file_shorter_than_its_log_is_damaged() {
    let (disk, _) = told(&[b"first"]);
    for left in [PAGE, PAGE + 1, PAGE + length(SIZE) - 1] {
        let cut = CrashBackend::from_bytes(bytes(&disk)[..left].to_vec());
        let refused = divide(Box::new(cut), SIZE);
        assert!(matches!(refused, Err(StoreError::Damaged { .. })));
    }
}

#[test]
fn the_size_is_the_files_own_and_a_file_without_a_log_stays_so() {
    let (disk, _) = told(&[b"first"]);
    for asked in [0, 1, SIZE * 4] {
        assert_eq!(log_of(disk.clone(), asked).room(), 4096 - HEAD);
    }
    let plain = CrashBackend::from_bytes(vec![9; 3 * PAGE]);
    let (log, behind) = divide(Box::new(plain), SIZE).unwrap();
    assert!(log.is_none());
    assert_eq!(behind.len().unwrap(), 3 * PAGE as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Records of any length until one does not fit, over what an earlier life has left.
    #[test]
    fn all_that_was_told_is_found_in_order(
        earlier in prop::collection::vec(1_usize..900, 0..12),
        lengths in prop::collection::vec(1_usize..900, 0..12),
    ) {
        let (disk, mut log) = told(&[]);
        for length in earlier {
            let _ = tell(&mut log, &vec![0xEE; length]);
        }
        let next = EPOCH.next();
        log.restart(next);
        let mut expected = Vec::new();
        for (index, length) in lengths.into_iter().enumerate() {
            let record = vec![u8::try_from(index).unwrap(); length];
            let fits = length <= log.left();
            prop_assert_eq!(tell(&mut log, &record).is_ok(), fits);
            if fits {
                expected.push(record);
            }
        }
        prop_assert!(found(&disk, next) == expected);
        prop_assert!(bytes(&disk)[PAGE + length(SIZE)..].iter().all(|byte| *byte == 1));
    }
}
