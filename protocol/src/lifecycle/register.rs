//! The register's side (220): what is answered, from the device's record alone.
//!
//! Asked by `cps` within the transaction that records the consequence. It makes no key, no
//! certificate and no entry.

use super::{Outcome, Refusal, Request, message::RequestKind};
use crate::{
    id::{DeviceId, ServiceId},
    record::{Assignment, Change, DeviceRecord, Serial, Services},
};

/// What the server is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Draw a credential, record [`Change::ServiceActivated`] with its digest, then hand it out.
    Activate,
    /// Certify `device.service` over the key of `csr`; record the issue and
    /// [`Change::ServiceStarted`] in one commit, then hand it out.
    Grant {
        /// What it is for: the order that holds, or what runs.
        assignment: Box<Assignment>,
        /// Whether that runs already: key and certificate are renewed.
        renews: bool,
        /// PKCS#10 DER.
        csr: Vec<u8>,
    },
    /// Record these changes, if any, in one commit, then answer [`super::Answer::Noted`].
    Record(Vec<Change>),
    /// Answer with the notice that holds.
    Notice,
}

/// Decides about a request that was signed by the key of `asker`'s certificate.
///
/// # Errors
/// A [`Refusal`] per mismatch; nothing is recorded then.
pub fn decide(
    record: Option<&DeviceRecord>,
    asker: DeviceId,
    request: &Request,
) -> Result<Decision, Refusal> {
    if request.device != asker {
        return Err(Refusal::WrongDevice);
    }
    let record = record.filter(|record| record.device() == asker);
    let record = record.ok_or(Refusal::UnknownDevice)?;
    let owner = record.owner().ok_or(Refusal::UnknownDevice)?;
    let services = record.services();
    match &request.kind {
        RequestKind::Activate { .. } => {
            let used = services.activation().is_some_and(|given| {
                let onboarded_since = owner.claim.order > given.order;
                let used = services.last_turn().is_some_and(|turn| *turn > given.order);
                used && !onboarded_since
            });
            match used {
                // The answer may have been lost on its way; what was never used may be replaced.
                false => Ok(Decision::Activate),
                true => Err(Refusal::AlreadyActivated),
            }
        }
        RequestKind::Update {
            service,
            credential,
            csr,
        } => {
            services.activation().ok_or(Refusal::NotActivated)?;
            if !services.knows(&credential.digest()) {
                return Err(Refusal::WrongCredential);
            }
            let assignment = granted(services, service)?;
            let runs = services.running().map(|(runs, _)| runs);
            Ok(Decision::Grant {
                renews: runs == Some(assignment),
                assignment: Box::new(assignment.clone()),
                csr: csr.clone(),
            })
        }
        RequestKind::Report { serial, outcome } => report(record, serial, *outcome),
        RequestKind::Poll => Ok(Decision::Notice),
    }
}

/// What an update for `service` is for. Not the order alone: a device goes on with what ran before
/// when an order does not work for it, and must be able to renew that as long as it does.
fn granted<'a>(services: &'a Services, service: &ServiceId) -> Result<&'a Assignment, Refusal> {
    let order = services.desired().ok_or(Refusal::NoService)?;
    let runs = services.running().map(|(runs, _)| runs);
    let runs = runs.filter(|runs| runs.service == *service);
    let is_ordered = order.assignment.service == *service;
    match runs {
        // The order for the same service elsewhere was tried, and the device went back from it.
        Some(runs) if !is_ordered || services.was_granted(order) => Ok(runs),
        _ if is_ordered => Ok(&order.assignment),
        _ => Err(Refusal::WrongService),
    }
}

/// What a report changes. The same report again changes nothing and is answered as the first.
fn report(record: &DeviceRecord, serial: &Serial, outcome: Outcome) -> Result<Decision, Refusal> {
    let services = record.services();
    let running = services.running().map(|(_, serial)| serial);
    let revoke = |serial: &Serial| Change::CertificateRevoked {
        serial: serial.clone(),
    };
    match outcome {
        Outcome::Runs if running == Some(serial) => {
            // The old keys are gone from the device: nobody may use them any more.
            let old = service_serials(record).into_iter();
            let old = old.filter(|one| one != serial && !record.revoked().contains(one));
            Ok(Decision::Record(old.map(|one| revoke(&one)).collect()))
        }
        Outcome::RolledBack if running == Some(serial) => {
            // What is revoked cannot run again, whatever the device says.
            let back = match services.before(serial, record.revoked()) {
                Some((assignment, old)) => Change::ServiceStarted {
                    assignment: Box::new(assignment.clone()),
                    serial: old.clone(),
                },
                None => Change::ServiceEnded,
            };
            Ok(Decision::Record(vec![back, revoke(serial)]))
        }
        Outcome::RolledBack if record.revoked().contains(serial) => {
            Ok(Decision::Record(Vec::new()))
        }
        Outcome::Ended if record.revoked().contains(serial) => Ok(Decision::Record(Vec::new())),
        // Whatever runs by this record: the device has dropped all its keys, a report of a change may have been lost.
        Outcome::Ended if service_serials(record).contains(serial) => {
            let all = service_serials(record).into_iter();
            let all = all.filter(|one| !record.revoked().contains(one));
            let ended = std::iter::once(Change::ServiceEnded);
            Ok(Decision::Record(
                ended.chain(all.map(|one| revoke(&one))).collect(),
            ))
        }
        Outcome::Runs | Outcome::RolledBack | Outcome::Ended => Err(Refusal::WrongSerial),
    }
}

/// The certificates by which the device took services.
fn service_serials(record: &DeviceRecord) -> Vec<Serial> {
    let periods = record.services().history().into_iter();
    periods.flat_map(|period| period.serials).collect()
}
