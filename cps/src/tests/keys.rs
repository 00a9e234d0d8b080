//! Rotation of owner key and signing key, cut at every sync of key files and registry, at the gateway
//! and at the cloud, online and in an outage. After each cut both servers open again: each believes
//! what the other writes, devices believe the notices, and come in by old and new vouchers.

mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_disk::fault::Recorder;
use holdfast_link::random::SystemRandom;
use holdfast_link::time::ManualClock;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::notice::Notice;
use holdfast_protocol::record::Change;
use holdfast_protocol::succession::{KeyRole, Orders, Succession, follow};
use holdfast_protocol::voucher::Voucher;
use holdfast_store::fault::CrashBackend;
use holdfast_store::{Medium, Options, Store};
use tempfile::TempDir;

use super::kit::*;
use crate::registry::Draft;
use crate::rotation::RotationError;
use crate::vouchers::Accepted;
use crate::{Cps, CpsConfig, Keys, OpenError, Role, Stores, alternates, telemetry, tidings};

/// A server whose power is cut: its registry and its key files.
struct Machine {
    disk: CrashBackend,
    folder: TempDir,
    config: CpsConfig,
}

impl Machine {
    fn cloud() -> Self {
        let domain = "holdfast.internal".parse().unwrap();
        Self {
            disk: CrashBackend::new(),
            folder: tempfile::tempdir().unwrap(),
            config: CpsConfig::new(server("cloud"), domain, Role::Cloud),
        }
    }

    async fn gateway(cloud: &Served) -> Self {
        let (at, name) = (site("north"), server("gw1"));
        cloud.cps.add_site(&at).await.unwrap();
        let hour = Duration::from_secs(3600);
        let token = cloud.cps.enrolment().token(&at, &name, hour).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        enrol_in(cloud, &folder, &token).await.unwrap();
        let domain = "holdfast.internal".parse().unwrap();
        Self {
            disk: CrashBackend::new(),
            folder,
            config: CpsConfig::new(name, domain, Role::Gateway { site: at }),
        }
    }

    fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    async fn serve(&self) -> Served {
        let medium = Medium::Backend(Arc::new(self.disk.clone()));
        let own = tempfile::tempdir().unwrap();
        let keys = self.keys();
        let served = serve_at(self.config.clone(), medium, &keys, own);
        served.await.unwrap()
    }

    fn record(&self) -> Recorder {
        let disk = self.disk.clone();
        let positions = Box::new(move || vec![disk.position()]);
        Recorder::watch_beside(&[self.folder.path()], positions).unwrap()
    }

    /// Where the power is cut since `before`: right after and just before the end of each sync, of
    /// the files and of the registry; how far files and registry were.
    fn cuts(&self, recorder: &Recorder, before: usize) -> Vec<(usize, usize)> {
        let mut cuts = Vec::new();
        for (at, others) in recorder.boundaries() {
            cuts.extend([(at - 1, others[0]), (at, others[0])]);
        }
        for at in self.disk.boundaries().into_iter().filter(|at| *at > before) {
            let files = recorder.before(0, at);
            cuts.extend([(files, at - 1), (files, at)]);
        }
        cuts
    }

    /// The machine as a cut left it.
    fn after(&self, recorder: &Recorder, (files, disk): (usize, usize)) -> Self {
        let random = || rand_core::Rng::next_u64(&mut SystemRandom);
        let folder = tempfile::tempdir().unwrap();
        let image = recorder.image(files, random);
        image
            .put(self.folder.path(), &folder.path().join("left"))
            .unwrap();
        std::fs::rename(folder.path().join("left/keys"), folder.path().join("keys")).unwrap();
        let image = self.disk.image(disk, || random().is_multiple_of(2));
        self.with(CrashBackend::from_bytes(image.bytes), folder)
    }

