//! The folds: a device's record and a site's, as sets of facts and what holds in them.
//!
//! A record is the union of the facts of its entries; every question is answered from the whole
//! set (see the rule in `record`). So no order of delivery can matter.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    change::{Change, Serial},
    entry::{Entry, EntryId, Order},
    evidence::Standing,
    listing::Listings,
    services::Services,
};
use crate::{
    crypto::VerifyingKey,
    id::{ClientName, DeviceId, Guid, ServerId},
    time::Time,
    topic::Filter,
};

/// Rounds of depth finding: longer chains count as this long. It bounds the work that a hostile
/// set of claims can cause; a device re-onboarded more often still keeps its whole history.
const MAX_DEPTH: usize = 64;

/// One server's word that it onboarded a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Which entry says so; `order.id.origin` is the server.
    pub order: Order,
    /// When, as well as the server knew.
    pub at: Time,
    /// The GUID under which TO2 ran.
    pub old_guid: Guid,
    /// The GUID since.
    pub new_guid: Guid,
    /// The key that authenticates the device.
    pub cps_key: VerifyingKey,
    /// The replacement voucher (CBOR).
    pub voucher: Vec<u8>,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Certificate {
    /// Which entry says so; `order.id.origin` is the issuer's server.
    pub order: Order,
    /// Its serial number.
    pub serial: Serial,
    /// The DNS name that it bears.
    pub subject: String,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// The key that it certifies.
    pub key: VerifyingKey,
}

/// What holds about a device's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership<'a> {
    /// The claim that holds.
    pub claim: &'a Claim,
    /// How far it is proved.
    pub standing: Standing,
    /// Whether another claim stands beside it that nothing replaced.
    pub contested: bool,
}

/// Everything known of one device, from both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRecord {
    device: DeviceId,
    vouchers: BTreeSet<Guid>,
    claims: BTreeSet<Claim>,
    standings: BTreeMap<EntryId, Standing>,
    certificates: BTreeSet<Certificate>,
    revoked: BTreeSet<Serial>,
    told: BTreeSet<ServerId>,
    services: Services,
}

impl DeviceRecord {
    /// The record of a device of which nothing is known.
    #[must_use]
    pub fn new(device: DeviceId) -> Self {
        Self {
            device,
            vouchers: BTreeSet::new(),
            claims: BTreeSet::new(),
            standings: BTreeMap::new(),
            certificates: BTreeSet::new(),
            revoked: BTreeSet::new(),
            told: BTreeSet::new(),
            services: Services::default(),
        }
    }

    /// Adds what an entry says; entries about other devices are ignored. `standing` is how far an
    /// onboarding is proved, and counts for nothing else.
    pub fn apply(&mut self, entry: &Entry, standing: Standing) {
        if entry.device != Some(self.device) {
            return;
        }
        match &entry.change {
            Change::VoucherAccepted { guid, .. } => _ = self.vouchers.insert(*guid),
            Change::Onboarded(onboarded) => {
                self.claims.insert(Claim {
                    order: entry.order(),
                    at: entry.at,
                    old_guid: onboarded.old_guid,
                    new_guid: onboarded.new_guid,
                    cps_key: onboarded.cps_key.clone(),
                    voucher: onboarded.voucher.clone(),
                });
                keep_highest(&mut self.standings, &entry.id, standing);
            }
            Change::CertificateIssued { .. } => self.certificates.extend(issued(entry)),
            Change::CertificateRevoked { serial } => _ = self.revoked.insert(serial.clone()),
            Change::AlternateTold { server } => _ = self.told.insert(server.clone()),
            Change::ServiceActivated { .. }
            | Change::ServiceOrdered(_)
            | Change::ServiceStarted { .. }
            | Change::ServiceEnded
            | Change::ServiceEndOrdered => self.services.apply(entry),
            // Not about a device's own state, whatever device they name.
            Change::GatewayEnrolled { .. }
            | Change::ClientAdmitted { .. }
            | Change::KeyListing(_)
            | Change::DeviceVouched { .. }
            | Change::TimeLearnt { .. }
            | Change::KeySucceeded(_)
            | Change::RenewalOrdered { .. }
            | Change::Unknown { .. } => {}
        }
    }

    /// Joins what another side knows of the same device. Commutative, associative, idempotent.
    pub fn merge(&mut self, other: &Self) {
        if other.device != self.device {
            return;
        }
        self.vouchers.extend(&other.vouchers);
        self.claims.extend(other.claims.iter().cloned());
        for (entry, standing) in &other.standings {
            keep_highest(&mut self.standings, entry, *standing);
        }
        self.certificates.extend(other.certificates.iter().cloned());
        self.revoked.extend(other.revoked.iter().cloned());
        self.told.extend(other.told.iter().cloned());
        self.services.merge(&other.services);
    }

