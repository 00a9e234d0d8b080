//! The vault: staged and committed as a whole, never overwritten, damage told.

use std::os::unix::fs::PermissionsExt;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{HashAlg, HmacSecret, hash};
use holdfast_protocol::id::Guid;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use holdfast_protocol::site_module::{ServerAddress, ServerRole};
use holdfast_protocol::time::{Time, TimeQuality};

use super::*;

pub(crate) fn credential(guid: u8) -> DeviceCredential {
    DeviceCredential {
        guid: Guid([guid; 16]),
        rendezvous: RendezvousInfo::new(vec![vec![Instruction::Dns("rv.example".into())]]).unwrap(),
        hmac_secret: HmacSecret::generate(&mut SystemRandom),
        owner_key_hash: hash(HashAlg::Sha256, b"owner"),
        device_info: "thermometer".into(),
        key: SigningKey::generate(&mut SystemRandom),
    }
}

fn identity() -> Identity {
    let site = SiteConfig {
        device: DeviceId::from_guid(Guid([1; 16])),
        site: "plant".parse().unwrap(),
        domain: "holdfast.internal".parse().unwrap(),
        server: "cloud".parse().unwrap(),
        anchors: vec![vec![1, 2, 3]],
        chain: vec![vec![4, 5]],
        notice_keys: vec![SigningKey::generate(&mut SystemRandom).public()],
        servers: vec![ServerAddress {
            server: "gw1".parse().unwrap(),
            role: ServerRole::Gateway,
            name: "gw1.gateways.plant.holdfast.internal".into(),
            mqtt: vec!["127.0.0.1:8883".into()],
            https: vec![],
        }],
        time: Time::new(1_800_000_000, TimeQuality::Authenticated),
    };
    Identity {
        key: SigningKey::generate(&mut SystemRandom),
        certificate: vec![9; 40],
        site,
    }
}

#[test]
fn what_is_staged_holds_after_the_commit_only() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::new(folder.path());
    assert!(matches!(vault.load(), Err(VaultError::Missing)));
    vault.create(credential(1)).unwrap();
    assert!(matches!(
        vault.create(credential(2)),
        Err(VaultError::Present(_))
    ));
    let staged = Staged {
        credential: credential(3),
        identity: identity(),
    };
    vault.stage(staged.clone()).unwrap();
    let kept = vault.load().unwrap();
    assert_eq!(kept.credential.guid, Guid([1; 16]));
    assert!(kept.identity.is_none());
    assert_eq!(kept.staged.unwrap().credential.guid, Guid([3; 16]));
    for _ in 0..2 {
        let now = vault.commit().unwrap();
        let again = vault.load().unwrap();
        for found in [now, again] {
            assert_eq!(found.credential.encode(), staged.credential.encode());
            let identity = found.identity.unwrap();
            assert_eq!(identity.site, staged.identity.site);
            assert_eq!(identity.certificate, staged.identity.certificate);
            assert_eq!(identity.key.public(), staged.identity.key.public());
            assert!(found.staged.is_none());
        }
    }
    let mode = std::fs::metadata(folder.path().join(FILE))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn every_cut_and_flip_is_damage_or_reads_and_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::new(folder.path());
    vault.create(credential(1)).unwrap();
    vault
        .stage(Staged {
            credential: credential(3),
            identity: identity(),
        })
        .unwrap();
    let path = folder.path().join(FILE);
    let good = std::fs::read(&path).unwrap();
    for cut in 0..good.len() {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(
            matches!(vault.load(), Err(VaultError::Damaged { .. })),
            "{cut}"
        );
        // Damage never lets `init` overwrite what may be repaired.
        assert!(vault.check_absent().is_err());
    }
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 0x81;
        std::fs::write(&path, &bad).unwrap();
        let _ = vault.load();
    }
}

#[test]
fn secrets_are_not_printed() {
    let contents = Contents {
        credential: credential(1),
        identity: Some(identity()),
        staged: None,
    };
    let secret = contents.credential.hmac_secret.expose();
    let shown = format!("{contents:?}");
    assert!(!shown.contains(&format!("{secret:?}")));
    let key = contents.identity.unwrap().key.to_pkcs8_der();
    assert!(!shown.contains(&format!("{:?}", &key[key.len() - 8..])));
}
