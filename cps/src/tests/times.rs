//! A gateway that wakes up without the time: what it records is marked, keeps its order, goes to the
//! cloud, and has its real time at both as soon as that is known; where it never is, its bounds.

use std::sync::Arc;
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_link::time::{Time, TimeQuality};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::record::ListedAs;
use holdfast_store::Medium;
use holdfast_store::fault::CrashBackend;

use super::kit::*;
use crate::sync::Client;
use crate::tables::When;
use crate::times::RecordView;
use crate::{CpsConfig, Role};

/// What the clock shows in its first run without the time, and in its second.
const FIRST: u64 = NOW - 50_000_000;
const SECOND: u64 = NOW - 40_000_000;
/// When the second run began, in truth.
const TRUE: u64 = NOW + 1_000_000;

fn floor(at: &Served, secs: u64) {
    at.clock.set(Time::new(secs, TimeQuality::Floor));
}

fn pass(at: &Served, secs: u64) {
    at.clock.advance(Duration::from_secs(secs));
}

async fn list(at: &Served, name: &str) {
    let key = holdfast_protocol::crypto::SigningKey::generate(&mut SystemRandom).public();
    let lists = at.cps.lists();
    let done = lists.list(ListedAs::Installer, None, (name.parse().unwrap(), key));
    done.await.unwrap();
}

/// What the gateway wrote, as a server shows it.
fn written(at: &Served) -> Vec<RecordView> {
    let mut all = at
        .cps
        .times()
        .records(Some(&site("north")), None, 1_000)
        .unwrap();
    all.retain(|one| one.origin == "gw1");
    all
}

fn listed(at: &Served, name: &str) -> When {
    let north = site("north");
    let of = at.cps.cloud().is_none().then_some(&north);
    let rows = at.cps.lists().installers(of).unwrap();
    let row = rows
        .into_iter()
        .find(|row| row.name.as_deref() == Some(name));
    row.unwrap().since.unwrap()
}

fn is(when: &When, at: u64, quality: &str) {
    assert_eq!((when.at, when.quality.as_str()), (at, quality), "{when:?}");
}

async fn exchange(gateway: &Served, cloud: &Served) {
    let client = Client::new(&gateway.cps, https_client(gateway, cloud.api).await);
    let done = client.once().await.unwrap();
    assert!(done.pushed.refused.is_empty(), "{done:?}");
}

