//! Bytes of a server that errs or lies: no panic, no hang, bounded time.

use super::*;
use crate::mqtt::session::{Happening, Session};
use mqtt_protocol_core::mqtt::packet::{self as mpc, GenericPacketTrait, Packet, v5_0};
use rand_core::Rng;

fn session() -> Session {
    let options = Options {
        max_packet: 4096,
        ..Options::new(plain("unused"), "c")
    };
    Session::begin(&options).unwrap()
}

fn bytes(packet: impl Into<Packet>) -> Vec<u8> {
    packet.into().to_continuous_buffer()
}

/// What a well-behaved server says to a client that has published with the ids 1 to 3.
fn dialogue() -> Vec<Vec<u8>> {
    let connack = v5_0::Connack::builder()
        .session_present(false)
        .reason_code(mqtt_protocol_core::mqtt::result_code::ConnectReasonCode::Success)
        .props(vec![
            mpc::ReceiveMaximum::new(20).unwrap().into(),
            mpc::MaximumPacketSize::new(9000).unwrap().into(),
            mpc::ServerKeepAlive::new(10).unwrap().into(),
            mpc::AssignedClientIdentifier::new("abc").unwrap().into(),
        ]);
    let publish = |id: u16| {
        v5_0::Publish::builder()
            .topic_name("a/b")
            .unwrap()
            .qos(mpc::Qos::AtLeastOnce)
            .packet_id(id)
            .props(vec![mpc::UserProperty::new("k", "v").unwrap().into()])
            .payload("hello")
            .build()
            .unwrap()
    };
    let puback = |id: u16| v5_0::Puback::builder().packet_id(id).build().unwrap();
    vec![
        bytes(connack.build().unwrap()),
        bytes(puback(1)),
        bytes(publish(7)),
        bytes(v5_0::Pingresp::new()),
        bytes(puback(3)),
        bytes(publish(8)),
        bytes(v5_0::Disconnect::builder().build().unwrap()),
    ]
}

fn play(dialogue: &[Vec<u8>]) -> Vec<Happening> {
    let mut session = session();
    let mut all = Vec::new();
    for bytes in dialogue {
        let before = all.len();
        session.receive(bytes, &mut all);
        if matches!(
            all.last(),
            Some(Happening::Ended(_) | Happening::Refused(_))
        ) {
            break;
        }
        let news = &all[before..];
        if news
            .iter()
            .any(|happening| matches!(happening, Happening::Accepted(_)))
        {
            for id in 1..=3 {
                let packet =
                    super::packet::publish(Version::Five, &numbered("t", 1), Some(id)).unwrap();
                // A mutated CONNACK may forbid it.
                let _ = session.publish(packet, Some(session::Waiter::Tag(u64::from(id))));
            }
            let _ = session.ping();
        }
    }
    all
}

#[test]
fn the_dialogue_itself_is_understood() {
    let happenings = play(&dialogue());
    let shape: Vec<_> = happenings
        .iter()
        .map(|happening| match happening {
            Happening::Accepted(_) => "accepted",
            Happening::Refused(_) => "refused",
            Happening::Settled { .. } => "settled",
            Happening::Incoming(_) => "incoming",
            Happening::Pong => "pong",
            Happening::Ended(_) => "ended",
        })
        .collect();
    let expected = [
        "accepted", "settled", "incoming", "pong", "settled", "incoming", "ended",
    ];
    assert_eq!(shape, expected);
}

#[test]
fn mutations_never_panic() {
    let model = dialogue();
    let seed = crate::random::SystemRandom.next_u64() | 1;
    // Shown when the test fails; put it here to see the same mutations again.
    eprintln!("seed {seed:#x}");
    let mut rng = Xorshift(seed);
    let begun = std::time::Instant::now();
    let mut ended = 0u32;
    let mut rounds = 0u32;
    while rounds < 60_000 && begun.elapsed() < Duration::from_secs(8) {
        rounds += 1;
        let mut mutated = model.clone();
        for _ in 0..=rng.next_u32() % 4 {
            let packet = rng.next_u32() as usize % mutated.len();
            mutate(&mut mutated[packet], rng.next_u32());
        }
        if rng.next_u32().is_multiple_of(8) {
            let (a, b) = (rng.next_u32() as usize, rng.next_u32() as usize);
            let len = mutated.len();
            mutated.swap(a % len, b % len);
        }
        if rng.next_u32().is_multiple_of(8) {
            let again = mutated[rng.next_u32() as usize % mutated.len()].clone();
            mutated.push(again);
        }
        let played = play(&mutated);
        ended += u32::from(matches!(played.last(), Some(Happening::Ended(_))));
    }
    // Most mutations are seen; were none, the mutations would not reach the parser.
    assert!(ended > rounds / 4, "{ended} of {rounds} ended");
}

struct Xorshift(u64);

impl Xorshift {
    fn next_u32(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}

fn mutate(bytes: &mut Vec<u8>, how: u32) {
    if bytes.is_empty() {
        return;
    }
    let at = (how >> 8) as usize % bytes.len();
    match how % 6 {
        0 => bytes[at] ^= 1 << (how >> 28 & 7),
        1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][(how >> 24) as usize % 5],
        2 => bytes.truncate(at),
        3 => bytes.insert(at, (how >> 16) as u8),
        4 => {
            bytes.remove(at);
        }
        _ => bytes[at] = bytes[at].wrapping_add(1),
    }
}

#[test]
fn a_second_connack_is_refused() {
    let mut twice = dialogue();
    twice.insert(1, twice[0].clone());
    assert!(matches!(
        play(&twice).last(),
        Some(Happening::Ended(Ended::Protocol(_)))
    ));
}

/// mqtt-protocol-core counts on its caller here: a message sent before CONNACK would make the
/// count of those in flight underflow at its PUBACK.
#[test]
fn nothing_is_published_before_connack() {
    let packet = super::packet::publish(Version::Five, &numbered("t", 1), Some(1)).unwrap();
    let mut session = session();
    assert!(
        session
            .publish(packet, Some(session::Waiter::Tag(1)))
            .is_err()
    );
    let mut happenings = Vec::new();
    for bytes in &dialogue()[..2] {
        session.receive(bytes, &mut happenings);
    }
    assert!(matches!(happenings.last(), Some(Happening::Ended(_))));
}

#[test]
fn a_packet_declared_too_long_is_refused_before_it_comes() {
    let mut happenings = Vec::new();
    let mut session = session();
    session.receive(&dialogue()[0], &mut happenings);
    // PUBLISH with a remaining length of 268,435,455.
    session.receive(&[0x30, 0xff, 0xff, 0xff, 0x7f], &mut happenings);
    assert!(matches!(
        happenings.last(),
        Some(Happening::Ended(Ended::Protocol(_)))
    ));
}
