//! During an outage the operator moves a device from service to service at the gateway: real binaries, real links. Forged
//! and replayed notices move nothing, `kill -9` in the middle of a change does not spoil it, and who is away hears of it.
#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::time::Duration;

use holdfast_tests::process::wait_until;
use holdfast_tests::proxy::Mode;
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::stock::StockClient;
use holdfast_tests::weather;
use holdfast_tests::world::{Plan, SITE, Server, World};
use serde_json::Value;
use tokio::time::sleep;

/// For a command to arrive.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kills of the agent in the middle of a change.
const KILLS: u64 = 8;
/// Kills of the gateway in the middle of a change.
const GATEWAY_KILLS: u64 = 4;

#[tokio::test]
async fn a_device_changes_its_service_in_an_outage() {
    if !has_program("mosquitto_pub") || !has_program("mosquitto_sub") {
        return skip("service_change", "mosquitto-clients is not installed");
    }
    let mut story = Story::begin().await;
    story.the_device_is_moved().await;
    story.it_takes_the_service().await;
    story.forged_and_replayed_notices_move_nothing().await;
    story.a_device_that_is_away_hears_of_it().await;
    story.killed_in_the_middle_it_ends_right().await;
    story.the_use_ends_in_good_order().await;
    story.world.stop().await.unwrap();
}

struct Story {
    world: World,
    device: String,
    /// A client that may publish on the device's notice topic: the broker lets it.
    client: StockClient,
}

impl Story {
    async fn begin() -> Self {
        let mut world = World::new(&Plan::apart()).await.unwrap();
        // A second sensor measures for whatever service the device works for.
        let config = std::fs::read_to_string(&world.agent.config).unwrap();
        let sensor = format!(
            "{config}[[publish]]\nname = \"light\"\ncsv = {:?}\ninterval = \"40ms\"\nto = \"service\"\n",
            weather::file(),
        );
        std::fs::write(&world.agent.config, sensor).unwrap();
        world.start_cloud().await.unwrap();
        world.enrol().await.unwrap();
        world.start_gateway().await.unwrap();
        let device = world.manufacture("thermometer-1").await.unwrap();
        world.start_agent().await.unwrap();
        let topics = format!("hf/v1/{SITE}/+/service/#");
        let telemetry = format!("svc/v1/{SITE}/#");
        let down = format!("hf/v1/{SITE}/+/down/#");
        let filters = [topics.as_str(), telemetry.as_str(), down.as_str()];
        let client = world.admit(Server::Gateway, "forger", &filters, &filters);
        let client = StockClient {
            seat: world.seat_near(Server::Gateway).unwrap(),
            broker: world.gateway_doors.mqtt,
            identity: client.await.unwrap(),
            client: "forger".to_owned(),
        };
        let story = Self {
            world,
            device,
            client,
        };
        story
            .agent_says("connected", |status| status["role"] == "gateway")
            .await;
        // The device came by the cloud: its record must be here before the link is cut.
        let onboarded = |row: &Value| row["onboarded"] == true;
        let known = story
            .world
            .gateway
            .wait_device(&story.device, "its record", onboarded);
        known.await.unwrap();
        story.world.uplink.set(Mode::Silent).unwrap();
        story
    }

    async fn agent_says(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let told = self.world.agent.wait_status(what, is_so).await;
        told.unwrap_or_else(|error| panic!("{error:#}\n{}", self.world.log_ends()))
    }

    async fn order(&self, service: &str) {
        self.world.order(&self.device, service).await.unwrap();
    }

    async fn runs(&self, service: &str) {
        let told = self.world.agent.runs(service).await;
        told.unwrap_or_else(|error| panic!("{error:#}\n{}", self.world.log_ends()));
    }

    async fn history(&self) -> Vec<Value> {
        self.world.history(&self.device).await.unwrap()
    }

    async fn the_device_is_moved(&self) {
        self.order("civil").await;
        self.runs("civil").await;
        self.order("weather").await;
        self.runs("weather").await;
        let history = self.history().await;
        let lines: Vec<_> = history
            .iter()
            .map(|line| (line["service"].as_str().unwrap(), line["until"].is_object()))
            .collect();
        assert_eq!(lines, [("civil", true), ("weather", false)]);
        assert_eq!(history[0]["until"], history[1]["from"]);
        // What runs is told on the topic, retained.
        let reported = self.retained("reported").await;
        let report: Value = serde_json::from_slice(&reported).unwrap();
        assert_eq!(report["state"], "runs");
        assert_eq!(report["serial"], history[1]["serials"][0]);
        let words = ["services", "history", &self.device];
        let table = self.world.gateway.ask(&words).await.unwrap();
        assert!(
            table.contains("civil") && table.contains("weather"),
            "{table}"
        );
        let bad = [
            "services",
            "change",
            &self.device,
            "--service",
            "Not a service",
        ];
        let refused = self.world.gateway.command(&bad, "").await.unwrap();
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert!(refused.err.contains("service id"), "{refused:?}");
        let nobody = ["services", "change", &"0".repeat(32), "--service", "civil"];
        let refused = self.world.gateway.command(&nobody, "").await.unwrap();
        assert_eq!(refused.code, Some(64), "{refused:?}");
        assert!(refused.err.contains("not onboarded"), "{refused:?}");
    }

