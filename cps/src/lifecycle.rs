//! The register of devices' services (220): orders, updates, notices, history.
//!
//! Orders come from the administrator's API; requests from devices over HTTPS, each under the
//! certificate of the device itself. What is answered is decided in `protocol::lifecycle` from the
//! device's record; this room records it and certifies, in one commit. It works with the link cut.
//! It opens no connection to a device: the binaries publish the notices that it signs.

mod view;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::certificate::{Leaf, Purpose};
use holdfast_protocol::id::{Application, DeviceId, ServiceId, SiteId};
use holdfast_protocol::lifecycle::{
    Answer, Credential, Decision, Refusal, Request, SignedRequest, decide,
};
use holdfast_protocol::name::Party;
use holdfast_protocol::notice::{Body, Notice, Stamp};
use holdfast_protocol::record::{
    Assignment, Change, DeviceRecord, EntryId, Order as Place, Serial, ServiceOrder,
};
use holdfast_protocol::site_module::{ServerAddress, ServerRole};
use holdfast_store::{StoreError, WriteError, Written};
use tokio::sync::watch;

use crate::Core;
use crate::authority::{Authority, AuthorityError, csr_reason};
use crate::devices::Devices;
use crate::handover::fingerprint;
use crate::registry::{Draft, RegistryError, Writing, record_of};
use crate::roster;
use crate::tables::NoticeRow;

pub use view::{PeriodView, RenewalView, ServicesView};

/// Name of the counter of notices among the settings kept in the registry.
pub(crate) const NOTICES: &str = "notices";
/// Longest name of a service-providing server.
const MAX_NAME: usize = 253;
/// Longest address of one.
const MAX_ADDRESS: usize = 262;

/// What an operator wants of a device.
#[derive(Clone, Debug)]
pub struct Order {
    /// Which device.
    pub device: DeviceId,
    /// The service that it shall work for.
    pub service: ServiceId,
    /// The service-providing server: the id of a server of the site, or `NAME@HOST:PORT`.
    pub server: Option<String>,
    /// The application program that goes with it.
    pub application: Option<Application>,
    /// No server of the site may stand in for the one named.
    pub alone: bool,
}

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Nobody of that id, or not yet here.
    #[error("device {0} is not onboarded; see the list of devices")]
    UnknownDevice(DeviceId),
    /// The server is none.
    #[error(
        "'{0}' is no server of this site; give the id of one, or NAME@HOST:PORT with the DNS name in its certificate"
    )]
    UnknownServer(String),
    /// Nobody is named who could be alone.
    #[error(
        "a service that is to be taken at its own server alone needs that server: give --server as well"
    )]
    NobodyAlone,
    /// It works for nothing.
    #[error("device {0} works for no service; see `services history`")]
    NoService(DeviceId),
    /// The log could not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for OrderError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

/// A signed notice and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The device's site.
    pub site: SiteId,
    /// The device.
    pub device: DeviceId,
    /// COSE_Sign1.
    pub notice: Vec<u8>,
}

/// Why a device's request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Who asks is not known, or no device. Blame: the peer.
    #[error(transparent)]
    Peer(#[from] roster::Refusal),
    /// Somebody else's certificate.
    #[error("{0} has no services; only a device asks, by its own certificate")]
    NoDevice(Party),
}

/// The room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    core: Core,
    authority: Authority,
    devices: Devices,
}

impl Lifecycle {
    pub(crate) fn new(core: Core, authority: Authority, devices: Devices) -> Self {
        Self {
            core,
            authority,
            devices,
        }
    }

    /// Orders a device to a service. The same order again renews its key and certificate.
    ///
    /// # Errors
    /// See [`OrderError`]; nothing is recorded then.
    pub async fn order(&self, order: Order) -> Result<(), OrderError> {
        let device = order.device;
        let unknown = || OrderError::UnknownDevice(device);
        let record = self.core.registry.device(device)?.ok_or_else(unknown)?;
        record.owner().ok_or_else(unknown)?;
        let site = self.site_of(device)?.ok_or_else(unknown)?;
        if order.alone && order.server.is_none() {
            return Err(OrderError::NobodyAlone);
        }
        let server = match order.server {
            Some(text) => Some(self.server(&site, &text)?),
            None => None,
        };
        let assignment = Assignment {
            service: order.service,
            server,
            application: order.application,
            alone: order.alone,
        };
        tracing::info!(%device, %site, service = %assignment.service, "service ordered");
        let change = Change::ServiceOrdered(Box::new(assignment));
        let draft = Draft {
            site,
            device: Some(device),
            change,
        };
        Ok(self.core.registry.append(vec![draft]).await?)
    }