#[tokio::test]
async fn what_was_recorded_without_the_time_gets_it_at_gateway_and_cloud() {
    let (cloud, factory) = (cloud().await, Factory::new());
    believe(&cloud, &factory).await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    list(&gateway, "zoe").await;
    exchange(&gateway, &cloud).await;
    // A first run that never hears the time, then a second.
    gateway.clock.reboot();
    floor(&gateway, FIRST);
    list(&gateway, "anna").await;
    gateway.clock.reboot();
    floor(&gateway, SECOND);
    let (mut device, voucher) = factory.device_for(&gateway.cps, "s");
    gateway.cps.vouchers().accept(&voucher, None).await.unwrap();
    let ended = device.to2(gateway.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let id = DeviceId::from_guid(voucher.guid());
    pass(&gateway, 50);
    list(&gateway, "bea").await;
    assert_eq!(
        gateway.cps.times().learn().await.unwrap(),
        0,
        "nothing is known yet"
    );
    // The cloud has them as they are: marked, and in their order.
    exchange(&gateway, &cloud).await;
    for at in [&gateway, &cloud] {
        is(&listed(at, "anna"), FIRST, "floor");
        is(&listed(at, "bea"), SECOND + 50, "floor");
        let since = at.cps.devices().view(id).unwrap().unwrap().since.unwrap();
        is(&since, SECOND, "floor");
    }
    let before = written(&cloud);
    assert_eq!(before, written(&gateway));

    pass(&gateway, 50);
    gateway
        .clock
        .set(Time::new(TRUE + 100, TimeQuality::Authenticated));
    assert!(gateway.cps.times().learn().await.unwrap() >= 4);
    assert_eq!(gateway.cps.times().learn().await.unwrap(), 0, "once");
    is(&listed(&cloud, "bea"), SECOND + 50, "floor");
    exchange(&gateway, &cloud).await;
    for at in [&gateway, &cloud] {
        is(&listed(at, "bea"), TRUE + 50, "learnt later");
        let since = at.cps.devices().view(id).unwrap().unwrap().since.unwrap();
        is(&since, TRUE, "learnt later");
        let anna = listed(at, "anna");
        is(&anna, FIRST, "floor");
        assert_eq!(
            (anna.not_before, anna.not_after),
            (Some(NOW), Some(TRUE)),
            "{anna:?}"
        );
        let issued = at.cps.times().certificates().unwrap().into_iter();
        let of_device = |one: &crate::times::IssuedView| one.certificate.device == Some(id);
        let issued: Vec<_> = issued
            .filter(of_device)
            .filter_map(|one| one.issued)
            .collect();
        assert!(
            !issued.is_empty() && issued.iter().all(|when| when.at == TRUE),
            "{issued:?}"
        );
    }
    let after = written(&gateway);
    assert_eq!(after, written(&cloud));
    let places = |all: &[RecordView]| -> Vec<_> {
        all.iter()
            .map(|one| (one.rank, one.epoch, one.seq))
            .collect()
    };
    let (old, new) = (places(&before), places(&after));
    assert_eq!(old, new[..old.len()], "the order is not the clock's");
    assert_eq!(after.last().unwrap().what, "time learnt");
    // All of it is a fold.
    for at in [&gateway, &cloud] {
        at.cps.rebuild().await.unwrap();
        assert_eq!(written(at), after);
    }
}

/// A power cut at any moment while the times are put on record: they are learnt again in the same run
/// of the machine, and in another one the marks stay.
#[tokio::test]
async fn a_cut_while_times_are_learnt_loses_no_mark_and_no_time() {
    let cloud = cloud().await;
    let (at, name) = (site("north"), server("gw1"));
    cloud.cps.add_site(&at).await.unwrap();
    let life = Duration::from_secs(3600);
    let token = cloud.cps.enrolment().token(&at, &name, life).await.unwrap();
    let enrolled = tempfile::tempdir().unwrap();
    enrol_in(&cloud, &enrolled, &token).await.unwrap();
    let domain = "holdfast.internal".parse().unwrap();
    let config = CpsConfig::new(name, domain, Role::Gateway { site: at });
    let disk = CrashBackend::new();
    let serve_on = async |medium| {
        let keys = enrolled.path().join("keys");
        let folder = tempfile::tempdir().unwrap();
        serve_at(config.clone(), medium, &keys, folder)
            .await
            .unwrap()
    };
    let gateway = serve_on(Medium::Backend(Arc::new(disk.clone()))).await;
    floor(&gateway, SECOND);
    for name in ["anna", "bea"] {
        list(&gateway, name).await;
        pass(&gateway, 10);
    }
    let (cut_from, cut_later) = (disk.position(), 30);
    gateway
        .clock
        .set(Time::new(TRUE + 20, TimeQuality::Authenticated));
    assert_eq!(gateway.cps.times().learn().await.unwrap(), 2);
    let mut images = Vec::new();
    let random = || rand_core::Rng::next_u64(&mut SystemRandom);
    disk.each_image(1, random, |image| {
        if image.at >= cut_from {
            images.push(image);
        }
    });
    gateway.stop().await;
    assert!(images.len() >= 3, "{} images", images.len());
    let (mut learnt_before, mut lost) = (0, 0);
    for (n, image) in images.into_iter().enumerate() {
        let gateway = serve_on(image.into_medium()).await;
        let on_record = listed(&gateway, "anna").quality == "learnt later";
        learnt_before += usize::from(on_record);
        let another_run = n % 2 == 1;
        if another_run {
            gateway.clock.reboot();
        }
        pass(&gateway, cut_later);
        gateway
            .clock
            .set(Time::new(TRUE + cut_later, TimeQuality::Authenticated));
        gateway.cps.times().learn().await.unwrap();
        for (name, when) in [("anna", 0), ("bea", 10)] {
            match another_run && !on_record {
                false => is(&listed(&gateway, name), TRUE + when, "learnt later"),
                true => is(&listed(&gateway, name), SECOND + when, "floor"),
            }
        }
        lost += usize::from(another_run && !on_record);
        gateway.stop().await;
    }
    assert!(
        learnt_before > 0 && lost > 0,
        "the control: {learnt_before} {lost}"
    );
}

/// What an order looks like in the history of services, and who tells: the cloud's clock may lose the
/// time too, and another gateway's word about this one's times changes nothing.
#[tokio::test]
async fn nobody_gives_the_records_of_others_their_time() {
    let cloud = cloud().await;
    let north = gateway(&cloud, "north", "gw1").await;
    floor(&north, SECOND);
    list(&north, "anna").await;
    exchange(&north, &cloud).await;
    // The same numbers, of another origin and site.
    let south = gateway(&cloud, "south", "gw2").await;
    floor(&south, FIRST);
    for name in ["a", "b", "c", "d"] {
        list(&south, name).await;
    }
    south.clock.set(Time::new(TRUE, TimeQuality::Authenticated));
    assert_eq!(south.cps.times().learn().await.unwrap(), 4);
    exchange(&south, &cloud).await;
    let rows = cloud.cps.lists().installers(Some(&site("south"))).unwrap();
    assert!(
        rows.iter().all(|row| row.listed == TRUE),
        "the control: {rows:?}"
    );
    is(&listed(&cloud, "anna"), SECOND, "floor");
}
