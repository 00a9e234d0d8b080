//! The registry's tables, typed. Called by `registry` (which alone writes truth) and by the rooms
//! for what is local to this server (tokens, rendezvous entries, registrations). No other room
//! knows redb: the cloud may keep its registry elsewhere one day, behind these same verbs.
//!
//! `ENTRIES` is the truth; the tables marked *fold* can be thrown away and made again from it
//! (`registry::rebuild`, tested). The tables marked *local* are this server's own business.

mod rows;
mod source;

use std::collections::BTreeSet;

use holdfast_protocol::id::{ClientName, DeviceId, Guid, ServerId, SiteId};
use holdfast_protocol::record::{Cursor, EntryId, Serial, SignedEntry};
use holdfast_protocol::time::Time;
use holdfast_store::StoreError;
use redb::{ReadableTable as _, ReadableTableMetadata as _, TableDefinition, WriteTransaction};

pub use rows::{
    CertificateRow, ClientRow, GatewayRow, InboxRow, InstallerRow, LockRow, PeerRow, RefusedRow,
    SiteRow, VoucherRow,
};
pub(crate) use rows::{NoticeRow, RendezvousRow, TokenRow};
pub(crate) use rows::{base64, key};
pub(crate) use source::Source;

type EntryKey = (&'static str, &'static str, u32, u64);
type Json = TableDefinition<'static, &'static str, &'static [u8]>;

/// (site, origin, epoch, seq) -> signed entry. The truth.
const ENTRIES: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("entries");
/// (site, origin, epoch) -> last number without a gap. *Fold.*
const HEADS: TableDefinition<'_, (&str, &str, u32), u64> = TableDefinition::new("heads");
/// site -> its entry of the highest rank. *Fold.*
const RANKS: TableDefinition<'_, &str, (u64, &str, u32, u64)> = TableDefinition::new("ranks");
/// (device, its entry). *Fold.*
const DEVICES: TableDefinition<'_, (&str, &str, &str, u32, u64), ()> =
    TableDefinition::new("devices");
/// Any GUID a device ever had -> its id. *Fold.*
const GUIDS: TableDefinition<'_, &[u8; 16], &str> = TableDefinition::new("guids");
/// GUID -> voucher by which this server is the owner. *Fold.*
const VOUCHERS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("vouchers");
/// serial (hex) -> certificate. *Fold.*
const CERTIFICATES: Json = TableDefinition::new("certificates");
/// gateway/epoch -> an enrolment. *Fold.*
const GATEWAYS: Json = TableDefinition::new("gateways");
/// site/name -> ordinary client. *Fold.*
const CLIENTS: Json = TableDefinition::new("clients");

/// Entries that are authentic but not believed: they count as received and change nothing.
const REFUSED: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("refused");
/// *Local.*
const SITES: Json = TableDefinition::new("local.sites");
/// Vouchers that no site has yet. *Local.*
const INBOX: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("local.inbox");
/// SHA-256 of a token's secret -> token. *Local.*
const TOKENS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("local.tokens");
/// GUID -> what TO0 left here. *Local.*
const RENDEZVOUS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("local.rendezvous");
/// server -> where it said that it can be reached. *Local.*
const PEERS: Json = TableDefinition::new("local.peers");
/// name -> installer or manufacturer whose vouchers are taken. *Local.*
const INSTALLERS: Json = TableDefinition::new("local.installers");
/// gateway -> the enrolment that is locked out. *Local.*
const LOCKS: Json = TableDefinition::new("local.locks");
/// device -> the notice that it is sent. *Local.*
const NOTICES: Json = TableDefinition::new("local.notices");
/// *Local.*
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("local.meta");

/// Longest listing of refusals.
const REFUSALS_SHOWN: usize = 1_000;

/// Makes the registry's tables; given to `Store::open` by the binary.
///
/// # Errors
/// The store failed.
pub fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(ENTRIES)?;
    tx.open_table(REFUSED)?;
    for table in [
        SITES,
        PEERS,
        INSTALLERS,
        LOCKS,
        CERTIFICATES,
        GATEWAYS,
        CLIENTS,
        NOTICES,
    ] {
        tx.open_table(table)?;
    }
    for table in [VOUCHERS, INBOX, RENDEZVOUS] {
        tx.open_table(table)?;
    }
    tx.open_table(HEADS)?;
    tx.open_table(RANKS)?;
    tx.open_table(DEVICES)?;
    tx.open_table(GUIDS)?;
    tx.open_table(TOKENS)?;
    tx.open_table(META)?;
    Ok(())
}

