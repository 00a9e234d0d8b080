//! Writing the registry's tables. The log and its folds are written by `registry` alone.

use holdfast_protocol::id::{DeviceId, Guid, ServerId};
use holdfast_protocol::record::{Entry, SignedEntry};
use holdfast_protocol::time::Time;
use redb::{ReadableTable as _, ReadableTableMetadata as _, WriteTransaction};

use super::*;
use crate::turns::TurnRow;

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

    /// Takes note of an entry about a key; `roll` is where it counts.
    pub(crate) fn put_listing(&self, entry: &Entry, roll: Roll) -> Answer<()> {
        let (site, origin) = (entry.site.as_str(), entry.id.origin.as_str());
        let key = (site, roll.name(), origin, entry.id.epoch, entry.id.seq);
        self.0.open_table(LISTINGS)?.insert(key, ())?;
        Ok(())
    }

    pub(crate) fn put_key(&self, site: &SiteId, roll: Roll, row: &KeyRow) -> Answer<()> {
        self.put_json(KEYS, &roll_key(site, roll, &key_hash(&row.key)), row)
    }

    /// Two manufacturers for one GUID are none.
    pub(crate) fn put_maker(&self, guid: Guid, hash: &str) -> Answer<()> {
        let mut table = self.0.open_table(MAKERS)?;
        let differs = table.get(&guid.0)?.is_some_and(|kept| kept.value() != hash);
        table.insert(&guid.0, if differs { "" } else { hash })?;
        Ok(())
    }

    pub(crate) fn put_vouched(&self, guid: Guid) -> Answer<()> {
        self.0.open_table(VOUCHED)?.insert(&guid.0, ())?;
        Ok(())
    }

    /// Throws the folds away, before they are made again.
    pub(crate) fn clear_folds(&self) -> Answer<()> {
        for table in [CERTIFICATES, GATEWAYS, CLIENTS, KEYS] {
            self.0.open_table(table)?.retain(|_, _| false)?;
        }
        self.0.open_table(VOUCHERS)?.retain(|_, _| false)?;
        self.0.open_table(HEADS)?.retain(|_, _| false)?;
        self.0.open_table(RANKS)?.retain(|_, _| false)?;
        self.0.open_table(DEVICES)?.retain(|_, ()| false)?;
        self.0.open_table(GUIDS)?.retain(|_, _| false)?;
        self.0.open_table(LISTINGS)?.retain(|_, ()| false)?;
        self.0.open_table(MAKERS)?.retain(|_, _| false)?;
        self.0.open_table(VOUCHED)?.retain(|_, ()| false)?;
        self.0.open_table(LEARNT)?.retain(|_, _| false)?;
        self.clear_rotations()
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

    /// Keeps what was refused; of a party and of all the oldest rows give way.
    pub(crate) fn put_refusal(&self, row: &RefusalRow, bounds: (u64, u64)) -> Answer<()> {
        let what = row.what();
        let mut of = self.0.open_table(REFUSALS_OF)?;
        let mut rows = self.0.open_table(REFUSALS)?;
        let known = of.get((&*row.party, &*what))?.map(|number| number.value());
        if let Some(number) = known {
            let kept = rows.get(number)?.map(|row| json::<RefusalRow>(row.value()));
            let again = match kept.transpose()? {
                Some(kept) => row.again(&kept),
                None => row.clone(),
            };
            rows.insert(number, &*text(&again))?;
            return Ok(());
        }
        let of_party = of.range((&*row.party, "")..)?;
        let mut numbers = Vec::new();
        for found in of_party {
            let (key, number) = found?;
            if key.value().0 != row.party {
                break;
            }
            numbers.push((number.value(), key.value().1.to_owned()));
        }
        if numbers.len() as u64 >= bounds.0
            && let Some((number, what)) = numbers.into_iter().min()
        {
            rows.remove(number)?;
            of.remove((&*row.party, &*what))?;
        }
        if rows.len()? >= bounds.1
            && let Some((_, gone)) = rows.pop_first()?
        {
            let gone: RefusalRow = json(gone.value())?;
            of.remove((&*gone.party, &*gone.what()))?;
        }
        let last = rows.last()?.map_or(0, |row| row.0.value());
        rows.insert(last + 1, &*text(row))?;
        of.insert((&*row.party, &*what), last + 1)?;
        Ok(())
    }

    pub(crate) fn put_hole(&self, site: &SiteId, id: &EntryId) -> Answer<()> {
        let key = (site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        self.0.open_table(HOLES)?.insert(key, ())?;
        Ok(())
    }

    /// Whether that number was still wanted.
    pub(crate) fn remove_hole(&self, site: &SiteId, id: &EntryId) -> Answer<bool> {
        let key = (site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        Ok(self.0.open_table(HOLES)?.remove(key)?.is_some())
    }

    pub(crate) fn put_lock(&self, row: &LockRow) -> Answer<()> {
        self.put_json(LOCKS, row.gateway.as_str(), row)
    }

    pub(crate) fn remove_lock(&self, gateway: &ServerId) -> Answer<()> {
        self.0.open_table(LOCKS)?.remove(gateway.as_str())?;
        Ok(())
    }

    pub(crate) fn put_turn(&self, gateway: &ServerId, epoch: u32, row: &TurnRow) -> Answer<()> {
        self.put_json(TURNS, &enrolment_key(gateway, epoch), row)
    }

    pub(crate) fn put_witnessed(&self, key: &str) -> Answer<()> {
        self.0.open_table(WITNESSED)?.insert(key, ())?;
        Ok(())
    }

    pub(crate) fn remove_token(&self, hash: &[u8; 32]) -> Answer<()> {
        self.0.open_table(TOKENS)?.remove(hash)?;
        Ok(())
    }

    pub(crate) fn put_alternate(&self, device: DeviceId, row: &AlternateRow) -> Answer<()> {
        self.put_json(ALTERNATES, device.as_str(), row)
    }

    pub(crate) fn put_notice(&self, device: DeviceId, row: &NoticeRow) -> Answer<()> {
        self.put_json(NOTICES, device.as_str(), row)
    }

    /// True if it was not there.
    pub(crate) fn put_settled(&self, digest: &[u8; 32]) -> Answer<bool> {
        let mut table = self.0.open_table(SETTLED)?;
        let before = table.insert(digest, ())?.is_some();
        Ok(!before)
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