    /// Which device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Who owns it now and by which claim; `None` before its first TO2. Rule 1 of the module.
    #[must_use]
    pub fn owner(&self) -> Option<Ownership<'_>> {
        let depths = self.depths();
        let made_from: BTreeSet<Guid> = self.claims.iter().map(|claim| claim.old_guid).collect();
        let repeated = self.tried_again();
        let open = |claim: &&(usize, &Claim)| {
            !made_from.contains(&claim.1.new_guid) && !repeated.contains(&claim.1.order)
        };
        let open_count = depths.iter().filter(open).count();
        // Claims in a ring replace one another; only a forger makes one, and it is contested.
        let ring = open_count == 0;
        let candidates = depths.iter().filter(|claim| ring || open(claim));
        let (_, claim) =
            candidates.max_by_key(|(depth, claim)| (self.standing(claim), *depth, *claim))?;
        let contested = ring || open_count > 1;
        Some(Ownership {
            claim,
            standing: self.standing(claim),
            contested,
        })
    }

    /// Claims that their own server recorded again from the same GUID, proved no less.
    fn tried_again(&self) -> BTreeSet<&Order> {
        let mut tries: BTreeMap<(Guid, &ServerId), Vec<&Claim>> = BTreeMap::new();
        for claim in &self.claims {
            let of = (claim.old_guid, &claim.order.id.origin);
            tries.entry(of).or_default().push(claim);
        }
        let mut repeated = BTreeSet::new();
        for tries in tries.values_mut() {
            tries.sort_by(|one, other| other.order.id.cmp(&one.order.id));
            let (mut last, mut best): (Option<&EntryId>, _) = (None, None);
            for claim in tries {
                let standing = Some(self.standing(claim));
                if last.is_some_and(|id| *id != claim.order.id) && best >= standing {
                    repeated.insert(&claim.order);
                }
                (last, best) = (Some(&claim.order.id), best.max(standing));
            }
        }
        repeated
    }

    /// Length of the chain that ends with each claim.
    fn depths(&self) -> Vec<(usize, &Claim)> {
        let mut depths: Vec<(usize, &Claim)> = self.claims.iter().map(|claim| (1, claim)).collect();
        let mut reached: BTreeMap<Guid, usize> = BTreeMap::new();
        for _ in 0..MAX_DEPTH {
            let before = reached.clone();
            for (depth, claim) in &mut depths {
                *depth = (before.get(&claim.old_guid).copied().unwrap_or(0) + 1).min(MAX_DEPTH);
                let longest = reached.entry(claim.new_guid).or_insert(0);
                *longest = (*longest).max(*depth);
            }
            if before == reached {
                break;
            }
        }
        depths
    }

    /// How far a claim of this record is proved.
    #[must_use]
    pub fn standing(&self, claim: &Claim) -> Standing {
        let known = self.standings.get(&claim.order.id).copied();
        known.unwrap_or(Standing::Attested)
    }

    /// The GUID that the device bears now, as far as we know.
    #[must_use]
    pub fn guid(&self) -> Guid {
        self.owner()
            .map_or(self.device.guid(), |owner| owner.claim.new_guid)
    }

    /// Every GUID that it has had or may have, its first included.
    #[must_use]
    pub fn guids(&self) -> BTreeSet<Guid> {
        let claimed = self
            .claims
            .iter()
            .flat_map(|claim| [claim.old_guid, claim.new_guid]);
        claimed
            .chain(self.vouchers.iter().copied())
            .chain([self.device.guid()])
            .collect()
    }

    /// All claims, in order.
    pub fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter()
    }

    /// All certificates issued for it, in order, with whether each is revoked.
    pub fn certificates(&self) -> impl Iterator<Item = (&Certificate, bool)> {
        self.certificates.iter().map(|certificate| {
            let revoked = self.revoked.contains(&certificate.serial);
            (certificate, revoked)
        })
    }

    /// Serial numbers revoked for it, issued here or not.
    #[must_use]
    pub fn revoked(&self) -> &BTreeSet<Serial> {
        &self.revoked
    }

    /// The services that it works and worked for.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The servers that it was told of.
    #[must_use]
    pub fn told(&self) -> &BTreeSet<ServerId> {
        &self.told
    }
}

/// The rights of an admitted client.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientGrant {
    /// Which entry says so.
    pub order: Order,
    /// Filters within which it may publish.
    pub publish: Vec<Filter>,
    /// Filters within which it may subscribe.
    pub subscribe: Vec<Filter>,
}

/// A gateway's enrolment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Enrolment {
    /// A higher one locks the lower out.
    pub epoch: u32,
    /// Which entry says so.
    pub order: Order,
    /// Verifies its entries and notices of that epoch.
    pub record_key: VerifyingKey,
    /// Vouchers for its CPS server are extended to this key.
    pub owner_key: VerifyingKey,
}

