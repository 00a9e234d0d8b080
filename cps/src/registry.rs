//! The registry: an append-only log of signed change entries, and the folds over it. Called by all
//! rooms that change registry truth, and by `sync` for what the other server says. An entry and
//! what follows from it are one commit. Nothing is ever taken out of the log.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_link::time::Clock;
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::id::{DeviceId, Guid, ServerId, SiteId};
use holdfast_protocol::record::{
    Author, Change, DeviceRecord, Entry, RecordFault, SignedEntry, Standing,
};
use holdfast_protocol::voucher::Voucher;
use holdfast_store::{Store, StoreError, WriteError, Written};
use redb::{ReadTransaction, WriteTransaction};
use tokio::sync::watch;

use crate::roster::{Content, Roster};
use crate::tables::{CertificateRow, ClientRow, GatewayRow, RefusedRow, Tables, VoucherRow};

/// Name of this server's enrolment number among the settings kept in the registry.
const EPOCH: &str = "epoch";

/// Why the registry did not take something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// Our own store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change does not fit into an entry.
    #[error("the change cannot be recorded: {0}")]
    Record(#[from] RecordFault),
}

/// A change to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// Whose log; [`SiteId::of_cloud`] for what belongs to no site.
    pub(crate) site: SiteId,
    /// The device that it is about.
    pub(crate) device: Option<DeviceId>,
    /// What changed.
    pub(crate) change: Change,
}

/// The log, its folds, and the one who signs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    store: Store,
    author: Arc<Signing>,
    roster: Roster,
    written: watch::Sender<u64>,
    ordered: watch::Sender<u64>,
}

struct Signing {
    server: ServerId,
    key: Arc<SigningKey>,
    /// Vouchers with this owner are ours.
    owner: VerifyingKey,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Signing")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Registry")
            .field("server", &self.author.server)
            .finish_non_exhaustive()
    }
}

impl Registry {
    pub(crate) fn new(
        store: Store,
        server: ServerId,
        key: Arc<SigningKey>,
        owner: VerifyingKey,
        clock: Arc<dyn Clock>,
        roster: Roster,
    ) -> Self {
        let author = Arc::new(Signing {
            server,
            key,
            owner,
            clock,
        });
        Self {
            store,
            author,
            roster,
            written: watch::Sender::new(0),
            ordered: watch::Sender::new(0),
        }
    }

    /// Reads on a snapshot.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(Tables<&ReadTransaction>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.store.read(|tx| read(Tables(tx)))
    }

    /// Records changes in one commit.
    pub(crate) async fn append(&self, drafts: Vec<Draft>) -> Result<(), RegistryError> {
        let done = self
            .write(move |it| -> Result<(), WriteError<RegistryError>> {
                drafts.iter().try_for_each(|draft| it.append(draft.clone()))
            })
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error.into(),
            WriteError::Job(error) => error,
        })
    }

    /// Runs a job over the tables in one commit; it may run more than once, so it must do nothing
    /// but use what it is given.
    pub(crate) async fn write<T, E, F>(&self, mut job: F) -> Written<T, E>
    where
        F: FnMut(&mut Writing<'_>) -> Result<T, WriteError<E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let author = Arc::clone(&self.author);
        let changed = self
            .store
            .write(move |tx| {
                let mut writing = Writing {
                    tables: Tables(tx),
                    author: &author,
                    grants: false,
                    appended: false,
                    ordered: false,
                };
                let value = job(&mut writing)?;
                let (grants, appended) = (writing.grants, writing.appended);
                Ok((value, grants, appended, writing.ordered))
            })
            .await;
        let (value, grants, appended, ordered) = changed?;
        if ordered {
            self.ordered.send_modify(|version| *version += 1);
        }
        if appended {
            self.written.send_modify(|version| *version += 1);
        }
        if grants {
            self.refresh_roster()?;
        }
        Ok(value)
    }

    /// Brings what the brokers ask (revocations, clients, gateways) up to the last commit.
    pub(crate) fn refresh_roster(&self) -> Result<(), StoreError> {
        self.roster.refresh(|| {
            self.read(|view| {
                Ok(Content::new(
                    view.certificates()?,
                    view.clients()?,
                    view.gateways()?,
                    &view.locks()?,
                ))
            })
        })
    }

    /// Tells of new entries by this server.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Tells of new orders for devices, by whichever server.
    pub(crate) fn orders(&self) -> watch::Receiver<u64> {
        self.ordered.subscribe()
    }

    /// Everything known of one device.
    pub(crate) fn device(&self, device: DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        self.read(|view| record_of(view, device))
    }

    /// Throws all folds away and makes them again from the log.
    pub(crate) async fn rebuild(&self) -> Result<(), StoreError> {
        let done: Written<()> = self
            .write(|it| {
                it.tables.clear_folds()?;
                for entry in it.tables.entries()? {
                    it.fold(&entry)?;
                }
                it.grants = true;
                Ok(())
            })
            .await;
        done.map_err(own)
    }

    /// This server's enrolment number, 1 at first.
    pub(crate) fn epoch(&self) -> Result<u32, StoreError> {
        self.read(|view| Ok(epoch_of(view.meta(EPOCH)?)))
    }

    pub(crate) async fn set_epoch(&self, epoch: u32) -> Result<(), StoreError> {
        let done: Written<()> = self
            .write(move |it| Ok(it.tables.put_meta(EPOCH, epoch.into())?))
            .await;
        done.map_err(own)
    }
}

