//! One commit of the registry in the making: the tables, and the pen. An entry goes into the log and
//! into all that follows from it at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::{Guid, SiteId};
use holdfast_protocol::record::{
    Author, Change, DeviceRecord, Entry, EntryId, ListedAs, Listing, Onboarded, SignedEntry,
};
use holdfast_protocol::succession::KeyRole;
use holdfast_protocol::time::Time;
use holdfast_protocol::voucher::Voucher;
use holdfast_store::{StoreError, WriteError};
use redb::WriteTransaction;

use super::standing::facts_of;
use super::{Draft, RegistryError, Signing};
use crate::tables::{
    CertificateRow, ClientRow, GatewayRow, KeyRow, RefusedRow, Roll, Tables, VoucherRow, key_hash,
};

/// One commit in the making: the tables, and the pen.
pub(crate) struct Writing<'t> {
    pub(crate) tables: Tables<&'t WriteTransaction>,
    pub(super) author: &'t Signing,
    news: News,
}

/// What others must hear of after a commit.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// Serials that this server issued.
    pub(super) issued: Vec<String>,
    /// Something changed that brokers ask for.
    pub(super) grants: bool,
    /// There is something new for the other server.
    pub(super) appended: bool,
    /// A device must be told of another service.
    pub(super) ordered: bool,
}

impl std::fmt::Debug for Writing<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl<'t> Writing<'t> {
    pub(super) fn new(tables: Tables<&'t WriteTransaction>, author: &'t Signing) -> Self {
        Self {
            tables,
            author,
            news: News::default(),
        }
    }

    pub(super) fn news(&self) -> News {
        self.news.clone()
    }

    /// Throws all folds away and makes them again from the log.
    pub(super) fn fold_all(&mut self) -> Result<(), StoreError> {
        self.tables.clear_folds()?;
        for entry in self.tables.entries()? {
            self.fold(&entry)?;
        }
        self.news.grants = true;
        Ok(())
    }

    /// What the clock says.
    pub(crate) fn now(&self) -> Time {
        self.author.clock.now()
    }

    /// Tells that brokers must ask again after this commit, though no entry says so.
    pub(crate) fn rights_changed(&mut self) {
        self.news.grants = true;
    }

    /// Writes the next entry of this server and folds it.
    pub(crate) fn append(&mut self, draft: Draft) -> Result<(), WriteError<RegistryError>> {
        let Draft {
            site,
            device,
            change,
        } = draft;
        let server = self.author.server.clone();
        let epoch = super::epoch_of(self.tables.meta(super::EPOCH)?);
        let mut author = Author::new(server.clone(), epoch, site.clone());
        let last = self.tables.head(&site, &server, epoch)?;
        let own = self.tables.span(&site, (&server, epoch), (last, last), 1)?;
        let highest = self.tables.highest_rank(&site)?;
        own.iter()
            .chain(&highest)
            .for_each(|entry| author.observe(entry.entry()));
        let key = self.signer(&site)?;
        let read = self.author.clock.read();
        let signed = author
            .write(read.time, device, change, &key)
            .map_err(|fault| WriteError::Job(fault.into()))?;
        // What could not be read again must never get into the log.
        SignedEntry::parse(signed.as_bytes()).map_err(|fault| WriteError::Job(fault.into()))?;
        self.news.appended = true;
        if !read.time.is_authenticated() {
            self.tables.put_untimed(signed.entry(), read.moment)?;
        }
        Ok(self.take(&signed)?)
    }

    /// The key that signs in a log: the one that the last succession there names; in a log that began
    /// since, the present one.
    fn signer(&self, site: &SiteId) -> Result<Arc<SigningKey>, StoreError> {
        let epoch = super::epoch_in(self.tables)?;
        let whose = Some((&self.author.server, epoch));
        for log in [site, &self.author.home] {
            let steps = self.tables.rotations(log, whose)?;
            let last = steps.iter().rfind(|step| step.is_of(KeyRole::Signing));
            if let Some(step) = last {
                let key = self.author.keys.find(KeyRole::Signing, &step.said().new);
                let lost = || {
                    let why = "the signing key that the log names is in no file of the key folder; stop this server and restore that folder from a backup that is not older than the last rotation";
                    StoreError::Misuse(why.into())
                };
                return key.ok_or_else(lost);
            }
        }
        Ok(self.author.keys.record())
    }

    /// The key for notices.
    pub(crate) fn notice_key(&self) -> Result<Arc<SigningKey>, StoreError> {
        self.signer(&self.author.home)
    }

    /// Takes an entry over: into the log and the folds. Whoever calls has verified it.
    pub(crate) fn take(&mut self, entry: &SignedEntry) -> Result<(), StoreError> {
        self.tables.put_entry(entry)?;
        self.fold(entry)
    }

