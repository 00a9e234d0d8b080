//! What a gateway whose machine was replaced, or that was revoked, is told, and believes: a statement signed by its
//! cloud's record key, which it knows since its enrolment.
//!
//! Made by the HTTPS API in place of an answer, verified by [`super::Client`]; what follows from it
//! is the gateway's business. A mere lock, before anything took the place, makes no statement: it
//! can be taken back. With the statement goes how the cloud's key was rotated, so that a machine
//! which slept through that believes it too, now and at its next start.

use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::succession::{KeyRole, SignedSuccession};
use holdfast_protocol::wire::cbor::{self, Reader};
use holdfast_protocol::wire::cose::Sign1;

use crate::enrol::Cloud;

/// First element of the payload, so that no other signed text can pass for a statement.
const KIND: &str = "holdfast/replaced/1";
/// The same of a gateway that was revoked.
const REVOKED: &str = "holdfast/revoked/1";
/// The same with the steps that lead to the key by which it is signed.
const WITH_STEPS: &str = "holdfast/replaced/steps/1";
/// Most steps that go with a statement; who slept through more hears it in words alone.
const MOST_STEPS: usize = 16;
/// Longest step.
const MAX_STEP: usize = 2048;
/// Longest id as text.
const MAX_ID: usize = 80;
/// Longest statement.
const MAX_BYTES: usize = 1024;

/// Another machine has this gateway's name and place, or it was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The site.
    pub site: SiteId,
    /// The gateway's name.
    pub gateway: ServerId,
    /// The number of the enrolment that holds; of a revoked gateway the one that is void.
    pub epoch: u32,
    /// Nothing took its place: it was revoked.
    pub revoked: bool,
    /// When it was made, unix seconds of the cloud.
    pub at: u64,
    /// The signed statement, to be kept.
    pub statement: Vec<u8>,
}

impl Replaced {
    pub(crate) fn sign(
        site: &SiteId,
        gateway: &ServerId,
        when: (u32, u64),
        key: &SigningKey,
    ) -> Vec<u8> {
        Self::sign_as(KIND, (site, gateway), when, key)
    }

    pub(crate) fn sign_revoked(
        site: &SiteId,
        gateway: &ServerId,
        when: (u32, u64),
        key: &SigningKey,
    ) -> Vec<u8> {
        Self::sign_as(REVOKED, (site, gateway), when, key)
    }

    fn sign_as(
        kind: &str,
        (site, gateway): (&SiteId, &ServerId),
        (epoch, at): (u32, u64),
        key: &SigningKey,
    ) -> Vec<u8> {
        let payload = cbor::encode(|w| {
            w.array(5).text(kind).text(site.as_str());
            w.text(gateway.as_str()).uint(epoch.into()).uint(at);
        });
        Sign1::sign(&payload, key).as_bytes().to_vec()
    }

    /// The statement with the steps by which its signer's key followed others, in order.
    pub(crate) fn with_steps(statement: Vec<u8>, steps: &[SignedSuccession]) -> Vec<u8> {
        let steps = &steps[steps.len().saturating_sub(MOST_STEPS)..];
        if steps.is_empty() {
            return statement;
        }
        cbor::encode(|w| {
            w.array(2 + steps.len()).text(WITH_STEPS).bytes(&statement);
            for step in steps {
                w.bytes(step.as_bytes());
            }
        })
    }

    /// Verifies a statement by the cloud of the enrolment `own`: it must be about this gateway and
    /// a later enrolment of it, or say that this one or a later one was revoked. `None`: it is not,
    /// whatever it is.
    #[must_use]
    pub fn verify(statement: &[u8], own: &Cloud) -> Option<Self> {
        let keys: Vec<VerifyingKey> = own.eras().into_iter().map(|era| era.key).collect();
        Self::verify_by(statement, own, &keys)
    }

    /// The same where more keys of the cloud are known than the enrolment named.
    pub(crate) fn verify_by(statement: &[u8], own: &Cloud, keys: &[VerifyingKey]) -> Option<Self> {
        let (signed, steps) = parts(statement).unwrap_or((statement, Vec::new()));
        let mut keys = keys.to_vec();
        for step in steps {
            let said = step.said();
            let is_clouds = said.server == own.server() && said.role == KeyRole::Signing;
            if is_clouds && keys.contains(&said.old) && step.verify().is_ok() {
                keys.push(said.new.clone());
            }
        }
        let read = keys.iter().find_map(|key| Self::read(signed, key))?;
        let read = Self {
            statement: statement.to_vec(),
            ..read
        };
        let is_ours = read.site == own.site() && read.gateway == own.gateway();
        let later = match read.revoked {
            true => read.epoch >= own.epoch,
            false => read.epoch > own.epoch,
        };
        (is_ours && later).then_some(read)
    }

    fn read(statement: &[u8], key: &VerifyingKey) -> Option<Self> {
        if statement.len() > MAX_BYTES {
            return None;
        }
        let signed = Sign1::parse(statement).ok()?;
        signed.verify(key).ok()?;
        let mut r = Reader::new(signed.payload()).ok()?;
        r.array(5).ok()?;
        let revoked = match r.text(MAX_ID).ok()? {
            KIND => false,
            REVOKED => true,
            _ => return None,
        };
        let site = r.text(MAX_ID).ok()?.parse().ok()?;
        let gateway = r.text(MAX_ID).ok()?.parse().ok()?;
        let (epoch, at) = (r.small().ok()?, r.uint().ok()?);
        r.end().ok()?;
        Some(Self {
            site,
            gateway,
            epoch,
            revoked,
            at,
            statement: statement.to_vec(),
        })
    }
}

/// Statement and steps; nothing of what came without any.
fn parts(bytes: &[u8]) -> Option<(&[u8], Vec<SignedSuccession>)> {
    let mut r = Reader::new(bytes).ok()?;
    let count = r.array_len(2 + MOST_STEPS).ok()?;
    if r.text(MAX_ID).ok()? != WITH_STEPS {
        return None;
    }
    let statement = r.bytes(MAX_BYTES).ok()?;
    let mut steps = Vec::new();
    for _ in 2..count {
        steps.push(SignedSuccession::parse(r.bytes(MAX_STEP).ok()?).ok()?);
    }
    r.end().ok()?;
    Some((statement, steps))
}

#[cfg(test)]
mod tests {
    use holdfast_link::random::SystemRandom;

    use super::*;

    #[test]
    fn only_the_clouds_word_about_this_gateway_is_read() {
        let key = SigningKey::generate(&mut SystemRandom);
        let other = SigningKey::generate(&mut SystemRandom);
        let (site, gateway) = ("north".parse().unwrap(), "gw1".parse().unwrap());
        let good = Replaced::sign(&site, &gateway, (2, 7), &key);
        let read = Replaced::read(&good, &key.public()).unwrap();
        assert_eq!((read.epoch, read.at, &read.statement), (2, 7, &good));
        assert!(!read.revoked);
        assert_eq!(Replaced::read(&good, &other.public()), None);
        let revoked = Replaced::sign_revoked(&site, &gateway, (1, 7), &key);
        let revoked = Replaced::read(&revoked, &key.public()).unwrap();
        assert!(revoked.revoked && revoked.epoch == 1);
        for at in 0..good.len() {
            let mut wrong = good.clone();
            wrong[at] ^= 1;
            assert_eq!(Replaced::read(&wrong, &key.public()), None, "byte {at}");
            assert_eq!(
                Replaced::read(&good[..at], &key.public()),
                None,
                "cut at {at}"
            );
        }
    }
}
