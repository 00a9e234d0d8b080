//! 1970, and years ahead: whoever belongs is served, whoever expired is not.

use std::time::Duration;

use holdfast_tests::place::has_multicast;
use holdfast_tests::proxy::Mode;
use holdfast_tests::skip::skip;
use holdfast_tests::world::{Hands, Part, Plan, Server};
use tokio::time::Instant;

use super::kit::*;

/// Row C1: the gateway must be well in this time.
const READY: Duration = Duration::from_secs(10);
/// Row C1: so many devices.
const DEVICES: usize = 20;
/// An epoch ago, and decades ahead.
const FALSE_WALLS: [&str; 2] = ["@1970-01-01 00:10:00", "@2069-07-20 20:17:00"];

#[tokio::test]
async fn after_a_normal_life_all_are_served_in_1970_and_in_2069() {
    let Some(mut turned) = turned("C1", &Plan::apart(), Hands::Wall).await else {
        return;
    };
    let mut devices = turned.devices(DEVICES).await;
    start(&mut devices).await;
    all_work(&devices, PATIENCE * 2).await;
    turned.has_quality("authenticated").await;
    own_certificate_is_settled(&turned.world.gateway.state.join("keys")).await;
    stop(&mut devices).await;
    turned.world.gateway.stop().await.unwrap();
    turned.world.uplink.set(Mode::Silent).unwrap();
    let keys = kept(&turned.world.gateway.state.join("keys"));
    let vaults: Vec<_> = devices.iter().map(|one| kept_vault(&one.state)).collect();
    for wall in FALSE_WALLS {
        turned.gateway.turn(wall).unwrap();
        turned.device.turn(wall).unwrap();
        let began = Instant::now();
        turned.world.start_gateway().await.unwrap();
        assert!(began.elapsed() < READY, "{wall}: {:?}", began.elapsed());
        let year = &wall[1..5];
        assert!(
            turned.world.gateway.logged().contains(&format!("{year}-")),
            "the gateway saw the turned clock"
        );
        let known = certificates(&turned.world.gateway).await;
        start(&mut devices).await;
        all_work(&devices, PATIENCE).await;
        assert_eq!(certificates(&turned.world.gateway).await, known, "{wall}");
        stop(&mut devices).await;
        turned.world.gateway.stop().await.unwrap();
        assert_eq!(
            kept(&turned.world.gateway.state.join("keys")),
            keys,
            "{wall}"
        );
        for (device, vault) in devices.iter().zip(&vaults) {
            assert_eq!(kept_vault(&device.state), *vault, "{wall}");
        }
    }
    turned.world.stop().await.unwrap();
}