    /// Takes note of an entry that is authentic but not believed: kept, shown, never folded.
    pub(crate) fn refuse(&mut self, entry: &SignedEntry, why: String) -> Result<(), StoreError> {
        let it = entry.entry();
        let row = RefusedRow {
            site: it.site.clone(),
            origin: it.id.origin.clone(),
            epoch: it.id.epoch,
            seq: it.id.seq,
            why,
            at: self.author.clock.now().secs,
        };
        self.tables.put_refused(entry, &row)?;
        self.take(entry)
    }

    /// What follows from one entry. Any order of entries gives the same tables.
    pub(super) fn fold(&mut self, entry: &SignedEntry) -> Result<(), StoreError> {
        self.tables.put_head(entry)?;
        let it = entry.entry();
        if self.tables.is_refused(&it.site, &it.id)? {
            return Ok(());
        }
        if let Some(device) = it.device {
            self.tables.put_device_entry(device, entry)?;
        }
        match &it.change {
            Change::VoucherAccepted { guid, voucher } => {
                self.fold_voucher(it, *guid, voucher)?;
                self.settle_vouchers(it)
            }
            Change::Onboarded(onboarded) => {
                self.fold_maker(onboarded)?;
                self.fold_voucher(it, onboarded.new_guid, &onboarded.voucher)?;
                self.settle_vouchers(it)
            }
            Change::CertificateIssued { serial, .. } => {
                // What another server issued counts here even if its authority is revoked later.
                match it.id.origin == self.author.server {
                    true => self.news.issued.push(serial.to_string()),
                    false => self.news.grants = true,
                }
                self.fold_certificate(it)
            }
            Change::CertificateRevoked { .. } => {
                self.news.grants = true;
                self.fold_certificate(it)
            }
            Change::GatewayEnrolled { .. } => {
                self.news.grants = true;
                self.fold_gateway(it)
            }
            Change::ClientAdmitted { .. } => {
                self.news.grants = true;
                self.fold_client(it)
            }
            Change::ServiceOrdered(_) | Change::ServiceEndOrdered => {
                self.news.ordered = true;
                Ok(())
            }
            Change::KeyListing(listing) => self.fold_listing(it, listing),
            Change::DeviceVouched { guid } => match self.counts(it) {
                true => self.tables.put_vouched(*guid),
                false => Ok(()),
            },
            Change::TimeLearnt { spans } => self.tables.put_learnt(it, spans),
            Change::KeySucceeded(_) => {
                self.news.ordered = true;
                self.tables.put_rotation(it)
            }
            Change::RenewalOrdered { serial } => {
                self.news.ordered = true;
                match it.device {
                    Some(device) => self.tables.put_renewal(device, &serial.to_string()),
                    None => Ok(()),
                }
            }
            Change::AlternateTold { .. }
            | Change::ServiceActivated { .. }
            | Change::ServiceStarted { .. }
            | Change::ServiceEnded
            | Change::Unknown { .. } => Ok(()),
        }
    }

    /// Whether this server goes by the word of who wrote the entry, in matters of trust.
    fn counts(&self, entry: &Entry) -> bool {
        !self.author.at_cloud || entry.id.origin == self.author.server
    }

    fn fold_listing(&self, entry: &Entry, listing: &Listing) -> Result<(), StoreError> {
        let role = listing.role;
        let counts = role == ListedAs::Installer || self.counts(entry);
        let roll = Roll { role, counts };
        self.tables.put_listing(entry, roll)?;
        let listings = self.tables.listings(&entry.site, roll)?;
        let state = listings.state(role, &listing.key);
        let at = match state.order() {
            Some(order) => self.tables.entry(&entry.site, &order.id)?,
            None => None,
        };
        let row = KeyRow {
            key: listing.key.clone(),
            name: state.name().cloned(),
            by: state.order().map(|order| order.id.origin.clone()),
            at: at.map_or(0, |entry| entry.entry().at.secs),
            told: state.order().map(|order| place(&order.id)),
            listing_round: state.listing_round(),
            striking_round: state.striking_round(),
        };
        self.tables.put_key(&entry.site, roll, &row)
    }

    /// By which manufacturer the device says it was made.
    fn fold_maker(&self, onboarded: &Onboarded) -> Result<(), StoreError> {
        let Ok(voucher) = Voucher::parse(&onboarded.evidence.voucher) else {
            return Ok(());
        };
        let hash = key_hash(voucher.manufacturer().key());
        self.tables.put_maker(onboarded.old_guid, &hash)
    }

