//! Failing disks under the same load: EIO and ENOSPC at the n-th call, once and for ever, at every n of a bounded run.

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{ConsumerOptions, JournalMedium};
use holdfast_store::fault::{Call, CrashBackend, FailingBackend, Fault, Times};
use tokio_util::sync::CancellationToken;

use crate::clients::{self, World};
use crate::judge::{Host, Verdict, filters, judge, prepare};
use crate::ledger::{Event, Ledger};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// A dead disk is made well again after so long.
const DEAD: Duration = Duration::from_millis(60);
/// Messages of one run.
const MESSAGES: u32 = 16;

/// One run: the verdict on what is left, and how many calls failed.
async fn run(fault: Option<Fault>, early: bool) -> (Verdict, u64) {
    let disk = CrashBackend::new();
    let backend = FailingBackend::new(Arc::new(disk.clone()));
    let medium = JournalMedium::Backend(Arc::new(backend.clone()));
    let host = Host::open(medium).await.unwrap();
    let rule = host
        .broker
        .consumer("rule", filters(), ConsumerOptions::default())
        .await
        .unwrap();
    prepare(host.address).await;
    let clock = disk.clone();
    let world = Arc::new(World {
        address: host.address,
        ledger: Ledger::new(move || clock.position()),
        stop: CancellationToken::new(),
        early,
    });
    world.ledger.note(Event::Ready);
    backend.plan(fault);
    let endless = [
        tokio::spawn(clients::take(Arc::clone(&world))),
        tokio::spawn(clients::rule(Arc::clone(&world), rule)),
    ];
    // The dead time begins with the first failure: how fast the machine is decides nothing.
    let heal = tokio::spawn({
        let backend = backend.clone();
        async move {
            while backend.failures() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if fault.is_some_and(|fault| fault.times == Times::Forever) {
                tokio::time::sleep(DEAD).await;
                backend.plan(None);
            }
        }
    });
    let give1 = async {
        if early {
            // The defect is planted: nobody asks whether what was "acknowledged" is in.
            let give = clients::give1(Arc::clone(&world), 1);
            let _ = tokio::time::timeout(DEAD, give).await;
        } else {
            clients::give1(Arc::clone(&world), MESSAGES).await;
        }
    };
    tokio::join!(
        give1,
        clients::give2(Arc::clone(&world), MESSAGES / 2),
        clients::keep(Arc::clone(&world), 2),
        clients::come_and_go(Arc::clone(&world), 4),
    );
    heal.abort();
    world.stop.cancel();
    for task in endless {
        task.await.unwrap();
    }
    let failures = backend.failures();
    backend.plan(None);
    host.end().await;
    // Every write is on this disk, synced or not: what is judged is what the broker did about the failures.
    let image = disk.image(disk.position(), || true);
    let verdict = judge(image.into_medium(), &world.ledger.now()).await;
    (verdict, failures)
}

/// All n until the run no longer meets its fault.
async fn every(call: Call, os_error: i32, times: Times) -> usize {
    let mut met = 0;
    for at in 1.. {
        let fault = Fault {
            call,
            at,
            os_error,
            times,
        };
        let (verdict, failures) = run(Some(fault), false).await;
        assert!(verdict.is_clean(), "{fault:?}: {verdict:?}");
        if failures == 0 {
            break;
        }
        met += 1;
        if at >= most() {
            break;
        }
    }
    met
}

/// Calls that a run makes at least, however much the commits of a busy machine are put together: the retained messages
/// alone wait for eight commits, one after the other.
const LEAST: usize = 8;

/// In CI the first calls of each kind, by `make fuzz` all that a run makes.
fn most() -> u64 {
    if std::env::var_os("HOLDFAST_FUZZ_SECONDS").is_some() {
        u64::MAX
    } else {
        25
    }
}

#[tokio::test]
async fn fuzz_every_sync_fails_once() {
    for os_error in [EIO, ENOSPC] {
        assert!(every(Call::Sync, os_error, Times::Once).await >= LEAST);
    }
}

#[tokio::test]
async fn fuzz_every_write_fails_once() {
    for os_error in [EIO, ENOSPC] {
        assert!(every(Call::Write, os_error, Times::Once).await >= LEAST);
    }
}

#[tokio::test]
async fn fuzz_from_every_call_on_all_fail_until_the_disk_is_well() {
    for os_error in [EIO, ENOSPC] {
        assert!(every(Call::Any, os_error, Times::Forever).await >= LEAST);
    }
}

#[tokio::test]
async fn a_run_without_a_fault_is_clean() {
    let (verdict, failures) = run(None, false).await;
    assert!(verdict.is_clean() && failures == 0, "{verdict:?}");
}

#[tokio::test]
async fn control_an_acknowledgement_before_the_commit_is_caught() {
    let mut lost = 0;
    for at in 1..=10 {
        let fault = Fault {
            call: Call::Sync,
            at,
            os_error: EIO,
            times: Times::Forever,
        };
        lost += run(Some(fault), true).await.0.lost;
    }
    assert!(lost > 0, "the test is blind");
}
