//! A device without a network meets the installer at the address from the factory, with real binaries: it gets the
//! LAN's credentials, keeps its own, and goes on looking for its site.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::io::Write as _;

use holdfast_tests::place::Party;
use holdfast_tests::world::{Plan, World};
use serde_json::{Value, json};

#[tokio::test]
async fn a_device_is_paired_by_the_installer_that_its_voucher_names_and_by_no_other() {
    let plan = Plan::apart();
    let mut world = World::new(&plan).await.unwrap();
    let fixed = plan
        .place
        .socket(Party::Gateway, 18_042)
        .unwrap()
        .to_string();
    let mut config = std::fs::OpenOptions::new();
    let mut config = config.append(true).open(&world.cloud.config).unwrap();
    // The file ends within [manufacturing].
    writeln!(config, "installer = \"{fixed}\"").unwrap();
    drop(config);
    world.start_cloud().await.unwrap();
    let mut device = world.another_device("device-b").unwrap();
    let (anna, anna_key) = world.installer("anna").await.unwrap();
    let (bert, _) = world.installer("bert").await.unwrap();
    let id = world.make(&device, "B-0001").await.unwrap();
    let paper = world.folder().join("b.ov").display().to_string();
    let key = anna_key.display().to_string();
    let extend = ["vouchers", "extend", &id, "--to", &key, "--out", &paper];
    world.cloud.ask(&extend).await.unwrap();

    let secret = world.folder().join("passphrase");
    std::fs::write(&secret, "short\n").unwrap();
    let secret_text = secret.display().to_string();
    let pair = [
        "pair",
        &paper,
        "--ssid",
        "harbour",
        "--passphrase-file",
        &secret_text,
        "--listen",
        &fixed,
        "--patience",
        "25",
    ];
    let wrong = anna.command(&pair, "").await.unwrap();
    assert!(wrong.err.contains("8 to 63"), "{}", wrong.err);
    std::fs::write(&secret, "anchors aweigh\n").unwrap();
    let other = bert.command(&pair, "").await.unwrap();
    assert!(
        other.err.contains("not for this installer"),
        "{}",
        other.err
    );

    device.start(None).await.unwrap();
    let told = anna.command(&pair, "").await.unwrap();
    let told = told
        .success("pair")
        .unwrap_or_else(|error| panic!("{error}\n{}", device.logged()));
    assert!(told.contains("has the credentials of harbour"), "{told}");
    let kept = std::fs::read_to_string(device.state.join("network.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        kept,
        json!({ "ssid": "harbour", "passphrase": "anchors aweigh" })
    );
    assert!(
        !device.logged().contains("aweigh"),
        "the passphrase is in the log"
    );
    // It is nobody's yet: the credential is the factory's, and it looks for its site.
    let status = device.status().await.unwrap();
    assert_eq!(status["phase"], "onboarding", "{status}");
    device.stop().await.unwrap();
    world.stop().await.unwrap();
}
