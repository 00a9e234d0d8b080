//! A device's way in: TO0, TO1, TO2, its certificate; cut anywhere and tried again; lies refused.

use std::sync::Arc;

use holdfast_link::fdo::Error as LinkError;
use holdfast_link::random::SystemRandom;
use holdfast_link::tls::{Anchors, Purpose, verify_chain};
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::ErrorCode;
use holdfast_protocol::fdo::to2::Options;
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Standing};
use holdfast_store::fault::{CrashBackend, Image};
use holdfast_store::{Medium, StoreError};

use super::kit::*;
use crate::to0::Registered;
use crate::vouchers::Accepted;

async fn accepted(cloud: &Served, factory: &Factory, at: &str) -> Device {
    let (device, voucher) = factory.device_for(&cloud.cps, "s1");
    cloud.cps.add_site(&site(at)).await.unwrap();
    let done = cloud
        .cps
        .vouchers()
        .accept(&voucher, Some(site(at)))
        .await
        .unwrap();
    assert_eq!(done, Accepted::New);
    device
}

fn refused_with(ended: &Ended) -> Option<ErrorCode> {
    match ended {
        Ended::Link(LinkError::Refused { error, .. }) => Some(error.code),
        _ => None,
    }
}

#[tokio::test]
async fn a_device_comes_in_by_to0_to1_and_to2_and_its_certificate_holds() {
    let cloud = cloud().await;
    let factory = Factory::new();
    let mut device = accepted(&cloud, &factory, "north").await;
    let id = device.id();
    let (to0, mut known) = (cloud.cps.to0(), Registered::default());
    let round = to0.round(&fdo_client(cloud.fdo), &mut known).await.unwrap();
    assert_eq!((round.done, round.failed), (1, 0));
    let again = to0.round(&fdo_client(cloud.fdo), &mut known).await.unwrap();
    assert_eq!(again.done, 0, "registered already");
    let to1d = device.to1(cloud.fdo).await.unwrap();
    assert_eq!(to1d.addresses()[0].port, cloud.fdo.port());
    let options = Options {
        to1d: Some(to1d),
        ..Options::default()
    };
    let ended = device
        .to2_with(cloud.fdo, &Manners::default(), options)
        .await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");

    let config = device.config.clone().unwrap();
    assert_eq!((config.device, &config.site), (id, &site("north")));
    assert_eq!(config.servers[0].name, "cloud.servers.holdfast.internal");
    let leaf = device.certificate.clone().unwrap();
    let anchors = Anchors::new(config.anchors.clone()).unwrap();
    let above: Vec<_> = config.chain.iter().cloned().map(Into::into).collect();
    let now = cloud.cps.clock().now();
    verify_chain(
        &leaf.clone().into(),
        &above,
        &anchors,
        Purpose::Client,
        None,
        now,
    )
    .unwrap();
    let mut chain = vec![leaf];
    chain.extend(config.chain);
    let known = cloud.cps.roster().identify(&chain).unwrap();
    assert_eq!(
        known.party,
        Party::Device {
            device: id,
            site: site("north")
        }
    );
    assert!(
        known
            .rights
            .may_publish(&format!("hf/v1/north/{id}/up/weather"))
    );

    let record = cloud.cps.devices().record(id).unwrap().unwrap();
    let owner = record.owner().unwrap();
    assert_eq!(owner.standing, Standing::Proved);
    assert_eq!(owner.claim.cps_key, device.cps_key.public());
    assert_eq!(record.guid(), device.credential.guid);
    assert_ne!(device.credential.guid, id.guid());
}

