//! What the metrics say: names by convention, limits beside what is used of them, times.

use std::collections::BTreeSet;

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
        ("x_broker_inflight_messages", 0.0),
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
        ("x_broker_used{quota=\"session_rows\"}", 2.0),
        ("x_broker_used{quota=\"session_row_bytes\"}", 1024.0),
        ("x_broker_used{quota=\"connections\"}", 1.0),
        ("x_broker_used{quota=\"subscriptions\"}", 1.0),
        ("x_broker_used{quota=\"subscriptions_in_all\"}", 1.0),
        ("x_broker_used{quota=\"retained\"}", 1.0),
        ("x_broker_used{quota=\"retained_per_client\"}", 1.0),
        ("x_broker_used{quota=\"handshakes_per_address\"}", 0.0),
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
    // Every bound has its line, and every one that fills up says how far.
    let lines = |name: &str| -> BTreeSet<String> {
        let of_it = text.lines().filter_map(|line| line.strip_prefix(name));
        of_it
            .map(|line| line.split('"').nth(1).unwrap().to_owned())
            .collect()
    };
    let (limits, used) = (lines("x_broker_limit{"), lines("x_broker_used{"));
    let described = format!("{:?}", Config::default().limits);
    let fields = described.matches(": ").count();
    assert_eq!(limits.len(), fields, "{described}");
    for field in described
        .split([' ', '{'])
        .filter_map(|word| word.strip_suffix(':'))
    {
        assert!(limits.contains(field), "{field}");
    }
    let of_one_packet: Vec<&String> = limits.difference(&used).collect();
    assert_eq!(
        of_one_packet,
        [
            "connect_bytes",
            "packet_bytes",
            "topic_aliases",
            "topic_bytes",
            "topic_levels"
        ]
    );
}

/// The exposition's text.
fn exposed(server: &Server) -> String {
    let mut registry = Registry::default();
    server.broker.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn deliveries(server: &Server, way: &str) -> (f64, f64) {
    let text = exposed(server);
    let line = |what: &str| {
        value(
            &text,
            &format!("broker_delivery_seconds_{what}{{way=\"{way}\"}}"),
        )
    };
    (line("count"), line("sum"))
}

#[tokio::test]
async fn deliveries_are_timed_from_socket_to_socket_live_and_by_the_journal() {
    let server = Server::start(Config::default()).await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("t", 3, &[], "in its slot").await;
    let mut live = server.v5("live").await;
    live.subscribe("t", 1).await;
    // What a slot held came long ago, and is no delivery.
    assert_eq!(live.receive().await.text(), "in its slot");
    let mut durable = hello(&server, &lasting(true, "durable")).await;
    durable.subscribe("t", 1).await;
    durable.receive().await;
    for number in 0..20 {
        giver.publish("t", number % 2, "m").await;
        live.receive().await;
        if number % 2 == 1 {
            durable.receive().await;
        }
    }
    // QoS 0 is live for everybody.
    until("counted", || deliveries(&server, "live").0 as u64 == 30).await;
    assert_eq!(deliveries(&server, "journal").0 as u64, 10);
    let (count, sum) = deliveries(&server, "live");
    assert!(sum > 0.0 && sum < 2.0 * count, "{sum}");
    // A subscriber that is away: the time it was away counts, to the second.
    durable.disconnect().await;
    until("away", || server.broker.metrics().connections == 2).await;
    let (_, before) = deliveries(&server, "journal");
    giver.publish("t", 1, "late").await;
    live.receive().await;
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    let mut durable = hello(&server, &lasting(true, "durable")).await;
    while durable.receive().await.text() != "late" {}
    until("counted", || deliveries(&server, "journal").0 as u64 == 11).await;
    let late = deliveries(&server, "journal").1 - before;
    assert!((1.0..10.0).contains(&late), "{late}");
    // A receiver that takes nothing is not told of before its socket has taken it.
    let counted = deliveries(&server, "live").0;
    let mut deaf = server.v5("deaf").await;
    deaf.subscribe("t", 0).await;
    deaf.receive().await;
    let large = "x".repeat(200_000);
    let mut sent = 0.0;
    while server.broker.metrics().queued_bytes < 400_000 {
        giver.publish("t", 0, &large).await;
        live.receive().await;
        sent += 1.0;
    }
    giver.nothing().await;
    // Two others have had all of them.
    let arrived = deliveries(&server, "live").0 - counted - 2.0 * sent;
    assert!(arrived < sent, "{arrived} of {sent}");
}