/// The verbs over one transaction; reading ones on a snapshot, all of them in a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<S>(pub(crate) S);

type Answer<T> = Result<T, StoreError>;

impl<S: Source> Tables<S> {
    // --- the log ---

    pub(crate) fn entry(&self, site: &SiteId, id: &EntryId) -> Answer<Option<SignedEntry>> {
        let key = (site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        let table = self.0.open(ENTRIES)?;
        table
            .get(key)?
            .map(|bytes| parse_entry(bytes.value()))
            .transpose()
    }

    /// Entries of one site and origin from `first` to `last`, at most `max`.
    pub(crate) fn span(
        &self,
        site: &SiteId,
        (origin, epoch): (&ServerId, u32),
        (first, last): (u64, u64),
        max: usize,
    ) -> Answer<Vec<SignedEntry>> {
        let key = |seq| (site.as_str(), origin.as_str(), epoch, seq);
        let table = self.0.open(ENTRIES)?;
        let range = table.range(key(first)..=key(last))?;
        range
            .take(max)
            .map(|found| parse_entry(found?.1.value()))
            .collect()
    }

    /// Every entry of the log, site by site.
    pub(crate) fn entries(&self) -> Answer<Vec<SignedEntry>> {
        let table = self.0.open(ENTRIES)?;
        table
            .iter()?
            .map(|found| parse_entry(found?.1.value()))
            .collect()
    }

    pub(crate) fn cursor(&self, site: &SiteId) -> Answer<Cursor> {
        let table = self.0.open(HEADS)?;
        let mut cursor = Vec::new();
        for found in table.range((site.as_str(), "", 0)..)? {
            let (key, last) = found?;
            let (of, origin, epoch) = key.value();
            if of != site.as_str() {
                break;
            }
            cursor.push((
                origin.parse().map_err(|_| damaged("origin"))?,
                epoch,
                last.value(),
            ));
        }
        Ok(cursor.into_iter().collect())
    }

    pub(crate) fn head(&self, site: &SiteId, origin: &ServerId, epoch: u32) -> Answer<u64> {
        let table = self.0.open(HEADS)?;
        let key = (site.as_str(), origin.as_str(), epoch);
        Ok(table.get(key)?.map_or(0, |last| last.value()))
    }

    pub(crate) fn highest_rank(&self, site: &SiteId) -> Answer<Option<SignedEntry>> {
        let Some((origin, epoch, seq)) = ({
            let table = self.0.open(RANKS)?;
            let row = table.get(site.as_str())?;
            row.map(|row| (row.value().1.to_owned(), row.value().2, row.value().3))
        }) else {
            return Ok(None);
        };
        let origin = origin.parse().map_err(|_| damaged("origin"))?;
        self.entry(site, &EntryId { origin, epoch, seq })
    }

    pub(crate) fn device_entries(&self, device: DeviceId) -> Answer<Vec<SignedEntry>> {
        let table = self.0.open(DEVICES)?;
        let mut entries = Vec::new();
        for found in table.range((device.as_str(), "", "", 0, 0)..)? {
            let key = found?.0;
            let (of, site, origin, epoch, seq) = key.value();
            if of != device.as_str() {
                break;
            }
            let site = SiteId::from_record(site).map_err(|_| damaged("site"))?;
            let origin = origin.parse().map_err(|_| damaged("origin"))?;
            entries.extend(self.entry(&site, &EntryId { origin, epoch, seq })?);
        }
        Ok(entries)
    }

    /// The site in whose log a device is spoken of.
    pub(crate) fn site_of(&self, device: DeviceId) -> Answer<Option<SiteId>> {
        let table = self.0.open(DEVICES)?;
        let first = table.range((device.as_str(), "", "", 0, 0)..)?.next();
        let Some((key, _)) = first.transpose()? else {
            return Ok(None);
        };
        let (of, site, ..) = key.value();
        if of != device.as_str() {
            return Ok(None);
        }
        SiteId::from_record(site)
            .map(Some)
            .map_err(|_| damaged("site"))
    }

    pub(crate) fn device_ids(&self) -> Answer<Vec<DeviceId>> {
        let table = self.0.open(DEVICES)?;
        let mut ids = BTreeSet::new();
        for found in table.iter()? {
            ids.insert(found?.0.value().0.parse().map_err(|_| damaged("device"))?);
        }
        Ok(ids.into_iter().collect())
    }

    pub(crate) fn device_of(&self, guid: Guid) -> Answer<Option<DeviceId>> {
        let table = self.0.open(GUIDS)?;
        let found = table.get(&guid.0)?;
        found
            .map(|id| id.value().parse().map_err(|_| damaged("device")))
            .transpose()
    }

    pub(crate) fn refused(&self) -> Answer<Vec<RefusedRow>> {
        let table = self.0.open(REFUSED)?;
        table
            .iter()?
            .rev()
            .take(REFUSALS_SHOWN)
            .map(|found| json(found?.1.value()))
            .collect()
    }

    pub(crate) fn is_refused(&self, site: &SiteId, id: &EntryId) -> Answer<bool> {
        let key = (site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        Ok(self.0.open(REFUSED)?.get(key)?.is_some())
    }

    // --- folds ---

    pub(crate) fn voucher(&self, guid: Guid) -> Answer<Option<VoucherRow>> {
        self.by_guid(VOUCHERS, guid)
    }

    pub(crate) fn vouchers(&self) -> Answer<Vec<VoucherRow>> {
        self.values(VOUCHERS)
    }

    pub(crate) fn certificate(&self, serial: &Serial) -> Answer<Option<CertificateRow>> {
        self.by_name(CERTIFICATES, &serial.to_string())
    }

    pub(crate) fn certificates(&self) -> Answer<Vec<CertificateRow>> {
        self.values(CERTIFICATES)
    }

    /// A gateway in its highest enrolment.
    pub(crate) fn gateway(&self, server: &ServerId) -> Answer<Option<GatewayRow>> {
        Ok(self
            .gateways()?
            .into_iter()
            .find(|row| row.server == *server))
    }

    /// A gateway in the enrolment of that number.
    pub(crate) fn enrolment(&self, server: &ServerId, epoch: u32) -> Answer<Option<GatewayRow>> {
        self.by_name(GATEWAYS, &enrolment_key(server, epoch))
    }

    /// All gateways, each in its highest enrolment.
    pub(crate) fn gateways(&self) -> Answer<Vec<GatewayRow>> {
        let mut highest: Vec<GatewayRow> = Vec::new();
        for row in self.values::<_, GatewayRow>(GATEWAYS)? {
            match highest.iter_mut().find(|other| other.server == row.server) {
                Some(other) if other.epoch < row.epoch => *other = row,
                Some(_) => {}
                None => highest.push(row),
            }
        }
        Ok(highest)
    }

    pub(crate) fn clients(&self) -> Answer<Vec<ClientRow>> {
        self.values(CLIENTS)
    }

    pub(crate) fn client(&self, site: &SiteId, name: &str) -> Answer<Option<ClientRow>> {
        self.by_name(CLIENTS, &format!("{site}/{name}"))
    }

    // --- local ---

    pub(crate) fn site(&self, site: &SiteId) -> Answer<Option<SiteRow>> {
        self.by_name(SITES, site.as_str())
    }

    pub(crate) fn sites(&self) -> Answer<Vec<SiteRow>> {
        self.values(SITES)
    }

    pub(crate) fn inbox(&self) -> Answer<Vec<InboxRow>> {
        self.values(INBOX)
    }

    pub(crate) fn inbox_one(&self, guid: Guid) -> Answer<Option<InboxRow>> {
        self.by_guid(INBOX, guid)
    }

    pub(crate) fn token(&self, hash: &[u8; 32]) -> Answer<Option<TokenRow>> {
        let table = self.0.open(TOKENS)?;
        table.get(hash)?.map(|row| json(row.value())).transpose()
    }

    pub(crate) fn rendezvous(&self, guid: Guid) -> Answer<Option<RendezvousRow>> {
        self.by_guid(RENDEZVOUS, guid)
    }

    pub(crate) fn rendezvous_entries(&self) -> Answer<u64> {
        Ok(self.0.open(RENDEZVOUS)?.len()?)
    }

    pub(crate) fn peers(&self) -> Answer<Vec<PeerRow>> {
        self.values(PEERS)
    }

    pub(crate) fn installers(&self) -> Answer<Vec<InstallerRow>> {
        self.values(INSTALLERS)
    }

    pub(crate) fn lock(&self, gateway: &ServerId) -> Answer<Option<LockRow>> {
        self.by_name(LOCKS, gateway.as_str())
    }

    pub(crate) fn locks(&self) -> Answer<Vec<LockRow>> {
        self.values(LOCKS)
    }

    pub(crate) fn notice(&self, device: DeviceId) -> Answer<Option<NoticeRow>> {
        self.by_name(NOTICES, device.as_str())
    }

    pub(crate) fn meta(&self, name: &str) -> Answer<Option<u64>> {
        Ok(self.0.open(META)?.get(name)?.map(|value| value.value()))
    }

    fn by_name<T: serde::de::DeserializeOwned>(&self, table: Json, key: &str) -> Answer<Option<T>> {
        let table = self.0.open(table)?;
        table.get(key)?.map(|row| json(row.value())).transpose()
    }

    fn by_guid<T: serde::de::DeserializeOwned>(
        &self,
        table: TableDefinition<'static, &'static [u8; 16], &'static [u8]>,
        guid: Guid,
    ) -> Answer<Option<T>> {
        let table = self.0.open(table)?;
        table.get(&guid.0)?.map(|row| json(row.value())).transpose()
    }

    fn values<K: redb::Key + 'static, T: serde::de::DeserializeOwned>(
        &self,
        table: TableDefinition<'static, K, &'static [u8]>,
    ) -> Answer<Vec<T>> {
        let table = self.0.open(table)?;
        table.iter()?.map(|found| json(found?.1.value())).collect()
    }
}

impl Tables<&WriteTransaction> {
    // --- the log, for `registry` alone ---

