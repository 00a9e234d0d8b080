//! Vouchers that make this server the owner of devices. Called by the factory (in the cloud), the
//! HTTP API and the CLI. A voucher is verified, must name our owner key last, and must be new, the
//! same, or a strict descendant of what we hold; forks and ancestors are refused and alarmed.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{DeviceId, Guid, SiteId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::Change;
use holdfast_protocol::succession::KeyRole;
use holdfast_protocol::voucher::{Policy, Relation, Voucher, VoucherError};
use holdfast_store::{StoreError, WriteError};

use crate::Core;
use crate::config::Role;
use crate::registry::{Draft, RegistryError, is_believed};
use crate::rotation::extended;
use crate::rotation::known::{is_ahead_by_us, of_cloud, of_gateway};
use crate::tables::{InboxRow, VoucherRow, key_hash};
use crate::to0::registrable;

/// Why a voucher was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VoucherRefusal {
    /// Longer than the bound.
    #[error(
        "the voucher has {0} bytes, more than the {1} allowed; ask its issuer for a shorter chain"
    )]
    TooLong(usize, usize),
    /// It cannot be read, or its chain, hashes or signatures do not hold.
    #[error("the voucher does not hold: {0}; ask the seller to issue or extend it again")]
    Faulty(#[from] VoucherError),
    /// Its last entry names somebody else.
    #[error(
        "the voucher of {0} is for another owner; have the seller extend it to this server's owner key"
    )]
    NotOurs(DeviceId),
    /// It has no certificate chain, so the device could not be known again.
    #[error("the voucher of {0} names no device certificate; EPID devices are not supported")]
    NoDeviceKey(DeviceId),
    /// An earlier link of a chain that we hold.
    #[error("an older form of the voucher of {0} was offered; nothing changed")]
    Ancestor(DeviceId),
    /// Another chain from the same root: somebody sold twice.
    #[error(
        "the voucher of {0} contradicts the one held: it was sold twice; ask the seller which is right"
    )]
    Fork(DeviceId),
    /// The device works at another site.
    #[error(
        "the device {0} belongs to site {1} already; a device changes its site by a new voucher"
    )]
    OtherSite(DeviceId, SiteId),
    /// No such site here.
    #[error("no site {0} here; add it first")]
    NoSite(SiteId),
    /// No voucher of that GUID.
    #[error("no voucher of {0} here; import it first")]
    Unknown(DeviceId),
    /// Our own store.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl VoucherRefusal {
    /// One word for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLong(..) => "too long",
            Self::Faulty(_) => "faulty",
            Self::NotOurs(_) => "other owner",
            Self::NoDeviceKey(_) => "no device key",
            Self::Ancestor(_) => "ancestor",
            Self::Fork(_) => "fork",
            Self::OtherSite(..) => "other site",
            Self::NoSite(_) => "no site",
            Self::Unknown(_) => "unknown",
            Self::Registry(_) => "own store",
        }
    }
}

impl From<StoreError> for VoucherRefusal {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

/// What became of a voucher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the registry of a site now.
    New,
    /// It waits for a site.
    Waiting,
    /// It was there before.
    Known,
}

/// From whom a voucher comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hand {
    /// An operator gives it, and his word for the device with it, whoever made it.
    Operator,
    /// Somebody over the network.
    Other,
}

/// The vouchers; cheap to clone.
#[derive(Clone, Debug)]
pub struct Vouchers {
    core: Core,
}

impl Vouchers {
    pub(crate) fn new(core: Core) -> Self {
        Self { core }
    }

    /// Reads a file's content (PEM or CBOR) and accepts it from an operator's hand.
    ///
    /// # Errors
    /// As [`Vouchers::accept`].
    pub async fn import(
        &self,
        bytes: &[u8],
        site: Option<SiteId>,
    ) -> Result<(Guid, Accepted), VoucherRefusal> {
        self.take(bytes, site, Hand::Operator).await
    }

    pub(crate) async fn take(
        &self,
        bytes: &[u8],
        site: Option<SiteId>,
        hand: Hand,
    ) -> Result<(Guid, Accepted), VoucherRefusal> {
        let limit = self.core.config.limits.voucher_bytes;
        // PEM is a third longer than what it holds.
        let read = match bytes.len() > 2 * limit {
            true => Err(VoucherRefusal::TooLong(bytes.len(), limit)),
            false => Voucher::read(bytes).map_err(VoucherRefusal::from),
        };
        let taken = match read {
            Ok(voucher) => {
                let accepted = self.try_accept(&voucher, site, hand).await;
                accepted.map(|accepted| (voucher.guid(), accepted))
            }
            Err(refusal) => Err(refusal),
        };
        taken.map_err(|refusal| self.refused(refusal))
    }

    /// Accepts a voucher from an operator for a site; without one it waits at the cloud until it is
    /// assigned, and is taken for the gateway's own site there.
    ///
    /// # Errors
    /// See [`VoucherRefusal`]; each is counted and logged once.
    pub async fn accept(
        &self,
        voucher: &Voucher,
        site: Option<SiteId>,
    ) -> Result<Accepted, VoucherRefusal> {
        self.try_accept(voucher, site, Hand::Operator)
            .await
            .map_err(|refusal| self.refused(refusal))
    }

