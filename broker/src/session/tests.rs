//! A subscriber that stopped reading costs a sender next to nothing, and one that goes on reading gets all
//! that was queued. With the planted defects that show these tests can fail: a broker that waits for
//! everybody, and one that forgets what its output had no room for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use holdfast_store::Medium;
use holdfast_store::fault::CrashBackend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Broker, Config, Connect, Door, DropReason, Identity, Peer, Refusal, Rights};

struct Everybody;

impl Rights for Everybody {
    fn identify(&self, _: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: "".into(),
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

/// A 3.1.1 client with a one-letter id; its socket takes little.
async fn client(address: std::net::SocketAddr, id: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let hello = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, 1, id];
    stream.write_all(&hello).await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    stream
}

/// Publishes at QoS 1 and waits for the acknowledgement.
async fn publish(stream: &mut TcpStream, payload: usize) {
    let length = 5 + payload;
    let mut packet = vec![0x32, (length % 128) as u8 | 0x80, (length / 128) as u8];
    packet.extend([0, 1, b't', 0, 1]);
    packet.resize(packet.len() + payload, b'x');
    stream.write_all(&packet).await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
}

/// A broker, where it listens, and what ends it.
async fn serve(
    config: Config,
) -> (
    Broker,
    std::net::SocketAddr,
    CancellationToken,
    JoinHandle<()>,
) {
    let medium = Medium::Backend(Arc::new(CrashBackend::new()));
    let broker = Broker::open(config, medium, Arc::new(Everybody)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let (serving, until) = (broker.clone(), stop.clone());
    let served = tokio::spawn(async move {
        serving.serve(listener, Door::Plain, until).await.unwrap();
    });
    (broker, address, stop, served)
}

/// Subscribes to `t` at QoS 0.
async fn subscribe(stream: &mut TcpStream) {
    let packet = [0x82, 6, 0, 1, 0, 1, b't', 0];
    stream.write_all(&packet).await.unwrap();
    stream.read_exact(&mut [0; 5]).await.unwrap();
}

/// The mean time of a publish beside a subscriber that does not read.
async fn mean(endless: bool) -> Duration {
    let mut config = Config::default();
    config.limits.queue_messages = 8;
    let (broker, address, stop, served) = serve(config).await;
    let mut dead = client(address, b'd').await;
    subscribe(&mut dead).await;
    let mut giver = client(address, b'g').await;
    let full = || {
        broker
            .metrics()
            .dropped
            .contains_key(&DropReason::QueueFull)
    };
    while !full() {
        publish(&mut giver, 16_000).await;
    }
    let cell = broker.shared().sessions.find("d").unwrap();
    let shown = cell.shown();
    shown.patience().endless.store(endless, Ordering::Relaxed);
    let begun = Instant::now();
    for _ in 0..50 {
        publish(&mut giver, 200).await;
    }
    let mean = begun.elapsed() / 50;
    stop.cancel();
    served.await.unwrap();
    mean
}

/// How many of the messages that were queued while it did not read a subscriber lacks, when it reads again
/// and nothing else happens.
async fn missing(content: bool) -> usize {
    const PAYLOAD: usize = 16_000;
    /// First byte, two of length, the topic's length and the topic.
    const EACH: usize = PAYLOAD + 6;
    let (broker, address, stop, served) = serve(Config::default()).await;
    let mut taker = client(address, b't').await;
    subscribe(&mut taker).await;
    let mut giver = client(address, b'g').await;
    // More than the sockets between them hold, by some times the output's bound.
    let cell = broker.shared().sessions.find("t").unwrap();
    while cell.shown().waiting().0 < 50 {
        publish(&mut giver, PAYLOAD).await;
    }
    let all = usize::try_from(broker.metrics().received).unwrap();
    broker
        .shared_core()
        .content
        .store(content, Ordering::Relaxed);
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 16];
    while bytes < all * EACH {
        let read = tokio::time::timeout(Duration::from_secs(2), taker.read(&mut buffer)).await;
        let Ok(read) = read else { break };
        bytes += read.unwrap();
    }
    stop.cancel();
    served.await.unwrap();
    all - bytes / EACH
}

#[tokio::test]
async fn who_goes_on_reading_gets_all_that_the_output_had_no_room_for() {
    assert_eq!(missing(false).await, 0);
}

#[tokio::test]
async fn control_a_broker_that_forgets_what_its_output_had_no_room_for_is_caught() {
    let found = missing(true).await;
    assert!(found > 0, "the test is blind");
}

#[tokio::test]
async fn who_stopped_reading_is_not_waited_for_each_time() {
    let found = mean(false).await;
    assert!(found < Duration::from_millis(10), "{found:?}");
}

#[tokio::test]
async fn control_a_broker_that_waits_for_everybody_is_caught() {
    let found = mean(true).await;
    assert!(
        found > Duration::from_millis(15),
        "the test is blind: {found:?}"
    );
}
