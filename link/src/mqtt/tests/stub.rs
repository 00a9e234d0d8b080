//! A server under the test's command: window, refusals, losses.

use super::*;
use mpc::packet::GenericPacketTrait;
use mqtt_protocol_core::mqtt::packet::{
    MaximumPacketSize, MaximumQos, Property, ReceiveMaximum, RetainAvailable,
};
use mqtt_protocol_core::mqtt::result_code::{ConnectReasonCode, PubackReasonCode};
use mqtt_protocol_core::mqtt::{self as mpc, packet::Packet, packet::v5_0};
use mqtt_protocol_core::mqtt::{common::Cursor, connection::Event};
use tokio::net::{TcpListener, TcpStream};

/// One accepted connection, past CONNACK.
struct Served {
    stream: TcpStream,
    protocol: mpc::Connection<mpc::role::Server>,
    waiting: std::collections::VecDeque<Packet>,
}

impl Served {
    async fn accept(listener: &TcpListener, code: ConnectReasonCode, props: Vec<Property>) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        let mut served = Self {
            stream,
            protocol: mpc::Connection::new(mpc::Version::V5_0),
            waiting: std::collections::VecDeque::new(),
        };
        let first = served.next().await.expect("CONNECT");
        assert!(matches!(first, Packet::V5_0Connect(_)), "{first:?}");
        let connack = v5_0::Connack::builder()
            .session_present(false)
            .reason_code(code)
            .props(props);
        served.send(connack.build().unwrap().into()).await;
        served
    }

    async fn send(&mut self, packet: Packet) {
        for event in self.protocol.send(packet) {
            if let Event::RequestSendPacket { packet, .. } = event {
                let _ = self.stream.write_all(&packet.to_continuous_buffer()).await;
            }
        }
    }

    /// The next packet but pings, which are answered.
    async fn next(&mut self) -> Option<Packet> {
        loop {
            match self.waiting.pop_front() {
                Some(Packet::V5_0Pingreq(_)) => self.send(v5_0::Pingresp::new().into()).await,
                Some(packet) => return Some(packet),
                None => {
                    let mut bytes = vec![0; 65536];
                    let count = self.stream.read(&mut bytes).await.ok()?;
                    if count == 0 {
                        return None;
                    }
                    let mut cursor = Cursor::new(&bytes[..count]);
                    while (cursor.position() as usize) < count {
                        for event in self.protocol.recv(&mut cursor) {
                            match event {
                                Event::NotifyPacketReceived(packet) => {
                                    self.waiting.push_back(packet)
                                }
                                Event::NotifyError(error) => {
                                    panic!("the client broke MQTT: {error}")
                                }
                                _ => {}
                            }
                        }
                    }
                }
            }
        }
    }

    async fn published(&mut self) -> v5_0::Publish {
        match self.next().await {
            Some(Packet::V5_0Publish(publish)) => publish,
            other => panic!("not PUBLISH: {other:?}"),
        }
    }

    /// Whether the client sends nothing but pings for a while.
    async fn is_quiet(&mut self) -> bool {
        let next = tokio::time::timeout(Duration::from_millis(200), self.next()).await;
        next.is_err()
    }

    async fn acknowledge(&mut self, id: u16, code: PubackReasonCode) {
        let puback = v5_0::Puback::builder().packet_id(id).reason_code(code);
        self.send(puback.build().unwrap().into()).await;
    }
}

async fn connected(
    props: Vec<Property>,
    change: impl FnOnce(&mut Options),
) -> (Client, Inbox, Granted, Served) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = Options::new(plain(listener.local_addr().unwrap().to_string()), "c");
    change(&mut options);
    let (served, connected) = tokio::join!(
        Served::accept(&listener, ConnectReasonCode::Success, props),
        connect(options)
    );
    let (client, inbox, granted) = connected.unwrap();
    (client, inbox, granted, served)
}

