//! What sync refuses is on record, says who brought it, holds up nothing that is honest, and uses up
//! no honest entry's number.

use holdfast_protocol::record::{Change, Evidence, SignedEntry};

use super::kit::*;
use super::registry::dump;
use crate::refusals::MOST_OF_PARTY;
use crate::registry::Draft;
use crate::sync::{Client, Report};

const PARTY: &str = "gw1.gateways.north.holdfast.internal";

struct Pair {
    cloud: Served,
    gateway: Served,
    factory: Factory,
}

async fn pair() -> Pair {
    let (cloud, factory) = (cloud().await, Factory::new());
    believe(&cloud, &factory).await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let pair = Pair {
        cloud,
        gateway,
        factory,
    };
    // Its own certificate.
    pair.deliver(&pair.lacking()).await;
    pair
}

impl Pair {
    /// The gateway writes so many entries.
    async fn write(&self, count: usize) {
        let draft = |number: usize| Draft {
            site: site("north"),
            device: None,
            change: Change::AlternateTold {
                server: server(&format!("s{number}")),
            },
        };
        let registry = &self.gateway.cps.core.registry;
        registry
            .append((0..count).map(draft).collect())
            .await
            .unwrap();
    }

    /// What it wrote and the cloud lacks.
    fn lacking(&self) -> Vec<Vec<u8>> {
        let north = site("north");
        let cursor = self.cloud.cps.sync().cursor(&north).unwrap();
        let pulled = self.gateway.cps.sync().pull(&north, &cursor, 500);
        pulled.unwrap().entries
    }

    async fn deliver(&self, batch: &[Vec<u8>]) -> Report {
        let sync = self.cloud.cps.sync();
        let report = sync.accept(&site("north"), &server("gw1"), batch).await;
        report.unwrap()
    }

    async fn client(&self) -> Client {
        let client = https_client(&self.gateway, self.cloud.api).await;
        Client::new(&self.gateway.cps, client)
    }

    /// Whether the cloud is where the gateway is in the gateway's own numbers.
    fn level(&self) -> bool {
        let north = site("north");
        let last = |it: &Served| {
            let cursor = it.cps.sync().cursor(&north).unwrap();
            cursor.after(&server("gw1"), 1)
        };
        last(&self.cloud) == last(&self.gateway)
    }
}

fn spoilt(entry: &[u8]) -> Vec<u8> {
    let mut spoilt = entry.to_vec();
    *spoilt.last_mut().unwrap() ^= 1;
    spoilt
}

#[tokio::test]
async fn an_entry_spoilt_for_good_holds_up_nothing_behind_it_and_its_number_stays_wanted() {
    let pair = pair().await;
    pair.write(10).await;
    let honest = pair.lacking();
    let mut batch = honest.clone();
    batch[3] = spoilt(&honest[3]);
    // One that cannot even be read.
    batch[6].truncate(20);
    let report = pair.deliver(&batch).await;
    assert_eq!((report.taken, report.refused.len()), (8, 2), "{report:?}");
    assert_eq!(report.early, 0);
    assert!(pair.level(), "the cursor goes on");
    let north = site("north");
    let wanted = |pair: &Pair| {
        let wanted = pair.cloud.cps.sync().wanted(&north).unwrap();
        wanted.into_iter().map(|id| id.seq).collect::<Vec<_>>()
    };
    let first = SignedEntry::parse(&honest[0]).unwrap().entry().id.seq;
    assert_eq!(wanted(&pair), [first + 3, first + 6]);
    // The same spoilt one again, alone or with others: refused, counted, nothing changes.
    let before = dump(&pair.cloud.cps);
    for _ in 0..3 {
        let report = pair.deliver(&batch[3..4]).await;
        assert_eq!((report.taken, report.refused.len()), (0, 1), "{report:?}");
    }
    assert_eq!(dump(&pair.cloud.cps), before);
    let rows = pair.cloud.cps.refusals().list().unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    let row = rows.iter().find(|row| row.seq.is_some()).unwrap();
    assert_eq!((row.times, row.seq), (4, Some(first + 3)));
    assert_eq!(
        (&*row.party, &*row.reason, &*row.site),
        (PARTY, "tampered", "north")
    );
    assert_eq!((row.origin.as_deref(), row.epoch), (Some("gw1"), Some(1)));
    assert_eq!((row.at, &*row.quality), (NOW, "authenticated"));
    let row = rows.iter().find(|row| row.seq.is_none()).unwrap();
    assert_eq!(row.reason, "malformed");
    // Whole, it is taken whenever it comes, once; by the ordinary exchange too.
    let report = pair.deliver(&honest[3..4]).await;
    assert_eq!(report.taken, 1, "{report:?}");
    assert_eq!(wanted(&pair), [first + 6]);
    let exchange = pair.client().await.once().await.unwrap();
    assert_eq!(exchange.pushed.taken, 1, "{exchange:?}");
    assert!(wanted(&pair).is_empty() && pair.level());
    let report = pair.deliver(&honest).await;
    assert_eq!((report.taken, report.repeated), (0, 10), "{report:?}");
    let want = dump(&pair.cloud.cps);
    pair.cloud.cps.rebuild().await.unwrap();
    assert_eq!(dump(&pair.cloud.cps), want);
}