    pub(crate) fn put_entry(&self, entry: &SignedEntry) -> Answer<()> {
        let it = entry.entry();
        let key = (
            it.site.as_str(),
            it.id.origin.as_str(),
            it.id.epoch,
            it.id.seq,
        );
        self.0.open_table(ENTRIES)?.insert(key, entry.as_bytes())?;
        Ok(())
    }

    pub(crate) fn put_refused(&self, entry: &SignedEntry, row: &RefusedRow) -> Answer<()> {
        let it = entry.entry();
        let key = (
            it.site.as_str(),
            it.id.origin.as_str(),
            it.id.epoch,
            it.id.seq,
        );
        self.0.open_table(REFUSED)?.insert(key, &*text(row))?;
        Ok(())
    }

    pub(crate) fn put_head(&self, entry: &SignedEntry) -> Answer<()> {
        let it = entry.entry();
        let (site, origin) = (it.site.as_str(), it.id.origin.as_str());
        let mut heads = self.0.open_table(HEADS)?;
        let key = (site, origin, it.id.epoch);
        let last = heads.get(key)?.map_or(0, |last| last.value());
        heads.insert(key, last.max(it.id.seq))?;
        let mut ranks = self.0.open_table(RANKS)?;
        let highest = ranks.get(site)?.map_or(0, |row| row.value().0);
        if it.rank > highest {
            ranks.insert(site, (it.rank, origin, it.id.epoch, it.id.seq))?;
        }
        Ok(())
    }