/// Everything known of one site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteRecord {
    devices: BTreeMap<DeviceId, DeviceRecord>,
    clients: BTreeMap<ClientName, ClientGrant>,
    gateways: BTreeMap<ServerId, Enrolment>,
    listings: Listings,
    certificates: BTreeSet<Certificate>,
    revoked: BTreeSet<Serial>,
}

impl SiteRecord {
    /// Adds what an entry says; see [`DeviceRecord::apply`]. The caller sees to it that all entries
    /// are of one site.
    pub fn apply(&mut self, entry: &Entry, standing: Standing) {
        if let Some(device) = entry.device {
            let record = self.devices.entry(device);
            record
                .or_insert_with(|| DeviceRecord::new(device))
                .apply(entry, standing);
        }
        match &entry.change {
            Change::CertificateIssued { .. } => self.certificates.extend(issued(entry)),
            Change::CertificateRevoked { serial } => _ = self.revoked.insert(serial.clone()),
            Change::GatewayEnrolled {
                gateway,
                epoch,
                record_key,
                owner_key,
            } => {
                let enrolment = Enrolment {
                    epoch: *epoch,
                    order: entry.order(),
                    record_key: record_key.clone(),
                    owner_key: owner_key.clone(),
                };
                keep_highest(&mut self.gateways, gateway, enrolment);
            }
            Change::ClientAdmitted {
                name,
                publish,
                subscribe,
            } => {
                let grant = ClientGrant {
                    order: entry.order(),
                    publish: publish.clone(),
                    subscribe: subscribe.clone(),
                };
                keep_highest(&mut self.clients, name, grant);
            }
            Change::KeyListing(_) => self.listings.apply(entry),
            Change::VoucherAccepted { .. }
            | Change::DeviceVouched { .. }
            | Change::Onboarded(_)
            | Change::AlternateTold { .. }
            | Change::ServiceActivated { .. }
            | Change::ServiceOrdered(_)
            | Change::ServiceStarted { .. }
            | Change::ServiceEnded
            | Change::ServiceEndOrdered
            | Change::TimeLearnt { .. }
            | Change::KeySucceeded(_)
            | Change::RenewalOrdered { .. }
            | Change::Unknown { .. } => {}
        }
    }

    /// Joins what another side knows of the same site. Commutative, associative, idempotent.
    pub fn merge(&mut self, other: &Self) {
        for (device, theirs) in &other.devices {
            self.devices
                .entry(*device)
                .or_insert_with(|| DeviceRecord::new(*device))
                .merge(theirs);
        }
        for (name, grant) in &other.clients {
            keep_highest(&mut self.clients, name, grant.clone());
        }
        for (gateway, enrolment) in &other.gateways {
            keep_highest(&mut self.gateways, gateway, enrolment.clone());
        }
        self.listings.merge(&other.listings);
        self.certificates.extend(other.certificates.iter().cloned());
        self.revoked.extend(other.revoked.iter().cloned());
    }

    /// One device's record.
    #[must_use]
    pub fn device(&self, device: DeviceId) -> Option<&DeviceRecord> {
        self.devices.get(&device)
    }

    /// All devices.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceRecord> {
        self.devices.values()
    }

    /// What a client of that name may do.
    #[must_use]
    pub fn client(&self, name: &ClientName) -> Option<&ClientGrant> {
        self.clients.get(name)
    }

    /// All clients.
    pub fn clients(&self) -> impl Iterator<Item = (&ClientName, &ClientGrant)> {
        self.clients.iter()
    }

    /// The enrolment of a gateway that holds.
    #[must_use]
    pub fn gateway(&self, gateway: &ServerId) -> Option<&Enrolment> {
        self.gateways.get(gateway)
    }

    /// All gateways.
    pub fn gateways(&self) -> impl Iterator<Item = (&ServerId, &Enrolment)> {
        self.gateways.iter()
    }

    /// Installers and manufacturers.
    #[must_use]
    pub fn listings(&self) -> &Listings {
        &self.listings
    }

    /// All certificates of the site, those of devices included, in order.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.iter()
    }

    /// Whether a certificate of that serial number is void.
    #[must_use]
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.contains(serial)
    }
}

/// Keeps the higher value; on equal keys and orders the content decides, so that even two entries
/// of the same number (which only a thief of the key can make) leave one result everywhere.
fn keep_highest<K: Ord + Clone, V: Ord>(map: &mut BTreeMap<K, V>, key: &K, value: V) {
    match map.get_mut(key) {
        Some(held) if *held >= value => {}
        Some(held) => *held = value,
        None => _ = map.insert(key.clone(), value),
    }
}

fn issued(entry: &Entry) -> Option<Certificate> {
    let Change::CertificateIssued {
        serial,
        subject,
        not_before,
        not_after,
        key,
    } = &entry.change
    else {
        return None;
    };
    Some(Certificate {
        order: entry.order(),
        serial: serial.clone(),
        subject: subject.clone(),
        not_before: *not_before,
        not_after: *not_after,
        key: key.clone(),
    })
}