#[tokio::test]
async fn the_window_is_the_smaller_of_both_sides() {
    for (own, server, expected) in [(5, 3, 3), (2, 100, 2)] {
        let props = vec![ReceiveMaximum::new(server).unwrap().into()];
        let (client, _inbox, granted, mut served) =
            connected(props, |options| options.window = own).await;
        assert_eq!(granted.window, expected);
        let publisher = client.clone();
        let publishing = tokio::spawn(async move {
            for tag in 0..6 {
                publisher.publish(numbered("t", tag)).await.unwrap();
            }
        });
        let mut open = Vec::new();
        for _ in 0..expected {
            open.push(served.published().await.packet_id().unwrap());
        }
        assert!(served.is_quiet().await, "the window holds");
        assert_eq!(client.room(), 0);
        // Out of order, and a place opens only when the settlement was taken.
        served
            .acknowledge(open.pop().unwrap(), PubackReasonCode::Success)
            .await;
        assert!(served.is_quiet().await);
        let told = settled(&client, 1).await;
        assert_eq!(told[0].tag, u64::from(expected) - 1);
        assert_eq!(told[0].outcome, Outcome::Acknowledged(ReasonCode::SUCCESS));
        let next = served.published().await;
        assert_eq!(next.payload().as_slice(), expected.to_string().as_bytes());
        publishing.abort();
    }
}

#[tokio::test]
async fn every_ticket_is_told_its_own_outcome() {
    use PubackReasonCode as Code;
    let codes = [
        Code::Success,
        Code::NotAuthorized,
        Code::NoMatchingSubscribers,
        Code::QuotaExceeded,
    ];
    let (client, _inbox, _, mut served) = connected(vec![], |_| {}).await;
    for tag in 0..4 {
        client.publish(numbered("t", 70 + tag)).await.unwrap();
    }
    let mut ids = Vec::new();
    for _ in codes {
        ids.push(served.published().await.packet_id().unwrap());
    }
    for (id, code) in ids.into_iter().zip(codes).rev() {
        served.acknowledge(id, code).await;
    }
    let outcomes: Vec<_> = settled(&client, 4)
        .await
        .iter()
        .map(|told| told.outcome)
        .collect();
    let expected = [
        Outcome::Acknowledged(ReasonCode(0)),
        Outcome::Refused(ReasonCode(0x87)),
        Outcome::Acknowledged(ReasonCode(0x10)),
        Outcome::Refused(ReasonCode(0x97)),
    ];
    assert_eq!(outcomes, expected);

    let waiting = client.publish_and_wait(numbered("t", 0));
    let answering = async {
        let id = served.published().await.packet_id().unwrap();
        served.acknowledge(id, Code::Success).await;
    };
    let (outcome, ()) = tokio::join!(waiting, answering);
    assert_eq!(outcome, Ok(Outcome::Acknowledged(ReasonCode::SUCCESS)));
    assert_eq!(client.room(), 256, "its place is free again");
}