#[tokio::test]
async fn the_device_comes_again_with_its_new_credential_and_the_old_guid_is_over_then() {
    let cloud = cloud().await;
    let factory = Factory::new();
    let mut device = accepted(&cloud, &factory, "north").await;
    let (id, first) = (device.id(), device.credential.clone());
    for round in 0..3 {
        let ended = device.to2(cloud.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "round {round}: {ended:?}");
    }
    let record = cloud.cps.devices().record(id).unwrap().unwrap();
    assert_eq!(record.claims().count(), 3);
    let live = cloud.cps.vouchers().list().unwrap();
    assert_eq!(
        live.iter().filter(|row| row.live).count(),
        2,
        "the present one and its source"
    );
    device.credential = first;
    let ended = device.to2(cloud.fdo, &Manners::default()).await;
    assert_eq!(refused_with(&ended), Some(ErrorCode::ResourceNotFound));
}

/// Lost message 71: the owner has committed, the device kept the old credential (pending beside).
#[tokio::test]
async fn cut_after_any_message_the_next_run_succeeds_with_the_credential_the_device_kept() {
    let cloud = cloud().await;
    let factory = Factory::new();
    // 60, 62, 64, 66, four or more 68, 70: far enough to meet the end of the run.
    for stop in 1..12 {
        let mut device = accepted(&cloud, &factory, "north").await;
        let id = device.id();
        let manners = Manners {
            stops_after: Some(stop),
            ..Manners::default()
        };
        let ended = device.to2(cloud.fdo, &manners).await;
        let finished = matches!(ended, Ended::Well);
        assert!(
            finished || matches!(ended, Ended::Stopped),
            "stop {stop}: {ended:?}"
        );
        // The careless device forgets what was pending: it still has the old credential.
        device.pending = None;
        let ended = device.to2(cloud.fdo, &Manners::default()).await;
        assert!(
            matches!(ended, Ended::Well),
            "after a cut at {stop}: {ended:?}"
        );
        let record = cloud.cps.devices().record(id).unwrap().unwrap();
        assert!(record.guids().contains(&device.credential.guid));
        let ended = device.to2(cloud.fdo, &Manners::default()).await;
        assert!(
            matches!(ended, Ended::Well),
            "once more after {stop}: {ended:?}"
        );
    }
    assert_eq!(
        cloud.cps.registrar().open_runs(),
        0,
        "no run of a device that came again is left"
    );
}

