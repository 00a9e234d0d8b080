//! What the metrics say: names by convention, limits beside what is used of them, times.

use holdfast_broker::Config;
use prometheus_client::registry::Registry;

use crate::common::Server;
use crate::kit::{hello, lasting, until};

/// The value of a line of the exposition.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(' '))
    });
    let line = line.unwrap_or_else(|| panic!("{name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn every_quota_queue_drop_and_time_is_in_the_metrics() {
    let mut config = Config::default();
    config.limits.session_rows = 2;
    let server = Server::start(config).await;
    let mut registry = Registry::with_prefix("x");
    server.broker.register_metrics(&mut registry);
    let mut offline = hello(&server, &lasting(true, "offline")).await;
    offline.subscribe("d", 1).await;
    offline.disconnect().await;
    let mut giver = server.v5("giver").await;
    for _ in 0..3 {
        giver.publish("d", 1, "m").await;
    }
    giver.publish_with("kept", 3, &[], "m").await;
    until("away", || server.broker.metrics().connections == 1).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for (name, expected) in [
        ("x_broker_connections", 1.0),
        ("x_broker_sessions", 2.0),
        ("x_broker_subscriptions", 1.0),
        ("x_broker_retained_messages", 1.0),
        ("x_broker_queued_messages", 0.0),
        ("x_broker_queued_bytes", 0.0),
        ("x_broker_wills_waiting", 0.0),
        ("x_broker_journal_rows", 2.0),
        ("x_broker_journal_waiting", 0.0),
        ("x_broker_received_total", 4.0),
        ("x_broker_refused_full_total", 0.0),
        ("x_broker_refused_subscriptions_total", 0.0),
        ("x_broker_dropped_total{reason=\"journal_full\"}", 1.0),
        ("x_broker_ended_total{reason=\"goodbye\"}", 1.0),
        ("x_broker_limit{quota=\"session_rows\"}", 2.0),
        ("x_broker_limit{quota=\"connections\"}", 10_000.0),
        ("x_broker_limit{quota=\"queued_bytes\"}", 268_435_456.0),
        ("x_broker_acknowledgement_seconds_count", 4.0),
    ] {
        assert_eq!(
            value(&text, name).to_string(),
            expected.to_string(),
            "{name}"
        );
    }
    for name in [
        "x_broker_retained_bytes",
        "x_broker_journal_bytes",
        "x_broker_commits_total",
        "x_broker_commit_seconds_count",
        "x_broker_commit_seconds_sum",
    ] {
        assert!(value(&text, name) > 0.0, "{name}");
    }
    let quotas = text
        .lines()
        .filter(|line| line.starts_with("x_broker_limit{"))
        .count();
    assert_eq!(quotas, 22);
}
