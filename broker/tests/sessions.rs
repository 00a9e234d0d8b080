//! Sessions over real sockets: they outlive connections and restarts, are taken over, expire; wills.

mod common;

use std::time::Duration;

use common::{Hello, Server, TestRights, expiry, packet};
use holdfast_broker::{Config, CutReason, DropReason};

async fn server() -> Server {
    Server::start(Config::default()).await
}

#[tokio::test]
async fn mqtt_3_1_2_5_a_lasting_session_gets_what_came_while_it_was_away() {
    let server = server().await;
    let mut giver = server.v3("giver").await;
    for (v5, qos) in [(true, 1), (true, 2), (false, 1), (false, 2)] {
        let mut hello = Hello::v5(&format!("taker-{v5}-{qos}"));
        hello.v5 = v5;
        hello.clean = false;
        if v5 {
            hello.properties = expiry(3600);
        }
        let open = async || {
            let mut wire = server.raw().await;
            wire.v5 = v5;
            wire.send(&hello.bytes()).await;
            let present = wire.connack(0).await;
            (wire, present)
        };
        let (mut taker, present) = open().await;
        assert!(!present);
        taker.subscribe("x/#", qos).await;
        drop(taker);
        // More than go out at once.
        for number in 0..150 {
            let payload = number.to_string();
            assert_eq!(giver.publish("x/y", qos, &payload).await, 0);
        }
        let (mut taker, present) = open().await;
        assert!(present);
        // All that is sent is answered step by step, whatever comes between.
        let (mut next, mut open) = (0, 0);
        while next < 150 || open > 0 {
            let (first, body) = taker.packet().await.unwrap();
            if first == 0x62 {
                taker.send(&packet(0x70, &body[..2])).await;
                open -= 1;
                continue;
            }
            let got = taker.parse(first, &body);
            assert_eq!((got.text(), got.qos()), (&*next.to_string(), qos));
            let answer = if qos == 2 { 0x50 } else { 0x40 };
            taker.send(&packet(answer, &got.id.to_be_bytes())).await;
            next += 1;
            open += i32::from(qos == 2);
        }
        taker.nothing().await;
        assert_eq!(giver.publish("x/z", qos, "live").await, 0);
        assert_eq!(taker.receive().await.text(), "live");
        taker.unsubscribe("x/#").await;
    }
}

#[tokio::test]
async fn a_restart_keeps_sessions_subscriptions_messages_and_retained() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    taker.subscribe("q2", 2).await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("kept", 3, &[], "kept").await;
    drop(taker);
    giver.publish("x", 1, "one").await;
    giver.publish("q2", 2, "two").await;
    let server = server.restart(Config::default()).await;
    let (mut taker, present) = server.lasting("taker").await;
    assert!(present);
    assert_eq!(taker.receive().await.text(), "one");
    assert_eq!(taker.receive().await.text(), "two");
    taker.nothing().await;
    taker.subscribe("kept", 1).await;
    assert_eq!(taker.receive().await.text(), "kept");
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "after").await;
    assert_eq!(taker.receive().await.text(), "after");
}

#[tokio::test]
async fn mqtt_4_4_0_1_what_is_unacknowledged_comes_again_under_its_id() {
    let server = server().await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 2).await;
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "first").await;
    giver.publish("x", 2, "second").await;
    let first = taker.arrived().await;
    let second = taker.arrived().await;
    // The second is half done: PUBREC was taken, PUBREL came.
    taker.send(&packet(0x50, &second.id.to_be_bytes())).await;
    assert_eq!(taker.ack(0x62, second.id).await, 0);
    drop(taker);
    let (mut taker, _) = server.lasting("taker").await;
    let again = taker.arrived().await;
    assert!(again.dup());
    assert_eq!((again.id, again.text()), (first.id, "first"));
    assert_eq!(taker.ack(0x62, second.id).await, 0);
    drop(taker);
    // The same after a restart: the ids come from the journal.
    let server = server.restart(Config::default()).await;
    let (mut taker, _) = server.lasting("taker").await;
    assert_eq!(taker.receive().await.id, first.id);
    assert_eq!(taker.ack(0x62, second.id).await, 0);
    taker.send(&packet(0x70, &second.id.to_be_bytes())).await;
    taker.nothing().await;
    drop(taker);
    let (mut taker, _) = server.lasting("taker").await;
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt_3_1_4_3_a_second_connection_takes_the_session_over() {
    let server = server().await;
    let mut first = server.v5("same").await;
    let mut second = server.v5("same").await;
    assert_eq!(first.closed().await, Some(0x8E));
    second.nothing().await;
}

