//! Services are ordered at either console, with real binaries: an order at the cloud reaches the device through its site's
//! gateway; in an outage it waits and says so; of two orders the later one holds, and both consoles tell one history.
#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use holdfast_tests::proxy::Mode;
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::stock::StockClient;
use holdfast_tests::world::{Plan, SITE, Server, World};
use serde_json::Value;

struct Story {
    world: World,
    device: String,
}

#[tokio::test]
async fn orders_of_both_consoles_reach_the_device() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let device = world.manufacture("thermometer-1").await.unwrap();
    world.start_agent().await.unwrap();
    let story = Story { world, device };
    let known = |row: &Value| row["onboarded"] == true;
    let gateway = &story.world.gateway;
    gateway
        .wait_device(&story.device, "known at the site", known)
        .await
        .unwrap();
    story.online().await;
    story.in_an_outage().await;
    story.one_history().await;
    story.misuse().await;
    story.each_server_tells_of_the_other().await;
    story.ended_at_the_cloud().await;
    let mut world = story.world;
    world.stop().await.unwrap();
}

impl Story {
    async fn order_at_cloud(&self, service: &str) -> String {
        let words = ["services", "change", &self.device, "--service", service];
        self.world.cloud.ask(&words).await.unwrap()
    }

    async fn runs(&self, service: &str) {
        let runs =
            |status: &Value| status["service"] == service && status["service_state"] == "runs";
        let what = format!("{service} runs");
        self.world.agent.wait_status(&what, runs).await.unwrap();
    }

    async fn online(&self) {
        let said = self.order_at_cloud("civil").await;
        assert!(
            said.contains("gateway gw1 takes the order within seconds"),
            "{said}"
        );
        self.runs("civil").await;
        let has =
            |view: &Value| view["gateways"][0]["has_it"] == true && view["running"] == "civil";
        let words = ["services", "history", &self.device, "--json"];
        self.world
            .cloud
            .wait_json(&words, "the cloud knows", has)
            .await
            .unwrap();
        let words = ["services", "history", &self.device];
        let table = self.world.cloud.ask(&words).await.unwrap();
        assert!(
            table.contains("civil") && !table.contains("waits"),
            "{table}"
        );
    }

    async fn in_an_outage(&self) {
        self.world.uplink.set(Mode::Silent).unwrap();
        let down = |status: &Value| status["mode"] == "outage";
        self.world
            .gateway
            .wait_status("an outage", down)
            .await
            .unwrap();
        // The later of the two orders holds, given while neither console hears of the other.
        let words = ["services", "change", &self.device, "--service", "soil"];
        self.world.gateway.ask(&words).await.unwrap();
        self.runs("soil").await;
        let waits = |said: &str| said.contains("the order waits") && said.contains("gw1");
        let words = ["services", "history", &self.device];
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(40);
        let said = self.order_at_cloud("weather").await;
        assert!(said.contains("gw1"), "{said}");
        while !waits(&self.world.cloud.ask(&words).await.unwrap()) {
            assert!(
                tokio::time::Instant::now() < end,
                "the order does not say that it waits"
            );
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        // The agent hears nothing of it yet.
        self.runs("soil").await;
        self.world.uplink.set(Mode::Open).unwrap();
        let back = |status: &Value| status["mode"] == "online";
        self.world
            .gateway
            .wait_status("online", back)
            .await
            .unwrap();
    }

    /// Both consoles come to the same order and the same history.
    async fn one_history(&self) {
        let words = ["services", "history", &self.device, "--json"];
        let settled =
            |view: &Value| view["desired"] == view["running"] && view["desired"].is_string();
        let mut told: Vec<Value> = Vec::new();
        for part in [&self.world.gateway, &self.world.cloud] {
            let both = |view: &Value| {
                settled(view) && view["history"].as_array().is_some_and(|it| it.len() >= 2)
            };
            told.push(part.wait_json(&words, "one service", both).await.unwrap());
        }
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(40);
        while told[0]["history"] != told[1]["history"] || told[0]["desired"] != told[1]["desired"] {
            assert!(tokio::time::Instant::now() < end, "{told:#?}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            told[0] = self.world.gateway.ask_json(&words).await.unwrap();
            told[1] = self.world.cloud.ask_json(&words).await.unwrap();
        }
        let service = told[0]["running"].as_str().unwrap().to_owned();
        assert!(["soil", "weather"].contains(&service.as_str()), "{told:#?}");
        self.runs(&service).await;
        // A new order at the cloud goes its way.
        self.order_at_cloud("light").await;
        self.runs("light").await;
    }

    /// The retained notices, as a stock client sees them.
    async fn each_server_tells_of_the_other(&self) {
        if !has_program("mosquitto_sub") {
            return skip("both_consoles", "mosquitto-clients is not installed");
        }
        let topic = format!("hf/v1/{SITE}/{}/alternate", self.device);
        for (server, name) in [
            (Server::Gateway, "cloud.servers."),
            (Server::Cloud, "gw1.gateways."),
        ] {
            let client = format!("observer-{}", name.split('.').next().unwrap());
            let identity = self
                .world
                .admit(server, &client, &[], &[&topic])
                .await
                .unwrap();
            let observer = StockClient {
                seat: self.world.seat_near(server).unwrap(),
                broker: match server {
                    Server::Gateway => self.world.gateway_doors.mqtt,
                    Server::Cloud => self.world.cloud_doors.mqtt,
                },
                identity,
                client,
            };
            let notice = observer.retained(&topic).await.unwrap();
            let says = notice
                .windows(name.len())
                .any(|part| part == name.as_bytes());
            assert!(says, "{name}: {}", String::from_utf8_lossy(&notice));
        }
    }

    /// The end of use goes the same way as an order, and both histories get it.
    async fn ended_at_the_cloud(&self) {
        let words = ["services", "end", &self.device];
        let said = self.world.cloud.ask(&words).await.unwrap();
        assert!(said.contains("no service; gateway gw1"), "{said}");
        let ended =
            |status: &Value| status["service"].is_null() && status["service_state"] == "ended";
        self.world.agent.wait_status("ended", ended).await.unwrap();
        let words = ["services", "history", &self.device, "--json"];
        let over = |view: &Value| {
            view["running"].is_null()
                && view["history"]
                    .as_array()
                    .is_some_and(|periods| periods.iter().all(|period| !period["until"].is_null()))
        };
        for part in [&self.world.gateway, &self.world.cloud] {
            part.wait_json(&words, "the end", over).await.unwrap();
        }
        let words = ["services", "history", &self.device];
        let table = self.world.cloud.ask(&words).await.unwrap();
        assert!(!table.contains("ordered"), "{table}");
    }

    async fn misuse(&self) {
        let nobody = "0".repeat(32);
        let words = ["services", "change", &nobody, "--service", "civil"];
        self.world
            .cloud
            .refuses(&words, "not onboarded")
            .await
            .unwrap();
        let words = ["services", "change", &self.device, "--service", "Not One"];
        let refused = self.world.cloud.command(&words, "").await.unwrap();
        assert_eq!(refused.code, Some(64), "{refused:?}");
    }
}
