//! A device before the desk, message by message: paired, cut anywhere, strangers on either side, relayed.

use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::fdo::di;
use holdfast_protocol::fdo::service_info::DevMod;
use holdfast_protocol::fdo::to2::{DeviceStep, Options, start};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use rand_core::Rng as _;

use super::*;

pub(crate) fn key() -> SigningKey {
    SigningKey::generate(&mut SystemRandom)
}

fn network() -> Network {
    Network::new("harbour".into(), Some("eight888".to_owned().into())).expect("network")
}

/// A device as the factory leaves it, and its voucher extended to `owner`.
pub(crate) fn device(owner: &SigningKey) -> (DeviceCredential, Voucher) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let ca_key = rcgen::KeyPair::generate().expect("key");
    let ca = rcgen::CertifiedIssuer::self_signed(params, ca_key).expect("authority");
    let (factory, own) = (key(), key());
    let (device, message) = di::start("s1", "thermometer", own.clone()).expect("start");
    let app = di::AppStart::read(&message).expect("read");
    let spki = rcgen::SubjectPublicKeyInfo::from_der(&own.public().to_spki_der()).expect("key");
    let leaf = rcgen::CertificateParams::default().signed_by(&spki, &ca);
    let directive = vec![Instruction::DevOnly, Instruction::Dns("x.local".into())];
    let rendezvous = RendezvousInfo::new(vec![directive]).expect("rendezvous");
    let mut guid = Guid([0; 16]);
    SystemRandom.fill_bytes(&mut guid.0);
    let terms = di::IssueTerms {
        guid,
        rendezvous: &rendezvous,
        manufacturer: &factory.public(),
        chain: vec![leaf.expect("certificate").der().to_vec()],
    };
    let (server, message) = app.issue(terms).expect("issued");
    let (device, message) = device.step(&message, &mut SystemRandom).expect("step");
    let (voucher, message) = server.step(&message).expect("voucher");
    let credential = device.step(&message).expect("credential");
    let next = PublicKey::x509(&owner.public());
    (
        credential,
        voucher.extend(&next, &factory).expect("extended"),
    )
}

pub(crate) fn desk(voucher: Voucher, signer: SigningKey) -> Desk {
    let pairing = Pairing {
        voucher,
        signer,
        network: network(),
    };
    Desk::new(([192, 168, 49, 1], 8042).into(), Some(pairing))
}

fn to1(desk: &mut Desk, credential: &DeviceCredential) -> Result<to1::To1d, Error> {
    let (state, hello) = to1::hello(credential);
    let answer = desk.answer("t1", &hello)?;
    let (state, proof) = state.step(&answer)?;
    state.step(&desk.answer("t1", &proof)?)
}

/// The device's TO2 up to `most` answers; what it was given, and whether it ended well.
fn to2(
    desk: &mut Desk,
    credential: &DeviceCredential,
    to1d: Option<to1::To1d>,
    most: usize,
    modules: &[&str],
) -> Result<(Option<Network>, bool), Error> {
    let options = Options {
        to1d,
        allow_reuse: true,
        ..Options::default()
    };
    let (mut session, mut message) = start(credential, options, &mut SystemRandom);
    let (mut outbox, mut given) = (Outbox::default(), None);
    let text = || "x".to_owned();
    let devmod = DevMod {
        os: text(),
        arch: text(),
        version: text(),
        device: text(),
        serial: None,
        sep: "/".into(),
        bin: text(),
        modules: modules.iter().map(|it| (*it).to_owned()).collect(),
    };
    devmod.push_to(&mut outbox).expect("fits");
    for _ in 0..most {
        let answer = desk.answer("t2", &message)?;
        (session, message) = match session.step(&answer, &mut SystemRandom)? {
            DeviceStep::Continue(session, message) => (session, message),
            DeviceStep::ServiceInfo(mut turn) => {
                for item in turn.take_items() {
                    if item.message == "network" {
                        given = Some(Network::from_value(&item.value).expect("network"));
                        let yes = cbor::encode(|w| _ = w.bool(true));
                        outbox.push(MODULE, "applied", yes).expect("fits");
                    }
                }
                assert!(turn.replacement().is_none(), "the credential is kept");
                turn.next(&mut outbox, &mut SystemRandom)
            }
            DeviceStep::Finished => return Ok((given, true)),
        };
    }
    Ok((given, false))
}

#[test]
fn a_device_is_paired_wherever_it_was_cut_before_and_keeps_its_credential() {
    let owner = key();
    for cut in 0..20 {
        let (credential, voucher) = device(&owner);
        let mut desk = desk(voucher, owner.clone());
        let to1d = to1(&mut desk, &credential).expect("our own answer");
        assert_eq!(to1d.addresses()[0].port, 8042);
        let cut_short = to2(&mut desk, &credential, Some(to1d), cut, &[MODULE]);
        let (_, ended) = cut_short.expect("no fault");
        assert_eq!(desk.is_paired(), ended, "cut after {cut}");
        // Again from the start, without and with a rendezvous answer.
        let again = to2(&mut desk, &credential, None, 99, &[MODULE]);
        assert_eq!(again.expect("paired"), (Some(network()), true));
        assert!(desk.is_paired() && desk.sessions.len() <= 2);
        if ended {
            let relayed = to1(&mut desk, &credential);
            assert!(
                matches!(relayed, Err(Error::NotFound)),
                "relayed from now on"
            );
            return;
        }
    }
    panic!("no run ended");
}

#[test]
fn strangers_on_either_side_get_nothing() {
    let (owner, stranger) = (key(), key());
    let (credential, voucher) = device(&owner);
    let (other, _) = device(&owner);
    let mut right = desk(voucher.clone(), owner.clone());
    assert!(matches!(to1(&mut right, &other), Err(Error::NotFound)));
    let unknown = to2(&mut right, &other, None, 99, &[MODULE]);
    assert!(matches!(unknown, Err(Error::NotFound)));
    // The device's GUID with another key and secret.
    let forged = DeviceCredential {
        guid: credential.guid,
        ..other
    };
    to1(&mut right, &forged).expect_err("no proof");
    to2(&mut right, &forged, None, 99, &[MODULE]).expect_err("no proof");
    // An installer whose key the voucher does not name.
    let mut wrong = desk(voucher, stranger);
    to2(&mut wrong, &credential, None, 99, &[MODULE]).expect_err("not the owner");
    // A device that knows nothing of our module.
    let deaf = to2(&mut right, &credential, None, 99, &["fdo.csr"]);
    deaf.expect_err("takes no credentials");
    assert!(!right.is_paired() && !wrong.is_paired());
    let lost = right.answer("t9", &Message::new(MessageType::To2Done, vec![]));
    assert!(matches!(lost, Err(Error::NoSession)));
}
