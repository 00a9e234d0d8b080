//! Rotation of this server's owner key and signing key. Called by the administrator's API, and by
//! [`crate::Cps::open`], which goes on where a cut one stopped.
//!
//! The new key is on the disk before anything names it. One commit of the registry then says so in
//! every log that this server writes (`KeySucceeded`, the last entry by the old signing key there):
//! this commit is the change, everything else follows from the log. Of an owner key the old one stays
//! while vouchers name it; those on record are extended to the new one, some in each commit. An old
//! signing key is destroyed.

pub(crate) mod known;

use std::sync::Arc;

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::{Change, EntryId};
use holdfast_protocol::succession::{
    KeyRole, SignedSuccession, Succession, SuccessionFault, follow,
};
use holdfast_protocol::voucher::{Voucher, VoucherError};
use holdfast_store::{StoreError, WriteError, Written};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::Core;
use crate::config::Role;
use crate::handover::fingerprint;
use crate::keys::KeyError;
use crate::registry::{Draft, RegistryError};
use crate::tables::{Rotation as Step, VoucherRow};
use crate::to0::registrable;

/// Vouchers extended in one commit.
const BATCH: usize = 64;
/// Devices named in one refusal.
const SHOWN: usize = 10;

/// Why a key was not rotated or retired.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Key files.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The statement could not be made.
    #[error(transparent)]
    Statement(#[from] SuccessionFault),
    /// No such key.
    #[error("no earlier owner key {0} here; 'keys show' lists them")]
    Unknown(String),
    /// The one that is in use.
    #[error("{0} is the present owner key; rotate it first")]
    Present(String),
    /// Vouchers name it.
    #[error(
        "{count} vouchers on record name this key ({named}); without it these devices cannot be onboarded by them: retire it later, or with --force"
    )]
    InUse {
        /// How many.
        count: usize,
        /// Some of their devices.
        named: String,
    },
}

impl From<StoreError> for RotationError {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

/// What a rotation did.
#[derive(Clone, Debug, Serialize)]
pub struct Rotated {
    /// Which key.
    pub role: &'static str,
    /// Fingerprint of the one that gave way.
    pub old: String,
    /// Fingerprint of the one in its place.
    pub new: String,
    /// Vouchers extended to it.
    pub extended: usize,
}

/// A key, for listings.
#[derive(Clone, Debug, Serialize)]
pub struct KeyView {
    /// `owner` or `signing`.
    pub role: &'static str,
    /// Half the SHA-256 of its SubjectPublicKeyInfo.
    pub fingerprint: String,
    /// `present`, `earlier`, or `not yet in use`.
    pub state: &'static str,
    /// When it came into use, unix seconds; none for the first.
    pub since: Option<u64>,
    /// Live vouchers on record that name it last.
    pub vouchers: Option<usize>,
}

/// The room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Rotation {
    core: Core,
    /// One rotation at a time.
    turn: Arc<Mutex<()>>,
}

