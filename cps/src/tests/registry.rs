//! Every table is a fold over the log: thrown away and made again, in any order of entries, it is
//! the same. Vouchers: what is taken, and what is refused.

use std::future::Future as _;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::ListedAs;
use holdfast_protocol::voucher::Voucher;
use holdfast_store::WriteError;

use super::kit::*;
use crate::Cps;
use crate::tables::Roll;
use crate::vouchers::Accepted;

/// Everything that the folds say.
pub(super) fn dump(cps: &Cps) -> String {
    let dumped = cps.core.registry.read(|view| {
        let mut devices = Vec::new();
        for id in view.device_ids()? {
            devices.push(format!("{:?}", crate::registry::record_of(view, id)?));
        }
        let mut cursors = Vec::new();
        for row in view.sites()? {
            cursors.push(format!("{:?}", view.cursor(&row.site)?));
        }
        let text = format!(
            "{:#?}\n{:#?}\n{:#?}\n{:#?}\n{devices:#?}\n{cursors:#?}",
            view.vouchers()?,
            view.certificates()?,
            view.gateways()?,
            view.clients()?,
        );
        let mut keys = Vec::new();
        for row in view.sites()? {
            for roll in [
                Roll::INSTALLERS,
                Roll::MANUFACTURERS,
                Roll::HEARD_MANUFACTURERS,
            ] {
                keys.push(format!("{:?}", view.keys(&row.site, roll)?));
            }
        }
        Ok(format!("{text}\n{keys:#?}"))
    });
    dumped.unwrap()
}

async fn lived_in() -> Served {
    let cloud = cloud().await;
    let (factory, other) = (Factory::new(), Factory::new());
    let gateway = gateway(&cloud, "north", "gw1").await;
    for (name, key) in [("acme", &factory.key), ("gone", &other.key)] {
        let named = (name.parse().unwrap(), key.public());
        let done = cloud.cps.lists().list(ListedAs::Manufacturer, None, named);
        done.await.unwrap();
    }
    let gone = "gone".parse().unwrap();
    let done = cloud.cps.lists().strike(ListedAs::Manufacturer, None, gone);
    done.await.unwrap();
    for at in ["north", "north", "south"] {
        cloud.cps.add_site(&site(at)).await.unwrap();
        let (mut device, voucher) = factory.device_for(&cloud.cps, "s");
        cloud
            .cps
            .vouchers()
            .accept(&voucher, Some(site(at)))
            .await
            .unwrap();
        for _ in 0..2 {
            let ended = device.to2(cloud.fdo, &Manners::default()).await;
            assert!(matches!(ended, Ended::Well), "{ended:?}");
        }
    }
    for filter in ["hf/v1/north/+/up/a", "hf/v1/north/+/up/b"] {
        let filters = vec![filter.parse().unwrap()];
        let name = "reader".parse().unwrap();
        cloud
            .cps
            .clients()
            .issue(name, Some(site("north")), vec![], filters)
            .await
            .unwrap();
    }
    let serial = cloud.cps.authority().list(Some(&site("north"))).unwrap()[0]
        .serial
        .clone();
    let serial = crate::authority::parse_serial(&serial).unwrap();
    cloud.cps.authority().revoke(serial).await.unwrap();
    drop(gateway);
    cloud
}

#[tokio::test]
async fn tables_thrown_away_are_made_again_from_the_log() {
    let cloud = lived_in().await;
    let before = dump(&cloud.cps);
    assert!(
        before.contains("up/b") && !before.contains("up/a"),
        "the later admission holds"
    );
    cloud.cps.rebuild().await.unwrap();
    assert_eq!(dump(&cloud.cps), before);
}

#[tokio::test]
async fn any_order_of_entries_gives_the_same_tables() {
    let cloud = lived_in().await;
    let want = dump(&cloud.cps);
    for round in 0..8u64 {
        let done: Result<(), WriteError> = cloud
            .cps
            .core
            .registry
            .write(move |it| {
                let mut entries = it.tables.entries()?;
                // A different order each time, from the worst (backwards) on.
                entries.reverse();
                let turn = usize::try_from(round * 7).unwrap() % entries.len();
                entries.rotate_left(turn);
                it.tables.clear_folds()?;
                for entry in entries.iter().chain(entries.iter().step_by(3)) {
                    it.take(entry)?;
                }
                Ok(())
            })
            .await;
        done.unwrap();
        assert_eq!(dump(&cloud.cps), want, "round {round}");
    }
}

