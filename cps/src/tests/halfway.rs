//! Cut in the middle: what each disk may hold after a power cut at any moment of a story, and that
//! the story ends right at the next try. `kill -9` is told with real programs elsewhere; it leaves
//! what the last finished write left, which is among these.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::record::Standing;
use holdfast_store::Medium;
use holdfast_store::fault::{CrashBackend, Image};
use tempfile::TempDir;

use super::kit::*;
use super::registry::dump;
use crate::roster;
use crate::sync::Client;
use crate::{Cps, CpsConfig, Role};

const HOUR: Duration = Duration::from_secs(3600);

/// A server on a disk that remembers every write.
struct Cut {
    disk: CrashBackend,
    /// Outlives the server, as files that are written whole or not at all do.
    keys: TempDir,
    config: CpsConfig,
}

impl Cut {
    fn cloud() -> Self {
        let domain = "holdfast.internal".parse().unwrap();
        Self {
            disk: CrashBackend::new(),
            keys: tempfile::tempdir().unwrap(),
            config: CpsConfig::new(server("cloud"), domain, Role::Cloud),
        }
    }

    /// A gateway, enrolled.
    async fn gateway(cloud: &Served) -> Self {
        let (at, name) = (site("north"), server("gw1"));
        cloud.cps.add_site(&at).await.unwrap();
        let token = cloud.cps.enrolment().token(&at, &name, HOUR).await.unwrap();
        let keys = tempfile::tempdir().unwrap();
        enrol_in(cloud, &keys, &token).await.unwrap();
        let domain = "holdfast.internal".parse().unwrap();
        Self {
            disk: CrashBackend::new(),
            keys,
            config: CpsConfig::new(name, domain, Role::Gateway { site: at }),
        }
    }

    /// `enrol_in` keeps a gateway's keys one folder further down.
    fn keys(&self) -> std::path::PathBuf {
        match self.config.role {
            Role::Cloud => self.keys.path().to_owned(),
            Role::Gateway { .. } => self.keys.path().join("keys"),
        }
    }

    async fn serve(&self) -> Served {
        serve_on_medium(self, Medium::Backend(Arc::new(self.disk.clone()))).await
    }

    async fn serve_image(&self, image: Image) -> Served {
        serve_on_medium(self, image.into_medium()).await
    }

    /// What the disk may hold from `before` on: after each sync, and torn between.
    fn images_since(&self, before: usize) -> Vec<Image> {
        let mut images = Vec::new();
        let random = || rand_core::Rng::next_u64(&mut SystemRandom);
        self.disk.each_image(1, random, |image| {
            if image.at >= before {
                images.push(image);
            }
        });
        assert!(images.len() >= 3, "{} images", images.len());
        images
    }
}

async fn serve_on_medium(cut: &Cut, medium: Medium) -> Served {
    let (folder, keys) = (tempfile::tempdir().unwrap(), cut.keys());
    let served = serve_at(cut.config.clone(), medium, &keys, folder);
    served.await.unwrap()
}

async fn synced(gateway: &Served, cloud: &Served) {
    let client = Client::new(&gateway.cps, https_client(gateway, cloud.api).await);
    let done = client.once().await.unwrap();
    let refused = [&done.pulled.refused, &done.pushed.refused];
    assert!(refused.iter().all(|it| it.is_empty()), "{done:?}");
    let north = site("north");
    let cursor = |it: &Cps| it.sync().cursor(&north).unwrap();
    assert_eq!(cursor(&gateway.cps), cursor(&cloud.cps));
}

async fn serve_enrolled(folder: &Path) -> Served {
    let domain = "holdfast.internal".parse().unwrap();
    let role = Role::Gateway {
        site: site("north"),
    };
    let config = CpsConfig::new(server("gw1"), domain, role);
    let stores = Medium::Backend(Arc::new(CrashBackend::new()));
    let (own, keys) = (tempfile::tempdir().unwrap(), folder.join("keys"));
    let served = serve_at(config, stores, &keys, own);
    served.await.unwrap()
}

