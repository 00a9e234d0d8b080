//! The client against mosquitto, through a proxy that can fall silent.

use super::*;
use crate::random::SystemRandom;
use crate::retry::{Backoff, Policy};
use std::io::Write;
use std::process::Stdio;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub(super) struct Mosquitto {
    pub(super) address: String,
    _child: Child,
    _folder: tempfile::TempDir,
}

/// A broker of its own on a free port; `None`, and said loudly, when it is not installed.
pub(super) async fn mosquitto() -> Option<Mosquitto> {
    mosquitto_with("").await
}

async fn mosquitto_with(more: &str) -> Option<Mosquitto> {
    for _ in 0..5 {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mosquitto.conf");
        let mut file = std::fs::File::create(&path).unwrap();
        writeln!(file, "listener {} 127.0.0.1", address.port()).unwrap();
        writeln!(file, "allow_anonymous true\nmax_inflight_messages 1000").unwrap();
        writeln!(file, "max_queued_messages 0\nset_tcp_nodelay true").unwrap();
        writeln!(file, "{more}").unwrap();
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("SKIPPED: mosquitto is not installed (Debian package `mosquitto`)");
            return None;
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            if TcpStream::connect(address).await.is_ok() {
                return Some(Mosquitto {
                    address: address.to_string(),
                    _child: child,
                    _folder: folder,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    panic!("mosquitto does not start");
}

pub(super) fn options(broker: &str, client_id: &str) -> Options {
    Options {
        clean_start: true,
        ..Options::new(plain(broker), client_id)
    }
}

#[tokio::test]
async fn messages_and_their_properties_arrive_in_order() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    let (subscriber, mut inbox, _) = connect(options(&broker.address, "s")).await.unwrap();
    let filters = [("qos0/#", Qos::AtMostOnce), ("qos1/+", Qos::AtLeastOnce)];
    subscriber.subscribe(&filters).await.unwrap();
    let (publisher, _none, _) = connect(options(&broker.address, "p")).await.unwrap();

    // Sizes around every length of a length.
    let sizes = [0, 1, 127, 128, 255, 256, 16_383, 16_384, 65_535];
    let mut sent = Vec::new();
    for (tag, size) in sizes.into_iter().enumerate() {
        for (topic, qos) in [("qos0/x", Qos::AtMostOnce), ("qos1/x", Qos::AtLeastOnce)] {
            let message = Publish {
                qos,
                tag: tag as u64,
                expiry: Some(Duration::from_secs(3600)),
                content_type: Some("text/plain".to_owned()),
                response_topic: Some("answer/here".to_owned()),
                correlation: Some(Bytes::from(vec![7; size])),
                text: true,
                ..Publish::new(topic, vec![b'p'; size])
            }
            .with_user("size", "v".repeat(size))
            .with_user("hf-epoch", "3")
            .with_user("hf-seq", tag.to_string());
            publisher.publish(message.clone()).await.unwrap();
            sent.push(message);
        }
    }
    for told in settled(&publisher, sizes.len()).await {
        assert!(matches!(told.outcome, Outcome::Acknowledged(_)), "{told:?}");
    }
    let mut got = Vec::new();
    for _ in 0..sent.len() {
        let message = inbox.next().await.unwrap();
        inbox.acknowledge(&message).await;
        got.push(message);
    }
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let sent = sent.iter().filter(|message| message.qos == qos);
        let got = got.iter().filter(|message| message.qos == qos);
        for (sent, got) in sent.zip(got) {
            assert_eq!((&got.topic, &got.payload), (&sent.topic, &sent.payload));
            assert_eq!(got.user, sent.user);
            assert_eq!(got.user("hf-epoch"), Some("3"));
            assert_eq!(got.user("missing"), None);
            assert_eq!(got.content_type, sent.content_type);
            assert_eq!(got.response_topic, sent.response_topic);
            assert_eq!(got.correlation, sent.correlation);
            assert!(got.expiry.unwrap() >= Duration::from_secs(3590));
            assert!(!got.retain && !got.duplicate);
        }
    }
    subscriber.unsubscribe(&["qos1/+"]).await.unwrap();
    publisher
        .publish_and_wait(numbered("qos1/x", 1))
        .await
        .unwrap();
    let last = Publish {
        qos: Qos::AtMostOnce,
        ..numbered("qos0/x", 2)
    };
    publisher.publish(last).await.unwrap();
    assert_eq!(
        inbox.next().await.unwrap().topic,
        "qos0/x",
        "qos1/+ is not subscribed any more"
    );
    publisher.disconnect().await;
    assert_eq!(publisher.ended().await, Ended::ByUs);
}

#[tokio::test]
async fn unacknowledged_messages_come_again_after_a_reconnect() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    let resuming = Options {
        clean_start: false,
        receive_maximum: 4,
        ..options(&broker.address, "resuming")
    };
    let (first, mut inbox, granted) = connect(resuming.clone()).await.unwrap();
    assert!(!granted.session_present);
    first.subscribe(&[("t", Qos::AtLeastOnce)]).await.unwrap();
    let (publisher, _none, _) = connect(options(&broker.address, "p")).await.unwrap();
    for tag in 0..10 {
        publisher.publish(numbered("t", tag)).await.unwrap();
    }
    settled(&publisher, 10).await;
    // Two are taken and acknowledged, two taken only; the receive maximum holds the rest back.
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.push(inbox.next().await.unwrap());
    }
    let more = tokio::time::timeout(Duration::from_millis(200), inbox.next()).await;
    assert!(more.is_err(), "more than the receive maximum: {more:?}");
    for message in &taken[..2] {
        inbox.acknowledge(message).await;
    }
    for _ in 0..2 {
        inbox.next().await.unwrap();
    }
    // The first may join a ping under way; the second is sent, and answered, behind the
    // acknowledgements. Then cut without DISCONNECT.
    first.ping().await.unwrap();
    first.ping().await.unwrap();
    drop((first, inbox));

    let (again, mut inbox, granted) = connect(resuming).await.unwrap();
    assert!(granted.session_present);
    let mut got = Vec::new();
    for _ in 0..8 {
        let Some(message) = inbox.next().await else {
            panic!("{} after {got:?}", again.ended().await);
        };
        inbox.acknowledge(&message).await;
        got.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    assert_eq!(got, ["2", "3", "4", "5", "6", "7", "8", "9"]);
    assert!(again.has_ended().is_none());
}

/// mosquitto 2.0.11 sends all that waits to a session that is resumed, whatever receive maximum it was told: a client
/// that ends the connection for it comes no further, ever.
#[tokio::test]
async fn a_long_queue_comes_whole_when_its_session_is_resumed() {
    const COUNT: u64 = 2_000;
    let Some(broker) = mosquitto().await else {
        return;
    };
    let resuming = Options {
        clean_start: false,
        receive_maximum: 16,
        ..options(&broker.address, "resuming")
    };
    let (first, mut inbox, _) = connect(resuming.clone()).await.unwrap();
    first.subscribe(&[("t", Qos::AtLeastOnce)]).await.unwrap();
    let (publisher, _none, _) = connect(options(&broker.address, "p")).await.unwrap();
    for tag in 0..COUNT {
        let told = publisher.publish_and_wait(numbered("t", tag)).await;
        assert!(matches!(told, Ok(Outcome::Acknowledged(_))), "{told:?}");
    }
    // Some are under way when the connection breaks.
    for _ in 0..8 {
        inbox.next().await.unwrap();
    }
    drop((first, inbox));
    let (again, mut inbox, granted) = connect(resuming).await.unwrap();
    assert!(granted.session_present);
    for tag in 0..COUNT {
        let Some(message) = inbox.next().await else {
            panic!("{} at {tag}", again.ended().await);
        };
        assert_eq!(message.payload, tag.to_string());
        inbox.acknowledge(&message).await;
    }
}

#[tokio::test]
async fn the_will_speaks_for_a_cut_client_only() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    let (watcher, mut inbox, _) = connect(options(&broker.address, "w")).await.unwrap();
    watcher
        .subscribe(&[("will/#", Qos::AtLeastOnce)])
        .await
        .unwrap();
    for (id, clean) in [("clean", true), ("cut", false)] {
        let with_will = Options {
            will: Some(Publish::new(format!("will/{id}"), "gone").with_user("why", "will")),
            ..options(&broker.address, id)
        };
        let (client, _inbox, _) = connect(with_will).await.unwrap();
        if clean {
            client.disconnect().await;
        }
    }
    let heard = inbox.next().await.unwrap();
    assert_eq!(
        (heard.topic.as_str(), heard.user("why")),
        ("will/cut", Some("will"))
    );
}

