//! Tells devices what concerns their trust and their certificate: whose signing key gave way to
//! which, and that they shall renew. One retained message for each device, on its `identity` topic;
//! the binaries publish what is due. Every server tells of the rotations of all servers of the site.
//!
//! A device that was asleep finds the whole chain when it comes, up to the last
//! [`MAX_SUCCESSIONS`]; one that slept through more learns the keys when its certificate is renewed.

use std::collections::BTreeMap;

use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::notice::{Body, Notice, Stamp};
use holdfast_protocol::record::{Change, Serial};
use holdfast_protocol::succession::{KeyRole, MAX_SUCCESSIONS, Orders, SignedSuccession};
use holdfast_store::{StoreError, WriteError, Written};
use tokio::sync::watch;

use crate::Core;
use crate::authority::parse_serial;
use crate::handover::fingerprint;
use crate::lifecycle::NOTICES;
use crate::registry::{Draft, RegistryError};

/// Messages made at once.
const BATCH: usize = 256;

/// Why no renewal was ordered.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// No such device, or none with a certificate.
    #[error("the device {0} has no certificate here; see 'certificates list'")]
    NoCertificate(DeviceId),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for RenewError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

/// The room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tidings {
    core: Core,
}

/// What was published to whom, so that it is not published again. Lives as long as the publisher.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<DeviceId, String>);

impl Told {
    /// Notes that a device's message was published.
    pub fn note(&mut self, due: &Due) {
        self.0.insert(due.device, due.print.clone());
    }
}

/// A message to be published.
#[derive(Clone, Debug)]
pub struct Due {
    /// At which site.
    pub site: SiteId,
    /// To which device.
    pub device: DeviceId,
    /// [`Orders`].
    pub payload: Vec<u8>,
    print: String,
}

/// What one device is to be told.
#[derive(Clone, Debug)]
struct Wanted {
    site: SiteId,
    device: DeviceId,
    successions: Vec<SignedSuccession>,
    renew: Option<Serial>,
    print: String,
}

impl Tidings {
    pub(crate) fn new(core: Core) -> Self {
        Self { core }
    }

    /// Tells of changes after which something may be due.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.core.registry.orders()
    }

    /// Orders a device to renew the certificate that it has now; its serial number. In force at both
    /// servers of the site, until that certificate is void.
    ///
    /// # Errors
    /// See [`RenewError`].
    pub async fn order_renewal(&self, device: DeviceId) -> Result<Serial, RenewError> {
        let none = || RenewError::NoCertificate(device);
        let record = self.core.registry.device(device)?.ok_or_else(none)?;
        let site = self.core.registry.read(|view| view.site_of(device))?;
        let site = site.ok_or_else(none)?;
        let party = Party::Device {
            device,
            site: site.clone(),
        };
        let name = party.dns(&self.core.config.domain);
        let valid = record.certificates().filter(|(_, revoked)| !revoked);
        let own = valid.filter(|(one, _)| one.subject == name);
        let last = own.max_by_key(|(one, _)| one.order.clone());
        let serial = last.map(|(one, _)| one.serial.clone()).ok_or_else(none)?;
        let draft = Draft {
            site,
            device: Some(device),
            change: Change::RenewalOrdered {
                serial: serial.clone(),
            },
        };
        self.core.registry.append(vec![draft]).await?;
        tracing::info!(%device, %serial, "renewal of a certificate ordered");
        Ok(serial)
    }

    /// The next messages to publish, a bounded number; none when every device was told.
    ///
    /// # Errors
    /// Our own store.
    pub async fn due(&self, told: &Told) -> Result<Vec<Due>, StoreError> {
        let wanted = self.wanted(told)?;
        match wanted.is_empty() {
            true => Ok(Vec::new()),
            false => self.signed(wanted).await,
        }
    }

    fn wanted(&self, told: &Told) -> Result<Vec<Wanted>, StoreError> {
        let signer = fingerprint(&self.core.keys.record().public());
        self.core.registry.read(|view| {
            let mut ordered = BTreeMap::new();
            for (device, serial) in view.renewals()? {
                let Some(serial) = parse_serial(&serial) else {
                    continue;
                };
                let held = view.certificate(&serial)?;
                if held.is_some_and(|row| !row.revoked) {
                    ordered.insert(device, serial);
                }
            }
            let mut chains: BTreeMap<SiteId, Vec<SignedSuccession>> = BTreeMap::new();
            let mut all = Vec::new();
            for device in view.device_ids()? {
                let Some(site) = view.site_of(device)? else {
                    continue;
                };
                if !chains.contains_key(&site) {
                    let mut steps = view.rotations(&site, None)?;
                    steps.retain(|step| step.is_of(KeyRole::Signing));
                    steps.sort_by_key(|step| step.rank);
                    let skip = steps.len().saturating_sub(MAX_SUCCESSIONS);
                    let chain = steps.into_iter().skip(skip);
                    chains.insert(site.clone(), chain.map(|step| step.statement).collect());
                }
                let chain = &chains[&site];
                let renew = ordered.get(&device).cloned();
                let last = chain.last().map(|step| fingerprint(&step.said().new));
                let print = format!("{} {last:?} {renew:?} {signer}", chain.len());
                // Who has nothing to hear is told only that an order of before is over.
                let says = !chain.is_empty() || renew.is_some();
                let known = told.0.get(&device);
                if known.map_or(says, |known| *known != print) {
                    all.push(Wanted {
                        site,
                        device,
                        successions: chain.clone(),
                        renew,
                        print,
                    });
                }
                if all.len() == BATCH {
                    break;
                }
            }
            Ok(all)
        })
    }

    async fn signed(&self, wanted: Vec<Wanted>) -> Result<Vec<Due>, StoreError> {
        let epoch = self.core.registry.epoch()?;
        let issuer = self.core.config.server.clone();
        let done: Written<Vec<Due>> = self
            .core
            .registry
            .write(move |it| {
                let key = it.notice_key()?;
                let mut all = Vec::with_capacity(wanted.len());
                for one in &wanted {
                    let renew = match &one.renew {
                        None => None,
                        Some(serial) => {
                            let seq = it.tables.meta(NOTICES)?.unwrap_or(0) + 1;
                            it.tables.put_meta(NOTICES, seq)?;
                            let notice = Notice {
                                issuer: issuer.clone(),
                                site: one.site.clone(),
                                device: one.device,
                                stamp: Stamp { epoch, seq },
                                body: Body::Renew {
                                    serial: serial.clone(),
                                },
                            };
                            Some(notice.sign(&key))
                        }
                    };
                    let orders = Orders {
                        successions: one.successions.clone(),
                        renew,
                    };
                    all.push(Due {
                        site: one.site.clone(),
                        device: one.device,
                        payload: orders.to_cbor(),
                        print: one.print.clone(),
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
