//! Rogue servers before the real agent, gateway and installer: none is believed, each client says why in a sentence, and
//! none sends anything that is not for everybody's eyes. The control: the true server hears it all.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_tests::world::{GATEWAY, Part, Plan, SITE, World};
use tokio::time::{Instant, sleep};

use crate::makers::{Ca, DOMAIN};
use crate::rogues::{Catch, Rogue, Trap, Victim};

/// How long a client may take to come and to say what it thinks.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn no_rogue_server_is_believed() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.cloud.ask(&["sites", "add", SITE]).await.unwrap();
    let root = Ca::stolen(&world.cloud, "root");
    let servers = Ca::stolen(&world.cloud, "servers");
    let site = Ca::stolen(&world.cloud, "site-harbour");
    let cloud = Victim {
        root: &root,
        issuer: &servers,
        name: format!("cloud.servers.{DOMAIN}"),
        at: world.uplink_doors.https.ip(),
        neighbour: format!("cloud2.servers.{DOMAIN}"),
    };
    let gateway = Victim {
        root: &root,
        issuer: &site,
        name: format!("{GATEWAY}.gateways.{SITE}.{DOMAIN}"),
        at: world.gateway_doors.https.ip(),
        neighbour: format!("gw2.gateways.{SITE}.{DOMAIN}"),
    };

    enrolment_tells_no_rogue_its_token(&world, &cloud).await;
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    the_installer_hands_no_rogue_a_voucher(&world, &gateway).await;
    let device = world.manufacture("thermometer-1").await.unwrap();
    world.start_agent().await.unwrap();
    is_connected(&world.agent).await;
    world.agent.stop().await.unwrap();
    world.gateway.stop().await.unwrap();
    world.cloud.stop().await.unwrap();

    let secrets = [device.as_str()];
    let doors = [world.gateway_doors.mqtt, world.cloud_doors.mqtt];
    the_agent_believes_no_rogue(&mut world.agent, doors, &gateway, &secrets).await;
    let doors = [world.cloud_doors.mqtt, world.cloud_doors.https];
    let health = world.gateway_doors.metrics;
    the_gateway_believes_no_rogue(&mut world.gateway, health, doors, &cloud).await;
}

/// With the right token: the rogue at the address given hears nothing, and the same token works afterwards.
async fn enrolment_tells_no_rogue_its_token(world: &World, cloud: &Victim<'_>) {
    let token = world.token().await.unwrap();
    let secret = token.split('.').nth(3).unwrap().to_owned();
    let at = SocketAddr::new(cloud.at, 0);
    for rogue in cloud.rogues() {
        let trap = Trap::set(at, rogue.shown.as_ref()).await;
        let told = enrol_at(world, &trap, &token).await;
        says_why(&rogue, "enrol", &told);
        heard_nothing(&rogue, "enrol", &caught(&trap).await, &[&secret, GATEWAY]);
    }
    // The control: the true one is told the secret, in base64 of another alphabet.
    let trap = Trap::set(at, Some(&cloud.true_one())).await;
    enrol_at(world, &trap, &token).await;
    let catches = caught(&trap).await;
    let shown = String::from_utf8_lossy(&catches[0].spoken).into_owned();
    let standard = secret.replace('-', "+").replace('_', "/");
    assert!(
        shown.contains(&standard),
        "the control heard no token: {shown}"
    );
}

async fn enrol_at(world: &World, trap: &Trap, token: &str) -> String {
    let cloud = trap.address.to_string();
    let words = ["enrol", "--cloud", &cloud, "--token-file", "-"];
    let told = world
        .gateway
        .command(&words, &format!("{token}\n"))
        .await
        .unwrap();
    assert_ne!(told.code, Some(0), "enrolled at a trap");
    told.err
}

async fn the_installer_hands_no_rogue_a_voucher(world: &World, gateway: &Victim<'_>) {
    let device = world.another_device("device-b").unwrap();
    let (anna, key) = world.installer("anna").await.unwrap();
    let id = world.make(&device, "B-0001").await.unwrap();
    let (key, paper) = (
        key.display().to_string(),
        world.folder().join("b.ov").display().to_string(),
    );
    let words = ["vouchers", "extend", &id, "--to", &key, "--out", &paper];
    world.cloud.ask(&words).await.unwrap();
    let fingerprint = world.gateway.ask(&["root", "--fingerprint"]).await.unwrap();
    anna.ask(&["trust", fingerprint.trim()]).await.unwrap();
    for rogue in gateway.rogues() {
        // Asked by its address at first, so a certificate of another name is no fault yet.
        if rogue.what == "another server" {
            continue;
        }
        let trap = Trap::set(SocketAddr::new(gateway.at, 0), rogue.shown.as_ref()).await;
        let at = trap.address.to_string();
        let told = anna
            .command(&["extend", &paper, "--gateway", &at], "")
            .await
            .unwrap();
        assert_ne!(told.code, Some(0), "handed in at a rogue: {}", rogue.what);
        says_why(&rogue, "installer", &told.err);
        heard_nothing(&rogue, "installer", &caught(&trap).await, &[&id]);
    }
    let trap = Trap::set(SocketAddr::new(gateway.at, 0), Some(&gateway.true_one())).await;
    let at = trap.address.to_string();
    anna.command(&["extend", &paper, "--gateway", &at], "")
        .await
        .unwrap();
    let catches = caught(&trap).await;
    assert!(
        catches[0].spoken.starts_with(b"GET /api/v1/owner"),
        "the control heard nothing"
    );
}