#[tokio::test]
async fn untaken_messages_of_qos_0_are_dropped_and_counted() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    let few = Options {
        loose_bound: 10,
        ..options(&broker.address, "s")
    };
    let (subscriber, mut inbox, _) = connect(few).await.unwrap();
    let filters = [("loose", Qos::AtMostOnce), ("firm", Qos::AtLeastOnce)];
    subscriber.subscribe(&filters).await.unwrap();
    let (publisher, _none, _) = connect(options(&broker.address, "p")).await.unwrap();
    for tag in 0..100 {
        let message = Publish {
            qos: Qos::AtMostOnce,
            ..numbered("loose", tag)
        };
        publisher.publish(message).await.unwrap();
    }
    for tag in 0..20 {
        publisher.publish(numbered("firm", tag)).await.unwrap();
    }
    settled(&publisher, 20).await;
    // A ping's answer comes behind all of them.
    subscriber.ping().await.unwrap();
    assert_eq!(subscriber.dropped(), 90);
    let mut all = Vec::new();
    while all.len() < 30 {
        assert!(inbox.next_many(&mut all, 100).await > 0);
    }
    assert_eq!(
        all.iter().filter(|message| message.topic == "firm").count(),
        20
    );
    assert!(subscriber.has_ended().is_none());
}

