//! Power cuts: thousands of images of a disk in mid-work, each opened and compared with the ledger
//! of what had been acknowledged by then. Two planted defects must be caught.
#![allow(clippy::unwrap_used)] // the lint knows only functions marked as tests

mod kit;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use holdfast_store::fault::CrashBackend;
use holdfast_store::{Options, Writer};
use kit::{Answers, Ledger, Numbers, Put, Rows};
use tokio::sync::oneshot;

const KEYS: u64 = 40;
const CLIENTS: u64 = 4;

#[derive(Debug, Default)]
struct Verdict {
    images: usize,
    unopenable: usize,
    lost_or_wrong: usize,
}

/// Several clients write random keys; their next write waits for the answer of the last.
/// The ledger and the position from which on the file exists: a file appears whole, by a rename.
fn work(disk: &CrashBackend, answers: Answers, writes: u64, seed: u64) -> (Ledger, usize) {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let schema = Rows {
        disk: disk.clone(),
        ledger: Arc::clone(&ledger),
        answers,
    };
    let writer = Writer::open(kit::medium(disk), Options::default(), schema).unwrap();
    let made = disk.position();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let writer = writer.clone();
            scope.spawn(move || {
                let mut numbers = Numbers(seed + client);
                let mut versions = BTreeMap::new();
                for _ in 0..writes / CLIENTS {
                    // Each client has keys of its own, so versions of a key come in order.
                    let key = numbers.below(KEYS / CLIENTS) * CLIENTS + client;
                    let version = versions.entry(key).or_insert(0);
                    loop {
                        *version += 1;
                        let (reply, answer) = oneshot::channel();
                        writer
                            .blocking_send(Put {
                                key,
                                version: *version,
                                reply,
                            })
                            .unwrap();
                        if answer.blocking_recv().unwrap().is_ok() {
                            break;
                        }
                    }
                }
            });
        }
    });
    drop(writer);
    (Arc::try_unwrap(ledger).unwrap().into_inner().unwrap(), made)
}

fn judge(disk: &CrashBackend, work: &(Ledger, usize), subsets: usize, seed: u64) -> Verdict {
    judge_until(disk, work, subsets, seed, |_| false)
}

/// Opens images until `is_enough`.
fn judge_until(
    disk: &CrashBackend,
    work: &(Ledger, usize),
    subsets: usize,
    seed: u64,
    is_enough: impl Fn(&Verdict) -> bool,
) -> Verdict {
    let (ledger, made) = work;
    let mut verdict = Verdict::default();
    let mut numbers = Numbers(seed);
    let mut most: BTreeMap<u64, u64> = BTreeMap::new();
    for (key, version) in ledger.applied.keys() {
        let newest = most.entry(*key).or_default();
        *newest = (*newest).max(*version);
    }
    disk.each_image(
        subsets,
        || numbers.next(),
        |image| {
            if image.at < *made || is_enough(&verdict) {
                return;
            }
            verdict.images += 1;
            let mut least: BTreeMap<u64, u64> = BTreeMap::new();
            for (key, version, at) in &ledger.acknowledged {
                if *at <= image.at {
                    let newest = least.entry(*key).or_default();
                    *newest = (*newest).max(*version);
                }
            }
            let opened = std::panic::catch_unwind(|| kit::open_image(image.bytes));
            match opened {
                Ok(Ok(found)) => {
                    let right = most.iter().all(|(key, most)| {
                        let least = least.get(key).copied().unwrap_or(0);
                        kit::fits(*key, found.get(key), least, *most)
                    });
                    verdict.lost_or_wrong += usize::from(!right);
                }
                Ok(Err(_)) | Err(_) => verdict.unopenable += 1,
            }
        },
    );
    verdict
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    let disk = CrashBackend::new();
    let work = work(&disk, Answers::AfterCommit, 400, 11);
    assert_eq!(work.0.acknowledged.len(), 400);
    let verdict = judge(&disk, &work, 20, 12);
    eprintln!("{verdict:?} over {} syncs", disk.boundaries().len());
    assert!(verdict.images >= 3000, "{verdict:?}");
    assert_eq!(
        (verdict.unopenable, verdict.lost_or_wrong),
        (0, 0),
        "{verdict:?}"
    );
}

/// A failed sync may have dropped what it should have written, whatever a read shows afterwards:
/// nothing acknowledged later may lean on it.
#[test]
fn a_failed_sync_followed_by_a_power_cut_loses_nothing_acknowledged() {
    let mut images = 0;
    for n in 2..22 {
        let disk = CrashBackend::new();
        disk.fail_sync(n);
        let opening = std::panic::catch_unwind(|| work(&disk, Answers::AfterCommit, 40, n));
        // The first syncs belong to the making of the file: failing there is an error, not a crash.
        let Ok(work) = opening else { continue };
        let verdict = judge(&disk, &work, 4, n);
        images += verdict.images;
        assert_eq!(
            (verdict.unopenable, verdict.lost_or_wrong),
            (0, 0),
            "{n}: {verdict:?}"
        );
    }
    assert!(images > 1000, "{images}");
}

#[test]
fn control_answering_before_the_commit_is_caught() {
    let disk = CrashBackend::new();
    let work = work(&disk, Answers::BeforeCommit, 60, 21);
    let verdict = judge(&disk, &work, 4, 22);
    assert!(verdict.lost_or_wrong > 0, "{verdict:?}");
}

#[test]
fn control_a_disk_that_skips_syncs_is_caught() {
    let disk = CrashBackend::without_sync();
    let work = work(&disk, Answers::AfterCommit, 60, 31);
    // One is enough, and more is a risk: now and then redb panics in a destructor on such an image,
    // which ends the whole test process.
    let is_caught = |verdict: &Verdict| verdict.unopenable + verdict.lost_or_wrong > 0;
    let verdict = judge_until(&disk, &work, 200, 32, is_caught);
    assert!(is_caught(&verdict), "{verdict:?}");
}
