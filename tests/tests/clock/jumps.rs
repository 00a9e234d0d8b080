//! Row C8: the wall clock jumps by days while clients are connected, and the broker is started again in between.

use std::time::Duration;

use holdfast_tests::world::{Hands, Plan, Server, fetch};
use tokio::time::{Instant, sleep};

use super::kit::*;

const DEVICES: usize = 8;
const TOPIC: &str = "x/kept";
const EXPIRY: u64 = 3600;

#[tokio::test]
async fn a_jumping_wall_clock_cuts_nobody_and_expires_nothing() {
    let Some(mut turned) = turned("C8", &Plan::apart(), Hands::Wall).await else {
        return;
    };
    let mut devices = turned.devices(DEVICES).await;
    start(&mut devices).await;
    all_work(&devices, PATIENCE * 2).await;
    turned.has_quality("authenticated").await;
    let identity = turned
        .world
        .admit(Server::Gateway, "panel", &[TOPIC], &[TOPIC])
        .await
        .unwrap();
    // A session that is away, and a message for it that lives for an hour.
    let session = ["-i", "panel", "-t", TOPIC, "-x", "86400", "-c"];
    let away = [&session[..], &["-E"]].concat();
    assert_eq!(listen(&turned.world, &identity, &away).await.code, Some(0));
    let expiry = EXPIRY.to_string();
    let sent = Instant::now();
    let writer = turned
        .world
        .admit(Server::Gateway, "writer", &[TOPIC], &[])
        .await
        .unwrap();
    let words = [
        "-i",
        "writer",
        "-t",
        TOPIC,
        "-m",
        "one",
        "-D",
        "publish",
        "message-expiry-interval",
        &expiry,
    ];
    let done = publish(&turned.world, &writer, &words).await;
    assert_eq!(done.code, Some(0), "{}", done.err);

    let before = connects(&turned).await;
    for jump in ["+1d", "-1d", "@1970-01-01 00:10:00", "+400d"] {
        turned.gateway.turn(jump).unwrap();
        turned.device.turn(jump).unwrap();
        // Longer than the pings that watch every connection.
        sleep(Duration::from_secs(4)).await;
        all_work(&devices, PATIENCE).await;
    }
    assert_eq!(connects(&turned).await, before, "nobody was cut");

    turned.world.gateway.stop().await.unwrap();
    turned.gateway.turn("+1d").unwrap();
    turned.world.start_gateway().await.unwrap();
    let back = [&session[..], &["-C", "1", "-W", "10", "-F", "%E %p"]].concat();
    let got = listen(&turned.world, &identity, &back).await;
    let (left, payload) = got.out.trim().split_once(' ').unwrap();
    assert_eq!(payload, "one", "{}", got.err);
    let (left, age): (u64, u64) = (left.parse().unwrap(), sent.elapsed().as_secs());
    assert!(
        (EXPIRY - age).abs_diff(left) <= 2,
        "{left} s left after {age} s"
    );
    all_work_somewhere(&devices, PATIENCE).await;
    stop(&mut devices).await;
    turned.world.stop().await.unwrap();
}

/// Connections of devices so far: of those that stand now, each counts once.
async fn connects(turned: &Turned) -> String {
    let page = fetch(turned.world.gateway_doors.metrics, "/metrics")
        .await
        .unwrap();
    let is_wanted = |line: &&str| line.contains("connections") && !line.starts_with('#');
    page.lines()
        .filter(is_wanted)
        .collect::<Vec<_>>()
        .join("\n")
}
