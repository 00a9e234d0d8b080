//! ServiceInfo: long values both ways, bounds, and talk that breaks the rules.

use super::*;
use crate::fdo::service_info::{
    DevModInbox, Inbox, MAX_ITEM, MAX_OUTBOX_BYTES, MAX_ROUNDS, MIN_MTU,
};

/// A value of about `len` bytes.
fn value(len: usize, fill: u8) -> Vec<u8> {
    cbor::encode(|w| _ = w.bytes(&vec![fill; len]))
}

fn item(module: &str, message: &str, value: Vec<u8>) -> Item {
    Item {
        module: module.into(),
        message: message.into(),
        value,
    }
}

fn take(inbox: &mut Inbox, pairs: &[(&str, &[u8])]) -> Result<Vec<Item>, CborError> {
    let text = cbor::encode(|w| {
        w.array(pairs.len());
        pairs
            .iter()
            .for_each(|(key, value)| _ = w.array(2).text(key).bytes(value));
    });
    inbox.take(&mut Reader::new(&text).unwrap())
}

#[test]
fn long_values_arrive_whole_whatever_the_message_size() {
    let world = World::new(40, 1);
    for (device_mtu, owner_mtu) in [(0, 0), (256, 1300), (1300, 300), (u16::MAX, u16::MAX)] {
        let said: Vec<_> = [0, 1, 30, 900, 2000, 10_000]
            .map(|len| item("holdfast.site", "statement", value(len, 1)))
            .into_iter()
            .chain([item("fdo.csr", "active", vec![0xf5])])
            .collect();
        let told: Vec<_> = [5000, 0, 40_000, 7]
            .map(|len| item("holdfast.site", "config", value(len, 2)))
            .into();
        let mut terms = world.replacing();
        terms.max_service_info = owner_mtu;
        let options = Options {
            max_service_info: device_mtu,
            ..Options::default()
        };
        let mut owner = OwnerEnd::new(terms, 1);
        let (mut device, hello) = DeviceEnd::start(&world.born.credential, options, 2);
        for Item {
            module,
            message,
            value,
        } in &said
        {
            device.outbox.push(module, message, value.clone()).unwrap();
        }
        for Item {
            module,
            message,
            value,
        } in &told
        {
            owner.outbox.push(module, message, value.clone()).unwrap();
        }
        let mut largest = [0, 0];
        let wire = |_, message: &mut Message| match message.kind {
            MessageType::To2DeviceServiceInfo => {
                largest[0] = largest[0].max(message.body.len());
            }
            MessageType::To2OwnerServiceInfo => largest[1] = largest[1].max(message.body.len()),
            _ => {}
        };
        drive(&mut owner, &mut device, hello, wire).unwrap();
        assert_eq!(owner.heard, said);
        assert_eq!(device.heard, told);
        // What the tunnel adds: IV, tag, heads.
        for (len, mtu) in largest.into_iter().zip([owner_mtu, device_mtu]) {
            assert!(
                len <= usize::from(mtu.max(MIN_MTU)) + 50,
                "{len} bytes for {mtu}"
            );
        }
    }
}

#[test]
fn an_outbox_never_exceeds_the_room_and_never_stalls() {
    let mut rng = TestRng::new(41);
    for _ in 0..200 {
        let mut outbox = Outbox::default();
        let mut inbox = Inbox::default();
        let mut sent = Vec::new();
        for _ in 0..rng.below(20) {
            let new = item(
                "module",
                &"m".repeat(1 + rng.below(60)),
                value(rng.below(2000), 3),
            );
            outbox
                .push(&new.module, &new.message, new.value.clone())
                .unwrap();
            sent.push(new);
        }
        let mtu = (256 + rng.below(1500)) as u16;
        let mut got = Vec::new();
        while !outbox.is_empty() {
            let text = outbox.fill(mtu);
            assert!(text.len() + 3 <= usize::from(mtu));
            assert_ne!(text, [0x80], "each message carries something");
            got.extend(inbox.take(&mut Reader::new(&text).unwrap()).unwrap());
        }
        assert_eq!(got, sent);
    }
}

