//! Which keys are believed, through rotations, restarts, old news, thieves and power cuts.

use holdfast_disk::fault::Recorder;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::{DeviceId, Guid};
use holdfast_protocol::notice::{Body, Notice, Stamp};
use holdfast_protocol::site_module::{ServerAddress, ServerRole};
use holdfast_protocol::time::{Time, TimeQuality};
use rand_core::Rng as _;

use super::*;
use crate::alternates::{Alternates, Heard};

fn draw() -> SigningKey {
    SigningKey::generate(&mut SystemRandom)
}

fn site(keys: &[&SigningKey]) -> SiteConfig {
    SiteConfig {
        device: DeviceId::from_guid(Guid([0xab; 16])),
        site: "plant".parse().unwrap(),
        domain: "holdfast.internal".parse().unwrap(),
        server: "gw1".parse().unwrap(),
        anchors: Vec::new(),
        chain: Vec::new(),
        notice_keys: keys.iter().map(|key| key.public()).collect(),
        servers: Vec::new(),
        time: Time::new(1_800_000_000, TimeQuality::Authenticated),
    }
}

fn step(old: &SigningKey, new: &SigningKey) -> SignedSuccession {
    SignedSuccession::sign(KeyRole::Signing, &"gw1".parse().unwrap(), old, new).unwrap()
}

fn told(key: &SigningKey, seq: u64) -> Vec<u8> {
    let server = ServerAddress {
        server: "cloud".parse().unwrap(),
        role: ServerRole::Cloud,
        name: "cloud.example".into(),
        mqtt: vec![format!("10.0.0.1:{seq}")],
        https: Vec::new(),
    };
    let notice = Notice {
        issuer: "gw1".parse().unwrap(),
        site: "plant".parse().unwrap(),
        device: DeviceId::from_guid(Guid([0xab; 16])),
        stamp: Stamp { epoch: 1, seq },
        body: Body::Alternate(server),
    };
    notice.sign(key)
}

#[test]
fn a_chain_is_followed_in_any_order_and_what_gave_way_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let keys: Vec<SigningKey> = (0..5).map(|_| draw()).collect();
    let (cloud, public) = (draw(), |at: usize| keys[at].public());
    let site = site(&[&keys[0], &cloud]);
    let signers = Signers::open(folder.path(), &site);
    let steps: Vec<_> = (0..3).map(|at| step(&keys[at], &keys[at + 1])).collect();
    let mixed = [steps[2].clone(), steps[0].clone(), steps[1].clone()];
    assert!(signers.hear(&mixed).unwrap());
    assert!(!signers.hear(&mixed).unwrap(), "nothing new");
    let believed = [cloud.public(), public(3)];
    for signers in [signers, Signers::open(folder.path(), &site)] {
        assert_eq!(signers.trusted(), believed);
        assert_eq!(signers.ever().len(), 5);
        // Played again, by a thief of a key that gave way, from a stranger, of another role.
        let owner = KeyRole::Owner;
        let other = SignedSuccession::sign(owner, &"gw1".parse().unwrap(), &keys[3], &keys[4]);
        let bad = [
            steps[0].clone(),
            step(&keys[0], &draw()),
            step(&draw(), &draw()),
            step(&keys[3], &keys[0]),
            other.unwrap(),
        ];
        assert!(!signers.hear(&bad).unwrap());
        assert_eq!(signers.trusted(), believed);
    }
}

#[test]
fn old_news_of_a_renewal_brings_nothing_back_and_fresh_news_ends_a_key() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second, cloud, fifth) = (draw(), draw(), draw(), draw());
    let signers = Signers::open(folder.path(), &site(&[&first, &cloud]));
    assert!(signers.hear(&[step(&first, &second)]).unwrap());
    // A server that has not heard of the rotation renews the certificate.
    let signers = Signers::open(folder.path(), &site(&[&cloud, &first]));
    assert_eq!(signers.trusted(), [cloud.public(), second.public()]);
    // Many rotations were slept through: the renewal names the present key.
    let signers = Signers::open(folder.path(), &site(&[&second, &fifth]));
    assert_eq!(signers.trusted(), [second.public(), fifth.public()]);
    assert!(signers.ever().contains(&cloud.public()));
    let elsewhere = SiteConfig {
        site: "dock".parse().unwrap(),
        ..site(&[&first])
    };
    let signers = Signers::open(folder.path(), &elsewhere);
    assert_eq!(signers.trusted(), [first.public()]);
}