    /// Orders a device to end the use of its service, in good order: it drops its keys, reports that, and the end is
    /// recorded. A device without a service, or one that is to end already, is left as it is.
    ///
    /// # Errors
    /// See [`OrderError`]; nothing is recorded then.
    pub async fn end(&self, device: DeviceId) -> Result<(), OrderError> {
        let unknown = || OrderError::UnknownDevice(device);
        let record = self.core.registry.device(device)?.ok_or_else(unknown)?;
        let services = record.services();
        if services.desired().is_none() {
            return match services.end_ordered() {
                Some(_) => Ok(()),
                None => Err(OrderError::NoService(device)),
            };
        }
        let site = self.site_of(device)?.ok_or_else(unknown)?;
        tracing::info!(%device, %site, "end of service ordered");
        let draft = Draft {
            site,
            device: Some(device),
            change: Change::ServiceEndOrdered,
        };
        Ok(self.core.registry.append(vec![draft]).await?)
    }

    fn server(&self, site: &SiteId, text: &str) -> Result<ServerAddress, OrderError> {
        let bad = || OrderError::UnknownServer(text.chars().take(MAX_NAME).collect());
        let Some((name, address)) = text.split_once('@') else {
            let known = self.devices.servers(site)?.into_iter();
            let mut known = known.filter(|server| server.server.as_str() == text);
            return known.next().ok_or_else(bad);
        };
        let port = address
            .rsplit_once(':')
            .map(|(_, port)| port.parse::<u16>());
        let fits = name.len() <= MAX_NAME && address.len() <= MAX_ADDRESS;
        if !fits || !matches!(port, Some(Ok(1..))) {
            return Err(bad());
        }
        let first = name.split('.').next().unwrap_or_default();
        Ok(ServerAddress {
            server: first.parse().map_err(|_| bad())?,
            role: ServerRole::Cloud,
            name: name.to_owned(),
            mqtt: vec![address.to_owned()],
            https: Vec::new(),
        })
    }

    fn site_of(&self, device: DeviceId) -> Result<Option<SiteId>, StoreError> {
        let entries = self
            .core
            .registry
            .read(|view| view.device_entries(device))?;
        Ok(entries.last().map(|entry| entry.entry().site.clone()))
    }

    /// The site of a device and the number of the order that holds for it, if one was given: to a service or to
    /// none.
    ///
    /// # Errors
    /// The registry.
    pub fn ordered(&self, device: DeviceId) -> Result<Option<(SiteId, EntryId)>, StoreError> {
        let record = self.core.registry.device(device)?;
        let order = record.and_then(|one| wish(&one).map(|(order, _)| order.id.clone()));
        let site = self.site_of(device)?;
        Ok(site.zip(order))
    }

    /// What is ordered, what runs, and the history.
    ///
    /// # Errors
    /// The registry.
    pub fn services(&self, device: DeviceId) -> Result<Option<ServicesView>, StoreError> {
        self.core.registry.read(|view| {
            let record = record_of(view, device)?;
            let site = view.site_of(device)?;
            let known = record.zip(site);
            known
                .map(|(record, site)| ServicesView::of(view, &site, &record))
                .transpose()
        })
    }

    /// Tells of new orders.
    #[must_use]
    pub fn orders(&self) -> watch::Receiver<u64> {
        self.core.registry.orders()
    }

    /// The notices that hold, of all devices with an order. Each order is signed once.
    ///
    /// # Errors
    /// The registry.
    pub async fn notices(&self) -> Result<Vec<Desired>, StoreError> {
        let ids = self.core.registry.read(|view| view.device_ids())?;
        let mut all = Vec::new();
        for device in ids {
            if let Some(notice) = self.notice(device).await?
                && let Some(site) = self.site_of(device)?
            {
                all.push(Desired {
                    site,
                    device,
                    notice,
                });
            }
        }
        Ok(all)
    }