    pub(crate) fn put_device_entry(&self, device: DeviceId, entry: &SignedEntry) -> Answer<()> {
        let it = entry.entry();
        let (site, origin) = (it.site.as_str(), it.id.origin.as_str());
        let key = (device.as_str(), site, origin, it.id.epoch, it.id.seq);
        self.0.open_table(DEVICES)?.insert(key, ())?;
        Ok(())
    }

    pub(crate) fn put_guid(&self, guid: Guid, device: DeviceId) -> Answer<()> {
        self.0.open_table(GUIDS)?.insert(&guid.0, device.as_str())?;
        Ok(())
    }

    pub(crate) fn put_voucher(&self, row: &VoucherRow) -> Answer<()> {
        self.0
            .open_table(VOUCHERS)?
            .insert(&row.guid.0, &*text(row))?;
        Ok(())
    }

    pub(crate) fn put_certificate(&self, row: &CertificateRow) -> Answer<()> {
        self.put_json(CERTIFICATES, &row.serial, row)
    }

    pub(crate) fn put_gateway(&self, row: &GatewayRow) -> Answer<()> {
        self.put_json(GATEWAYS, &enrolment_key(&row.server, row.epoch), row)
    }

    pub(crate) fn put_client(&self, row: &ClientRow) -> Answer<()> {
        self.put_json(CLIENTS, &format!("{}/{}", row.site, row.name), row)
    }

