//! A new device in an outage (flow S36 to S45): its voucher goes from the seller to an installer,
//! from the installer to the gateway, and the gateway alone does the rest.

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::fdo::to2::Options;
use holdfast_protocol::id::ClientName;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{ListedAs, Standing};
use holdfast_protocol::voucher::Voucher;

use super::kit::*;
use crate::lists::ListingError;
use crate::{Cps, CpsConfig, HandoverPolicy, Role, sync};

fn extended(voucher: &Voucher, signer: &SigningKey, next: &SigningKey) -> Voucher {
    let next = PublicKey::x509(&next.public());
    voucher.extend(&next, signer).unwrap()
}

/// A device whose voucher went from the factory to the installer and is extended to the gateway.
fn handed(factory: &Factory, installer: &SigningKey, gateway: &Served) -> (Device, Voucher) {
    let (device, voucher) = factory.device("b");
    let voucher = extended(&voucher, &factory.key, installer);
    (
        device,
        extended(&voucher, installer, &gateway.cps.keys().owner()),
    )
}

async fn list(cps: &Cps, name: ClientName, key: VerifyingKey) -> Result<(), ListingError> {
    cps.lists()
        .list(ListedAs::Installer, None, (name, key))
        .await
}

async fn strike(cps: &Cps, name: ClientName) -> Result<(), ListingError> {
    cps.lists().strike(ListedAs::Installer, None, name).await
}

async fn post(gateway: &Served, voucher: &[u8]) -> (u16, String) {
    let name = gateway.cps.authority().own_party();
    let name = name.dns(&gateway.cps.config().domain);
    let answer = https_client_of(gateway, gateway.api, name)
        .await
        .post(
            "/api/v1/vouchers",
            "application/octet-stream",
            voucher.to_vec(),
        )
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    (answer.status.as_u16(), text)
}

#[tokio::test]
async fn with_no_cloud_a_device_comes_in_by_the_voucher_that_an_installer_hands_in() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (factory, installer) = (Factory::new(), SigningKey::generate(&mut SystemRandom));
    believe(&cloud, &factory).await;
    gateway.cps.relay().set_remote(Some(fdo_client(cloud.fdo)));
    let folder = cloud.stop().await;
    let (mut device, voucher) = handed(&factory, &installer, &gateway);
    let (id, bytes) = (device.id(), voucher.as_bytes());

    let (status, text) = post(&gateway, bytes).await;
    assert_eq!(status, 403, "not listed yet: {text}");
    assert!(text.contains("installers add"), "{text}");
    let name = || "anna".parse().unwrap();
    list(&gateway.cps, name(), installer.public())
        .await
        .unwrap();
    list(&gateway.cps, name(), installer.public())
        .await
        .unwrap();
    let other = list(&gateway.cps, name(), factory.key.public()).await;
    assert!(matches!(other, Err(ListingError::NameTaken(_))));
    for known in [false, true, true] {
        let (status, text) = post(&gateway, voucher.to_pem().as_bytes()).await;
        assert_eq!(status, 200, "{text}");
        assert!(text.contains(&format!("\"known\":{known}")), "{text}");
    }

    let to1d = device
        .to1(gateway.fdo)
        .await
        .expect("the relay answers from here");
    assert_eq!(to1d.addresses()[0].port, gateway.fdo.port());
    let options = Options {
        to1d: Some(to1d),
        ..Options::default()
    };
    let ended = device
        .to2_with(gateway.fdo, &Manners::default(), options)
        .await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let config = device.config.clone().unwrap();
    let mut chain = vec![device.certificate.clone().unwrap()];
    chain.extend(config.chain);
    let known = gateway.cps.roster().identify(&chain).unwrap();
    let at = site("north");
    assert_eq!(
        known.party,
        Party::Device {
            device: id,
            site: at
        }
    );

    // Handed in once more after all that: nothing changes, and the old GUID stays over.
    let (status, text) = post(&gateway, bytes).await;
    assert_eq!(
        (status, text.contains("\"known\":true")),
        (200, true),
        "{text}"
    );
    assert_eq!(gateway.cps.devices().list(None).unwrap().len(), 1);

    // The cloud is back: it believes the evidence alone, and owns the device too from now on.
    let cloud = serve(cloud_config(), folder).await;
    let client = sync::Client::new(&gateway.cps, https_client(&gateway, cloud.api).await);
    let exchange = client.once().await.unwrap();
    assert_eq!(exchange.pushed.refused, Vec::<String>::new());
    let record = cloud.cps.devices().record(id).unwrap().unwrap();
    assert_eq!(record.owner().unwrap().standing, Standing::Proved);
    let ended = device.to2(cloud.fdo, &Manners::default()).await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
}

fn cloud_config() -> CpsConfig {
    let domain = "holdfast.internal".parse().unwrap();
    CpsConfig::new(server("cloud"), domain, Role::Cloud)
}