/// A server that lacks a number says so to the next one: a fresh gateway is not held up either.
#[tokio::test]
async fn a_number_that_the_cloud_lacks_holds_up_no_fresh_gateway() {
    let pair = pair().await;
    pair.write(6).await;
    let mut batch = pair.lacking();
    let honest = batch[2].clone();
    batch[2] = spoilt(&honest);
    pair.deliver(&batch).await;
    let fresh = gateway(&pair.cloud, "north", "gw1").await;
    let client = Client::new(&fresh.cps, https_client(&fresh, pair.cloud.api).await);
    let exchange = client.once().await.unwrap();
    assert_eq!(exchange.pulled.early, 0, "{exchange:?}");
    let north = site("north");
    let cursor = |it: &Served| it.cps.sync().cursor(&north).unwrap();
    assert_eq!(cursor(&fresh), cursor(&pair.cloud));
    assert_eq!(fresh.cps.sync().wanted(&north).unwrap().len(), 1);
    assert_eq!(fresh.cps.refusals().list().unwrap(), []);
}

/// Gaps that nothing spoilt explains are no holes: the sender must begin where the cursor stands.
#[tokio::test]
async fn numbers_that_were_only_left_out_are_asked_for_as_ever() {
    let pair = pair().await;
    pair.write(10).await;
    let mut batch = pair.lacking();
    let two = batch.drain(3..5).collect::<Vec<_>>();
    batch.insert(3, spoilt(&two[0]));
    // Two are missing, one of them spoilt: what follows waits.
    let report = pair.deliver(&batch).await;
    assert_eq!((report.taken, report.early), (3, 5), "{report:?}");
    assert!(
        pair.cloud
            .cps
            .sync()
            .wanted(&site("north"))
            .unwrap()
            .is_empty()
    );
    let exchange = pair.client().await.once().await.unwrap();
    assert_eq!(exchange.pushed.taken, 7, "{exchange:?}");
    assert!(pair.level());
}

/// No peer that always brings the same spoilt entry makes us turn in circles.
#[tokio::test]
async fn a_gateway_whose_disk_spoils_an_entry_goes_on_with_the_others() {
    let pair = pair().await;
    pair.write(4).await;
    let good = pair.lacking();
    let broken = SignedEntry::parse(&spoilt(&good[1])).unwrap();
    let write = pair.gateway.cps.core.registry.write(move |it| {
        it.tables.put_entry(&broken)?;
        Ok::<_, holdfast_store::WriteError>(())
    });
    write.await.unwrap();
    let client = pair.client().await;
    let first = client.once().await.unwrap();
    assert_eq!(first.pushed.taken, 3, "{first:?}");
    assert!(pair.level());
    // Asked for once right away, and then not before a minute is over.
    let counts = async || client.once().await.unwrap().pushed.refused.len();
    assert_eq!(counts().await, 1);
    for _ in 0..5 {
        assert_eq!(counts().await, 0);
    }
    // What it writes later comes at once.
    pair.write(2).await;
    assert_eq!(client.once().await.unwrap().pushed.taken, 2);
}