    /// The new service's topic carries readings, and commands reach the journal: all of it at the gateway, in place of a
    /// server that the cut link hides.
    async fn it_takes_the_service(&self) {
        let link = |status: &Value| {
            let link = &status["service_link"];
            link["service"] == "weather" && link["role"] == "gateway"
        };
        self.agent_says("the gateway serves it", link).await;
        let telemetry =
            |service: &str| format!("svc/v1/{SITE}/{service}/{}/telemetry", self.device);
        let heard = self.client.retained(&telemetry("weather")).await.unwrap();
        let reading: Value = serde_json::from_slice(&heard).unwrap();
        assert!(reading.is_object(), "{reading}");
        let taken = |status: &Value| status["service_acknowledged"].as_u64() > Some(3);
        self.agent_says("its readings are taken over", taken).await;
        let command = format!("svc/v1/{SITE}/weather/{}/command", self.device);
        let down = format!("hf/v1/{SITE}/{}/down/valve", self.device);
        for (topic, text) in [(command, "brighter"), (down, "shut")] {
            self.client.publish(&topic, text.as_bytes()).await.unwrap();
        }
        let journal = self.world.agent.state.join("commands.jsonl");
        let kept = || std::fs::read_to_string(&journal).unwrap_or_default();
        wait_until("both commands are kept", PATIENCE, || {
            kept().lines().count() == 2
        })
        .await
        .unwrap();
        let kept = kept();
        assert!(kept.contains("brighter") && kept.contains("shut"), "{kept}");
    }

    async fn forged_and_replayed_notices_move_nothing(&self) {
        let old = self.retained("desired").await;
        self.order("soil").await;
        self.runs("soil").await;
        let mut forged = old.clone();
        *forged.last_mut().unwrap() ^= 1;
        let before = self.world.agent.status().await.unwrap();
        let before = before["notices_refused"].as_u64().unwrap();
        for (at, payload) in [&old, &forged, &b"go".to_vec()].into_iter().enumerate() {
            self.publish("desired", payload).await;
            let refused = before + at as u64 + 1;
            self.agent_says("counted", |status| status["notices_refused"] == refused)
                .await;
        }
        self.runs("soil").await;
        assert_eq!(self.history().await.len(), 3);
        assert!(self.world.agent.logged().contains("replayed"));
    }

    async fn a_device_that_is_away_hears_of_it(&mut self) {
        self.world.agent.stop().await.unwrap();
        self.order("civil").await;
        self.order("weather").await;
        // The gateway too may go meanwhile.
        self.world
            .gateway
            .process()
            .unwrap()
            .kill_nine()
            .await
            .unwrap();
        self.world.start_gateway().await.unwrap();
        self.world.start_agent().await.unwrap();
        self.runs("weather").await;
        let history = self.history().await;
        let services: Vec<_> = history
            .iter()
            .map(|line| line["service"].as_str())
            .collect();
        // What was ordered and replaced while it was away never ran.
        let expected = ["civil", "weather", "soil", "weather"].map(Some);
        assert_eq!(services, expected);
    }

    async fn killed_in_the_middle_it_ends_right(&mut self) {
        for n in 0..KILLS {
            let service = format!("service-{n}");
            self.order(&service).await;
            sleep(Duration::from_millis(n * 12)).await;
            self.world
                .agent
                .process()
                .unwrap()
                .kill_nine()
                .await
                .unwrap();
            self.world.start_agent().await.unwrap();
            self.runs(&service).await;
        }
        for n in 0..GATEWAY_KILLS {
            let service = format!("served-{n}");
            self.order(&service).await;
            sleep(Duration::from_millis(n * 25)).await;
            let gateway = self.world.gateway.process().unwrap();
            gateway.kill_nine().await.unwrap();
            self.world.start_gateway().await.unwrap();
            self.runs(&service).await;
        }
        let history = self.history().await;
        assert_eq!(history.len() as u64, 4 + KILLS + GATEWAY_KILLS);
        let open = history.iter().filter(|line| line["until"].is_null());
        assert_eq!(open.count(), 1, "one service runs");
    }

    /// `services end`: the device drops its keys and says so; the history is closed, here as an outage goes on.
    async fn the_use_ends_in_good_order(&self) {
        for _ in 0..2 {
            let end = ["services", "end", &self.device];
            self.world.gateway.ask(&end).await.unwrap();
        }
        let ended = |status: &Value| {
            status["service_state"] == "ended"
                && status["service"].is_null()
                && status["service_link"]["service"].is_null()
        };
        self.agent_says("the use has ended", ended).await;
        let closed = wait_for_history(&self.world, &self.device).await;
        assert_eq!(closed.len() as u64, 4 + KILLS + GATEWAY_KILLS);
        let reported: Value = serde_json::from_slice(&self.retained("reported").await).unwrap();
        assert_eq!(
            (&reported["state"], &reported["in_use"]),
            (&"ended".into(), &false.into())
        );
    }

    fn topic(&self, last: &str) -> String {
        format!("hf/v1/{SITE}/{}/service/{last}", self.device)
    }

    async fn retained(&self, last: &str) -> Vec<u8> {
        self.client.retained(&self.topic(last)).await.unwrap()
    }

    async fn publish(&self, last: &str, payload: &[u8]) {
        self.client
            .publish(&self.topic(last), payload)
            .await
            .unwrap();
    }
}

/// The history, once nothing in it is open.
async fn wait_for_history(world: &World, device: &str) -> Vec<Value> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let history = world.history(device).await.unwrap();
        if history.iter().all(|line| line["until"].is_object()) {
            return history;
        }
        assert!(tokio::time::Instant::now() < end, "still open: {history:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