    /// The notice that holds for a device; none if nothing was ordered.
    ///
    /// # Errors
    /// The registry.
    pub async fn notice(&self, device: DeviceId) -> Result<Option<Vec<u8>>, StoreError> {
        let (Some(record), Some(site)) =
            (self.core.registry.device(device)?, self.site_of(device)?)
        else {
            return Ok(None);
        };
        let Some(order) = wish(&record).map(|(order, _)| key(order)) else {
            return Ok(None);
        };
        let epoch = self.core.registry.epoch()?;
        let kept = self.core.registry.read(|view| view.notice(device))?;
        let signer = fingerprint(&self.core.keys.record().public());
        let holds =
            |row: &NoticeRow| row.order == order && row.epoch == epoch && row.signer == signer;
        if let Some(row) = kept.filter(holds) {
            return Ok(Some(row.notice));
        }
        let server = self.core.config.server.clone();
        let done: Written<Option<Vec<u8>>> = self
            .core
            .registry
            .write(move |it| {
                let record = record_of(it.tables, device)?;
                let Some((order, body)) = record.as_ref().and_then(wish) else {
                    return Ok(None);
                };
                // The number is in the store before anything that bears it goes out.
                let seq = it.tables.meta(NOTICES)?.unwrap_or(0) + 1;
                it.tables.put_meta(NOTICES, seq)?;
                let notice = Notice {
                    issuer: server.clone(),
                    site: site.clone(),
                    device,
                    stamp: Stamp { epoch, seq },
                    body,
                };
                let signer = it.notice_key()?;
                let row = NoticeRow {
                    order: key(order),
                    epoch,
                    signer: fingerprint(&signer.public()),
                    notice: notice.sign(&signer),
                };
                it.tables.put_notice(device, &row)?;
                Ok(Some(row.notice))
            })
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })
    }

    /// Answers a device's request. A refusal is an answer too, counted and logged.
    ///
    /// # Errors
    /// The peer is no device that may speak here.
    pub async fn answer(&self, certificates: &[Vec<u8>], body: &[u8]) -> Result<Answer, Fault> {
        let known = self.core.roster.identify(certificates)?;
        let Party::Device { device, site } = known.party else {
            return Err(Fault::NoDevice(known.party));
        };
        let asker = Asker {
            device,
            site,
            serial: known.serial,
        };
        let answer = match self.read(certificates, body) {
            Ok(request) => self.carry_out(&asker, &request).await,
            Err(refusal) => Err(refusal),
        };
        Ok(answer.unwrap_or_else(|refusal| {
            self.core.metrics.refused("lifecycle", refusal.word());
            tracing::warn!(%device, %refusal, "a device's request about its service is refused");
            refusal.into()
        }))
    }

    fn read(&self, certificates: &[Vec<u8>], body: &[u8]) -> Result<Request, Refusal> {
        let leaf = certificates.first().ok_or(Refusal::Integrity)?;
        let leaf = Leaf::inspect(leaf, &self.core.config.domain, Purpose::Client);
        let leaf = leaf.map_err(|_| Refusal::Integrity)?;
        let signed = SignedRequest::parse(body).map_err(|_| Refusal::Malformed)?;
        signed.verify(&leaf.key)
    }

    async fn carry_out(&self, asker: &Asker, request: &Request) -> Result<Answer, Refusal> {
        let device = asker.device;
        let record = self.core.registry.device(device).map_err(own)?;
        match decide(record.as_ref(), device, request)? {
            Decision::Activate => self.activate(asker, request).await,
            Decision::Grant {
                assignment,
                renews,
                csr,
            } => {
                let wanted = (*assignment, renews);
                self.grant(asker, wanted, &csr, request).await
            }
            Decision::Record(_) => {
                let (draft_for, asked) = (drafts(asker), request.clone());
                self.commit(asker, asked, move |decision| match decision {
                    Decision::Record(changes) => Ok(draft_for(changes)),
                    _ => Err(Refusal::Unavailable),
                })
                .await?;
                Ok(Answer::Noted)
            }
            Decision::Notice => Ok(Answer::Notice(self.notice(device).await.map_err(own)?)),
        }
    }

    async fn activate(&self, asker: &Asker, request: &Request) -> Result<Answer, Refusal> {
        let credential = Credential::generate(&mut SystemRandom);
        let digest = credential.digest();
        let draft_for = drafts(asker);
        self.commit(asker, request.clone(), move |decision| match decision {
            Decision::Activate => Ok(draft_for(vec![Change::ServiceActivated {
                credential: digest,
            }])),
            _ => Err(Refusal::Unavailable),
        })
        .await?;
        let device = asker.device;
        let record = self.core.registry.device(device).map_err(own)?;
        let desired = record.as_ref().and_then(|one| one.services().desired());
        tracing::info!(%device, "device activated");
        Ok(Answer::Activated {
            credential,
            service: desired.map(|order| order.assignment.service.clone()),
        })
    }

    /// One commit issues the certificate, ends the old service and starts the new, or renews what runs.
    async fn grant(
        &self,
        asker: &Asker,
        (assignment, renews): (Assignment, bool),
        csr: &[u8],
        request: &Request,
    ) -> Result<Answer, Refusal> {
        let (device, service) = (asker.device, assignment.service.clone());
        let party = Party::Service {
            device,
            service: service.clone(),
            site: asker.site.clone(),
        };
        let signed = self.authority.sign_request(party, csr, &[]);
        let (issued, issue) = signed.map_err(|error| match error {
            AuthorityError::Csr(fault) => {
                // The answer has one word for all of them.
                self.core.metrics.refused("lifecycle", csr_reason(fault));
                tracing::warn!(%device, %service, %fault, "certificate request refused");
                Refusal::BadRequest
            }
            other => own(other),
        })?;
        let started = Change::ServiceStarted {
            assignment: Box::new(assignment.clone()),
            serial: issued.serial.clone(),
        };
        let draft_for = drafts(asker);
        self.commit(asker, request.clone(), move |decision| match decision {
            // Another order may have come since: the device will hear of it.
            Decision::Grant {
                assignment: now, ..
            } if *now == assignment => {
                let start = draft_for(vec![started.clone()]);
                Ok(std::iter::once(issue.clone()).chain(start).collect())
            }
            _ => Err(Refusal::Unavailable),
        })
        .await?;
        self.core.metrics.issued();
        let serial = &issued.serial;
        match renews {
            true => {
                tracing::info!(%device, %service, %serial, "service certificate renewed")
            }
            false => tracing::info!(%device, %service, %serial, "service started"),
        }
        Ok(Answer::Granted {
            service,
            certificate: issued.leaf,
            chain: issued.chain,
        })
    }

    /// Decides once more in the transaction that records it: nothing can come between, not even that the
    /// device is revoked.
    async fn commit(
        &self,
        asker: &Asker,
        request: Request,
        drafts: impl Fn(Decision) -> Result<Vec<Draft>, Refusal> + Send + 'static,
    ) -> Result<(), Refusal> {
        let (device, word) = (asker.device, asker.serial.clone());
        let job = move |it: &mut Writing<'_>| -> Result<(), WriteError<Refusal>> {
            if it.tables.is_void(&word)? {
                // Asked again, it hears at the door why.
                return Err(WriteError::Job(Refusal::Unavailable));
            }
            let record = record_of(it.tables, device)?;
            let decision = decide(record.as_ref(), device, &request).map_err(WriteError::Job)?;
            for draft in drafts(decision).map_err(WriteError::Job)? {
                it.append(draft).map_err(|error| match error {
                    WriteError::Store(error) => WriteError::Store(error),
                    WriteError::Job(error) => WriteError::Job(own(error)),
                })?;
            }
            Ok(())
        };
        let done: Written<(), Refusal> = self.core.registry.write(job).await;
        done.map_err(|error| match error {
            WriteError::Store(error) => own(error),
            WriteError::Job(refusal) => refusal,
        })
    }
}

