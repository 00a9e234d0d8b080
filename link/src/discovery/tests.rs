//! Two responders on the loopback interface find each other.

use super::*;
use std::net::Ipv4Addr;

fn loopback() -> Discovery {
    Discovery::start(&Interfaces::Named(vec!["lo".to_owned()])).expect("mDNS starts on loopback")
}

/// The LAN of these tests is this machine's loopback: names must differ from other test runs'.
fn unique(stem: &str) -> String {
    format!("{stem}-{}", std::process::id())
}

fn announcement(instance: &str, host: &str, last: u8) -> Announcement {
    Announcement {
        instance: instance.to_owned(),
        host: host.to_owned(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))],
        port: 8443,
        facts: vec![("site".to_owned(), "harbour".to_owned())],
    }
}

#[tokio::test]
async fn a_host_is_resolved_and_a_service_is_seen() {
    let (gateway, agent) = (loopback(), loopback());
    let (instance, host) = (unique("gw"), format!("{}.local", unique("holdfast-rv")));
    gateway
        .announce(&announcement(&instance, &host, 9))
        .unwrap();

    let found = agent.resolve(&host, Duration::from_secs(5)).await.unwrap();
    assert_eq!(found, [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9))]);

    let seen = agent.browse(Duration::from_secs(3)).await.unwrap();
    let ours = seen
        .iter()
        .find(|seen| seen.instance == instance)
        .expect("it is announced");
    assert_eq!((ours.port, ours.host.as_str()), (8443, host.as_str()));
    assert_eq!(ours.facts, [("site".to_owned(), "harbour".to_owned())]);

    // The control: what is withdrawn is soon not found any more. Goodbyes are repeated and live for
    // a second (RFC 6762, section 10.1), so a newcomer may still hear one.
    gateway.withdraw(&instance).await.unwrap();
    let late = loopback();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !late
        .resolve(&host, Duration::from_secs(1))
        .await
        .unwrap()
        .is_empty()
    {
        assert!(Instant::now() < deadline, "still told after its withdrawal");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn nobody_answers_within_patience() {
    let begun = Instant::now();
    let host = format!("{}.local", unique("nobody"));
    let found = loopback()
        .resolve(&host, Duration::from_millis(300))
        .await
        .unwrap();
    assert!(found.is_empty(), "{found:?}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn two_claims_on_one_host_are_told() {
    let (first, second) = (loopback(), loopback());
    let host = format!("{}.local", unique("contested"));
    first
        .announce(&announcement(&unique("one"), &host, 11))
        .unwrap();
    let found = second.resolve(&host, Duration::from_secs(5)).await.unwrap();
    assert!(!found.is_empty(), "the first stands");
    second
        .announce(&announcement(&unique("two"), &host, 12))
        .unwrap();
    let rival = tokio::time::timeout(Duration::from_secs(10), second.rivals()).await;
    assert_eq!(rival.expect("told in time"), Some(dotted(&host)));
}

#[test]
fn an_unknown_interface_is_refused() {
    let named = Interfaces::Named(vec!["no-such-card".to_owned()]);
    assert!(matches!(
        Discovery::start(&named),
        Err(DiscoveryError::NoInterface(_))
    ));
}

#[test]
fn local_addresses_respect_the_choice() {
    let lo = local_addresses(&Interfaces::Named(vec!["lo".to_owned()])).unwrap();
    assert!(lo.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    assert!(
        !local_addresses(&Interfaces::Lan)
            .unwrap()
            .iter()
            .any(IpAddr::is_loopback)
    );
}

#[test]
fn a_name_claimed_twice_is_noticed() {
    let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
    let seen = |instance: &str, host: &str, last: u8| Sighting {
        instance: instance.to_owned(),
        host: host.to_owned(),
        addresses: vec![ip(last)],
        port: 8042,
        facts: Vec::new(),
    };
    let name = RENDEZVOUS_HOST;
    let gw1 = seen("gw1", name, 2);
    let count = |seen: &[Sighting], told: &[IpAddr]| claimants(name, seen, told).len();
    // One gateway, whatever else is on the LAN; and a LAN where only the name is answered.
    assert_eq!(count(std::slice::from_ref(&gw1), &[ip(2)]), 1);
    assert_eq!(
        count(&[gw1.clone(), seen("gw9", "other.local", 3)], &[ip(2)]),
        1
    );
    assert_eq!(
        count(
            &[gw1.clone(), seen("gw9", "holdfast-rv-x.local", 3)],
            &[ip(2)]
        ),
        1
    );
    assert_eq!(count(&[], &[ip(2), ip(3)]), 0);
    // A second one that gave way, one that did not, one that announces nothing.
    for renamed in [
        "holdfast-rv-2.local",
        "holdfast-rv (3).local",
        "HOLDFAST-RV.local",
    ] {
        let told = claimants(name, &[gw1.clone(), seen("gw2", renamed, 3)], &[ip(2)]);
        assert_eq!(told, ["gw1 at 10.0.0.2", "gw2 at 10.0.0.3"], "{renamed}");
    }
    let told = claimants(name, &[gw1], &[ip(2), ip(66)]);
    assert_eq!(told, ["gw1 at 10.0.0.2", "somebody at 10.0.0.66"]);
    assert!(
        count(&[], &[1, 2, 3, 4, 5].map(ip)) > 1,
        "too many for one machine"
    );
}
