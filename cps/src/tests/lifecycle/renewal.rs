//! A service's key and certificate are renewed while it runs: in time, in vain, and late; the cloud is
//! away all the while.

use std::time::Duration;

use holdfast_link::time::Clock as _;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// What the device shows: its certificate, or that of its service.
fn shown(home: &Home, certificate: &[u8]) -> Vec<Vec<u8>> {
    let chain = home.device.config.as_ref().unwrap().chain.clone();
    std::iter::once(certificate.to_vec()).chain(chain).collect()
}

fn certificate(answer: &Answer) -> Vec<u8> {
    match answer {
        Answer::Granted { certificate, .. } => certificate.clone(),
        other => panic!("{other:?}"),
    }
}

fn renewals(view: &ServicesView) -> Vec<String> {
    assert_eq!(
        services(view),
        [("civil", false)],
        "one service, and it runs"
    );
    let renewals = view.history[0].renewals.iter();
    renewals.map(|one| one.serial.clone()).collect()
}

#[tokio::test]
async fn the_history_of_a_renewed_service_is_one_line_with_its_renewals() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    drop(cloud.stop().await);
    let credential = home.activate().await;
    order(&gateway, home.id, "civil").await;
    let first = home.update("civil", &credential, &key()).await;
    let old = granted(&gateway, &first);
    home.report(&old.serial, Outcome::Runs).await;
    assert!(renewals(&home.history(&gateway)).is_empty());

    gateway.clock.advance(DAY * 240);
    let begun = gateway.clock.now().secs;
    let second = home.update("civil", &credential, &key()).await;
    let new = granted(&gateway, &second);
    assert_ne!(new.key, old.key);
    let roster = gateway.cps.roster();
    for one in [&first, &second] {
        // Both are good until the new one was used.
        roster.identify(&shown(&home, &certificate(one))).unwrap();
    }
    home.report(&new.serial, Outcome::Runs).await;
    assert!(roster.is_revoked(&old.serial) && !roster.is_revoked(&new.serial));
    let view = home.history(&gateway);
    assert_eq!(renewals(&view), [new.serial.to_string()]);
    let at = serde_json::to_value(&view.history[0].renewals[0].at).unwrap();
    assert_eq!(
        (&at["at"], &at["quality"]),
        (&begun.into(), &"authenticated".into())
    );

    // In vain: what was held goes on, and it was no renewal.
    let third = granted(&gateway, &home.update("civil", &credential, &key()).await);
    assert_eq!(renewals(&home.history(&gateway)).len(), 2);
    home.report(&third.serial, Outcome::RolledBack).await;
    assert!(roster.is_revoked(&third.serial) && !roster.is_revoked(&new.serial));
    assert_eq!(renewals(&home.history(&gateway)), [new.serial.to_string()]);
    gateway.cps.rebuild().await.unwrap();
    assert_eq!(renewals(&home.history(&gateway)), [new.serial.to_string()]);
}

/// The service's certificate is over and nobody lets it in: the device asks by its own.
#[tokio::test]
async fn a_service_certificate_that_is_over_is_renewed_late() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    let home = onboard(&gateway, &Factory::new(), "a").await;
    drop(cloud.stop().await);
    let credential = home.activate().await;
    order(&gateway, home.id, "civil").await;
    let first = home.update("civil", &credential, &key()).await;
    let old = granted(&gateway, &first);
    home.report(&old.serial, Outcome::Runs).await;
    gateway.clock.advance(DAY * 300);
    let own_key = key();
    let csr = csr::request("any", &own_key);
    let own = shown(&home, home.device.certificate.as_ref().unwrap());
    let own = gateway.cps.renewal().renew(&own, &csr);
    let own = shown(&home, &own.await.unwrap().leaf);
    gateway.cps.renewal().confirm(&own).await.unwrap();
    gateway.clock.advance(DAY * 100);
    let roster = gateway.cps.roster();
    let late = roster.identify(&shown(&home, &certificate(&first)));
    assert_eq!(late.unwrap_err().reason(), "expired");
    let request = Request {
        device: home.id,
        kind: RequestKind::Update {
            service: "civil".parse().unwrap(),
            credential,
            csr: csr::request("any", &key()),
        },
    };
    let lifecycle = gateway.cps.lifecycle();
    let answer = lifecycle.answer(&own, &request.sign(&own_key)).await;
    let answer = answer.unwrap();
    let new = granted(&gateway, &answer);
    roster
        .identify(&shown(&home, &certificate(&answer)))
        .unwrap();
    assert_eq!(renewals(&home.history(&gateway)), [new.serial.to_string()]);
}
