//! Renewal by the holder, at the moment at which somebody else changes what it stands on: a revocation,
//! another confirmation, one that comes late. Whoever comes first is decided by the order of commits.

use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::csr;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::name::Party;

use super::kit::*;
use crate::authority::{Issued, Request, Whose};
use crate::renewal::Refusal;

fn request() -> Vec<u8> {
    csr::request("x", &SigningKey::generate(&mut SystemRandom))
}

/// A device with its first certificate.
struct Holder<'a> {
    at: &'a Served,
    device: DeviceId,
    first: Issued,
}

impl<'a> Holder<'a> {
    async fn new(at: &'a Served) -> Self {
        let device = DeviceId::from_guid(guid());
        let first = issue(at, device).await;
        Self { at, device, first }
    }

    async fn renew(&self, by: &Issued) -> Result<Issued, Refusal> {
        let renewal = self.at.cps.renewal();
        renewal.renew(&by.full_chain(), &request()).await
    }

    async fn confirm(&self, by: &Issued) -> Result<(), Refusal> {
        let renewal = self.at.cps.renewal();
        renewal.confirm(&by.full_chain()).await.map(drop)
    }

    async fn revoke(&self) {
        let whose = Whose::Device(self.device);
        self.at.cps.authority().revoke_all(&whose).await.unwrap();
    }

    fn holds(&self, one: &Issued) -> bool {
        self.at.cps.roster().identify(&one.full_chain()).is_ok()
    }

    /// How many certificates of the device are good.
    fn good(&self) -> usize {
        let rows = self.at.cps.authority().list(None).unwrap();
        let of = |row: &&crate::CertificateRow| row.device == Some(self.device) && !row.revoked;
        rows.iter().filter(of).count()
    }
}

async fn issue(at: &Served, device: DeviceId) -> Issued {
    let party = Party::Device {
        device,
        site: site("north"),
    };
    let request = Request {
        party,
        csr: &request(),
        addresses: Vec::new(),
    };
    at.cps.authority().issue(request).await.unwrap()
}

async fn north() -> Served {
    let cloud = cloud().await;
    cloud.cps.add_site(&site("north")).await.unwrap();
    cloud
}

#[tokio::test]
async fn who_is_revoked_while_it_renews_is_left_with_nothing() {
    let cloud = north().await;
    let holder = Holder::new(&cloud).await;
    let (renewed, ()) = tokio::join!(holder.renew(&holder.first), holder.revoke());
    assert!(renewed.is_ok(), "it came first");
    assert_eq!(holder.good(), 0, "and the revocation saw it");

    let holder = Holder::new(&cloud).await;
    let ((), renewed) = tokio::join!(holder.revoke(), holder.renew(&holder.first));
    assert_eq!(renewed.unwrap_err().reason(), "revoked");
    assert_eq!(holder.good(), 0);

    // The control: who records without a look at what the word stands on is found.
    let holder = Holder::new(&cloud).await;
    tokio::join!(holder.revoke(), issue(&cloud, holder.device));
    assert_eq!(holder.good(), 1);
}

#[tokio::test]
async fn a_gateway_revoked_while_it_renews_is_no_authority_any_more() {
    let cloud = cloud().await;
    for revoked_first in [false, true] {
        let name = if revoked_first { "gw2" } else { "gw1" };
        let gateway = gateway(&cloud, "north", name).await;
        let own = gateway.cps.authority().own_identity(&[LOCAL]);
        let shows: Vec<Vec<u8>> = own
            .await
            .unwrap()
            .chain()
            .iter()
            .map(|der| der.to_vec())
            .collect();
        let (north, csr) = (site("north"), request());
        let id = server(name);
        let authority = cloud.cps.authority();
        let renew = authority.renew_intermediate(&north, (&id, &shows), &csr);
        let revoke = cloud.cps.enrolment().revoke(&north, &id);
        let renewed = match revoked_first {
            true => tokio::join!(revoke, renew).1,
            false => tokio::join!(renew, revoke).0,
        };
        assert_eq!(renewed.is_err(), revoked_first);
        let subject = crate::enrol::authority_of(&north, &id);
        let rows = authority.list(Some(&north)).unwrap();
        let its: Vec<_> = rows.iter().filter(|row| row.subject == subject).collect();
        assert!(!its.is_empty() && its.iter().all(|row| row.revoked));
    }
}

#[tokio::test]
async fn two_confirmations_at_once_never_void_each_other() {
    let cloud = north().await;
    for later_first in [false, true] {
        let holder = Holder::new(&cloud).await;
        let second = holder.renew(&holder.first).await.unwrap();
        let third = holder.renew(&second).await.unwrap();
        let (one, other) = match later_first {
            true => tokio::join!(holder.confirm(&third), holder.confirm(&second)),
            false => tokio::join!(holder.confirm(&second), holder.confirm(&third)),
        };
        assert!(one.is_ok() && other.is_ok() != later_first);
        assert!(holder.holds(&third));
        assert_eq!(holder.good(), 1);
    }
}

#[tokio::test]
async fn a_confirmation_voids_what_was_before_and_not_what_came_of_it() {
    let cloud = north().await;
    let holder = Holder::new(&cloud).await;
    // Of three, two answers were lost; each on the word of the first.
    let lost = holder.renew(&holder.first).await.unwrap();
    let second = holder.renew(&holder.first).await.unwrap();
    let thiefs = holder.renew(&holder.first).await.unwrap();
    holder.confirm(&second).await.unwrap();
    for void in [&holder.first, &lost, &thiefs] {
        assert!(!holder.holds(void));
    }
    cloud.clock.advance(Duration::from_secs(86_400));
    let third = holder.renew(&second).await.unwrap();
    let fourth = holder.renew(&third).await.unwrap();
    // The same once more, late: what was given to the same holder since is not its to void.
    holder.confirm(&second).await.unwrap();
    assert!(holder.holds(&third) && holder.holds(&fourth));
    holder.confirm(&fourth).await.unwrap();
    assert_eq!(holder.good(), 1);
    let late = holder.confirm(&second).await.unwrap_err();
    assert_eq!(late.reason(), "revoked");
}
