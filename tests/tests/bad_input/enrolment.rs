//! A gateway's first start: not enrolled, no cloud there, a wrong token, a token used twice.

use holdfast_tests::proxy::Mode;
use holdfast_tests::world::{Plan, SITE, World};

use crate::watch::Watch;

#[tokio::test]
async fn enrolment_refuses_what_is_wrong_and_then_works() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    let told = world.gateway.command(&["run"], "").await.unwrap();
    assert_eq!(
        told.code,
        Some(64),
        "a gateway that is not enrolled: {}",
        told.err
    );
    assert!(
        told.err.contains("enrol"),
        "it does not say what to do: {}",
        told.err
    );

    world.start_cloud().await.unwrap();
    world.cloud.ask(&["sites", "add", SITE]).await.unwrap();
    let token = world.token().await.unwrap();
    an_unreachable_cloud(&world, &token).await;
    a_wrong_token(&world, &token).await;

    let told = world.enrol_with(&token).await.unwrap();
    assert_eq!(
        told.code,
        Some(0),
        "the right token after all that: {}",
        told.err
    );
    world.start_gateway().await.unwrap();
    world.gateway.stop().await.unwrap();
    a_token_used_twice(&mut world, &token).await;
    world.stop().await.unwrap();
}

async fn an_unreachable_cloud(world: &World, token: &str) {
    world.uplink.set(Mode::Reset).unwrap();
    let told = world.enrol_with(token).await.unwrap();
    world.uplink.set(Mode::Open).unwrap();
    assert_eq!(told.code, Some(69), "no cloud: {}", told.err);
    assert!(
        told.err.contains(&world.uplink_doors.https.to_string()),
        "it names no address: {}",
        told.err
    );
}

async fn a_wrong_token(world: &World, token: &str) {
    let nonsense = world.enrol_with("hf1.not-a-token").await.unwrap();
    assert_eq!(nonsense.code, Some(64), "no token at all: {}", nonsense.err);
    assert!(nonsense.err.contains("token"), "{}", nonsense.err);

    let watch = Watch::begin(&world.cloud, world.cloud_doors.metrics).await;
    let told = world.enrol_with(&with_other_secret(token)).await.unwrap();
    assert_ne!(told.code, Some(0), "a wrong secret enrolled");
    assert!(told.err.contains("token"), "{}", told.err);
    watch.refused_once(&world.cloud, "a wrong token").await;

    let told = world.enrol_with(&with_other_pin(token)).await.unwrap();
    assert_ne!(
        told.code,
        Some(0),
        "a cloud that is not the pinned one was believed"
    );
}

/// The same token again, for a gateway that has lost its state: the cloud must not hand out a second identity.
async fn a_token_used_twice(world: &mut World, token: &str) {
    std::fs::remove_dir_all(&world.gateway.state).unwrap();
    let watch = Watch::begin(&world.cloud, world.cloud_doors.metrics).await;
    let told = world.enrol_with(token).await.unwrap();
    assert_ne!(told.code, Some(0), "a token worked twice");
    assert!(told.err.contains("token"), "{}", told.err);
    watch.refused_once(&world.cloud, "a token used twice").await;
}

/// `hf1.<site>.<gateway>.<secret>.<root hash>.<cloud's name>` with another secret of the same form.
fn with_other_secret(token: &str) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let first = parts[3].remove(0);
    parts[3].insert(0, if first == 'A' { 'B' } else { 'A' });
    parts.join(".")
}

/// The same with another hash of the cloud's root.
fn with_other_pin(token: &str) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    let flip = |digit| if digit == '0' { '1' } else { '0' };
    parts[4] = parts[4].chars().map(flip).collect();
    parts.join(".")
}