    /// The machine as it is now.
    fn copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let recorder = self.record();
        let image = recorder.image(0, || 0);
        image
            .put(&self.keys(), &folder.path().join("keys"))
            .unwrap();
        let image = self.disk.image(self.disk.position(), || true);
        self.with(CrashBackend::from_bytes(image.bytes), folder)
    }

    fn with(&self, disk: CrashBackend, folder: TempDir) -> Self {
        let config = self.config.clone();
        Self {
            disk,
            folder,
            config,
        }
    }

    /// Opens it without listeners.
    async fn open(&self) -> Result<Cps, OpenError> {
        let own = |prepare: fn(&redb::WriteTransaction) -> _, disk: &CrashBackend| {
            let medium = Medium::Backend(Arc::new(disk.clone()));
            Store::open(medium, Options::default(), prepare)
        };
        let stores = Stores {
            registry: own(crate::prepare, &self.disk)?,
            ledger: own(telemetry::prepare, &CrashBackend::new())?,
        };
        let clock = Arc::new(ManualClock::at(NOW));
        let keys = Keys::open(&self.keys())?;
        Cps::open(self.config.clone(), stores, keys, clock).await
    }
}

/// A cloud and a gateway that know of each other, and a device that each onboarded.
struct World {
    cloud: Machine,
    gateway: Machine,
    at_cloud: Served,
    at_gateway: Served,
    factory: Factory,
    devices: Vec<Device>,
}

async fn world() -> World {
    let (cloud, factory) = (Machine::cloud(), Factory::new());
    let at_cloud = cloud.serve().await;
    believe(&at_cloud, &factory).await;
    let gateway = Machine::gateway(&at_cloud).await;
    let at_gateway = gateway.serve().await;
    let mut devices = Vec::new();
    exchange(&at_gateway.cps, &at_cloud.cps).await;
    for (at, serial) in [(&at_gateway, "g"), (&at_cloud, "c")] {
        let (mut device, voucher) = factory.device_for(&at.cps, serial);
        let vouchers = at.cps.vouchers();
        vouchers
            .accept(&voucher, Some(site("north")))
            .await
            .unwrap();
        well(&mut device, at).await;
        devices.push(device);
    }
    exchange(&at_gateway.cps, &at_cloud.cps).await;
    World {
        cloud,
        gateway,
        at_cloud,
        at_gateway,
        factory,
        devices,
    }
}