    /// Keeps the voucher if it makes this server the owner. Of two such the longer one stays.
    fn fold_voucher(&self, entry: &Entry, guid: Guid, bytes: &[u8]) -> Result<(), StoreError> {
        let Some(device) = entry.device else {
            return Ok(());
        };
        self.tables.put_guid(guid, device)?;
        let Ok(voucher) = Voucher::parse(bytes) else {
            return Ok(());
        };
        if !self.author.keys.owns(&voucher) {
            return Ok(());
        }
        let kept = self.tables.voucher(guid)?;
        let longer = kept
            .as_ref()
            .is_none_or(|row| row.voucher.len() < bytes.len());
        if !longer {
            return Ok(());
        }
        self.tables.put_voucher(&VoucherRow {
            guid,
            device,
            site: entry.site.clone(),
            voucher: bytes.to_vec(),
            live: true,
        })
    }

    /// Says of each of the device's vouchers whether TO2 is still served for it.
    fn settle_vouchers(&self, entry: &Entry) -> Result<(), StoreError> {
        let Some(device) = entry.device else {
            return Ok(());
        };
        let Some(record) = facts_of(self.tables, device)? else {
            return Ok(());
        };
        let live = live_guids(&record);
        for guid in record.guids() {
            if let Some(mut row) = self.tables.voucher(guid)? {
                row.live = live.contains(&guid);
                self.tables.put_voucher(&row)?;
            }
        }
        Ok(())
    }

    fn fold_certificate(&self, entry: &Entry) -> Result<(), StoreError> {
        let (Change::CertificateIssued { serial, .. } | Change::CertificateRevoked { serial }) =
            &entry.change
        else {
            return Ok(());
        };
        let kept = self.tables.certificate(serial)?;
        let revoked = kept.as_ref().is_some_and(|row| row.revoked);
        let row = match (&entry.change, kept) {
            (
                Change::CertificateIssued {
                    subject,
                    not_before,
                    not_after,
                    ..
                },
                _,
            ) => CertificateRow {
                serial: serial.to_string(),
                subject: subject.clone(),
                site: entry.site.clone(),
                device: entry.device,
                issuer: entry.id.origin.clone(),
                not_before: *not_before,
                not_after: *not_after,
                revoked,
                told: Some(place(&entry.id)),
            },
            (_, Some(row)) => CertificateRow {
                revoked: true,
                ..row
            },
            (_, None) => CertificateRow {
                serial: serial.to_string(),
                subject: String::new(),
                site: entry.site.clone(),
                device: entry.device,
                // Nobody is known as issuer yet; the issue will put it right when it comes.
                issuer: entry.id.origin.clone(),
                not_before: 0,
                not_after: 0,
                revoked: true,
                told: None,
            },
        };
        self.tables.put_certificate(&row)
    }

    fn fold_gateway(&self, entry: &Entry) -> Result<(), StoreError> {
        let Change::GatewayEnrolled {
            gateway,
            epoch,
            record_key,
            owner_key,
        } = &entry.change
        else {
            return Ok(());
        };
        self.tables.put_gateway(&GatewayRow {
            server: gateway.clone(),
            site: entry.site.clone(),
            epoch: *epoch,
            record_key: record_key.clone(),
            owner_key: owner_key.clone(),
            at: entry.at.secs,
            told: Some(place(&entry.id)),
        })
    }

    fn fold_client(&self, entry: &Entry) -> Result<(), StoreError> {
        let Change::ClientAdmitted {
            name,
            publish,
            subscribe,
        } = &entry.change
        else {
            return Ok(());
        };
        let order = (
            entry.rank,
            entry.id.origin.to_string(),
            entry.id.epoch,
            entry.id.seq,
        );
        let kept = self.tables.client(&entry.site, name.as_str())?;
        if kept.is_some_and(|row| row.order > order) {
            return Ok(());
        }
        self.tables.put_client(&ClientRow {
            name: name.clone(),
            site: entry.site.clone(),
            publish: publish.clone(),
            subscribe: subscribe.clone(),
            order,
        })
    }
}

fn place(id: &EntryId) -> (String, u32, u64) {
    (id.origin.to_string(), id.epoch, id.seq)
}

/// GUIDs under which the device may still come. A claim that another one starts from was seen to
/// have reached the device; what stood before it, and what was tried in its stead, is over.
fn live_guids(record: &DeviceRecord) -> BTreeSet<Guid> {
    let claims: Vec<_> = record.claims().collect();
    let reached: BTreeSet<Guid> = claims.iter().map(|claim| claim.old_guid).collect();
    let settled: BTreeSet<Guid> = claims
        .iter()
        .filter(|claim| reached.contains(&claim.new_guid))
        .map(|claim| claim.old_guid)
        .collect();
    let open = claims
        .iter()
        .filter(|claim| !settled.contains(&claim.old_guid));
    let live: BTreeSet<Guid> = open
        .flat_map(|claim| [claim.old_guid, claim.new_guid])
        .collect();
    match claims.is_empty() {
        true => record.guids(),
        false => live,
    }
}
