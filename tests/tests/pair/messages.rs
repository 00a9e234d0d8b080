//! Messages over the bridge: exactly once and in order at the ledger whatever the link does,
//! and commands to the LAN.

use std::time::Duration;

use holdfast_broker::{Broker, ConsumerOptions, Filter, Message, Qos, RowId};
use holdfast_cps::telemetry::Query;
use holdfast_tests::proxy::Mode;

use crate::pair::{Pair, Running, SITE, until, within};

/// Three devices, so that order per topic and fairness between topics both show.
const DEVICES: usize = 3;
const EACH: u64 = 1_000;

fn device(number: usize) -> String {
    format!("{:032x}", number + 1)
}

fn topic(number: usize) -> String {
    format!("hf/v1/{SITE}/{}/up/weather", device(number))
}

/// Publishes on the LAN as a stamping device does.
pub(crate) async fn publish(lan: &Broker, number: usize, seq: u64) {
    let message = Message::new(&topic(number), format!("reading {seq}"))
        .qos(Qos::AtLeastOnce)
        .user_property("hf-epoch", "1")
        .user_property("hf-seq", &seq.to_string());
    lan.publish(message).await.expect("the LAN takes it");
}

/// What the ledger has of a device, as (sequence number, payload), in the order of arrival.
pub(crate) fn recorded(cloud: &Running, number: usize) -> Vec<(u64, String)> {
    let query = Query {
        source: device(number).into(),
        topic: None,
        after: None,
        max: usize::MAX,
    };
    let mut rows = cloud.cps.ledger().query(&query).expect("the ledger reads");
    rows.sort_by_key(|row| row.arrival);
    let text = |payload: &[u8]| String::from_utf8_lossy(payload).into_owned();
    rows.into_iter()
        .map(|row| (row.message.seq, text(&row.message.payload)))
        .collect()
}

/// What is wrong with a device's rows; empty when all came once and in order.
fn faults(rows: &[(u64, String)]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut payloads: Vec<&str> = rows.iter().map(|(_, payload)| payload.as_str()).collect();
    for seq in 1..=EACH {
        let wanted = format!("reading {seq}");
        match payloads
            .iter()
            .filter(|payload| **payload == wanted)
            .count()
        {
            1 => {}
            0 => faults.push(format!("{seq} lost")),
            _ => faults.push(format!("{seq} doubled")),
        }
    }
    if rows.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        faults.push("out of order".to_owned());
    }
    payloads.dedup();
    if payloads.len() as u64 > EACH {
        faults.push("more than was sent".to_owned());
    }
    faults
}

