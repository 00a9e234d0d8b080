//! `holdfast-cps`: the CPS server, one code for the cloud (40) and for a site's gateway (50).
//!
//! The binaries open it with stores, keys and a clock, hang its HTTP routers on listeners, and ask
//! its roster and ledger from their brokers. Its rooms: [`authority`] (certificates), [`vouchers`],
//! [`rendezvous`] and [`relay`] (TO0/TO1 server), [`to0`] (client), [`registrar`] (TO2 owner),
//! [`sync`] (signed entries between the two servers), [`refusals`] (what sync did not believe),
//! [`lists`] (installers, manufacturers), [`telemetry`] (the ledger), [`times`] (real time for what
//! was recorded without), [`clients`] (ordinary MQTT clients), [`enrol`] (gateways), `turns` (which
//! machine is a gateway), [`http`]. Truth is a log of signed change entries;
//! every table of the registry is a fold over it.
//!
//! It knows nothing of MQTT connections, opens no listener, and imports no other daemon's code.

mod allowance;
pub mod alternates;
pub mod authority;
pub mod clients;
pub mod config;
pub mod devices;
pub mod enrol;
pub mod errors;
pub mod fdo;
pub mod handover;
pub mod http;
pub mod keys;
pub mod lifecycle;
pub mod lists;
pub mod metrics;
mod quiet;
pub mod refusals;
pub mod registrar;
mod registry;
pub mod relay;
pub mod rendezvous;
pub mod renewal;
pub mod revocations;
pub mod roster;
pub mod rotation;
pub mod sync;
mod tables;
pub mod telemetry;
pub mod tidings;
pub mod times;
pub mod to0;
mod turns;
pub mod vouchers;

use std::sync::{Arc, PoisonError, RwLock};

use holdfast_link::time::Clock;
use holdfast_protocol::id::SiteId;
use holdfast_store::{Store, StoreError};

pub use config::{Advertise, CpsConfig, FdoAddress, HandoverPolicy, Limits, Lives, Role};
pub use keys::{KeyError, Keys};
pub use metrics::Metrics;
pub use registry::RegistryError;
pub use tables::{
    CertificateRow, ClientRow, GatewayRow, InboxRow, KeyRow, LockCause, LockRow, PeerRow,
    RefusalRow, RefusedRow, SiteRow, VoucherRow, When, prepare,
};

use authority::{Authority, AuthorityError};
use registry::{Registry, Signing};
use roster::Roster;

/// The two files of a server: a full ledger never blocks an onboarding.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Opened with [`prepare`].
    pub registry: Store,
    /// Opened with [`telemetry::prepare`].
    pub ledger: Store,
}

/// Why a server did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A gateway that has not enrolled has nothing to serve with.
    #[error("this gateway is not enrolled; run the enrol command with a token from the cloud")]
    NotEnrolled,
    /// The files say another site or server than the configuration.
    #[error(
        "enrolled as {enrolled}, but configured as {configured}; correct the configuration, or enrol anew"
    )]
    OtherParty {
        /// From the enrolment.
        enrolled: String,
        /// From the configuration.
        configured: String,
    },
    /// Keys or certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Key files.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The registry.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What every room holds.
#[derive(Clone, Debug)]
pub(crate) struct Core(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: CpsConfig,
    /// As configured, until the machine's addresses change.
    advertise: RwLock<Advertise>,
    pub(crate) keys: Keys,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Registry,
    pub(crate) roster: Roster,
    /// Only at a gateway: the cloud it enrolled with.
    pub(crate) cloud: Option<enrol::Cloud>,
}

