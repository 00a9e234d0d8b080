//! Sync of the registry's log between the cloud (40) and a gateway (50): "what have you after my
//! cursor", at least once, idempotent. Entries are verified by their origin's key, and what they
//! claim by its evidence; nothing is believed because of who delivered it. The server side is
//! called by the HTTPS API, the client side runs in the gateway.

mod client;
mod judge;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::record::{Admission, Cursor, RecordFault, SignedEntry};
use holdfast_store::{StoreError, WriteError, Written};
use serde::{Deserialize, Serialize};

pub use client::{Client, Exchange, SyncError};
pub use judge::Distrust;

use crate::Core;
use crate::config::Role;
use crate::tables::{PeerRow, RefusedRow};

/// Refusals of unauthentic entries that are remembered for showing.
const REMEMBERED: usize = 256;

/// A piece of the log for the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Signed entries, of each origin in order.
    pub entries: Vec<Vec<u8>>,
    /// Whether there is more after them.
    pub more: bool,
}

/// What became of delivered entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Taken over.
    pub taken: u64,
    /// Known before.
    pub repeated: u64,
    /// Dropped because numbers before them are missing; they will be asked for again.
    pub early: u64,
    /// Not believed, one sentence each.
    pub refused: Vec<String>,
}

/// One entry that was not believed, for showing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The log that it was delivered for.
    pub site: String,
    /// Who it says wrote it, and its number; empty when it cannot be read.
    pub entry: String,
    /// Why it was refused.
    pub why: String,
    /// When, unix seconds.
    pub at: u64,
}

/// Sync; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sync {
    core: Core,
    unauthentic: Arc<Mutex<VecDeque<Shown>>>,
    /// At a gateway: why the cloud lets it in no more.
    locked_out: Arc<Mutex<Option<String>>>,
}

