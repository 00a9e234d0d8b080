//! Evidence of an onboarding: what proves, what only attests, and every way to cheat.

use super::{super::*, guid};
use crate::{
    crypto::{Mac, MacAlg, SigningKey, VerifyingKey},
    fixture::{Born, TestRng, born, rendezvous},
    id::ServerId,
    key::PublicKey,
    site_module::Statement,
    voucher::{NewVoucher, Policy, Relation, Voucher, VoucherError},
};

/// A device that came to the gateway's CPS in an outage, and what the gateway reports of it.
struct World {
    rng: TestRng,
    born: Born,
    gateway: SigningKey,
    cps_key: VerifyingKey,
    name: ServerId,
    owned: Voucher,
    report: Onboarded,
}

fn replacement(old: &Voucher, new: u8, owner: &SigningKey) -> Voucher {
    let fresh = NewVoucher::succeeding(
        old,
        guid(new),
        &rendezvous("holdfast-rv.local"),
        &PublicKey::x509(&owner.public()),
    );
    fresh
        .seal(Mac::new(MacAlg::HmacSha256, &[5; 32]).unwrap())
        .unwrap()
}

impl World {
    fn new() -> Self {
        let mut rng = TestRng::new(9);
        let born = born(&mut rng);
        let gateway = SigningKey::generate(&mut rng);
        let cps_key = SigningKey::generate(&mut rng).public();
        let name: ServerId = "gw1".parse().unwrap();
        let owner = PublicKey::x509(&gateway.public());
        let owned = born.voucher.extend(&owner, &born.manufacturer).unwrap();
        let said = Statement {
            guid: owned.guid(),
            cps_key: cps_key.clone(),
            server: name.clone(),
            nonce: [3; 16],
        };
        let report = Onboarded {
            old_guid: owned.guid(),
            new_guid: guid(200),
            voucher: replacement(&owned, 200, &gateway).as_bytes().to_vec(),
            cps_key: cps_key.clone(),
            evidence: Evidence {
                voucher: owned.as_bytes().to_vec(),
                statement: Some(said.sign(fdo_key(&born))),
            },
        };
        Self {
            rng,
            born,
            gateway,
            cps_key,
            name,
            owned,
            report,
        }
    }

    fn judge(
        &self,
        report: &Onboarded,
        known: Option<&Voucher>,
    ) -> Result<Standing, EvidenceFault> {
        let owner_keys = [self.gateway.public()];
        let expected = Expected {
            origin: &self.name,
            owner_keys: &owner_keys,
            known,
            policy: Policy::default(),
        };
        verify_evidence(report, &expected)
    }

    fn changed(&self, edit: impl FnOnce(&mut Onboarded)) -> Result<Standing, EvidenceFault> {
        let mut report = self.report.clone();
        edit(&mut report);
        self.judge(&report, None)
    }

    fn saying(&self, edit: impl FnOnce(&mut Statement)) -> Result<Standing, EvidenceFault> {
        let mut said = Statement {
            guid: self.owned.guid(),
            cps_key: self.cps_key.clone(),
            server: self.name.clone(),
            nonce: [3; 16],
        };
        edit(&mut said);
        let signed = said.sign(fdo_key(&self.born));
        self.changed(|report| report.evidence.statement = Some(signed))
    }
}

fn fdo_key(born: &Born) -> &SigningKey {
    &born.credential.key
}

#[test]
fn a_whole_report_is_proved_and_one_without_a_statement_attested() {
    let world = World::new();
    assert_eq!(world.judge(&world.report, None), Ok(Standing::Proved));
    assert_eq!(
        world.changed(|r| r.evidence.statement = None),
        Ok(Standing::Attested)
    );
    // The voucher known here is the same chain, or an ancestor of what is presented.
    assert_eq!(
        world.judge(&world.report, Some(&world.owned)),
        Ok(Standing::Proved)
    );
    assert_eq!(
        world.judge(&world.report, Some(&world.born.voucher)),
        Ok(Standing::Proved)
    );
}

