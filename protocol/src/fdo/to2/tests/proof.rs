//! Owners who lie in message 61 and after: the device ends the run before any ServiceInfo.

use super::*;
use crate::crypto::{EcdhSecret, Hash, HashAlg, Mac, hash};
use crate::voucher::VoucherError;
use crate::wire::cose::{Headers, Sign1};

/// Content of message 61, to be forged.
struct Claim {
    header: Vec<u8>,
    entries: u64,
    mac: Mac,
    nonce: [u8; 16],
    hello_hash: Hash,
    exchange: Vec<u8>,
    owner: Option<PublicKey>,
    prove_device: Option<[u8; 16]>,
    signer: SigningKey,
}

impl Claim {
    /// What an honest owner would say to `hello`.
    fn honest(world: &World, hello: &Message) -> Self {
        let mut r = Reader::new(&hello.body).unwrap();
        r.array(6).unwrap();
        r.uint().unwrap();
        r.raw().unwrap();
        Self {
            header: world.voucher.header().as_bytes().to_vec(),
            entries: world.voucher.entries().len() as u64,
            mac: world.voucher.mac().clone(),
            nonce: r.bytes_exact().unwrap(),
            hello_hash: hash(HashAlg::Sha256, &hello.body),
            exchange: EcdhSecret::generate(&mut TestRng::new(3))
                .parameter()
                .to_bytes(),
            owner: Some(world.voucher.owner_key().clone()),
            prove_device: Some([9; 16]),
            signer: world.owner().clone(),
        }
    }

    fn sign(&self) -> Message {
        let payload = cbor::encode(|w| {
            w.array(8).bytes(&self.header).uint(self.entries);
            self.mac.encode(w);
            w.bytes(&self.nonce)
                .array(2)
                .int(-7)
                .bytes(&[])
                .bytes(&self.exchange);
            self.hello_hash.encode(w);
            w.uint(65535);
        });
        let mut headers = Headers::default();
        if let Some(nonce) = self.prove_device {
            headers = headers.with(256, cbor::encode(|w| _ = w.bytes(&nonce)));
        }
        if let Some(owner) = &self.owner {
            headers = headers.with(257, owner.as_bytes().to_vec());
        }
        let proof = Sign1::sign_with(&payload, headers, &self.signer);
        Message::new(MessageType::To2ProveOvHdr, proof.as_bytes().to_vec())
    }
}

/// Plays a lying owner: the claim, then `entries` one after another. Gives the message number at
/// which the device ended the run, and why; none if it went on to prove itself.
fn lie(
    world: &World,
    options: Options,
    edit: impl FnOnce(&mut Claim),
    entries: &[Vec<u8>],
) -> Option<(u8, Error)> {
    let (mut device, hello) = DeviceEnd::start(&world.born.credential, options, 20);
    let mut claim = Claim::honest(world, &hello);
    edit(&mut claim);
    let mut reply = match device.take(&claim.sign()) {
        Ok(reply) => reply.unwrap(),
        Err(error) => return Some((61, error)),
    };
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(reply.body, [0x81, number as u8]);
        let body = cbor::encode(|w| _ = w.array(2).uint(number as u64).raw(entry));
        match device.take(&Message::new(MessageType::To2OvNextEntry, body)) {
            Ok(next) => reply = next.unwrap(),
            Err(error) => return Some((63, error)),
        }
        if reply.kind == MessageType::To2ProveDevice {
            return None;
        }
    }
    panic!("the device asks for more entries than there are: {reply:?}");
}

fn entries(world: &World) -> Vec<Vec<u8>> {
    world
        .voucher
        .entries()
        .iter()
        .map(|entry| entry.as_bytes().to_vec())
        .collect()
}

#[test]
fn an_honest_claim_convinces() {
    for count in [1, 2, 3, 16] {
        let world = World::new(20, count);
        assert_eq!(
            lie(&world, Options::default(), |_| {}, &entries(&world)),
            None
        );
    }
}

