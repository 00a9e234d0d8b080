//! Figure 11 whole, with real binaries: a voucher reaches an installer's key, the installer extends it to the gateway over the
//! LAN, pairs the device, relays its question, and the device becomes the gateway's, with no Internet from first to last.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod kills;
mod site;
mod wire;

use holdfast_tests::proxy::{Mode, Proxy};
use holdfast_tests::world::GATEWAY;
use serde_json::{Value, json};

use site::Site;

#[tokio::test]
async fn a_device_comes_in_by_the_installer_alone() {
    let mut site = Site::begin().await;
    let uplink = site.world.uplink_doors.fdo.to_string();
    let cloud = site.world.cloud_doors.fdo.to_string();
    let gateway = site.world.gateway_doors.fdo.to_string();

    // Bought in normal times: B, E and F for the installer's key (S33 to S35), D for the cloud.
    let (mut b, b_paper) = site.sold_with_voucher("device-b").await;
    let (mut e, e_paper) = site.sold_with_voucher("device-e").await;
    let (mut f, f_paper) = site.sold_with_voucher("device-f").await;
    let mut d = site.sold_to_the_site("device-d").await;

    // S36, S37: the outage; the voucher goes to the gateway over the LAN.
    site.world.uplink.set(Mode::Silent).unwrap();
    site.hands_in(&b_paper).await;

    // S38 to S41: powered on, it finds nobody but the installer, and gets the network only after both are proved.
    b.part.start(None).await.unwrap();
    b.looks_around().await;
    assert!(!b.network().exists(), "nothing before the pairing");
    let told = site.pairs(&b_paper, &[]).await;
    assert!(
        told.out.contains("has the credentials of harbour"),
        "{told:?}"
    );
    assert!(told.err.contains("each proves itself"), "{told:?}");
    let kept = std::fs::read_to_string(b.network()).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        kept,
        json!({ "ssid": "harbour", "passphrase": "anchors aweigh" })
    );
    assert_eq!(b.part.status().await.unwrap()["phase"], "onboarding");

    // S42 to S45: 60 is out of reach, 70 answers, 50 takes it.
    let mut relay = site.relays(&[&uplink, &gateway]).await;
    site.is_onboarded(&site.world.gateway, &b, GATEWAY).await;
    b.works().await;
    let said = relay.log_since(0);
    assert!(
        said.contains(&format!("{gateway} told it where its site is")),
        "{said}"
    );
    b.has_a_certificate_of_the_gateway(&site.world).await;
    relay.stop().await.unwrap();

    // The other order, and a 60 that is reached and knows nothing of it (code 6).
    for (device, paper, servers) in [
        (&mut e, &e_paper, [&gateway, &uplink]),
        (&mut f, &f_paper, [&cloud, &gateway]),
    ] {
        site.hands_in(paper).await;
        let mut relay = site.relays(&servers.map(String::as_str)).await;
        if servers[0] == &gateway {
            a_server_lost_in_mid_run(&site, device).await;
        }
        device.part.start(None).await.unwrap();
        site.is_onboarded(&site.world.gateway, device, GATEWAY)
            .await;
        let said = relay.log_since(0);
        assert!(
            said.contains(&format!("{gateway} told it where its site is")),
            "{said}"
        );
        relay.stop().await.unwrap();
    }

    // The uplink is whole again: the same relay sends to 60, and D becomes the cloud's.
    site.world.uplink.set(Mode::Open).unwrap();
    let mut relay = site.relays(&[&uplink, &gateway]).await;
    d.part.start(None).await.unwrap();
    let told = format!("{uplink} told it where its site is");
    site.says(&mut relay, &told).await;
    site.is_onboarded(&site.world.cloud, &d, "cloud").await;
    relay.stop().await.unwrap();
    for device in [&mut b, &mut d, &mut e, &mut f] {
        device.part.stop().await.unwrap();
    }
    site.world.stop().await.unwrap();
}

/// One server for a whole run, under a token of the relay's own.
async fn a_server_lost_in_mid_run(site: &Site, device: &site::Bought) {
    let mut path = Proxy::new();
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let near = path.wire(any, site.world.gateway_doors.fdo).await.unwrap();
    let gateway = site.world.gateway_doors.fdo.to_string();
    let mut relay = site.relays_at(0, &[&near.to_string(), &gateway]);
    let at = site.relay_address(&mut relay).await;
    let run = wire::Run::begin(at, &device.credential()).await;
    // The token is not the gateway's: there it opens nothing.
    let foreign = run.proves_at(site.world.gateway_doors.fdo).await;
    assert_eq!(foreign.error_code(), Some(1), "{foreign:?}");
    path.set(Mode::Reset);
    let lost = run.proves_at(at).await;
    assert_eq!(
        lost.error_code(),
        Some(500),
        "255, and not the other server's answer: {lost:?}"
    );
    let again = run.proves_at(at).await;
    assert_eq!(again.error_code(), Some(1), "the run is over: {again:?}");
    // The next run goes to the server that is left.
    let run = wire::Run::begin(at, &device.credential()).await;
    let answer = run.proves_at(at).await;
    assert_eq!(answer.kind, 33, "{answer:?}");
    // The control: with the first server whole, the first run would have ended well.
    path.set(Mode::Open);
    relay.stop().await.unwrap();
    let mut relay = site.relays_at(0, &[&near.to_string()]);
    let at = site.relay_address(&mut relay).await;
    let run = wire::Run::begin(at, &device.credential()).await;
    assert_eq!(run.proves_at(at).await.kind, 33);
    relay.stop().await.unwrap();
}
