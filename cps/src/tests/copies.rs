//! Two machines that speak as one gateway, a gateway that was set back, one that was revoked, and the
//! tokens by which they come in: real servers, real doors.

use std::time::Duration;

use tempfile::TempDir;

use super::kit::*;
use crate::enrol::{Refusal, Terms};
use crate::roster;
use crate::sync::{Client, SyncError};
use crate::{CpsConfig, Role};

const HOUR: Duration = Duration::from_secs(3600);

async fn sync(gateway: &Served, cloud: &Served) -> Result<(), SyncError> {
    let client = https_client(gateway, cloud.api).await;
    let done = Client::new(&gateway.cps, client).once().await;
    done.map(|_| ())
}

pub(super) fn copy_of(folder: &TempDir) -> TempDir {
    fn copy(from: &std::path::Path, to: &std::path::Path) {
        for one in std::fs::read_dir(from).unwrap() {
            let one = one.unwrap();
            let target = to.join(one.file_name());
            match one.file_type().unwrap().is_dir() {
                true => {
                    std::fs::create_dir(&target).unwrap();
                    copy(&one.path(), &target);
                }
                false => _ = std::fs::copy(one.path(), target).unwrap(),
            }
        }
    }
    let other = tempfile::tempdir().unwrap();
    copy(folder.path(), other.path());
    other
}

fn config(name: &str) -> CpsConfig {
    let site = site("north");
    let domain = "holdfast.internal".parse().unwrap();
    CpsConfig::new(server(name), domain, Role::Gateway { site })
}

fn told(error: SyncError) -> String {
    error.to_string()
}

async fn leaf(gateway: &Served) -> Vec<Vec<u8>> {
    let own = gateway.cps.authority().own_identity(&[LOCAL]).await;
    let own = own.unwrap();
    own.chain().iter().map(|der| der.to_vec()).collect()
}

#[tokio::test]
async fn a_clone_that_runs_beside_it_locks_both_out_until_an_operator_has_looked() {
    let cloud = cloud().await;
    let first = gateway(&cloud, "north", "gw1").await;
    sync(&first, &cloud).await.unwrap();
    // Started anew many times, by itself, it is never a copy.
    let mut folder = first.stop().await;
    for _ in 0..3 {
        let again = serve(config("gw1"), folder).await;
        sync(&again, &cloud).await.unwrap();
        sync(&again, &cloud).await.unwrap();
        folder = again.stop().await;
    }
    let cloned = copy_of(&folder);
    let first = serve(config("gw1"), folder).await;
    let second = serve(config("gw1"), cloned).await;
    sync(&first, &cloud).await.unwrap();
    let out = match sync(&second, &cloud).await {
        Err(out) => out,
        Ok(()) => sync(&first, &cloud).await.unwrap_err(),
    };
    let out = told(out);
    assert!(
        out.contains("locked out") && out.contains("unlock"),
        "{out}"
    );
    for one in [&first, &second] {
        let out = told(sync(one, &cloud).await.unwrap_err());
        assert!(out.contains("locked out"), "{out}");
        assert!(one.cps.sync().locked_out().is_some());
        let seen = cloud.cps.roster().identify(&leaf(one).await);
        assert!(matches!(seen, Err(roster::Refusal::Copied(..))), "{seen:?}");
    }
    assert_eq!(cloud.cps.metrics().refusals("sync", "copy"), 1);
    let rows = cloud.cps.refusals().list().unwrap();
    assert!(rows.iter().any(|row| row.reason == "copy"), "{rows:?}");

    // The operator stops the clone and lets the other in.
    drop(second.stop().await);
    let (at, name) = (site("north"), server("gw1"));
    cloud.cps.enrolment().unlock(&at, &name).await.unwrap();
    for _ in 0..3 {
        sync(&first, &cloud).await.unwrap();
    }
    let first = serve(config("gw1"), first.stop().await).await;
    sync(&first, &cloud).await.unwrap();
    assert_eq!(first.cps.sync().locked_out(), None);
}