/// At the gateway's address and at the cloud's, one after the other; a restart each time, so that no back-off is waited for.
async fn the_agent_believes_no_rogue(
    agent: &mut Part,
    doors: [SocketAddr; 2],
    gateway: &Victim<'_>,
    secrets: &[&str],
) {
    for rogue in gateway.rogues() {
        let traps = [
            Trap::set(doors[0], rogue.shown.as_ref()).await,
            Trap::set(doors[1], rogue.shown.as_ref()).await,
        ];
        let from = agent.logged().len();
        agent.start(None).await.unwrap();
        let catches = caught(&traps[0]).await;
        told(agent, from, &rogue).await;
        agent.stop().await.unwrap();
        heard_nothing(&rogue, "agent", &catches, secrets);
        heard_nothing(&rogue, "agent at the cloud", &traps[1].catches(), secrets);
    }
    let trap = Trap::set(doors[0], Some(&gateway.true_one())).await;
    agent.start(None).await.unwrap();
    let catches = caught(&trap).await;
    agent.stop().await.unwrap();
    assert!(
        catches[0].showed && catches[0].spoken.first() == Some(&0x10),
        "the control heard nothing"
    );
}

/// The bridge and the requests over HTTPS, at the same time.
async fn the_gateway_believes_no_rogue(
    gateway: &mut Part,
    health: SocketAddr,
    doors: [SocketAddr; 2],
    cloud: &Victim<'_>,
) {
    for rogue in cloud.rogues() {
        let traps = [
            Trap::set(doors[0], rogue.shown.as_ref()).await,
            Trap::set(doors[1], rogue.shown.as_ref()).await,
        ];
        let from = gateway.logged().len();
        gateway.start(Some(health)).await.unwrap();
        for (trap, what) in traps.iter().zip(["bridge", "sync"]) {
            heard_nothing(&rogue, what, &caught(trap).await, &[]);
        }
        told(gateway, from, &rogue).await;
        gateway.stop().await.unwrap();
    }
    let traps = [
        Trap::set(doors[0], Some(&cloud.true_one())).await,
        Trap::set(doors[1], Some(&cloud.true_one())).await,
    ];
    gateway.start(Some(health)).await.unwrap();
    let (bridge, sync) = (caught(&traps[0]).await, caught(&traps[1]).await);
    gateway.stop().await.unwrap();
    assert!(
        bridge[0].showed && bridge[0].spoken.first() == Some(&0x10),
        "the control's broker heard nothing"
    );
    assert!(
        sync.iter().any(|one| !one.spoken.is_empty()),
        "the control's HTTPS heard nothing"
    );
}

/// What came into the trap, once somebody did.
async fn caught(trap: &Trap) -> Vec<Catch> {
    let end = Instant::now() + PATIENCE;
    loop {
        let catches = trap.catches();
        if !catches.is_empty() {
            return catches;
        }
        assert!(Instant::now() < end, "nobody came to {}", trap.address);
        sleep(Duration::from_millis(10)).await;
    }
}

fn heard_nothing(rogue: &Rogue, who: &str, catches: &[Catch], secrets: &[&str]) {
    for catch in catches {
        let what = rogue.what;
        assert!(!catch.believed, "{who} believed a server that is {what}");
        assert!(
            !catch.showed,
            "{who} showed its certificate to a server that is {what}"
        );
        assert!(
            catch.spoken.is_empty(),
            "{who} spoke to a server that is {what}"
        );
        let raw = String::from_utf8_lossy(&catch.raw);
        for secret in secrets {
            assert!(
                !raw.contains(secret),
                "{who} told {secret} to a server that is {what}"
            );
        }
    }
}

/// In one sentence that names the reason.
fn says_why(rogue: &Rogue, who: &str, told: &str) {
    let what = rogue.what;
    assert!(
        told.contains(rogue.said),
        "{who} does not say why a server that is {what} was refused: {told}"
    );
    assert!(told.trim().lines().count() <= 3, "{who} on {what}: {told}");
}

async fn told(part: &Part, from: usize, rogue: &Rogue) {
    let end = Instant::now() + PATIENCE;
    loop {
        let log = part.logged();
        let new = &log[from.min(log.len())..];
        if new.lines().any(|line| line.contains(rogue.said)) {
            return;
        }
        assert!(
            Instant::now() < end,
            "no word on a server that is {}:\n{new}",
            rogue.what
        );
        sleep(Duration::from_millis(20)).await;
    }
}

async fn is_connected(agent: &Part) {
    let end = Instant::now() + PATIENCE * 2;
    while agent.status().await.unwrap()["role"] != "gateway" {
        assert!(
            Instant::now() < end,
            "the device is not connected:\n{}",
            agent.logged()
        );
        sleep(Duration::from_millis(50)).await;
    }
}