#[tokio::test]
async fn what_is_authentic_but_not_believed_is_shown_with_its_device() {
    let pair = pair().await;
    let (mut device, voucher) = pair.factory.device_for(&pair.gateway.cps, "b");
    pair.gateway
        .cps
        .vouchers()
        .accept(&voucher, None)
        .await
        .unwrap();
    let ended = device.to2(pair.gateway.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let entries = pair.lacking();
    let honest = entries.iter().find_map(|bytes| {
        match SignedEntry::parse(bytes).unwrap().entry().change.clone() {
            Change::Onboarded(onboarded) => Some(*onboarded),
            _ => None,
        }
    });
    // The gateway says once more, without the device, that it onboarded it.
    let mut silent = honest.unwrap();
    silent.new_guid = guid();
    silent.voucher = Vec::new();
    silent.evidence = Evidence {
        statement: None,
        ..silent.evidence
    };
    let named = holdfast_protocol::id::DeviceId::from_guid(voucher.guid());
    let lie = Draft {
        site: site("north"),
        device: Some(named),
        change: Change::Onboarded(Box::new(silent)),
    };
    pair.gateway
        .cps
        .core
        .registry
        .append(vec![lie])
        .await
        .unwrap();
    pair.write(1).await;
    let client = pair.client().await;
    let exchange = client.once().await.unwrap();
    assert_eq!(exchange.pushed.refused.len(), 1, "{exchange:?}");
    let rows = pair.cloud.cps.refusals().list().unwrap();
    assert_eq!(rows.len(), 1);
    let (device, reason) = (rows[0].device.as_deref(), &*rows[0].reason);
    assert_eq!((device, reason), (Some(named.as_str()), "no statement"));
    assert_eq!(rows[0].party, PARTY);
    assert_eq!(pair.cloud.cps.metrics().refusals("sync", "no statement"), 1);
    assert!(pair.level());
    let view = pair.cloud.cps.devices().view(named).unwrap().unwrap();
    assert_eq!((view.standing, view.contested), (Some("proved"), false));
    // Counted as received: it does not come again.
    assert!(client.once().await.unwrap().pushed.refused.is_empty());
}

/// The gateway believes the cloud's carrier no more than the cloud the gateway's.
#[tokio::test]
async fn a_gateway_shows_what_it_refuses_of_the_clouds() {
    let pair = pair().await;
    let north = site("north");
    let drafts = (0..3).map(|number| Draft {
        site: site("north"),
        device: None,
        change: Change::AlternateTold {
            server: server(&format!("s{number}")),
        },
    });
    let registry = &pair.cloud.cps.core.registry;
    registry.append(drafts.collect()).await.unwrap();
    let pulled = pair.cloud.cps.sync().pull(&north, &Default::default(), 500);
    let honest = pulled.unwrap().entries;
    let mut batch = honest.clone();
    let at = batch.len() - 2;
    batch[at] = spoilt(&honest[at]);
    let sync = pair.gateway.cps.sync();
    let report = sync.accept(&north, &server("cloud"), &batch).await.unwrap();
    assert_eq!(report.refused.len(), 1, "{report:?}");
    // Its own came back among them.
    let heard = report.taken + report.repeated;
    assert_eq!(heard as usize, honest.len() - 1);
    let rows = pair.gateway.cps.refusals().list().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].party, "cloud.servers.holdfast.internal");
    assert_eq!(rows[0].origin.as_deref(), Some("cloud"));
    // It is asked for again by the ordinary exchange.
    let exchange = pair.client().await.once().await.unwrap();
    assert_eq!(exchange.pulled.taken, 1, "{exchange:?}");
    assert!(sync.wanted(&north).unwrap().is_empty());
}

#[tokio::test]
async fn a_flood_of_refusals_pushes_nobody_elses_out() {
    let pair = pair().await;
    let south = gateway(&pair.cloud, "south", "gw2").await;
    pair.write(1).await;
    let one = spoilt(&pair.lacking()[0]);
    pair.deliver(&[one]).await;
    // The south delivers a great many entries that are none of its own.
    let draft = |number: usize| Draft {
        site: site("south"),
        device: None,
        change: Change::AlternateTold {
            server: server(&format!("s{number}")),
        },
    };
    let drafts = (0..400).map(draft).collect();
    south.cps.core.registry.append(drafts).await.unwrap();
    let pulled = south
        .cps
        .sync()
        .pull(&site("south"), &Default::default(), 500);
    let junk: Vec<_> = pulled
        .unwrap()
        .entries
        .iter()
        .map(|it| spoilt(it))
        .collect();
    let sync = pair.cloud.cps.sync();
    for _ in 0..2 {
        let taken = sync.accept(&site("south"), &server("gw2"), &junk).await;
        assert_eq!(taken.unwrap().taken, 0);
    }
    let rows = pair.cloud.cps.refusals().list().unwrap();
    let of = |party: &str| rows.iter().filter(|row| row.party == party).count();
    assert_eq!(
        of("gw2.gateways.south.holdfast.internal") as u64,
        MOST_OF_PARTY
    );
    assert_eq!(of(PARTY), 1);
    // They outlive a restart.
    let Pair { cloud, .. } = pair;
    let config = cloud.cps.config().clone();
    let again = serve(config, cloud.stop().await).await;
    assert_eq!(again.cps.refusals().list().unwrap(), rows);
}