/// The machine is set back to a copy of last week: it does not know what it wrote since, and would
/// number new entries as old ones. `unlock` alone does not let it in.
#[tokio::test]
async fn a_restored_snapshot_is_locked_out_and_stays_so_if_it_forgot_what_it_wrote() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    sync(&gateway, &cloud).await.unwrap();
    let folder = gateway.stop().await;
    let snapshot = copy_of(&folder);
    let gateway = serve(config("gw1"), folder).await;
    sync(&gateway, &cloud).await.unwrap();
    let name = "meter".parse().unwrap();
    let issued = gateway.cps.clients();
    issued
        .issue(name, None, Vec::new(), Vec::new())
        .await
        .unwrap();
    sync(&gateway, &cloud).await.unwrap();
    drop(gateway.stop().await);

    let back = serve(config("gw1"), snapshot).await;
    let out = told(sync(&back, &cloud).await.unwrap_err());
    assert!(out.contains("earlier state"), "{out}");
    let (at, name) = (site("north"), server("gw1"));
    let enrolment = cloud.cps.enrolment();
    enrolment.unlock(&at, &name).await.unwrap();
    let out = told(sync(&back, &cloud).await.unwrap_err());
    assert!(
        out.contains("entries of its own") && out.contains("replace"),
        "{out}"
    );
    // What it says to do works: another enrolment, with an empty folder.
    let token = enrolment.replace(&at, &name, HOUR).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let fresh = serve(config("gw1"), folder).await;
    sync(&fresh, &cloud).await.unwrap();
    assert_eq!(fresh.cps.cloud().unwrap().epoch, 2);
}