#[tokio::test]
async fn many_at_once_under_one_client_id_leave_exactly_one() {
    let server = server().await;
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = server.raw().await;
        wire.v5 = true;
        wire.send(&Hello::v5("same").bytes()).await;
        wires.push(wire);
    }
    let mut last = wires.pop().unwrap();
    last.packet().await.unwrap();
    for wire in &mut wires {
        let _ = tokio::time::timeout(common::PATIENCE, wire.closed()).await;
    }
    assert_eq!(server.broker.metrics().sessions, 1);
}

#[tokio::test]
async fn mqtt_3_1_2_8_the_will_comes_when_the_connection_is_lost_and_not_after_goodbye() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("will", 1).await;
    for (polite, version) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut wire = server.raw().await;
        let mut hello = Hello::v5("dying");
        hello.v5 = version;
        hello.will = Some((0x08, Vec::new(), "will".into(), b"gone".to_vec()));
        wire.send(&hello.bytes()).await;
        wire.connack(0).await;
        if polite {
            wire.disconnect().await;
            taker.nothing().await;
        } else {
            drop(wire);
            assert_eq!(taker.receive().await.text(), "gone");
        }
    }
}

#[tokio::test]
async fn mqtt_3_1_3_9_a_delayed_will_is_cancelled_by_a_return() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("will", 1).await;
    let mut hello = Hello::v5("dying");
    hello.clean = false;
    hello.properties = expiry(100);
    hello.will = Some((0, vec![0x18, 0, 0, 0, 1], "will".into(), b"gone".to_vec()));
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    drop(wire);
    let (wire, present) = server.lasting("dying").await;
    assert!(present);
    tokio::time::sleep(Duration::from_millis(2200)).await;
    taker.nothing().await;
    wire.disconnect().await;
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    drop(wire);
    let before = tokio::time::Instant::now();
    assert_eq!(taker.receive().await.text(), "gone");
    assert!(before.elapsed() > Duration::from_millis(800));
}

#[tokio::test]
async fn mqtt_3_14_4_3_disconnect_with_will_sends_it() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("will", 0).await;
    let mut wire = server.raw().await;
    let mut hello = Hello::v5("dying");
    hello.will = Some((0, Vec::new(), "will".into(), b"gone".to_vec()));
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    wire.send(&[0xE0, 1, 4]).await;
    assert_eq!(taker.receive().await.text(), "gone");
}

#[tokio::test]
async fn mqtt_3_1_2_24_silence_beyond_one_and_a_half_keep_alives_ends_the_connection() {
    let server = server().await;
    for v5 in [false, true] {
        let mut wire = server.raw().await;
        wire.v5 = v5;
        let mut hello = Hello::v5("silent");
        hello.v5 = v5;
        hello.keep_alive = 2;
        wire.send(&hello.bytes()).await;
        wire.connack(0).await;
        let before = tokio::time::Instant::now();
        assert_eq!(wire.closed().await, v5.then_some(0x8D));
        // Not before, and not much later.
        let silent = before.elapsed().as_millis();
        assert!((2900..4500).contains(&silent), "{silent}");
    }
}

