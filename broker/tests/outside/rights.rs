//! Nobody reaches what is not theirs: escapes by filter, alias, will, retained slot, old session.

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{
    Broker, Config, Connect, Door, Identity, JournalMedium, Peer, Refusal, Rights,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::common::{Hello, TestRights, Wire, expiry, packet, publish};
use crate::kit::{Numbers, VERSIONS, answer, client, hello, hello_present, lasting, server};

/// Everybody has the tree under its own client id, and may read `open/#`.
#[derive(Default)]
struct OwnTree {
    /// The planted defect: nobody is asked.
    open: bool,
}

impl OwnTree {
    fn holds(&self, who: &Identity, first: Option<&str>) -> bool {
        self.open || first == Some(&*who.client_id)
    }
}

impl Rights for OwnTree {
    fn identify(&self, _: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: connect.client_id.into(),
        })
    }
    fn may_publish(&self, who: &Identity, topic: &str) -> bool {
        self.holds(who, topic.split('/').next())
    }
    fn may_subscribe(&self, who: &Identity, filter: &str) -> bool {
        let first = filter.split('/').next();
        self.holds(who, first) || first == Some("open")
    }
    fn may_receive(&self, who: &Identity, topic: &str) -> bool {
        let first = topic.split('/').next();
        self.holds(who, first) || first == Some("open")
    }
}

async fn own_trees() -> (Broker, std::net::SocketAddr, tempfile::TempDir) {
    trees(OwnTree::default()).await
}

