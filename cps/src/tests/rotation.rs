//! Another root in the place of the present one: online, through an outage, asleep, and with the power
//! cut at every sync. Nobody who belongs is ever without an identity that the others accept.

mod cuts;

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use holdfast_link::random::SystemRandom;
use holdfast_link::time::ManualClock;
use holdfast_link::tls::{
    Anchors, ClientAuth, Identity, IdentitySlot, Trust, client_config, server_config,
};
use holdfast_protocol::crypto::{HashAlg, SigningKey, hash};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::name::Party;
use holdfast_protocol::roots;

use super::kit::*;
use crate::Cps;
use crate::authority::{Followed, Request, RotationError};

const CLOUD: &str = "cloud.servers.holdfast.internal";
const GATEWAY: &str = "gw1.gateways.north.holdfast.internal";

/// Somebody as others meet them: by what they show, and by what they believe.
#[derive(Clone, Debug)]
pub(super) struct Member {
    name: &'static str,
    /// The DNS name by which it is dialled, if it serves.
    serves: Option<&'static str>,
    shown: Option<Identity>,
    believes: Trust,
}

/// One who knows the root by its fingerprint, and has no certificate.
fn stranger(root: &[u8]) -> Member {
    let digest = hash(HashAlg::Sha256, root);
    Member {
        name: "stranger",
        serves: None,
        shown: None,
        believes: Trust::RootHashes(vec![digest.value().try_into().unwrap()]),
    }
}

fn identity(chain: Vec<Vec<u8>>, key: &SigningKey) -> Identity {
    Identity::new(chain, key.to_pkcs8_der()).unwrap()
}

/// A server as it is now.
async fn member(cps: &Cps) -> Member {
    let at_cloud = cps.cloud().is_none();
    let own = cps.authority().own_identity(&[LOCAL]).await.unwrap();
    let roots = cps.authority().anchors().unwrap();
    let (name, serves) = match at_cloud {
        true => ("cloud", CLOUD),
        false => ("gateway", GATEWAY),
    };
    Member {
        name,
        serves: Some(serves),
        shown: Some(own),
        believes: Trust::Anchors(Anchors::new(roots).unwrap()),
    }
}

/// A device that this server certifies now, believing what it is told.
async fn device(cps: &Cps, name: &'static str) -> Member {
    let key = SigningKey::generate(&mut SystemRandom);
    let csr = holdfast_protocol::csr::request("x", &key);
    let party = Party::Device {
        device: DeviceId::from_guid(guid()),
        site: site("north"),
    };
    let request = Request {
        party,
        csr: &csr,
        addresses: Vec::new(),
    };
    let issued = cps.authority().issue(request).await.unwrap();
    let roots = cps.authority().anchors().unwrap();
    Member {
        name,
        serves: None,
        shown: Some(identity(issued.full_chain(), &key)),
        believes: Trust::Anchors(Anchors::new(roots).unwrap()),
    }
}

/// A handshake of both verifiers, in memory.
fn shake(client: &Member, server: &Member) -> Result<(), String> {
    let clock = || Arc::new(ManualClock::at(NOW)) as Arc<dyn holdfast_link::time::Clock>;
    let Trust::Anchors(believed) = &server.believes else {
        panic!("a stranger serves nobody");
    };
    let slot = client.shown.clone().map(IdentitySlot::with);
    let clients = match &slot {
        Some(_) => ClientAuth::Required(believed.clone()),
        None => ClientAuth::Optional(believed.clone()),
    };
    let served = IdentitySlot::with(server.shown.clone().unwrap());
    let served = server_config(served, clients, clock()).unwrap();
    let dialled = client_config(client.believes.clone(), slot, clock()).unwrap();
    let name = server.serves.unwrap().try_into().unwrap();
    let mut dialled = rustls::ClientConnection::new(dialled, name).unwrap();
    let mut served = rustls::ServerConnection::new(served).unwrap();
    let mut wire = Vec::new();
    for _ in 0..8 {
        wire.clear();
        while dialled.wants_write() {
            dialled.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            served.read_tls(&mut rest).unwrap();
            let done = served.process_new_packets();
            done.map_err(|error| format!("{} refuses {}: {error}", server.name, client.name))?;
        }
        wire.clear();
        while served.wants_write() {
            served.write_tls(&mut wire).unwrap();
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            dialled.read_tls(&mut rest).unwrap();
            let done = dialled.process_new_packets();
            done.map_err(|error| format!("{} refuses {}: {error}", client.name, server.name))?;
        }
    }
    // The client is admitted once it can be heard.
    dialled.writer().write_all(b"x").unwrap();
    let mut wire = Vec::new();
    dialled.write_tls(&mut wire).unwrap();
    served.read_tls(&mut &wire[..]).unwrap();
    served
        .process_new_packets()
        .map_err(|error| error.to_string())?;
    let mut heard = [0];
    served
        .reader()
        .read_exact(&mut heard)
        .map_err(|error| error.to_string())
}

