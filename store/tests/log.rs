//! The log in front of the tables: power cuts at every moment, failing disks, files from before there was one. What was
//! acknowledged is there after the next opening, whether the log had it or the tables. Planted defects must be caught.
#![allow(clippy::unwrap_used)] // the lint knows only functions marked as tests

mod kit;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_store::fault::{Call, CrashBackend, FailingBackend, Fault, Image, Times};
use holdfast_store::{Damaged, Medium, Options, State, StoreError, Writer};
use kit::told::{Found, LOG, Told, is_loggable, opened, options, send};
use kit::{Answers, Ledger, Numbers};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const KEYS: u64 = 12;
const CLIENTS: u64 = 3;

#[derive(Debug, Default)]
struct Verdict {
    images: usize,
    unopenable: usize,
    lost_or_wrong: usize,
}

impl Verdict {
    fn is_caught(&self) -> bool {
        self.unopenable + self.lost_or_wrong > 0
    }
}

/// What happened on a disk: the file exists from `made` on, by a rename.
struct Story {
    disk: CrashBackend,
    ledger: Ledger,
    made: usize,
}

/// Several clients write random keys of their own, one after the other; what failed is not sent again, but the next version.
fn story(disk: CrashBackend, answers: Answers, writes: u64, seed: u64) -> Option<Story> {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let schema = Told::new(&disk, &ledger, answers);
    let writer = Writer::open(kit::medium(&disk), options(LOG), schema).ok()?;
    let made = disk.position();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let writer = writer.clone();
            scope.spawn(move || {
                let mut numbers = Numbers(seed * CLIENTS + client + 1);
                let mut versions = BTreeMap::new();
                for _ in 0..writes / CLIENTS {
                    let key = numbers.below(KEYS / CLIENTS) * CLIENTS + client;
                    let version = versions.entry(key).or_insert(0);
                    *version += 1;
                    while send(&writer, key, *version).is_err() {
                        *version += 1;
                    }
                }
            });
        }
    });
    drop(writer);
    let ledger = Arc::into_inner(ledger)?.into_inner().unwrap();
    Some(Story { disk, ledger, made })
}

/// Opens images until one tells enough.
fn judge(
    story: &Story,
    subsets: usize,
    seed: u64,
    forgets: bool,
    is_enough: impl Fn(&Verdict) -> bool,
) -> Verdict {
    let mut verdict = Verdict::default();
    let mut numbers = Numbers(seed);
    let mut most: BTreeMap<u64, u64> = BTreeMap::new();
    for (key, version) in story.ledger.applied.keys() {
        let newest = most.entry(*key).or_default();
        *newest = (*newest).max(*version);
    }
    let visit = |image: Image| {
        if image.at < story.made || is_enough(&verdict) {
            return;
        }
        verdict.images += 1;
        let mut least: BTreeMap<u64, u64> = BTreeMap::new();
        for (key, version, at) in &story.ledger.acknowledged {
            if *at <= image.at {
                let newest = least.entry(*key).or_default();
                *newest = (*newest).max(*version);
            }
        }
        let mut schema = Told::alone();
        schema.forgets = forgets;
        let opened = std::panic::catch_unwind(|| opened(image.into_medium(), schema));
        let Ok(Ok(found)) = opened else {
            verdict.unopenable += 1;
            return;
        };
        let right = most.iter().all(|(key, most)| {
            let least = least.get(key).copied().unwrap_or(0);
            kit::fits(*key, found.get(key), least, *most)
        });
        verdict.lost_or_wrong += usize::from(!right);
    };
    story.disk.each_image(subsets, || numbers.next(), visit);
    verdict
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    let story = story(CrashBackend::new(), Answers::AfterCommit, 150, 11).unwrap();
    assert_eq!(story.ledger.acknowledged.len(), 150);
    let told = |entry: &&(u64, u64, usize)| is_loggable(entry.1);
    let told = story.ledger.acknowledged.iter().filter(told).count();
    assert!((50..150).contains(&told), "{told}");
    // A checkpoint changes what a schema knows: it is asked again behind it.
    assert_eq!(story.ledger.stale, 0);
    let verdict = judge(&story, 11, 12, false, |_| false);
    eprintln!("{verdict:?} over {} syncs", story.disk.boundaries().len());
    assert!(verdict.images >= 1000, "{verdict:?}");
    assert!(!verdict.is_caught(), "{verdict:?}");
}

