//! The packet path on mutations of the corpus in `tests/data/packets.txt`: no panic, no memory beyond
//! the bound, and what is taken in goes out the same.
//!
//! A short run in the tests, as long as `HOLDFAST_FUZZ_SECONDS` says by `make fuzz`.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::*;
use crate::{Message, Qos};

/// Unless `HOLDFAST_FUZZ_SECONDS` says otherwise.
const LENGTH: Duration = Duration::from_secs(2);
/// Of one frame.
const BOUND: usize = 1024;

struct Sample {
    v5: bool,
    bytes: Vec<u8>,
}

fn corpus() -> Vec<Sample> {
    let text = include_str!("../../tests/data/packets.txt");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(' ');
            let v5 = words.next() == Some("5");
            let hex = words.next().unwrap();
            let digits = (0..hex.len()).step_by(2);
            let bytes = digits.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
            Sample {
                v5,
                bytes: bytes.collect(),
            }
        })
        .collect()
}

/// Small and repeatable.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 16) % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        match self.below(3) {
            0 => [0, 1, 0x26, 0x7F, 0x80, 0xC0, 0xED, 0xFF][self.below(8)],
            _ => u8::try_from(self.below(256)).unwrap(),
        }
    }
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len());
        match numbers.below(8) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = numbers.byte(),
            2 => bytes.truncate(at + 1),
            3 => {
                let byte = numbers.byte();
                bytes.insert(at, byte);
            }
            4 if bytes.len() > 2 => {
                bytes.remove(at);
            }
            5 => bytes.extend_from_slice(&other[..numbers.below(other.len() + 1)]),
            6 => {
                // The declared length agrees again, so that the body is looked at.
                if bytes.len() > 2 && bytes.len() < 130 {
                    bytes[1] = u8::try_from(bytes.len() - 2).unwrap();
                }
            }
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

/// Everything that a client's bytes come past; how many packets were taken in.
fn take(sample: &Sample, numbers: &mut Numbers) -> usize {
    let mut frames = Frames::default();
    let mut taken = 0;
    let mut rest = &sample.bytes[..];
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(1 + numbers.below(rest.len()));
        rest = after;
        let fed = frames.feed(chunk, BOUND, |first, body| {
            if first >> 4 == 1 {
                let _ = connect(first, body);
            }
            for v5 in [sample.v5, !sample.v5] {
                if let Ok(packet) = decode(first, body, v5) {
                    taken += 1;
                    again(&packet, v5);
                }
            }
            Ok(Flow::Go)
        });
        assert!(
            frames.held() <= BOUND + chunk.len(),
            "kept beyond the bound"
        );
        if fed.is_err() {
            break;
        }
    }
    taken
}

/// A publish that was taken in reads the same when it has gone out.
fn again(packet: &Packet<'_>, v5: bool) {
    let Packet::Publish(publish) = packet else {
        return;
    };
    if publish.topic.is_empty() {
        return;
    }
    let mut message = Message::new(publish.topic, publish.payload.to_vec());
    message.properties = publish.properties.forward.clone().freeze();
    let hop = Hop {
        v5,
        qos: publish.qos,
        retain: publish.retain,
        dup: false,
        packet_id: publish.packet_id,
        expiry: publish.properties.expiry,
        subscription_ids: &[],
        alias: None,
    };
    let mut out = BytesMut::new();
    super::publish(&mut out, &message, &hop);
    assert_eq!(out.len(), publish_size(&message, &hop));
    let mut frames = Frames::default();
    let whole = frames.feed(&out, usize::MAX, |first, body| {
        let Ok(Packet::Publish(read)) = decode(first, body, v5) else {
            panic!("what was written cannot be read: {body:?}");
        };
        assert_eq!((read.topic, read.payload), (publish.topic, publish.payload));
        assert_eq!((read.qos, read.retain), (publish.qos, publish.retain));
        assert_eq!(read.properties.forward, publish.properties.forward);
        assert_eq!(read.properties.expiry, publish.properties.expiry);
        Ok(Flow::Go)
    });
    assert_eq!((whole, frames.held()), (Ok(false), 0));
    assert!(publish.qos != Qos::AtMostOnce || publish.packet_id == 0);
}

#[test]
fn fuzz_mutated_packets_do_no_harm() {
    let seconds = std::env::var("HOLDFAST_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok());
    let length = seconds.map_or(LENGTH, Duration::from_secs);
    let samples = corpus();
    // A long run goes elsewhere each time; a short one is the same everywhere.
    let seed = seconds.map_or(0, |_| u64::from(std::process::id()));
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15 ^ seed);
    for sample in &samples {
        take(sample, &mut numbers);
    }
    let begun = Instant::now();
    let (mut tried, mut taken) = (0usize, 0usize);
    while begun.elapsed() < length {
        for _ in 0..1000 {
            let sample = &samples[numbers.below(samples.len())];
            let other = &samples[numbers.below(samples.len())].bytes;
            let mut mutated = Sample {
                v5: sample.v5,
                bytes: sample.bytes.clone(),
            };
            mutate(&mut mutated.bytes, other, &mut numbers);
            taken += take(&mutated, &mut numbers);
            tried += 1;
        }
    }
    eprintln!("seed {seed}: {tried} mutated packets, {taken} taken in");
    assert!(
        taken > tried / 50,
        "the mutations get nowhere: {taken} of {tried}"
    );
}

#[test]
fn the_corpus_is_taken_in_or_refused_as_it_says() {
    let mut numbers = Numbers(1);
    let good = corpus()
        .iter()
        .filter(|sample| take(sample, &mut numbers) > 0)
        .count();
    assert!(good >= 30, "{good}");
}
