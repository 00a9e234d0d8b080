//! The tables of rotated keys and ordered renewals: folds, read and written.

use holdfast_protocol::id::{DeviceId, ServerId, SiteId};
use holdfast_protocol::record::{Change, Entry, EntryId};
use holdfast_protocol::succession::{KeyRole, SignedSuccession, Succession};
use redb::{ReadableTable as _, WriteTransaction};

use super::*;

/// A succession in a log.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    /// The number of its entry.
    pub(crate) seq: u64,
    /// Logical time of its entry, for telling which of two servers' came later.
    pub(crate) rank: u64,
    /// When, unix seconds.
    pub(crate) at: u64,
    pub(crate) statement: SignedSuccession,
}

impl Rotation {
    pub(crate) fn said(&self) -> &Succession {
        self.statement.said()
    }

    pub(crate) fn is_of(&self, role: KeyRole) -> bool {
        self.said().role == role
    }
}

impl<S: Source> Tables<S> {
    /// Whose keys were rotated in a site's log, in the order of their entries.
    pub(crate) fn rotations(
        &self,
        site: &SiteId,
        whose: Option<(&ServerId, u32)>,
    ) -> Answer<Vec<Rotation>> {
        let table = self.0.open(ROTATIONS)?;
        let (from, epoch) = whose.map_or(("", 0), |(server, epoch)| (server.as_str(), epoch));
        let mut found = Vec::new();
        for row in table.range((site.as_str(), from, epoch, 0)..)? {
            let key = row?.0;
            let (of, origin, epoch, seq) = key.value();
            let ends = whose.is_some_and(|whose| (whose.0.as_str(), whose.1) != (origin, epoch));
            if of != site.as_str() || ends {
                break;
            }
            let origin = origin.parse().map_err(|_| damaged("origin"))?;
            let entry = self.entry(site, &EntryId { origin, epoch, seq })?;
            let entry = entry.ok_or_else(|| damaged("rotation"))?;
            if let Change::KeySucceeded(statement) = &entry.entry().change {
                found.push(Rotation {
                    seq,
                    rank: entry.entry().rank,
                    at: entry.entry().at.secs,
                    statement: (**statement).clone(),
                });
            }
        }
        Ok(found)
    }

    /// The sites in whose logs a server has written in that enrolment.
    pub(crate) fn logs_of(&self, origin: &ServerId, epoch: u32) -> Answer<Vec<SiteId>> {
        let table = self.0.open(HEADS)?;
        let mut sites = Vec::new();
        for row in table.iter()? {
            let key = row?.0;
            let (site, by, of) = key.value();
            if (by, of) == (origin.as_str(), epoch) {
                sites.push(SiteId::from_record(site).map_err(|_| damaged("site"))?);
            }
        }
        Ok(sites)
    }

    /// Devices that shall renew a certificate, and its serial number, hex.
    pub(crate) fn renewals(&self) -> Answer<Vec<(DeviceId, String)>> {
        let table = self.0.open(RENEWALS)?;
        let rows = table.iter()?.map(|row| {
            let key = row?.0;
            let (device, serial) = key.value();
            let device = device.parse().map_err(|_| damaged("device"))?;
            Ok((device, serial.to_owned()))
        });
        rows.collect()
    }
}

impl Tables<&WriteTransaction> {
    pub(crate) fn put_rotation(&self, entry: &Entry) -> Answer<()> {
        let id = &entry.id;
        let key = (entry.site.as_str(), id.origin.as_str(), id.epoch, id.seq);
        self.0.open_table(ROTATIONS)?.insert(key, ())?;
        Ok(())
    }

    pub(crate) fn put_renewal(&self, device: DeviceId, serial: &str) -> Answer<()> {
        self.0
            .open_table(RENEWALS)?
            .insert((device.as_str(), serial), ())?;
        Ok(())
    }

    pub(super) fn clear_rotations(&self) -> Answer<()> {
        self.0.open_table(ROTATIONS)?.retain(|_, ()| false)?;
        self.0.open_table(RENEWALS)?.retain(|_, ()| false)?;
        Ok(())
    }
}
