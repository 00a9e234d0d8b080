//! A gateway's machine is lost: another takes its name and its place, the old one is out, and no
//! device is lost with it.

use std::time::Duration;

use holdfast_protocol::succession::KeyRole;

use super::kit::*;
use crate::enrol::Refusal;
use crate::roster;
use crate::sync::{Client, Replaced, SyncError};
use crate::{CpsConfig, Role};

const HOUR: Duration = Duration::from_secs(3600);

async fn sync(gateway: &Served, cloud: &Served) -> Result<(), SyncError> {
    let client = https_client(gateway, cloud.api).await;
    let done = Client::new(&gateway.cps, client).once().await;
    done.map(|_| ())
}

/// The chain that a server shows.
async fn shown(server: &Served) -> Vec<Vec<u8>> {
    let own = server.cps.authority().own_identity(&[LOCAL]).await.unwrap();
    own.chain().iter().map(|der| der.to_vec()).collect()
}

fn certificates(device: &Device) -> Vec<Vec<u8>> {
    let mut chain = vec![device.certificate.clone().unwrap()];
    chain.extend(device.config.clone().unwrap().chain);
    chain
}

async fn well(device: &mut Device, at: &Served) {
    let ended = device.to2(at.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
}

#[tokio::test]
async fn the_fresh_machine_has_the_site_and_the_old_one_is_out() {
    let cloud = cloud().await;
    let old = gateway(&cloud, "north", "gw1").await;
    let (factory, at) = (Factory::new(), site("north"));
    // A came at the cloud, B at the gateway, C is sold but was never powered on.
    let mut devices = Vec::new();
    for serial in ["a", "b", "c"] {
        let (device, voucher) = factory.device_for(&cloud.cps, serial);
        let accepted = cloud
            .cps
            .vouchers()
            .accept(&voucher, Some(at.clone()))
            .await;
        accepted.unwrap();
        devices.push(device);
    }
    sync(&old, &cloud).await.unwrap();
    well(&mut devices[0], &cloud).await;
    well(&mut devices[1], &old).await;
    sync(&old, &cloud).await.unwrap();
    let (a, b) = (certificates(&devices[0]), certificates(&devices[1]));
    let old_chain = shown(&old).await;

    let enrolment = cloud.cps.enrolment();
    let nobody = enrolment.replace(&at, &server("gw9"), HOUR).await;
    assert!(matches!(nobody, Err(Refusal::NoGateway(..))));
    let elsewhere = enrolment
        .replace(&site("south"), &server("gw1"), HOUR)
        .await;
    assert!(matches!(elsewhere, Err(Refusal::NoGateway(..))));
    let first = enrolment.replace(&at, &server("gw1"), HOUR).await.unwrap();
    let token = enrolment.replace(&at, &server("gw1"), HOUR).await.unwrap();
    assert_ne!(*first, *token);
    let out = sync(&old, &cloud).await.unwrap_err().to_string();
    assert!(
        out.contains("locked out") && out.contains("unlock"),
        "{out}"
    );
    assert!(old.cps.sync().locked_out().is_some());
    assert_eq!(
        *old.cps.sync().replaced().borrow(),
        None,
        "a lock can be taken back"
    );

    let folder = tempfile::tempdir().unwrap();
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let domain = "holdfast.internal".parse().unwrap();
    let role = Role::Gateway { site: at.clone() };
    let config = CpsConfig::new(server("gw1"), domain, role);
    let fresh = serve(config.clone(), folder).await;
    assert_eq!(fresh.cps.cloud().unwrap().epoch, 2);
    sync(&fresh, &cloud).await.unwrap();
    assert_eq!(fresh.cps.sync().disbelieved().unwrap(), []);
    let known = fresh.cps.devices().list(None).unwrap();
    assert_eq!(known.len(), 3, "the site's registry is back");
    assert_eq!(known.iter().filter(|one| one.onboarded).count(), 2);

    // The certificates that A and B have go on: one is by the cloud, one by the lost authority.
    for (name, chain) in [("a", &a), ("b", &b)] {
        for server in [&fresh, &cloud] {
            let seen = server.cps.roster().identify(chain);
            assert!(seen.is_ok(), "{name}: {:?}", seen.err());
        }
    }
    // All three come to the fresh machine, with no cloud at hand.
    for device in &mut devices {
        well(device, &fresh).await;
        let seen = fresh.cps.roster().identify(&certificates(device));
        assert!(seen.is_ok(), "{:?}", seen.err());
    }

    // The old machine, started again from its disk.
    let folder = old.stop().await;
    let old = serve(config, folder).await;
    let out = sync(&old, &cloud).await.unwrap_err().to_string();
    assert!(out.contains("was replaced"), "{out}");
    let told = old.cps.sync().replaced().borrow().clone().unwrap();
    assert_eq!((told.epoch, &told.gateway), (2, &server("gw1")));
    let (lost, now) = (old.cps.cloud().unwrap(), fresh.cps.cloud().unwrap());
    assert!(Replaced::verify(&told.statement, lost).is_some());
    assert!(
        Replaced::verify(&told.statement, now).is_none(),
        "it is not out"
    );
    assert_eq!(*fresh.cps.sync().replaced().borrow(), None);
    for server in [&cloud, &fresh] {
        let seen = server.cps.roster().identify(&old_chain).unwrap_err();
        assert!(matches!(seen, roster::Refusal::Replaced(_)), "{seen}");
    }
    // It still has its authority; nobody believes what it issues now.
    let mut late = factory.device_for(&old.cps, "late");
    old.cps.vouchers().accept(&late.1, None).await.unwrap();
    well(&mut late.0, &old).await;
    let seen = fresh.cps.roster().identify(&certificates(&late.0));
    assert!(matches!(seen, Err(roster::Refusal::Revoked(_))));
    let seen = cloud.cps.roster().identify(&certificates(&late.0));
    assert!(matches!(seen, Err(roster::Refusal::Revoked(_))));

    // That it still asks is shown, once for all its tries.
    let rows = cloud.cps.refusals().list().unwrap();
    let of_old = rows.iter().filter(|row| row.reason == "locked out");
    let of_old: Vec<_> = of_old.map(|row| &*row.party).collect();
    assert_eq!(of_old, ["gw1.gateways.north.holdfast.internal"]);

    let late = enrolment.unlock(&at, &server("gw1")).await.unwrap_err();
    assert!(matches!(late, Refusal::Replaced(_, 2)), "{late}");
    sync(&fresh, &cloud).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let used = enrol_in(&cloud, &other, &token).await.unwrap_err();
    assert!(used.to_string().contains("used already"), "{used}");
}

/// The cloud's signing key is rotated twice while the machine sleeps, and it wakes up in another's place: it believes
/// the statement by the steps that come with it, and at its next start without anybody.
#[tokio::test]
async fn a_machine_that_slept_through_rotations_of_the_clouds_key_is_told_all_the_same() {
    let cloud = cloud().await;
    let old = gateway(&cloud, "north", "gw1").await;
    sync(&old, &cloud).await.unwrap();
    for _ in 0..2 {
        cloud.cps.rotation().rotate(KeyRole::Signing).await.unwrap();
    }
    let (at, name) = (site("north"), server("gw1"));
    let token = cloud
        .cps
        .enrolment()
        .replace(&at, &name, HOUR)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let out = sync(&old, &cloud).await.unwrap_err().to_string();
    assert!(out.contains("enrol it anew with a token"), "{out}");
    let told = old.cps.sync().replaced().borrow().clone().unwrap();
    let own = old.cps.cloud().unwrap();
    assert_eq!(Replaced::verify(&told.statement, own), Some(told.clone()));
    // Without the steps, or with a byte of them changed, it is anybody's word.
    let present = cloud.cps.keys().record();
    let bare = Replaced::sign(&at, &name, (2, told.at), &present);
    assert_eq!(Replaced::verify(&bare, own), None);
    for at in 0..told.statement.len() {
        let mut wrong = told.statement.clone();
        wrong[at] ^= 1;
        assert_eq!(Replaced::verify(&wrong, own), None, "byte {at}");
    }
}

#[tokio::test]
async fn a_lock_by_mistake_is_taken_back_and_nothing_is_revoked() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (enrolment, at, name) = (cloud.cps.enrolment(), site("north"), server("gw1"));
    let not_locked = enrolment.unlock(&at, &name).await;
    assert!(matches!(not_locked, Err(Refusal::NotLocked(_))));
    sync(&gateway, &cloud).await.unwrap();
    enrolment.replace(&at, &name, HOUR).await.unwrap();
    sync(&gateway, &cloud).await.unwrap_err();
    let chain = shown(&gateway).await;
    let seen = cloud.cps.roster().identify(&chain);
    assert!(matches!(seen, Err(roster::Refusal::Locked(_))));
    let subject = "gw1.gateways.north.holdfast.internal";
    assert!(cloud.cps.roster().rights_for_subject(subject).is_err());
    enrolment.unlock(&at, &name).await.unwrap();
    sync(&gateway, &cloud).await.unwrap();
    assert_eq!(gateway.cps.sync().locked_out(), None);
    assert!(cloud.cps.roster().rights_for_subject(subject).is_ok());
    assert!(
        cloud
            .cps
            .authority()
            .list(None)
            .unwrap()
            .iter()
            .all(|row| !row.revoked)
    );
}

/// The lock outlives the cloud's own restart.
#[tokio::test]
async fn a_locked_gateway_stays_locked_when_the_cloud_starts_again() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (at, name) = (site("north"), server("gw1"));
    let lock = cloud.cps.enrolment().replace(&at, &name, HOUR);
    lock.await.unwrap();
    let folder = cloud.stop().await;
    let domain = "holdfast.internal".parse().unwrap();
    let cloud = serve(CpsConfig::new(server("cloud"), domain, Role::Cloud), folder).await;
    let out = sync(&gateway, &cloud).await.unwrap_err().to_string();
    assert!(out.contains("locked out"), "{out}");
}