async fn trees(rights: OwnTree) -> (Broker, std::net::SocketAddr, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let medium = JournalMedium::File(folder.path().join("journal.redb"));
    let broker = Broker::open(Config::default(), medium, Arc::new(rights)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = broker.clone();
    tokio::spawn(async move {
        let stop = CancellationToken::new();
        serving.serve(listener, Door::Plain, stop).await.unwrap();
    });
    (broker, address, folder)
}

async fn dial(address: std::net::SocketAddr, id: &str) -> Wire {
    let stream = TcpStream::connect(address).await.unwrap();
    // Small packets follow each other without an answer between them.
    stream.set_nodelay(true).unwrap();
    let mut wire = Wire::new(stream);
    wire.v5 = true;
    wire.send(&Hello::v5(id).bytes()).await;
    wire.connack(0).await;
    wire
}

#[tokio::test]
async fn e6_no_filter_reaches_another_clients_topics() {
    let (_broker, address, _folder) = own_trees().await;
    let mut spy = dial(address, "spy").await;
    let long = format!("spy/{}", "x".repeat(65_000));
    for filter in [
        "#",
        "+/#",
        "+",
        "+/up",
        "/#",
        "/+",
        "//",
        "$SYS/#",
        "$share/g/#",
        "$share/g/victim/#",
        "$share/g/+/up",
        "$share/spy/victim/#",
        "$queue/victim/up",
        "$queue/#",
        "$CONTROL/#",
        "$share/g/$share/g/#",
        "spy/../victim/up",
        "victim/#",
        "victim",
        "Spy/#",
        "SPY/up",
        "\u{FEFF}spy/#",
        "sp\u{200B}y/#",
        "spy\u{301}/#",
        "ſpy/#",
        "spy /#",
        " spy/#",
        "./spy",
        "%73py/#",
        "spy%2F..%2Fvictim",
        &long,
    ] {
        let code = spy.subscribe(filter, 1).await;
        if filter == "spy/../victim/up" {
            // A plain name in its own tree: nothing here resolves dots.
            assert_eq!(code, 1);
            continue;
        }
        assert!(matches!(code, 0x87 | 0x8F), "{:.20} {code:#x}", filter);
    }
    // 199 good ones and a bad one in a single packet.
    let mut body = vec![0x70, 1, 0];
    for number in 0..199 {
        body.extend(crate::common::text(&format!("open/{number}")));
        body.push(1);
    }
    body.extend(crate::common::text("victim/up"));
    body.push(1);
    spy.send(&packet(0x82, &body)).await;
    let (_, codes) = spy.packet().await.unwrap();
    assert_eq!(codes.len(), 3 + 200);
    assert_eq!(codes.last(), Some(&0x87));
    let mut victim = dial(address, "victim").await;
    for number in 0..1000 {
        let topic = ["victim/up", "victim", "victim/a/b", "victim//"][number % 4];
        victim
            .publish(topic, u8::from(number % 2 == 0), "secret")
            .await;
    }
    victim.nothing().await;
    spy.nothing().await;
}

#[tokio::test]
async fn control_e6_where_nobody_is_asked_the_same_filters_reach_them() {
    for filter in [
        "#",
        "+/#",
        "+/up",
        "$share/g/#",
        "$share/g/victim/#",
        "victim/#",
    ] {
        let (_broker, address, _folder) = trees(OwnTree { open: true }).await;
        let mut spy = dial(address, "spy").await;
        assert_eq!(spy.subscribe(filter, 1).await, 1, "{filter}");
        let mut victim = dial(address, "victim").await;
        victim.publish("victim/up", 1, "secret").await;
        assert_eq!(spy.receive().await.text(), "secret", "{filter}");
    }
}

#[tokio::test]
async fn e5_random_publishes_reach_exactly_those_a_model_names() {
    let (_broker, address, _folder) = own_trees().await;
    let names = ["a", "b", "c", "open"];
    let filters = ["a/#", "b/+", "c/x", "open/#", "#", "+/x", "a/x"];
    let mut wires = Vec::new();
    let mut granted: Vec<Vec<&str>> = Vec::new();
    for name in &names[..3] {
        let mut wire = dial(address, name).await;
        let mut own = Vec::new();
        for filter in filters {
            let may = filter.starts_with(name) || filter.starts_with("open");
            let code = wire.subscribe(filter, 0).await;
            assert_eq!(code < 0x80, may, "{name} {filter}");
            if may {
                own.push(filter);
            }
        }
        wires.push(wire);
        granted.push(own);
    }
    let mut expected = vec![Vec::new(); 3];
    let mut numbers = Numbers(0x5EED_0001);
    for number in 0..1500 {
        let who = numbers.below(3);
        let topic = format!(
            "{}/{}",
            names[numbers.below(4)],
            ["x", "y", "x/y"][numbers.below(3)]
        );
        let payload = number.to_string();
        let bytes = publish(true, 0, &topic, 0, &[], payload.as_bytes());
        wires[who].send(&bytes).await;
        if topic.starts_with(names[who]) {
            // Only the owner may publish there, and only it may read there.
            let matching = |filter: &&&str| {
                let first = filter.split('/').next().unwrap();
                let rest = filter.split_once('/').unwrap().1;
                let (name, tail) = topic.split_once('/').unwrap();
                first == name
                    && (rest == "#" || rest == tail || (rest == "+" && !tail.contains('/')))
            };
            if granted[who].iter().any(|filter| matching(&filter)) {
                expected[who].push(payload);
            }
        }
    }
    for (wire, expected) in wires.iter_mut().zip(expected) {
        assert!(expected.len() > 20);
        for payload in expected {
            assert_eq!(wire.receive().await.text(), payload);
        }
        wire.nothing().await;
    }
}

#[tokio::test]
async fn an_alias_does_not_carry_a_message_past_the_rights() {
    let server = server().await;
    TestRights::forbid(&server.rights.no_publish, "secret/#");
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 1).await;
    let mut giver = server.v5("giver").await;
    assert_eq!(
        giver.publish_with("secret/a", 2, &[0x23, 0, 1], "no").await,
        0x87
    );
    assert_eq!(giver.publish_with("", 2, &[0x23, 0, 1], "no").await, 0x87);
    giver.publish_with("", 0, &[0x23, 0, 1], "no").await;
    // Rights that go away take an alias that was good before with them.
    assert_eq!(
        giver.publish_with("fine/a", 2, &[0x23, 0, 2], "yes").await,
        0
    );
    TestRights::forbid(&server.rights.no_publish, "fine/#");
    server.broker.rights_changed();
    assert_eq!(giver.publish_with("", 2, &[0x23, 0, 2], "no").await, 0x87);
    assert_eq!(taker.receive().await.text(), "yes");
    taker.nothing().await;
}

#[tokio::test]
async fn e7_a_will_without_a_right_is_refused_and_a_right_lost_later_silences_it() {
    let server = server().await;
    TestRights::forbid(&server.rights.no_publish, "foreign/#");
    TestRights::forbid(&server.rights.no_publish, "$SYS/#");
    let mut taker = server.v5("taker").await;
    taker.subscribe("#", 1).await;
    taker.subscribe("$SYS/#", 1).await;
    for (topic, code) in [
        ("foreign/x", 0x87),
        ("$SYS/x", 0x87),
        ("a/#", 0x90),
        ("+", 0x90),
        ("", 0x90),
    ] {
        for v5 in VERSIONS {
            let mut hello = Hello::v5("dying");
            hello.v5 = v5;
            hello.will = Some((0, Vec::new(), topic.into(), b"no".to_vec()));
            let found = answer(&server, &hello.bytes()).await;
            assert!(found.as_ref().is_none_or(|body| body[1] != 0), "{topic}");
            if v5 && code == 0x87 {
                assert_eq!(found.unwrap()[1], code);
            }
        }
    }
    let mut delayed = lasting(true, "delayed");
    delayed.will = Some((0, vec![0x18, 0, 0, 0, 1], "w/x".into(), b"no".to_vec()));
    drop(hello(&server, &delayed).await);
    TestRights::forbid(&server.rights.no_publish, "w/#");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    taker.nothing().await;
}

