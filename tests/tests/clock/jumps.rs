//! Row C8: the wall clock jumps by days while a hundred clients and some devices are connected and messages flow, and the
//! broker is started again in between.

use std::time::Duration;

use holdfast_link::mqtt::{Outcome, Publish, connect};
use holdfast_tests::world::{Hands, Plan, Server, fetch};
use tokio::time::{Instant, sleep};

use super::crowd::{CLIENTS, Crowd, options};
use super::kit::*;

const DEVICES: usize = 3;
const TOPIC: &str = "x/kept";
const EXPIRY: u64 = 3600;
/// Row C8 says a day; the rest is worse.
const JUMPS: [&str; 4] = ["+1d", "-1d", "@1970-01-01 00:10:00", "+400d"];
/// Longer than one and a half keep-alives of a client, and than the pings of the devices.
const WATCHED: Duration = Duration::from_millis(3_500);
/// Messages stored before each jump.
const STORED: usize = 20;
/// What a clock that is asked in whole seconds may be off by (row C8).
const OFF: u64 = 2;

#[tokio::test]
async fn a_jumping_wall_clock_cuts_nobody_and_expires_nothing() {
    let Some(mut turned) = turned("C8", &Plan::apart(), Hands::Wall).await else {
        return;
    };
    let mut devices = turned.devices(DEVICES).await;
    start(&mut devices).await;
    all_work(&devices, PATIENCE * 2).await;
    turned.has_quality("authenticated").await;
    let crowd = Crowd::admitted(&turned.world).await;
    let connected = crowd.connect().await;
    let mut away = Away::new(&turned).await;

    let before = connects(&turned).await;
    for jump in JUMPS {
        away.store(STORED).await;
        turned.gateway.turn(jump).unwrap();
        turned.device.turn(jump).unwrap();
        sleep(WATCHED).await;
        all_work(&devices, PATIENCE).await;
        connected.all_hear().await;
    }
    assert_eq!(connected.cut(), [], "nobody was cut");
    assert_eq!(connects(&turned).await, before, "nobody was cut");

    turned.world.gateway.stop().await.unwrap();
    assert_eq!(connected.cut().len(), CLIENTS, "the control: a cut is seen");
    drop(connected);
    turned.gateway.turn("+1d").unwrap();
    turned.world.start_gateway().await.unwrap();
    away.comes_back(&turned, STORED * JUMPS.len()).await;
    crowd.connect().await.gone().await;
    all_work_somewhere(&devices, PATIENCE).await;
    stop(&mut devices).await;
    turned.world.stop().await.unwrap();
}

/// A session that is away, and what is stored for it.
struct Away {
    identity: std::path::PathBuf,
    writer: holdfast_link::mqtt::Options,
    sent: Vec<Instant>,
}

const SESSION: [&str; 7] = ["-i", "panel", "-t", TOPIC, "-x", "86400", "-c"];

impl Away {
    async fn new(turned: &Turned) -> Self {
        let world = &turned.world;
        let admit =
            |name, publish, subscribe| world.admit(Server::Gateway, name, publish, subscribe);
        let identity = admit("panel", &[TOPIC], &[TOPIC]).await.unwrap();
        let away = [&SESSION[..], &["-E"]].concat();
        assert_eq!(listen(world, &identity, &away).await.code, Some(0));
        let writer = admit("writer", &[TOPIC], &[]).await.unwrap();
        Self {
            identity,
            writer: options(world, "writer", &writer),
            sent: Vec::new(),
        }
    }

    /// So many messages that live for an hour.
    async fn store(&mut self, count: usize) {
        let (client, _inbox, _) = connect(self.writer.clone()).await.unwrap();
        // The control: what lives shorter does not come.
        let short = Publish {
            expiry: Some(Duration::from_secs(1)),
            ..Publish::new(TOPIC, "short")
        };
        client.publish_and_wait(short).await.unwrap();
        for _ in 0..count {
            let message = Publish {
                expiry: Some(Duration::from_secs(EXPIRY)),
                ..Publish::new(TOPIC, self.sent.len().to_string())
            };
            let done = client.publish_and_wait(message).await.unwrap();
            assert!(matches!(done, Outcome::Acknowledged(_)), "{done:?}");
            self.sent.push(Instant::now());
        }
        client.disconnect().await;
    }

    /// All come, each with what is left of its hour.
    async fn comes_back(&self, turned: &Turned, count: usize) {
        let wanted = count.to_string();
        let back = [&SESSION[..], &["-C", &wanted, "-W", "10", "-F", "%E %p"]].concat();
        let got = listen(&turned.world, &self.identity, &back).await;
        let lines: Vec<&str> = got.out.lines().collect();
        assert_eq!(lines.len(), count, "{}", got.err);
        for (n, line) in lines.iter().enumerate() {
            let (left, payload) = line.split_once(' ').unwrap();
            assert_eq!(payload, n.to_string(), "in order, each once");
            let (left, age): (u64, u64) = (left.parse().unwrap(), self.sent[n].elapsed().as_secs());
            let off = (EXPIRY - age).abs_diff(left);
            assert!(off <= OFF, "message {n}: {left} s left after {age} s");
        }
    }
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
