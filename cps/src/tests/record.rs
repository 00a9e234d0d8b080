//! A certificate that is validly signed and was never issued: refused where every serial is on record,
//! and nobody who belongs is refused with it.

use holdfast_protocol::id::DeviceId;
use holdfast_protocol::name::Party;
use holdfast_protocol::renewal::BACKDATE;

use super::kit::*;
use crate::authority::{Issuer, Subject, Template};
use crate::roster::Refusal;
use crate::sync::Client;
use crate::{CpsConfig, Role};
use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;

fn party() -> Party {
    Party::Device {
        device: DeviceId::from_guid(guid()),
        site: site("north"),
    }
}

/// Signed with the site's key at that server, past its log: what a thief of the key does.
fn by_hand(server: &Served) -> Vec<Vec<u8>> {
    let issuer = Issuer::Site(site("north"));
    let party = party();
    let template = Template {
        subject: Subject::Leaf {
            dns: party.dns(&server.cps.config().domain),
            party,
            addresses: Vec::new(),
        },
        serial: [0x41; 16],
        not_before: NOW - BACKDATE.as_secs(),
        not_after: NOW + 3600,
        spki: SigningKey::generate(&mut SystemRandom)
            .public()
            .to_spki_der(),
    };
    let signer = server.cps.keys().signer();
    let leaf = signer.sign(&issuer, &template).unwrap();
    let mut chain = signer.chain(&issuer).unwrap();
    _ = chain.pop();
    std::iter::once(leaf).chain(chain).collect()
}

/// As it should be.
async fn issued(server: &Served) -> Vec<Vec<u8>> {
    let key = SigningKey::generate(&mut SystemRandom).public();
    let issued = server.cps.authority().certify(party(), key, &[]).await;
    issued.unwrap().full_chain()
}

fn admits(server: &Served, chain: &[Vec<u8>]) -> Result<(), Refusal> {
    server.cps.roster().identify(chain).map(drop)
}

async fn sync(gateway: &Served, cloud: &Served) {
    let client = https_client(gateway, cloud.api).await;
    Client::new(&gateway.cps, client).once().await.unwrap();
}

fn config() -> CpsConfig {
    let domain = "holdfast.internal".parse().unwrap();
    let site = site("north");
    CpsConfig::new(server("gw1"), domain, Role::Gateway { site })
}

fn is_made_up(seen: &Result<(), Refusal>) -> bool {
    matches!(seen, Err(refusal @ Refusal::UnknownSerial(_)) if refusal.reason() == "unknown serial")
}

#[tokio::test]
async fn what_a_stolen_key_signed_by_hand_is_refused_and_what_was_issued_is_not() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    assert_eq!(gateway.cps.authority().is_witnessed().unwrap(), Some(true));
    let (honest, forged) = (issued(&gateway).await, by_hand(&gateway));
    // At once, before anything is refreshed or synced.
    admits(&gateway, &honest).unwrap();
    let seen = admits(&gateway, &forged);
    assert!(is_made_up(&seen), "{seen:?}");
    // The decoy: another authority's certificate shown first.
    let of_cloud = issued(&cloud).await;
    let mut decoy = forged.clone();
    decoy.insert(1, of_cloud[1].clone());
    assert!(is_made_up(&admits(&gateway, &decoy)));
    // By the cloud, and not heard of here yet: by its issuer it is in.
    admits(&gateway, &of_cloud).unwrap();
    // At the cloud what a gateway issued may come before its record; it is shown as such.
    admits(&cloud, &honest).unwrap();
    assert_eq!(cloud.cps.roster().unrecorded().len(), 1);
    sync(&gateway, &cloud).await;
    assert_eq!(cloud.cps.roster().unrecorded(), []);
    admits(&cloud, &honest).unwrap();
    // Nor is it renewed into something honest.
    let late = gateway.cps.renewal().renew(&forged, b"").await.unwrap_err();
    assert_eq!(late.reason(), "unknown serial");
    assert_eq!(
        gateway.cps.metrics().refusals("renewal", "unknown serial"),
        1
    );

    // After a restart, and a rebuild from the log.
    let gateway = serve(config(), gateway.stop().await).await;
    admits(&gateway, &honest).unwrap();
    assert!(is_made_up(&admits(&gateway, &forged)));
    gateway.cps.rebuild().await.unwrap();
    admits(&gateway, &honest).unwrap();
    assert!(is_made_up(&admits(&gateway, &forged)));
}

#[tokio::test]
async fn an_earlier_authority_is_held_to_its_record_too() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (honest, forged) = (issued(&gateway).await, by_hand(&gateway));
    let client = https_client(&gateway, cloud.api).await;
    let refreshed = gateway.cps.authority().refresh_intermediate(&client).await;
    refreshed.unwrap();
    let (later, made_up) = (issued(&gateway).await, by_hand(&gateway));
    assert_ne!(later[1], honest[1]);
    for chain in [&honest, &later] {
        admits(&gateway, chain).unwrap();
    }
    for chain in [&forged, &made_up] {
        assert!(is_made_up(&admits(&gateway, chain)));
    }
}

/// The registry was damaged and put aside, and begins anew: who belongs is let in, though nobody can
/// tell any more who was made up; the next authority is held to its record again.
#[tokio::test]
async fn a_lost_registry_locks_nobody_out() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (honest, forged) = (issued(&gateway).await, by_hand(&gateway));
    let folder = gateway.stop().await;
    std::fs::remove_file(folder.path().join("registry.redb")).unwrap();
    let gateway = serve(config(), folder).await;
    assert_eq!(gateway.cps.authority().is_witnessed().unwrap(), Some(false));
    admits(&gateway, &honest).unwrap();
    admits(&gateway, &forged).unwrap();
    sync(&gateway, &cloud).await;
    admits(&gateway, &honest).unwrap();
    let client = https_client(&gateway, cloud.api).await;
    let refreshed = gateway.cps.authority().refresh_intermediate(&client).await;
    refreshed.unwrap();
    assert_eq!(gateway.cps.authority().is_witnessed().unwrap(), Some(true));
    assert!(is_made_up(&admits(&gateway, &by_hand(&gateway))));
    admits(&gateway, &honest).unwrap();
    admits(&gateway, &issued(&gateway).await).unwrap();
}

/// The control: were the word of the enrolment to stay in the folder, a lost registry would pass for
/// whole, and lock out all who were certified before.
#[tokio::test]
async fn a_witness_that_stays_in_the_folder_would_lock_out_who_belongs() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let honest = issued(&gateway).await;
    let print = crate::authority::witness::key_print(&honest[1]).unwrap();
    let folder = gateway.stop().await;
    let left = folder.path().join("keys/witness");
    assert!(!left.exists(), "the registry has it");
    std::fs::write(left, print).unwrap();
    std::fs::remove_file(folder.path().join("registry.redb")).unwrap();
    let gateway = serve(config(), folder).await;
    assert!(is_made_up(&admits(&gateway, &honest)));
}
