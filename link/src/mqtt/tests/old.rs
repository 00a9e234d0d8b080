//! MQTT 3.1.1: with a stock broker, with a server that errs, and what a server of that version
//! answers to MQTT 5.

use super::broker::{mosquitto, options};
use super::*;
use crate::mqtt::session::{Happening, Session};
use mqtt_protocol_core::mqtt::packet::{self as mpc, GenericPacketTrait, Packet, v3_1_1};
use mqtt_protocol_core::mqtt::result_code::ConnectReturnCode;
use tokio::net::TcpListener;

fn old(broker: &str, client_id: &str) -> Options {
    Options {
        version: Version::Three,
        ..options(broker, client_id)
    }
}

#[tokio::test]
async fn messages_go_both_ways_and_a_session_is_kept() {
    let Some(broker) = mosquitto().await else {
        return;
    };
    let keeping = Options {
        clean_start: false,
        ..old(&broker.address, "s")
    };
    let (subscriber, mut inbox, granted) = connect(keeping.clone()).await.unwrap();
    assert!(!granted.session_present);
    let filters = [("a/#", Qos::AtLeastOnce), ("b", Qos::AtLeastOnce)];
    subscriber.subscribe(&filters).await.unwrap();
    let (publisher, _none, _) = connect(old(&broker.address, "p")).await.unwrap();
    for tag in 0..50 {
        let message = numbered("a/x", tag).with_user("left", "out");
        publisher.publish(message).await.unwrap();
    }
    for told in settled(&publisher, 50).await {
        assert!(matches!(told.outcome, Outcome::Acknowledged(_)), "{told:?}");
    }
    for tag in 0..40 {
        let message = inbox.next().await.unwrap();
        assert_eq!(message.payload, tag.to_string());
        assert!(message.user.is_empty());
        inbox.acknowledge(&message).await;
    }
    assert!(subscriber.ping().await.is_ok());
    subscriber.unsubscribe(&["b"]).await.unwrap();
    subscriber.disconnect().await;
    // What was not acknowledged, and what came meanwhile, is kept.
    let late = publisher.publish_and_wait(numbered("a/x", 50)).await;
    assert!(matches!(late, Ok(Outcome::Acknowledged(_))));
    let (_subscriber, mut inbox, granted) = connect(keeping).await.unwrap();
    assert!(granted.session_present);
    for tag in 40..=50 {
        let message = inbox.next().await.unwrap();
        assert_eq!(message.payload, tag.to_string());
        inbox.acknowledge(&message).await;
    }
}

#[tokio::test]
async fn an_old_server_is_known_by_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // CONNACK of MQTT 3.1.1: unacceptable protocol version.
    let answer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut connect = [0; 64];
        let _ = stream.read(&mut connect).await.unwrap();
        stream.write_all(&[0x20, 2, 0, 1]).await.unwrap();
        stream
    };
    let (_stream, refused) = tokio::join!(answer, connect(options(&address, "c")));
    assert!(
        matches!(
            refused,
            Err(ConnectError::Broken(_) | ConnectError::Refused(ReasonCode(0x84)))
        ),
        "{refused:?}"
    );
    let codes = [(1, 0x84), (2, 0x85), (3, 0x88), (4, 0x86), (5, 0x87)];
    for (theirs, ours) in codes {
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&[0x20, 2, 0, theirs]).await.unwrap();
            stream
        };
        let (_stream, refused) = tokio::join!(answer, connect(old(&address, "c")));
        let Err(ConnectError::Refused(code)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(code, ReasonCode(ours));
    }
}

fn bytes(packet: impl Into<Packet>) -> Vec<u8> {
    packet.into().to_continuous_buffer()
}

fn dialogue() -> Vec<Vec<u8>> {
    let connack = v3_1_1::Connack::builder()
        .session_present(false)
        .return_code(ConnectReturnCode::Accepted);
    let publish = v3_1_1::Publish::builder()
        .topic_name("a/b")
        .unwrap()
        .qos(mpc::Qos::AtLeastOnce)
        .packet_id(7)
        .payload("hello");
    let puback = v3_1_1::Puback::builder().packet_id(1);
    vec![
        bytes(connack.build().unwrap()),
        bytes(puback.build().unwrap()),
        bytes(publish.build().unwrap()),
        bytes(v3_1_1::Pingresp::new()),
    ]
}

fn play(dialogue: &[Vec<u8>]) -> Vec<Happening> {
    let options = Options {
        version: Version::Three,
        max_packet: 4096,
        ..Options::new(plain("unused"), "c")
    };
    let mut session = Session::begin(&options).unwrap();
    let mut all = Vec::new();
    for bytes in dialogue {
        session.receive(bytes, &mut all);
        if let Some(Happening::Ended(_) | Happening::Refused(_)) = all.last() {
            break;
        }
        let packet = packet::publish(Version::Three, &numbered("t", 1), Some(1)).unwrap();
        let _ = session.publish(packet, Some(session::Waiter::Tag(1)));
        let _ = session.ping();
    }
    all
}

#[test]
fn every_byte_of_a_dialogue_may_be_wrong() {
    let model = dialogue();
    assert_eq!(play(&model).len(), 4, "control: the dialogue itself");
    for (index, packet) in model.iter().enumerate() {
        for at in 0..packet.len() {
            for flip in [1, 0x80, 0xff] {
                let mut wrong = model.clone();
                wrong[index][at] ^= flip;
                play(&wrong);
                wrong[index].truncate(at);
                play(&wrong);
            }
        }
    }
}