/// Voucher at 40 and extended in advance to 50: nobody hands in anything.
#[tokio::test]
async fn a_device_bought_before_the_outage_comes_in_at_the_gateway_by_the_extension_in_advance() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let factory = Factory::new();
    let (mut device, voucher) = factory.device_for(&cloud.cps, "c");
    cloud
        .cps
        .vouchers()
        .accept(&voucher, Some(site("north")))
        .await
        .unwrap();
    let client = sync::Client::new(&gateway.cps, https_client(&gateway, cloud.api).await);
    client.once().await.unwrap();
    gateway.cps.relay().set_remote(Some(fdo_client(cloud.fdo)));
    let folder = cloud.stop().await;
    gateway.cps.to0().register_here().await.unwrap();
    let to1d = device
        .to1(gateway.fdo)
        .await
        .expect("the relay answers from here");
    let options = Options {
        to1d: Some(to1d),
        ..Options::default()
    };
    let ended = device
        .to2_with(gateway.fdo, &Manners::default(), options)
        .await;
    assert!(matches!(ended, Ended::Well), "{ended:?}");
    let id = gateway.cps.devices().list(None).unwrap()[0].device.clone();
    let cloud = serve(cloud_config(), folder).await;
    let client = sync::Client::new(&gateway.cps, https_client(&gateway, cloud.api).await);
    assert_eq!(
        client.once().await.unwrap().pushed.refused,
        Vec::<String>::new()
    );
    let record = cloud
        .cps
        .devices()
        .record(id.parse().unwrap())
        .unwrap()
        .unwrap();
    assert_eq!(record.owner().unwrap().standing, Standing::Proved);
}

#[tokio::test]
async fn wrong_keys_forks_and_spoilt_vouchers_are_refused_and_struck_installers_too() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let (factory, installer) = (Factory::new(), SigningKey::generate(&mut SystemRandom));
    let stranger = SigningKey::generate(&mut SystemRandom);
    let name = "anna".parse().unwrap();
    list(&gateway.cps, name, installer.public()).await.unwrap();

    let (_, voucher) = factory.device("b");
    let to_installer = extended(&voucher, &factory.key, &installer);
    let (status, text) = post(&gateway, to_installer.as_bytes()).await;
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("another owner"), "{text}");

    let good = extended(&to_installer, &installer, &gateway.cps.keys().owner());
    for at in [40, good.as_bytes().len() / 2, good.as_bytes().len() - 1] {
        let mut spoilt = good.as_bytes().to_vec();
        spoilt[at] ^= 1;
        let (status, text) = post(&gateway, &spoilt).await;
        assert!(matches!(status, 400 | 403), "byte {at}: {status} {text}");
    }
    assert_eq!(post(&gateway, &good.as_bytes()[..100]).await.0, 400);
    assert!(
        gateway.cps.vouchers().list().unwrap().is_empty(),
        "nothing was kept"
    );

    // The seller sold it twice: once to a stranger whose key is listed as well.
    assert_eq!(post(&gateway, good.as_bytes()).await.0, 200);
    let name = "bert".parse().unwrap();
    list(&gateway.cps, name, stranger.public()).await.unwrap();
    let fork = extended(&voucher, &factory.key, &stranger);
    let fork = extended(&fork, &stranger, &gateway.cps.keys().owner());
    let (status, text) = post(&gateway, fork.as_bytes()).await;
    assert_eq!((status, text.contains("sold twice")), (409, true), "{text}");

    strike(&gateway.cps, "anna".parse().unwrap()).await.unwrap();
    let gone = strike(&gateway.cps, "anna".parse().unwrap()).await;
    assert!(matches!(gone, Err(ListingError::Unknown(_))));
    let (_, voucher) = handed(&factory, &installer, &gateway);
    assert_eq!(post(&gateway, voucher.as_bytes()).await.0, 403);
    // The manufacturer being listed stands for all its installers.
    let maker = "maker".parse().unwrap();
    list(&gateway.cps, maker, factory.key.public())
        .await
        .unwrap();
    assert_eq!(post(&gateway, voucher.as_bytes()).await.0, 200);
}

#[tokio::test]
async fn where_any_chain_is_taken_no_list_is_asked_but_the_chain_must_hold() {
    let server = cloud_with(|config| config.handover = HandoverPolicy::AnyChain).await;
    let factory = Factory::new();
    let (_, voucher) = factory.device_for(&server.cps, "b");
    let handover = server.cps.handover();
    handover.take(voucher.as_bytes()).await.unwrap();
    let mut spoilt = factory.device_for(&server.cps, "c").1.as_bytes().to_vec();
    *spoilt.last_mut().unwrap() ^= 1;
    handover.take(&spoilt).await.unwrap_err();
}
