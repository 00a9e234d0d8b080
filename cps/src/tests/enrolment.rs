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

/// The answer got lost, whole or in part: the same machine asks again and hears the same.
#[tokio::test]
async fn who_lost_the_answer_gets_it_again_and_nobody_else_does() {
    let cloud = cloud().await;
    let at = site("north");
    cloud.cps.add_site(&at).await.unwrap();
    let enrolment = cloud.cps.enrolment();
    let token = enrolment.token(&at, &server("gw1"), HOUR).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    enrol_in(&cloud, &folder, &token).await.unwrap();
    let certificate = std::fs::read(keys.join("server.pem")).unwrap();
    let entries = |cloud: &Served| cloud.cps.sync().cursor(&site("north")).unwrap();
    let before = entries(&cloud);
    // Killed before, between and after the files that an enrolment leaves.
    for gone in [&["cloud.json"][..], &["cloud.json", "server.pem"], &[]] {
        for file in gone {
            std::fs::remove_file(keys.join(file)).unwrap();
        }
        let again = enrol_in(&cloud, &folder, &token).await.unwrap();
        assert_eq!(again.epoch, 1);
        assert_eq!(std::fs::read(keys.join("server.pem")).unwrap(), certificate);
    }
    assert_eq!(
        entries(&cloud),
        before,
        "nothing was recorded a second time"
    );
    // Somebody with a copy of the token.
    let thief = tempfile::tempdir().unwrap();
    let refused = refusal(enrol_in(&cloud, &thief, &token).await.unwrap_err());
    assert!(refused.contains("by another machine"), "{refused}");
    let alarms = || {
        cloud
            .cps
            .metrics()
            .refusals("enrolment", "used token, other keys")
    };
    assert_eq!(alarms(), 1);
    // Replaced meanwhile: the old answer is worth nothing.
    let next = enrolment.replace(&at, &server("gw1"), HOUR).await.unwrap();
    let fresh = tempfile::tempdir().unwrap();
    assert_eq!(enrol_in(&cloud, &fresh, &next).await.unwrap().epoch, 2);
    let late = refusal(enrol_in(&cloud, &folder, &token).await.unwrap_err());
    assert!(late.contains("used already"), "{late}");
    // And over is over.
    cloud.clock.advance(HOUR);
    let late = refusal(enrol_in(&cloud, &fresh, &next).await.unwrap_err());
    assert!(late.contains("used already"), "{late}");
    assert_eq!(alarms(), 1);
}

#[tokio::test]
async fn two_tokens_at_once_give_two_numbers_and_the_lower_is_out() {
    let cloud = cloud().await;
    let at = site("north");
    cloud.cps.add_site(&at).await.unwrap();
    let enrolment = cloud.cps.enrolment();
    for round in 0..4 {
        let one = enrolment.token(&at, &server("gw1"), HOUR).await.unwrap();
        let two = enrolment.token(&at, &server("gw1"), HOUR).await.unwrap();
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (first, second) = tokio::join!(
            enrol_in(&cloud, &folders[0], &one),
            enrol_in(&cloud, &folders[1], &two)
        );
        let mut epochs = [first.unwrap().epoch, second.unwrap().epoch];
        epochs.sort_unstable();
        assert_eq!(epochs, [2 * round + 1, 2 * round + 2]);
    }
    let valid = cloud.cps.authority().list(Some(&at)).unwrap();
    let name = "gw1.gateways.north.holdfast.internal";
    let valid = valid
        .iter()
        .filter(|row| !row.revoked && row.subject == name);
    assert_eq!(valid.count(), 1, "one machine is in, whoever came last");
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
