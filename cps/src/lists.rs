//! Keys that operators list: installers whose vouchers a site takes, manufacturers whose devices are
//! believed. Each word is an entry in the log of the site that it is for, signed and synced like
//! all others, so that a gateway put in the place of a lost one has the lists again, and the cloud
//! can list and strike for a site. What holds when both sides speak at once is `protocol::record`'s
//! rule: a strike beats every listing that did not know of it.
//!
//! The cloud keeps its manufacturers in its own log and in each site's, for the gateways. It goes by
//! its own word alone; what a gateway's operator says of manufacturers counts at his site.

use std::collections::BTreeMap;

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{ClientName, DeviceId, SiteId};
use holdfast_protocol::record::{Change, ListedAs, Listing};
use holdfast_protocol::voucher::Voucher;
use holdfast_store::{StoreError, WriteError};
use serde::Serialize;

use crate::Core;
use crate::handover::fingerprint;
use crate::registry::{Draft, RegistryError, Writing};
use crate::tables::{KeyRow, Roll, Source, Tables, When, key_hash};

/// Most keys listed for one site at once; far above the installers of one.
pub const MOST_KEYS: usize = 1_000;

/// What the command lines show of installers.
pub const COLUMNS: [&str; 5] = ["name", "key", "site", "by", "since"];
/// What the command lines show of manufacturers.
pub const MAKER_COLUMNS: [&str; 6] = ["name", "key", "state", "by", "since", "devices"];

/// Why a key was not listed, or not struck off.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The name stands for another key.
    #[error("the name {0} stands for another key already; choose another, or remove it first")]
    NameTaken(ClientName),
    /// Nobody of that name.
    #[error(
        "nobody of the name {0} is listed there; `list` shows the names, at the cloud with their sites"
    )]
    Unknown(ClientName),
    /// The bound.
    #[error("{MOST_KEYS} keys are listed already; remove those that are not needed")]
    Full,
    /// There is no round left.
    #[error("this key was struck off for good; make a new key")]
    StruckForGood,
    /// No such site here.
    #[error("no site {0} here; `sites list` shows them")]
    NoSite(SiteId),
    /// A gateway serves one site.
    #[error("this gateway serves site {0} alone; list keys of other sites at the cloud")]
    OtherSite(SiteId),
    /// Nothing is known of the device by which its maker could be told.
    #[error("device {0} was not onboarded, so its manufacturer is not known; give the key's file")]
    NoMaker(DeviceId),
    /// Our own store.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<StoreError> for ListingError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

/// One key, for listings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name; none for a manufacturer that nobody listed here.
    pub name: Option<String>,
    /// First half of the hash of the public key, as `key show` prints it.
    pub key: String,
    /// For which site; none for all of the cloud's.
    pub site: Option<String>,
    /// The server at which it was listed.
    pub by: Option<String>,
    /// When, unix seconds; as well as it is known by now.
    pub listed: u64,
    /// The same, and how good that is; none where nobody listed it.
    pub since: Option<When>,
    /// `listed`; of manufacturers also `heard of` (a gateway believes it, the cloud does not) and
    /// `unknown` (devices name it, nobody listed it).
    pub state: &'static str,
    /// Devices of that manufacturer, where that is what the line is about.
    pub devices: Option<usize>,
}

/// The lists; cheap to clone.
#[derive(Clone, Debug)]
pub struct Lists {
    core: Core,
}

impl Lists {
    pub(crate) fn new(core: Core) -> Self {
        Self { core }
    }

    /// Lists a key under a name: an installer for one site (the cloud's own door without), a
    /// manufacturer for all. The same again changes nothing.
    ///
    /// # Errors
    /// See [`ListingError`].
    pub async fn list(
        &self,
        role: ListedAs,
        site: Option<&SiteId>,
        (name, key): (ClientName, VerifyingKey),
    ) -> Result<(), ListingError> {
        let sites = self.logs(role, site)?;
        self.write(move |it| {
            for site in &sites {
                list_in(it, site, role, (&name, &key))?;
            }
            Ok(())
        })
        .await
    }

