//! What the clock's tests share: a world whose parts stand under clocks that can be turned.

use std::hash::Hasher as _;
use std::path::Path;
use std::time::Duration;

use holdfast_tests::process::{Finished, run_at};
use holdfast_tests::seat::Seat;
use holdfast_tests::skip::skip;
use holdfast_tests::world::{
    Hands, Part, Plan, SITE, Server, TurnedClock, World, can_be_turned, stock_clock,
};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// For what has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A world with a clock for the gateway and one for all devices.
pub(crate) struct Turned {
    pub(crate) world: World,
    pub(crate) gateway: TurnedClock,
    pub(crate) device: TurnedClock,
    pub(crate) cloud: TurnedClock,
}

/// The world, with cloud and gateway running; `None`, and said so, where no clock can be turned.
pub(crate) async fn turned(what: &'static str, plan: &Plan, hands: Hands) -> Option<Turned> {
    turned_with(what, plan, hands, |_| ()).await
}

/// The same, with a change to the configurations.
pub(crate) async fn turned_with(
    what: &'static str,
    plan: &Plan,
    hands: Hands,
    change: impl FnOnce(&World),
) -> Option<Turned> {
    if !can_be_turned() {
        skip(what, "libfaketime is not installed");
        return None;
    }
    let mut world = World::new(plan).await.unwrap();
    change(&world);
    let clock = |name| TurnedClock::new(world.folder(), name, hands).unwrap();
    let (gateway, device, cloud) = (clock("gateway"), clock("device"), clock("cloud"));
    // From the start: a counter that changed its zero in between would show centuries.
    world.cloud.put_under(&cloud).unwrap();
    world.gateway.put_under(&gateway).unwrap();
    world.agent.put_under(&device).unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    Some(Turned {
        world,
        gateway,
        device,
        cloud,
    })
}

impl Turned {
    /// So many further devices under the devices' clock, made at the factory and assigned to the site.
    pub(crate) async fn devices(&self, count: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        for n in 0..count {
            let name: &'static str = Box::leak(format!("device-{n}").into_boxed_str());
            let mut part = self.world.another_device(name).unwrap();
            part.put_under(&self.device).unwrap();
            let id = self.world.make(&part, &format!("D-{n:04}")).await.unwrap();
            let assign = ["vouchers", "assign", &id, "--site", SITE];
            self.world.cloud.ask(&assign).await.unwrap();
            parts.push(part);
        }
        parts
    }

    /// What the gateway says of the time.
    pub(crate) async fn quality(&self) -> String {
        let status = self.world.gateway.status().await.unwrap();
        status["time_quality"].as_str().unwrap().to_owned()
    }

    /// Waits until the gateway's time is of this quality.
    pub(crate) async fn has_quality(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        while self.quality().await != wanted {
            assert!(Instant::now() < end, "the time does not become {wanted}");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Starts all of them.
pub(crate) async fn start(parts: &mut [Part]) {
    for part in parts {
        part.start(None).await.unwrap();
    }
}

/// Stops all of them.
pub(crate) async fn stop(parts: &mut [Part]) {
    for part in parts {
        part.stop().await.unwrap();
    }
}

/// Waits until the gateway has acknowledged something to each of them since now.
pub(crate) async fn all_work(parts: &[Part], within: Duration) {
    work(parts, within, &["gateway"]).await;
}

/// The same, be it the cloud that acknowledges: after a restart of the gateway they go back in a while.
pub(crate) async fn all_work_somewhere(parts: &[Part], within: Duration) {
    work(parts, within, &["gateway", "cloud"]).await;
}

async fn work(parts: &[Part], within: Duration, roles: &[&str]) {
    let end = Instant::now() + within;
    for part in parts {
        let mut before = None;
        loop {
            let told = part.status().await.ok();
            let is_here = |status: &&Value| roles.iter().any(|role| status["role"] == *role);
            let here = told.as_ref().filter(is_here);
            let now = here.and_then(|status| status["acknowledged"].as_u64());
            if before.is_some() && now > before {
                break;
            }
            before = before.or(now);
            assert!(
                Instant::now() < end,
                "{} gets no acknowledgement: {told:?}\n{}",
                part.name(),
                part.logged()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The serial numbers of all certificates that the gateway knows, each with its subject.
pub(crate) async fn certificates(gateway: &Part) -> Vec<(String, String)> {
    let said = gateway
        .ask(&["certificates", "list", "--json"])
        .await
        .unwrap();
    let rows: Vec<Value> = serde_json::from_str(&said).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let mut all: Vec<_> = rows
        .iter()
        .map(|row| (text(row, "subject"), text(row, "serial")))
        .collect();
    all.sort();
    all
}

/// The names of all files in a folder that hold keys or certificates, and a digest of each.
pub(crate) fn kept(folder: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Counts the gateway's exchanges with the cloud.
        if entry.path().is_file() && !name.starts_with("turn.") {
            let mut digest = std::hash::DefaultHasher::new();
            digest.write(&std::fs::read(entry.path()).unwrap());
            all.push((name, digest.finish()));
        }
    }
    all.sort();
    all
}

/// One publish by a stock client whose own clock is off by `offset`; what it said.
pub(crate) async fn publish_at(
    world: &World,
    offset: &str,
    identity: &Path,
    words: &[&str],
) -> Finished {
    let (seat, all) = stock_words(world, identity, words);
    let mut under: Vec<String> = stock_clock(offset).into();
    under.push("/usr/bin/mosquitto_pub".into());
    under.extend(all);
    run_at(&seat, Path::new("/usr/bin/env"), &under, "")
        .await
        .unwrap()
}

/// One stock client that listens for one message; what it said.
pub(crate) async fn listen(world: &World, identity: &Path, words: &[&str]) -> Finished {
    stock(world, "/usr/bin/mosquitto_sub", identity, words).await
}

async fn stock(world: &World, program: &str, identity: &Path, words: &[&str]) -> Finished {
    let (seat, all) = stock_words(world, identity, words);
    run_at(&seat, Path::new(program), &all, "").await.unwrap()
}

fn stock_words(world: &World, identity: &Path, words: &[&str]) -> (Seat, Vec<String>) {
    let at = world.gateway_doors.mqtt;
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    let file = |name: &str| identity.join(name).display().to_string();
    let mut all: Vec<String> = ["-V", "5", "-h", &host, "-p", &port, "-q", "1"]
        .map(str::to_owned)
        .to_vec();
    all.extend(["--cafile".into(), file("ca.pem")]);
    all.extend(["--cert".into(), file("cert.pem")]);
    all.extend(["--key".into(), file("key.pem")]);
    all.extend(words.iter().map(|word| (*word).to_owned()));
    (world.seat_near(Server::Gateway).unwrap(), all)
}