#[test]
fn false_claims_end_the_run_at_once() {
    let (world, other) = (World::new(21, 3), World::new(22, 3));
    let refused = |edit: &dyn Fn(&mut Claim)| {
        let (message, error) =
            lie(&world, Options::default(), edit, &[]).expect("the device must refuse");
        assert_eq!(message, 61);
        match error {
            Error::Check { what, .. } => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refused(&|c| c.hello_hash = hash(HashAlg::Sha256, b"")),
        "hash of HelloDevice"
    );
    assert_eq!(refused(&|c| c.nonce = [0; 16]), "nonce");
    assert_eq!(refused(&|c| c.owner = None), "owner key is missing");
    assert_eq!(refused(&|c| c.prove_device = None), "nonce is missing");
    for entries in [0, 17, 255] {
        assert_eq!(refused(&|c| c.entries = entries), "number of entries");
    }
    // A voucher of another device, or of this one with a changed header.
    let foreign = other.voucher.header().as_bytes().to_vec();
    let hmac = "HMAC of the voucher header";
    assert_eq!(refused(&|c| c.header = foreign.clone()), hmac);
    assert_eq!(refused(&|c| c.mac = other.voucher.mac().clone()), hmac);
    assert_eq!(refused(&|c| *c.header.last_mut().unwrap() ^= 1), hmac);
}

#[test]
fn malformed_claims_end_the_run_at_once() {
    let world = World::new(23, 2);
    let refused = |edit: &dyn Fn(&mut Claim)| {
        lie(&world, Options::default(), edit, &[])
            .expect("the device must refuse")
            .1
    };
    // Signed by another key than the one shown.
    let manufacturer = world.born.manufacturer.clone();
    let unsigned = refused(&|c| c.signer = manufacturer.clone());
    assert!(matches!(
        unsigned,
        Error::Cose {
            fault: CoseError::Crypto(_),
            ..
        }
    ));
    assert!(matches!(
        refused(&|c| c.entries = 256),
        Error::Malformed { .. }
    ));
    // Points that are none.
    let mut off_curve = EcdhSecret::generate(&mut TestRng::new(1))
        .parameter()
        .to_bytes();
    off_curve[40] ^= 1;
    for exchange in [Vec::new(), vec![0; 86], off_curve] {
        assert!(matches!(
            refused(&|c| c.exchange = exchange.clone()),
            Error::Cose { .. }
        ));
    }
}

#[test]
fn a_credential_of_another_first_owner_refuses() {
    let mut world = World::new(24, 1);
    world.born.credential.owner_key_hash = hash(HashAlg::Sha256, b"another key");
    let (_, error) = lie(&world, Options::default(), |_| {}, &[]).unwrap();
    assert!(matches!(
        error,
        Error::Check {
            what: "hash of the first owner's key",
            ..
        }
    ));
}

#[test]
fn false_chains_end_the_run_before_the_device_proves_itself() {
    let world = World::new(25, 3);
    let all = entries(&world);
    let refused = |edit: &dyn Fn(&mut Claim), entries: &[Vec<u8>]| {
        let (message, error) =
            lie(&world, Options::default(), edit, entries).expect("the device must refuse");
        assert_eq!(message, 63);
        error
    };
    let not_last = |error| {
        assert!(matches!(
            error,
            Error::Check {
                what: "the last owner is another key",
                ..
            }
        ));
    };
    // An earlier owner proves itself by the whole chain, or by a chain cut short at its successor.
    let earlier = world.owners[1].clone();
    let as_earlier = |claim: &mut Claim| {
        claim.owner = Some(PublicKey::x509(&earlier.public()));
        claim.signer = earlier.clone();
    };
    not_last(refused(&as_earlier, &all));
    not_last(refused(&|c| c.entries = 2, &all[..2]));
    // More entries than there are: the owner makes some up.
    let doubled = [&all[..], &all[2..]].concat();
    let error = refused(&|c| c.entries = 4, &doubled);
    assert_eq!(error, Error::Voucher(VoucherError::PrevHash { entry: 3 }));
    // Permuted, repeated, missing.
    let permuted = [all[0].clone(), all[2].clone(), all[1].clone()];
    let error = refused(&|_| {}, &permuted);
    assert_eq!(error, Error::Voucher(VoucherError::PrevHash { entry: 1 }));
    let repeated = [all[0].clone(), all[0].clone(), all[2].clone()];
    let error = refused(&|_| {}, &repeated);
    assert_eq!(error, Error::Voucher(VoucherError::PrevHash { entry: 1 }));
    let headless = [all[1].clone(), all[2].clone()];
    let error = refused(&|c| c.entries = 2, &headless);
    assert_eq!(error, Error::Voucher(VoucherError::PrevHash { entry: 0 }));
    // Of another device.
    let foreign = entries(&World::new(26, 3));
    let error = refused(&|_| {}, &foreign);
    assert_eq!(error, Error::Voucher(VoucherError::PrevHash { entry: 0 }));
}

#[test]
fn an_earlier_owner_still_owns_a_chain_cut_short_at_itself() {
    // The device alone cannot know that it was passed on; that is what rendezvous and registry
    // watch for. Stated here so that nobody takes it for checked.
    let world = World::new(27, 3);
    let cut = World {
        voucher: chain_of(&world, 2),
        owners: world.owners[..2].to_vec(),
        ..world
    };
    assert_eq!(lie(&cut, Options::default(), |_| {}, &entries(&cut)), None);
}

fn chain_of(world: &World, entries: usize) -> Voucher {
    let mut voucher = world.born.voucher.clone();
    let mut signer = &world.born.manufacturer;
    for owner in &world.owners[..entries] {
        voucher = voucher
            .extend(&PublicKey::x509(&owner.public()), signer)
            .unwrap();
        signer = owner;
    }
    voucher
}

#[test]
fn directions_signed_by_somebody_else_end_the_run() {
    let world = World::new(28, 2);
    let earlier = chain_of(&world, 1);
    let to1d = redirect(&world.born.credential, &earlier, &world.owners[0]);
    let options = Options {
        to1d: Some(to1d),
        ..Options::default()
    };
    let (message, error) = lie(&world, options, |_| {}, &entries(&world)).unwrap();
    assert_eq!(message, 63);
    assert!(matches!(
        error,
        Error::Cose {
            message: MessageType::To1RvRedirect,
            ..
        }
    ));
    // Control: by the owner itself.
    let to1d = redirect(&world.born.credential, &world.voucher, world.owner());
    let options = Options {
        to1d: Some(to1d),
        ..Options::default()
    };
    assert_eq!(lie(&world, options, |_| {}, &entries(&world)), None);
}

#[test]
fn a_device_that_is_another_is_refused_by_the_owner() {
    let (mut world, other) = (World::new(29, 1), World::new(30, 1));
    world.born.credential.key = other.born.credential.key.clone();
    let (at, end, error) = play(&world, world.replacing(), Options::default(), |_, _| {})
        .err()
        .unwrap();
    assert_eq!((at, end), (4, End::Owner));
    assert!(matches!(
        error,
        Error::Cose {
            message: MessageType::To2ProveDevice,
            ..
        }
    ));
}
