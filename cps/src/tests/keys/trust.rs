//! Who believes whom after a rotation: resent and out of order, thieves and liars, later enrolments,
//! retired keys, and the order to renew.

use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::notice::Body;
use holdfast_protocol::record::{Cursor, Entry, EntryId, SignedEntry};
use holdfast_protocol::succession::SignedSuccession;

use super::*;
use crate::authority::Whose;
use crate::handover::fingerprint;

#[tokio::test]
async fn successions_hold_resent_out_of_order_and_for_a_gateway_that_enrols_later() {
    let world = world().await;
    let (cloud, gateway) = (&world.at_cloud.cps, &world.at_gateway.cps);
    for _ in 0..3 {
        cloud.rotation().rotate(KeyRole::Signing).await.unwrap();
        cloud.rotation().rotate(KeyRole::Owner).await.unwrap();
        gateway.rotation().rotate(KeyRole::Signing).await.unwrap();
        write(cloud).await;
        write(gateway).await;
    }
    let north = site("north");
    let lacking = |from: &Cps, to: &Cps| {
        let cursor = to.sync().cursor(&north).unwrap();
        from.sync().pull(&north, &cursor, 500).unwrap().entries
    };
    // The other way round: nothing that it cannot know yet is believed, and nothing is lost.
    let mut entries = lacking(gateway, cloud);
    entries.reverse();
    for entry in &entries {
        let one = std::slice::from_ref(entry);
        cloud
            .sync()
            .accept(&north, &server("gw1"), one)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        let again = gateway
            .sync()
            .pull(&north, &Cursor::default(), 500)
            .unwrap();
        let own = again.entries.iter().filter(|bytes| {
            let entry = SignedEntry::parse(bytes).unwrap();
            entry.entry().id.origin == server("gw1")
        });
        let own: Vec<_> = own.cloned().collect();
        let report = cloud.sync().accept(&north, &server("gw1"), &own).await;
        let report = report.unwrap();
        assert!(report.refused.is_empty(), "{report:?}");
    }
    exchange(gateway, cloud).await;
    // A machine in its place reads the log from the beginning, by keys that are long gone.
    let later = Machine::gateway_again(&world).await;
    let served = later.serve().await;
    exchange(&served.cps, cloud).await;
    // It tells devices whom the cloud's old key gave way to, though it never knew that key in use.
    for device in &world.devices {
        let config = device.config.as_ref().unwrap();
        let keys = believed(&served.cps, config.device, &config.notice_keys).await;
        assert!(keys.contains(&cloud.keys().record().public()));
    }
}

impl Machine {
    async fn gateway_again(world: &World) -> Self {
        let (at, name, hour) = (site("north"), server("gw1"), Duration::from_secs(3600));
        let enrolment = world.at_cloud.cps.enrolment();
        let token = enrolment.replace(&at, &name, hour).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        enrol_in(&world.at_cloud, &folder, &token).await.unwrap();
        world.gateway.with(CrashBackend::new(), folder)
    }
}

#[tokio::test]
async fn a_thief_of_the_old_key_and_a_liar_about_keys_are_not_believed() {
    let world = world().await;
    let (cloud, gateway) = (&world.at_cloud.cps, &world.at_gateway.cps);
    let stolen = gateway.keys().record();
    gateway.rotation().rotate(KeyRole::Signing).await.unwrap();
    exchange(gateway, cloud).await;
    let forged = |seq, change, key: &SigningKey| {
        let entry = Entry {
            id: EntryId {
                origin: server("gw1"),
                epoch: 1,
                seq,
            },
            rank: 1_000,
            site: site("north"),
            at: cloud.clock().now(),
            device: None,
            change,
        };
        let signed = SignedEntry::sign(entry, key).unwrap();
        vec![signed.as_bytes().to_vec()]
    };
    let next = cloud.sync().cursor(&site("north")).unwrap();
    let next = next.after(&server("gw1"), 1) + 1;
    let told = || Change::AlternateTold {
        server: server("gw1"),
    };
    let accept = async |entries: Vec<Vec<u8>>| {
        let (north, from) = (site("north"), server("gw1"));
        let report = cloud.sync().accept(&north, &from, &entries).await.unwrap();
        report.refused
    };
    assert_eq!(accept(forged(next, told(), &stolen)).await.len(), 1);
    // The present key speaks of the cloud's, and of a key that does not hold.
    let present = gateway.keys().record();
    let fresh = SigningKey::generate(&mut SystemRandom);
    let lies = [
        (KeyRole::Signing, "cloud", &present),
        (KeyRole::Signing, "gw1", &stolen),
        (KeyRole::Owner, "gw1", &Arc::new(fresh)),
    ];
    for (at, (role, whose, old)) in (next..).zip(lies) {
        let new = SigningKey::generate(&mut SystemRandom);
        let step = SignedSuccession::sign(role, &server(whose), old, &new);
        let lie = Change::KeySucceeded(Box::new(step.unwrap()));
        let refused = accept(forged(at, lie, &present)).await;
        assert_eq!(refused.len(), 1, "{refused:?}");
    }
    // An honest one in between is believed as before.
    let honest = forged(next + 3, told(), &present);
    assert!(accept(honest).await.is_empty());
}