async fn well(device: &mut Device, at: &Served) {
    let ended = device.to2(at.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
}

/// Both ways, until nothing is left; what was refused, in words.
async fn try_exchange(gateway: &Cps, cloud: &Cps) -> Vec<String> {
    let (north, mut refused) = (site("north"), Vec::new());
    for (from, to) in [(cloud, gateway), (gateway, cloud)] {
        let name = from.config().server.clone();
        loop {
            let cursor = to.sync().cursor(&north).unwrap();
            let batch = from.sync().pull(&north, &cursor, 500).unwrap();
            if batch.entries.is_empty() {
                break;
            }
            let report = to.sync().accept(&north, &name, &batch.entries).await;
            refused.extend(report.unwrap().refused);
            if to.sync().cursor(&north).unwrap() == cursor {
                break;
            }
        }
    }
    refused
}

async fn exchange(gateway: &Cps, cloud: &Cps) {
    let refused = try_exchange(gateway, cloud).await;
    assert!(refused.is_empty(), "{refused:?}");
    let cursor = |cps: &Cps| cps.sync().cursor(&site("north")).unwrap();
    assert_eq!(cursor(gateway), cursor(cloud));
}

/// Something new in each log.
async fn write(cps: &Cps) {
    let change = Change::AlternateTold {
        server: cps.config().server.clone(),
    };
    let draft = Draft {
        site: site("north"),
        device: None,
        change,
    };
    cps.core.registry.append(vec![draft]).await.unwrap();
}

/// What a device believes that knows `keys` and takes what `cps` tells.
async fn believed(cps: &Cps, device: DeviceId, keys: &[VerifyingKey]) -> Vec<VerifyingKey> {
    let due = cps.tidings().due(&tidings::Told::default()).await.unwrap();
    let told = due.iter().find(|due| due.device == device);
    let orders = told.map(|due| Orders::from_cbor(&due.payload).unwrap());
    let steps: Vec<Succession> = orders
        .iter()
        .flat_map(|orders| &orders.successions)
        .map(|step| {
            step.verify().unwrap();
            step.said().clone()
        })
        .collect();
    keys.iter().map(|key| follow(key, &steps).clone()).collect()
}

/// The device of that configuration believes the notices of the server, by what it is told of keys.
async fn notices_are_believed(cps: &Cps, device: &Device) {
    let config = device.config.as_ref().unwrap();
    let keys = believed(cps, config.device, &config.notice_keys).await;
    let due = cps.alternates().due(&alternates::Told::default()).await;
    let due = due.unwrap();
    let own = due.iter().find(|due| due.notice.device == config.device);
    let notice = &own.expect("each device is told of the other server").notice;
    Notice::verify(&notice.notice, &keys, &config.site, config.device).unwrap();
}

/// Signing keys, cut; `who` rotates. Every entry and every notice is believed after each cut.
async fn signing_key_cut(who: Role) -> usize {
    let world = world().await;
    let at_cloud = matches!(who, Role::Cloud);
    let (machine, served) = match at_cloud {
        true => (&world.cloud, &world.at_cloud),
        false => (&world.gateway, &world.at_gateway),
    };
    let (before, recorder) = (machine.disk.position(), machine.record());
    let old = served.cps.keys().record().public();
    served
        .cps
        .rotation()
        .rotate(KeyRole::Signing)
        .await
        .unwrap();
    let cuts = machine.cuts(&recorder, before);
    let (mut seen, mut rotated) = (0, 0);
    for cut in &cuts {
        for _ in 0..3 {
            let left = machine.after(&recorder, *cut);
            let (cloud, gateway) = match at_cloud {
                true => (left, world.gateway.copy()),
                false => (world.cloud.copy(), left),
            };
            let (cloud, gateway) = (cloud.open().await.unwrap(), gateway.open().await.unwrap());
            let own = if at_cloud { &cloud } else { &gateway };
            rotated += usize::from(own.keys().record().public() != old);
            // In the outage each writes for itself; then the link is back.
            write(&cloud).await;
            write(&gateway).await;
            exchange(&gateway, &cloud).await;
            for device in &world.devices {
                notices_are_believed(&cloud, device).await;
                notices_are_believed(&gateway, device).await;
            }
            // Rotated again, whatever the cut one left.
            own.rotation().rotate(KeyRole::Signing).await.unwrap();
            write(own).await;
            exchange(&gateway, &cloud).await;
            notices_are_believed(own, &world.devices[0]).await;
            seen += 1;
        }
    }
    assert!(
        0 < rotated && rotated < seen,
        "both sides of the commit: {rotated}"
    );
    seen
}

#[tokio::test]
async fn a_gateways_signing_key_is_rotated_through_every_cut() {
    let role = Role::Gateway {
        site: site("north"),
    };
    let seen = signing_key_cut(role).await;
    assert!(seen >= 30, "{seen} cuts");
}

#[tokio::test]
async fn the_clouds_signing_key_is_rotated_through_every_cut() {
    let seen = signing_key_cut(Role::Cloud).await;
    assert!(seen >= 30, "{seen} cuts");
}

#[tokio::test]
async fn a_gateway_whose_registry_is_lost_after_a_rotation_opens_by_the_key_that_it_has() {
    let world = world().await;
    let rotation = world.at_gateway.cps.rotation();
    rotation.rotate(KeyRole::Signing).await.unwrap();
    rotation.rotate(KeyRole::Owner).await.unwrap();
    let signing = world.at_gateway.cps.keys().record().public();
    let lost = Machine {
        disk: CrashBackend::new(),
        ..world.gateway.copy()
    };
    let cps = lost.open().await.unwrap();
    assert_eq!(cps.keys().record().public(), signing);
    // A log that names a key which is gone is another matter: nobody would believe what it writes.
    let robbed = world.gateway.copy();
    std::fs::remove_file(robbed.keys().join("record-2.key")).unwrap();
    assert!(robbed.open().await.is_err());
}

/// Owner keys, cut: devices come by a voucher that names the old key and by one that names the new.
async fn owner_key_cut(at_cloud: bool) -> usize {
    let world = world().await;
    let (machine, served) = match at_cloud {
        true => (&world.cloud, &world.at_cloud),
        false => (&world.gateway, &world.at_gateway),
    };
    // Held, and on a medium somewhere.
    let (held, voucher) = world.factory.device_for(&served.cps, "held");
    let vouchers = served.cps.vouchers();
    vouchers
        .accept(&voucher, Some(site("north")))
        .await
        .unwrap();
    let (outside, medium) = world.factory.device_for(&served.cps, "medium");
    exchange(&world.at_gateway.cps, &world.at_cloud.cps).await;
    let (before, recorder) = (machine.disk.position(), machine.record());
    served.cps.rotation().rotate(KeyRole::Owner).await.unwrap();
    let cuts = machine.cuts(&recorder, before);
    let (mut seen, own) = (0, world.devices.iter());
    let own = own.enumerate().find(|(at, _)| (*at == 1) == at_cloud);
    let (_, settled) = own.unwrap();
    for cut in &cuts {
        let left = machine.after(&recorder, *cut);
        let (cloud, gateway) = match at_cloud {
            true => (left, world.gateway.copy()),
            false => (world.cloud.copy(), left),
        };
        let (cloud, gateway) = (cloud.serve().await, gateway.serve().await);
        let at = if at_cloud { &cloud } else { &gateway };
        // What was onboarded before, what was held, and what comes only now.
        for device in [settled, &held] {
            well(&mut device.again(), at).await;
        }
        let taken = at.cps.vouchers().accept(&medium, Some(site("north"))).await;
        assert_eq!(taken.unwrap(), Accepted::New);
        well(&mut outside.again(), at).await;
        let (mut fresh, voucher) = world.factory.device_for(&at.cps, "fresh");
        let taken = at
            .cps
            .vouchers()
            .accept(&voucher, Some(site("north")))
            .await;
        assert_eq!(taken.unwrap(), Accepted::New);
        well(&mut fresh, at).await;
        exchange(&gateway.cps, &cloud.cps).await;
        seen += 1;
    }
    seen
}

#[tokio::test]
async fn a_gateways_owner_key_is_rotated_through_every_cut() {
    let seen = owner_key_cut(false).await;
    assert!(seen >= 8, "{seen} cuts");
}

#[tokio::test]
async fn the_clouds_owner_key_is_rotated_through_every_cut() {
    let seen = owner_key_cut(true).await;
    assert!(seen >= 8, "{seen} cuts");
}

#[tokio::test]
async fn control_a_key_announced_before_it_is_durable_is_caught() {
    let world = world().await;
    let (before, recorder) = (world.gateway.disk.position(), world.gateway.record());
    recorder.forget_syncs();
    let rotation = world.at_gateway.cps.rotation();
    rotation.rotate(KeyRole::Signing).await.unwrap();
    let end = (recorder.position(), world.gateway.disk.position());
    assert!(end.1 > before);
    let mut lost = 0;
    for _ in 0..20 {
        let left = world.gateway.after(&recorder, end);
        lost += usize::from(left.open().await.is_err());
    }
    assert!(lost > 0, "the log names a key that no file holds");
}

#[tokio::test]
async fn control_an_old_key_dropped_before_the_new_one_is_announced_is_caught() {
    let world = world().await;
    let left = world.gateway.copy();
    // The planted order: another key made, the old one destroyed, and then the power goes.
    let keys = Keys::open(&left.keys()).unwrap();
    let old = keys.record().public();
    keys.spare(KeyRole::Signing, std::slice::from_ref(&old))
        .unwrap();
    std::fs::remove_file(left.keys().join("record.key")).unwrap();
    assert!(
        left.open().await.is_err(),
        "enrolled with a key that is gone"
    );
    // Without the note of its enrolment it would write what nobody believes.
    let text = std::fs::read_to_string(left.keys().join("cloud.json")).unwrap();
    let mut text: serde_json::Value = serde_json::from_str(&text).unwrap();
    text["own"] = serde_json::Value::Null;
    std::fs::write(left.keys().join("cloud.json"), text.to_string()).unwrap();
    let gateway = left.open().await.unwrap();
    write(&gateway).await;
    let refused = try_exchange(&gateway, &world.at_cloud.cps).await;
    assert!(!refused.is_empty());
}