/// A peer hangs up while its request is being committed: what the commit brought about is known to
/// those who ask the roster all the same.
#[tokio::test]
async fn who_goes_away_in_the_middle_of_a_commit_holds_up_nobody() {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let key = SigningKey::generate(&mut SystemRandom).public();
    let enrolled = crate::registry::Draft {
        site: site("north"),
        device: None,
        change: holdfast_protocol::record::Change::GatewayEnrolled {
            gateway: server("gw1"),
            epoch: 1,
            record_key: key.clone(),
            owner_key: key,
        },
    };
    let mut changes = cloud.cps.core.registry.changes();
    let mut writing = Box::pin(cloud.cps.core.registry.append(vec![enrolled]));
    let polled = std::future::poll_fn(|context| {
        std::task::Poll::Ready(writing.as_mut().poll(context).is_ready())
    });
    assert!(!polled.await, "it waits for the disk");
    drop(writing);
    changes.changed().await.unwrap();
    let gateway = server("gw1");
    let mut roster = cloud.cps.roster().changes();
    while cloud.cps.roster().gateway(&gateway).is_none() {
        roster.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_lost_entry_shows() {
    // The control of the two tests above: they would see a fold that forgot something.
    let cloud = lived_in().await;
    let want = dump(&cloud.cps);
    let done: Result<(), WriteError> = cloud
        .cps
        .core
        .registry
        .write(|it| {
            let entries = it.tables.entries()?;
            it.tables.clear_folds()?;
            entries
                .iter()
                .skip(1)
                .try_for_each(|entry| Ok(it.take(entry)?))
        })
        .await;
    done.unwrap();
    assert_ne!(dump(&cloud.cps), want);
}

#[tokio::test]
async fn vouchers_of_others_broken_ones_and_second_chains_are_refused() {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let factory = Factory::new();
    let vouchers = cloud.cps.vouchers();
    let (_, good) = factory.device_for(&cloud.cps, "s");
    let (_, unextended) = factory.device("s");
    let stranger = SigningKey::generate(&mut SystemRandom);
    let next = PublicKey::x509(&stranger.public());
    let others = unextended.extend(&next, &factory.key).unwrap();
    let reason = |result: Result<_, crate::vouchers::VoucherRefusal>| result.unwrap_err().reason();
    assert_eq!(
        reason(vouchers.import(others.as_bytes(), None).await),
        "other owner"
    );
    assert_eq!(
        reason(vouchers.import(unextended.as_bytes(), None).await),
        "other owner"
    );
    assert_eq!(reason(vouchers.import(b"hello", None).await), "faulty");
    assert_eq!(
        reason(vouchers.import(&[0; 100_000], None).await),
        "too long"
    );
    let mut broken = 0;
    for at in (0..good.as_bytes().len()).step_by(17) {
        let mut bytes = good.as_bytes().to_vec();
        bytes[at] ^= 1;
        // The HMAC is the device's to check, all else is ours.
        let Ok(parsed) = Voucher::parse(&bytes) else {
            continue;
        };
        if parsed.mac() != good.mac() {
            continue;
        }
        broken += 1;
        assert!(vouchers.import(&bytes, None).await.is_err(), "flip at {at}");
    }
    assert!(broken > 5, "the flips met something");
    assert_eq!(
        vouchers.import(good.as_bytes(), None).await.unwrap().1,
        Accepted::Waiting
    );
    assert_eq!(
        vouchers.import(good.as_bytes(), None).await.unwrap().1,
        Accepted::Known
    );
    vouchers.assign(good.guid(), &site("north")).await.unwrap();
    vouchers.assign(good.guid(), &site("north")).await.unwrap();
    assert!(vouchers.waiting().unwrap().is_empty());
    let again = vouchers
        .import(good.as_bytes(), Some(site("north")))
        .await
        .unwrap();
    assert_eq!(again.1, Accepted::Known);
    let pem = vouchers.export(good.guid()).unwrap();
    assert_eq!(Voucher::read(pem.as_bytes()).unwrap(), good);

    // Our own key extends to itself: a strict descendant, taken. The first one then comes back.
    let own = PublicKey::x509(&cloud.cps.keys().owner().public());
    let longer = good.extend(&own, &cloud.cps.keys().owner()).unwrap();
    let taken = vouchers
        .import(longer.as_bytes(), Some(site("north")))
        .await
        .unwrap();
    assert_eq!(taken.1, Accepted::New);
    let back = vouchers.import(good.as_bytes(), Some(site("north"))).await;
    assert_eq!(reason(back), "ancestor");
    // The factory sells the device once more, by way of another.
    let (_, root) = factory.device("s2");
    let first = root.extend(&own, &factory.key).unwrap();
    let second = root
        .extend(&next, &factory.key)
        .unwrap()
        .extend(&own, &stranger)
        .unwrap();
    vouchers.import(first.as_bytes(), None).await.unwrap();
    assert_eq!(
        reason(vouchers.import(second.as_bytes(), None).await),
        "fork"
    );
    let elsewhere = vouchers.import(good.as_bytes(), Some(site("south"))).await;
    assert_eq!(reason(elsewhere), "other site");
    let nowhere = vouchers
        .import(first.as_bytes(), Some(site("nowhere")))
        .await;
    assert_eq!(reason(nowhere), "no site");
    assert_eq!(cloud.cps.metrics().refusals("voucher", "fork"), 1);
}

#[tokio::test]
async fn a_writer_that_hangs_does_not_answer() {
    let cloud = cloud().await;
    cloud.cps.answers().await;
    let (release, held) = std::sync::mpsc::sync_channel::<()>(1);
    let registry = cloud.cps.core.registry.clone();
    let hung = tokio::spawn(async move {
        let done: holdfast_store::Written<()> = registry
            .write(move |_| {
                let _ = held.recv();
                Ok(())
            })
            .await;
        assert!(done.is_ok());
    });
    let moment = std::time::Duration::from_millis(200);
    let answered = tokio::time::timeout(moment, async {
        hung_first(&hung).await;
        cloud.cps.answers().await;
    });
    assert!(answered.await.is_err(), "the writer hangs");
    release.send(()).unwrap();
    hung.await.unwrap();
    cloud.cps.answers().await;
}

/// Lets the job get to the writer before anything else is asked of it.
async fn hung_first(hung: &tokio::task::JoinHandle<()>) {
    tokio::task::yield_now().await;
    assert!(!hung.is_finished());
}