#[tokio::test]
async fn a_will_needs_its_right_at_connect_and_when_it_fires() {
    let server = server().await;
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 1).await;
    let mut hello = Hello::v5("dying");
    hello.will = Some((0, Vec::new(), "w/x".into(), b"gone".to_vec()));
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    TestRights::forbid(&server.rights.no_publish, "w/#");
    drop(wire);
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(0x87).await;
    taker.nothing().await;
}

#[tokio::test]
async fn mqtt_3_1_3_6_an_empty_client_id_gets_one() {
    let server = server().await;
    let mut wire = server.raw().await;
    wire.send(&Hello::v5("").bytes()).await;
    let (_, body) = wire.packet().await.unwrap();
    assert_eq!(body[1], 0);
    assert!(body.windows(5).any(|part| part == b"auto-"));
    // 3.1.1 must ask for a clean session with it [MQTT-3.1.3-8].
    let mut hello = Hello::v3("");
    hello.clean = false;
    let mut wire = server.raw().await;
    wire.send(&hello.bytes()).await;
    wire.connack(2).await;
}

#[tokio::test]
async fn a_full_session_drops_exactly_what_it_counts() {
    let mut config = Config::default();
    config.limits.session_rows = 100;
    let server = Server::start(config).await;
    let (mut taker, _) = server.lasting("taker").await;
    taker.subscribe("x", 1).await;
    drop(taker);
    let mut giver = server.v5("giver").await;
    for number in 0..110 {
        assert_eq!(giver.publish("x", 1, &number.to_string()).await, 0);
    }
    let (mut taker, _) = server.lasting("taker").await;
    for number in 0..100 {
        assert_eq!(taker.receive().await.text(), number.to_string());
    }
    taker.nothing().await;
    assert_eq!(
        server.broker.metrics().dropped[&DropReason::JournalFull],
        10
    );
}

#[tokio::test]
async fn an_expired_session_is_gone_with_its_messages() {
    let server = server().await;
    let mut wire = server.raw().await;
    wire.v5 = true;
    let mut hello = Hello::v5("short");
    hello.clean = false;
    hello.properties = expiry(1);
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    wire.subscribe("x", 1).await;
    drop(wire);
    let mut giver = server.v5("giver").await;
    giver.publish("x", 1, "m").await;
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while server.broker.metrics().sessions > 1 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.broker.metrics().journal_rows, 0);
    assert!(!server.lasting("short").await.1);
}

#[tokio::test]
async fn mqtt_3_14_2_2_disconnect_may_change_the_expiry_but_not_from_zero() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    let mut body = vec![0, 5];
    body.extend(expiry(10));
    wire.send(&packet(0xE0, &body)).await;
    assert_eq!(wire.closed().await, Some(0x82));
    let (mut wire, _) = server.lasting("y").await;
    let mut body = vec![0, 5];
    body.extend(expiry(0));
    wire.send(&packet(0xE0, &body)).await;
    wire.closed().await;
    assert!(!server.lasting("y").await.1);
}

#[tokio::test]
async fn a_stopping_server_says_so_and_lets_sessions_live() {
    let server = server().await;
    let (mut wire, _) = server.lasting("x").await;
    server.cancel.cancel();
    assert_eq!(wire.closed().await, Some(0x8B));
    let server = server.restart(Config::default()).await;
    assert!(server.lasting("x").await.1);
}

#[tokio::test]
async fn the_operator_can_cut_a_client() {
    let server = server().await;
    let mut wire = server.v5("x").await;
    assert!(server.broker.cut("x", CutReason::Administrative));
    assert_eq!(wire.closed().await, Some(0x98));
    assert!(!server.broker.cut("nobody", CutReason::Administrative));
    let mut wire = server.v5("y").await;
    let cut = server
        .broker
        .cut_where(CutReason::NotAuthorized, |identity| {
            &*identity.client_id == "y"
        });
    assert_eq!(cut, 1);
    assert_eq!(wire.closed().await, Some(0x87));
}