/// Everybody with everybody whom they meet; who does not get through.
fn meet(all: &[Member]) -> Vec<String> {
    let servers = || all.iter().filter(|one| one.serves.is_some());
    let mut failed = Vec::new();
    for client in all {
        for server in servers().filter(|server| server.serves != client.serves) {
            failed.extend(shake(client, server).err());
        }
    }
    failed
}

/// A device renews here: by the rule of the agent, with what it holds and is told.
async fn renewed(cps: &Cps, old: &Member, name: &'static str) -> Member {
    let fresh = device(cps, name).await;
    let (Trust::Anchors(held), Trust::Anchors(told)) = (&old.believes, &fresh.believes) else {
        panic!("a device believes in anchors");
    };
    let plain = |anchors: &Anchors| -> Vec<Vec<u8>> {
        let all = anchors.certificates();
        all.iter().map(|der| der.to_vec()).collect()
    };
    let chain: Vec<Vec<u8>> = fresh.shown.as_ref().unwrap().chain()[1..]
        .iter()
        .map(|der| der.to_vec())
        .collect();
    let believed = roots::believed(&plain(held), &plain(told), &chain);
    Member {
        believes: Trust::Anchors(Anchors::new(believed).unwrap()),
        ..fresh
    }
}

/// What the upkeep of a running server does after a change.
async fn refresh(served: &Served) {
    let own = served.cps.authority().own_identity(&[LOCAL]).await;
    served.identity.set(own.unwrap());
}

async fn follow(gateway: &Served, cloud: &Served) -> Followed {
    refresh(cloud).await;
    let client = https_client(gateway, cloud.api).await;
    let followed = gateway.cps.authority().follow(&client).await.unwrap();
    refresh(gateway).await;
    followed
}

#[tokio::test]
async fn a_root_is_rotated_and_retired_while_a_gateway_and_a_device_sleep() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let root = cloud.cps.authority().anchors().unwrap().remove(0);
    let asleep = device(&gateway.cps, "sleeping device").await;
    let away = member(&gateway.cps).await;
    let installer = stranger(&root);

    let fresh = cloud.cps.authority().rotate_root().unwrap();
    let now = cloud.cps.authority().anchors().unwrap();
    assert_eq!((roots::fingerprint(&now[0]), &now[1]), (fresh, &root));
    let again = cloud.cps.authority().rotate_root();
    assert!(
        matches!(again, Err(RotationError::Unfinished(_))),
        "{again:?}"
    );
    // The gateway is away and knows of nothing; a new device comes in at the cloud.
    let new = device(&cloud.cps, "new device").await;
    let all = [
        member(&cloud.cps).await,
        away,
        asleep.clone(),
        new.clone(),
        installer.clone(),
    ];
    assert_eq!(meet(&all), [] as [String; 0]);
    let name = roots::fingerprint(&root);
    let refused = cloud.cps.authority().retire_root(&name, false);
    let Err(RotationError::LeanedOn(leaning)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        leaning.iter().any(|one| one.who == "gateway gw1"),
        "{leaning:?}"
    );

    // It is back.
    assert_eq!(follow(&gateway, &cloud).await, Followed::Renewed);
    assert_eq!(follow(&gateway, &cloud).await, Followed::Nothing);
    assert_eq!(gateway.cps.authority().anchors().unwrap(), now);
    let met = [member(&cloud.cps).await, member(&gateway.cps).await];
    let all = [&met[..], &[asleep.clone(), new.clone(), installer]].concat();
    assert_eq!(meet(&all), [] as [String; 0]);
    // The device that slept is known to the log, and to nobody else.
    pushed(&gateway, &cloud).await;
    let leaning = cloud.cps.authority().leaning_on(&root).unwrap();
    assert!(
        leaning.iter().any(|one| one.who.contains("device")),
        "{leaning:?}"
    );

    let woken = renewed(&gateway.cps, &asleep, "woken device").await;
    let locked = cloud.cps.authority().retire_root(&name, true).unwrap();
    assert_eq!(locked, leaning);
    assert_eq!(follow(&gateway, &cloud).await, Followed::Dropped);
    assert_eq!(gateway.cps.authority().anchors().unwrap(), now[..1]);
    let met = [member(&cloud.cps).await, member(&gateway.cps).await];
    let all = [&met[..], &[woken, new, stranger(&now[0])]].concat();
    assert_eq!(meet(&all), [] as [String; 0]);
    // The control: by the retired root nobody is let in any more.
    let all = [&met[..], &[asleep, stranger(&root)]].concat();
    assert_eq!(meet(&all).len(), 4);
    // And the next rotation is free to come.
    cloud.cps.authority().rotate_root().unwrap();
}