#[tokio::test]
async fn a_lost_connection_loses_every_open_ticket_and_nothing_else() {
    let (client, mut inbox, _, mut served) = connected(vec![], |options| options.window = 10).await;
    for tag in 0..10 {
        client.publish(numbered("t", tag)).await.unwrap();
    }
    let blocked = tokio::spawn({
        let client = client.clone();
        async move { client.publish(numbered("t", 99)).await }
    });
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.publish_and_wait(numbered("t", 98)).await }
    });
    for _ in 0..10 {
        let id = served.published().await.packet_id().unwrap();
        if id <= 4 {
            served.acknowledge(id, PubackReasonCode::Success).await;
        }
    }
    let first = settled(&client, 4).await;
    assert!(
        first
            .iter()
            .all(|told| matches!(told.outcome, Outcome::Acknowledged(_)))
    );
    drop(served);

    let mut lost = Vec::new();
    while let Some(some) = client.settled().await {
        lost.extend(some);
    }
    assert!(matches!(client.ended().await, Ended::Broken(_)));
    lost.retain(|told| told.tag < 90);
    assert_eq!(lost.len(), 6);
    assert!(lost.iter().all(|told| told.outcome == Outcome::Lost));
    assert_eq!(
        client.publish(numbered("t", 1)).await,
        Err(PublishError::Closed)
    );
    assert_eq!(
        client.subscribe(&[("t", Qos::AtLeastOnce)]).await,
        Err(SubscribeError::Closed)
    );
    assert_eq!(client.ping().await, Err(client.ended().await));
    assert_eq!(inbox.next().await, None);
    // Handed over before the end or not: never without an answer.
    let _ = blocked.await.unwrap();
    let outcome = waiting.await.unwrap();
    assert!(
        matches!(outcome, Ok(Outcome::Lost) | Err(PublishError::Closed)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn limits_of_the_server_are_kept_on_our_side() {
    let props = vec![
        MaximumPacketSize::new(100).unwrap().into(),
        RetainAvailable::new(0).unwrap().into(),
        MaximumQos::new(0).unwrap().into(),
    ];
    let (client, _inbox, granted, mut served) = connected(props, |_| {}).await;
    assert_eq!(
        (granted.max_packet, granted.retains, granted.acknowledges),
        (100, false, false)
    );
    let loose = |size: usize| Publish {
        qos: Qos::AtMostOnce,
        ..Publish::new("t", vec![b'x'; size])
    };
    let refused = client.publish(loose(96)).await.unwrap_err();
    assert_eq!(
        refused,
        PublishError::TooLarge {
            size: 102,
            limit: 100
        }
    );
    let kept = Publish {
        retain: true,
        ..loose(1)
    };
    assert!(matches!(
        client.publish(kept).await,
        Err(PublishError::BadMessage(_))
    ));
    let certain = numbered("t", 1);
    assert!(matches!(
        client.publish(certain).await,
        Err(PublishError::BadMessage(_))
    ));
    // The control: what fits exactly goes.
    client.publish(loose(94)).await.unwrap();
    assert_eq!(served.published().await.size(), 100);
}

#[tokio::test]
async fn bad_messages_are_refused_and_cost_nothing() {
    let (client, _inbox, _, mut served) = connected(vec![], |options| options.window = 2).await;
    for _ in 0..10 {
        for topic in ["", "a/#", "a/+/b", "nul\0", &"t".repeat(65_536)] {
            let refused = client.publish(numbered(topic, 1)).await;
            assert!(
                matches!(refused, Err(PublishError::BadMessage(_))),
                "{topic:.20}: {refused:?}"
            );
        }
    }
    assert_eq!(client.room(), 2);
    client.publish(numbered("good", 1)).await.unwrap();
    assert_eq!(served.published().await.topic_name(), "good");
    assert!(matches!(
        client.subscribe(&[]).await,
        Err(SubscribeError::BadFilter(_))
    ));
    assert!(client.has_ended().is_none());
}

#[tokio::test]
async fn refusals_of_the_connection_are_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut options = Options::new(plain(address), "c");
    options.connect_timeout = Duration::from_millis(300);

    let (_served, refused) = tokio::join!(
        Served::accept(&listener, ConnectReasonCode::NotAuthorized, vec![]),
        connect(options.clone())
    );
    assert!(matches!(
        refused,
        Err(ConnectError::Refused(ReasonCode(0x87)))
    ));

    let closing = async { drop(listener.accept().await.unwrap()) };
    let ((), refused) = tokio::join!(closing, connect(options.clone()));
    assert!(matches!(refused, Err(ConnectError::Broken(_))));

    let silent = async {
        let held = listener.accept().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(held);
    };
    let ((), refused) = tokio::join!(silent, connect(options.clone()));
    assert!(matches!(refused, Err(ConnectError::Timeout(_))));

    options.client_id = "x".repeat(70_000);
    assert!(matches!(
        connect(options).await,
        Err(ConnectError::BadOptions(_))
    ));
}

#[tokio::test]
async fn the_servers_disconnect_is_told_with_its_reason() {
    use mqtt_protocol_core::mqtt::result_code::DisconnectReasonCode;
    let (client, _inbox, _, mut served) = connected(vec![], |_| {}).await;
    let goodbye =
        v5_0::Disconnect::builder().reason_code(DisconnectReasonCode::AdministrativeAction);
    served.send(goodbye.build().unwrap().into()).await;
    assert_eq!(client.ended().await, Ended::ByServer(ReasonCode(0x98)));
}

#[tokio::test]
async fn more_unacknowledged_messages_than_allowed_wait_in_the_socket() {
    let change = |options: &mut Options| {
        options.receive_maximum = 2;
        options.ping_interval = Duration::from_millis(20);
        options.ping_timeout = Duration::from_millis(50);
    };
    let (client, mut inbox, _, mut served) = connected(vec![], change).await;
    let message = |id: u16| {
        let publish = v5_0::Publish::builder()
            .topic_name("t")
            .unwrap()
            .qos(mpc::packet::Qos::AtLeastOnce)
            .packet_id(id)
            .payload("x");
        Packet::from(publish.build().unwrap())
    };
    served.protocol.register_packet_id(1).unwrap();
    served.send(message(1)).await;
    let first = inbox.next().await.unwrap();
    inbox.acknowledge(&first).await;
    // Twice is once: a second PUBACK would be a fault of ours.
    inbox.acknowledge(&first).await;
    assert!(matches!(served.next().await, Some(Packet::V5_0Puback(_))));
    assert!(served.is_quiet().await);
    // The server's own protocol state would not send these, in one breath.
    let bytes: Vec<u8> = (2..=60)
        .flat_map(|id| message(id).to_continuous_buffer())
        .collect();
    served.stream.write_all(&bytes).await.unwrap();
    let mut taken = std::collections::VecDeque::new();
    for id in 2..=6 {
        taken.push_back(inbox.next().await.unwrap());
        assert_eq!(taken.back().and_then(|message| message.packet_id), Some(id));
    }
    // Twice the receive maximum and one is borne, and no more; nobody takes the server for silent meanwhile.
    let more = tokio::time::timeout(Duration::from_millis(300), inbox.next()).await;
    assert!(more.is_err(), "{more:?}");
    assert_eq!(client.has_ended(), None);
    for id in 7..=60 {
        let oldest = taken.pop_front().unwrap();
        inbox.acknowledge(&oldest).await;
        taken.push_back(inbox.next().await.unwrap());
        assert_eq!(taken.back().and_then(|message| message.packet_id), Some(id));
    }
    // Where it reads again it judges silence again: this server answers no ping.
    inbox.acknowledge(&taken[0]).await;
    assert!(matches!(client.ended().await, Ended::Silent(_)));
}

/// Publishers on several threads against connections that end at any moment: whatever was handed
/// over is told, and `settled` comes to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_ticket_is_forgotten_when_the_end_meets_the_publishers() {
    for round in 0..60u64 {
        let (client, _inbox, _, mut served) = connected(vec![], |options| options.window = 8).await;
        let mut publishers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let client = client.clone();
            publishers.spawn(async move {
                let mut handed_over = 0u64;
                while client.publish(numbered("t", 1)).await.is_ok() {
                    handed_over += 1;
                }
                handed_over
            });
        }
        let serving = tokio::spawn(async move {
            for _ in 0..round {
                let id = served.published().await.packet_id().unwrap();
                served.acknowledge(id, PubackReasonCode::Success).await;
            }
        });
        let mut told = 0;
        let reading = async {
            while let Some(some) = client.settled().await {
                told += some.len() as u64;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), reading).await;
        in_time.expect("settled ends with the connection");
        serving.await.unwrap();
        let handed_over: u64 = publishers.join_all().await.into_iter().sum();
        assert_eq!(told, handed_over, "round {round}");
        assert!(told >= round);
    }
}