#[tokio::test]
async fn an_owner_key_is_retired_when_no_voucher_on_record_names_it() {
    let world = world().await;
    let cps = &world.at_cloud.cps;
    let first = cps.keys().owner().public();
    let print = fingerprint(&first);
    let present = cps.rotation().retire(&print, false).await;
    assert!(matches!(present, Err(RotationError::Present(_))));
    let (_, waiting) = world.factory.device_for(cps, "waiting");
    cps.vouchers().accept(&waiting, None).await.unwrap();
    let done = cps.rotation().rotate(KeyRole::Owner).await.unwrap();
    assert!(done.extended > 0);
    let named = |cps: &Cps| cps.rotation().show().unwrap();
    let row = |cps: &Cps, print: &str| {
        let rows = named(cps).into_iter();
        rows.filter(|row| row.role == "owner")
            .find(|row| row.fingerprint == *print)
    };
    assert_eq!(row(cps, &print).unwrap().vouchers, Some(0));
    assert_eq!(row(cps, &done.new).unwrap().state, "present");
    // One waits for a site, and cannot be extended before.
    let refused = cps.rotation().retire(&print, false).await.unwrap_err();
    assert!(
        matches!(&refused, RotationError::InUse { count: 1, .. }),
        "{refused}"
    );
    cps.vouchers()
        .assign(waiting.guid(), &site("north"))
        .await
        .unwrap();
    assert!(
        cps.rotation()
            .retire(&print, false)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(row(cps, &print).is_none());
    // The waiting device comes by the present key; what names the old one comes no more.
    let held = cps.vouchers().list().unwrap();
    let held = held.iter().find(|row| row.guid == waiting.guid()).unwrap();
    let held = Voucher::parse(&held.voucher).unwrap();
    assert!(held.is_owned_by(&cps.keys().owner().public()));
    let (_, root) = world.factory.device("late");
    let late = root
        .extend(&PublicKey::x509(&first), &world.factory.key)
        .unwrap();
    cps.vouchers().accept(&late, None).await.unwrap_err();
    exchange(&world.at_gateway.cps, cps).await;
}

#[tokio::test]
async fn a_device_is_told_to_renew_by_both_servers_until_it_has() {
    let world = world().await;
    let (cloud, gateway) = (&world.at_cloud.cps, &world.at_gateway.cps);
    let device = world.devices[0].config.as_ref().unwrap().device;
    let serial = cloud.tidings().order_renewal(device).await.unwrap();
    exchange(gateway, cloud).await;
    for cps in [cloud, gateway] {
        let mut told = tidings::Told::default();
        let due = cps.tidings().due(&told).await.unwrap();
        assert_eq!(due.len(), 1);
        let orders = Orders::from_cbor(&due[0].payload).unwrap();
        let config = world.devices[0].config.as_ref().unwrap();
        let notice = orders.renew.unwrap();
        let read = Notice::verify(&notice, &config.notice_keys, &config.site, device).unwrap();
        let wanted = Body::Renew {
            serial: serial.clone(),
        };
        assert_eq!(read.body, wanted);
        told.note(&due[0]);
        assert!(cps.tidings().due(&told).await.unwrap().is_empty());
    }
    let nobody = DeviceId::from_guid(guid());
    gateway.tidings().order_renewal(nobody).await.unwrap_err();
    // The certificate is void: nobody is told any more.
    let whose = Whose::Serial(serial);
    cloud.authority().revoke_all(&whose).await.unwrap();
    let due = cloud.tidings().due(&tidings::Told::default()).await;
    assert!(due.unwrap().is_empty());
}
