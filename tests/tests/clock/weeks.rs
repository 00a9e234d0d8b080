//! Row C5: five weeks of outage in steps of six hours, with lives of days: certificates are renewed at the site over and
//! over, and nobody is locked out. Then the link returns.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use holdfast_tests::proxy::Mode;
use holdfast_tests::world::{Hands, Part, Plan};
use tokio::time::{Instant, sleep};

use super::kit::*;

const DEVICES: usize = 4;
const DAYS: u64 = 35;
const STEP_HOURS: u64 = 6;
/// Devices are renewed within two days, the gateway within a day and a half.
const LIVES: &str = "[certificates]\ndevice = \"3days\"\nown = \"2days\"\ngrace = \"10days\"\n";
/// Half of the grace.
const LATE_HOURS: u64 = 5 * 24;
/// A device sends so much at the very least.
const LEAST: usize = 50;
/// Longer than any pause after a failure.
const LEAP_MINUTES: u64 = 6;
const BETWEEN_LEAPS: Duration = Duration::from_secs(6);
/// Each step gives the parts so long.
const STEP: Duration = Duration::from_millis(80);

#[tokio::test]
async fn five_weeks_of_outage_lock_nobody_out() {
    let plan = Plan {
        pace: Duration::from_millis(250),
        ..Plan::apart()
    };
    let with_lives = |world: &holdfast_tests::world::World| {
        for part in [&world.cloud, &world.gateway] {
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .open(&part.config)
                .unwrap();
            file.write_all(LIVES.as_bytes()).unwrap();
        }
    };
    let Some(mut turned) = turned_with("C5", &plan, Hands::All, with_lives).await else {
        return;
    };
    let mut devices = turned.devices(DEVICES).await;
    start(&mut devices).await;
    all_work(&devices, PATIENCE).await;
    turned.has_quality("authenticated").await;
    let before = counts(&turned).await;
    turned.world.uplink.set(Mode::Silent).unwrap();
    for hours in (STEP_HOURS..=DAYS * 24).step_by(STEP_HOURS as usize) {
        let now = format!("+{hours}h");
        turned.gateway.turn(&now).unwrap();
        turned.device.turn(&now).unwrap();
        sleep(STEP).await;
        nobody_is_far_behind(&turned, &devices, hours).await;
        // Who is locked out stays so: once in between, and at the end.
        if hours == DAYS / 2 * 24 {
            all_work_as_time_goes(&turned, &devices, hours).await;
        }
    }
    all_work_as_time_goes(&turned, &devices, DAYS * 24).await;
    let after = counts(&turned).await;
    // Every two days at the latest; a restart of the agent's parts is no new onboarding.
    assert!(
        after.0 >= before.0 + DEVICES * 10,
        "devices: {before:?} {after:?}"
    );
    assert!(
        after.1 >= before.1 + 15,
        "the gateway: {before:?} {after:?}"
    );
    // The cloud was there all the time, on the other side.
    turned.world.cloud.stop().await.unwrap();
    turned.cloud.turn(&format!("+{}h", DAYS * 24)).unwrap();
    turned.world.start_cloud().await.unwrap();
    turned.world.uplink.set(Mode::Open).unwrap();
    let end = Instant::now() + PATIENCE * 2;
    loop {
        let status = turned.world.gateway.status().await.unwrap();
        let is_back = status["mode"] == "online" && status["time_quality"] == "authenticated";
        if is_back && status["revocations"]["heard_secs_ago"].as_u64() < Some(60) {
            break;
        }
        assert!(
            Instant::now() < end,
            "{status}\n{}",
            turned.world.gateway.logged()
        );
        sleep(Duration::from_millis(200)).await;
    }
    all_work(&devices, PATIENCE).await;
    for device in &devices {
        has_no_gap(&turned, device).await;
    }
    stop(&mut devices).await;
    turned.world.stop().await.unwrap();
}

/// A request to renew that is under way when the clock is turned times out, though by the machine's time it was just sent,
/// and on a busy machine each is: so after the half of the grace the devices get time that nobody takes away. The
/// gateway owes late renewal within the grace; it does not owe it to who was never given a second.
async fn nobody_is_far_behind(turned: &Turned, devices: &[Part], hours: u64) {
    let behind = |part: &Part| {
        let text = std::fs::read(part.state.join("status.json")).unwrap_or_default();
        let told: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
        let end = told.and_then(|told| told["certificate_expires"].as_u64())?;
        Some(part.name()).filter(|_| end + LATE_HOURS * 3600 < today() + hours * 3600)
    };
    if !devices.iter().any(|part| behind(part).is_some()) {
        return;
    }
    let goes = time_goes_on(turned, hours);
    let end = Instant::now() + PATIENCE * 2;
    while let Some(name) = devices.iter().find_map(behind) {
        assert!(
            Instant::now() < end,
            "{name} is not renewed, though there is time"
        );
        sleep(Duration::from_millis(50)).await;
    }
    goes.abort();
}

/// What the machine's clock shows, unix seconds.
fn today() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// As [`all_work`]; the clocks leap on every few seconds, over the longest pause after a failure, which would be waited
/// out else. A leap cuts connections, so there is time between two for all to come back.
async fn all_work_as_time_goes(turned: &Turned, devices: &[Part], hours: u64) {
    let goes = time_goes_on(turned, hours);
    all_work(devices, PATIENCE * 2).await;
    goes.abort();
}

fn time_goes_on(turned: &Turned, hours: u64) -> tokio::task::JoinHandle<()> {
    let clocks = [turned.gateway.clone(), turned.device.clone()];
    tokio::spawn(async move {
        for leap in 1.. {
            sleep(BETWEEN_LEAPS).await;
            let now = format!("+{}m", hours * 60 + leap * LEAP_MINUTES);
            clocks.iter().for_each(|clock| clock.turn(&now).unwrap());
        }
    })
}

/// What a device sent in all those weeks is at the cloud, each number once.
async fn has_no_gap(turned: &Turned, device: &Part) {
    let status = device.status().await.unwrap();
    let id = status["device"].as_str().unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let export = ["telemetry", "export", "--device", id];
        let said = turned.world.cloud.ask(&export).await.unwrap();
        let mut topics: BTreeMap<(String, u64), Vec<u64>> = BTreeMap::new();
        for line in said.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let number = |name: &str| row[name].as_u64().unwrap();
            let topic = row["topic"].as_str().unwrap().to_owned();
            let numbers = topics.entry((topic, number("epoch"))).or_default();
            numbers.push(number("seq"));
        }
        let is_whole = |numbers: &Vec<u64>| numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let count: usize = topics.values().map(Vec::len).sum();
        if count >= LEAST && topics.values().all(is_whole) {
            return;
        }
        assert!(Instant::now() < end, "{id}: {count} messages, or gaps");
        sleep(Duration::from_millis(200)).await;
    }
}

/// Certificates issued so far: of devices, and of the gateway.
async fn counts(turned: &Turned) -> (usize, usize) {
    let all = certificates(&turned.world.gateway).await;
    let of = |part: &str| {
        all.iter()
            .filter(|(subject, _)| subject.contains(part))
            .count()
    };
    (of(".devices."), of(".gateways."))
}
