//! Enrolment: what is refused and why, what a refusal leaves behind, and life without the cloud.

use std::time::Duration;

use holdfast_cps::enrol::EnrolError;
use holdfast_gateway::app::BuildError;
use holdfast_gateway::identity::EnrolFault;
use holdfast_tests::proxy::Mode;

use crate::pair::{Pair, until};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_to_do_and_leave_the_folder_usable() {
    let pair = Pair::new().await;
    let never = holdfast_gateway::app::build(pair.gateway.clone(), &pair.state("gw")).await;
    let error = never.expect_err("not enrolled");
    assert!(matches!(error, BuildError::NotEnrolled) && error.is_misuse());
    assert!(
        error.to_string().contains("holdfast-gateway enrol"),
        "{error}"
    );

    let cloud = pair.start_cloud().await;
    let expired = pair.token(&cloud, Duration::ZERO).await;
    let fault = pair.enrol("gw", &expired).await.expect_err("expired");
    assert!(
        fault.is_misuse() && fault.to_string().contains("expired"),
        "{fault}"
    );

    let good = pair.token(&cloud, HOUR).await;
    let foreign = of_another_root(&good);
    let fault = pair
        .enrol("gw", &foreign)
        .await
        .expect_err("another cloud's token");
    assert!(fault.is_unavailable(), "{fault}");
    assert!(
        fault.to_string().contains("token is of this cloud"),
        "{fault}"
    );

    pair.cut(Mode::Reset);
    let fault = pair.enrol("gw", &good).await.expect_err("unreachable");
    assert!(
        matches!(fault, EnrolFault::Enrol(EnrolError::Unreachable(_))),
        "{fault}"
    );
    pair.cut(Mode::Open);

    pair.enrol("gw", &good)
        .await
        .expect("after all refusals the same folder serves");
    let fault = pair.enrol("gw", &good).await.expect_err("enrolled already");
    assert!(matches!(fault, EnrolFault::Already { .. }), "{fault}");
    let fault = pair.enrol("second", &good).await.expect_err("used");
    assert!(
        fault.is_misuse() && fault.to_string().contains("used already"),
        "{fault}"
    );
    let used = "used token, other keys";
    assert_eq!(cloud.cps.metrics().refusals("enrolment", used), 1);
    assert_eq!(
        cloud.cps.metrics().refusals("enrolment", "expired token"),
        1
    );
    cloud.stop().await;
}

/// The same token pinned to another root: what an impostor's cloud would have to live with.
fn of_another_root(token: &str) -> String {
    let mut parts: Vec<String> = token.splitn(6, '.').map(str::to_owned).collect();
    parts[4] = "0".repeat(64);
    parts.join(".")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_restarts_and_serves_with_the_cloud_unreachable() {
    let pair = Pair::new().await;
    let (cloud, gateway) = pair.up().await;
    gateway.stop().await;
    cloud.stop().await;
    pair.cut(Mode::Silent);

    let mut gateway = pair.start_gateway().await;
    assert_eq!(gateway.uplink.borrow().mode, "outage");
    for seq in 1..=100 {
        crate::messages::publish(&gateway.daemon.broker, 0, seq).await;
    }
    assert_eq!(gateway.backlog.waiting(), 100);
    let files = gateway.daemon.cps.clients().issue(
        "dash".parse().expect("name"),
        None,
        Vec::new(),
        Vec::new(),
    );
    assert!(
        files
            .await
            .expect("the site's authority works alone")
            .cert
            .contains("BEGIN")
    );

    let cloud = pair.start_cloud().await;
    pair.cut(Mode::Open);
    gateway.wait_for("online").await;
    until("the backlog to drain", || gateway.backlog.waiting() == 0).await;
    until("the ledger", || {
        crate::messages::recorded(&cloud, 0).len() == 100
    })
    .await;
    gateway.stop().await;
    cloud.stop().await;
}