async fn pushed(gateway: &Served, cloud: &Served) {
    let client = https_client(gateway, cloud.api).await;
    let sync = crate::sync::Client::new(&gateway.cps, client);
    sync.once().await.unwrap();
}

#[tokio::test]
async fn an_intermediate_is_rotated_on_order_and_by_age_and_what_it_issued_stays_good() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let old = device(&gateway.cps, "old device").await;
    let own = |served: &Served, at: Option<&str>| {
        let site = at.map(site);
        served
            .cps
            .authority()
            .chain(site.as_ref())
            .unwrap()
            .remove(0)
    };
    let before = own(&gateway, Some("north"));
    assert_eq!(follow(&gateway, &cloud).await, Followed::Nothing);
    let ordered = cloud
        .cps
        .authority()
        .order_rotation(&site("north"))
        .unwrap();
    assert_eq!(ordered, [server("gw1")]);
    assert_eq!(follow(&gateway, &cloud).await, Followed::Renewed);
    assert_eq!(follow(&gateway, &cloud).await, Followed::Nothing);
    assert_ne!(own(&gateway, Some("north")), before);

    let before = [own(&cloud, None), own(&cloud, Some("north"))];
    cloud.cps.authority().renew_issuers().unwrap();
    assert_eq!([own(&cloud, None), own(&cloud, Some("north"))], before);
    cloud.cps.authority().rotate_issuers().unwrap();
    let after = [own(&cloud, None), own(&cloud, Some("north"))];
    assert!(after[0] != before[0] && after[1] != before[1]);
    let all = [member(&cloud.cps).await, member(&gateway.cps).await, old];
    assert_eq!(meet(&all), [] as [String; 0]);
    cloud
        .clock
        .advance(std::time::Duration::from_secs(31 * 86_400));
    cloud.cps.authority().renew_issuers().unwrap();
    assert_ne!(own(&cloud, None), after[0]);
}

/// A connection by HTTPS that stays; it has asked once and was answered.
async fn standing(
    at: &Served,
    member: &Member,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let slot = member.shown.clone().map(IdentitySlot::with);
    let clock = Arc::clone(&at.clock) as Arc<dyn holdfast_link::time::Clock>;
    let tls = client_config(member.believes.clone(), slot, clock).unwrap();
    let stream = tokio::net::TcpStream::connect(at.api).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(tls);
    let mut stream = connector
        .connect(CLOUD.try_into().unwrap(), stream)
        .await
        .unwrap();
    let ask = b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
    stream
}

#[tokio::test]
async fn what_stands_on_a_retired_root_ends_and_the_rest_goes_on() {
    use tokio::io::AsyncReadExt as _;
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let (authority, roster) = (cloud.cps.authority(), cloud.cps.roster());
    let old = device(&cloud.cps, "old").await;
    let chain = |member: &Member| -> Vec<Vec<u8>> {
        let shown = member.shown.as_ref().unwrap().chain();
        shown.iter().map(|der| der.to_vec()).collect()
    };
    let serial = |member: &Member| roster.identify(&chain(member)).unwrap().serial;
    let olds = serial(&old);
    let first = roots::fingerprint(&authority.anchors().unwrap()[0]);
    authority.rotate_root().unwrap();
    let new = device(&cloud.cps, "new").await;
    // Both come in while both roots are believed; nothing ends by a rotation.
    let news = serial(&new);
    assert_eq!(serial(&old), olds);
    let mut stream = standing(&cloud, &old).await;
    assert!(!roster.is_groundless(&olds) && !roster.is_groundless(&news));
    let mut changes = roster.changes();
    changes.mark_unchanged();
    let refused = authority
        .retire_root(&first, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("'authority show' says what"), "{refused}");
    assert!(!changes.has_changed().unwrap());
    let out = authority.retire_root(&first, true).unwrap();
    assert!(
        out.iter()
            .any(|one| one.why.contains("certificates renew --device"))
    );
    // Sessions are asked again at once: who is sure goes on.
    assert!(changes.has_changed().unwrap());
    assert!(roster.is_groundless(&olds) && !roster.is_groundless(&news));
    let refused = roster.identify(&chain(&old)).unwrap_err();
    assert_eq!(refused.reason(), "root retired");
    roster.identify(&chain(&new)).unwrap();
    let mut rest = [0; 64];
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), stream.read(&mut rest));
    assert_eq!(
        ended.await.unwrap().unwrap_or(0),
        0,
        "the standing connection"
    );
    shake(&old, &member(&cloud.cps).await).unwrap_err();
}