    /// Strikes a name off: of an installer, vouchers that it extends later are refused; of a
    /// manufacturer, devices are shown as made by nobody known. What works goes on working.
    ///
    /// # Errors
    /// Nobody of that name, or our own store.
    pub async fn strike(
        &self,
        role: ListedAs,
        site: Option<&SiteId>,
        name: ClientName,
    ) -> Result<(), ListingError> {
        let sites = self.logs(role, site)?;
        self.write(move |it| {
            let mut struck = 0;
            for site in &sites {
                struck += strike_in(it, site, role, &name)?;
            }
            match struck {
                0 => Err(WriteError::Job(ListingError::Unknown(name.clone()))),
                _ => Ok(()),
            }
        })
        .await
    }

    /// The listed keys, installers of one site or of all that this server knows.
    ///
    /// # Errors
    /// Our own store.
    pub fn installers(&self, site: Option<&SiteId>) -> Result<Vec<Listed>, ListingError> {
        let sites = match site {
            Some(site) => self.logs(ListedAs::Installer, Some(site))?,
            None => self.all_logs()?,
        };
        let read = self.core.registry.read(|view| {
            let mut all = Vec::new();
            for site in &sites {
                let rows = view.keys(site, Roll::INSTALLERS)?;
                all.extend(shown(view, rows.iter(), site, "listed")?);
            }
            Ok(all)
        });
        Ok(read?)
    }

    /// The believed manufacturers, then those that others believe or that devices name.
    ///
    /// # Errors
    /// Our own store.
    pub fn manufacturers(&self) -> Result<Vec<Listed>, ListingError> {
        let (own, sites) = (self.own_log(), self.all_logs()?);
        let read = self.core.registry.read(|view| {
            let believed = view.keys(&own, Roll::MANUFACTURERS)?;
            let mut all = shown(view, believed.iter(), &own, "listed")?;
            all.iter_mut().for_each(|one| one.site = None);
            for site in &sites {
                let heard = view.keys(site, Roll::HEARD_MANUFACTURERS)?;
                let heard = heard.iter().filter(|row| !is_in(&believed, row));
                all.extend(shown(view, heard, site, "heard of")?);
            }
            all.extend(unknown_makers(view, &believed)?);
            Ok(all)
        });
        Ok(read?)
    }

    /// The key of the manufacturer whose voucher a device first came with.
    ///
    /// # Errors
    /// The device was not onboarded, or our own store.
    pub fn maker_of(&self, device: DeviceId) -> Result<VerifyingKey, ListingError> {
        let key = self.core.registry.read(|view| maker_key(view, device))?;
        key.ok_or(ListingError::NoMaker(device))
    }

    /// Believes the factory of this very installation, unless an operator struck it off; and gives
    /// each site what the cloud believes. For the cloud, at its start.
    ///
    /// # Errors
    /// Our own store.
    pub async fn believe_own(
        &self,
        name: ClientName,
        key: VerifyingKey,
    ) -> Result<(), ListingError> {
        let own = self.own_log();
        let spoken_of = self
            .core
            .registry
            .read(|view| view.key(&own, Roll::MANUFACTURERS, &key_hash(&key)))?;
        if spoken_of.is_none() {
            self.list(ListedAs::Manufacturer, None, (name, key)).await?;
        }
        self.spread(self.all_logs()?).await
    }