#[tokio::test]
async fn e8_a_retained_message_is_not_given_to_who_lost_the_right_to_it() {
    let server = server().await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("r/secret", 3, &[], "no").await;
    giver.publish_with("r/open", 3, &[], "yes").await;
    TestRights::forbid(&server.rights.no_receive, "r/secret");
    server.broker.rights_changed();
    for qos in 0..=2 {
        for durable in [false, true] {
            let mut greeting = Hello::v5("taker");
            if durable {
                greeting.properties = expiry(60);
            }
            let mut taker = hello(&server, &greeting).await;
            taker.subscribe("r/#", qos).await;
            assert_eq!(taker.receive().await.text(), "yes");
            taker.nothing().await;
        }
    }
}

#[tokio::test]
async fn e10_rights_lost_while_a_message_is_in_flight_keep_it_from_being_sent_again() {
    for restart in [false, true] {
        let mut server = server().await;
        for v5 in VERSIONS {
            server.rights.no_receive.lock().unwrap().clear();
            server.broker.rights_changed();
            let mut taker = hello(&server, &lasting(v5, "taker")).await;
            taker.subscribe("#", 2).await;
            let mut giver = server.v5("giver").await;
            giver.publish("a/1", 1, "seen").await;
            giver.publish("a/2", 2, "seen").await;
            taker.arrived().await;
            taker.arrived().await;
            drop(taker);
            giver.publish("a/3", 1, "queued").await;
            giver.publish("b/4", 1, "kept").await;
            drop(giver);
            TestRights::forbid(&server.rights.no_receive, "a/#");
            server.broker.rights_changed();
            if restart {
                server = server.restart(Config::default()).await;
            }
            let (mut taker, present) = hello_present(&server, &lasting(v5, "taker")).await;
            assert!(present);
            assert_eq!(taker.receive().await.text(), "kept", "restart {restart}");
            taker.nothing().await;
            // Nothing of it blocks the session for ever.
            drop(taker);
            let (mut taker, _) = hello_present(&server, &lasting(v5, "taker")).await;
            taker.nothing().await;
            let mut clean = Hello::v5("taker");
            clean.v5 = v5;
            hello(&server, &clean).await.disconnect().await;
        }
    }
}

#[tokio::test]
async fn e10_rights_lost_on_a_live_session_hold_at_once() {
    let server = server().await;
    for v5 in VERSIONS {
        for qos in 0..=2u8 {
            server.rights.no_receive.lock().unwrap().clear();
            server.rights.no_publish.lock().unwrap().clear();
            server.broker.rights_changed();
            let mut taker = client(&server, v5, "taker").await;
            taker.subscribe("a", qos).await;
            let mut giver = server.v5("giver").await;
            giver.publish("a", qos, "yes").await;
            assert_eq!(taker.receive().await.text(), "yes");
            TestRights::forbid(&server.rights.no_receive, "a");
            server.broker.rights_changed();
            giver.publish("a", qos, "no").await;
            giver.nothing().await;
            taker.nothing().await;
            TestRights::forbid(&server.rights.no_publish, "a");
            server.broker.rights_changed();
            if qos > 0 {
                assert_eq!(giver.publish("a", qos, "no").await, 0x87);
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_tells_no_client_what_another_has() {
    let server = server().await;
    server.rights.banned.lock().unwrap().insert("banned".into());
    for v5 in VERSIONS {
        let mut hello = Hello::v5("banned");
        hello.v5 = v5;
        let body = answer(&server, &hello.bytes()).await.unwrap();
        // A code, and words that are the same for everybody.
        let words = String::from_utf8_lossy(&body[2..]).into_owned();
        let said = words.trim_start_matches(|letter: char| !letter.is_ascii_lowercase());
        assert_eq!(said, if v5 { "this client is shut out" } else { "" });
        assert_eq!(body[1], if v5 { 0x8A } else { 5 });
    }
}