#[test]
fn forged_vouchers_are_refused() {
    let mut world = World::new();
    let thief = SigningKey::generate(&mut world.rng);
    // An owner that nobody passed the device to.
    let presented = |voucher: &Voucher| {
        let bytes = voucher.as_bytes().to_vec();
        world.changed(|report| report.evidence.voucher = bytes)
    };
    assert_eq!(presented(&world.born.voucher), Err(EvidenceFault::NotOwner));
    let elsewhere = world
        .owned
        .extend(&PublicKey::x509(&thief.public()), &world.gateway)
        .unwrap();
    assert_eq!(presented(&elsewhere), Err(EvidenceFault::NotOwner));
    // A chain with a byte changed somewhere.
    for at in (0..world.report.evidence.voucher.len()).step_by(7) {
        let verdict = world.changed(|report| report.evidence.voucher[at] ^= 1);
        assert!(verdict.is_err(), "byte {at}: {verdict:?}");
    }
    let garbage = world.changed(|report| report.evidence.voucher = vec![0]);
    assert!(matches!(
        garbage,
        Err(EvidenceFault::Voucher(VoucherError::Shape(_)))
    ));
    assert_eq!(
        world.changed(|r| r.old_guid = guid(1)),
        Err(EvidenceFault::Guid)
    );
    // Sold twice: what is known here forked off elsewhere.
    let fork = world
        .born
        .voucher
        .extend(&PublicKey::x509(&thief.public()), &world.born.manufacturer)
        .unwrap();
    let verdict = world.judge(&world.report, Some(&fork));
    assert_eq!(verdict, Err(EvidenceFault::Relation(Relation::Fork)));
    let verdict = world.judge(&world.report, Some(&elsewhere));
    assert_eq!(verdict, Err(EvidenceFault::Relation(Relation::Ancestor)));
}

#[test]
fn forged_replacements_are_refused() {
    let mut world = World::new();
    let thief = SigningKey::generate(&mut world.rng);
    let replaced =
        |voucher: Voucher| world.changed(|report| report.voucher = voucher.as_bytes().to_vec());
    let differs = Err(EvidenceFault::ReplacementDiffers);
    assert_eq!(
        replaced(replacement(&world.owned, 201, &world.gateway)),
        differs
    );
    assert_eq!(replaced(replacement(&world.owned, 200, &thief)), differs);
    let other = born(&mut TestRng::new(10)).voucher;
    assert_eq!(replaced(replacement(&other, 200, &world.gateway)), differs);
    // Extended further since (50 extends to 40 at once) it is still this device's.
    let extended = replacement(&world.owned, 200, &world.gateway)
        .extend(&PublicKey::x509(&thief.public()), &world.gateway)
        .unwrap();
    assert_eq!(replaced(extended), Ok(Standing::Proved));
    // A device that computes no HMAC for a new voucher is still itself.
    assert_eq!(
        world.changed(|report| report.voucher.clear()),
        Ok(Standing::Proved)
    );
    let kept = world.changed(|report| report.new_guid = report.old_guid);
    assert_eq!(kept, Err(EvidenceFault::GuidKept));
    let garbage = world.changed(|report| report.voucher = vec![0]);
    assert!(matches!(garbage, Err(EvidenceFault::Replacement(_))));
}

#[test]
fn forged_statements_are_refused() {
    let mut world = World::new();
    let thief = SigningKey::generate(&mut world.rng);
    let differs = Err(EvidenceFault::StatementDiffers);
    assert_eq!(world.saying(|_| {}), Ok(Standing::Proved));
    assert_eq!(world.saying(|said| said.guid = guid(1)), differs);
    assert_eq!(world.saying(|said| said.cps_key = thief.public()), differs);
    assert_eq!(
        world.saying(|said| said.server = "gw2".parse().unwrap()),
        differs
    );
    // The gateway puts a key of its own in the device's place.
    assert_eq!(
        world.changed(|report| report.cps_key = thief.public()),
        differs
    );
    let said = Statement {
        guid: world.owned.guid(),
        cps_key: world.cps_key.clone(),
        server: world.name.clone(),
        nonce: [3; 16],
    };
    let by_thief = said.sign(&thief);
    let verdict = world.changed(|report| report.evidence.statement = Some(by_thief));
    assert!(matches!(verdict, Err(EvidenceFault::Statement(_))));
    let garbage = world.changed(|report| report.evidence.statement = Some(vec![]));
    assert!(matches!(garbage, Err(EvidenceFault::Statement(_))));
}
