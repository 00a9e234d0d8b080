//! `kill -9` of agent, installer and gateway while a device is paired and onboarded: at the next try all ends right.

use std::time::Duration;

use holdfast_tests::process::Process;
use holdfast_tests::proxy::Mode;
use holdfast_tests::world::GATEWAY;
use serde_json::Value;
use tokio::time::sleep;

use crate::site::{Bought, Site};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Agent,
    Installer,
    Gateway,
    /// The control: nobody, so that the story is known to be under way at those moments.
    Nobody,
}

/// Who, and how many milliseconds after the device was powered on.
const KILLS: [(&str, Victim, u64); 11] = [
    ("device-0", Victim::Nobody, 0),
    ("device-1", Victim::Agent, 20),
    ("device-2", Victim::Agent, 35),
    ("device-3", Victim::Agent, 50),
    ("device-4", Victim::Agent, 200),
    ("device-5", Victim::Agent, 220),
    ("device-6", Victim::Installer, 30),
    ("device-7", Victim::Installer, 100),
    ("device-8", Victim::Gateway, 40),
    ("device-9", Victim::Gateway, 150),
    ("device-10", Victim::Gateway, 250),
];

#[tokio::test]
async fn killed_anywhere_the_device_comes_in_at_the_next_try() {
    let mut site = Site::begin().await;
    site.world.uplink.set(Mode::Reset).unwrap();
    let mut unfinished = 0;
    for (name, victim, moment) in KILLS {
        let (mut device, paper) = site.sold_with_voucher(name).await;
        site.hands_in(&paper).await;
        let gateway = site.world.gateway_doors.fdo.to_string();
        let words = site.pairing(&paper, &["--to", &gateway]);
        let mut installer = site.starts(name, &words);
        site.says(&mut installer, "waiting for device").await;
        device.part.start(None).await.unwrap();
        sleep(Duration::from_millis(moment)).await;
        unfinished += u32::from(victim != Victim::Nobody && !is_serving(&device).await);
        kill(victim, &mut site, &mut device, &mut installer, &words).await;
        site.is_onboarded(&site.world.gateway, &device, GATEWAY)
            .await;
        device.works().await;
        let kept = std::fs::read_to_string(device.network()).unwrap();
        let kept: Value = serde_json::from_str(&kept).unwrap();
        assert_eq!(kept["passphrase"], "anchors aweigh", "{name}");
        installer.stop().await.unwrap();
        device.part.stop().await.unwrap();
    }
    assert!(
        unfinished >= 6,
        "only {unfinished} kills fell into the story"
    );
    site.world.stop().await.unwrap();
}

async fn is_serving(device: &Bought) -> bool {
    device
        .part
        .status()
        .await
        .is_ok_and(|status| status["phase"] == "serving")
}

/// Kills and starts again.
async fn kill(
    victim: Victim,
    site: &mut Site,
    device: &mut Bought,
    installer: &mut Process,
    words: &[String],
) {
    match victim {
        Victim::Nobody => {}
        Victim::Agent => {
            device.part.process().unwrap().kill_nine().await.unwrap();
            device.part.start(None).await.unwrap();
        }
        Victim::Gateway => {
            let process = site.world.gateway.process().unwrap();
            process.kill_nine().await.unwrap();
            site.world.start_gateway().await.unwrap();
        }
        Victim::Installer => {
            if installer.kill_nine().await.is_err() {
                // It had ended well: the device was sent on.
                return;
            }
            let gateway = site.world.gateway_doors.fdo.to_string();
            *installer = match device.network().exists() {
                // Paired: what is left is its question.
                true => site.relays(&[&gateway]).await,
                false => site.starts("again", words),
            };
        }
    }
}
