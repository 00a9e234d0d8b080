//! Whose word counts: manufacturers that are believed or not, installers that both sides list and
//! strike, and a fresh gateway that has the lists by sync.

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::ListedAs::{self, Installer, Manufacturer};
use holdfast_protocol::voucher::Voucher;

use super::kit::*;
use super::registry::dump;
use crate::Cps;
use crate::lists::ListingError;
use crate::sync::Client;

async fn sync(gateway: &Served, cloud: &Served) {
    let client = Client::new(&gateway.cps, https_client(gateway, cloud.api).await);
    let done = client.once().await.unwrap();
    assert!(done.pushed.refused.is_empty(), "{done:?}");
    assert!(done.pulled.refused.is_empty(), "{done:?}");
}

async fn list(
    at: &Served,
    role: ListedAs,
    site: Option<&SiteId>,
    (name, key): (&str, VerifyingKey),
) -> Result<(), ListingError> {
    let named = (name.parse().unwrap(), key);
    at.cps.lists().list(role, site, named).await
}

async fn strike(
    at: &Served,
    role: ListedAs,
    site: Option<&SiteId>,
    name: &str,
) -> Result<(), ListingError> {
    at.cps
        .lists()
        .strike(role, site, name.parse().unwrap())
        .await
}

fn standing(at: &Cps, device: DeviceId) -> &'static str {
    let view = at.devices().view(device).unwrap().unwrap();
    view.standing.unwrap_or("not onboarded")
}

async fn well(device: &mut Device, at: &Served) {
    let ended = device.to2(at.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
}

/// An installer's voucher for the gateway, of that factory.
fn handed(factory: &Factory, installer: &SigningKey, gateway: &Served) -> (Device, Voucher) {
    let (device, voucher) = factory.device("b");
    let next = PublicKey::x509(&installer.public());
    let voucher = voucher.extend(&next, &factory.key).unwrap();
    let next = PublicKey::x509(&gateway.cps.keys().owner().public());
    (device, voucher.extend(&next, installer).unwrap())
}

#[tokio::test]
async fn a_device_of_an_unknown_manufacturer_is_shown_so_until_its_maker_is_listed() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (factory, anna) = (Factory::new(), SigningKey::generate(&mut SystemRandom));
    list(&gateway, Installer, None, ("anna", anna.public()))
        .await
        .unwrap();
    let (mut device, voucher) = handed(&factory, &anna, &gateway);
    let id = device.id();
    gateway
        .cps
        .handover()
        .take(voucher.as_bytes())
        .await
        .unwrap();
    // It works at once, in an outage too; it is not called proved for that.
    well(&mut device, &gateway).await;
    assert_eq!(standing(&gateway.cps, id), "unknown manufacturer");
    sync(&gateway, &cloud).await;
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");
    let shown = cloud.cps.lists().manufacturers().unwrap();
    assert_eq!(
        (shown.len(), shown[0].state, shown[0].devices),
        (1, "unknown", Some(1))
    );
    // Having come a second time changes nothing about that.
    well(&mut device, &gateway).await;
    sync(&gateway, &cloud).await;
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");

    // The gateway's operator gives his word: it counts at his site, and is shown at the cloud.
    let maker = gateway.cps.lists().maker_of(id).unwrap();
    assert_eq!(maker, factory.key.public());
    list(&gateway, Manufacturer, None, ("acme", maker.clone()))
        .await
        .unwrap();
    assert_eq!(standing(&gateway.cps, id), "proved");
    sync(&gateway, &cloud).await;
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");
    let shown = cloud.cps.lists().manufacturers().unwrap();
    let states: Vec<_> = shown
        .iter()
        .map(|row| (row.name.as_deref(), row.state))
        .collect();
    assert_eq!(states, [(Some("acme"), "heard of"), (None, "unknown")]);

    // The cloud's operator lists it: what came before is proved, here and after a rebuild.
    list(&cloud, Manufacturer, None, ("acme-gmbh", maker))
        .await
        .unwrap();
    assert_eq!(standing(&cloud.cps, id), "proved");
    let want = dump(&cloud.cps);
    cloud.cps.rebuild().await.unwrap();
    assert_eq!(dump(&cloud.cps), want);
    // And struck off: shown as before, at both once they have spoken.
    strike(&cloud, Manufacturer, None, "acme-gmbh")
        .await
        .unwrap();
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");
    sync(&gateway, &cloud).await;
    assert_eq!(standing(&gateway.cps, id), "unknown manufacturer");
    let gone = strike(&cloud, Manufacturer, None, "acme-gmbh").await;
    assert!(matches!(gone, Err(ListingError::Unknown(_))));
}

