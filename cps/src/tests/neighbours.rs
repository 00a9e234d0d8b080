//! What one site's gateway may not do to another's, and what nobody may do in a device's name.
//! All of it is signed by a gateway that is enrolled: authentic, and yet refused.

use std::time::Duration;

use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::MessageType;
use holdfast_protocol::fdo::to2::{DeviceStep, Options, start};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::{Change, Entry, EntryId, Evidence, Onboarded, SignedEntry};

use super::kit::*;
use crate::authority::parse_serial;
use crate::enrol::Refusal;
use crate::registry::Draft;
use crate::sync::{Client, Exchange};

/// Two sites; the gateway of the south lies.
struct Sites {
    cloud: Served,
    south: Served,
    sync: Client,
    factory: Factory,
}

async fn sites() -> Sites {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let south = gateway(&cloud, "south", "gw2").await;
    let sync = Client::new(&south.cps, https_client(&south, cloud.api).await);
    Sites {
        cloud,
        south,
        sync,
        factory: Factory::new(),
    }
}

impl Sites {
    async fn lie(&self, device: Option<DeviceId>, change: Change) -> Exchange {
        let draft = Draft {
            site: site("south"),
            device,
            change,
        };
        let registry = &self.south.cps.core.registry;
        registry.append(vec![draft]).await.unwrap();
        self.sync.once().await.unwrap()
    }

    /// A device that the cloud took for the north, onboarded.
    async fn device_of_the_north(&self) -> Device {
        let (mut device, voucher) = self.factory.device_for(&self.cloud.cps, "n");
        let vouchers = self.cloud.cps.vouchers();
        vouchers
            .accept(&voucher, Some(site("north")))
            .await
            .unwrap();
        let ended = device.to2(self.cloud.fdo, &Manners::default()).await;
        assert!(matches!(ended, Ended::Well), "{ended:?}");
        device
    }
}

fn refused(exchange: &Exchange, because: &str) {
    let refused = &exchange.pushed.refused;
    assert_eq!(refused.len(), 1, "{exchange:?}");
    assert!(refused[0].contains(because), "{refused:?}");
}

#[tokio::test]
async fn a_gateway_revokes_and_records_certificates_of_its_own_site_alone() {
    let sites = sites().await;
    sites.device_of_the_north().await;
    let all = sites.cloud.cps.authority().list(None).unwrap();
    let foreign: Vec<_> = all
        .iter()
        .filter(|row| row.site != site("south"))
        .map(|row| parse_serial(&row.serial).unwrap())
        .collect();
    assert!(foreign.len() >= 2, "the cloud's own and a device's");
    for serial in &foreign {
        let change = Change::CertificateRevoked {
            serial: serial.clone(),
        };
        refused(&sites.lie(None, change).await, "not of this site");
        assert!(!sites.cloud.cps.roster().is_revoked(serial));
    }
    let change = Change::CertificateIssued {
        serial: foreign[0].clone(),
        subject: "x.clients.south.holdfast.internal".into(),
        not_before: 0,
        not_after: u64::MAX,
        key: sites.south.cps.keys().record().public(),
    };
    refused(&sites.lie(None, change).await, "not of this site");
    assert_eq!(
        sites
            .cloud
            .cps
            .authority()
            .list(Some(&site("north")))
            .unwrap(),
        all.into_iter()
            .filter(|row| row.site == site("north"))
            .collect::<Vec<_>>()
    );
    // Its own it may.
    let own = sites.cloud.cps.authority().list(Some(&site("south")));
    let serial = parse_serial(&own.unwrap()[0].serial).unwrap();
    let change = Change::CertificateRevoked {
        serial: serial.clone(),
    };
    let told = sites.lie(None, change).await;
    assert!(told.pushed.refused.is_empty(), "{told:?}");
    assert!(sites.cloud.cps.roster().is_revoked(&serial));
}