/// A gateway's own certificate lasts as long as its issuer if it was made while the time was unknown; within seconds of
/// knowing the time it is made anew. Only then is the first life a normal one.
async fn own_certificate_is_settled(keys: &std::path::Path) {
    let end_of = |name: &str| {
        let told = std::process::Command::new("openssl")
            .args(["x509", "-noout", "-enddate", "-in"])
            .arg(keys.join(name))
            .output()
            .unwrap();
        assert!(told.status.success(), "{told:?}");
        told.stdout
    };
    let until = Instant::now() + PATIENCE;
    while end_of("server.pem") == end_of("ca-site-harbour.pem") {
        assert!(Instant::now() < until, "it is not made anew");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn kept_vault(state: &std::path::Path) -> Vec<u8> {
    std::fs::read(state.join("vault")).unwrap()
}

#[tokio::test]
async fn a_first_boot_in_1970_in_an_outage_and_then_the_right_time() {
    if !has_multicast() {
        skip("C2", "no multicast on the loopback interface");
        return;
    }
    let plan = Plan {
        rendezvous_name: Some(format!("holdfast-c2-{}.local", std::process::id())),
        ..Plan::apart()
    };
    let Some(mut turned) = turned("C2", &plan, Hands::Wall).await else {
        return;
    };
    let mut devices = turned.devices(DEVICES).await;
    let end = Instant::now() + PATIENCE;
    while known(&turned).await < DEVICES {
        assert!(
            Instant::now() < end,
            "the vouchers do not reach the gateway"
        );
    }
    turned.world.gateway.stop().await.unwrap();
    // Without its floor, as after a boot in which nobody told the time.
    for copy in ["time.0", "time.1"] {
        std::fs::remove_file(turned.world.gateway.state.join(copy)).unwrap();
    }
    turned.world.uplink.set(Mode::Silent).unwrap();
    turned.gateway.turn(FALSE_WALLS[0]).unwrap();
    turned.device.turn(FALSE_WALLS[0]).unwrap();
    turned.world.start_gateway().await.unwrap();
    let began = now();
    start(&mut devices).await;
    all_work(&devices, PATIENCE * 2).await;
    assert_ne!(turned.quality().await, "authenticated");
    let shown = onboarded(&turned.world.gateway).await;
    assert!(
        shown.iter().all(|(_, quality)| quality == "floor"),
        "{shown:?}"
    );
    // The clock becomes right, and the cloud tells the time.
    stop(&mut devices).await;
    turned.world.gateway.stop().await.unwrap();
    turned.gateway.turn("+0").unwrap();
    turned.device.turn("+0").unwrap();
    turned.world.uplink.set(Mode::Open).unwrap();
    turned.world.start_gateway().await.unwrap();
    turned.has_quality("authenticated").await;
    for part in [&turned.world.gateway, &turned.world.cloud] {
        has_real_times(part, began).await;
    }
    let before = certificates(&turned.world.gateway).await;
    start(&mut devices).await;
    all_work(&devices, PATIENCE).await;
    let after = certificates(&turned.world.gateway).await;
    let devices_of = |all: &[(String, String)]| {
        let is_device = |(subject, _): &&(String, String)| subject.contains(".devices.");
        all.iter().filter(is_device).cloned().collect::<Vec<_>>()
    };
    assert_eq!(devices_of(&before).len(), DEVICES);
    assert_eq!(devices_of(&after), devices_of(&before), "none got another");
    stop(&mut devices).await;
    turned.world.stop().await.unwrap();
}

/// When a server says that each device was onboarded, and how good that is.
async fn onboarded(part: &Part) -> Vec<(u64, String)> {
    let said = part.ask(&["devices", "list", "--json"]).await.unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let since = rows.iter().map(|row| &row["since"]);
    let told = since.filter(|since| since.is_object());
    told.map(|since| {
        let quality = since["quality"].as_str().unwrap().to_owned();
        (since["at"].as_u64().unwrap(), quality)
    })
    .collect()
}

/// Waits until what was recorded on untrusted time has its real one.
async fn has_real_times(part: &Part, began: u64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let shown = onboarded(part).await;
        let is_real = |(at, quality): &(u64, String)| {
            quality == "learnt later" && (began.saturating_sub(2)..=now() + 2).contains(at)
        };
        if shown.len() == DEVICES && shown.iter().all(is_real) {
            return;
        }
        assert!(Instant::now() < end, "{}: {shown:?}", part.name());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn known(turned: &Turned) -> usize {
    let said = turned
        .world
        .gateway
        .ask(&["devices", "list", "--json"])
        .await
        .unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    rows.len()
}

/// Row C3. The cloud's clock goes ahead by 400 days, the gateway hears of it; then the gateway's own clock is thrown
/// back, and started again without an uplink.
#[tokio::test]
async fn what_expired_at_the_floor_stays_expired_when_the_clock_is_thrown_back() {
    let Some(mut turned) = turned("C3", &Plan::apart(), Hands::Wall).await else {
        return;
    };
    let mut old = Vec::new();
    for n in 0..50 {
        old.push(admit(&turned, &format!("old-{n}")).await);
    }
    for identity in &old[..3] {
        assert!(
            is_let_in(&turned, "+0", identity).await,
            "the control: still good"
        );
    }
    turned.world.cloud.stop().await.unwrap();
    turned.cloud.turn("+400d").unwrap();
    turned.world.start_cloud().await.unwrap();
    // The gateway's own certificate has expired with the rest: the cloud is asked by the one that the site's own
    // authority makes as soon as the time is known.
    let told = Instant::now() + PATIENCE;
    while status_time(&turned).await < now() + 399 * 86_400 {
        assert!(Instant::now() < told, "the gateway does not hear the time");
    }
    let new = admit(&turned, "new").await;
    turned.world.gateway.stop().await.unwrap();
    turned.world.uplink.set(Mode::Silent).unwrap();
    for wall in ["+0", FALSE_WALLS[0]] {
        turned.gateway.turn(wall).unwrap();
        turned.world.start_gateway().await.unwrap();
        assert!(
            is_let_in(&turned, "+400d", &new).await,
            "{wall}: the control"
        );
        for identity in &old {
            assert!(
                !is_let_in(&turned, "+400d", identity).await,
                "{wall}: {identity:?}"
            );
        }
        turned.world.gateway.stop().await.unwrap();
    }
    turned.world.stop().await.unwrap();
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

async fn status_time(turned: &Turned) -> u64 {
    let status = turned.world.gateway.status().await.unwrap();
    status["time"].as_u64().unwrap()
}

async fn admit(turned: &Turned, name: &str) -> std::path::PathBuf {
    let rights = [format!("x/{name}")];
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    turned
        .world
        .admit(Server::Gateway, name, &rights, &[])
        .await
        .unwrap()
}

async fn is_let_in(turned: &Turned, offset: &str, identity: &std::path::Path) -> bool {
    let name = identity.file_name().unwrap().to_str().unwrap();
    let topic = format!("x/{name}");
    let words = ["-i", name, "-t", &topic, "-m", "here"];
    // Its own clock knows the time, or it would not believe the gateway's new certificate.
    let done = publish_at(&turned.world, offset, identity, &words).await;
    done.code == Some(0)
}