#[test]
fn what_the_old_key_told_outlives_it_and_what_it_says_now_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (draw(), draw());
    let site = site(&[&old]);
    let (room, servers) = Alternates::open(folder.path(), &site);
    assert_eq!(room.hear(&told(&old, 1)).unwrap(), Heard::Taken);
    let early = room.hear(&told(&new, 2)).unwrap();
    assert!(matches!(early, Heard::Refused(_)), "before the succession");
    assert!(room.signers().hear(&[step(&old, &new)]).unwrap());
    let stolen = room.hear(&told(&old, 3)).unwrap();
    assert!(matches!(stolen, Heard::Refused(_)), "after it");
    let before = servers.borrow().clone();
    let (room, servers) = Alternates::open(folder.path(), &site);
    assert_eq!(*servers.borrow(), before);
    assert_eq!(room.hear(&told(&new, 2)).unwrap(), Heard::Taken);
    // Marks outlive the rotation.
    let replayed = room.hear(&told(&new, 1)).unwrap();
    assert!(matches!(replayed, Heard::Refused(why) if why.contains("replayed")));
}

/// The power goes at every step of taking two rotations and the notices by each key. Whatever is
/// left, the device comes to believe the present key once it is told again, and never the old one
/// after the new one; what it was told is not lost.
#[test]
fn a_cut_anywhere_leaves_a_device_that_believes_the_present_key() {
    let (folder, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let keys: Vec<SigningKey> = (0..3).map(|_| draw()).collect();
    let site = site(&[&keys[0]]);
    let recorder = Recorder::watch(&[folder.path()]).unwrap();
    let (room, _) = Alternates::open(folder.path(), &site);
    let mut done = Vec::new();
    for at in 0..3_usize {
        if at > 0 {
            assert!(
                room.signers()
                    .hear(&[step(&keys[at - 1], &keys[at])])
                    .unwrap()
            );
        }
        let seq = at as u64 + 1;
        assert_eq!(room.hear(&told(&keys[at], seq)).unwrap(), Heard::Taken);
        done.push(recorder.position());
    }
    let steps = [step(&keys[0], &keys[1]), step(&keys[1], &keys[2])];
    let (mut cuts, mut early, mut late) = (0, 0, 0);
    recorder.each_image(
        12,
        || SystemRandom.next_u64(),
        |at, image| {
            let left = to.path().join("left");
            image.put(folder.path(), &left).unwrap();
            let (room, servers) = Alternates::open(&left, &site);
            let held = room.signers().trusted();
            assert_eq!(held.len(), 1, "one identity of the server, never none");
            let heard = done.iter().filter(|done| **done <= at).count();
            if heard > 0 {
                let newest = servers.borrow()[0].mqtt[0].clone();
                let least = format!("10.0.0.1:{heard}");
                assert!(newest >= least, "{newest} after {heard} notices");
                let believed = keys.iter().position(|key| key.public() == held[0]);
                assert!(believed.unwrap() + 1 >= heard, "a notice outlived its key");
            }
            let is_old = held == [keys[0].public()];
            (early, late) = (early + u32::from(is_old), late + u32::from(!is_old));
            room.signers().hear(&steps).unwrap();
            assert_eq!(room.signers().trusted(), [keys[2].public()]);
            assert_eq!(room.hear(&told(&keys[2], 9)).unwrap(), Heard::Taken);
            cuts += 1;
        },
    );
    assert!(
        cuts >= 120 && early > 0 && late > 0,
        "{cuts} {early} {late}"
    );
}

#[test]
fn control_a_disk_that_forgets_is_caught() {
    let (folder, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (draw(), draw());
    let site = site(&[&old]);
    let recorder = Recorder::watch(&[folder.path()]).unwrap();
    recorder.forget_syncs();
    let (room, _) = Alternates::open(folder.path(), &site);
    assert!(room.signers().hear(&[step(&old, &new)]).unwrap());
    assert_eq!(room.hear(&told(&new, 1)).unwrap(), Heard::Taken);
    let end = recorder.position();
    let caught = (0..40).any(|_| {
        let left = to.path().join("left");
        let image = recorder.image(end, || SystemRandom.next_u64());
        image.put(folder.path(), &left).unwrap();
        let (room, servers) = Alternates::open(&left, &site);
        servers.borrow().is_empty() || room.signers().trusted() != [new.public()]
    });
    assert!(caught);
}