    /// Throws the folds away, before they are made again.
    pub(crate) fn clear_folds(&self) -> Answer<()> {
        for table in [CERTIFICATES, GATEWAYS, CLIENTS] {
            self.0.open_table(table)?.retain(|_, _| false)?;
        }
        self.0.open_table(VOUCHERS)?.retain(|_, _| false)?;
        self.0.open_table(HEADS)?.retain(|_, _| false)?;
        self.0.open_table(RANKS)?.retain(|_, _| false)?;
        self.0.open_table(DEVICES)?.retain(|_, ()| false)?;
        self.0.open_table(GUIDS)?.retain(|_, _| false)?;
        Ok(())
    }

    // --- local ---

    pub(crate) fn put_site(&self, row: &SiteRow) -> Answer<()> {
        self.put_json(SITES, row.site.as_str(), row)
    }

    pub(crate) fn put_inbox(&self, row: &InboxRow) -> Answer<()> {
        self.0.open_table(INBOX)?.insert(&row.guid.0, &*text(row))?;
        Ok(())
    }

    pub(crate) fn remove_inbox(&self, guid: Guid) -> Answer<()> {
        self.0.open_table(INBOX)?.remove(&guid.0)?;
        Ok(())
    }

    pub(crate) fn put_token(&self, hash: &[u8; 32], row: &TokenRow) -> Answer<()> {
        self.0.open_table(TOKENS)?.insert(hash, &*text(row))?;
        Ok(())
    }

    pub(crate) fn put_rendezvous(&self, row: &RendezvousRow) -> Answer<()> {
        self.0
            .open_table(RENDEZVOUS)?
            .insert(&row.guid.0, &*text(row))?;
        Ok(())
    }

    /// Removes the entries that have lapsed, and those that nobody can read.
    pub(crate) fn sweep_rendezvous(&self, now: Time) -> Answer<()> {
        let mut table = self.0.open_table(RENDEZVOUS)?;
        table.retain(|_, row| json::<RendezvousRow>(row).is_ok_and(|row| !row.has_lapsed(now)))?;
        Ok(())
    }

    pub(crate) fn put_peer(&self, row: &PeerRow) -> Answer<()> {
        self.put_json(PEERS, row.server.as_str(), row)
    }

    pub(crate) fn put_installer(&self, row: &InstallerRow) -> Answer<()> {
        self.put_json(INSTALLERS, row.name.as_str(), row)
    }

    /// Whether there was one of that name.
    pub(crate) fn remove_installer(&self, name: &ClientName) -> Answer<bool> {
        let mut table = self.0.open_table(INSTALLERS)?;
        Ok(table.remove(name.as_str())?.is_some())
    }

    pub(crate) fn put_lock(&self, row: &LockRow) -> Answer<()> {
        self.put_json(LOCKS, row.gateway.as_str(), row)
    }

    pub(crate) fn remove_lock(&self, gateway: &ServerId) -> Answer<()> {
        self.0.open_table(LOCKS)?.remove(gateway.as_str())?;
        Ok(())
    }

    pub(crate) fn put_notice(&self, device: DeviceId, row: &NoticeRow) -> Answer<()> {
        self.put_json(NOTICES, device.as_str(), row)
    }

    pub(crate) fn put_meta(&self, name: &str, value: u64) -> Answer<()> {
        self.0.open_table(META)?.insert(name, value)?;
        Ok(())
    }

    fn put_json(&self, table: Json, key: &str, row: &impl serde::Serialize) -> Answer<()> {
        self.0.open_table(table)?.insert(key, &*text(row))?;
        Ok(())
    }
}

fn enrolment_key(server: &ServerId, epoch: u32) -> String {
    format!("{server}/{epoch:010}")
}

fn text(row: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows are plain structs with string keys")
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    serde_json::from_slice(bytes).map_err(|_| damaged("row"))
}

fn parse_entry(bytes: &[u8]) -> Answer<SignedEntry> {
    SignedEntry::parse(bytes).map_err(|_| damaged("entry"))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Misuse(format!("a {what} in the registry is not of this version").into())
}