impl Inner {
    /// Where this server is reached now.
    pub(crate) fn advertise(&self) -> Advertise {
        self.advertise
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl std::ops::Deref for Core {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A CPS server; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cps {
    core: Core,
    authority: Authority,
    vouchers: vouchers::Vouchers,
    handover: handover::Handover,
    lists: lists::Lists,
    refusals: refusals::Refusals,
    rendezvous: Arc<rendezvous::Rendezvous>,
    relay: Arc<relay::Relay>,
    registrar: Arc<registrar::Registrar>,
    to0: to0::To0,
    sync: sync::Sync,
    ledger: telemetry::Ledger,
    times: times::Times,
    clients: clients::Clients,
    devices: devices::Devices,
    enrolment: enrol::Enrolment,
    lifecycle: lifecycle::Lifecycle,
    renewal: renewal::Renewal,
    alternates: alternates::Alternates,
    rotation: rotation::Rotation,
    tidings: tidings::Tidings,
}

impl Cps {
    /// Opens a server. The cloud makes its root and issuers at first; a gateway must have enrolled.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        config: CpsConfig,
        stores: Stores,
        keys: Keys,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let metrics = Metrics::default();
        let cloud = enrol::Cloud::load(&config, &keys)?;
        let own = match &cloud {
            Some(cloud) => Some(turns::Own::open(keys.folder(), cloud.epoch)?),
            None => None,
        };
        let revocations = revocations::Revocations::open(keys.folder())?;
        let roster = Roster::new(&config, Arc::clone(&clock), revocations);
        let author = Signing {
            server: config.server.clone(),
            keys: keys.clone(),
            home: match &config.role {
                Role::Cloud => SiteId::of_cloud(),
                Role::Gateway { site } => site.clone(),
            },
            at_cloud: cloud.is_none(),
            clock: Arc::clone(&clock),
        };
        let registry = Registry::new(stores.registry, author, roster.clone());
        if let Some(cloud) = &cloud {
            registry.set_epoch(cloud.epoch).await?;
            authority::witness::take_fresh(&keys, &registry).await?;
        }
        registry.refresh_roster()?;
        let ledger = telemetry::Ledger::new(
            stores.ledger,
            config.limits.ledger_messages,
            metrics.clone(),
        );
        let advertise = RwLock::new(config.advertise.clone());
        let core = Core(Arc::new(Inner {
            config,
            advertise,
            keys,
            clock,
            metrics,
            registry,
            roster,
            cloud,
        }));
        rotation::settle(&core)?;
        let authority = Authority::new(core.clone())?;
        authority.open()?;
        let cps = Self::assemble(core, authority, ledger, own);
        // What a rotation that was cut left undone; one odd voucher must not keep a server away.
        if let Err(error) = cps.rotation.extend_all().await {
            tracing::error!(%error, "vouchers could not be extended to the present owner key");
        }
        Ok(cps)
    }

    fn assemble(
        core: Core,
        authority: Authority,
        ledger: telemetry::Ledger,
        own: Option<turns::Own>,
    ) -> Self {
        let rendezvous = Arc::new(rendezvous::Rendezvous::new(core.clone()));
        let devices = devices::Devices::new(core.clone(), authority.clone());
        let vouchers = vouchers::Vouchers::new(core.clone());
        let lists = lists::Lists::new(core.clone());
        let refusals = refusals::Refusals::new(core.clone());
        Self {
            handover: handover::Handover::new(core.clone(), vouchers.clone(), lists.clone()),
            sync: sync::Sync::new(core.clone(), refusals.clone(), own),
            lists,
            refusals,
            vouchers,
            relay: Arc::new(relay::Relay::new(core.clone(), Arc::clone(&rendezvous))),
            registrar: Arc::new(registrar::Registrar::new(
                core.clone(),
                authority.clone(),
                devices.clone(),
            )),
            to0: to0::To0::new(core.clone(), Arc::clone(&rendezvous)),
            clients: clients::Clients::new(core.clone(), authority.clone()),
            enrolment: enrol::Enrolment::new(core.clone(), authority.clone()),
            lifecycle: lifecycle::Lifecycle::new(core.clone(), authority.clone(), devices.clone()),
            renewal: renewal::Renewal::new(core.clone(), authority.clone()),
            alternates: alternates::Alternates::new(core.clone(), devices.clone()),
            times: times::Times::new(core.clone(), ledger.clone()),
            rotation: rotation::Rotation::new(core.clone()),
            tidings: tidings::Tidings::new(core.clone()),
            rendezvous,
            devices,
            authority,
            ledger,
            core,
        }
    }

    /// Returns once the registry's writer has answered, be it with a fault: for the watchdog, which
    /// must know a writer that hangs from one that works.
    pub async fn answers(&self) {
        let done: holdfast_store::Written<()> = self.core.registry.write(|_| Ok(())).await;
        if let Err(fault) = done {
            tracing::debug!(?fault, "the registry answers, but does not work");
        }
    }

    /// What it was opened with.
    #[must_use]
    pub fn config(&self) -> &CpsConfig {
        &self.core.config
    }

    /// Replaces the addresses that others are told: a machine's may come late or change. Who
    /// registers vouchers with them must register anew.
    pub fn set_advertise(&self, advertise: Advertise) {
        *self
            .core
            .advertise
            .write()
            .unwrap_or_else(PoisonError::into_inner) = advertise;
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.core.clock
    }

    /// Its keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.core.keys
    }

    /// The certificate authority.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Vouchers of devices that are ours.
    #[must_use]
    pub fn vouchers(&self) -> &vouchers::Vouchers {
        &self.vouchers
    }

    /// Installers and manufacturers.
    #[must_use]
    pub fn lists(&self) -> &lists::Lists {
        &self.lists
    }

    /// Entries that sync refused.
    #[must_use]
    pub fn refusals(&self) -> &refusals::Refusals {
        &self.refusals
    }

    /// Vouchers that installers hand in.
    #[must_use]
    pub fn handover(&self) -> &handover::Handover {
        &self.handover
    }

    /// TO0 and TO1 server.
    #[must_use]
    pub fn rendezvous(&self) -> &Arc<rendezvous::Rendezvous> {
        &self.rendezvous
    }

    /// TO1 for devices on the LAN: remote rendezvous first, the local one in its stead.
    #[must_use]
    pub fn relay(&self) -> &Arc<relay::Relay> {
        &self.relay
    }

    /// TO2 owner.
    #[must_use]
    pub fn registrar(&self) -> &Arc<registrar::Registrar> {
        &self.registrar
    }

    /// TO0 client.
    #[must_use]
    pub fn to0(&self) -> &to0::To0 {
        &self.to0
    }

    /// Entries to and from the other server.
    #[must_use]
    pub fn sync(&self) -> &sync::Sync {
        &self.sync
    }

    /// What devices sent.
    #[must_use]
    pub fn ledger(&self) -> &telemetry::Ledger {
        &self.ledger
    }

    /// Real time for what was recorded without, and what is on record.
    #[must_use]
    pub fn times(&self) -> &times::Times {
        &self.times
    }

    /// Ordinary MQTT clients.
    #[must_use]
    pub fn clients(&self) -> &clients::Clients {
        &self.clients
    }

    /// Devices and where they are served.
    #[must_use]
    pub fn devices(&self) -> &devices::Devices {
        &self.devices
    }

    /// Gateways' tokens and enrolment (at the cloud).
    #[must_use]
    pub fn enrolment(&self) -> &enrol::Enrolment {
        &self.enrolment
    }

    /// Services of devices: orders, updates, history.
    #[must_use]
    pub fn lifecycle(&self) -> &lifecycle::Lifecycle {
        &self.lifecycle
    }

    /// Renewal of certificates by their holders.
    #[must_use]
    pub fn renewal(&self) -> &renewal::Renewal {
        &self.renewal
    }

    /// Tells devices of the other server.
    #[must_use]
    pub fn alternates(&self) -> &alternates::Alternates {
        &self.alternates
    }

    /// Rotation of the owner key and the signing key.
    #[must_use]
    pub fn rotation(&self) -> &rotation::Rotation {
        &self.rotation
    }

    /// Tells devices of rotated keys, and to renew their certificates.
    #[must_use]
    pub fn tidings(&self) -> &tidings::Tidings {
        &self.tidings
    }

    /// Who may speak: asked by brokers.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.core.roster
    }

