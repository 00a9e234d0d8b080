//! What a gateway whose machine was replaced is told, and believes: a statement signed by its
//! cloud's record key, which it knows since its enrolment.
//!
//! Made by the HTTPS API in place of an answer, verified by [`super::Client`]; what follows from it
//! is the gateway's business. A mere lock, before anything took the place, makes no statement: it
//! can be taken back.

use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::wire::cbor::{self, Reader};
use holdfast_protocol::wire::cose::Sign1;

use crate::enrol::Cloud;

/// First element of the payload, so that no other signed text can pass for a statement.
const KIND: &str = "holdfast/replaced/1";
/// Longest id as text.
const MAX_ID: usize = 80;
/// Longest statement.
const MAX_BYTES: usize = 1024;

/// Another machine has this gateway's name and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The site.
    pub site: SiteId,
    /// The gateway's name.
    pub gateway: ServerId,
    /// The number of the enrolment that holds.
    pub epoch: u32,
    /// When it was made, unix seconds of the cloud.
    pub at: u64,
    /// The signed statement, to be kept.
    pub statement: Vec<u8>,
}

impl Replaced {
    pub(crate) fn sign(
        site: &SiteId,
        gateway: &ServerId,
        (epoch, at): (u32, u64),
        key: &SigningKey,
    ) -> Vec<u8> {
        let payload = cbor::encode(|w| {
            w.array(5).text(KIND).text(site.as_str());
            w.text(gateway.as_str()).uint(epoch.into()).uint(at);
        });
        Sign1::sign(&payload, key).as_bytes().to_vec()
    }

    /// Verifies a statement by the cloud of the enrolment `own`: it must be about this gateway and
    /// a later enrolment of it. `None`: it is not, whatever it is.
    #[must_use]
    pub fn verify(statement: &[u8], own: &Cloud) -> Option<Self> {
        let read = Self::read(statement, &own.record_key)?;
        let is_ours = read.site == own.site() && read.gateway == own.gateway();
        (is_ours && read.epoch > own.epoch).then_some(read)
    }

    fn read(statement: &[u8], key: &VerifyingKey) -> Option<Self> {
        if statement.len() > MAX_BYTES {
            return None;
        }
        let signed = Sign1::parse(statement).ok()?;
        signed.verify(key).ok()?;
        let mut r = Reader::new(signed.payload()).ok()?;
        r.array(5).ok()?;
        if r.text(MAX_ID).ok()? != KIND {
            return None;
        }
        let site = r.text(MAX_ID).ok()?.parse().ok()?;
        let gateway = r.text(MAX_ID).ok()?.parse().ok()?;
        let (epoch, at) = (r.small().ok()?, r.uint().ok()?);
        r.end().ok()?;
        Some(Self {
            site,
            gateway,
            epoch,
            at,
            statement: statement.to_vec(),
        })
    }
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
        assert_eq!(Replaced::read(&good, &other.public()), None);
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