/// The gateway of the south makes up a device, with a manufacturer, statement and all.
#[tokio::test]
async fn a_made_up_device_is_not_believed_however_good_its_papers() {
    let cloud = cloud().await;
    let (good, forger) = (Factory::new(), Factory::new());
    believe(&cloud, &good).await;
    let south = gateway(&cloud, "south", "gw2").await;
    let (mut device, voucher) = forger.device_for(&south.cps, "ghost");
    let id = device.id();
    // Even with the word of the gateway's own operator.
    south.cps.vouchers().accept(&voucher, None).await.unwrap();
    list(&south, Manufacturer, None, ("ghosts", forger.key.public()))
        .await
        .unwrap();
    well(&mut device, &south).await;
    well(&mut device, &south).await;
    assert_eq!(standing(&south.cps, id), "proved");
    sync(&south, &cloud).await;
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");
    // A device whose first paper is by the gateway's own key is no better.
    let own = Factory::with_key((*south.cps.keys().owner()).clone());
    let (mut device, voucher) = own.device_for_itself("ghost-2");
    let id = device.id();
    south.cps.vouchers().accept(&voucher, None).await.unwrap();
    well(&mut device, &south).await;
    sync(&south, &cloud).await;
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");
    // Control: one of the listed factory.
    let (mut device, voucher) = good.device_for(&south.cps, "real");
    let id = device.id();
    south.cps.vouchers().accept(&voucher, None).await.unwrap();
    well(&mut device, &south).await;
    well(&mut device, &south).await;
    sync(&south, &cloud).await;
    assert_eq!(standing(&cloud.cps, id), "proved");
}

#[tokio::test]
async fn an_operators_import_is_his_word_for_that_one_device() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let factory = Factory::new();
    let (mut device, voucher) = factory.device_for(&cloud.cps, "a");
    let id = device.id();
    let vouchers = cloud.cps.vouchers();
    vouchers.import(voucher.as_bytes(), None).await.unwrap();
    vouchers
        .assign(voucher.guid(), &site("north"))
        .await
        .unwrap();
    sync(&gateway, &cloud).await;
    // It comes in at the gateway, by the extension made in advance.
    well(&mut device, &gateway).await;
    well(&mut device, &gateway).await;
    sync(&gateway, &cloud).await;
    for at in [&cloud, &gateway] {
        assert_eq!(standing(&at.cps, id), "proved");
    }
    // Not for the next of the same make.
    let (mut device, voucher) = factory.device_for(&gateway.cps, "b");
    let id = device.id();
    gateway.cps.vouchers().accept(&voucher, None).await.unwrap();
    well(&mut device, &gateway).await;
    sync(&gateway, &cloud).await;
    assert_eq!(standing(&gateway.cps, id), "proved");
    assert_eq!(standing(&cloud.cps, id), "unknown manufacturer");
}

#[tokio::test]
async fn the_own_factory_is_believed_by_itself_unless_struck_off() {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let factory = Factory::new();
    let own = || ("own-factory".parse().unwrap(), factory.key.public());
    let believe_own = async || {
        let (name, key) = own();
        cloud.cps.lists().believe_own(name, key).await.unwrap();
    };
    let names = || {
        let rows = cloud.cps.lists().manufacturers().unwrap();
        let names = rows.into_iter().filter_map(|row| row.name);
        names.collect::<Vec<_>>()
    };
    believe_own().await;
    believe_own().await;
    assert_eq!(names(), ["own-factory"]);
    // A site that comes later hears of it too.
    let gateway = gateway(&cloud, "south", "gw2").await;
    sync(&gateway, &cloud).await;
    assert_eq!(gateway.cps.lists().manufacturers().unwrap().len(), 1);
    strike(&cloud, Manufacturer, None, "own-factory")
        .await
        .unwrap();
    believe_own().await;
    assert_eq!(names(), [""; 0]);
    sync(&gateway, &cloud).await;
    assert_eq!(gateway.cps.lists().manufacturers().unwrap(), []);
}

