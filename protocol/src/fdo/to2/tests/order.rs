//! Only the message due passes, only in its own session, only unaltered.

use std::collections::HashSet;

use super::*;

/// Records the twelve messages of a run.
fn record(world: &World, seed: u64) -> Vec<Message> {
    let mut recorded = Vec::new();
    let wire = |_, message: &mut Message| recorded.push(message.clone());
    play_seeded(world, world.replacing(), Options::default(), seed, wire).unwrap();
    let numbers: Vec<u8> = recorded
        .iter()
        .map(|message| message.kind.number())
        .collect();
    assert_eq!(numbers, (60..=71).collect::<Vec<_>>());
    recorded
}

/// Plays the run of `seed`, with `message` in place number `at`.
fn replace(world: &World, at: usize, message: &Message) -> Result<(), (usize, End, Error)> {
    let wire = |number, due: &mut Message| {
        if number == at {
            *due = message.clone();
        }
    };
    play_seeded(world, world.replacing(), Options::default(), 1000, wire).map(|_| ())
}

/// Who receives message number `at`.
fn receiver(at: usize) -> End {
    if at.is_multiple_of(2) {
        End::Owner
    } else {
        End::Device
    }
}

#[test]
fn of_all_states_and_messages_only_the_legal_pairs_pass() {
    let world = World::new(10, 1);
    let messages = record(&world, 1000);
    let mut passed = 0;
    for at in 0..messages.len() {
        for (number, message) in messages.iter().enumerate() {
            match replace(&world, at, message) {
                Ok(()) => {
                    assert_eq!(
                        number,
                        at,
                        "message {} in place of {}",
                        number + 60,
                        at + 60
                    );
                    passed += 1;
                }
                Err((failed, end, error)) => {
                    assert_eq!((failed, end), (at, receiver(at)));
                    let (expected, got) = (messages[at].kind, message.kind);
                    assert_eq!(error, Error::Unexpected { expected, got });
                    assert_eq!(error.code().number(), 101);
                }
            }
        }
    }
    assert_eq!(passed, 12);
}

#[test]
fn messages_of_other_protocols_and_errors_end_the_session() {
    let world = World::new(11, 1);
    for at in 0..12 {
        for kind in MessageType::ALL
            .into_iter()
            .filter(|kind| !(60..=71).contains(&kind.number()))
        {
            let stray = Message::new(kind, vec![0x80]);
            let (failed, end, error) = replace(&world, at, &stray).unwrap_err();
            assert_eq!((failed, end), (at, receiver(at)));
            match kind {
                MessageType::Error => {
                    assert!(matches!(error, Error::Peer(_)));
                    assert_eq!(
                        error.report(kind),
                        None,
                        "an error is not answered by an error"
                    );
                }
                _ => assert!(matches!(error, Error::Unexpected { .. })),
            }
        }
    }
}

#[test]
fn the_session_is_over_after_the_first_error() {
    let world = World::new(12, 1);
    let messages = record(&world, 1000);
    let mut owner = OwnerEnd::new(world.replacing(), 1000);
    owner.take(&messages[0]).unwrap();
    owner.take(&messages[4]).unwrap_err();
    assert_eq!(owner.take(&messages[2]), Err(Error::NoSession));
    let (mut device, _) = DeviceEnd::start(&world.born.credential, Options::default(), 1001);
    device.take(&messages[3]).unwrap_err();
    assert_eq!(device.take(&messages[1]), Err(Error::NoSession));
}

#[test]
fn messages_of_an_earlier_session_are_refused() {
    let world = World::new(13, 1);
    let earlier = record(&world, 2000);
    let mut refused = Vec::new();
    for (at, message) in earlier.iter().enumerate() {
        match replace(&world, at, message) {
            Err((failed, ..)) if failed == at => refused.push(at + 60),
            // The owner cannot tell an old hello from a new one; the device finds out at once.
            Err((1, End::Device, error)) if at == 0 => {
                assert!(matches!(error, Error::Check { what: "nonce", .. }));
            }
            // A request for an entry, and the entry itself, belong to no session.
            Ok(()) => assert!([62, 63].contains(&(at + 60)), "message {}", at + 60),
            other => panic!("message {}: {other:?}", at + 60),
        }
    }
    assert_eq!(refused, [61, 64, 65, 66, 67, 68, 69, 70, 71]);
}

#[test]
fn no_flipped_byte_of_a_sealed_message_is_accepted() {
    let world = World::new(14, 1);
    let messages = record(&world, 1000);
    for (at, message) in messages.iter().enumerate().skip(5) {
        // Every bit of the structure around the seal, one bit of each byte within it.
        for byte in 0..message.body.len() {
            let mut altered = message.clone();
            altered.body[byte] ^= 1 << (byte % 8);
            let (failed, end, _) = replace(&world, at, &altered).unwrap_err();
            assert_eq!(
                (failed, end),
                (at, receiver(at)),
                "message {} byte {byte}",
                at + 60
            );
        }
        // Control: the message itself passes, and without its tag too.
        replace(&world, at, message).unwrap();
        let untagged = Message::new(message.kind, message.body[1..].to_vec());
        replace(&world, at, &untagged).unwrap();
    }
}

#[test]
fn no_flipped_byte_of_a_signed_message_is_accepted() {
    let world = World::new(15, 1);
    let messages = record(&world, 1000);
    for (at, message) in messages.iter().enumerate().take(5) {
        for byte in 0..message.body.len() {
            let mut altered = message.clone();
            altered.body[byte] ^= 1 << (byte % 8);
            match replace(&world, at, &altered) {
                Err(_) => {}
                // The hello's message size has no meaning to us, but the device hashes all of it.
                Ok(()) => panic!("message {} byte {byte}", at + 60),
            }
        }
    }
}

#[test]
fn no_iv_is_used_twice() {
    let tunnel = Tunnel::new(AeadSuite::A128Gcm, &SessionKey::new(vec![1; 16].into()));
    let mut rng = TestRng::new(16);
    let mut seen = HashSet::new();
    for _ in 0..100_000 {
        let message = tunnel.seal(MessageType::To2Done, b"x", &mut rng);
        // Tag, array, protected header, map, label, head of the byte string; then the IV.
        assert!(seen.insert(message.body[9..21].to_vec()));
        assert_eq!(message.body[8], 0x4c);
    }
}

#[test]
fn entries_are_handed_out_once_and_in_order() {
    let world = World::new(17, 3);
    let mut recorded = Vec::new();
    let wire = |_, message: &mut Message| recorded.push(message.clone());
    play(&world, world.replacing(), Options::default(), wire).unwrap();
    let ask = |number| Message::new(MessageType::To2GetOvNextEntry, vec![0x81, number]);
    for (at, wrong) in [(2, 1), (2, 3), (4, 0), (4, 2), (6, 1), (6, 3)] {
        assert_eq!(recorded[at], ask(at as u8 / 2 - 1));
        let (failed, end, error) = replace(&world, at, &ask(wrong)).unwrap_err();
        assert_eq!((failed, end), (at, End::Owner));
        assert!(matches!(
            error,
            Error::Check {
                what: "number of the entry",
                ..
            }
        ));
    }
}
