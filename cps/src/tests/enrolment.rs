//! Gateways and their tokens: used once, in time, for the right name; otherwise one clear refusal.

use std::time::Duration;

use base64::Engine as _;
use holdfast_link::random::SystemRandom;
use holdfast_link::tls::{Anchors, Purpose, verify_chain};

use super::kit::*;
use crate::enrol::{Cloud, EnrolError, Token};
use crate::{Cps, CpsConfig, Keys, OpenError, Role};

const HOUR: Duration = Duration::from_secs(3600);

fn refusal(error: EnrolError) -> String {
    match error {
        EnrolError::Refused { why, .. } => why,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn an_enrolled_gateway_opens_without_the_cloud_and_its_authority_holds() {
    let cloud = cloud().await;
    let gateway = gateway(&cloud, "north", "gw1").await;
    drop(cloud);
    let folder = gateway.stop().await;
    let config = CpsConfig::new(
        server("gw1"),
        "holdfast.internal".parse().unwrap(),
        Role::Gateway {
            site: site("north"),
        },
    );
    let again = serve(config, folder).await;
    let chain = again.cps.authority().chain(Some(&site("north"))).unwrap();
    assert_eq!(chain.len(), 2, "its own intermediate and the root");
    let own = again.cps.authority().own_identity(&[LOCAL]).await.unwrap();
    let anchors = Anchors::new(again.cps.authority().anchors().unwrap()).unwrap();
    let (leaf, above) = own.chain().split_first().unwrap();
    let name = rustls::pki_types::ServerName::try_from("gw1.gateways.north.holdfast.internal");
    let now = again.cps.clock().now();
    verify_chain(
        leaf,
        above,
        &anchors,
        Purpose::Server,
        Some(&name.unwrap()),
        now,
    )
    .unwrap();
}

#[tokio::test]
async fn a_token_works_once_in_time_and_for_its_gateway_alone() {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    let enrolment = cloud.cps.enrolment();
    let token = enrolment
        .token(&site("north"), &server("gw1"), HOUR)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let twice = refusal(enrol_in(&cloud, &other, &token).await.unwrap_err());
    assert!(twice.contains("used already"), "{twice}");
    assert!(
        Cloud::read(&other.path().join("keys")).unwrap().is_none(),
        "nothing was kept"
    );

    let late = enrolment
        .token(&site("north"), &server("gw2"), HOUR)
        .await
        .unwrap();
    cloud.clock.advance(HOUR);
    let late = refusal(enrol_in(&cloud, &other, &late).await.unwrap_err());
    assert!(late.contains("expired"), "{late}");

    let token = enrolment
        .token(&site("north"), &server("gw2"), HOUR)
        .await
        .unwrap();
    let wrong = token.replacen(".gw2.", ".gw3.", 1);
    let wrong = refusal(enrol_in(&cloud, &other, &wrong).await.unwrap_err());
    assert!(wrong.contains("for gateway 'gw2'"), "{wrong}");

    let forged: Token = token.parse().unwrap();
    let mut parts: Vec<String> = forged.to_text().split('.').map(str::to_owned).collect();
    parts[3] = "A".repeat(43);
    let unknown = refusal(
        enrol_in(&cloud, &other, &parts.join("."))
            .await
            .unwrap_err(),
    );
    assert!(unknown.contains("not known"), "{unknown}");

    // The right one still works after all that.
    enrol_in(&cloud, &other, &token).await.unwrap();
    for reason in [
        "used token, other keys",
        "expired token",
        "other gateway",
        "unknown token",
    ] {
        assert_eq!(
            cloud.cps.metrics().refusals("enrolment", reason),
            1,
            "{reason}"
        );
    }
}

#[tokio::test]
async fn the_token_pins_the_cloud() {
    let (cloud, impostor) = (cloud().await, cloud().await);
    for one in [&cloud, &impostor] {
        one.cps.add_site(&site("north")).await.unwrap();
    }
    let token = cloud
        .cps
        .enrolment()
        .token(&site("north"), &server("gw1"), HOUR)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = enrol_in(&impostor, &folder, &token).await.unwrap_err();
    assert!(matches!(error, EnrolError::Unreachable(_)), "{error}");
    enrol_in(&cloud, &folder, &token).await.unwrap();
}

#[tokio::test]
async fn no_site_no_token_and_no_enrolment_no_gateway() {
    let cloud = cloud().await;
    let error = cloud
        .cps
        .enrolment()
        .token(&site("north"), &server("gw1"), HOUR)
        .await;
    assert!(error.unwrap_err().to_string().contains("sites add"));
    let folder = tempfile::tempdir().unwrap();
    let config = CpsConfig::new(
        server("gw1"),
        "holdfast.internal".parse().unwrap(),
        Role::Gateway {
            site: site("north"),
        },
    );
    let keys = Keys::open(&folder.path().join("keys")).unwrap();
    let opened = Cps::open(
        config,
        stores(folder.path()),
        keys,
        cloud.cps.clock().clone(),
    )
    .await;
    assert!(matches!(opened, Err(OpenError::NotEnrolled)));
}

#[tokio::test]
async fn enrolling_again_counts_the_epoch_up() {
    let cloud = cloud().await;
    let first = gateway(&cloud, "north", "gw1").await;
    assert_eq!(first.cps.cloud().unwrap().epoch, 1);
    let second = gateway(&cloud, "north", "gw1").await;
    assert_eq!(second.cps.cloud().unwrap().epoch, 2);
    let rows = cloud.cps.enrolment().gateways().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].epoch, 2);
}

#[test]
fn a_request_in_a_log_shows_no_secret() {
    let text = r#"{"secret":"c2VjcmV0","issuer_request":"","server_request":"","record_key":KEY,
        "owner_key":KEY,"gateway":"gw1","addresses":[],"mqtt":[],"https":[]}"#;
    let key = holdfast_protocol::crypto::SigningKey::generate(&mut SystemRandom).public();
    let key = base64::engine::general_purpose::STANDARD.encode(key.to_spki_der());
    let text = text.replace("KEY", &format!("\"{key}\""));
    let asked: crate::enrol::Asked = serde_json::from_str(&text).unwrap();
    let shown = format!("{asked:?}");
    assert!(
        !shown.contains("115, 101, 99") && shown.contains("Secret(..)"),
        "{shown}"
    );
}
