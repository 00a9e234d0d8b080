//! The generator against the real broker in this process, and against servers that lose or disorder.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_broker::{
    Broker, Config, Connect, Door, Identity, JournalMedium, Peer, Refusal, Rights,
};
use tokio_util::sync::CancellationToken;

use super::load::{self, Load, Until};
use super::packet;
use super::socket::Poller;

struct AllowAll;

impl Rights for AllowAll {
    fn identify(&self, _: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: "any".into(),
        })
    }
    fn may_publish(&self, _: &Identity, _: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _: &Identity, _: &str) -> bool {
        true
    }
    fn may_receive(&self, _: &Identity, _: &str) -> bool {
        true
    }
}

/// The library's server on a thread pool of its own; ends with the runtime.
fn broker() -> (tokio::runtime::Runtime, tempfile::TempDir, SocketAddr) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let medium = JournalMedium::File(folder.path().join("journal.redb"));
    let address = runtime.block_on(async {
        let broker = Broker::open(Config::default(), medium, Arc::new(AllowAll)).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            broker
                .serve(listener, Door::Plain, CancellationToken::new())
                .await
        });
        address
    });
    (runtime, folder, address)
}

fn load(publishers: usize, subscribers: usize, qos: u8, messages: u64) -> Load {
    Load {
        name: format!("t{publishers}-{subscribers}-{qos}"),
        publishers,
        subscribers,
        pairs: false,
        qos,
        durable: false,
        burst: 20,
        window: 100,
        under_way: 1000,
        pace: None,
        until: Until::Messages(messages),
    }
}

#[test]
fn every_message_is_counted_once_for_each_subscriber() {
    let (_runtime, _folder, address) = broker();
    for (publishers, subscribers, qos) in [
        (1, 1, 0),
        (5, 1, 0),
        (1, 5, 0),
        (1, 1, 1),
        (5, 1, 1),
        (1, 5, 1),
        (3, 0, 1),
    ] {
        let load = load(publishers, subscribers, qos, 2000);
        let outcome = load::run(address, &load, &|| 1.0).unwrap();
        let due = 2000 * subscribers.max(1) as u64;
        assert_eq!(outcome.messages, due, "{load:?}");
        assert_eq!(outcome.cpu, 0.0);
        let acks = if qos == 1 { 2000 } else { 0 };
        assert_eq!(outcome.acknowledged.count(), acks);
    }
}

#[test]
fn a_paced_run_keeps_its_pace_and_times_each_arrival() {
    let (_runtime, _folder, address) = broker();
    let mut load = load(2, 2, 1, 0);
    (load.pairs, load.burst, load.pace) = (true, 1, Some(500.0));
    load.until = Until::Time(Duration::from_millis(100), Duration::from_secs(1));
    let outcome = load::run(address, &load, &|| 0.0).unwrap();
    assert!((400..=600).contains(&outcome.messages), "{outcome:?}");
    assert!(outcome.arrival.count() >= 400);
    assert!(outcome.arrival.percentile(0.5) > 0.0);
}

/// Waits rounded up to whole milliseconds would let a paced run fall behind and catch up in pairs, which costs each server
/// something else than single messages do.
#[test]
fn a_wait_is_as_long_as_asked_for_below_a_millisecond_too() {
    let mut poller = Poller::new().unwrap();
    let asked = Duration::from_micros(200);
    let waited = (0..50).map(|_| {
        let began = Instant::now();
        poller.wait(asked, &mut Vec::new()).unwrap();
        began.elapsed()
    });
    let shortest = waited.min().unwrap();
    assert!((asked..asked * 4).contains(&shortest), "{shortest:?}");
}

/// Greets, then answers QoS 1 publishes as `answer` says.
fn liar(answer: impl Fn(usize, &[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        greet(&mut stream);
        let topic = "t1-0-1/000/data".len();
        let mut publish = vec![0; packet::publish_bytes(topic, 1)];
        for number in 0.. {
            if stream.read_exact(&mut publish).is_err() {
                return;
            }
            let mut ack = Vec::new();
            packet::acknowledge(&publish, topic, &mut ack);
            if stream.write_all(&answer(number, &ack)).is_err() {
                return;
            }
        }
    });
    address
}

fn greet(stream: &mut TcpStream) {
    let hello = packet::connect("t1-0-1-pub-000", true);
    stream.read_exact(&mut vec![0; hello.len()]).unwrap();
    stream.write_all(&[0x20, 2, 0, 0]).unwrap();
}

#[test]
fn control_an_acknowledgement_too_many_is_noticed() {
    let address = liar(|number, ack| {
        let mut twice = ack.to_vec();
        if number == 7 {
            twice.extend_from_slice(ack);
        }
        twice
    });
    let error = load::run(address, &load(1, 0, 1, 200), &|| 0.0).unwrap_err();
    assert!(error.to_string().contains("out of order"), "{error:#}");
}

#[test]
fn control_a_wrong_packet_and_a_closed_connection_are_noticed() {
    let address = liar(|_, _| vec![0xD0, 0, 0, 0]);
    let error = load::run(address, &load(1, 0, 1, 200), &|| 0.0).unwrap_err();
    assert!(error.to_string().contains("type 0xd0"), "{error:#}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || greet(&mut listener.accept().unwrap().0));
    assert!(load::run(address, &load(1, 0, 1, 200), &|| 0.0).is_err());
}