#[test]
fn outboxes_are_bounded() {
    let mut outbox = Outbox::default();
    outbox.push("m", "x", value(MAX_ITEM, 0)).unwrap_err();
    outbox.push("m", &"x".repeat(127), vec![0xf5]).unwrap_err();
    outbox.push("m", &"x".repeat(126), value(5_000, 0)).unwrap();
    while !outbox.is_empty() {
        assert_ne!(outbox.fill(0), [0x80]);
    }
    let mut pushed = 0;
    while outbox.push("m", "x", value(50_000, 0)).is_ok() {
        pushed += 50_000;
    }
    assert!(pushed <= MAX_OUTBOX_BYTES && pushed > MAX_OUTBOX_BYTES - 60_000);
    assert!(!outbox.is_empty());
    outbox.fill(u16::MAX);
    outbox.push("m", "x", value(50_000, 0)).unwrap();
}

#[test]
fn pieces_are_joined_only_as_they_should() {
    let whole = value(100, 7);
    let (head, tail) = whole.split_at(50);
    let mut inbox = Inbox::default();
    assert_eq!(take(&mut inbox, &[("a:b", head)]).unwrap(), []);
    assert!(inbox.is_mid_value());
    let got = take(
        &mut inbox,
        &[("a:b", tail), ("a:b", &[0x01, 0x02]), ("a:c", &[0xf6])],
    );
    assert_eq!(
        got.unwrap(),
        [
            item("a", "b", whole.clone()),
            item("a", "b", vec![1]),
            item("a", "b", vec![2]),
            item("a", "c", vec![0xf6])
        ]
    );
    assert!(!inbox.is_mid_value());
    for broken in [
        &[("a:b", head), ("a:c", tail)][..],
        &[("ab", &[0x01])],
        &[(":b", &[0x01])],
        &[("a:", &[0x01])],
        &[("a:b", &[0x18, 0x01])],
        &[("a:b", &[0xff])],
    ] {
        take(&mut Inbox::default(), broken).unwrap_err();
    }
    // A value that never ends is given up at its bound.
    let mut inbox = Inbox::default();
    take(&mut inbox, &[("a:b", &[0x5a, 0x7f, 0xff, 0xff, 0xff])]).unwrap();
    let piece = vec![0; 1000];
    let fault = (0..100).find_map(|_| take(&mut inbox, &[("a:b", &piece)]).err());
    assert_eq!(fault, Some(CborError::TooLong("service info value")));
}

#[test]
fn endless_talk_is_cut_off() {
    // The device never ends its devmod: it says the same again and again.
    let world = World::new(42, 1);
    let mut owner = OwnerEnd::new(world.replacing(), 1);
    owner.turns = usize::MAX;
    let (mut device, hello) = DeviceEnd::start(&world.born.credential, Options::default(), 2);
    let mut rounds = 0;
    let wire = |_, message: &mut Message| {
        rounds += u32::from(message.kind == MessageType::To2DeviceServiceInfo);
        assert!(rounds <= 2 * MAX_ROUNDS, "nobody cuts it off");
    };
    let (_, end, error) = drive(&mut owner, &mut device, hello, wire).unwrap_err();
    assert_eq!(
        (end, error.clone()),
        (End::Owner, Error::TooMuch("rounds of service info"))
    );
    assert_eq!((rounds, error.code().number()), (MAX_ROUNDS + 1, 101));
}

#[test]
fn too_many_bytes_are_cut_off() {
    let world = World::new(43, 1);
    let mut terms = world.replacing();
    terms.max_service_info = u16::MAX;
    let mut owner = OwnerEnd::new(terms, 1);
    owner.turns = usize::MAX;
    let (mut device, hello) = DeviceEnd::start(&world.born.credential, Options::default(), 2);
    // Refills itself as fast as it empties.
    let mut message = hello;
    let fault = loop {
        let reply = match owner.take(&message) {
            Ok(reply) => reply,
            Err(error) => break error,
        };
        owner.heard.clear();
        _ = device.outbox.push("m", "x", value(40_000, 0));
        message = device.take(&reply).unwrap().unwrap();
    };
    assert_eq!(fault, Error::TooMuch("bytes of service info"));
}

