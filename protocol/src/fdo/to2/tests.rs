//! TO2 driven in memory: whole runs, then order, forged proofs and the talk in files of their own.
//!
//! A run depends on its seeds alone, so a recorded message is exactly the message due when the run
//! is played again: what is refused is refused for what was altered, not for stale keys.

mod order;
mod proof;
mod sealed;
mod talk;

use super::*;
use crate::credential::DeviceCredential;
use crate::crypto::SigningKey;
use crate::fdo::service_info::{DevMod, Item, Outbox};
use crate::fdo::to1::To1d;
use crate::fdo::{to0, to1};
use crate::fixture::{Born, TestRng, born, guid, rendezvous};
use crate::key::PublicKey;
use crate::rv::{To2Address, To2Protocol};
use crate::voucher::{Policy, Relation, Voucher};

/// A device, its voucher, and the owners to whom it was passed in turn.
struct World {
    born: Born,
    owners: Vec<SigningKey>,
    voucher: Voucher,
}

impl World {
    fn new(seed: u64, entries: usize) -> Self {
        let mut rng = TestRng::new(seed);
        let born = born(&mut rng);
        let owners: Vec<_> = (0..entries)
            .map(|_| SigningKey::generate(&mut rng))
            .collect();
        let mut voucher = born.voucher.clone();
        let mut signer = &born.manufacturer;
        for owner in &owners {
            voucher = voucher
                .extend(&PublicKey::x509(&owner.public()), signer)
                .unwrap();
            signer = owner;
        }
        Self {
            born,
            owners,
            voucher,
        }
    }

    fn owner(&self) -> &SigningKey {
        self.owners.last().unwrap()
    }

    fn terms(&self, replacement: Replacement) -> Terms {
        Terms {
            voucher: self.voucher.clone(),
            key: self.owner().clone(),
            replacement,
            max_service_info: u16::MAX,
        }
    }

    fn replacing(&self) -> Terms {
        self.terms(Replacement::Replace {
            guid: guid(&mut TestRng::new(self.voucher.guid().0[0].into())),
            rendezvous: rendezvous("new.example"),
            owner: PublicKey::x509(&self.owner().public()),
        })
    }
}

/// The owner's end of the wire.
struct OwnerEnd {
    rng: TestRng,
    terms: Option<Terms>,
    session: Option<OwnerSession>,
    outbox: Outbox,
    heard: Vec<Item>,
    devmod: Option<DevMod>,
    /// Turns of the device after which the owner has nothing more to say.
    turns: usize,
    outcome: Option<Outcome>,
}

impl OwnerEnd {
    fn new(terms: Terms, seed: u64) -> Self {
        Self {
            rng: TestRng::new(seed),
            terms: Some(terms),
            session: None,
            outbox: Outbox::default(),
            heard: Vec::new(),
            devmod: None,
            turns: 1,
            outcome: None,
        }
    }

    fn take(&mut self, message: &Message) -> Result<Message, Error> {
        if let Some(terms) = self.terms.take() {
            let (session, reply) = HelloDevice::read(message)?.answer(terms, &mut self.rng)?;
            self.session = Some(session);
            return Ok(reply);
        }
        let session = self.session.take().ok_or(Error::NoSession)?;
        match session.step(message, &mut self.rng)? {
            OwnerStep::Continue(session, reply) => {
                self.session = Some(session);
                Ok(reply)
            }
            OwnerStep::ServiceInfo(mut turn) => {
                self.heard.extend(turn.take_items());
                self.devmod = Some(turn.devmod().clone());
                self.turns = self
                    .turns
                    .saturating_sub(usize::from(!turn.device_has_more()));
                let (session, reply) =
                    turn.answer(&mut self.outbox, self.turns == 0, &mut self.rng);
                self.session = Some(session);
                Ok(reply)
            }
            OwnerStep::Finished(outcome, reply) => {
                self.outcome = Some(outcome);
                Ok(reply)
            }
        }
    }
}

/// The device's end of the wire.
struct DeviceEnd {
    rng: TestRng,
    session: Option<DeviceSession>,
    outbox: Outbox,
    heard: Vec<Item>,
    replacement: Option<DeviceCredential>,
    finished: bool,
}

impl DeviceEnd {
    fn start(credential: &DeviceCredential, options: Options, seed: u64) -> (Self, Message) {
        let mut rng = TestRng::new(seed);
        let (session, hello) = start(credential, options, &mut rng);
        let mut outbox = Outbox::default();
        devmod().push_to(&mut outbox).unwrap();
        let session = Some(session);
        let heard = Vec::new();
        (
            Self {
                rng,
                session,
                outbox,
                heard,
                replacement: None,
                finished: false,
            },
            hello,
        )
    }