async fn well(device: &mut Device, at: &Served) {
    let ended = device.to2(at.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
}

#[tokio::test]
async fn an_enrolment_cut_at_the_cloud_ends_right_with_the_same_token() {
    let cut = Cut::cloud();
    let cloud = cut.serve().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let (at, name) = (site("north"), server("gw1"));
    let token = cloud.cps.enrolment().token(&at, &name, HOUR).await.unwrap();
    let (before, folder) = (cut.disk.position(), tempfile::tempdir().unwrap());
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let images = cut.images_since(before);
    cloud.stop().await;
    let (mut recorded, count) = (0, images.len());
    for image in images {
        let cloud = cut.serve_image(image).await;
        recorded += cloud.cps.enrolment().gateways().unwrap().len();
        // Whether it was recorded or not, the gateway only knows that no answer came.
        std::fs::remove_file(folder.path().join("keys/cloud.json")).unwrap();
        let enrolled = enrol_in(&cloud, &folder, &token).await.unwrap();
        assert_eq!(enrolled.epoch, 1);
        let rows = cloud.cps.enrolment().gateways().unwrap();
        assert_eq!((rows.len(), rows[0].epoch), (1, 1));
        let gateway = serve_enrolled(folder.path()).await;
        synced(&gateway, &cloud).await;
    }
    assert!(
        0 < recorded && recorded < count,
        "both sides of the commit: {recorded}"
    );
}

#[tokio::test]
async fn a_replacement_cut_at_the_cloud_ends_right_at_the_next_try() {
    let cut = Cut::cloud();
    let cloud = cut.serve().await;
    let old = gateway(&cloud, "north", "gw1").await;
    let shown = old.cps.authority().own_identity(&[LOCAL]).await.unwrap();
    let shown: Vec<Vec<u8>> = shown.chain().iter().map(|der| der.to_vec()).collect();
    let (at, name) = (site("north"), server("gw1"));
    let before = cut.disk.position();
    let token = cloud
        .cps
        .enrolment()
        .replace(&at, &name, HOUR)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let images = cut.images_since(before);
    cloud.stop().await;
    for image in images {
        let position = image.at;
        let cloud = cut.serve_image(image).await;
        // The operator saw no answer and orders it once more; the machine tries what it has first.
        let enrolment = cloud.cps.enrolment();
        let again = enrolment.replace(&at, &name, HOUR).await.unwrap();
        let epoch = match enrol_in(&cloud, &folder, &token).await {
            Ok(enrolled) => enrolled.epoch,
            Err(_) => enrol_in(&cloud, &folder, &again).await.unwrap().epoch,
        };
        let rows = enrolment.gateways().unwrap();
        assert_eq!((rows.len(), rows[0].epoch), (1, epoch), "at {position}");
        let out = cloud.cps.roster().identify(&shown).unwrap_err();
        let is_out = matches!(
            out,
            roster::Refusal::Replaced(_) | roster::Refusal::Locked(_)
        );
        assert!(is_out, "at {position}: {out}");
        // Ordered a second time when the first had done its work: the second locks the new one out,
        // as asked, and its token lets it in again.
        if cloud
            .cps
            .roster()
            .rights_for_subject("gw1.gateways.north.holdfast.internal")
            .is_err()
        {
            let next = tempfile::tempdir().unwrap();
            let enrolled = enrol_in(&cloud, &next, &again).await.unwrap();
            assert_eq!(enrolled.epoch, epoch + 1);
            synced(&serve_enrolled(next.path()).await, &cloud).await;
        } else {
            synced(&serve_enrolled(folder.path()).await, &cloud).await;
        }
    }
}

#[tokio::test]
async fn a_voucher_handed_in_and_a_list_changed_are_there_or_not_and_can_be_repeated() {
    let cloud = cloud().await;
    let cut = Cut::gateway(&cloud).await;
    let gateway = cut.serve().await;
    let factory = Factory::new();
    let (device, voucher) = factory.device_for(&gateway.cps, "b");
    let before = cut.disk.position();
    let list = async |it: &Served| {
        let named = ("maker".parse().unwrap(), factory.key.public());
        let role = holdfast_protocol::record::ListedAs::Installer;
        it.cps.lists().list(role, None, named).await.unwrap();
    };
    list(&gateway).await;
    gateway
        .cps
        .handover()
        .take(voucher.as_bytes())
        .await
        .unwrap();
    let images = cut.images_since(before);
    gateway.stop().await;
    for image in images {
        let gateway = cut.serve_image(image).await;
        list(&gateway).await;
        gateway
            .cps
            .handover()
            .take(voucher.as_bytes())
            .await
            .unwrap();
        assert_eq!(gateway.cps.lists().installers(None).unwrap().len(), 1);
        assert_eq!(gateway.cps.vouchers().list().unwrap().len(), 1);
        let mut device = device.again();
        well(&mut device, &gateway).await;
    }
}

#[tokio::test]
async fn a_push_cut_at_the_cloud_and_a_pull_cut_at_the_gateway_come_to_the_same() {
    let (cut, factory) = (Cut::cloud(), Factory::new());
    let cloud = cut.serve().await;
    believe(&cloud, &factory).await;
    let site_cut = Cut::gateway(&cloud).await;
    let gateway = site_cut.serve().await;
    // Both have something to say.
    let (mut here, voucher) = factory.device_for(&cloud.cps, "a");
    let vouchers = cloud.cps.vouchers();
    vouchers
        .accept(&voucher, Some(site("north")))
        .await
        .unwrap();
    well(&mut here, &cloud).await;
    let (mut there, voucher) = factory.device_for(&gateway.cps, "b");
    gateway.cps.vouchers().accept(&voucher, None).await.unwrap();
    well(&mut there, &gateway).await;
    let (at_cloud, at_site) = (cut.disk.position(), site_cut.disk.position());
    synced(&gateway, &cloud).await;
    let (want_cloud, want_site) = (dump(&cloud.cps), dump(&gateway.cps));
    for image in cut.images_since(at_cloud) {
        let cloud = cut.serve_image(image).await;
        synced(&gateway, &cloud).await;
        assert_eq!(dump(&cloud.cps), want_cloud);
    }
    for image in site_cut.images_since(at_site) {
        let gateway = site_cut.serve_image(image).await;
        synced(&gateway, &cloud).await;
        assert_eq!(dump(&gateway.cps), want_site);
    }
}

/// The gateway loses its power after each message of TO2; the device comes again with whichever
/// credential it kept. In the end one server onboarded it, and nothing is contested.
#[tokio::test]
async fn a_gateway_cut_after_any_message_of_to2_onboards_the_device_at_the_next_try() {
    let (cloud, factory) = (cloud().await, Factory::new());
    believe(&cloud, &factory).await;
    let mut committed = 0;
    for stop in 1..10 {
        let cut = Cut::gateway(&cloud).await;
        let gateway = cut.serve().await;
        let (mut device, voucher) = factory.device_for(&gateway.cps, "b");
        let id = device.id();
        gateway.cps.vouchers().accept(&voucher, None).await.unwrap();
        let manners = Manners {
            stops_after: Some(stop),
            ..Manners::default()
        };
        device.to2(gateway.fdo, &manners).await;
        // What was answered is on the disk; what was not finished may be or not.
        let keep = || rand_core::Rng::next_u64(&mut SystemRandom).is_multiple_of(2);
        let image = cut.disk.image(cut.disk.position(), keep);
        gateway.stop().await;
        let gateway = cut.serve_image(image).await;
        let view = gateway.cps.devices().view(id).unwrap().unwrap();
        committed += usize::from(view.onboarded);
        // It forgot what was pending, or it had taken it: both are served.
        let mut forgetful = device.again();
        well(&mut forgetful, &gateway).await;
        assert_settled(&gateway, id);
        synced(&gateway, &cloud).await;
        assert_settled(&cloud, id);
        well(&mut forgetful, &gateway).await;
        assert_settled(&gateway, id);
    }
    assert!(0 < committed && committed < 9, "{committed}");
}

fn assert_settled(at: &Served, id: DeviceId) {
    let record = at.cps.devices().record(id).unwrap().unwrap();
    let owner = record.owner().unwrap();
    assert_eq!((owner.standing, owner.contested), (Standing::Proved, false));
}
