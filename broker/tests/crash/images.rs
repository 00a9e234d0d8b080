//! Crash images: a recording disk under a mixed load, opened again at every sync and with random subsets of the writes
//! after it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_broker::{ConsumerOptions, JournalMedium};
use holdfast_store::fault::{CrashBackend, Image};
use tokio_util::sync::CancellationToken;

use crate::clients::{self, World};
use crate::judge::{Host, Verdict, filters, judge, prepare};
use crate::ledger::{Event, Ledger, Numbers, State};

/// Judges beside each other.
const JUDGES: usize = 2;
/// Images that wait for a judge.
const WAITING: usize = 2;

/// How much is done before the crash.
struct Work {
    messages: u32,
    early: bool,
}

/// What happened on a disk.
struct Story {
    disk: CrashBackend,
    world: Arc<World>,
    /// The journal exists from here on.
    born: usize,
}

async fn live(disk: CrashBackend, work: Work) -> Story {
    let host = Host::open(JournalMedium::Backend(Arc::new(disk.clone())))
        .await
        .unwrap();
    let born = disk.position();
    let clock = disk.clone();
    let world = Arc::new(World {
        address: host.address,
        ledger: Ledger::new(move || clock.position()),
        stop: CancellationToken::new(),
        early: work.early,
    });
    let rule = host
        .broker
        .consumer("rule", filters(), ConsumerOptions::default())
        .await
        .unwrap();
    prepare(host.address).await;
    world.ledger.note(Event::Ready);
    let endless = [
        tokio::spawn(clients::take(Arc::clone(&world))),
        tokio::spawn(clients::rule(Arc::clone(&world), rule)),
    ];
    tokio::join!(
        clients::give1(Arc::clone(&world), work.messages),
        clients::give2(Arc::clone(&world), work.messages / 2),
        clients::keep(Arc::clone(&world), work.messages / 10),
        clients::come_and_go(Arc::clone(&world), work.messages / 10),
    );
    world.stop.cancel();
    for task in endless {
        task.await.unwrap();
    }
    host.end().await;
    Story { disk, world, born }
}

/// Judges images until `is_enough`.
fn judge_all(
    story: &Story,
    subsets: usize,
    seed: u64,
    change: fn(&mut State),
    is_enough: fn(&Verdict) -> bool,
) -> Verdict {
    let verdict = Mutex::new(Verdict::default());
    let (give, take) = sync_channel::<Image>(WAITING);
    let take = Mutex::new(take);
    std::thread::scope(|scope| {
        for _ in 0..JUDGES {
            scope.spawn(|| judge_some(story, &take, &verdict, change));
        }
        let mut numbers = Numbers(seed);
        let enough = || is_enough(&verdict.lock().unwrap_or_else(PoisonError::into_inner));
        story.disk.each_image(
            subsets,
            || numbers.next(),
            |image| {
                // A journal torn while it was being made holds nothing that anybody was told.
                if image.at >= story.born && !enough() {
                    give.send(image).unwrap();
                }
            },
        );
        drop(give);
    });
    verdict.into_inner().unwrap()
}

fn judge_some(
    story: &Story,
    images: &Mutex<Receiver<Image>>,
    verdict: &Mutex<Verdict>,
    change: fn(&mut State),
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    loop {
        let next = images.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(image) = next else { return };
        let mut state = story.world.ledger.at(image.at);
        change(&mut state);
        let found = runtime.block_on(judge(image.into_medium(), &state));
        verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(&found);
    }
}

fn story(disk: CrashBackend, work: Work) -> Story {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(live(disk, work))
}

fn nothing(_: &mut State) {}
fn never(_: &Verdict) -> bool {
    false
}
fn caught(verdict: &Verdict) -> bool {
    !verdict.is_clean()
}

/// One story with its images; all must be right.
fn all_is_there(messages: u32, subsets: usize, seed: u64) -> Verdict {
    let work = Work {
        messages,
        early: false,
    };
    let story = story(CrashBackend::new(), work);
    let last = story.world.ledger.now();
    assert_eq!(last.acked1.len(), messages as usize);
    assert_eq!(last.done2.len(), messages as usize / 2);
    let verdict = judge_all(&story, subsets, seed, nothing, never);
    eprintln!(
        "seed {seed}: {verdict:?} over {} syncs",
        story.disk.boundaries().len()
    );
    assert!(verdict.is_clean(), "seed {seed}: {verdict:?}");
    verdict
}

/// Short stories: their images are small, so that there can be many.
fn thousands(first_seed: u64) {
    let mut all = Verdict::default();
    for step in 0.. {
        all.add(&all_is_there(40, 7, first_seed + step * 7919));
        if all.images >= 2500 {
            break;
        }
    }
}

#[test]
fn no_crash_image_lacks_what_was_acknowledged() {
    thousands(0xC0_FFEE);
}

#[test]
fn no_crash_image_lacks_what_was_acknowledged_with_other_seeds() {
    thousands(0xBEEF);
}

/// `make fuzz` gives it a minute or more; in CI it does a little.
#[test]
fn fuzz_crash_images() {
    let seconds = std::env::var("HOLDFAST_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let mut all = Verdict::default();
    for seed in 1.. {
        // Long ones as well: the journal grows and shrinks.
        all.add(&all_is_there(150, 4, seed * 104_729));
        if Instant::now() > until {
            break;
        }
    }
    eprintln!("{all:?}");
}

#[test]
fn control_an_acknowledgement_before_the_commit_is_caught() {
    let work = Work {
        messages: 60,
        early: true,
    };
    let story = story(CrashBackend::new(), work);
    let verdict = judge_all(&story, 3, 5, nothing, caught);
    assert!(verdict.lost > 0, "{verdict:?}");
}

#[test]
fn control_a_disk_that_skips_syncs_is_caught() {
    // In a process of its own: now and then redb panics in a destructor on such an image, which ends
    // the whole process. That is caught too.
    const ALONE: &str = "HOLDFAST_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let name = "images::control_a_disk_that_skips_syncs_is_caught";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(ALONE, "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success() || status.code().is_none(), "{status}");
        return;
    }
    let work = Work {
        messages: 40,
        early: false,
    };
    let story = story(CrashBackend::without_sync(), work);
    let judged = std::panic::AssertUnwindSafe(|| judge_all(&story, 40, 6, nothing, caught));
    // A store that panics over such an image has told that it is no good.
    if let Ok(verdict) = std::panic::catch_unwind(judged) {
        assert!(caught(&verdict), "{verdict:?}");
    }
}

#[test]
fn control_a_qos_2_message_sent_again_under_another_id_is_caught() {
    let work = Work {
        messages: 40,
        early: false,
    };
    let story = story(CrashBackend::new(), work);
    // As if the server had forgotten the packet ids: what it has comes as something new.
    let forget = |state: &mut State| {
        let published = std::mem::take(&mut state.published2);
        let moved = published
            .into_iter()
            .map(|(id, number)| (id + 1000, number));
        state.published2 = moved.collect();
    };
    let verdict = judge_all(&story, 3, 7, forget, caught);
    assert!(verdict.doubled > 0, "{verdict:?}");
}
