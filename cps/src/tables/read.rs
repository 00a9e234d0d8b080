//! Reading the registry's tables: on a snapshot, or within a commit in the making.

use std::collections::BTreeSet;

use holdfast_protocol::id::{DeviceId, Guid, ServerId, SiteId};
use holdfast_protocol::record::{Cursor, EntryId, Listings, Serial, SignedEntry};
use redb::{ReadableTable as _, ReadableTableMetadata as _, TableDefinition};

use super::*;
use crate::turns::TurnRow;

/// Rank, origin, epoch and number of an entry: its place among all of its site.
pub(crate) type Rank = (u64, String, u32, u64);

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
            .take(REFUSED_SHOWN)
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

    /// Whether it is known to be revoked.
    pub(crate) fn is_void(&self, serial: &Serial) -> Answer<bool> {
        Ok(self.certificate(serial)?.is_some_and(|row| row.revoked))
    }

    /// Where the issue of a certificate stands in the order of all entries of its site.
    pub(crate) fn issued_at(&self, row: &CertificateRow) -> Answer<Option<Rank>> {
        let Some((origin, epoch, seq)) = row.told.clone() else {
            return Ok(None);
        };
        let Ok(server) = origin.parse() else {
            return Ok(None);
        };
        let id = EntryId {
            origin: server,
            epoch,
            seq,
        };
        let entry = self.entry(&row.site, &id)?;
        Ok(entry.map(|entry| (entry.entry().rank, origin, epoch, seq)))
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

    /// Everything that was said of keys on one roll.
    pub(crate) fn listings(&self, site: &SiteId, roll: Roll) -> Answer<Listings> {
        let table = self.0.open(LISTINGS)?;
        let mut listings = Listings::default();
        for found in table.range((site.as_str(), roll.name(), "", 0, 0)..)? {
            let key = found?.0;
            let (of, on, origin, epoch, seq) = key.value();
            if of != site.as_str() || on != roll.name() {
                break;
            }
            let origin = origin.parse().map_err(|_| damaged("origin"))?;
            let entry = self.entry(site, &EntryId { origin, epoch, seq })?;
            entry.iter().for_each(|it| listings.apply(it.entry()));
        }
        Ok(listings)
    }

    /// The keys on one roll, those struck off included.
    pub(crate) fn keys(&self, site: &SiteId, roll: Roll) -> Answer<Vec<KeyRow>> {
        let first = roll_key(site, roll, "");
        let table = self.0.open(KEYS)?;
        let mut rows = Vec::new();
        for found in table.range(first.as_str()..)? {
            let (key, row) = found?;
            if !key.value().starts_with(&first) {
                break;
            }
            rows.push(json(row.value())?);
        }
        Ok(rows)
    }

    pub(crate) fn key(&self, site: &SiteId, roll: Roll, hash: &str) -> Answer<Option<KeyRow>> {
        self.by_name(KEYS, &roll_key(site, roll, hash))
    }

    /// The manufacturer of the voucher that was presented in TO2 under that GUID; empty when two
    /// contradicted each other.
    pub(crate) fn maker(&self, guid: Guid) -> Answer<Option<String>> {
        let table = self.0.open(MAKERS)?;
        Ok(table.get(&guid.0)?.map(|hash| hash.value().to_owned()))
    }

    pub(crate) fn is_vouched(&self, guid: Guid) -> Answer<bool> {
        Ok(self.0.open(VOUCHED)?.get(&guid.0)?.is_some())
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

    /// What was refused, newest first.
    pub(crate) fn refusals(&self) -> Answer<Vec<RefusalRow>> {
        let table = self.0.open(REFUSALS)?;
        let rows = table.iter()?.rev();
        rows.map(|found| json(found?.1.value())).collect()
    }

    /// Numbers of one site's log that are still wanted.
    pub(crate) fn holes(&self, site: &SiteId) -> Answer<Vec<EntryId>> {
        let table = self.0.open(HOLES)?;
        let mut holes = Vec::new();
        for found in table.range((site.as_str(), "", 0, 0)..)? {
            let key = found?.0;
            let (of, origin, epoch, seq) = key.value();
            if of != site.as_str() {
                break;
            }
            let origin = origin.parse().map_err(|_| damaged("origin"))?;
            holes.push(EntryId { origin, epoch, seq });
        }
        Ok(holes)
    }

    pub(crate) fn turn(&self, gateway: &ServerId, epoch: u32) -> Answer<Option<TurnRow>> {
        self.by_name(TURNS, &enrolment_key(gateway, epoch))
    }

    /// The keys of authorities of which every serial is on record.
    pub(crate) fn witnessed(&self) -> Answer<BTreeSet<String>> {
        let table = self.0.open(WITNESSED)?;
        let keys = table.iter()?.map(|found| Ok(found?.0.value().to_owned()));
        keys.collect()
    }

    /// All tokens, each with the hash of its secret.
    pub(crate) fn tokens(&self) -> Answer<Vec<([u8; 32], TokenRow)>> {
        let table = self.0.open(TOKENS)?;
        let rows = table.iter()?.map(|found| {
            let (hash, row) = found?;
            Ok((*hash.value(), json(row.value())?))
        });
        rows.collect()
    }

    pub(crate) fn lock(&self, gateway: &ServerId) -> Answer<Option<LockRow>> {
        self.by_name(LOCKS, gateway.as_str())
    }

    pub(crate) fn locks(&self) -> Answer<Vec<LockRow>> {
        self.values(LOCKS)
    }

    pub(crate) fn alternate(&self, device: DeviceId) -> Answer<Option<AlternateRow>> {
        self.by_name(ALTERNATES, device.as_str())
    }

    pub(crate) fn notice(&self, device: DeviceId) -> Answer<Option<NoticeRow>> {
        self.by_name(NOTICES, device.as_str())
    }

    pub(crate) fn is_settled(&self, digest: &[u8; 32]) -> Answer<bool> {
        Ok(self.0.open(SETTLED)?.get(digest)?.is_some())
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