    /// Gives sites the manufacturers that the cloud believes and that they never heard of.
    pub(crate) async fn spread(&self, sites: Vec<SiteId>) -> Result<(), ListingError> {
        let own = self.own_log();
        if self.core.cloud.is_some() {
            return Ok(());
        }
        self.write(move |it| {
            for row in it.tables.keys(&own, Roll::MANUFACTURERS)? {
                let Some(name) = &row.name else { continue };
                for site in &sites {
                    let hash = key_hash(&row.key);
                    if it.tables.key(site, Roll::MANUFACTURERS, &hash)?.is_none() {
                        list_in(it, site, ListedAs::Manufacturer, (name, &row.key))?;
                    }
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether vouchers by this key, or made by it, are taken here.
    pub(crate) fn takes_from(&self, key: &VerifyingKey) -> Result<bool, StoreError> {
        let (own, hash) = (self.own_log(), key_hash(key));
        self.core.registry.read(|view| {
            let row = view.key(&own, Roll::INSTALLERS, &hash)?;
            Ok(row.is_some_and(|row| row.name.is_some()))
        })
    }

    /// The log for what is this server's own business.
    fn own_log(&self) -> SiteId {
        let site = self.core.config.role.site().cloned();
        site.unwrap_or_else(SiteId::of_cloud)
    }

    fn all_logs(&self) -> Result<Vec<SiteId>, StoreError> {
        let own = self.own_log();
        let rows = self.core.registry.read(|view| view.sites())?;
        let mut logs = vec![own];
        if self.core.cloud.is_none() {
            logs.extend(rows.into_iter().map(|row| row.site));
        }
        Ok(logs)
    }

    /// The logs in which a word must stand.
    fn logs(&self, role: ListedAs, site: Option<&SiteId>) -> Result<Vec<SiteId>, ListingError> {
        let own = self.own_log();
        match (site, role) {
            (Some(site), _) if *site == own => Ok(vec![own]),
            (Some(_), _) if self.core.cloud.is_some() => Err(ListingError::OtherSite(own)),
            (Some(site), ListedAs::Installer) => {
                let known = self.all_logs()?.contains(site);
                known
                    .then(|| vec![site.clone()])
                    .ok_or_else(|| ListingError::NoSite(site.clone()))
            }
            (None, ListedAs::Installer) => Ok(vec![own]),
            (_, ListedAs::Manufacturer) => Ok(self.all_logs()?),
        }
    }

    async fn write(
        &self,
        mut job: impl FnMut(&mut Writing<'_>) -> Result<(), WriteError<ListingError>> + Send + 'static,
    ) -> Result<(), ListingError> {
        let done = self.core.registry.write(move |it| job(it)).await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error.into(),
            WriteError::Job(error) => error,
        })
    }
}

fn roll_of(role: ListedAs) -> Roll {
    match role {
        ListedAs::Installer => Roll::INSTALLERS,
        ListedAs::Manufacturer => Roll::MANUFACTURERS,
    }
}

fn list_in(
    it: &mut Writing<'_>,
    site: &SiteId,
    role: ListedAs,
    (name, key): (&ClientName, &VerifyingKey),
) -> Result<(), WriteError<ListingError>> {
    let rows = it.tables.keys(site, roll_of(role))?;
    let named = |row: &&KeyRow| row.name.as_ref() == Some(name);
    match rows.iter().find(named) {
        Some(row) if row.key == *key => return Ok(()),
        Some(_) => return Err(WriteError::Job(ListingError::NameTaken(name.clone()))),
        None => {}
    }
    let listed = rows
        .iter()
        .filter(|row| row.name.is_some() && row.key != *key);
    if listed.count() >= MOST_KEYS {
        return Err(WriteError::Job(ListingError::Full));
    }
    let round = rows
        .iter()
        .find(|row| row.key == *key)
        .map_or(Some(1), |row| row.listing_round);
    let listing = Listing {
        role,
        key: key.clone(),
        round: round.ok_or(WriteError::Job(ListingError::StruckForGood))?,
        name: Some(name.clone()),
    };
    append(it, site, listing)
}

/// How many keys of that name were struck off.
fn strike_in(
    it: &mut Writing<'_>,
    site: &SiteId,
    role: ListedAs,
    name: &ClientName,
) -> Result<usize, WriteError<ListingError>> {
    let rows = it.tables.keys(site, roll_of(role))?;
    let named: Vec<KeyRow> = rows
        .into_iter()
        .filter(|row| row.name.as_ref() == Some(name))
        .collect();
    for row in &named {
        // At the cloud: the strike must reach what the site's gateway said as well.
        let heard = it
            .tables
            .key(site, Roll::HEARD_MANUFACTURERS, &key_hash(&row.key))?
            .filter(|_| role == ListedAs::Manufacturer);
        let heard = heard.map_or(0, |row| row.striking_round);
        let listing = Listing {
            role,
            key: row.key.clone(),
            round: row.striking_round.max(heard),
            name: None,
        };
        append(it, site, listing)?;
    }
    Ok(named.len())
}

fn append(
    it: &mut Writing<'_>,
    site: &SiteId,
    listing: Listing,
) -> Result<(), WriteError<ListingError>> {
    let draft = Draft {
        site: site.clone(),
        device: None,
        change: Change::KeyListing(Box::new(listing)),
    };
    it.append(draft).map_err(|error| match error {
        WriteError::Store(error) => WriteError::Store(error),
        WriteError::Job(error) => WriteError::Job(error.into()),
    })
}

fn is_in(rows: &[KeyRow], one: &KeyRow) -> bool {
    rows.iter()
        .any(|row| row.name.is_some() && row.key == one.key)
}

/// Those of the rows of a site's log that are listed.
fn shown<'a, S: Source>(
    view: Tables<S>,
    rows: impl Iterator<Item = &'a KeyRow>,
    site: &SiteId,
    state: &'static str,
) -> Result<Vec<Listed>, StoreError> {
    let mut all = Vec::new();
    for row in rows {
        let Some(name) = &row.name else {
            continue;
        };
        let since = view.when_told(site, row.told.as_ref())?;
        all.push(Listed {
            name: Some(name.to_string()),
            key: fingerprint(&row.key),
            site: (!site.is_cloud()).then(|| site.to_string()),
            by: row.by.as_ref().map(ToString::to_string),
            listed: since.as_ref().map_or(row.at, |when| when.at),
            since,
            state,
            devices: None,
        });
    }
    Ok(all)
}

/// Manufacturers of onboarded devices whose record nobody believes in.
fn unknown_makers<S: Source>(
    view: Tables<S>,
    believed: &[KeyRow],
) -> Result<Vec<Listed>, StoreError> {
    let mut found: BTreeMap<VerifyingKey, usize> = BTreeMap::new();
    for device in view.device_ids()? {
        if let Some(key) = maker_key(view, device)? {
            *found.entry(key).or_default() += 1;
        }
    }
    let listed = |key: &VerifyingKey| {
        let mut rows = believed.iter();
        rows.any(|row| row.name.is_some() && row.key == *key)
    };
    let unknown = found.into_iter().filter(|(key, _)| !listed(key));
    let rows = unknown.map(|(key, devices)| Listed {
        name: None,
        key: fingerprint(&key),
        site: None,
        by: None,
        listed: 0,
        since: None,
        state: "unknown",
        devices: Some(devices),
    });
    Ok(rows.collect())
}

/// The manufacturer in the voucher of a device's first onboarding.
fn maker_key<S: Source>(
    view: Tables<S>,
    device: DeviceId,
) -> Result<Option<VerifyingKey>, StoreError> {
    let entries = view.device_entries(device)?;
    let first = entries
        .iter()
        .find_map(|entry| match &entry.entry().change {
            Change::Onboarded(onboarded) if onboarded.old_guid == device.guid() => Some(onboarded),
            _ => None,
        });
    let voucher = first.and_then(|it| Voucher::parse(&it.evidence.voucher).ok());
    Ok(voucher.map(|voucher| voucher.manufacturer().key().clone()))
}
