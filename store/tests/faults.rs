//! Failing disks: EIO and ENOSPC at the n-th call of each kind, once and for ever. What was
//! acknowledged is there afterwards, and the store comes back as soon as the disk does. A failed batch is
//! never tried again by the store itself, but for what is essential when a reserve gives it space.
#![allow(clippy::unwrap_used)] // the lint knows only functions marked as tests

mod kit;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_store::fault::{Call, CrashBackend, FailingBackend, Fault, Times};
use holdfast_store::{Medium, Options, State, StoreError, Writer};
use kit::{Answers, Ledger, Put, Rows};
use tokio::sync::oneshot;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const KEYS: u64 = 7;
const PATIENCE: Duration = Duration::from_secs(10);

struct Bench {
    failing: FailingBackend,
    ledger: Arc<Mutex<Ledger>>,
    writer: Writer<Rows>,
}

fn bench(options: Options) -> Bench {
    let disk = CrashBackend::new();
    let failing = FailingBackend::new(Arc::new(disk.clone()));
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let answers = Answers::AfterCommit;
    let schema = Rows {
        disk,
        ledger: Arc::clone(&ledger),
        answers,
    };
    let medium = Medium::Backend(Arc::new(failing.clone()));
    let writer = Writer::open(medium, options, schema).unwrap();
    Bench {
        failing,
        ledger,
        writer,
    }
}

fn quick() -> Options {
    Options {
        reopen_pause: Duration::from_millis(20),
        ..Options::default()
    }
}