/// A failed sync may have dropped what it should have written, whatever a read shows afterwards.
#[test]
fn a_failed_sync_followed_by_a_power_cut_loses_nothing_acknowledged() {
    let mut images = 0;
    for n in 2..28 {
        let disk = CrashBackend::new();
        disk.fail_sync(n);
        // The first syncs belong to the making of the file: failing there is an error, not a crash.
        let Some(story) = story(disk, Answers::AfterCommit, 24, n) else {
            continue;
        };
        let verdict = judge(&story, 2, n, false, |_| false);
        images += verdict.images;
        assert!(!verdict.is_caught(), "{n}: {verdict:?}");
    }
    assert!(images > 600, "{images}");
}

#[test]
fn control_answering_before_the_sync_is_caught() {
    let story = story(CrashBackend::new(), Answers::BeforeCommit, 30, 21).unwrap();
    let verdict = judge(&story, 4, 22, false, Verdict::is_caught);
    assert!(verdict.lost_or_wrong > 0, "{verdict:?}");
}

#[test]
fn control_a_schema_that_forgets_its_records_is_caught() {
    let story = story(CrashBackend::new(), Answers::AfterCommit, 30, 25).unwrap();
    let verdict = judge(&story, 1, 26, true, Verdict::is_caught);
    assert!(verdict.lost_or_wrong > 0, "{verdict:?}");
}

#[test]
fn control_a_disk_that_skips_syncs_is_caught() {
    let story = story(CrashBackend::without_sync(), Answers::AfterCommit, 60, 31).unwrap();
    // One is enough, and more is a risk: now and then redb panics in a destructor on such an image.
    let verdict = judge(&story, 200, 32, false, Verdict::is_caught);
    assert!(verdict.is_caught(), "{verdict:?}");
}

