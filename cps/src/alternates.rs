//! Tells devices of the other CPS server: at the gateway of the cloud, at the cloud of the site's
//! gateway. Signed notices, one for each device, again when the other server's addresses change.
//!
//! The binaries publish what is due, retained, on each device's own topic. A notice is signed once
//! and kept; it costs nothing until what it says changes. A device whose session is at this server
//! hears of the other before it needs it; by TO2 it is told of both in any case.

use std::collections::BTreeMap;

use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_protocol::notice::{Body, Notice, Stamp};
use holdfast_protocol::site_module::ServerAddress;
use holdfast_store::{StoreError, WriteError, Written};
use tokio::sync::watch;

use crate::Core;
use crate::devices::Devices;
use crate::handover::fingerprint as fingerprint_of;
use crate::lifecycle::{Desired, NOTICES};
use crate::tables::AlternateRow;

/// Notices signed in one commit.
const BATCH: usize = 256;

/// The room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Alternates {
    core: Core,
    devices: Devices,
}

/// What was published to whom, so that it is not published again. Lives as long as the publisher.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<DeviceId, (SiteId, String)>);

impl Told {
    /// Notes that a device's notice was published.
    pub fn note(&mut self, due: &Due) {
        let Desired { site, device, .. } = &due.notice;
        self.0
            .insert(*device, (site.clone(), due.fingerprint.clone()));
    }
}

/// A notice to be published.
#[derive(Clone, Debug)]
pub struct Due {
    /// Signed, and for whom.
    pub notice: Desired,
    fingerprint: String,
}

impl Alternates {
    pub(crate) fn new(core: Core, devices: Devices) -> Self {
        Self { core, devices }
    }

    /// Tells of changes after which something may be due.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.core.registry.changes()
    }

    /// The next notices to publish, a bounded number; none when every device was told.
    ///
    /// # Errors
    /// Our own store.
    pub async fn due(&self, told: &Told) -> Result<Vec<Due>, StoreError> {
        let signer = fingerprint_of(&self.core.keys.record().public());
        let mut others = BTreeMap::new();
        let mut due = Vec::new();
        for device in self.core.registry.read(|view| view.device_ids())? {
            let known = told.0.get(&device);
            let site = match known {
                Some((site, _)) => Some(site.clone()),
                None => self.site_of(device)?,
            };
            let Some(site) = site else { continue };
            if !others.contains_key(&site) {
                others.insert(site.clone(), self.other(&site)?);
            }
            let Some(Some(server)) = others.get(&site) else {
                continue;
            };
            // A notice by a key that gave way is believed no more.
            let print = format!("{} {signer}", fingerprint(server));
            if known.is_none_or(|(_, told)| *told != print) {
                due.push((site, device, server.clone(), print));
            }
            if due.len() == BATCH {
                break;
            }
        }
        if due.is_empty() {
            return Ok(Vec::new());
        }
        self.signed(due).await
    }

    /// The other server for devices of a site, as far as it said where it is.
    fn other(&self, site: &SiteId) -> Result<Option<ServerAddress>, StoreError> {
        let own = &self.core.config.server;
        let mut servers = self.devices.servers(site)?.into_iter();
        Ok(servers.find(|server| server.server != *own && !server.mqtt.is_empty()))
    }

    fn site_of(&self, device: DeviceId) -> Result<Option<SiteId>, StoreError> {
        let entries = self
            .core
            .registry
            .read(|view| view.device_entries(device))?;
        Ok(entries.last().map(|entry| entry.entry().site.clone()))
    }

    /// Signs those that are not kept already, in one commit.
    async fn signed(
        &self,
        wanted: Vec<(SiteId, DeviceId, ServerAddress, String)>,
    ) -> Result<Vec<Due>, StoreError> {
        let epoch = self.core.registry.epoch()?;
        let issuer = self.core.config.server.clone();
        let done: Written<Vec<Due>> = self
            .core
            .registry
            .write(move |it| {
                let key = it.notice_key()?;
                let signer = fingerprint_of(&key.public());
                let mut all = Vec::with_capacity(wanted.len());
                for (site, device, server, print) in &wanted {
                    let kept = it.tables.alternate(*device)?;
                    let kept = kept.filter(|row| {
                        row.print == *print && row.epoch == epoch && row.signer == signer
                    });
                    let notice = match kept {
                        Some(row) => row.notice,
                        None => {
                            // The number is in the store before anything that bears it goes out.
                            let seq = it.tables.meta(NOTICES)?.unwrap_or(0) + 1;
                            it.tables.put_meta(NOTICES, seq)?;
                            let notice = Notice {
                                issuer: issuer.clone(),
                                site: site.clone(),
                                device: *device,
                                stamp: Stamp { epoch, seq },
                                body: Body::Alternate(server.clone()),
                            };
                            let row = AlternateRow {
                                print: print.clone(),
                                epoch,
                                signer: signer.clone(),
                                notice: notice.sign(&key),
                            };
                            it.tables.put_alternate(*device, &row)?;
                            row.notice
                        }
                    };
                    all.push(Due {
                        notice: Desired {
                            site: site.clone(),
                            device: *device,
                            notice,
                        },
                        fingerprint: print.clone(),
                    });
                }
                Ok(all)
            })
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })
    }
}

/// Tells one address of a server from another.
fn fingerprint(server: &ServerAddress) -> String {
    let ServerAddress {
        server,
        role,
        name,
        mqtt,
        https,
    } = server;
    format!("{server} {role:?} {name} {mqtt:?} {https:?}")
}