    fn take(&mut self, message: &Message) -> Result<Option<Message>, Error> {
        let session = self.session.take().ok_or(Error::NoSession)?;
        let (session, reply) = match session.step(message, &mut self.rng)? {
            DeviceStep::Continue(session, reply) => (session, reply),
            DeviceStep::ServiceInfo(mut turn) => {
                self.heard.extend(turn.take_items());
                self.replacement = turn.replacement().cloned();
                turn.next(&mut self.outbox, &mut self.rng)
            }
            DeviceStep::Finished => {
                self.finished = true;
                return Ok(None);
            }
        };
        self.session = Some(session);
        Ok(Some(reply))
    }
}

fn devmod() -> DevMod {
    DevMod {
        os: "linux".into(),
        arch: "x86_64".into(),
        version: "1".into(),
        device: "thermometer".into(),
        serial: Some("serial-1".into()),
        sep: "/".into(),
        bin: "x86:64".into(),
        modules: vec!["fdo.csr".into(), "holdfast.site".into()],
    }
}

/// Who refused a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Owner,
    Device,
}

/// Carries messages until the end, letting `wire` see and alter each; its number counts from 0.
fn drive(
    owner: &mut OwnerEnd,
    device: &mut DeviceEnd,
    hello: Message,
    mut wire: impl FnMut(usize, &mut Message),
) -> Result<(), (usize, End, Error)> {
    let mut message = hello;
    for number in (0..).step_by(2) {
        wire(number, &mut message);
        let mut reply = owner
            .take(&message)
            .map_err(|error| (number, End::Owner, error))?;
        wire(number + 1, &mut reply);
        match device
            .take(&reply)
            .map_err(|error| (number + 1, End::Device, error))?
        {
            Some(next) => message = next,
            None => break,
        }
    }
    Ok(())
}

/// Plays a run with fixed seeds.
fn play(
    world: &World,
    terms: Terms,
    options: Options,
    wire: impl FnMut(usize, &mut Message),
) -> Result<(OwnerEnd, DeviceEnd), (usize, End, Error)> {
    play_seeded(world, terms, options, 1000, wire)
}

fn play_seeded(
    world: &World,
    terms: Terms,
    options: Options,
    seed: u64,
    wire: impl FnMut(usize, &mut Message),
) -> Result<(OwnerEnd, DeviceEnd), (usize, End, Error)> {
    let mut owner = OwnerEnd::new(terms, seed);
    let (mut device, hello) = DeviceEnd::start(&world.born.credential, options, seed + 1);
    drive(&mut owner, &mut device, hello, wire)?;
    Ok((owner, device))
}

/// TO0 and TO1 for a voucher: what the device then knows of its owner.
fn redirect(credential: &DeviceCredential, voucher: &Voucher, key: &SigningKey) -> To1d {
    let mut rng = TestRng::new(5);
    let address = To2Address {
        ip: Some([127, 0, 0, 1].into()),
        dns: Some("owner.example".into()),
        port: 8042,
        protocol: To2Protocol::Http,
    };
    let registration = to0::Registration {
        addresses: vec![address],
        wait_secs: 3600,
    };
    let (client, hello) = to0::hello();
    let (server, ack) = to0::ExpectOwnerSign::begin(&hello, &mut rng).unwrap();
    let (client, sign) = client.step(&ack, voucher, key, &registration).unwrap();
    let offer = server.step(&sign, &Policy::default()).unwrap();
    assert_eq!(client.step(&offer.accept(60)).unwrap(), 60);

    let (device, hello) = to1::hello(credential);
    let hello = to1::HelloRv::read(&hello).unwrap();
    assert_eq!(hello.guid(), voucher.guid());
    let device_key = offer.voucher.device_key().unwrap().clone();
    let (server, ack) = hello.answer(device_key, offer.to1d.as_bytes().to_vec(), &mut rng);
    let (device, prove) = device.step(&ack).unwrap();
    let to1d = device.step(&server.step(&prove).unwrap()).unwrap();
    assert_eq!(to1d.addresses(), registration.addresses);
    to1d
}

