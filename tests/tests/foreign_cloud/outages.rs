//! Outages of every kind between the gateway and the partner: nothing is lost, order holds.

use holdfast_tests::partner::USER;
use holdfast_tests::proxy::Mode;
use holdfast_tests::skip::{has_program, skip};

use crate::site::Site;
use crate::witness::{Witness, say};

/// Messages of each stretch, on each of two topics.
const STRETCH: u64 = 400;
const TOPICS: [(&str, &str); 2] = [
    ("plant/press/state", "site-7/press/state"),
    ("plant/oven/state", "site-7/oven/state"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_whatever_ends() {
    if !has_program("mosquitto") || !has_program("mosquitto_pub") {
        return skip(
            "foreign_cloud",
            "mosquitto or mosquitto-clients is not installed",
        );
    }
    let mut story = Story::begin().await;
    story.online().await;
    story.cut(Mode::Silent).await;
    story.cut(Mode::Reset).await;
    story.the_partners_broker_is_killed().await;
    story.the_gateway_is_killed_in_mid_backlog().await;
    story.orders_come_in_also_those_of_an_outage().await;
    story
        .a_renewed_certificate_is_taken_without_a_restart()
        .await;
    story.what_it_was_is_told().await;
    for (_, there) in TOPICS {
        let faults = story.witness.faults(there, story.sent);
        assert_eq!(faults, Vec::<String>::new(), "{there}");
    }
    story.site.world.stop().await.unwrap();
}

struct Story {
    site: Site,
    witness: Witness,
    sent: u64,
    /// How often the partner's broker was started.
    starts: usize,
}

impl Story {
    async fn begin() -> Self {
        let mut site = Site::new().await;
        site.until("no broker yet", |it| it["connected"] == false)
            .await;
        site.partner.start().await.unwrap();
        let witness = Witness::of(site.partner.inside);
        Self {
            site,
            witness,
            sent: 0,
            starts: 1,
        }
    }

    async fn publish(&mut self) {
        let range = self.sent + 1..=self.sent + STRETCH;
        let [one, two] = TOPICS.map(|(here, _)| self.site.publish(here, range.clone()));
        tokio::join!(one, two);
        self.sent += STRETCH;
    }

    async fn all_arrive(&self) {
        for (_, there) in TOPICS {
            self.witness.has(there, self.sent).await;
        }
        self.site.until("no backlog", |it| it["waiting"] == 0).await;
    }

    async fn online(&mut self) {
        self.witness.session(1).await;
        self.site
            .until("connected", |it| it["connected"] == true)
            .await;
        self.publish().await;
        self.all_arrive().await;
        // It is ours alone: the Holdfast cloud has none of it.
        let waiting = self.site.standing().await;
        assert_eq!(waiting["version"], "5", "{waiting:#}");
    }

    /// The link is cut in the middle of a stretch.
    async fn cut(&mut self, mode: Mode) {
        let (partner, witness) = (&self.site.partner.link, &self.witness);
        let before = witness.count(TOPICS[0].1);
        let cut = async {
            witness.has(TOPICS[0].1, before + STRETCH / 8).await;
            partner.set(mode);
        };
        let range = self.sent + 1..=self.sent + STRETCH;
        let [one, two] = TOPICS.map(|(here, _)| self.site.publish(here, range.clone()));
        tokio::join!(one, two, cut);
        self.sent += STRETCH;
        // What is written down in an outage waits; the LAN has its acknowledgements all the same.
        self.publish().await;
        let standing = self.site.standing().await;
        assert!(
            standing["waiting"].as_u64() >= Some(STRETCH),
            "{standing:#}"
        );
        self.site.partner.link.set(Mode::Open);
        self.all_arrive().await;
    }

    /// It forgets what it had; what it had acknowledged was seen before.
    async fn the_partners_broker_is_killed(&mut self) {
        let before = self.witness.count(TOPICS[0].1);
        let range = self.sent + 1..=self.sent + STRETCH;
        let (one, two) = (
            self.site.publish(TOPICS[0].0, range.clone()),
            self.site.publish(TOPICS[1].0, range.clone()),
        );
        tokio::join!(
            one,
            two,
            self.witness.has(TOPICS[0].1, before + STRETCH / 8)
        );
        self.site
            .partner
            .link
            .set_delay(std::time::Duration::from_millis(20));
        self.sent += STRETCH;
        self.publish().await;
        self.site.partner.kill_nine().await.unwrap();
        self.site.partner.link.set_delay(std::time::Duration::ZERO);
        self.publish().await;
        self.site
            .until("seen to be gone", |it| it["connected"] == false)
            .await;
        // The gateway must not come before the witness is back.
        self.site.partner.link.set(Mode::Reset);
        self.site.partner.start().await.unwrap();
        self.starts += 1;
        self.witness.session(self.starts).await;
        self.site.partner.link.set(Mode::Open);
        self.all_arrive().await;
    }

    async fn the_gateway_is_killed_in_mid_backlog(&mut self) {
        self.site.partner.link.set(Mode::Reset);
        self.publish().await;
        self.publish().await;
        let before = self.witness.count(TOPICS[0].1);
        // Slow enough for the kill to fall between two windows.
        self.site
            .partner
            .link
            .set_delay(std::time::Duration::from_millis(30));
        self.site.partner.link.set(Mode::Open);
        for round in 1..=2 {
            self.witness.has(TOPICS[0].1, before + 20 * round).await;
            let gateway = self.site.world.gateway.process().unwrap();
            gateway.kill_nine().await.unwrap();
            assert!(
                self.witness.count(TOPICS[0].1) < self.sent,
                "all was over before the kill"
            );
            self.site.world.start_gateway().await.unwrap();
        }
        self.site.partner.link.set_delay(std::time::Duration::ZERO);
        self.all_arrive().await;
    }

    async fn orders_come_in_also_those_of_an_outage(&mut self) {
        self.site.subscribe("ordered/#").await;
        let inside = self.site.partner.inside;
        self.site
            .until("connected", |it| it["connected"] == true)
            .await;
        say(inside, "orders/site-7/lamp", "on").await;
        let heard = self.site.hear("ordered/#", 1).await;
        assert_eq!(heard.out.trim(), "ordered/lamp on", "{heard:?}");
        self.site.partner.link.set(Mode::Silent);
        say(inside, "orders/site-7/lamp", "off").await;
        say(inside, "orders/site-7/fan", "3").await;
        self.site.partner.link.set(Mode::Open);
        let heard = self.site.hear("ordered/#", 2).await;
        let mut lines: Vec<_> = heard.out.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["ordered/fan 3", "ordered/lamp off"], "{heard:?}");
    }

    async fn a_renewed_certificate_is_taken_without_a_restart(&mut self) {
        let before = self.site.standing().await;
        let logins = |site: &Site| {
            site.partner
                .logged()
                .matches("New client connected")
                .count()
        };
        let count = logins(&self.site);
        let partner = &self.site.partner;
        partner
            .authority
            .certify(&partner.folder, "client", &[USER])
            .unwrap();
        self.site
            .until("a new connection", |it| {
                it["connected"] == true
                    && it["since"].as_u64() >= before["since"].as_u64()
                    && logins(&self.site) > count
            })
            .await;
        self.publish().await;
        self.all_arrive().await;
    }

    async fn what_it_was_is_told(&self) {
        let words = ["bridge", "list"];
        let table = self.site.world.gateway.ask(&words).await.unwrap();
        assert!(
            table.contains("partner") && table.contains("cloud"),
            "{table}"
        );
        let page = holdfast_tests::world::fetch(self.site.world.gateway_doors.metrics, "/metrics");
        let page = page.await.unwrap();
        let line = "holdfast_gateway_remote_up{remote=\"partner\"} 1";
        assert!(page.contains(line), "{page}");
        let log = self.site.world.gateway.logged();
        assert!(log.contains("its certificate files have changed"), "{log}");
    }
}
