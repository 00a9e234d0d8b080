//! A gateway that was replaced stops serving, says so, and stays out after a restart without an
//! uplink; one that is only locked goes on.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_gateway::app::{BuildError, RunError, build};
use holdfast_gateway::retired;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_tests::place::local_socket;
use holdfast_tests::proxy::Mode;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::pair::{Pair, Running, SITE, until, within};

const LIFE: Duration = Duration::from_secs(60);

fn names() -> (SiteId, ServerId) {
    (SITE.parse().expect("site"), "gw1".parse().expect("name"))
}

async fn replace(cloud: &Running) -> String {
    let (site, gateway) = names();
    let token = cloud.cps.enrolment().replace(&site, &gateway, LIFE).await;
    token.expect("ordered").to_string()
}

/// Status line and body of an HTTP answer.
async fn get(door: SocketAddr, path: &str) -> Option<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(door).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_gateway_stops_for_good_and_says_what_to_do() {
    let pair = Pair::new().await;
    let cloud = pair.start_cloud().await;
    let token = pair.token(&cloud, LIFE).await;
    pair.enrol("gw", &token).await.expect("enrols");
    let old = build(pair.gateway.clone(), &pair.state("gw"))
        .await
        .expect("builds");
    let (mqtt, sync) = (old.listeners().mqtt(), old.cps().sync().clone());
    let running = tokio::spawn(old.run(CancellationToken::new()));

    let token = replace(&cloud).await;
    until("the lock", || sync.locked_out().is_some()).await;
    assert!(
        tokio::net::TcpStream::connect(mqtt).await.is_ok(),
        "a lock can be taken back"
    );
    assert!(!running.is_finished());
    pair.enrol("fresh", &token).await.expect("enrols");

    let ended = within("the old one to stop", running)
        .await
        .expect("no panic");
    let Err(RunError::Replaced(told)) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(told.epoch, 2);
    assert!(
        tokio::net::TcpStream::connect(mqtt).await.is_err(),
        "it serves nobody"
    );
    // Started again, with nobody to ask.
    drop(sync);
    pair.cut(Mode::Silent);
    let again = build(pair.gateway.clone(), &pair.state("gw")).await;
    let Err(BuildError::Replaced(kept)) = again else {
        panic!("it would serve again");
    };
    assert_eq!(kept, told);
    what_it_says(&pair, &kept).await;

    // The fresh one has no such word, whatever lies about.
    let fresh = pair.state("fresh");
    for copy in ["replaced.a", "replaced.b"] {
        let from = pair.state("gw").join(copy);
        if from.exists() {
            std::fs::copy(from, fresh.join(copy)).expect("copied");
        }
    }
    let fresh = build(pair.gateway.clone(), &fresh).await;
    assert!(fresh.is_ok(), "{:?}", fresh.err());
    drop(fresh);
    cloud.stop().await;
}

/// Revoked at the cloud: its session there is cut within five seconds, and it stops by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_gateway_is_cut_off_within_seconds_and_stops() {
    let pair = Pair::new().await;
    let cloud = pair.start_cloud().await;
    let token = pair.token(&cloud, LIFE).await;
    pair.enrol("gw", &token).await.expect("enrols");
    let app = build(pair.gateway.clone(), &pair.state("gw")).await;
    let app = app.expect("builds");
    let running = tokio::spawn(app.run(CancellationToken::new()));
    let sessions = || cloud.broker.metrics().connections;
    until("the bridge at the cloud", || sessions() > 0).await;

    let (site, gateway) = (SITE.parse().expect("site"), "gw1".parse().expect("name"));
    let revoked = cloud.cps.enrolment().revoke(&site, &gateway).await;
    assert!(revoked.expect("revoked") >= 2);
    let at = std::time::Instant::now();
    until("the cut", || sessions() == 0).await;
    assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
    let ended = within("it to stop", running).await.expect("no panic");
    let Err(RunError::Replaced(told)) = ended else {
        panic!("{ended:?}");
    };
    assert!(told.revoked, "{told:?}");
    assert!(retired::sentence(&told).contains("was revoked on 20"));
    let again = build(pair.gateway.clone(), &pair.state("gw")).await;
    assert!(matches!(again, Err(BuildError::Replaced(_))));
    cloud.stop().await;
}

async fn what_it_says(pair: &Pair, kept: &holdfast_cps::sync::Replaced) {
    let (door, stop) = (local_socket().expect("a port"), CancellationToken::new());
    let (state, token, why) = (pair.state("gw"), stop.clone(), kept.clone());
    let serving = tokio::spawn(async move { retired::serve(door, &state, &why, token).await });
    let mut page = None;
    while page.is_none() {
        page = get(door, "/health").await;
    }
    let page = page.expect("there");
    assert!(page.starts_with("HTTP/1.1 503"), "{page}");
    for part in [
        "replaced by enrolment 2 on 20",
        "empty state folder",
        "gw1 of site bern",
    ] {
        assert!(page.contains(part), "{page}");
    }
    let metrics = get(door, "/metrics").await.expect("there");
    assert!(metrics.contains("holdfast_gateway_replaced 1"), "{metrics}");
    let socket = pair.state("gw").join("admin.sock");
    let status: Value = holdfast_cps::http::ask::get(&socket, "/v1/status")
        .await
        .expect("status");
    assert_eq!(status["mode"], "replaced");
    assert!(
        status["locked_out"]
            .as_str()
            .is_some_and(|text| text.contains("was replaced"))
    );
    let refused = holdfast_cps::http::ask::get(&socket, "/v1/devices").await;
    let refused = refused.expect_err("nothing else is answered").to_string();
    assert!(refused.contains("was replaced"), "{refused}");
    stop.cancel();
    within("the end", serving)
        .await
        .expect("no panic")
        .expect("no fault");
}