#[tokio::test]
async fn installers_are_listed_by_site_on_both_sides_and_survive_a_lost_gateway() {
    let cloud = cloud().await;
    let north = gateway(&cloud, "north", "gw1").await;
    let south = gateway(&cloud, "south", "gw2").await;
    let [anna, bert, carl] = [0; 3].map(|_| SigningKey::generate(&mut SystemRandom));
    let at = site("north");
    list(&north, Installer, None, ("anna", anna.public()))
        .await
        .unwrap();
    list(&cloud, Installer, Some(&at), ("bert", bert.public()))
        .await
        .unwrap();
    list(&cloud, Installer, None, ("carl", carl.public()))
        .await
        .unwrap();
    let nowhere = list(&cloud, Installer, Some(&site("west")), ("x", anna.public())).await;
    assert!(matches!(nowhere, Err(ListingError::NoSite(_))));
    let elsewhere = list(
        &north,
        Installer,
        Some(&site("south")),
        ("x", anna.public()),
    )
    .await;
    assert!(matches!(elsewhere, Err(ListingError::OtherSite(_))));
    for gateway in [&north, &south] {
        sync(gateway, &cloud).await;
    }
    let names = |it: &Served| {
        let rows = it.cps.lists().installers(None).unwrap();
        let names = rows.into_iter().filter_map(|row| row.name);
        names.collect::<Vec<_>>()
    };
    let mut there = names(&north);
    there.sort();
    assert_eq!(there, ["anna", "bert"]);
    assert_eq!(names(&south), [""; 0], "lists are a site's own");
    assert_eq!(cloud.cps.lists().installers(Some(&at)).unwrap().len(), 2);
    assert_eq!(names(&cloud).len(), 3);
    let takes = |it: &Served, key: &SigningKey| it.cps.lists().takes_from(&key.public()).unwrap();
    assert!(takes(&north, &bert) && !takes(&north, &carl) && takes(&cloud, &carl));
    assert!(!takes(&cloud, &bert) && !takes(&south, &bert));

    // In an outage: the site strikes bert off while the cloud gives him another name.
    strike(&north, Installer, None, "bert").await.unwrap();
    strike(&cloud, Installer, Some(&at), "anna").await.unwrap();
    list(&cloud, Installer, Some(&at), ("anna", anna.public()))
        .await
        .unwrap();
    assert!(!takes(&north, &bert));
    sync(&north, &cloud).await;
    for row in cloud.cps.lists().installers(Some(&at)).unwrap() {
        assert_eq!(row.name.as_deref(), Some("anna"));
    }
    assert_eq!(
        names(&north),
        ["anna"],
        "struck off and listed anew by who knew"
    );

    // The machine is lost; the one in its place has the list by sync.
    let fresh = gateway_anew(&cloud, &at).await;
    sync(&fresh, &cloud).await;
    assert_eq!(names(&fresh), ["anna"]);
    assert!(takes(&fresh, &anna) && !takes(&fresh, &bert));
}

async fn gateway_anew(cloud: &Served, at: &SiteId) -> Served {
    gateway(cloud, at.as_str(), "gw1").await
}

/// Both sides at once, the same name for two keys: both are listed, and struck off together.
#[tokio::test]
async fn one_name_for_two_keys_is_struck_off_as_one() {
    let cloud = cloud().await;
    let north = gateway(&cloud, "north", "gw1").await;
    let [one, two] = [0; 2].map(|_| SigningKey::generate(&mut SystemRandom).public());
    let at = site("north");
    list(&cloud, Installer, Some(&at), ("anna", one.clone()))
        .await
        .unwrap();
    list(&north, Installer, None, ("anna", two.clone()))
        .await
        .unwrap();
    sync(&north, &cloud).await;
    let keys = |it: &Served| it.cps.lists().installers(Some(&at)).unwrap().len();
    assert_eq!((keys(&cloud), keys(&north)), (2, 2));
    strike(&north, Installer, None, "anna").await.unwrap();
    sync(&north, &cloud).await;
    assert_eq!((keys(&cloud), keys(&north)), (0, 0));
}