#[tokio::test]
async fn a_gateway_takes_no_device_of_another_site() {
    let sites = sites().await;
    let device = sites.device_of_the_north().await;
    let rows = sites.cloud.cps.vouchers().list().unwrap();
    let row = rows.iter().find(|row| row.live).unwrap();
    let id = row.device;
    let before = sites.cloud.cps.devices().list(None).unwrap().len();
    let told = Change::AlternateTold {
        server: server("gw2"),
    };
    refused(&sites.lie(Some(id), told).await, "belongs to site north");
    // A chain made up for its GUID, ending with the cloud's own key.
    let (_, forged) = sites.factory.device_for(&sites.cloud.cps, "forged");
    let change = Change::VoucherAccepted {
        guid: row.guid,
        voucher: forged.as_bytes().to_vec(),
    };
    refused(&sites.lie(Some(id), change).await, "belongs to site north");
    // A device of the south that claims to have got the other's GUID.
    let (mut own, voucher) = sites.factory.device_for(&sites.south.cps, "own");
    sites
        .south
        .cps
        .vouchers()
        .accept(&voucher, None)
        .await
        .unwrap();
    let ended = own.to2(sites.south.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let truth = sites.sync.once().await.unwrap();
    assert!(truth.pushed.refused.is_empty(), "{truth:?}");
    let (_, another) = sites.factory.device_for(&sites.south.cps, "another");
    for guid in [row.guid, id.guid()] {
        let change = Change::Onboarded(Box::new(Onboarded {
            old_guid: another.guid(),
            new_guid: guid,
            voucher: Vec::new(),
            cps_key: sites.south.cps.keys().record().public(),
            evidence: Evidence {
                voucher: another.as_bytes().to_vec(),
                statement: None,
            },
        }));
        let named = DeviceId::from_guid(another.guid());
        refused(&sites.lie(Some(named), change).await, "proves something");
    }
    let view = sites.cloud.cps.devices().view(id).unwrap().unwrap();
    assert_eq!(view.site, "north");
    assert_eq!(view.guid, device.id().to_string());
    let after = sites.cloud.cps.devices().list(None).unwrap().len();
    assert_eq!(after, before + 1);
}

#[tokio::test]
async fn a_made_up_chain_does_not_replace_the_voucher_held() {
    let sites = sites().await;
    let (_, voucher) = sites.factory.device_for(&sites.cloud.cps, "s");
    let vouchers = sites.cloud.cps.vouchers();
    vouchers
        .accept(&voucher, Some(site("south")))
        .await
        .unwrap();
    let id = DeviceId::from_guid(voucher.guid());
    // Longer than the one held, for the same GUID, from another root.
    let key = SigningKey::generate(&mut holdfast_link::random::SystemRandom);
    let header = holdfast_protocol::voucher::NewVoucher::new(
        voucher.guid(),
        voucher.rendezvous(),
        voucher.device_info(),
        &PublicKey::x509(&key.public()),
        voucher.device_chain().map(<[_]>::to_vec),
    );
    let own = PublicKey::x509(&key.public());
    let cloud = PublicKey::x509(&sites.cloud.cps.keys().owner().public());
    let forged = header.seal(voucher.mac().clone()).unwrap();
    let forged = forged.extend(&own, &key).unwrap().extend(&cloud, &key);
    let change = Change::VoucherAccepted {
        guid: voucher.guid(),
        voucher: forged.unwrap().as_bytes().to_vec(),
    };
    refused(&sites.lie(Some(id), change).await, "contradicts");
    let held = vouchers.list().unwrap();
    assert_eq!(held[0].voucher, voucher.as_bytes());
}

#[tokio::test]
async fn a_gateway_gives_itself_no_enrolment() {
    let sites = sites().await;
    let key = SigningKey::generate(&mut holdfast_link::random::SystemRandom);
    let entry = |epoch, seq, change| Entry {
        id: EntryId {
            origin: server("gw2"),
            epoch,
            seq,
        },
        rank: 1_000,
        site: site("south"),
        at: sites.cloud.cps.clock().now(),
        device: None,
        change,
    };
    sites.sync.once().await.unwrap();
    let cursor = sites.cloud.cps.sync().cursor(&site("south")).unwrap();
    let next = cursor.after(&server("gw2"), 1) + 1;
    let enrolled = Change::GatewayEnrolled {
        gateway: server("gw2"),
        epoch: 2,
        record_key: key.public(),
        owner_key: key.public(),
    };
    let told = Change::AlternateTold {
        server: server("gw2"),
    };
    let record = sites.south.cps.keys().record();
    let forged = [
        SignedEntry::sign(entry(1, next, enrolled), &record).unwrap(),
        SignedEntry::sign(entry(2, 1, told), &key).unwrap(),
    ]
    .map(|entry| entry.as_bytes().to_vec());
    let sync = sites.cloud.cps.sync();
    let (south, gw2) = (site("south"), server("gw2"));
    let report = sync.accept(&south, &gw2, &forged).await.unwrap();
    assert_eq!((report.taken, report.refused.len()), (0, 2), "{report:?}");
    // The number that it tried to use up is there for the real enrolment.
    let fresh = gateway(&sites.cloud, "south", "gw2").await;
    let client = Client::new(&fresh.cps, https_client(&fresh, sites.cloud.api).await);
    let (_, voucher) = sites.factory.device_for(&fresh.cps, "s");
    fresh.cps.vouchers().accept(&voucher, None).await.unwrap();
    let exchange = client.once().await.unwrap();
    assert_eq!(exchange.pushed.repeated, 0, "{exchange:?}");
    assert!(exchange.pushed.taken > 0, "{exchange:?}");
}

#[tokio::test]
async fn a_name_is_borne_by_one_server() {
    let sites = sites().await;
    let enrolment = sites.cloud.cps.enrolment();
    for taken in ["gw2", "cloud"] {
        let life = Duration::from_secs(60);
        let token = enrolment.token(&site("north"), &server(taken), life).await;
        assert!(
            matches!(token, Err(Refusal::NameTaken(..))),
            "{taken}: {token:?}"
        );
    }
    // Its own site may replace it.
    let life = Duration::from_secs(60);
    let token = enrolment.token(&site("south"), &server("gw2"), life).await;
    assert!(token.is_ok());
}

#[tokio::test]
async fn a_hello_in_a_devices_name_does_not_end_its_run() {
    let sites = sites().await;
    let (device, voucher) = sites.factory.device_for(&sites.cloud.cps, "s");
    let vouchers = sites.cloud.cps.vouchers();
    vouchers
        .accept(&voucher, Some(site("south")))
        .await
        .unwrap();
    // The device is in the middle of its run...
    let mut run = fdo_client(sites.cloud.fdo).start();
    let mut rng = holdfast_link::random::SystemRandom;
    let (session, hello) = start(&device.credential, Options::default(), &mut rng);
    let answer = run.exchange(&hello).await.unwrap();
    // ... while somebody who knows nothing but its GUID says hello.
    let stranger = fdo_client(sites.cloud.fdo).start().exchange(&hello).await;
    assert_eq!(stranger.unwrap().kind, MessageType::To2ProveOvHdr);
    let step = session.step(&answer, &mut rng).unwrap();
    let DeviceStep::Continue(_, next) = step else {
        panic!("the device asks for an entry");
    };
    let answer = run.exchange(&next).await.unwrap();
    assert_eq!(answer.kind, MessageType::To2OvNextEntry);
}