impl Rotation {
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core,
            turn: Arc::default(),
        }
    }

    /// Puts a fresh key in the place of the present one. Cut anywhere, done again it does no harm:
    /// a key that was made and never announced is the one taken next.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn rotate(&self, role: KeyRole) -> Result<Rotated, RotationError> {
        let _turn = self.turn.lock().await;
        let keys = &self.core.keys;
        let old = keys.present(role);
        let mut used = vec![old.public()];
        for step in self
            .core
            .registry
            .read(|view| home_steps(&self.core, view))?
        {
            used.extend([step.said().old.clone(), step.said().new.clone()]);
        }
        if role == KeyRole::Owner {
            // Older than any that the log names, or kept since an enrolment before.
            used.extend(self.older_than_present());
        }
        let new = keys.spare(role, &used)?;
        let server = &self.core.config.server;
        let statement = SignedSuccession::sign(role, server, &old, &new)?;
        self.announce(statement).await?;
        keys.make_present(role, &new.public());
        let mut extended = 0;
        match role {
            KeyRole::Signing => keys.forget(role, &old.public())?,
            KeyRole::Owner => extended = self.extend_all().await?,
        }
        let (old, new) = (fingerprint(&old.public()), fingerprint(&new.public()));
        tracing::info!(role = role.word(), old, new, extended, "key rotated");
        Ok(Rotated {
            role: role.word(),
            old,
            new,
            extended,
        })
    }

    fn older_than_present(&self) -> Vec<VerifyingKey> {
        let present = self.core.keys.owner().public();
        let all = self.core.keys.all(KeyRole::Owner);
        all.into_iter().take_while(|key| *key != present).collect()
    }

    /// Says it in every log of ours, in one commit.
    async fn announce(&self, statement: SignedSuccession) -> Result<(), RotationError> {
        let (server, home) = (self.core.config.server.clone(), home(&self.core));
        let epoch = self.core.registry.epoch()?;
        let done: Written<(), RegistryError> = self
            .core
            .registry
            .write(move |it| {
                let mut sites = it.tables.logs_of(&server, epoch)?;
                sites.extend(it.tables.sites()?.into_iter().map(|row| row.site));
                sites.push(home.clone());
                sites.sort();
                sites.dedup();
                for site in sites {
                    it.append(Draft {
                        site,
                        device: None,
                        change: Change::KeySucceeded(Box::new(statement.clone())),
                    })?;
                }
                Ok(())
            })
            .await;
        done.map_err(flat)
    }

    /// Extends what names an earlier owner key to the present one, until nothing is left.
    pub(crate) async fn extend_all(&self) -> Result<usize, RotationError> {
        let mut sum = 0;
        loop {
            match self.extend_some().await? {
                0 => return Ok(sum),
                some => sum += some,
            }
        }
    }

    async fn extend_some(&self) -> Result<usize, RotationError> {
        let present = self.core.keys.owner().public();
        let mut drafts = Vec::new();
        for row in self.core.registry.read(|view| view.vouchers())? {
            if row.live && drafts.len() < BATCH {
                match extended(&self.core, &row, &present) {
                    Ok(draft) => drafts.extend(draft),
                    Err(fault) => {
                        tracing::warn!(guid = ?row.guid, %fault, "voucher not extended to the new owner key");
                    }
                }
            }
        }
        let count = drafts.len();
        if count > 0 {
            self.core.registry.append(drafts).await?;
        }
        Ok(count)
    }

    /// All keys of both roles.
    ///
    /// # Errors
    /// Our own store.
    pub fn show(&self) -> Result<Vec<KeyView>, StoreError> {
        let steps = self
            .core
            .registry
            .read(|view| home_steps(&self.core, view))?;
        let rows = self.core.registry.read(|view| view.vouchers())?;
        let mut all = Vec::new();
        for role in [KeyRole::Owner, KeyRole::Signing] {
            let present = self.core.keys.present(role).public();
            let mut state = "earlier";
            for key in self.core.keys.all(role) {
                let since = steps.iter().find(|step| step.said().new == key);
                let is_present = key == present;
                let naming = || rows.iter().filter(|row| names(row, &key)).count();
                all.push(KeyView {
                    role: role.word(),
                    fingerprint: fingerprint(&key),
                    state: if is_present { "present" } else { state },
                    since: since.map(|step| step.at),
                    vouchers: (role == KeyRole::Owner).then(naming),
                });
                if is_present {
                    state = "not yet in use";
                }
            }
        }
        Ok(all)
    }

    /// Destroys an earlier owner key. The devices that cannot be onboarded any more by the vouchers
    /// on record; none but by force.
    ///
    /// # Errors
    /// See [`RotationError`].
    pub async fn retire(&self, print: &str, force: bool) -> Result<Vec<DeviceId>, RotationError> {
        let _turn = self.turn.lock().await;
        let all = self.core.keys.all(KeyRole::Owner);
        let found = all.into_iter().find(|key| fingerprint(key) == print);
        let key = found.ok_or_else(|| RotationError::Unknown(print.chars().take(64).collect()))?;
        if key == self.core.keys.owner().public() {
            return Err(RotationError::Present(print.to_owned()));
        }
        self.extend_all().await?;
        let devices = self.naming(&key)?;
        if !devices.is_empty() && !force {
            let named: Vec<String> = devices
                .iter()
                .take(SHOWN)
                .map(ToString::to_string)
                .collect();
            return Err(RotationError::InUse {
                count: devices.len(),
                named: named.join(" "),
            });
        }
        self.core.keys.forget(KeyRole::Owner, &key)?;
        tracing::info!(
            key = print,
            left = devices.len(),
            "earlier owner key retired"
        );
        Ok(devices)
    }

    /// Devices whose vouchers on record, live or waiting for a site, name the key last.
    fn naming(&self, key: &VerifyingKey) -> Result<Vec<DeviceId>, StoreError> {
        let (rows, waiting) = self
            .core
            .registry
            .read(|view| Ok((view.vouchers()?, view.inbox()?)))?;
        let held = rows
            .iter()
            .filter(|row| names(row, key))
            .map(|row| row.device);
        let waiting = waiting.iter().filter(|row| is_owned(&row.voucher, key));
        Ok(held
            .chain(waiting.map(|row| DeviceId::from_guid(row.guid)))
            .collect())
    }
}

