//! Sync between a cloud and a gateway: any order, any repetition, and nothing believed that is not
//! signed by its origin, of this site, and proved.

use holdfast_protocol::record::{Change, Cursor, Entry, Evidence, SignedEntry};

use super::kit::*;
use super::registry::dump;
use crate::registry::Draft;
use crate::sync::Client;

struct Pair {
    cloud: Served,
    gateway: Served,
    sync: Client,
    factory: Factory,
}

async fn pair() -> Pair {
    let (cloud, factory) = (cloud().await, Factory::new());
    believe(&cloud, &factory).await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let sync = Client::new(&gateway.cps, https_client(&gateway, cloud.api).await);
    Pair {
        cloud,
        gateway,
        sync,
        factory,
    }
}

impl Pair {
    /// A device comes in at the gateway; the gateway's entries that the cloud lacks.
    async fn onboard_at_gateway(&self) -> Vec<Vec<u8>> {
        let (mut device, voucher) = self.factory.device_for(&self.gateway.cps, "s");
        self.gateway
            .cps
            .vouchers()
            .accept(&voucher, None)
            .await
            .unwrap();
        let ended = device.to2(self.gateway.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "{ended:?}");
        self.lacking()
    }

    fn lacking(&self) -> Vec<Vec<u8>> {
        let north = site("north");
        let cursor = self.cloud.cps.sync().cursor(&north).unwrap();
        self.gateway
            .cps
            .sync()
            .pull(&north, &cursor, 500)
            .unwrap()
            .entries
    }
}