impl Bench {
    fn put(&self, key: u64, version: u64) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer
            .blocking_send(Put {
                key,
                version,
                reply,
            })
            .unwrap();
        answer.blocking_recv().expect("every operation is answered")
    }

    fn wait_open(&self) {
        let health = self.writer.health();
        let until = Instant::now() + PATIENCE;
        while health.borrow().state != State::Open {
            assert!(Instant::now() < until, "still {:?}", health.borrow().state);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One run: 30 writes with a fault in the middle; returns how many writes failed.
fn run(fault: Fault) -> u32 {
    let bench = bench(quick());
    let mut sent: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut failed = 0;
    for n in 0..30 {
        if n == 5 {
            bench.failing.plan(Some(fault));
        }
        if n == 20 {
            bench.failing.plan(None);
            bench.wait_open();
        }
        let key = n % KEYS;
        let (acknowledged, newest) = sent.entry(key).or_default();
        *newest += 1;
        match bench.put(key, *newest) {
            Ok(()) => *acknowledged = *newest,
            Err(error) => {
                assert!(error.poisons(), "{error}");
                assert!(n >= 5, "failed before the fault: {error}");
                assert!(n < 20, "failed after the disk was well: {error}");
                failed += 1;
            }
        }
    }
    let ledger = bench.ledger.lock().unwrap();
    assert!(
        ledger.applied.values().all(|times| *times == 1),
        "a batch was tried again"
    );
    drop(ledger);
    let found = kit::read_all(&bench.writer.reader()).unwrap();
    for (key, (acknowledged, newest)) in &sent {
        assert!(
            kit::fits(*key, found.get(key), *acknowledged, *newest),
            "{fault:?} key {key}"
        );
    }
    let health = bench.writer.health().borrow().clone();
    assert_eq!(failed > 0, health.failed_batches > 0);
    if failed > 0 {
        assert!(health.opened > 1 && health.last_error.is_some());
    }
    failed
}

#[test]
fn every_call_may_fail_once_or_for_ever() {
    let mut hit = 0;
    for call in [Call::Write, Call::Sync, Call::Read, Call::SetLen, Call::Any] {
        for times in [Times::Once, Times::Forever] {
            for os_error in [EIO, ENOSPC] {
                for at in 1..=12 {
                    hit += u32::from(
                        run(Fault {
                            call,
                            at,
                            os_error,
                            times,
                        }) > 0,
                    );
                }
            }
        }
    }
    // Reads are served by the cache and the length seldom changes; writes and syncs always hit.
    assert!(hit > 100, "only {hit} runs met their fault");
}

#[test]
fn while_the_disk_is_dead_nobody_waits_and_reads_say_so() {
    let bench = bench(quick());
    bench.put(1, 1).unwrap();
    bench.failing.plan(Some(Fault {
        call: Call::Any,
        at: 1,
        os_error: EIO,
        times: Times::Forever,
    }));
    let begun = Instant::now();
    for version in 2..40 {
        assert!(bench.put(1, version).is_err());
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    assert_eq!(bench.writer.health().borrow().state, State::Reopening);
    assert!(matches!(
        bench.writer.reader().begin(),
        Err(StoreError::Poisoned)
    ));
    bench.failing.plan(None);
    bench.wait_open();
    bench.put(1, 40).unwrap();
    assert!(bench.failing.failures() > 1);
}

#[test]
fn a_disk_that_stays_full_in_spite_of_the_reserve_makes_nobody_wait() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        reserve_bytes: 64 << 10,
        reserve_file: Some(folder.path().join("reserve")),
        ..quick()
    };
    let bench = bench(options);
    bench.put(1, 1).unwrap();
    bench.failing.plan(Some(Fault {
        call: Call::Any,
        at: 1,
        os_error: ENOSPC,
        times: Times::Forever,
    }));
    let begun = Instant::now();
    for version in 2..10 {
        assert!(bench.put(1, version).is_err());
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    bench.failing.plan(None);
    let until = Instant::now() + PATIENCE;
    while bench.put(1, 10).is_err() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_full_disk_leaves_room_for_what_is_essential() {
    let folder = tempfile::tempdir().unwrap();
    let reserve = folder.path().join("reserve");
    let options = Options {
        reserve_bytes: 256 << 10,
        reserve_file: Some(reserve.clone()),
        ..quick()
    };
    let bench = bench(options);
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 256 << 10);
    bench.put(1, 1).unwrap();
    let fault = Fault {
        call: Call::Write,
        at: 1,
        os_error: ENOSPC,
        times: Times::Once,
    };
    bench.failing.plan(Some(fault));
    // It gets through: with the space that the reserve gives free.
    bench.put(1, 2).unwrap();
    let health = bench.writer.health();
    let until = Instant::now() + PATIENCE;
    while health.borrow().opened < 2 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(health.borrow().state, State::Full);
    assert!(!reserve.exists(), "the reserve was given free");
    // Key 0 is what the test's schema calls ordinary.
    assert!(matches!(bench.put(0, 1), Err(StoreError::Full)));
    bench.put(1, 3).unwrap();
    while bench.put(0, 2).is_err() {
        assert!(Instant::now() < until + PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(health.borrow().state, State::Open);
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 256 << 10);
}

/// Opens a store again whose n-th call of a kind meets the full disk; gives whether it opens, and then takes what is
/// essential.
fn opens(reserve: Option<&std::path::Path>, call: Call, at: u64) -> bool {
    let disk = CrashBackend::new();
    let failing = FailingBackend::new(Arc::new(disk.clone()));
    let open = || {
        let options = Options {
            reserve_bytes: if reserve.is_some() { 64 << 10 } else { 0 },
            reserve_file: reserve.map(Into::into),
            ..quick()
        };
        let schema = Rows {
            disk: disk.clone(),
            ledger: Arc::default(),
            answers: Answers::AfterCommit,
        };
        Writer::open(Medium::Backend(Arc::new(failing.clone())), options, schema)
    };
    let put = |writer: &Writer<Rows>, version| {
        let (reply, answer) = oneshot::channel();
        let put = Put {
            key: 1,
            version,
            reply,
        };
        writer.blocking_send(put).unwrap();
        answer.blocking_recv().unwrap()
    };
    put(&open().unwrap(), 1).unwrap();
    failing.plan(Some(Fault {
        call,
        at,
        os_error: ENOSPC,
        times: Times::Once,
    }));
    let opened = open();
    let met = failing.failures() > 0;
    assert!(met, "{call:?} {at} was never reached");
    match opened {
        Ok(writer) => {
            put(&writer, 2).unwrap();
            true
        }
        Err(error) => {
            assert!(error.is_full(), "{error}");
            false
        }
    }
}

#[test]
fn a_store_opens_on_a_full_disk_by_its_reserve() {
    let folder = tempfile::tempdir().unwrap();
    let reserve = folder.path().join("reserve");
    for (call, at) in [
        (Call::Write, 1),
        (Call::Write, 2),
        (Call::Write, 3),
        (Call::Sync, 1),
    ] {
        assert!(opens(Some(&reserve), call, at), "{call:?} {at}");
        // The control: nothing was kept back.
        assert!(!opens(None, call, at), "{call:?} {at} without a reserve");
    }
}