    /// The counters, to be registered by the binary.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// What its listeners must keep to.
    #[must_use]
    pub fn bounds(&self) -> http::Bounds {
        http::Bounds::new(self.core.config.limits.clone(), self.core.metrics.clone())
            .ending(self.core.roster.retirements())
    }

    /// The cloud that a gateway enrolled with.
    #[must_use]
    pub fn cloud(&self) -> Option<&enrol::Cloud> {
        self.core.cloud.as_ref()
    }

    /// Adds a site at the cloud, with an intermediate of its own. Adding one twice changes nothing.
    ///
    /// # Errors
    /// Keys or registry.
    pub async fn add_site(&self, site: &SiteId) -> Result<(), AuthorityError> {
        self.authority.add_site(site).await?;
        match self.lists.spread(vec![site.clone()]).await {
            Ok(()) => Ok(()),
            // The next start gives the site what it lacks.
            Err(error) => {
                tracing::error!(%site, %error, "the site was not told of manufacturers");
                Ok(())
            }
        }
    }

    /// The sites of the cloud, or the one of a gateway.
    ///
    /// # Errors
    /// The registry.
    pub fn sites(&self) -> Result<Vec<SiteId>, StoreError> {
        match self.core.config.role.site() {
            Some(site) => Ok(vec![site.clone()]),
            None => {
                let rows = self.core.registry.read(|view| view.sites())?;
                Ok(rows.into_iter().map(|row| row.site).collect())
            }
        }
    }

    /// Throws the registry's tables away and makes them again from the log.
    ///
    /// # Errors
    /// The registry.
    pub async fn rebuild(&self) -> Result<(), StoreError> {
        self.core.registry.rebuild().await
    }
}

#[cfg(test)]
mod tests;
