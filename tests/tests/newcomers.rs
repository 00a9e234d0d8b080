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
    world.agent.works().await.unwrap();
    let mut b = world.another_device("device-b").unwrap();
    let mut c = world.another_device("device-c").unwrap();
    let (anna, anna_key) = world.installer("anna").await.unwrap();
    let (bert, _) = world.installer("bert").await.unwrap();

    // In normal times: B goes to the installer's key, C to the cloud.
    let b_id = world.make(&b, "B-0001").await.unwrap();
    let paper = world.sell(&b_id, &anna_key, "b.ov").await.unwrap();
    let twice = world.sell(&b_id, &anna_key, "b.ov").await.unwrap_err();
    assert!(twice.to_string().contains("exists already"), "{twice:#}");
    let c_id = world.make(&c, "C-0001").await.unwrap();
    let assign = ["vouchers", "assign", &c_id, "--site", SITE];
    world.cloud.ask(&assign).await.unwrap();
    let known = world
        .gateway
        .wait_device(&c_id, "C is known at the gateway", |_| true);
    known.await.unwrap();

    // The outage.
    world.uplink.set(Mode::Silent).unwrap();
    b_comes(&world, &anna, &anna_key, &bert, &paper).await;
    for (part, id) in [(&mut b, &b_id), (&mut c, &c_id)] {
        part.start(None).await.unwrap();
        let onboarded = |row: &Value| row["onboarded"] == true;
        let row = world
            .gateway
            .wait_device(id, "onboarded in the outage", onboarded)
            .await
            .unwrap();
        assert_eq!(
            (&row["standing"], &row["server"]),
            (&"proved".into(), &GATEWAY.into())
        );
        part.works().await.unwrap();
    }

    // The uplink returns: the cloud believes the evidence.
    world.uplink.set(Mode::Open).unwrap();
    for id in [&b_id, &c_id] {
        let proved = |row: &Value| row["standing"] == "proved";
        world
            .cloud
            .wait_device(id, "proved at the cloud", proved)
            .await
            .unwrap();
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
    anna.refuses(&told, "no root certificate is trusted")
        .await
        .unwrap();
    let stranger = "ab".repeat(32);
    let strange = [&told[..], &["--root", &stranger]].concat();
    anna.refuses(&strange, "cannot prove to be a gateway")
        .await
        .unwrap();
    world.trust_root(anna).await.unwrap();
    let hex = world.gateway.ask(&["root", "--fingerprint"]).await.unwrap();
    bert.ask(&["trust", hex.trim()]).await.unwrap();
    anna.refuses(&["trust", &stranger], "another root")
        .await
        .unwrap();

    bert.refuses(&told, "not for this installer").await.unwrap();
    let nobody = ["extend", text(paper), "--gateway", "127.0.0.1:9"];
    anna.refuses(&nobody, "was not reached").await.unwrap();
    anna.refuses(&told, "installers add").await.unwrap();
    let add = ["installers", "add", text(anna_key), "--name", "anna"];
    world.gateway.ask(&add).await.unwrap();
    let took = world.hand_in(anna, paper).await.unwrap();
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
    anna.refuses(&elsewhere, "two owners").await.unwrap();
}

/// The machine is lost with its disk; a fresh one takes its name, and the old one, back from its disk, is out.
async fn lost_gateway(world: &mut World, devices: &[&Part], ids: &[&str]) {
    let mut lost = world.lose_gateway().await.unwrap();
    world.replace_gateway().await.unwrap();
    for id in ids {
        let proved = |row: &Value| row["standing"] == "proved";
        let back = world
            .gateway
            .wait_device(id, "back in the fresh registry", proved);
        back.await.unwrap();
    }
    // With no cloud to lean on the fresh machine carries all three.
    world.uplink.set(Mode::Silent).unwrap();
    for part in devices.iter().copied().chain([&world.agent]) {
        part.works().await.unwrap();
    }
    world.uplink.set(Mode::Open).unwrap();
    // The old disk once more, in another machine.
    lost.start(None).await.unwrap();
    let out = |status: &Value| {
        let why = status["locked_out"].as_str();
        why.is_some_and(|why| why.contains("was replaced"))
    };
    let status = lost.wait_status("the old gateway is locked out", out).await;
    assert_ne!(
        status.unwrap()["mode"],
        "online",
        "its bridge is refused too"
    );
    let unlock = ["gateways", "unlock", "--site", SITE, "--gateway", GATEWAY];
    world.cloud.refuses(&unlock, "was replaced").await.unwrap();
    // Devices that found the cloud meanwhile need not hurry back by themselves.
    world.uplink.set(Mode::Silent).unwrap();
    for part in devices.iter().copied().chain([&world.agent]) {
        part.works().await.unwrap();
    }
    world.uplink.set(Mode::Open).unwrap();
    lost.stop().await.unwrap();
}