impl Sync {
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core,
            unauthentic: Arc::default(),
            locked_out: Arc::default(),
        }
    }

    /// Where this server stands in a site's log.
    ///
    /// # Errors
    /// Our own store.
    pub fn cursor(&self, site: &SiteId) -> Result<Cursor, StoreError> {
        self.core.registry.read(|view| view.cursor(site))
    }

    /// What this server has of a site's log after `cursor`, at most `max` entries. Its own come
    /// first: they say by which keys the others are verified.
    ///
    /// # Errors
    /// Our own store.
    pub fn pull(&self, site: &SiteId, cursor: &Cursor, max: usize) -> Result<Batch, StoreError> {
        let max = max.clamp(1, self.core.config.limits.sync_batch);
        let own = self.core.config.server.clone();
        self.core.registry.read(|view| {
            let mut spans = view.cursor(site)?.beyond(cursor);
            spans.sort_by_key(|span| span.origin != own);
            let (mut entries, mut bytes, mut more) = (Vec::new(), 0, false);
            for span in spans {
                let of = (&span.origin, span.epoch);
                for entry in view.span(site, of, (span.first, span.last), max + 1)? {
                    bytes += entry.as_bytes().len();
                    if entries.len() == max || bytes > MAX_BATCH_BYTES {
                        more = true;
                        break;
                    }
                    entries.push(entry.as_bytes().to_vec());
                }
            }
            Ok(Batch { entries, more })
        })
    }

    /// Takes entries of one site's log that `from` delivered; all in one commit.
    ///
    /// # Errors
    /// Our own store; the entries may be delivered again.
    pub async fn accept(
        &self,
        site: &SiteId,
        from: &ServerId,
        entries: &[Vec<u8>],
    ) -> Result<Report, StoreError> {
        let limit = self.core.config.limits.sync_batch;
        let mut report = Report::default();
        let mut authentic = Vec::new();
        for bytes in entries.iter().take(limit) {
            match self.authenticate(site, from, bytes, &authentic) {
                Ok(entry) => authentic.push(entry),
                Err((distrust, name)) => {
                    let why = self.remember(site, name, &distrust);
                    report.refused.push(why);
                }
            }
        }
        let taken = self.take(site, authentic).await?;
        report.taken = taken.taken;
        report.repeated = taken.repeated;
        report.early = taken.early;
        report.refused.extend(taken.refused);
        self.core.metrics.synced(report.taken, report.repeated);
        Ok(report)
    }

    /// Whether the entry is what its origin signed, and its origin may write in this log.
    fn authenticate(
        &self,
        site: &SiteId,
        from: &ServerId,
        bytes: &[u8],
        before: &[SignedEntry],
    ) -> Result<SignedEntry, (Distrust, String)> {
        let entry = SignedEntry::parse(bytes)
            .map_err(|fault: RecordFault| (Distrust::Malformed(fault), String::new()))?;
        let id = &entry.entry().id;
        let name = format!("{} {}/{}", id.origin, id.epoch, id.seq);
        let fail = |distrust| (distrust, name.clone());
        if entry.entry().site != *site {
            return Err(fail(Distrust::OtherSite(entry.entry().site.clone())));
        }
        let key = judge::key_of(&self.core, site, from, id, before).map_err(fail)?;
        entry
            .verify(&key)
            .map_err(|fault| fail(Distrust::Signature(fault)))?;
        Ok(entry)
    }

    /// Judges and takes authentic entries in one commit. One that is not believed is kept and
    /// counts as received, so that it does not hold up what follows; it is never folded.
    async fn take(&self, site: &SiteId, entries: Vec<SignedEntry>) -> Result<Report, StoreError> {
        let (site, core) = (site.clone(), self.core.clone());
        let done: Written<Report> = self
            .core
            .registry
            .write(move |it| {
                let mut report = Report::default();
                let mut cursor = it.tables.cursor(&site)?;
                for entry in &entries {
                    match cursor.advance(&entry.entry().id) {
                        Admission::Known => report.repeated += 1,
                        Admission::Gap { .. } => report.early += 1,
                        Admission::Next => match judge::judge(&core, it, entry)? {
                            Ok(()) => {
                                it.take(entry)?;
                                report.taken += 1;
                            }
                            Err(distrust) => {
                                report.refused.push(distrust.to_string());
                                it.refuse(entry, distrust.to_string())?;
                            }
                        },
                    }
                }
                Ok(report)
            })
            .await;
        let report = done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })?;
        for why in &report.refused {
            tracing::error!(%why, "a change entry was not believed");
            self.core.metrics.refused("sync", "not believed");
        }
        Ok(report)
    }

    /// Keeps in mind, for `status`, an entry that is not even authentic.
    fn remember(&self, site: &SiteId, entry: String, distrust: &Distrust) -> String {
        tracing::error!(%site, entry, %distrust, "a change entry was refused");
        self.core.metrics.refused("sync", distrust.reason());
        let why = distrust.to_string();
        let at = self.core.clock.now().secs;
        let mut shown = self
            .unauthentic
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if shown.len() == REMEMBERED {
            shown.pop_front();
        }
        shown.push_back(Shown {
            site: site.to_string(),
            entry,
            why: why.clone(),
            at,
        });
        why
    }

    /// Entries refused because they are not what their origin signed, since the start.
    #[must_use]
    pub fn unauthentic(&self) -> Vec<Shown> {
        let shown = self
            .unauthentic
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shown.iter().cloned().collect()
    }

    /// At a gateway: the cloud's words, if it locked this machine out.
    #[must_use]
    pub fn locked_out(&self) -> Option<String> {
        let said = self.locked_out.lock();
        said.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note_lock(&self, why: Option<&str>) {
        let said = self.locked_out.lock();
        let mut said = said.unwrap_or_else(PoisonError::into_inner);
        if said.as_deref() == why {
            return;
        }
        match why {
            Some(why) => tracing::error!(why, "the cloud locked this gateway out"),
            None => tracing::info!("the cloud lets this gateway in again"),
        }
        *said = why.map(str::to_owned);
    }

    /// Entries that are authentic, but whose claims do not hold.
    ///
    /// # Errors
    /// Our own store.
    pub fn disbelieved(&self) -> Result<Vec<RefusedRow>, StoreError> {
        self.core.registry.read(|view| view.refused())
    }

    /// Keeps where the other server said that it is reached.
    ///
    /// # Errors
    /// Our own store.
    pub async fn heard_of(&self, peer: PeerRow) -> Result<(), StoreError> {
        let known = self.core.registry.read(|view| view.peers())?;
        if known.contains(&peer) {
            return Ok(());
        }
        let done: Written<()> = self
            .core
            .registry
            .write(move |it| Ok(it.tables.put_peer(&peer)?))
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })
    }

    /// Where this server is reached, as it tells the other.
    #[must_use]
    pub fn about_us(&self) -> PeerRow {
        let (config, advertise) = (&self.core.config, self.core.advertise());
        PeerRow {
            server: config.server.clone(),
            site: match &config.role {
                Role::Cloud => SiteId::of_cloud(),
                Role::Gateway { site } => site.clone(),
            },
            mqtt: advertise.mqtt,
            https: advertise.https,
        }
    }
}

/// Largest batch, bytes of entries: a body of the API holds it as base64.
const MAX_BATCH_BYTES: usize = 512 * 1024;