fn names(row: &VoucherRow, key: &VerifyingKey) -> bool {
    row.live && is_owned(&row.voucher, key)
}

fn is_owned(voucher: &[u8], key: &VerifyingKey) -> bool {
    Voucher::parse(voucher).is_ok_and(|voucher| voucher.is_owned_by(key))
}

/// The entry that extends a voucher from the key that it names to the present one; none if it names
/// that already.
pub(crate) fn extended(
    core: &Core,
    row: &VoucherRow,
    present: &VerifyingKey,
) -> Result<Option<Draft>, VoucherError> {
    let voucher = registrable(row, core)?;
    if voucher.is_owned_by(present) {
        return Ok(None);
    }
    let signer = core.keys.owner_of(&voucher)?;
    let extended = voucher.extend(&PublicKey::x509(present), &signer)?;
    Ok(Some(Draft {
        site: row.site.clone(),
        device: Some(row.device),
        change: Change::VoucherAccepted {
            guid: row.guid,
            voucher: extended.as_bytes().to_vec(),
        },
    }))
}

/// The log in which every rotation of this server stands.
pub(crate) fn home(core: &Core) -> SiteId {
    match &core.config.role {
        Role::Cloud => SiteId::of_cloud(),
        Role::Gateway { site } => site.clone(),
    }
}

fn home_steps<S: crate::tables::Source>(
    core: &Core,
    view: crate::tables::Tables<S>,
) -> Result<Vec<Step>, StoreError> {
    let epoch = crate::registry::epoch_in(view)?;
    view.rotations(&home(core), Some((&core.config.server, epoch)))
}

/// Takes the keys into use that the log names, after a start: a rotation may have been cut between
/// its commit and what follows from it.
pub(crate) fn settle(core: &Core) -> Result<(), crate::OpenError> {
    let steps = core.registry.read(|view| home_steps(core, view))?;
    for role in [KeyRole::Owner, KeyRole::Signing] {
        let said: Vec<Succession> = steps.iter().map(|step| step.said().clone()).collect();
        let said: Vec<Succession> = said.into_iter().filter(|one| one.role == role).collect();
        let all = core.keys.all(role);
        let enrolled = core.cloud.as_ref().and_then(|cloud| cloud.own_key(role));
        let enrolled = match enrolled {
            Some(key) if said.is_empty() && !all.contains(key) => stands_by(core, role, key)?,
            enrolled => enrolled,
        };
        let Some(first) = enrolled.or(all.first()) else {
            continue;
        };
        let present = follow(first, &said);
        if !core.keys.make_present(role, present) {
            let folder = core.keys.folder().to_path_buf();
            return Err(KeyError::Lost(role.word(), fingerprint(present), folder).into());
        }
        if role == KeyRole::Signing {
            for step in &said {
                core.keys.forget(role, &step.old)?;
            }
        }
    }
    Ok(())
}

/// The key of the enrolment, where it is gone and the log names no successor: still the one if our last
/// entry is by it. A registry that was lost says nothing of either, and what is in the folder serves,
/// so that the site goes on.
fn stands_by<'a>(
    core: &Core,
    role: KeyRole,
    key: &'a VerifyingKey,
) -> Result<Option<&'a VerifyingKey>, StoreError> {
    let (place, origin) = (home(core), core.config.server.clone());
    let last = core.registry.read(|view| {
        let epoch = crate::registry::epoch_in(view)?;
        let seq = view.head(&place, &origin, epoch)?;
        let id = EntryId { origin, epoch, seq };
        view.entry(&place, &id)
    })?;
    let is_by_it = last.is_some_and(|entry| entry.verify(key).is_ok());
    Ok((role == KeyRole::Signing && is_by_it).then_some(key))
}

fn flat(error: WriteError<RegistryError>) -> RotationError {
    match error {
        WriteError::Store(error) => error.into(),
        WriteError::Job(error) => error.into(),
    }
}