#[test]
fn the_judge_finds_planted_faults() {
    let good: Vec<_> = (1..=EACH)
        .map(|seq| (seq, format!("reading {seq}")))
        .collect();
    assert_eq!(faults(&good), Vec::<String>::new());
    let mut lost = good.clone();
    lost.remove(7);
    assert_eq!(faults(&lost), ["8 lost"]);
    let mut doubled = good.clone();
    doubled.push((EACH + 1, "reading 5".to_owned()));
    assert!(faults(&doubled).contains(&"5 doubled".to_owned()));
    let mut swapped = good;
    swapped.swap(3, 4);
    assert_eq!(faults(&swapped), ["out of order"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_of_every_kind_lose_and_double_nothing() {
    let pair = Pair::new().await;
    let (cloud, gateway) = pair.up().await;
    let lan = gateway.daemon.broker.clone();
    let publishing = tokio::spawn(async move {
        for seq in 1..=EACH {
            for number in 0..DEVICES {
                publish(&lan, number, seq).await;
            }
        }
    });
    // The cuts fall where they fall: in mid-packet, between a message and its acknowledgement.
    for round in 0..6_u64 {
        let mode = if round % 2 == 0 {
            Mode::Reset
        } else {
            Mode::Silent
        };
        tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
        pair.cut(mode);
        tokio::time::sleep(Duration::from_millis(300 + 100 * round)).await;
        pair.cut(Mode::Open);
    }
    within("the LAN to take all", publishing)
        .await
        .expect("no panic");
    until("the backlog to drain", || gateway.backlog.waiting() == 0).await;
    until("the ledger to have all", || {
        (0..DEVICES).all(|number| recorded(&cloud, number).len() as u64 >= EACH)
    })
    .await;
    for number in 0..DEVICES {
        assert_eq!(
            faults(&recorded(&cloud, number)),
            Vec::<String>::new(),
            "device {number}"
        );
    }
    gateway.stop().await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_stopped_in_mid_backlog_goes_on_where_it_was() {
    let pair = Pair::new().await;
    let (cloud, mut gateway) = pair.up().await;
    pair.cut(Mode::Silent);
    for seq in 1..=EACH {
        publish(&gateway.daemon.broker, 0, seq).await;
    }
    for _ in 0..3 {
        pair.cut(Mode::Open);
        let before = gateway.backlog.waiting();
        until("some of the backlog to go", || {
            gateway.backlog.waiting() < before || before == 0
        })
        .await;
        gateway.stop().await;
        gateway = pair.start_gateway().await;
    }
    until("the backlog to drain", || gateway.backlog.waiting() == 0).await;
    until("the ledger to have all", || {
        recorded(&cloud, 0).len() as u64 >= EACH
    })
    .await;
    assert_eq!(faults(&recorded(&cloud, 0)), Vec::<String>::new());
    gateway.stop().await;
    cloud.stop().await;
}

/// A device that stamps nothing: the gateway's journal knows its messages by their rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_without_a_stamp_come_once_too_and_the_site_keeps_its_own_copy() {
    let pair = Pair::new().await;
    let (cloud, gateway) = pair.up().await;
    for seq in 1..=EACH {
        let message = Message::new(&topic(0), format!("reading {seq}")).qos(Qos::AtLeastOnce);
        gateway
            .daemon
            .broker
            .publish(message)
            .await
            .expect("the LAN takes it");
        match seq % 250 {
            100 => pair.cut(Mode::Reset),
            150 => pair.cut(Mode::Open),
            _ => {}
        }
    }
    until("the ledger to have all", || {
        recorded(&cloud, 0).len() as u64 >= EACH
    })
    .await;
    until("the backlog to drain", || gateway.backlog.waiting() == 0).await;
    assert_eq!(faults(&recorded(&cloud, 0)), Vec::<String>::new());
    until("the site's ledger", || {
        recorded(&gateway.daemon, 0).len() as u64 >= EACH
    })
    .await;
    assert_eq!(faults(&recorded(&gateway.daemon, 0)), Vec::<String>::new());
    gateway.stop().await;
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_cloud_reach_the_lan_also_those_sent_in_an_outage() {
    let pair = Pair::new().await;
    let (cloud, mut gateway) = pair.up().await;
    let filter = Filter::new("hf/v1/+/+/down/#").expect("filter");
    let seen = gateway
        .daemon
        .broker
        .consumer("test", vec![filter], ConsumerOptions::default());
    let seen = seen.await.expect("consumer");
    let order = |text: &'static str| {
        let topic = format!("hf/v1/{SITE}/{}/down/set", device(0));
        cloud
            .broker
            .publish(Message::new(&topic, text).qos(Qos::AtLeastOnce))
    };
    order("one").await.expect("taken");
    within("the first command", seen.ready(RowId::START)).await;
    pair.cut(Mode::Silent);
    gateway.wait_for("outage").await;
    order("two").await.expect("taken");
    pair.cut(Mode::Open);
    gateway.wait_for("online").await;
    until("both commands", || seen.waiting() == 2).await;
    let rows = seen.read(RowId::START, 10).await.expect("rows");
    let texts: Vec<_> = rows
        .iter()
        .map(|row| row.message.payload().to_vec())
        .collect();
    assert_eq!(texts, [b"one", b"two"]);
    gateway.stop().await;
    cloud.stop().await;
}