fn wait_open(writer: &Writer<Told>) {
    let health = writer.health();
    let until = Instant::now() + Duration::from_secs(10);
    while health.borrow().state != State::Open {
        assert!(Instant::now() < until, "still {:?}", health.borrow().state);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One run: 60 writes with a fault in the middle; gives how many writes failed. `early` is a planted defect: a failed write
/// counts as acknowledged, and none follows that would hide it.
fn run(fault: Fault, early: bool) -> Result<u32, String> {
    let disk = CrashBackend::new();
    let failing = FailingBackend::new(Arc::new(disk.clone()));
    let medium = || Medium::Backend(Arc::new(failing.clone()));
    let ledger = Arc::default();
    let schema = Told::new(&disk, &ledger, Answers::AfterCommit);
    let writer = Writer::open(medium(), options(LOG), schema).unwrap();
    let mut sent: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut failed = 0;
    for n in 0..60 {
        if n == 10 {
            failing.plan(Some(fault));
        }
        if n == 45 {
            failing.plan(None);
            wait_open(&writer);
            if early {
                break;
            }
        }
        let (acknowledged, newest) = sent.entry(n % 7).or_default();
        *newest += 1;
        match send(&writer, n % 7, *newest) {
            Ok(()) => *acknowledged = *newest,
            Err(error) => {
                assert!(error.poisons(), "{error}");
                assert!((10..45).contains(&n), "failed with a disk that is well");
                failed += 1;
                if early {
                    *acknowledged = *newest;
                }
            }
        }
    }
    let again = ledger
        .lock()
        .unwrap()
        .applied
        .values()
        .any(|times| *times != 1);
    assert!(!again, "a batch was tried again");
    drop(writer);
    // Twice: the first opening puts what the log tells into the tables.
    let found = opened(medium(), Told::alone())?;
    assert_eq!(opened(medium(), Told::alone())?, found);
    for (key, (acknowledged, newest)) in &sent {
        if !kit::fits(*key, found.get(key), *acknowledged, *newest) {
            return Err(format!("{fault:?} key {key}"));
        }
    }
    Ok(failed)
}

#[test]
fn every_call_may_fail_once_or_for_ever() {
    let mut hit = 0;
    // Reads are served by the cache and the length seldom changes.
    for (call, most) in [
        (Call::Write, 9),
        (Call::Sync, 9),
        (Call::Any, 9),
        (Call::Read, 2),
        (Call::SetLen, 2),
    ] {
        for times in [Times::Once, Times::Forever] {
            for os_error in [EIO, ENOSPC] {
                for at in 1..=most {
                    let fault = Fault {
                        call,
                        at,
                        os_error,
                        times,
                    };
                    hit += u32::from(run(fault, false).unwrap() > 0);
                }
            }
        }
    }
    assert!(hit > 80, "only {hit} runs met their fault");
}

#[test]
fn control_a_failed_write_taken_for_an_acknowledged_one_is_caught() {
    let caught = (1..=12).any(|at| {
        let fault = Fault {
            call: Call::Sync,
            at,
            os_error: EIO,
            times: Times::Forever,
        };
        run(fault, true).is_err()
    });
    assert!(caught, "the test is blind");
}

fn at(path: &Path, log_bytes: u64) -> Result<Writer<Told>, StoreError> {
    let medium = Medium::File(path.to_owned());
    Writer::open(medium, options(log_bytes), Told::alone())
}

fn fill(writer: &Writer<Told>, versions: std::ops::Range<u64>) {
    for version in versions {
        for key in 0..KEYS {
            send(writer, key, version).unwrap();
        }
    }
}

fn holds(path: &Path, version: u64) -> Found {
    let found = opened(Medium::File(path.to_owned()), Told::alone()).unwrap();
    for key in 0..KEYS {
        assert!(kit::fits(key, found.get(&key), version, version), "{key}");
    }
    found
}

fn has_a_log(path: &Path) -> bool {
    std::fs::read(path).unwrap().starts_with(b"holdfast log")
}

/// The only file of its folder, but for a reserve.
fn alone(path: &Path) -> bool {
    std::fs::read_dir(path.parent().unwrap()).unwrap().count() == 1
}

#[test]
fn a_file_made_without_a_log_gets_one_and_keeps_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    fill(&at(&path, 0).unwrap(), 1..5);
    assert!(!has_a_log(&path));
    // As an earlier attempt leaves it when the power goes.
    std::fs::write(folder.path().join("store.redb.new"), b"half a copy").unwrap();
    let mut before = None;
    for _ in 0..3 {
        let found = holds(&path, 4);
        assert!(has_a_log(&path) && alone(&path));
        assert_eq!(*before.get_or_insert(found.clone()), found);
    }
    // And it is used: what is told there outlives the store.
    fill(&at(&path, LOG).unwrap(), 5..7);
    holds(&path, 6);
}

#[test]
fn a_file_made_with_a_log_opens_where_none_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    fill(&at(&path, LOG).unwrap(), 1..3);
    // The last of these are in the log only.
    let writer = at(&path, 0).unwrap();
    let found = kit::read_all(&writer.reader()).unwrap();
    for key in 0..KEYS {
        assert!(kit::fits(key, found.get(&key), 2, 2), "{key}");
    }
    fill(&writer, 3..5);
    drop(writer);
    assert!(has_a_log(&path) && alone(&path));
    holds(&path, 4);
}

#[test]
fn a_file_in_use_is_neither_put_behind_a_log_nor_moved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    for (made_with, asked) in [(0, LOG), (0, 0), (LOG, LOG), (LOG, 0)] {
        let _ = std::fs::remove_file(&path);
        let first = at(&path, made_with).unwrap();
        fill(&first, 1..3);
        let options = Options {
            damaged: Damaged::Quarantine,
            ..options(asked)
        };
        let second = Writer::open(Medium::File(path.clone()), options, Told::alone());
        assert!(
            matches!(second, Err(StoreError::InUse)),
            "{made_with} {asked}"
        );
        assert!(alone(&path));
        assert_eq!(has_a_log(&path), made_with > 0);
        fill(&first, 3..5);
        drop(first);
        holds(&path, 4);
    }
}

#[test]
fn a_full_disk_does_not_keep_a_file_without_a_log_from_being_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let beside = folder.path().join("store.redb.new");
    fill(&at(&path, 0).unwrap(), 1..3);
    // Whatever is written there meets the full disk.
    std::os::unix::fs::symlink("/dev/full", &beside).unwrap();
    let writer = at(&path, LOG).unwrap();
    fill(&writer, 3..5);
    drop(writer);
    assert!(!has_a_log(&path));
    assert!(std::fs::symlink_metadata(&beside).is_err(), "it stayed");
    // With space again it gets its log.
    holds(&path, 4);
    assert!(has_a_log(&path) && alone(&path));
}