#[test]
fn devmod_comes_first_and_whole() {
    let world = World::new(44, 1);
    let refusal = |say: &dyn Fn(&mut Outbox)| {
        let mut owner = OwnerEnd::new(world.replacing(), 1);
        let (mut device, hello) = DeviceEnd::start(&world.born.credential, Options::default(), 2);
        device.outbox = Outbox::default();
        say(&mut device.outbox);
        drive(&mut owner, &mut device, hello, |_, _| {})
            .unwrap_err()
            .2
    };
    let check = |what| Error::Check {
        message: MessageType::To2DeviceServiceInfo,
        what,
    };
    assert_eq!(refusal(&|_| {}), check("devmod is incomplete"));
    assert_eq!(
        refusal(&|outbox| {
            outbox.push("fdo.csr", "active", vec![0xf5]).unwrap();
            devmod().push_to(outbox).unwrap();
        }),
        check("devmod does not come first")
    );
    assert_eq!(
        refusal(&|outbox| outbox.push("devmod", "active", vec![0xf5]).unwrap()),
        check("devmod is incomplete")
    );
    let malformed = refusal(&|outbox| outbox.push("devmod", "active", vec![0x01]).unwrap());
    assert!(matches!(malformed, Error::Malformed { .. }));
}

#[test]
fn devmod_is_read_as_others_write_it() {
    let mut inbox = DevModInbox::default();
    let mut say = |message: &str, value: Vec<u8>| inbox.take(&item("devmod", message, value));
    say("active", vec![0xf5]).unwrap();
    say("sn", vec![0x41, 0x01]).unwrap();
    say("mudurl", vec![0x60]).unwrap();
    say("nummodules", vec![0x03]).unwrap();
    say(
        "modules",
        cbor::encode(|w| _ = w.array(3).uint(0).uint(1).text("devmod")),
    )
    .unwrap();
    say(
        "modules",
        cbor::encode(|w| _ = w.array(4).uint(1).uint(2).text("a").text("b")),
    )
    .unwrap();
    for (message, broken) in [
        ("modules", vec![0x81, 0x00]),
        ("modules", vec![0x83, 0x00, 0x01, 0x02]),
        ("nummodules", vec![0x18, 0x41]),
        ("os", vec![0x01]),
        ("active", vec![0xf6]),
    ] {
        say(message, broken).unwrap_err();
    }
    assert!(inbox.is_complete());
    assert_eq!(inbox.devmod().modules, ["devmod", "a", "b"]);
    assert!(inbox.devmod().speaks("a") && !inbox.devmod().speaks("c"));
}

#[test]
fn null_sizes_are_understood() {
    let mut r = Reader::new(&[0xf6]).unwrap();
    assert_eq!(read_mtu(&mut r).unwrap(), DEFAULT_MTU);
    let mut r = Reader::new(&[0x1a, 0, 1, 0, 0]).unwrap();
    assert_eq!(read_mtu(&mut r).unwrap(), u16::MAX);
}

/// Plays a run in which the device's message 66 says `body`, and then all as usual.
fn with_ready(terms: Terms, world: &World, body: &[u8]) -> Result<OwnerEnd, Error> {
    let mut owner = OwnerEnd::new(terms, 1);
    let options = Options {
        allow_reuse: true,
        ..Options::default()
    };
    let (mut device, hello) = DeviceEnd::start(&world.born.credential, options, 2);
    let mut message = hello;
    while message.kind != MessageType::To2DeviceServiceInfoReady {
        let reply = owner.take(&message)?;
        message = device.take(&reply)?.unwrap();
    }
    message = device
        .session
        .as_ref()
        .unwrap()
        .seal(message.kind, body, &mut device.rng);
    drive(&mut owner, &mut device, message, |_, _| {}).map_err(|(.., error)| error)?;
    Ok(owner)
}

#[test]
fn the_owner_takes_a_null_hmac_but_no_hmac_for_nothing() {
    let world = World::new(45, 1);
    let null = [0x82, 0xf6, 0xf6];
    // A device that cannot be resold answers null to a replacement.
    let owner = with_ready(world.replacing(), &world, &null).unwrap();
    assert_eq!(owner.outcome, Some(Outcome::Unsellable));
    let reuse = || world.terms(Replacement::Reuse);
    assert_eq!(
        with_ready(reuse(), &world, &null).unwrap().outcome,
        Some(Outcome::Reused)
    );
    let needless = cbor::encode(|w| {
        w.array(2);
        world.voucher.mac().encode(w);
        w.null();
    });
    let error = with_ready(reuse(), &world, &needless).err().unwrap();
    assert!(matches!(
        error,
        Error::Check {
            what: "HMAC though nothing is new",
            ..
        }
    ));
}