#[tokio::test]
async fn a_device_that_took_the_new_credential_though_71_was_lost_is_served_too() {
    let cloud = cloud().await;
    let factory = Factory::new();
    let mut device = accepted(&cloud, &factory, "north").await;
    let mut stop = 1;
    let pending = loop {
        let mut one = accepted(&cloud, &factory, "north").await;
        let manners = Manners {
            stops_after: Some(stop),
            ..Manners::default()
        };
        let ended = one.to2(cloud.fdo, &manners).await;
        if let (Ended::Stopped, Some(pending)) = (&ended, one.pending.clone()) {
            // The last answer but the device died before using it.
            let record = cloud.cps.devices().record(one.id()).unwrap().unwrap();
            if record.owner().is_some() {
                device.credential = pending.clone();
                break pending;
            }
        }
        stop += 1;
        assert!(stop < 20, "no run got to its last message");
    };
    let ended = device.to2(cloud.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    assert_ne!(device.credential.guid, pending.guid);
}

#[tokio::test]
async fn foreign_devices_without_our_modules_come_in_and_are_shown_as_attested() {
    let cloud = cloud().await;
    let factory = Factory::new();
    for modules in [vec![], vec!["fdo.csr".to_owned()]] {
        let asks = !modules.is_empty();
        let mut device = accepted(&cloud, &factory, "north").await;
        let id = device.id();
        let manners = Manners {
            modules: Some(modules),
            ..Manners::default()
        };
        let ended = device.to2(cloud.fdo, &manners).await;
        assert!(matches!(ended, Ended::Well), "{ended:?}");
        assert_eq!(device.certificate.is_some(), asks);
        let view = cloud.cps.devices().view(id).unwrap().unwrap();
        assert_eq!(view.standing, Some("attested by gateway only"));
    }
}

#[tokio::test]
async fn lies_in_the_service_info_end_the_run_and_change_nothing() {
    let cloud = cloud().await;
    let factory = Factory::new();
    let stranger = SigningKey::generate(&mut SystemRandom);
    let lies = [
        Manners {
            states_server: Some("other".into()),
            ..Manners::default()
        },
        Manners {
            states_other_key: true,
            ..Manners::default()
        },
        Manners {
            forges: true,
            ..Manners::default()
        },
        Manners {
            csr: Some(b"\x30\x82junk".to_vec()),
            ..Manners::default()
        },
        // Somebody else's request: signed well, but not the key that the device stated.
        Manners {
            csr: Some(holdfast_protocol::csr::request("x", &stranger)),
            ..Manners::default()
        },
    ];
    for (at, lie) in lies.iter().enumerate() {
        let mut device = accepted(&cloud, &factory, "north").await;
        let ended = device.to2(cloud.fdo, lie).await;
        assert!(refused_with(&ended).is_some(), "lie {at}: {ended:?}");
        let record = cloud.cps.devices().record(device.id()).unwrap().unwrap();
        assert!(
            record.owner().is_none() && record.certificates().count() == 0,
            "lie {at}"
        );
        // The honest device behind it is served at the next try.
        let ended = device.to2(cloud.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "after lie {at}: {ended:?}");
    }
}

#[tokio::test]
async fn a_device_we_do_not_own_hears_not_found() {
    let cloud = cloud().await;
    let (mut device, _) = Factory::new().device("s1");
    let ended = device.to2(cloud.fdo, &Manners::default()).await;
    assert_eq!(refused_with(&ended), Some(ErrorCode::ResourceNotFound));
    let error = device.to1(cloud.fdo).await.unwrap_err();
    assert_eq!(
        refused_with(&Ended::Link(error)),
        Some(ErrorCode::ResourceNotFound)
    );
    assert_eq!(cloud.cps.metrics().refusals("to2", "unknown guid"), 1);
    assert_eq!(cloud.cps.metrics().refusals("to1", "unknown guid"), 1);
}

#[tokio::test]
async fn a_site_of_its_own_serves_what_was_extended_to_it_in_advance() {
    let cloud = cloud().await;
    let factory = Factory::new();
    // Before the gateway enrols, and after it.
    let before = accepted(&cloud, &factory, "north").await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let after = accepted(&cloud, &factory, "north").await;
    let elsewhere = accepted(&cloud, &factory, "south").await;
    let https = https_client(&gateway, cloud.api).await;
    let sync = crate::sync::Client::new(&gateway.cps, https);
    let exchange = sync.once().await.unwrap();
    assert!(exchange.pulled.refused.is_empty(), "{exchange:?}");
    assert_eq!(gateway.cps.to0().register_here().await.unwrap().failed, 0);
    for mut device in [before, after] {
        let id = device.id();
        device.to1(gateway.fdo).await.unwrap();
        let ended = device.to2(gateway.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "{ended:?}");
        let names: Vec<_> = device
            .config
            .unwrap()
            .servers
            .into_iter()
            .map(|s| s.name)
            .collect();
        let want = [
            "gw1.gateways.north.holdfast.internal",
            "cloud.servers.holdfast.internal",
        ];
        assert_eq!(names, want);
        // Back online the cloud verifies for itself.
        let exchange = sync.once().await.unwrap();
        assert!(exchange.pushed.refused.is_empty(), "{exchange:?}");
        let record = cloud.cps.devices().record(id).unwrap().unwrap();
        assert_eq!(record.owner().unwrap().standing, Standing::Proved);
        // And it can serve the device now: 50's new voucher was extended to it.
        device.config = None;
        let mut again = Device {
            credential: device.credential,
            config: None,
            ..device
        };
        let ended = again.to2(cloud.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "at the cloud: {ended:?}");
    }
    assert!(
        gateway
            .cps
            .devices()
            .record(elsewhere.id())
            .unwrap()
            .is_none()
    );
    let told = cloud
        .cps
        .sync()
        .pull(&site("north"), &Default::default(), 500)
        .unwrap();
    let told = told.entries.iter().filter(|bytes| {
        let entry = holdfast_protocol::record::SignedEntry::parse(bytes).unwrap();
        matches!(entry.entry().change, Change::AlternateTold { .. })
    });
    assert!(told.count() >= 2, "devices were told of the other server");
}

/// Message 71 lost to a power cut at the owner, at any moment from the device's last word on: what
/// the disk holds then serves the device with the credential it kept, and with the one it took if
/// that was recorded.
#[tokio::test]
async fn after_a_power_cut_in_the_last_commit_the_device_is_served_with_what_it_kept() {
    let cut = crash_in_last_commit(CrashBackend::new()).await;
    let (mut replaced, count) = (0, cut.images.len());
    assert!(count >= 6, "{count} images");
    for image in cut.images {
        let at = image.at;
        let cloud = reopened(image, &cut.keys).await.unwrap();
        let mut device = cut.device.again();
        if onboarded(&cloud) {
            replaced += 1;
            // It may have taken the new one, or not: here it took it.
            device.credential = cut.device.pending.clone().unwrap();
        }
        let ended = device.to2(cloud.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "image {at}: {ended:?}");
    }
    assert!(
        0 < replaced && replaced < count,
        "both sides of the commit were met: {replaced}"
    );
    let cloud = reopened(cut.answered, &cut.keys).await.unwrap();
    assert!(onboarded(&cloud), "what was answered is there");
    let ended = cut.device.again().to2(cloud.fdo, &Manners::default()).await;
    assert!(
        matches!(ended, Ended::Well),
        "the old credential, after the commit: {ended:?}"
    );
}

/// The control: on a disk that lies about syncs the answer went out and nothing of it is there.
#[tokio::test]
async fn a_lying_disk_is_caught() {
    let cut = crash_in_last_commit(CrashBackend::without_sync()).await;
    let cloud = reopened(cut.answered, &cut.keys).await;
    assert!(cloud.is_err() || !onboarded(&cloud.unwrap()));
}

fn onboarded(cloud: &Served) -> bool {
    cloud
        .cps
        .devices()
        .list(None)
        .unwrap()
        .iter()
        .any(|one| one.onboarded)
}

struct Cut {
    /// From the time just before the last commit.
    images: Vec<Image>,
    /// What a cut right after the answer leaves at worst.
    answered: Image,
    /// With the old credential, the new one pending.
    device: Device,
    keys: tempfile::TempDir,
}

/// Runs TO2 up to the answer to 70 on a disk that remembers.
async fn crash_in_last_commit(disk: CrashBackend) -> Cut {
    let keys = tempfile::tempdir().unwrap();
    let medium = Medium::Backend(Arc::new(disk.clone()));
    let cloud = serve_on(medium, &keys, tempfile::tempdir().unwrap())
        .await
        .unwrap();
    let mut device = accepted(&cloud, &Factory::new(), "north").await;
    let mut stop = 6;
    // The last answer is the one after which the owner has it on record.
    let before = loop {
        let before = disk.position();
        let mut one = device.again();
        let manners = Manners {
            stops_after: Some(stop),
            ..Manners::default()
        };
        let ended = one.to2(cloud.fdo, &manners).await;
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");
        if onboarded(&cloud) {
            device.pending = one.pending;
            break before;
        }
        stop += 1;
    };
    let answered = disk.image(disk.position(), || false);
    let mut images = Vec::new();
    let random = || rand_core::Rng::next_u64(&mut SystemRandom);
    disk.each_image(2, random, |image| {
        if image.at >= before {
            images.push(image);
        }
    });
    cloud.stop().await;
    Cut {
        images,
        answered,
        device,
        keys,
    }
}

async fn reopened(image: Image, keys: &tempfile::TempDir) -> Result<Served, StoreError> {
    serve_on(image.into_medium(), keys, tempfile::tempdir().unwrap()).await
}