#[tokio::test]
async fn a_revoked_gateway_is_out_with_its_authority_and_its_tokens_and_believes_it() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    sync(&gateway, &cloud).await.unwrap();
    let (at, name, enrolment) = (site("north"), server("gw1"), cloud.cps.enrolment());
    let factory = Factory::new();
    // B is onboarded at the gateway and known to the cloud, C only at the gateway.
    let (mut b, voucher) = factory.device_for(&gateway.cps, "b");
    gateway.cps.vouchers().accept(&voucher, None).await.unwrap();
    let ended = b.to2(gateway.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    sync(&gateway, &cloud).await.unwrap();
    let token = enrolment.token(&at, &name, HOUR).await.unwrap();

    assert!(matches!(
        enrolment.revoke(&at, &server("gw9")).await,
        Err(Refusal::NoGateway(..))
    ));
    let chain = leaf(&gateway).await;
    let mut changes = cloud.cps.roster().changes();
    changes.mark_unchanged();
    let count = enrolment.revoke(&at, &name).await.unwrap();
    assert!(count >= 2, "its own and its authority's: {count}");
    assert!(
        changes.has_changed().unwrap(),
        "sessions are asked again at once"
    );
    let seen = cloud.cps.roster().identify(&chain).unwrap_err();
    assert!(matches!(seen, roster::Refusal::GatewayRevoked(_)), "{seen}");
    let servers = cloud.cps.devices().servers(&at).unwrap();
    assert!(servers.iter().all(|one| one.server != name), "{servers:?}");
    // What it certified and the log knows goes on at the cloud; what it certifies now is nothing.
    let certificates = |device: &Device| {
        let mut chain = vec![device.certificate.clone().unwrap()];
        chain.extend(device.config.clone().unwrap().chain);
        chain
    };
    cloud.cps.roster().identify(&certificates(&b)).unwrap();
    let (mut c, voucher) = factory.device_for(&gateway.cps, "c");
    gateway.cps.vouchers().accept(&voucher, None).await.unwrap();
    let ended = c.to2(gateway.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let seen = cloud.cps.roster().identify(&certificates(&c));
    assert!(matches!(seen, Err(roster::Refusal::Revoked(_))), "{seen:?}");

    let out = told(sync(&gateway, &cloud).await.unwrap_err());
    assert!(out.contains("was revoked"), "{out}");
    let told = gateway.cps.sync().replaced().borrow().clone().unwrap();
    assert!(told.revoked && told.epoch == 1, "{told:?}");
    assert!(matches!(
        enrolment.unlock(&at, &name).await,
        Err(Refusal::Revoked(_))
    ));
    let other = tempfile::tempdir().unwrap();
    let used = enrol_in(&cloud, &other, &token).await.unwrap_err();
    assert!(used.to_string().contains("taken back"), "{used}");
    // Revoking it twice is no fault, and changes nothing.
    assert_eq!(enrolment.revoke(&at, &name).await.unwrap(), 0);
    // The way back: enrolled anew.
    let token = enrolment.token(&at, &name, HOUR).await.unwrap();
    enrol_in(&cloud, &other, &token).await.unwrap();
    let fresh = serve(config("gw1"), other).await;
    sync(&fresh, &cloud).await.unwrap();
    assert_eq!(*fresh.cps.sync().replaced().borrow(), None);
}

/// A gateway gone wild is told to come again, the operator is told who it is, and nothing is lost.
#[tokio::test]
async fn what_is_over_a_days_allowance_waits_at_the_gateway_and_comes_later() {
    let cloud = cloud_with(|config| config.limits.log_entries_per_day = 20).await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let admit = async |from: u32, to: u32| {
        for number in from..to {
            let name = format!("meter{number}").parse().unwrap();
            let clients = gateway.cps.clients();
            clients
                .issue(name, None, Vec::new(), Vec::new())
                .await
                .unwrap();
        }
    };
    admit(0, 20).await;
    let mut over = None;
    for _ in 0..5 {
        over = over.or(sync(&gateway, &cloud).await.err());
    }
    let over = told(over.expect("it may write all it likes"));
    assert!(
        over.contains("429") && over.contains("log_entries_per_day"),
        "{over}"
    );
    assert_eq!(gateway.cps.sync().locked_out(), None);
    let here = cloud.cps.clients().list().unwrap().len();
    assert!((5..20).contains(&here), "{here}");
    let rows = cloud.cps.refusals().list().unwrap();
    assert!(
        rows.iter().any(|row| row.reason == "over its allowance"),
        "{rows:?}"
    );
    assert!(cloud.cps.metrics().refusals("sync", "over its allowance") > 0);
    // The cloud's news come all the while.
    cloud
        .cps
        .enrolment()
        .revoke(&site("north"), &server("gw9"))
        .await
        .unwrap_err();
    for _ in 0..4 {
        cloud.clock.advance(24 * HOUR);
        _ = sync(&gateway, &cloud).await;
    }
    sync(&gateway, &cloud).await.unwrap();
    assert_eq!(
        cloud.cps.clients().list().unwrap().len(),
        20,
        "nothing is lost"
    );
    assert_eq!(gateway.cps.sync().disbelieved().unwrap(), []);
}

#[tokio::test]
async fn a_token_of_two_uses_serves_one_name_twice_and_can_be_taken_back() {
    let cloud = cloud().await;
    let (at, name, enrolment) = (site("north"), server("gw1"), cloud.cps.enrolment());
    cloud.cps.add_site(&at).await.unwrap();
    for uses in [0, 17] {
        let out = enrolment.token_on(&at, &name, Terms { life: HOUR, uses });
        assert!(matches!(out.await, Err(Refusal::Uses(_))));
    }
    let terms = Terms {
        life: HOUR,
        uses: 2,
    };
    let token = enrolment.token_on(&at, &name, terms).await.unwrap();
    let state = |at: usize| {
        let shown = enrolment.tokens().unwrap();
        (shown[at].state, shown[at].used, shown[at].token.clone())
    };
    assert_eq!((state(0).0, state(0).1), ("open", 0));
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    enrol_in(&cloud, &folders[0], &token).await.unwrap();
    enrol_in(&cloud, &folders[0], &token).await.unwrap();
    assert_eq!(
        (state(0).0, state(0).1),
        ("open", 1),
        "the same machine again"
    );
    let second = enrol_in(&cloud, &folders[1], &token).await.unwrap();
    assert_eq!(second.epoch, 2, "an enrolment of its own");
    assert_eq!((state(0).0, state(0).1), ("used", 2));
    let late = enrol_in(&cloud, &folders[0], &token).await.unwrap_err();
    assert!(late.to_string().contains("used already"), "{late}");
    enrol_in(&cloud, &folders[1], &token).await.unwrap();
    let third = enrol_in(&cloud, &folders[2], &token).await.unwrap_err();
    assert!(third.to_string().contains("another machine"), "{third}");

    let other = enrolment.token_on(&at, &name, terms).await.unwrap();
    let open = (0..2).map(state).find(|one| one.0 == "open").unwrap();
    assert!(
        !other.contains(&open.2),
        "its name is nothing of its secret"
    );
    assert!(matches!(
        enrolment.void("nothing").await,
        Err(Refusal::NoToken(_))
    ));
    enrolment.void(&open.2).await.unwrap();
    let void = enrol_in(&cloud, &folders[2], &other).await.unwrap_err();
    assert!(void.to_string().contains("taken back"), "{void}");
    assert_eq!(cloud.cps.metrics().refusals("enrolment", "void token"), 1);
}