    async fn try_accept(
        &self,
        voucher: &Voucher,
        site: Option<SiteId>,
        hand: Hand,
    ) -> Result<Accepted, VoucherRefusal> {
        let guid = voucher.guid();
        let device = DeviceId::from_guid(guid);
        let bytes = voucher.as_bytes();
        let limit = self.core.config.limits.voucher_bytes;
        if bytes.len() > limit {
            return Err(VoucherRefusal::TooLong(bytes.len(), limit));
        }
        let policy = Policy {
            now: self.core.clock.certain(),
            ..Policy::default()
        };
        let Ok(own) = self.core.keys.owner_of(voucher) else {
            // Verified first, so that a broken one is called broken whoever it is for.
            voucher.verify(&policy)?;
            return Err(VoucherRefusal::NotOurs(device));
        };
        voucher.verify_owned_by(&own.public(), &policy)?;
        if voucher.device_key().is_none() {
            return Err(VoucherRefusal::NoDeviceKey(device));
        }
        let site = site.or_else(|| self.core.config.role.site().cloned());
        if self.is_known(voucher, site.as_ref())? {
            if let (Some(site), Hand::Operator) = (&site, hand) {
                let drafts = self.word_for(voucher, site)?;
                self.append(drafts).await?;
            }
            return Ok(Accepted::Known);
        }
        match site {
            Some(site) => {
                let done = self.record(voucher, site, hand).await;
                done.map(|()| Accepted::New)
            }
            None => {
                let at = self.core.clock.now().secs;
                let row = InboxRow {
                    guid,
                    voucher: bytes.to_vec(),
                    at,
                };
                self.write(move |it| Ok(it.tables.put_inbox(&row)?)).await?;
                Ok(Accepted::Waiting)
            }
        }
    }

    /// Whether the same voucher is held already; an error where it contradicts what is held.
    fn is_known(&self, voucher: &Voucher, site: Option<&SiteId>) -> Result<bool, VoucherRefusal> {
        let guid = voucher.guid();
        let device = DeviceId::from_guid(guid);
        let (row, waiting) = self
            .core
            .registry
            .read(|view| Ok((view.voucher(guid)?, view.inbox_one(guid)?)))?;
        let other = row.as_ref().map(|row| &row.site);
        if let (Some(wanted), Some(held)) = (site, other)
            && wanted != held
        {
            return Err(VoucherRefusal::OtherSite(device, held.clone()));
        }
        let held = row.map(|row| row.voucher);
        let settled = held.is_some();
        let Some(held) = held.or(waiting.map(|row| row.voucher)) else {
            return Ok(false);
        };
        let held = Voucher::parse(&held)?;
        match voucher.relation_to(&held) {
            // It names an earlier key of ours, and we went on from there.
            Relation::Ancestor if is_ahead_by_us(&self.core, &held, voucher) => Ok(settled),
            Relation::Same => Ok(settled || site.is_none()),
            Relation::Descendant => Ok(false),
            Relation::Ancestor => Err(VoucherRefusal::Ancestor(device)),
            Relation::Fork | Relation::Unrelated => Err(VoucherRefusal::Fork(device)),
        }
    }

    /// Assigns a waiting voucher to a site, and extends it in advance to the site's gateways, so
    /// that the device can be onboarded in an outage as well.
    ///
    /// # Errors
    /// No such voucher or site, or our own store.
    pub async fn assign(&self, guid: Guid, site: &SiteId) -> Result<(), VoucherRefusal> {
        let device = DeviceId::from_guid(guid);
        let (row, waiting) = self
            .core
            .registry
            .read(|view| Ok((view.voucher(guid)?, view.inbox_one(guid)?)))?;
        match (row, waiting) {
            (Some(row), _) if row.site == *site => Ok(()),
            (Some(row), _) => Err(VoucherRefusal::OtherSite(device, row.site)),
            (None, Some(row)) => {
                let voucher = Voucher::parse(&row.voucher)?;
                self.record(&voucher, site.clone(), Hand::Operator).await
            }
            (None, None) => Err(VoucherRefusal::Unknown(device)),
        }
    }

    /// Records a verified voucher for a site.
    async fn record(
        &self,
        voucher: &Voucher,
        site: SiteId,
        hand: Hand,
    ) -> Result<(), VoucherRefusal> {
        if matches!(self.core.config.role, Role::Cloud)
            && self.core.registry.read(|view| view.site(&site))?.is_none()
        {
            return Err(VoucherRefusal::NoSite(site));
        }
        let guid = voucher.guid();
        let device = self.core.registry.read(|view| view.device_of(guid))?;
        let device = device.unwrap_or_else(|| DeviceId::from_guid(guid));
        let bytes = voucher.as_bytes().to_vec();
        let row = VoucherRow {
            guid,
            device,
            site: site.clone(),
            voucher: bytes,
            live: true,
        };
        let change = Change::VoucherAccepted {
            guid,
            voucher: row.voucher.clone(),
        };
        let mut drafts = vec![Draft {
            site,
            device: Some(device),
            change,
        }];
        if hand == Hand::Operator {
            drafts.extend(self.word_for(voucher, &row.site)?);
        }
        drafts.extend(advance(&self.core, &row)?);
        // Made out to an earlier key of ours.
        drafts.extend(extended(
            &self.core,
            &row,
            &self.core.keys.owner().public(),
        )?);
        self.write(move |it| {
            drafts
                .iter()
                .try_for_each(|draft| it.append(draft.clone()))?;
            Ok(it.tables.remove_inbox(guid)?)
        })
        .await
    }