/// Forwards between clients and a broker until it is told to be silent; connections stay open.
struct Proxy {
    address: String,
    silent: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
}

async fn proxy(broker: String) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (silent, hushed) = watch::channel(false);
    let task = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let (broker, hushed) = (broker.clone(), hushed.clone());
            all.spawn(async move {
                let server = TcpStream::connect(broker).await.unwrap();
                let (client, server) = (client.into_split(), server.into_split());
                tokio::join!(
                    forward(client.0, server.1, hushed.clone()),
                    forward(server.0, client.1, hushed)
                );
            });
        }
    });
    Proxy {
        address,
        silent,
        _task: AbortOnDropHandle::new(task),
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut hushed: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        // Holds what it has; as a cut cable would, without a word to either side.
        if hushed.wait_for(|silent| !silent).await.is_err()
            || to.write_all(&bytes[..count]).await.is_err()
        {
            return;
        }
    }
}

#[tokio::test]
async fn a_server_gone_silent_is_noticed_long_before_the_keep_alive() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    let proxy = proxy(broker.address.clone()).await;
    let brisk = Options {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(400),
        keep_alive: Duration::from_secs(60),
        ..options(&proxy.address, "brisk")
    };
    let (client, _inbox, _) = connect(brisk).await.unwrap();
    // The control: while the proxy forwards, three times the patience passes without harm.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(client.has_ended(), None);
    let measured = client.round_trip().expect("pings measure");
    assert!(measured < Duration::from_millis(400), "{measured:?}");
    assert!(client.ping().await.unwrap() < Duration::from_millis(400));

    let cut = Instant::now();
    proxy.silent.send_replace(true);
    client.publish(numbered("t", 5)).await.unwrap();
    assert!(matches!(client.ended().await, Ended::Silent(_)));
    let noticed = cut.elapsed();
    assert!(
        noticed >= Duration::from_millis(300),
        "{noticed:?}: patience was promised"
    );
    assert!(noticed < Duration::from_secs(3), "{noticed:?}");
    assert_eq!(
        client.settled().await.unwrap(),
        [Settled {
            tag: 5,
            outcome: Outcome::Lost
        }]
    );
    assert_eq!(client.settled().await, None);
}

