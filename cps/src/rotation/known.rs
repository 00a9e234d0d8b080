//! Which keys each server has had, and which of them counts where. Read from what a server was known
//! by at its enrolment, and the successions in its log; asked by sync, by TO2 and by whoever extends
//! a voucher or tells a device whom to trust. Changes nothing.
//!
//! A statement counts where its old key is the one that held: it was judged so before it was folded
//! (`sync::judge`), and is followed by the same rule here, in whatever order the entries came.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::succession::{KeyRole, Succession, follow};
use holdfast_protocol::voucher::{Entry, Voucher};
use holdfast_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::Core;
use crate::tables::{GatewayRow, Rotation, Source, Tables};

/// A signing key, and the first number in a log that it signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era {
    /// The number.
    pub from: u64,
    /// The key.
    #[serde(with = "crate::tables::key")]
    pub key: VerifyingKey,
}

/// A key among others, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known(#[serde(with = "crate::tables::key")] pub VerifyingKey);

/// The key that must have signed the entry `seq`, by eras known beforehand and successions in the
/// log, each with its number and in order.
pub(crate) fn signer_at(
    eras: &[Era],
    steps: &[(u64, Succession)],
    seq: u64,
) -> Option<VerifyingKey> {
    let known = eras.iter().filter(|era| era.from <= seq);
    let mut key = &known.max_by_key(|era| era.from)?.key;
    for (at, step) in steps {
        if *at < seq && step.old == *key {
            key = &step.new;
        }
    }
    Some(key.clone())
}

/// The eras of a server that are known beforehand: of a gateway's cloud from the enrolment there, of
/// gateways from the cloud's word in the log.
pub(crate) fn eras<S: Source>(
    core: &Core,
    view: Tables<S>,
    site: &SiteId,
    (origin, epoch): (&ServerId, u32),
) -> Result<Vec<Era>, StoreError> {
    if let Some(cloud) = core
        .cloud
        .as_ref()
        .filter(|cloud| cloud.server() == *origin)
    {
        return Ok(cloud.eras());
    }
    let row = view.enrolment(origin, epoch)?;
    let row = row.filter(|row| row.site == *site);
    Ok(row
        .map(|row| Era {
            from: 1,
            key: row.record_key,
        })
        .into_iter()
        .collect())
}

/// The successions of one role in a log, with their numbers.
pub(crate) fn steps(rotations: &[Rotation], role: KeyRole) -> Vec<(u64, Succession)> {
    let of_role = rotations.iter().filter(|one| one.is_of(role));
    of_role.map(|one| (one.seq, one.said().clone())).collect()
}

fn said(rotations: &[Rotation], role: KeyRole) -> Vec<Succession> {
    let steps = steps(rotations, role);
    steps.into_iter().map(|(_, step)| step).collect()
}

/// All owner keys that a server has had in an enrolment: in TO2 it may show any of them.
pub(crate) fn owner_keys<S: Source>(
    core: &Core,
    view: Tables<S>,
    site: &SiteId,
    (origin, epoch): (&ServerId, u32),
) -> Result<Vec<VerifyingKey>, StoreError> {
    let mut keys = match core
        .cloud
        .as_ref()
        .filter(|cloud| cloud.server() == *origin)
    {
        Some(cloud) => cloud.all_owner_keys(),
        None => {
            let row = view.enrolment(origin, epoch)?;
            row.into_iter().map(|row| row.owner_key).collect()
        }
    };
    let rotations = view.rotations(site, Some((origin, epoch)))?;
    for step in said(&rotations, KeyRole::Owner) {
        keys.extend([step.old, step.new]);
    }
    Ok(keys)
}

/// A key of a gateway that counts now.
pub(crate) fn of_gateway<S: Source>(
    view: Tables<S>,
    row: &GatewayRow,
    role: KeyRole,
) -> Result<VerifyingKey, StoreError> {
    let first = match role {
        KeyRole::Owner => &row.owner_key,
        KeyRole::Signing => &row.record_key,
    };
    let rotations = view.rotations(&row.site, Some((&row.server, row.epoch)))?;
    Ok(follow(first, &said(&rotations, role)).clone())
}