    /// The operator's word for a device whose manufacturer nobody listed: taking its voucher by his
    /// own hand says that there is such a device.
    fn word_for(&self, voucher: &Voucher, site: &SiteId) -> Result<Vec<Draft>, VoucherRefusal> {
        let (guid, maker) = (voucher.guid(), key_hash(voucher.manufacturer().key()));
        let (device, known) = self.core.registry.read(|view| {
            let known = view.is_vouched(guid)? || is_believed(view, site, &maker)?;
            Ok((view.device_of(guid)?, known))
        })?;
        let word = Draft {
            site: site.clone(),
            device: device.or_else(|| Some(DeviceId::from_guid(guid))),
            change: Change::DeviceVouched { guid },
        };
        Ok(match known {
            true => Vec::new(),
            false => vec![word],
        })
    }

    async fn append(&self, drafts: Vec<Draft>) -> Result<(), VoucherRefusal> {
        match drafts.is_empty() {
            true => Ok(()),
            false => Ok(self.core.registry.append(drafts).await?),
        }
    }

    /// Vouchers held for sites.
    ///
    /// # Errors
    /// Our own store.
    pub fn list(&self) -> Result<Vec<VoucherRow>, StoreError> {
        self.core.registry.read(|view| view.vouchers())
    }

    /// Vouchers that wait for a site.
    ///
    /// # Errors
    /// Our own store.
    pub fn waiting(&self) -> Result<Vec<InboxRow>, StoreError> {
        self.core.registry.read(|view| view.inbox())
    }

    /// One voucher, held or waiting, as PEM.
    ///
    /// # Errors
    /// None of that GUID, or our own store.
    pub fn export(&self, guid: Guid) -> Result<String, VoucherRefusal> {
        let (row, waiting) = self
            .core
            .registry
            .read(|view| Ok((view.voucher(guid)?, view.inbox_one(guid)?)))?;
        let bytes = row
            .map(|row| row.voucher)
            .or(waiting.map(|row| row.voucher));
        let unknown = || VoucherRefusal::Unknown(DeviceId::from_guid(guid));
        Ok(crate::authority::pem::block(
            "OWNERSHIP VOUCHER",
            &bytes.ok_or_else(unknown)?,
        ))
    }

    async fn write(
        &self,
        mut job: impl FnMut(&mut crate::registry::Writing<'_>) -> Result<(), WriteError<RegistryError>>
        + Send
        + 'static,
    ) -> Result<(), VoucherRefusal> {
        let done = self.core.registry.write(move |it| job(it)).await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error.into(),
            WriteError::Job(error) => error.into(),
        })
    }

    fn refused(&self, refusal: VoucherRefusal) -> VoucherRefusal {
        tracing::warn!(%refusal, "voucher refused");
        self.core.metrics.refused("voucher", refusal.reason());
        refusal
    }
}

/// Extensions of a voucher of ours to the other server of its site, in advance: the cloud's to the
/// site's gateways, so that the device can come in an outage; a gateway's to the cloud, so that a
/// lost gateway costs no device.
pub(crate) fn advance(core: &Core, row: &VoucherRow) -> Result<Vec<Draft>, VoucherRefusal> {
    let next = core.registry.read(|view| {
        if let Some(key) = of_cloud(core, view, KeyRole::Owner)? {
            return Ok(vec![key]);
        }
        let rows = view.gateways()?.into_iter();
        let rows = rows.filter(|gateway| gateway.site == row.site);
        rows.map(|gateway| of_gateway(view, &gateway, KeyRole::Owner))
            .collect()
    })?;
    extend_to(core, row, &next)
}

/// The entries that extend one voucher of ours to each of `next`.
pub(crate) fn extend_to(
    core: &Core,
    row: &VoucherRow,
    next: &[VerifyingKey],
) -> Result<Vec<Draft>, VoucherRefusal> {
    let voucher = registrable(row, core)?;
    let own = core.keys.owner_of(&voucher)?;
    let mut drafts = Vec::with_capacity(next.len());
    for key in next {
        let extended = voucher.extend(&PublicKey::x509(key), &own)?;
        let change = Change::VoucherAccepted {
            guid: row.guid,
            voucher: extended.as_bytes().to_vec(),
        };
        drafts.push(Draft {
            site: row.site.clone(),
            device: Some(row.device),
            change,
        });
    }
    Ok(drafts)
}
