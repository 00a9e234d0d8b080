//! New devices in an outage, with real binaries: B comes by a voucher that the installer hands in, C by the
//! extension made in advance; then the gateway's machine is lost and another takes its place.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::path::Path;
use std::time::Duration;

use holdfast_tests::place::has_multicast;
use holdfast_tests::proxy::Mode;
use holdfast_tests::skip::skip;
use holdfast_tests::world::{GATEWAY, Part, Plan, SITE, World};
use serde_json::Value;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(40);

/// The device's row at this server, once `wanted` holds of it.
async fn device(part: &Part, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let said = part.ask(&["devices", "list", "--json"]).await.unwrap();
        let rows: Vec<Value> = serde_json::from_str(&said).unwrap();
        let row = rows.into_iter().find(|row| row["device"] == id);
        match row {
            Some(row) if wanted(&row) => return row,
            row => assert!(Instant::now() < end, "{what}: {row:?}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Acknowledgements to this device grow, and it is the gateway that gives them.
async fn works(part: &Part) {
    let count = async || {
        let status = part.status().await.ok()?;
        let here = status["role"] == "gateway";
        status["acknowledged"].as_u64().filter(|_| here)
    };
    let end = Instant::now() + PATIENCE;
    let mut before = None;
    loop {
        let now = count().await;
        if before.is_some() && now > before {
            return;
        }
        before = before.or(now);
        let told = part.status().await;
        assert!(
            Instant::now() < end,
            "no acknowledgement by the gateway: {told:?}\n{}",
            part.logged()
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// The command fails and says this.
async fn refused(part: &Part, words: &[&str], wanted: &str) {
    let told = part.command(words, "").await.unwrap();
    assert_ne!(told.code, Some(0), "{words:?} worked: {}", told.out);
    assert!(told.err.contains(wanted), "{words:?}: {}", told.err);
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}

#[tokio::test]
async fn newcomers_in_an_outage_and_a_lost_gateway() {
    if !has_multicast() {
        skip("newcomers", "no multicast on the loopback interface");
        return;
    }
    let mut world = World::new(&Plan {
        rendezvous_name: Some(format!("holdfast-rv-{}.local", std::process::id())),
        pace: Duration::from_millis(100),
        ..Plan::apart()
    })
    .await
    .unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    // A has worked since before the outage.
    let a_id = world.manufacture("A-0001").await.unwrap();
    world.start_agent().await.unwrap();
    works(&world.agent).await;
    let mut b = world.another_device("device-b").unwrap();
    let mut c = world.another_device("device-c").unwrap();
    let (anna, anna_key) = world.installer("anna").await.unwrap();
    let (bert, _) = world.installer("bert").await.unwrap();

    // In normal times: B goes to the installer's key, C to the cloud.
    let b_id = world.make(&b, "B-0001").await.unwrap();
    let paper = world.folder().join("b.ov");
    let extend = [
        "vouchers",
        "extend",
        &b_id,
        "--to",
        text(&anna_key),
        "--out",
        text(&paper),
    ];
    world.cloud.ask(&extend).await.unwrap();
    refused(&world.cloud, &extend, "exists already").await;
    let c_id = world.make(&c, "C-0001").await.unwrap();
    let assign = ["vouchers", "assign", &c_id, "--site", SITE];
    world.cloud.ask(&assign).await.unwrap();
    device(&world.gateway, &c_id, "C is known at the gateway", |_| true).await;

    // The outage.
    world.uplink.set(Mode::Silent).unwrap();
    b_comes(&world, &anna, &anna_key, &bert, &paper).await;
    for (part, id) in [(&mut b, &b_id), (&mut c, &c_id)] {
        part.start(None).await.unwrap();
        let onboarded = |row: &Value| row["onboarded"] == true;
        let row = device(&world.gateway, id, "onboarded in the outage", onboarded).await;
        assert_eq!(
            (&row["standing"], &row["server"]),
            (&"proved".into(), &GATEWAY.into())
        );
        works(part).await;
    }

    // The uplink returns: the cloud believes the evidence.
    world.uplink.set(Mode::Open).unwrap();
    for id in [&b_id, &c_id] {
        let proved = |row: &Value| row["standing"] == "proved";
        device(&world.cloud, id, "proved at the cloud", proved).await;
    }
    lost_gateway(&mut world, &[&b, &c], &[&a_id, &b_id, &c_id]).await;
    for part in [&mut b, &mut c] {
        part.stop().await.unwrap();
    }
    world.stop().await.unwrap();
}

/// Every refusal first, then the voucher goes in, twice.
async fn b_comes(world: &World, anna: &Part, anna_key: &Path, bert: &Part, paper: &Path) {
    let at = world.gateway_doors.https.to_string();
    let told = ["extend", text(paper), "--gateway", &at];
    let found = ["extend", text(paper), "--interface", "lo"];
    refused(anna, &told, "no root certificate is trusted").await;
    let stranger = "ab".repeat(32);
    let strange = [&told[..], &["--root", &stranger]].concat();
    refused(anna, &strange, "was not reached").await;
    let root = world.folder().join("root.pem");
    std::fs::write(&root, world.gateway.ask(&["root"]).await.unwrap()).unwrap();
    anna.ask(&["trust", text(&root)]).await.unwrap();
    let hex = world.gateway.ask(&["root", "--fingerprint"]).await.unwrap();
    bert.ask(&["trust", hex.trim()]).await.unwrap();
    refused(anna, &["trust", &stranger], "another root").await;

    refused(bert, &told, "not for this installer").await;
    let nobody = ["extend", text(paper), "--gateway", "127.0.0.1:9"];
    refused(anna, &nobody, "was not reached").await;
    refused(anna, &told, "installers add").await;
    let add = ["installers", "add", text(anna_key), "--name", "anna"];
    world.gateway.ask(&add).await.unwrap();
    let took = anna.command(&found, "").await.unwrap();
    assert!(took.err.contains("searching the LAN"), "{}", took.err);
    // Worlds of other tests on this machine announce their gateways on the same loopback.
    let took = match took.err.contains("more than one gateway") {
        true => anna.ask(&told).await.unwrap(),
        false => took.success("extend").unwrap(),
    };
    assert!(took.contains("took the voucher"), "{took}");
    let again = anna.ask(&told).await.unwrap();
    assert!(again.contains("already"), "{again}");
    let other = world.folder().join("other.ov");
    let elsewhere = [
        "extend",
        text(paper),
        "--to",
        text(anna_key),
        "--out",
        text(&other),
    ];
    refused(anna, &elsewhere, "two owners").await;
}

/// The machine is lost with its disk; a fresh one takes its name, and the old one, back from its disk, is out.
async fn lost_gateway(world: &mut World, devices: &[&Part], ids: &[&str]) {
    world.gateway.stop().await.unwrap();
    let replace = ["gateways", "replace", "--site", SITE, "--gateway", GATEWAY];
    let token = world.cloud.ask(&replace).await.unwrap();
    let (disk, lost) = (world.gateway.state.clone(), world.folder().join("lost"));
    std::fs::rename(&disk, &lost).unwrap();
    let enrolled = world.enrol_with(token.trim()).await.unwrap();
    enrolled.success("enrol").unwrap();
    world.start_gateway().await.unwrap();
    for id in ids {
        let proved = |row: &Value| row["standing"] == "proved";
        device(&world.gateway, id, "back in the fresh registry", proved).await;
    }
    // With no cloud to lean on the fresh machine carries all three.
    world.uplink.set(Mode::Silent).unwrap();
    for part in devices.iter().copied().chain([&world.agent]) {
        works(part).await;
    }
    world.uplink.set(Mode::Open).unwrap();
    // The old disk once more, while the fresh machine rests.
    world.gateway.stop().await.unwrap();
    let fresh = world.folder().join("fresh");
    std::fs::rename(&disk, &fresh).unwrap();
    std::fs::rename(&lost, &disk).unwrap();
    world.start_gateway().await.unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let status = world.gateway.status().await.unwrap();
        if status["locked_out"]
            .as_str()
            .is_some_and(|why| why.contains("was replaced"))
        {
            assert_ne!(
                status["mode"], "online",
                "its bridge is refused too: {status}"
            );
            break;
        }
        assert!(Instant::now() < end, "not locked out: {status}");
        sleep(Duration::from_millis(100)).await;
    }
    let unlock = ["gateways", "unlock", "--site", SITE, "--gateway", GATEWAY];
    refused(&world.cloud, &unlock, "was replaced").await;
    world.gateway.stop().await.unwrap();
    std::fs::rename(&disk, &lost).unwrap();
    std::fs::rename(&fresh, &disk).unwrap();
    world.start_gateway().await.unwrap();
    // Devices that found the cloud meanwhile need not hurry back by themselves.
    world.uplink.set(Mode::Silent).unwrap();
    for part in devices.iter().copied().chain([&world.agent]) {
        works(part).await;
    }
    world.uplink.set(Mode::Open).unwrap();
}
