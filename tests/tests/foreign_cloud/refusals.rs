//! What the partner refuses, and what we refuse of it: said in status and log, and nothing is lost.

use std::time::Duration;

use holdfast_tests::partner::{Authority, USER};
use holdfast_tests::skip::{has_program, skip};
use serde_json::Value;

use crate::site::Site;
use crate::witness::Witness;

/// The LAN's topic and the partner's.
const TOPIC: (&str, &str) = ("plant/press/state", "site-7/press/state");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_is_said_and_costs_nothing() {
    if !has_program("mosquitto") || !has_program("mosquitto_pub") {
        return skip(
            "foreign_cloud",
            "mosquitto or mosquitto-clients is not installed",
        );
    }
    let mut site = Site::new().await;
    site.partner.start().await.unwrap();
    let witness = Witness::of(site.partner.inside);
    witness.session(1).await;
    site.until("connected", |it| it["connected"] == true).await;
    let mut sent = 0;
    for refuse in [
        Refusal::OurCa,
        Refusal::OurCertificate,
        Refusal::ItsName,
        Refusal::Version,
        Refusal::ItsList,
    ] {
        let words = refuse.make(&mut site).await;
        if !matches!(refuse, Refusal::ItsList) {
            let said = |it: &Value| words.iter().all(|word| said_in(it).contains(word));
            site.until(&format!("{words:?}"), said).await;
        }
        site.publish(TOPIC.0, sent + 1..=sent + 50).await;
        sent += 50;
        let said = |it: &Value| {
            words.iter().all(|word| said_in(it).contains(word))
                && it["waiting"].as_u64() >= Some(50)
        };
        if !words.is_empty() {
            let standing = site.until(&format!("{words:?}"), said).await;
            assert_eq!(standing["dead_letters"], 0, "{standing:#}");
            let log = site.world.gateway.logged();
            assert!(log.contains(words[0]), "the log says nothing of {words:?}");
        }
        refuse.mend(&mut site).await;
        witness.has(TOPIC.1, sent).await;
        site.until("all is well", |it| {
            it["waiting"] == 0 && it["connected"] == true && it["denied_topics"] == 0
        })
        .await;
    }
    assert_eq!(witness.faults(TOPIC.1, sent), Vec::<String>::new());
    faults_of_the_files_are_told_at_once(&site).await;
    site.world.stop().await.unwrap();
}

/// All that a standing says in words.
fn said_in(standing: &Value) -> String {
    format!("{} {}", standing["reason"], standing["denied"])
}

#[derive(Clone, Copy)]
enum Refusal {
    /// We do not know its authority.
    OurCa,
    /// It does not know ours.
    OurCertificate,
    /// It is somebody else.
    ItsName,
    /// It gets MQTT 3.1.1, which is no refusal.
    Version,
    /// We may not publish there.
    ItsList,
}

impl Refusal {
    /// Makes it so; gives what status must say, if anything.
    async fn make(self, site: &mut Site) -> &'static [&'static str] {
        let folder = site.partner.folder.clone();
        match self {
            Self::OurCa => {
                let stranger = Authority::new("stranger").unwrap();
                stranger.write(&folder.join("ca.pem")).unwrap();
                &["not trusted", "authority", "check ca"]
            }
            Self::OurCertificate => {
                let stranger = Authority::new("stranger").unwrap();
                stranger.certify(&folder, "client", &[USER]).unwrap();
                &["refuse", "check certificate and key"]
            }
            Self::ItsName => {
                site.configure("");
                let text = std::fs::read_to_string(&site.world.gateway.config).unwrap();
                let text = text.replace("broker.partner.example", "other.partner.example");
                std::fs::write(&site.world.gateway.config, text).unwrap();
                site.restart_gateway().await;
                &["is not for other.partner.example", "server_name"]
            }
            Self::Version => {
                site.configure("version = \"3.1.1\"");
                site.restart_gateway().await;
                site.until("the older protocol", |it| it["version"] == "3.1.1")
                    .await;
                &[]
            }
            Self::ItsList => {
                site.partner.allow(&["orders/site-7/#"]).unwrap();
                site.partner.reload().unwrap();
                &["not authorised (0x87)", "plant/press/state"]
            }
        }
    }

    async fn mend(self, site: &mut Site) {
        let folder = site.partner.folder.clone();
        match self {
            Self::OurCa => {
                let ours = &site.partner.authority;
                ours.write(&folder.join("ca.pem")).unwrap();
            }
            Self::OurCertificate => {
                let ours = &site.partner.authority;
                ours.certify(&folder, "client", &[USER]).unwrap();
            }
            Self::ItsName | Self::Version => {
                site.configure("");
                site.restart_gateway().await;
            }
            Self::ItsList => {
                // Long enough for a message that was put aside at once to be missed.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                site.partner
                    .allow(&["site-7/#", "orders/site-7/#"])
                    .unwrap();
                site.partner.reload().unwrap();
            }
        }
    }
}

/// `check-config` finds what is wrong with a remote before the gateway runs with it.
async fn faults_of_the_files_are_told_at_once(site: &Site) {
    site.configure("user = \"u\"\npassword_file = \"partner/none\"\nversion = \"6\"");
    let broken = site.partner.folder.join("ca.pem");
    std::fs::write(broken, "nonsense").unwrap();
    let told = site
        .world
        .gateway
        .command(&["check-config"], "")
        .await
        .unwrap();
    assert_ne!(told.code, Some(0));
    let all = format!("{}{}", told.out, told.err);
    for part in [
        "remote[1].ca",
        "remote[1].password_file",
        "remote[1].version",
        "gateway.toml:17:",
    ] {
        assert!(all.contains(part), "{all}");
    }
}
