//! A lost gateway is replaced while everything is killed in the middle, with real binaries: the order at the cloud, the
//! cloud itself, the enrolment, the fresh gateway at its first sync. The story ends right at the next try.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::time::Duration;

use holdfast_tests::proxy::Mode;
use holdfast_tests::world::{GATEWAY, Plan, SITE, World};
use serde_json::Value;
use tokio::time::timeout;

/// After how long the party is killed, milliseconds: from before it has done anything to after.
const MOMENTS: [u64; 5] = [2, 15, 40, 90, 200];

/// Slow enough that the weather lasts to the end.
fn plan() -> Plan {
    Plan {
        pace: Duration::from_millis(150),
        ..Plan::apart()
    }
}

const REPLACE: [&str; 6] = ["gateways", "replace", "--site", SITE, "--gateway", GATEWAY];

/// `kill -9`, and the cloud starts again from what its disk holds.
async fn cloud_anew(world: &mut World) {
    world.cloud.process().unwrap().kill_nine().await.unwrap();
    world.cloud.stop().await.unwrap();
    world.start_cloud().await.unwrap();
    // The socket that the killed one left says nothing.
    world.cloud.wait_status("answers", |_| true).await.unwrap();
}

#[tokio::test]
async fn killed_in_the_middle_a_replacement_ends_right_at_the_next_try() {
    let mut world = World::new(&plan()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let a = world.manufacture("A-0001").await.unwrap();
    world.start_agent().await.unwrap();
    world.agent.works().await.unwrap();
    let (_, key) = world.installer("anna").await.unwrap();
    let add = ["installers", "add", key.to_str().unwrap(), "--name", "anna"];
    world.gateway.ask(&add).await.unwrap();
    let there = ["installers", "list", "--site", SITE, "--json"];
    let anna = |rows: &Value| rows[0]["name"] == "anna";
    world
        .cloud
        .wait_json(&there, "anna is known to the cloud", anna)
        .await
        .unwrap();
    let mut lost = world.lose_gateway().await.unwrap();

    // The operator's command is killed, then the cloud right behind it.
    let mut answered = 0;
    for moment in MOMENTS {
        let ordered = timeout(
            Duration::from_millis(moment),
            world.cloud.command(&REPLACE, ""),
        );
        answered += usize::from(ordered.await.is_ok());
        cloud_anew(&mut world).await;
    }
    let token = world.cloud.ask(&REPLACE).await.unwrap();
    eprintln!("{answered} of {} orders were answered", MOMENTS.len());

    // The enrolment is killed on the gateway's side, and the cloud too: always the same token.
    for moment in MOMENTS {
        // Dropped, so killed.
        let _ = timeout(
            Duration::from_millis(moment),
            world.enrol_with(token.trim()),
        )
        .await;
        if moment == MOMENTS[2] {
            cloud_anew(&mut world).await;
        }
        let enrolled = world.gateway.state.join("keys/cloud.json");
        let _ = std::fs::remove_file(enrolled);
    }
    let enrolled = world.enrol_with(token.trim()).await.unwrap();
    enrolled.success("enrol").unwrap();
    let gateways = world
        .cloud
        .ask_json(&["gateways", "list", "--json"])
        .await
        .unwrap();
    let row = &gateways[0];
    assert_eq!(
        (&row["gateway"], &row["epoch"]),
        (&GATEWAY.into(), &2.into()),
        "{gateways}"
    );

    // The fresh gateway is killed while it takes its site over.
    for moment in MOMENTS {
        world.start_gateway().await.unwrap();
        tokio::time::sleep(Duration::from_millis(moment)).await;
        world.gateway.process().unwrap().kill_nine().await.unwrap();
        world.gateway.stop().await.unwrap();
    }
    world.start_gateway().await.unwrap();
    let proved = |row: &Value| row["standing"] == "proved" && row["contested"] == false;
    let back = world.gateway.wait_device(&a, "A is back", proved).await;
    back.unwrap_or_else(|error| panic!("{error:#}\n{}", world.log_ends()));
    let here = ["installers", "list", "--json"];
    world
        .gateway
        .wait_json(&here, "the roster is back", anna)
        .await
        .unwrap();
    // The device found the cloud meanwhile, and need not hurry back by itself.
    world.uplink.set(Mode::Silent).unwrap();
    world.agent.works().await.unwrap();
    world.uplink.set(Mode::Open).unwrap();

    // The old disk once more: out, and it says what to do.
    lost.start(None).await.unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    while !lost.logged().contains("was replaced") {
        assert!(tokio::time::Instant::now() < end, "{}", lost.log_end());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    lost.stop().await.unwrap();
    world.stop().await.unwrap();
}

/// Device and gateway are killed in turns while the device onboards: in the end it works, is proved at both, and nobody
/// contests it.
#[tokio::test]
async fn killed_in_the_middle_of_its_onboarding_a_device_is_settled_at_the_end() {
    let mut world = World::new(&plan()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let a = world.manufacture("A-0001").await.unwrap();
    let known = |_: &Value| true;
    world
        .gateway
        .wait_device(&a, "A is known", known)
        .await
        .unwrap();
    for moment in MOMENTS {
        world.start_agent().await.unwrap();
        tokio::time::sleep(Duration::from_millis(3 * moment)).await;
        world.agent.process().unwrap().kill_nine().await.unwrap();
        world.agent.stop().await.unwrap();
    }
    for moment in MOMENTS {
        world.start_agent().await.unwrap();
        tokio::time::sleep(Duration::from_millis(3 * moment)).await;
        cloud_anew(&mut world).await;
        world.agent.process().unwrap().kill_nine().await.unwrap();
        world.agent.stop().await.unwrap();
    }
    world.start_agent().await.unwrap();
    let settled = |row: &Value| row["standing"] == "proved" && row["contested"] == false;
    for part in [&world.cloud, &world.gateway] {
        part.wait_device(&a, "settled", settled).await.unwrap();
    }
    world.agent.works().await.unwrap();
    for part in [&world.cloud, &world.gateway] {
        part.wait_device(&a, "still settled", settled)
            .await
            .unwrap();
    }
    world.stop().await.unwrap();
}