fn key(order: &Place) -> (u64, String, u32, u64) {
    let id = &order.id;
    (order.rank, id.origin.to_string(), id.epoch, id.seq)
}

/// The order that holds, and how it is told.
fn wish(record: &DeviceRecord) -> Option<(&Place, Body)> {
    let services = record.services();
    if let Some(end) = services.end_ordered() {
        return Some((end, Body::ServiceEnd { rank: end.rank }));
    }
    let ServiceOrder {
        order, assignment, ..
    } = services.desired()?;
    let (assignment, rank) = (assignment.clone(), order.rank);
    Some((order, Body::Service { assignment, rank }))
}

/// The device that asks, and the certificate by which it came.
struct Asker {
    device: DeviceId,
    site: SiteId,
    serial: Serial,
}

/// Makes drafts of changes of one device.
fn drafts(asker: &Asker) -> impl Fn(Vec<Change>) -> Vec<Draft> + Send + use<> + 'static {
    let (device, site) = (asker.device, asker.site.clone());
    move |changes| {
        let draft = |change| Draft {
            site: site.clone(),
            device: Some(device),
            change,
        };
        changes.into_iter().map(draft).collect()
    }
}

/// A fault of our own: the details are for our log.
fn own(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a request about a service failed here");
    Refusal::Unavailable
}