/// What the bridge does, in small: keep, send, delete on acknowledgement, send the rest again.
#[tokio::test]
async fn a_caller_that_keeps_its_messages_loses_none_over_cuts() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    const COUNT: u64 = 3_000;
    let (subscriber, mut inbox, _) = connect(options(&broker.address, "s")).await.unwrap();
    subscriber
        .subscribe(&[("t", Qos::AtLeastOnce)])
        .await
        .unwrap();
    let proxy = proxy(broker.address.clone()).await;
    let taking = tokio::spawn(async move {
        let mut seen = std::collections::BTreeSet::new();
        while (seen.len() as u64) < COUNT {
            let message = inbox.next().await.expect("the subscriber stands");
            inbox.acknowledge(&message).await;
            seen.insert(String::from_utf8(message.payload.to_vec()).unwrap());
        }
        seen.len() as u64
    });

    let mut kept: std::collections::BTreeSet<u64> = (0..COUNT).collect();
    let mut backoff = Backoff::new(Policy {
        first: Duration::from_millis(20),
        longest: Duration::from_millis(200),
    });
    let (mut cuts, mut acknowledged) = (0, 0u64);
    while !kept.is_empty() {
        let brisk = Options {
            ping_interval: Duration::from_millis(50),
            ping_timeout: Duration::from_millis(150),
            window: 50,
            ..options(&proxy.address, "p")
        };
        let Ok((client, _none, _)) = connect(brisk).await else {
            tokio::time::sleep(backoff.failed(&mut SystemRandom)).await;
            continue;
        };
        backoff.worked();
        let mut open = 0;
        let mut left: Vec<_> = kept.iter().copied().collect();
        left.reverse();
        loop {
            tokio::select! {
                told = client.settled() => match told {
                    Some(told) => for told in told {
                        open -= 1;
                        if matches!(told.outcome, Outcome::Acknowledged(_)) {
                            acknowledged += 1;
                            kept.remove(&told.tag);
                        }
                    },
                    None => break,
                },
                sent = client.publish(numbered("t", *left.last().unwrap_or(&0))), if !left.is_empty() => {
                    if sent.is_err() { continue; }
                    open += 1;
                    left.pop();
                    // Fall silent in the midst of it, a few times over.
                    if left.len() % 700 == 350 && cuts < 4 && !proxy.silent.send_replace(true) {
                        cuts += 1;
                    }
                }
            }
            if left.is_empty() && open == 0 {
                break;
            }
        }
        assert!(client.has_ended().is_none() == (open == 0 && left.is_empty()) || open == 0);
        proxy.silent.send_replace(false);
    }
    assert!(cuts >= 3, "the cuts happened: {cuts}");
    assert_eq!(acknowledged, COUNT);
    let seen = tokio::time::timeout(Duration::from_secs(10), taking).await;
    assert_eq!(seen.expect("all arrive").unwrap(), COUNT);
}

/// A foreign TLS stack (OpenSSL) on the other side, mutual authentication, name not in the address.
#[tokio::test]
async fn mutual_tls_with_a_stock_broker() {
    use crate::tls::tests::{DeviceAndServer, device_and_server};
    let DeviceAndServer {
        server_pem,
        server_key_pem,
        root_pem,
        server_name,
        trust,
        device,
        clock,
    } = device_and_server();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let conf = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true",
        write("ca.pem", &root_pem),
        write("cert.pem", &server_pem),
        write("key.pem", &server_key_pem),
    );
    let Some(broker) = mosquitto_with(&conf).await else {
        return;
    };
    let secured = |identity| Options {
        endpoint: Endpoint {
            addresses: vec![broker.address.clone()],
            security: Security::Tls {
                name: server_name.clone(),
                config: crate::tls::client_config(trust.clone(), identity, clock.clone()).unwrap(),
            },
        },
        ..options(&broker.address, "tls")
    };
    let slot = crate::tls::IdentitySlot::with(device);
    let (client, mut inbox, _) = connect(secured(Some(slot))).await.unwrap();
    client.subscribe(&[("t", Qos::AtLeastOnce)]).await.unwrap();
    for tag in 0..500 {
        client
            .publish(Publish {
                tag,
                ..Publish::new("t", vec![7; 3000])
            })
            .await
            .unwrap();
        if client.room() == 0 {
            client.settled().await.unwrap();
        }
        let got = inbox.next().await.unwrap();
        inbox.acknowledge(&got).await;
        assert_eq!(got.payload.len(), 3000);
    }
    client.disconnect().await;
    // The control: without a certificate the broker refuses.
    let refused = connect(secured(None)).await;
    assert!(
        matches!(
            refused,
            Err(ConnectError::Broken(_) | ConnectError::Dial(_))
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput_is_enough_for_a_bridge() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    const COUNT: u64 = 30_000;
    let (client, _inbox, granted) = connect(options(&broker.address, "p")).await.unwrap();
    let begun = Instant::now();
    let publisher = client.clone();
    let publishing = tokio::spawn(async move {
        for tag in 0..COUNT {
            let message = Publish {
                tag,
                ..Publish::new("t", vec![b'x'; 256])
            };
            publisher.publish(message).await.unwrap();
        }
    });
    let mut done = 0;
    while done < COUNT {
        done += client.settled().await.unwrap().len() as u64;
    }
    publishing.await.unwrap();
    let rate = COUNT as f64 / begun.elapsed().as_secs_f64();
    eprintln!(
        "QoS 1, 256 bytes, window {}: {rate:.0}/s (unoptimised build)",
        granted.window
    );
    assert!(rate > 2_000.0, "{rate:.0}/s");
}
