//! How far what is known of a device is proved: its own statement, and who made it. Asked whenever a
//! record is folded; changes nothing.
//!
//! A statement that does not verify is refused before it gets into a fold, so one that is there was
//! verified. It proves no more than that the key in the voucher signed it. That there is such a
//! device at all is the manufacturer's word: a chain of onboardings is followed back to the voucher
//! it began with, and that voucher's manufacturer must be listed, or an operator must have given his
//! word for that device. Both are asked anew each time, so that a key that is listed later proves
//! what came before, and one that is struck off proves nothing any more.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_protocol::id::{DeviceId, Guid, SiteId};
use holdfast_protocol::record::{Change, DeviceRecord, Onboarded, SignedEntry, Standing};
use holdfast_store::StoreError;

use crate::tables::{Roll, Source, Tables};

/// A device's record as the fold over its entries.
pub(crate) fn record_of<S: Source>(
    tables: Tables<S>,
    device: DeviceId,
) -> Result<Option<DeviceRecord>, StoreError> {
    let entries = tables.device_entries(device)?;
    let origins = Origins::of(&entries);
    let mut record = DeviceRecord::new(device);
    for entry in &entries {
        let standing = match &entry.entry().change {
            Change::Onboarded(onboarded) => {
                origins.standing(tables, &entry.entry().site, onboarded)?
            }
            _ => Standing::Attested,
        };
        record.apply(entry.entry(), standing);
    }
    Ok((!entries.is_empty()).then_some(record))
}

/// The same for those who ask only what happened, not what is proved.
pub(super) fn facts_of<S: Source>(
    tables: Tables<S>,
    device: DeviceId,
) -> Result<Option<DeviceRecord>, StoreError> {
    let entries = tables.device_entries(device)?;
    let mut record = DeviceRecord::new(device);
    let apply = |entry: &SignedEntry| record.apply(entry.entry(), Standing::Attested);
    entries.iter().for_each(apply);
    Ok((!entries.is_empty()).then_some(record))
}

/// Whether a manufacturer is believed for a site's devices.
pub(crate) fn is_believed<S: Source>(
    tables: Tables<S>,
    site: &SiteId,
    maker: &str,
) -> Result<bool, StoreError> {
    let row = tables.key(site, Roll::MANUFACTURERS, maker)?;
    Ok(row.is_some_and(|row| row.name.is_some()))
}

/// From which GUIDs the device came to each that it had.
struct Origins(BTreeMap<Guid, Vec<Guid>>);

impl Origins {
    fn of(entries: &[SignedEntry]) -> Self {
        let mut from: BTreeMap<Guid, Vec<Guid>> = BTreeMap::new();
        for entry in entries {
            if let Change::Onboarded(onboarded) = &entry.entry().change {
                let before = from.entry(onboarded.new_guid).or_default();
                before.push(onboarded.old_guid);
            }
        }
        Self(from)
    }

    fn standing<S: Source>(
        &self,
        tables: Tables<S>,
        site: &SiteId,
        onboarded: &Onboarded,
    ) -> Result<Standing, StoreError> {
        Ok(match onboarded.evidence.statement {
            _ if !self.is_made(tables, site, onboarded.old_guid)? => Standing::UnknownMaker,
            Some(_) => Standing::Proved,
            None => Standing::Attested,
        })
    }

    /// Whether somebody believed made the device that bore this GUID.
    fn is_made<S: Source>(
        &self,
        tables: Tables<S>,
        site: &SiteId,
        guid: Guid,
    ) -> Result<bool, StoreError> {
        let (mut left, mut seen) = (vec![guid], BTreeSet::from([guid]));
        while let Some(guid) = left.pop() {
            if tables.is_vouched(guid)? {
                return Ok(true);
            }
            if let Some(maker) = tables.maker(guid)?
                && is_believed(tables, site, &maker)?
            {
                return Ok(true);
            }
            let before = self.0.get(&guid).into_iter().flatten();
            left.extend(before.copied().filter(|guid| seen.insert(*guid)));
        }
        Ok(false)
    }
}