#[tokio::test]
async fn both_sides_come_to_the_same_and_a_second_exchange_moves_nothing() {
    let pair = pair().await;
    pair.onboard_at_gateway().await;
    let (mut device, voucher) = pair.factory.device_for(&pair.cloud.cps, "s");
    pair.cloud
        .cps
        .vouchers()
        .accept(&voucher, Some(site("north")))
        .await
        .unwrap();
    let ended = device.to2(pair.cloud.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let first = pair.sync.once().await.unwrap();
    assert!(
        first.pulled.taken > 3 && first.pushed.taken > 3,
        "{first:?}"
    );
    assert!(
        first.pulled.refused.is_empty() && first.pushed.refused.is_empty(),
        "{first:?}"
    );
    let north = site("north");
    let cursor = |it: &Served| it.cps.sync().cursor(&north).unwrap();
    assert_eq!(cursor(&pair.cloud), cursor(&pair.gateway));
    let records = |it: &Served| {
        let all = it.cps.devices().list(Some(&north)).unwrap();
        all.into_iter()
            .map(|one| (one.device, one.guid, one.standing))
            .collect::<Vec<_>>()
    };
    assert_eq!(records(&pair.cloud), records(&pair.gateway));
    assert_eq!(records(&pair.cloud).len(), 2);
    let second = pair.sync.once().await.unwrap();
    assert_eq!(
        (second.pulled.taken, second.pushed.taken),
        (0, 0),
        "{second:?}"
    );
}

#[tokio::test]
async fn lost_repeated_and_disordered_deliveries_end_the_same() {
    let pair = pair().await;
    let mut entries = pair.onboard_at_gateway().await;
    entries.extend(pair.onboard_at_gateway().await);
    entries.dedup();
    let north = site("north");
    let deliver = |batch: Vec<Vec<u8>>| {
        let (cps, north) = (pair.cloud.cps.clone(), north.clone());
        async move {
            cps.sync()
                .accept(&north, &server("gw1"), &batch)
                .await
                .unwrap()
        }
    };
    let backwards: Vec<_> = entries.iter().rev().cloned().collect();
    let report = deliver(backwards).await;
    assert!(report.early > 0 && report.taken >= 1, "{report:?}");
    deliver(entries[2..].to_vec()).await;
    for one in &entries {
        deliver(vec![one.clone(), one.clone()]).await;
    }
    let report = deliver(pair.lacking()).await;
    assert!(report.refused.is_empty(), "{report:?}");
    let want = dump(&pair.cloud.cps);
    let report = deliver(entries.clone()).await;
    assert_eq!(report.taken, 0);
    assert_eq!(dump(&pair.cloud.cps), want);
    pair.cloud.cps.rebuild().await.unwrap();
    assert_eq!(dump(&pair.cloud.cps), want);
}

#[tokio::test]
async fn an_entry_changed_on_the_way_is_refused_shown_and_taken_when_it_comes_whole() {
    let pair = pair().await;
    let entries = pair.onboard_at_gateway().await;
    let want = dump(&pair.cloud.cps);
    let north = site("north");
    let accept = async |batch: &[Vec<u8>]| {
        pair.cloud
            .cps
            .sync()
            .accept(&north, &server("gw1"), batch)
            .await
            .unwrap()
    };
    let mut refused = 0;
    for at in (0..entries[0].len()).step_by(5) {
        let mut tampered = entries[0].clone();
        tampered[at] ^= 1;
        let report = accept(&[tampered]).await;
        assert_eq!(report.taken, 0, "flip at {at}");
        refused += report.refused.len();
        assert_eq!(report.refused.len(), 1, "flip at {at}: {report:?}");
    }
    assert_eq!(dump(&pair.cloud.cps), want);
    let shown = pair.cloud.cps.refusals().list().unwrap();
    let times: u64 = shown.iter().map(|row| row.times).sum();
    assert!(times == refused as u64 || shown.len() == 200, "{times}");
    assert!(
        shown
            .iter()
            .all(|row| row.party == "gw1.gateways.north.holdfast.internal")
    );
    assert!(pair.cloud.cps.metrics().refusals("sync", "tampered") > 0);
    let report = accept(&entries).await;
    assert_eq!(report.taken, entries.len() as u64, "{report:?}");
}

#[tokio::test]
async fn entries_of_another_site_another_writer_or_an_old_enrolment_are_refused() {
    let pair = pair().await;
    let south = gateway(&pair.cloud, "south", "gw2").await;
    let entries = pair.onboard_at_gateway().await;
    let accept = async |at: &str, from: &str, batch: &[Vec<u8>]| {
        pair.cloud
            .cps
            .sync()
            .accept(&site(at), &server(from), batch)
            .await
            .unwrap()
    };
    let report = accept("south", "gw2", &entries).await;
    assert_eq!(report.refused.len(), entries.len());
    assert!(report.refused[0].contains("for site north"), "{report:?}");
    // The other gateway writes into our log, signed by its own key.
    let forged = Entry {
        id: holdfast_protocol::record::EntryId {
            origin: server("gw2"),
            epoch: 1,
            seq: 1,
        },
        rank: 9,
        site: site("north"),
        at: pair.cloud.cps.clock().now(),
        device: None,
        change: Change::AlternateTold {
            server: server("gw2"),
        },
    };
    let forged = SignedEntry::sign(forged, &south.cps.keys().record()).unwrap();
    let report = accept("north", "gw2", &[forged.as_bytes().to_vec()]).await;
    assert!(
        report.refused[0].contains("not enrolled at this site"),
        "{report:?}"
    );
    // Somebody else delivers our gateway's entries.
    let report = accept("north", "gw2", &entries).await;
    assert_eq!(report.refused.len(), entries.len(), "{report:?}");
    // The gateway is replaced: the old machine's entries come too late.
    let _fresh = gateway(&pair.cloud, "north", "gw1").await;
    let report = accept("north", "gw1", &entries).await;
    assert!(report.refused[0].contains("locked out"), "{report:?}");
    assert_eq!(
        pair.cloud.cps.metrics().refusals("sync", "locked out"),
        entries.len() as u64
    );
}

/// What a gateway signs is authentic, and yet not believed without proof.
#[tokio::test]
async fn a_lying_gateway_is_not_believed_and_its_later_entries_still_come() {
    let pair = pair().await;
    let entries = pair.onboard_at_gateway().await;
    let honest = entries
        .iter()
        .find_map(
            |bytes| match &SignedEntry::parse(bytes).unwrap().entry().change {
                Change::Onboarded(onboarded) => Some((**onboarded).clone()),
                _ => None,
            },
        )
        .unwrap();
    let registry = &pair.gateway.cps.core.registry;
    let device = holdfast_protocol::id::DeviceId::from_guid(honest.old_guid);
    let lie = |change| Draft {
        site: site("north"),
        device: Some(device),
        change,
    };
    let mut other_key = honest.clone();
    other_key.cps_key = pair.gateway.cps.keys().owner().public();
    let mut stolen = honest.clone();
    let (_, foreign) = pair.factory.device_for(&pair.cloud.cps, "victim");
    stolen.evidence = Evidence {
        voucher: foreign.as_bytes().to_vec(),
        statement: None,
    };
    stolen.old_guid = foreign.guid();
    let record = pair.gateway.cps.keys().record().public();
    let lies = vec![
        lie(Change::Onboarded(Box::new(other_key))),
        Draft {
            site: site("north"),
            device: Some(holdfast_protocol::id::DeviceId::from_guid(foreign.guid())),
            change: Change::Onboarded(Box::new(stolen)),
        },
        lie(Change::GatewayEnrolled {
            gateway: server("gw9"),
            epoch: 1,
            record_key: record.clone(),
            owner_key: record.clone(),
        }),
        lie(Change::CertificateIssued {
            serial: crate::authority::parse_serial(&"ab".repeat(16)).unwrap(),
            subject: "x.devices.south.holdfast.internal".into(),
            not_before: 0,
            not_after: u64::MAX,
            key: record,
        }),
    ];
    let count = lies.len();
    registry.append(lies).await.unwrap();
    let told = Change::AlternateTold {
        server: server("cloud"),
    };
    registry.append(vec![lie(told)]).await.unwrap();
    let exchange = pair.sync.once().await.unwrap();
    assert_eq!(exchange.pushed.refused.len(), count, "{exchange:?}");
    assert_eq!(pair.cloud.cps.sync().disbelieved().unwrap().len(), count);
    let north = site("north");
    assert_eq!(
        pair.cloud.cps.sync().cursor(&north).unwrap(),
        pair.gateway.cps.sync().cursor(&north).unwrap(),
        "nothing is held up"
    );
    let record = pair.cloud.cps.devices().record(device).unwrap().unwrap();
    assert_eq!(record.claims().count(), 1);
    assert!(record.told().contains(&server("cloud")));
    assert_eq!(pair.cloud.cps.enrolment().gateways().unwrap().len(), 1);
    // Again, and after a rebuild: still not believed.
    pair.sync.once().await.unwrap();
    pair.cloud.cps.rebuild().await.unwrap();
    assert_eq!(
        pair.cloud
            .cps
            .devices()
            .record(device)
            .unwrap()
            .unwrap()
            .claims()
            .count(),
        1
    );
}

#[tokio::test]
async fn many_entries_go_in_bounded_batches() {
    let pair = pair().await;
    let drafts = |from: u32| {
        (from..from + 50).map(|number| Draft {
            site: site("north"),
            device: None,
            change: Change::AlternateTold {
                server: server(&format!("s{number}")),
            },
        })
    };
    for from in 0..30 {
        pair.gateway
            .cps
            .core
            .registry
            .append(drafts(from * 50).collect())
            .await
            .unwrap();
        pair.cloud
            .cps
            .core
            .registry
            .append(drafts(from * 50).collect())
            .await
            .unwrap();
    }
    let batch = pair
        .cloud
        .cps
        .sync()
        .pull(&site("north"), &Cursor::default(), 5_000)
        .unwrap();
    assert!(batch.more && batch.entries.len() == 500);
    let exchange = pair.sync.once().await.unwrap();
    assert!(exchange.pulled.taken >= 1_500, "{:?}", exchange.pulled);
    assert!(exchange.pushed.taken >= 1_500, "{:?}", exchange.pushed);
}