fn own(error: WriteError) -> StoreError {
    match error {
        WriteError::Store(error) => error,
        WriteError::Job(never) => match never {},
    }
}

fn epoch_of(kept: Option<u64>) -> u32 {
    kept.and_then(|epoch| u32::try_from(epoch).ok())
        .unwrap_or(1)
}

/// A device's record as the fold over its entries.
pub(crate) fn record_of<S: crate::tables::Source>(
    tables: Tables<S>,
    device: DeviceId,
) -> Result<Option<DeviceRecord>, StoreError> {
    let entries = tables.device_entries(device)?;
    let mut record = DeviceRecord::new(device);
    entries
        .iter()
        .for_each(|entry| record.apply(entry.entry(), standing(entry.entry())));
    Ok((!entries.is_empty()).then_some(record))
}

/// How far an entry is proved. A wrong statement is refused before it gets into a fold, so that
/// one that is there was verified.
fn standing(entry: &Entry) -> Standing {
    match &entry.change {
        Change::Onboarded(onboarded) if onboarded.evidence.statement.is_some() => Standing::Proved,
        _ => Standing::Attested,
    }
}

/// One commit in the making: the tables, and the pen.
pub(crate) struct Writing<'t> {
    pub(crate) tables: Tables<&'t WriteTransaction>,
    author: &'t Signing,
    /// Whether something changed that brokers ask for.
    grants: bool,
    /// Whether there is something new for the other server.
    appended: bool,
    /// Whether a device must be told of another service.
    ordered: bool,
}

impl std::fmt::Debug for Writing<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Writing").finish_non_exhaustive()
    }
}

impl Writing<'_> {
    /// Tells that brokers must ask again after this commit, though no entry says so.
    pub(crate) fn rights_changed(&mut self) {
        self.grants = true;
    }

    /// Writes the next entry of this server and folds it.
    pub(crate) fn append(&mut self, draft: Draft) -> Result<(), WriteError<RegistryError>> {
        let Draft {
            site,
            device,
            change,
        } = draft;
        let server = self.author.server.clone();
        let epoch = epoch_of(self.tables.meta(EPOCH)?);
        let mut author = Author::new(server.clone(), epoch, site.clone());
        let last = self.tables.head(&site, &server, epoch)?;
        let own = self.tables.span(&site, (&server, epoch), (last, last), 1)?;
        let highest = self.tables.highest_rank(&site)?;
        own.iter()
            .chain(&highest)
            .for_each(|entry| author.observe(entry.entry()));
        let signed = author
            .write(self.author.clock.now(), device, change, &self.author.key)
            .map_err(|fault| WriteError::Job(fault.into()))?;
        // What could not be read again must never get into the log.
        SignedEntry::parse(signed.as_bytes()).map_err(|fault| WriteError::Job(fault.into()))?;
        self.appended = true;
        Ok(self.take(&signed)?)
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
    fn fold(&mut self, entry: &SignedEntry) -> Result<(), StoreError> {
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
                self.fold_voucher(it, onboarded.new_guid, &onboarded.voucher)?;
                self.settle_vouchers(it)
            }
            Change::CertificateIssued { .. } => {
                // What another server issued counts here even if its authority is revoked later.
                self.grants |= it.id.origin != self.author.server;
                self.fold_certificate(it)
            }
            Change::CertificateRevoked { .. } => {
                self.grants = true;
                self.fold_certificate(it)
            }
            Change::GatewayEnrolled { .. } => {
                self.grants = true;
                self.fold_gateway(it)
            }
            Change::ClientAdmitted { .. } => {
                self.grants = true;
                self.fold_client(it)
            }
            Change::ServiceOrdered(_) => {
                self.ordered = true;
                Ok(())
            }
            Change::AlternateTold { .. }
            | Change::ServiceActivated { .. }
            | Change::ServiceStarted { .. }
            | Change::ServiceEnded
            | Change::KeyListing(_)
            | Change::DeviceVouched { .. }
            | Change::Unknown { .. } => Ok(()),
        }
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
        if !voucher.is_owned_by(&self.author.owner) {
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
        let Some(record) = record_of(self.tables, device)? else {
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