/// A key of the cloud that counts now, as far as this gateway has heard; none at the cloud.
pub(crate) fn of_cloud<S: Source>(
    core: &Core,
    view: Tables<S>,
    role: KeyRole,
) -> Result<Option<VerifyingKey>, StoreError> {
    let (Some(cloud), Some(site)) = (&core.cloud, core.config.role.site()) else {
        return Ok(None);
    };
    let server = cloud.server();
    let mut rotations = view.rotations(site, None)?;
    rotations.retain(|one| one.said().server == server);
    let first = match role {
        KeyRole::Owner => &cloud.owner_key,
        KeyRole::Signing => &cloud.record_key,
    };
    Ok(Some(follow(first, &said(&rotations, role)).clone()))
}

/// All keys by which the cloud signs or signed, as far as this gateway knows.
pub(crate) fn all_of_cloud(core: &Core) -> Result<Vec<VerifyingKey>, StoreError> {
    let Some(cloud) = &core.cloud else {
        return Ok(Vec::new());
    };
    let present = core
        .registry
        .read(|view| of_cloud(core, view, KeyRole::Signing))?;
    let eras = cloud.eras().into_iter().map(|era| era.key);
    Ok(eras.chain(present).collect())
}

/// Whether two chains part where one of `signers` extended a voucher twice: to itself when its key
/// was rotated, to each gateway of a site. Such chains do not contradict each other.
pub(crate) fn are_siblings(one: &Voucher, other: &Voucher, signers: &[VerifyingKey]) -> bool {
    if one.header().as_bytes() != other.header().as_bytes() {
        return false;
    }
    let pairs = one.entries().iter().zip(other.entries());
    let common = pairs.take_while(|(one, other)| one.as_bytes() == other.as_bytes());
    let parted = match common.count().checked_sub(1) {
        Some(last) => one.entries().get(last).map(Entry::next),
        None => Some(one.manufacturer()),
    };
    parted.is_some_and(|owner| signers.contains(owner.key()))
}

/// Whether `presented` names an earlier key of ours, and `held` is what we made of it since.
pub(crate) fn is_ahead_by_us(core: &Core, held: &Voucher, presented: &Voucher) -> bool {
    let more = held.entries().get(presented.entries().len()..);
    let ours = core.keys.all(KeyRole::Owner);
    let is_earlier = !presented.is_owned_by(&core.keys.owner().public());
    is_earlier
        && held.is_extension_of(presented)
        && more.is_some_and(|more| more.iter().all(|entry| ours.contains(entry.next().key())))
}

#[cfg(test)]
mod tests {
    use holdfast_link::random::SystemRandom;
    use holdfast_protocol::crypto::SigningKey;

    use super::*;

    #[test]
    fn entries_are_judged_by_the_key_of_their_time_from_either_end() {
        let keys: Vec<VerifyingKey> = (0..4)
            .map(|_| SigningKey::generate(&mut SystemRandom).public())
            .collect();
        let step = |at, old: usize| {
            let (old, new) = (keys[old].clone(), keys[old + 1].clone());
            let (role, server) = (KeyRole::Signing, "gw1".parse().unwrap());
            let said = Succession {
                role,
                server,
                old,
                new,
            };
            (at, said)
        };
        let steps = [step(10, 0), step(20, 1), step(30, 2)];
        let era = |from, key: usize| Era {
            from,
            key: keys[key].clone(),
        };
        let forward = [era(1, 0)];
        let backward = [era(1, 0), era(11, 1), era(21, 2), era(31, 3)];
        let wanted = [(1, 0), (10, 0), (11, 1), (20, 1), (21, 2), (30, 2), (31, 3)];
        for (seq, key) in wanted {
            for (eras, steps) in [
                (&forward[..], &steps[..]),
                (&backward, &steps),
                (&backward, &[]),
            ] {
                assert_eq!(
                    signer_at(eras, steps, seq),
                    Some(keys[key].clone()),
                    "{seq}"
                );
            }
        }
        // A step from a key that does not hold moves nothing.
        assert_eq!(signer_at(&forward, &steps[1..], 25), Some(keys[0].clone()));
        assert_eq!(signer_at(&[], &steps, 5), None);
    }
}
