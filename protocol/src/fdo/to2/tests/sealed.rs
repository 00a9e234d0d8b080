//! Peers who lie inside the tunnel: rightly sealed, wrong in content.

use super::*;
use crate::wire::cose::Sign1;

/// Runs until `due` is on its way, lets `forge` write another body in its place under the sender's
/// seal, delivers that, and gives what the receiver says; the run then goes on to its end.
fn forge(
    world: &World,
    due: MessageType,
    forge: impl Fn(&Seen) -> Vec<u8>,
) -> Result<(), (End, Error)> {
    let mut owner = OwnerEnd::new(world.replacing(), 1);
    let (mut device, mut message) = DeviceEnd::start(&world.born.credential, Options::default(), 2);
    let mut seen = Seen::default();
    loop {
        seen.note(&message);
        if message.kind == due {
            let body = forge(&seen);
            message = device
                .session
                .as_ref()
                .unwrap()
                .seal(due, &body, &mut device.rng);
        }
        let mut reply = owner.take(&message).map_err(|error| (End::Owner, error))?;
        seen.note(&reply);
        if reply.kind == due {
            let body = forge(&seen);
            reply = match &owner.session {
                Some(session) => session.seal(due, &body, &mut owner.rng),
                // The owner's session is over with 71; the device's tunnel is the same.
                None => device
                    .session
                    .as_ref()
                    .unwrap()
                    .seal(due, &body, &mut device.rng),
            };
        }
        match device.take(&reply).map_err(|error| (End::Device, error))? {
            Some(next) => message = next,
            None => return Ok(()),
        }
    }
}

/// Nonces that travel in the clear, as a peer knows them.
#[derive(Default)]
struct Seen {
    prove_device: Vec<u8>,
    setup_device: Vec<u8>,
}

impl Seen {
    fn note(&mut self, message: &Message) {
        let header = |label| {
            let proof = Sign1::parse(&message.body).unwrap();
            Reader::new(proof.unprotected().get(label).unwrap())
                .unwrap()
                .bytes(16)
                .unwrap()
                .to_vec()
        };
        match message.kind {
            MessageType::To2ProveOvHdr => self.prove_device = header(256),
            MessageType::To2ProveDevice => self.setup_device = header(-259),
            _ => {}
        }
    }
}

fn what(result: Result<(), (End, Error)>, by: End) -> &'static str {
    match result {
        Err((end, Error::Check { what, .. })) if end == by => what,
        other => panic!("{other:?}"),
    }
}

/// Message 65 as one likes it.
fn setup(nonce: &[u8], signer: &SigningKey) -> Vec<u8> {
    let owner = PublicKey::x509(&signer.public());
    let payload = cbor::encode(|w| {
        w.array(4)
            .raw(rendezvous("evil.example").as_bytes())
            .bytes(&[6; 16]);
        w.bytes(nonce).raw(owner.as_bytes());
    });
    Sign1::sign(&payload, signer).as_bytes().to_vec()
}

#[test]
fn a_new_credential_needs_the_owners_signature_and_the_devices_nonce() {
    let world = World::new(70, 1);
    let due = MessageType::To2SetupDevice;
    let owner = world.owner();
    let stranger = SigningKey::generate(&mut TestRng::new(3));
    // Control: the same content, rightly signed.
    assert_eq!(
        forge(&world, due, |seen| setup(&seen.setup_device, owner)),
        Ok(())
    );
    let (end, error) = forge(&world, due, |seen| setup(&seen.setup_device, &stranger)).unwrap_err();
    assert_eq!(end, End::Device);
    assert!(matches!(
        error,
        Error::Cose {
            fault: CoseError::Crypto(_),
            ..
        }
    ));
    let nonce = forge(&world, due, |seen| setup(&seen.prove_device, owner));
    assert_eq!(what(nonce, End::Device), "nonce");
    let (_, error) = forge(&world, due, |_| vec![0x80]).unwrap_err();
    assert_eq!(error.code().number(), 100);
}

#[test]
fn both_ends_close_with_the_others_nonce() {
    let world = World::new(71, 1);
    let body = |nonce: &[u8]| cbor::encode(|w| _ = w.array(1).bytes(nonce));
    let done = MessageType::To2Done;
    assert_eq!(forge(&world, done, |seen| body(&seen.prove_device)), Ok(()));
    assert_eq!(
        what(
            forge(&world, done, |seen| body(&seen.setup_device)),
            End::Owner
        ),
        "nonce"
    );
    let done = MessageType::To2Done2;
    assert_eq!(forge(&world, done, |seen| body(&seen.setup_device)), Ok(()));
    assert_eq!(
        what(
            forge(&world, done, |seen| body(&seen.prove_device)),
            End::Device
        ),
        "nonce"
    );
}

#[test]
fn values_without_their_end_and_contradictions_are_refused() {
    let world = World::new(72, 1);
    let told = |has_more: bool, done: bool, cut: bool| {
        forge(&world, MessageType::To2OwnerServiceInfo, move |_| {
            cbor::encode(|w| {
                w.array(3).bool(has_more).bool(done).array(1);
                w.array(2)
                    .text("a:b")
                    .bytes(if cut { &[0x42, 1] } else { &[0x41, 1] });
            })
        })
    };
    assert_eq!(told(false, true, false), Ok(()));
    assert_eq!(
        what(told(true, true, false), End::Device),
        "more to come, yet done"
    );
    assert_eq!(
        what(told(false, true, true), End::Device),
        "value without its end"
    );
    let mut outbox = Outbox::default();
    devmod().push_to(&mut outbox).unwrap();
    outbox.push("a", "b", vec![0x42, 1, 2]).unwrap();
    let mut whole = outbox.fill(1300);
    let said = |info: &[u8]| {
        forge(&world, MessageType::To2DeviceServiceInfo, |_| {
            cbor::encode(|w| _ = w.array(2).bool(false).raw(info))
        })
    };
    assert_eq!(said(&whole), Ok(()));
    // The last value loses a byte: its string's head says one less.
    whole.pop();
    let head = whole.len() - 3;
    whole[head] -= 1;
    assert_eq!(what(said(&whole), End::Owner), "value without its end");
}

#[test]
fn what_is_sealed_must_still_parse() {
    let world = World::new(73, 1);
    for number in 65..=71 {
        let due = MessageType::from_number(number).unwrap();
        for junk in [
            &[0x80][..],
            &[],
            &[0xff],
            &[0x81, 0x80],
            &[0x9f, 0xff],
            &[0xf6],
        ] {
            let (end, error) = forge(&world, due, |_| junk.to_vec()).unwrap_err();
            assert_eq!(
                end,
                if number % 2 == 0 {
                    End::Owner
                } else {
                    End::Device
                }
            );
            assert_eq!(error.code().number(), 100, "message {number}: {error}");
        }
    }
}