#[test]
fn a_device_goes_from_factory_to_owner_to_next_owner() {
    for suite in [AeadSuite::A128Gcm, AeadSuite::A256Gcm] {
        let world = World::new(1, 2);
        let to1d = redirect(&world.born.credential, &world.voucher, world.owner());
        let options = Options {
            to1d: Some(to1d),
            suite,
            ..Options::default()
        };
        let (owner, device) = play(&world, world.replacing(), options, |_, _| {}).unwrap();
        assert!(device.finished);
        assert_eq!(owner.devmod, Some(devmod()));
        let Some(Outcome::Replaced(voucher)) = owner.outcome else {
            panic!("{:?}", owner.outcome)
        };
        let credential = device.replacement.unwrap();
        assert_eq!(credential.guid, voucher.guid());
        assert_eq!(credential.rendezvous, rendezvous("new.example"));
        assert_ne!(credential.guid, world.born.credential.guid);
        assert_ne!(
            credential.hmac_secret.expose(),
            world.born.credential.hmac_secret.expose(),
            "an earlier owner must not be able to use what it knows"
        );
        voucher.verify(&Policy::default()).unwrap();
        assert_eq!(voucher.relation_to(&world.voucher), Relation::Unrelated);
        voucher
            .mac()
            .verify(&credential.hmac_secret, voucher.header().as_bytes())
            .unwrap();

        // The credential survives its file, and the new voucher leads to the next owner.
        let credential = DeviceCredential::decode(&credential.encode()).unwrap();
        let next = SigningKey::generate(&mut TestRng::new(9));
        let voucher = voucher
            .extend(&PublicKey::x509(&next.public()), world.owner())
            .unwrap();
        let to1d = redirect(&credential, &voucher, &next);
        let born = Born {
            credential,
            voucher: voucher.clone(),
            ..World::new(1, 0).born
        };
        let resold = World {
            born,
            owners: vec![next],
            voucher,
        };
        let options = Options {
            to1d: Some(to1d),
            suite,
            ..Options::default()
        };
        let (owner, device) = play(&resold, resold.replacing(), options, |_, _| {}).unwrap();
        assert!(device.finished && matches!(owner.outcome, Some(Outcome::Replaced(_))));
    }
}

#[test]
fn a_device_may_keep_its_credential_where_it_allows_it() {
    for suite in [AeadSuite::A128Gcm, AeadSuite::A256Gcm] {
        let world = World::new(2, 1);
        let options = Options {
            suite,
            allow_reuse: true,
            ..Options::default()
        };
        let terms = || world.terms(Replacement::Reuse);
        for _ in 0..2 {
            let (owner, device) = play(&world, terms(), options.clone(), |_, _| {}).unwrap();
            assert!(device.finished && device.replacement.is_none());
            assert_eq!(owner.outcome, Some(Outcome::Reused));
        }
        let refusal = play(&world, terms(), Options::default(), |_, _| {})
            .err()
            .unwrap();
        assert_eq!(refusal, (5, End::Device, Error::ReuseRefused));
        assert_eq!(refusal.2.code().number(), 102);
        let report = refusal.2.report(MessageType::To2SetupDevice).unwrap();
        let read = crate::fdo::ErrorMessage::parse(&report);
        assert_eq!((read.code.number(), read.previous), (102, 65));
    }
}

#[test]
fn anything_new_is_a_replacement() {
    // Same GUID and key but other rendezvous info; same rendezvous info and key but another GUID.
    let world = World::new(3, 1);
    let credential = &world.born.credential;
    let owner = PublicKey::x509(&world.owner().public());
    for (guid, rendezvous) in [
        (credential.guid, rendezvous("new.example")),
        (guid(&mut TestRng::new(8)), credential.rendezvous.clone()),
    ] {
        let replacement = Replacement::Replace {
            guid,
            rendezvous,
            owner: owner.clone(),
        };
        let (owner, device) = play(
            &world,
            world.terms(replacement),
            Options::default(),
            |_, _| {},
        )
        .unwrap();
        assert!(matches!(owner.outcome, Some(Outcome::Replaced(_))));
        assert_eq!(device.replacement.unwrap().guid, guid);
    }
    // A new owner key is a replacement too.
    let other = SigningKey::generate(&mut TestRng::new(4));
    let replacement = Replacement::Replace {
        guid: credential.guid,
        rendezvous: credential.rendezvous.clone(),
        owner: PublicKey::x509(&other.public()),
    };
    let (owner, _) = play(
        &world,
        world.terms(replacement),
        Options::default(),
        |_, _| {},
    )
    .unwrap();
    let Some(Outcome::Replaced(voucher)) = owner.outcome else {
        panic!()
    };
    assert!(voucher.is_owned_by(&other.public()));
}

#[test]
fn the_owner_brings_only_what_fits() {
    let (world, other) = (World::new(4, 1), World::new(5, 1));
    let mut rng = TestRng::new(1);
    let (_, hello) = start(&world.born.credential, Options::default(), &mut rng);
    let mut answer = |terms| {
        let hello = HelloDevice::read(&hello).unwrap();
        assert_eq!(hello.guid(), world.voucher.guid());
        hello.answer(terms, &mut rng).map(|_| ()).unwrap_err()
    };
    let other_device = other.replacing();
    let other_key = Terms {
        key: other.owner().clone(),
        ..world.replacing()
    };
    let no_entries = Terms {
        voucher: world.born.voucher.clone(),
        key: world.born.manufacturer.clone(),
        ..world.replacing()
    };
    for terms in [other_device, other_key, no_entries] {
        assert!(matches!(answer(terms), Error::Own(_)));
    }
}
