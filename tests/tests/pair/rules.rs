//! Rules of the operator's own to the cloud and back, what the cloud denies, and the life of a
//! message over an outage.

use std::time::Duration;

use holdfast_broker::{Broker, Consumer, ConsumerOptions, Filter, Message, Qos, RowId};
use holdfast_gateway::config::{Direction, Rule};
use holdfast_tests::proxy::Mode;

use crate::messages::{publish, recorded};
use crate::pair::{Pair, SITE, until, within};

async fn listen(broker: &Broker, filter: &str) -> Consumer {
    let filter = Filter::new(filter).expect("filter");
    let consumer = broker.consumer("test", vec![filter], ConsumerOptions::default());
    consumer.await.expect("consumer")
}

async fn send(broker: &Broker, message: Message) {
    let taken = broker.publish(message.qos(Qos::AtLeastOnce)).await;
    taken.expect("the broker takes it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sites_own_topics_go_to_its_own_tree_at_the_cloud_and_come_from_it() {
    let mut pair = Pair::new().await;
    let tree = format!("ext/v1/{SITE}/");
    pair.gateway.bridge = vec![
        Rule::cloud("out", Direction::Out, "plant/+/state", &tree),
        Rule {
            strip: tree.clone(),
            ..Rule::cloud("in", Direction::In, &format!("{tree}orders/#"), "from/")
        },
    ];
    let (cloud, gateway) = pair.up().await;
    let at_cloud = listen(&cloud.broker, "ext/v1/#").await;
    let at_site = listen(&gateway.daemon.broker, "from/#").await;
    send(&gateway.daemon.broker, Message::new("plant/7/state", "x")).await;
    within("the state at the cloud", at_cloud.ready(RowId::START)).await;
    let rows = at_cloud.read(RowId::START, 9).await.expect("rows");
    assert_eq!(rows[0].message.topic(), format!("{tree}plant/7/state"));
    send(&cloud.broker, Message::new(&format!("{tree}orders/a"), "y")).await;
    within("the order at the site", at_site.ready(RowId::START)).await;
    let rows = at_site.read(RowId::START, 9).await.expect("rows");
    assert_eq!(rows[0].message.topic(), "from/orders/a");
    gateway.stop().await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_the_cloud_would_refuse_is_refused_before_anything_runs() {
    let mut pair = Pair::new().await;
    let cloud = pair.start_cloud().await;
    let token = pair.token(&cloud, Duration::from_secs(60)).await;
    pair.enrol("gw", &token).await.expect("enrols");
    pair.gateway.bridge = vec![
        Rule::cloud("one", Direction::Out, "plant/#", "site-7/"),
        Rule::cloud("two", Direction::In, "ext/v1/basel/#", "x/"),
        Rule::cloud("good", Direction::Out, "a", &format!("ext/v1/{SITE}/")),
    ];
    let config = pair.gateway.clone();
    let refused = holdfast_gateway::app::build(config, &pair.state("gw")).await;
    let refused = refused.map(drop).expect_err("refused");
    let text = refused.to_string();
    assert!(refused.is_misuse(), "{text}");
    for part in ["\"one\"", "\"two\"", "ext/v1/bern/"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("\"good\""), "{text}");
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_message_waits_is_shown_is_put_aside_and_holds_up_no_other() {
    let mut pair = Pair::new().await;
    // Within the site's tree, but none of its topics: the cloud denies it.
    let prefix = format!("hf/v1/{SITE}/");
    pair.gateway.bridge = vec![Rule::cloud("plant", Direction::Out, "plant/#", &prefix)];
    pair.gateway.limits.denied_for = Duration::from_secs(3);
    let (cloud, gateway) = pair.up().await;
    let lan = &gateway.daemon.broker;
    for text in ["x", "y"] {
        send(lan, Message::new("plant/7/state", text)).await;
    }
    for seq in 1..=10 {
        publish(lan, 0, seq).await;
    }
    until("the others", || recorded(&cloud, 0).len() == 10).await;
    let home = || gateway.remotes[0].now();
    until("the denial to be shown", || home().denied_topics == 1).await;
    until("the others to be settled", || home().waiting == 2).await;
    let shown = home();
    assert_eq!(shown.dead_letters, 0, "not at once");
    let said = shown.denied.unwrap_or_default();
    assert!(said.contains("plant/7/state"), "{said}");
    until("the denied ones to be put aside", || home().waiting == 0).await;
    assert_eq!(home().dead_letters, 2);
    let aside = std::fs::read_to_string(pair.state("gw").join("dead-letters.jsonl"));
    let aside = aside.expect("a file of dead letters");
    let lines: Vec<_> = aside.lines().collect();
    assert_eq!(lines.len(), 2);
    for part in ["plant/7/state", "not authorised", "\"remote\":\"cloud\""] {
        assert!(lines[0].contains(part), "{aside}");
    }
    gateway.stop().await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_ages_while_it_waits() {
    let mut pair = Pair::new().await;
    let tree = format!("ext/v1/{SITE}/");
    pair.gateway.bridge = vec![Rule::cloud("out", Direction::Out, "plant/#", &tree)];
    let (cloud, mut gateway) = pair.up().await;
    let at_cloud = listen(&cloud.broker, "ext/v1/#").await;
    pair.cut(Mode::Silent);
    gateway.wait_for("outage").await;
    let lan = &gateway.daemon.broker;
    send(lan, Message::new("plant/short", "x").expires_in(2)).await;
    send(lan, Message::new("plant/long", "x").expires_in(1000)).await;
    let sent = tokio::time::Instant::now();
    tokio::time::sleep_until(sent + Duration::from_millis(3_100)).await;
    send(lan, Message::new("plant/ever", "x")).await;
    pair.cut(Mode::Open);
    until("what lives", || at_cloud.waiting() == 2).await;
    until("nothing to wait", || gateway.backlog.waiting() == 0).await;
    let rows = at_cloud.read(RowId::START, 9).await.expect("rows");
    let lives: Vec<_> = rows
        .iter()
        .map(|row| {
            let topic = row.message.topic().rsplit('/').next();
            (topic.unwrap_or_default(), row.message.expiry_seconds())
        })
        .collect();
    let of = |name| {
        lives
            .iter()
            .find(|(topic, _)| *topic == name)
            .map(|(_, life)| *life)
    };
    assert_eq!(of("ever"), Some(None));
    assert!(
        of("long")
            .flatten()
            .is_some_and(|left| (900..=998).contains(&left)),
        "{lives:?}"
    );
    assert_eq!(of("short"), None);
    gateway.stop().await;
    cloud.stop().await;
}
