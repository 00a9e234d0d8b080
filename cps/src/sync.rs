//! Sync of the registry's log between the cloud (40) and a gateway (50): "what have you after my
//! cursor", at least once, idempotent. Entries are verified by their origin's key, and what they
//! claim by its evidence; nothing is believed because of who delivered it. The server side is
//! called by the HTTPS API, the client side runs in the gateway.

mod client;
mod holes;
mod judge;
mod replaced;
mod returned;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::record::{Admission, Cursor, EntryId, RecordFault, SignedEntry};
use holdfast_store::{StoreError, WriteError, Written};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use client::{Client, Exchange, SyncError};
pub use judge::Distrust;
pub use replaced::Replaced;
pub(crate) use returned::{Given, Mark, Wanted};

use crate::Core;
use crate::allowance::{self, Allowances};
use crate::config::Role;
use crate::refusals::{Refusals, Refused};
use crate::registry::Writing;
use crate::rotation::known::all_of_cloud;
use crate::tables::{PeerRow, RefusedRow};
use crate::turns::{self, Own, Turn, Unserved};

use holes::Holes;

/// The reason under which a gateway's delivery is counted that is over its allowance.
const OVER: &str = "over its allowance";

/// A piece of the log for the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Signed entries, of each origin in order.
    pub entries: Vec<Vec<u8>>,
    /// Whether there is more after them.
    pub more: bool,
    /// Numbers that this server lacks itself.
    pub missing: Vec<EntryId>,
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

/// Sync; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sync {
    core: Core,
    refusals: Refusals,
    /// At a gateway: why the cloud lets it in no more.
    locked_out: Arc<Mutex<Option<String>>>,
    /// At a gateway: what the cloud signed, if another machine took its place.
    replaced: watch::Sender<Option<Replaced>>,
    /// At the cloud: when each gateway asked last, and what it had.
    heard: Arc<Mutex<BTreeMap<ServerId, Heard>>>,
    /// At a gateway: its counter.
    own: Option<Own>,
    /// At the cloud: how much each gateway may still write today.
    allowances: Allowances,
}

/// A gateway as the cloud heard of it last, since the cloud's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When, unix seconds.
    pub at: u64,
    /// What it had of its site's log when it asked.
    pub cursor: Cursor,
}

impl Sync {
    pub(crate) fn new(core: Core, refusals: Refusals, own: Option<Own>) -> Self {
        Self {
            core,
            refusals,
            locked_out: Arc::default(),
            replaced: watch::Sender::new(None),
            heard: Arc::default(),
            own,
            allowances: Allowances::default(),
        }
    }

    /// At the cloud: takes what a gateway delivers of its site's log, as far as its allowance goes.
    /// The rest is left with it. `Ok(Err)`: nothing more today, and why.
    pub(crate) async fn deliver(
        &self,
        site: &SiteId,
        from: &ServerId,
        entries: &[Vec<u8>],
    ) -> Result<Result<Report, String>, StoreError> {
        let count = match self.core.cloud {
            None => self.allowances.take(&self.core, from, entries),
            Some(_) => entries.len(),
        };
        if count == 0 && !entries.is_empty() {
            let limits = &self.core.config.limits;
            let day = (limits.log_entries_per_day, limits.log_bytes_per_day);
            let why = allowance::sentence(from, day);
            self.core.metrics.refused("sync", OVER);
            tracing::warn!(gateway = %from, %site, "{why}");
            let row = (OVER, why.clone());
            self.refusals.turned_away((from, site), row).await?;
            return Ok(Err(why));
        }
        let report = self.accept(site, from, &entries[..count]).await?;
        self.allowances.give_back(from, report.repeated);
        Ok(Ok(report))
    }

    /// At the cloud: whether the gateway is the machine that it was, by the turn that it shows; see
    /// [`crate::turns`].
    pub(crate) async fn take_turn(
        &self,
        of: (&ServerId, &SiteId),
        shown: (Option<Turn>, Option<u64>),
    ) -> Result<(), Unserved> {
        turns::take(&self.core, &self.refusals, of, shown).await
    }

    /// At a gateway: whether another machine took its place, by the cloud's signed word.
    #[must_use]
    pub fn replaced(&self) -> watch::Receiver<Option<Replaced>> {
        self.replaced.subscribe()
    }

    /// At the cloud: when a gateway asked last, and what it had; `None` if not since the start.
    #[must_use]
    pub fn heard(&self, gateway: &ServerId) -> Option<Heard> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(gateway).cloned()
    }

    /// Notes that a gateway of ours asked. Its name comes from its certificate, so there are no more
    /// rows than gateways.
    pub(crate) fn note_heard(&self, gateway: &ServerId, cursor: &Cursor) {
        let heard = Heard {
            at: self.core.clock.now().secs,
            cursor: cursor.clone(),
        };
        let mut all = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(gateway.clone(), heard);
    }

    /// Believes the cloud's statement if it holds.
    fn note_replaced(&self, statement: &[u8]) {
        let own = self.core.cloud.as_ref();
        let keys = all_of_cloud(&self.core).unwrap_or_default();
        match own.and_then(|own| Replaced::verify_by(statement, own, &keys)) {
            Some(replaced) => {
                let epoch = replaced.epoch;
                if self.replaced.send_replace(Some(replaced)).is_none() {
                    tracing::error!(epoch, "another machine has taken this gateway's place");
                }
            }
            None => tracing::warn!("a statement that this gateway was replaced does not hold"),
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
        self.pull_with(site, cursor, &[], max)
    }

    /// The same, and before it what the other side passed over and still wants.
    ///
    /// # Errors
    /// Our own store.
    pub fn pull_with(
        &self,
        site: &SiteId,
        cursor: &Cursor,
        wanted: &[EntryId],
        max: usize,
    ) -> Result<Batch, StoreError> {
        let max = max.clamp(1, self.core.config.limits.sync_batch);
        let own = self.core.config.server.clone();
        self.core.registry.read(|view| {
            let mut spans = view.cursor(site)?.beyond(cursor);
            spans.sort_by_key(|span| span.origin != own);
            let mut batch = Filling::default();
            for id in wanted.iter().take(holes::MOST) {
                let entry = view.entry(site, id)?;
                _ = entry.is_none_or(|entry| batch.take(entry, max));
            }
            for span in spans {
                let of = (&span.origin, span.epoch);
                let entries = view.span(site, of, (span.first, span.last), max + 1)?;
                _ = entries.into_iter().all(|entry| batch.take(entry, max));
            }
            Ok(Batch {
                entries: batch.entries,
                more: batch.more,
                missing: view.holes(site)?,
            })
        })
    }

    /// One delivery of what a server wrote, from a number on.
    fn from(
        &self,
        site: &SiteId,
        whose: (&ServerId, u32),
        first: u64,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let max = self.core.config.limits.sync_batch;
        self.core.registry.read(|view| {
            let entries = view.span(site, whose, (first, u64::MAX), max)?;
            let mut batch = Filling::default();
            _ = entries.into_iter().all(|entry| batch.take(entry, max));
            Ok(batch.entries)
        })
    }

    /// Numbers of a site's log that were passed over and are still wanted.
    ///
    /// # Errors
    /// Our own store.
    pub fn wanted(&self, site: &SiteId) -> Result<Vec<EntryId>, StoreError> {
        self.core.registry.read(|view| view.holes(site))
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
        self.accept_with(site, from, entries, &[]).await
    }

    /// The same from a server that says which numbers it lacks itself.
    ///
    /// # Errors
    /// Our own store; the entries may be delivered again.
    pub async fn accept_with(
        &self,
        site: &SiteId,
        from: &ServerId,
        entries: &[Vec<u8>],
        missing: &[EntryId],
    ) -> Result<Report, StoreError> {
        let limit = self.core.config.limits.sync_batch;
        let mut authentic = Vec::new();
        let mut delivered = Vec::new();
        for bytes in entries.iter().take(limit) {
            match self.authenticate(site, from, bytes, &authentic) {
                Ok(entry) => {
                    authentic.push(entry.clone());
                    delivered.push(Ok(entry));
                }
                Err(refused) => delivered.push(Err(refused)),
            }
        }
        if delivered.is_empty() {
            return Ok(Report::default());
        }
        let party = self.refusals.party(from, site);
        let (report, refused) = self.take(site, &party, delivered, missing).await?;
        for one in &refused {
            self.refusals.tell(&party, site, one);
        }
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
    ) -> Result<SignedEntry, Refused> {
        let entry = SignedEntry::parse(bytes)
            .map_err(|fault: RecordFault| Refused::new(None, Distrust::Malformed(fault)))?;
        let fail = |distrust| Refused::new(Some(&entry), distrust);
        if entry.entry().site != *site {
            return Err(fail(Distrust::OtherSite(entry.entry().site.clone())));
        }
        let id = &entry.entry().id;
        let key = judge::key_of(&self.core, site, from, id, before).map_err(fail)?;
        entry
            .verify(&key)
            .map_err(|fault| fail(Distrust::Signature(fault)))?;
        Ok(entry)
    }

    /// Judges and takes what was delivered in one commit. An authentic entry that is not believed is
    /// kept and counts as received, so that it does not hold up what follows; it is never folded. In
    /// the place of one that is not authentic its number stays wanted.
    async fn take(
        &self,
        site: &SiteId,
        party: &str,
        delivered: Vec<Result<SignedEntry, Refused>>,
        missing: &[EntryId],
    ) -> Result<(Report, Vec<Refused>), StoreError> {
        let (site, core, party) = (site.clone(), self.core.clone(), party.to_owned());
        let missing = missing.to_vec();
        let done: Written<(Report, Vec<Refused>)> = self
            .core
            .registry
            .write(move |it| {
                let mut one = Delivery {
                    core: &core,
                    site: &site,
                    cursor: it.tables.cursor(&site)?,
                    holes: Holes::new(&site, &missing),
                    report: Report::default(),
                    refused: Vec::new(),
                };
                for entry in &delivered {
                    match entry {
                        Ok(entry) => one.authentic(it, entry)?,
                        Err(refused) => {
                            one.holes.spoilt();
                            one.refuse(refused.clone());
                        }
                    }
                }
                for refused in &one.refused {
                    Refusals::keep(it, (&party, &site), refused)?;
                }
                Ok((one.report, one.refused))
            })
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })
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

/// Entries on their way into the log.
struct Delivery<'a> {
    core: &'a Core,
    site: &'a SiteId,
    cursor: Cursor,
    holes: Holes,
    report: Report,
    refused: Vec<Refused>,
}

impl Delivery<'_> {
    fn authentic(&mut self, it: &mut Writing<'_>, entry: &SignedEntry) -> Result<(), WriteError> {
        let id = &entry.entry().id;
        match self.cursor.admits(id) {
            Admission::Known if !it.tables.remove_hole(self.site, id)? => {
                self.report.repeated += 1;
                return Ok(());
            }
            Admission::Gap { wanted } if !self.holes.pass(it, id, wanted)? => {
                self.report.early += 1;
                return Ok(());
            }
            Admission::Known => {}
            Admission::Gap { .. } | Admission::Next => self.cursor = holes::past(&self.cursor, id),
        }
        match judge::judge(self.core, it, entry)? {
            Ok(()) => {
                it.take(entry)?;
                self.report.taken += 1;
            }
            Err(distrust) => {
                it.refuse(entry, distrust.to_string())?;
                self.refuse(Refused::new(Some(entry), distrust));
            }
        }
        Ok(())
    }

    fn refuse(&mut self, refused: Refused) {
        self.report.refused.push(refused.distrust.to_string());
        self.refused.push(refused);
    }
}

/// A batch that fills.
#[derive(Default)]
struct Filling {
    entries: Vec<Vec<u8>>,
    bytes: usize,
    more: bool,
}

impl Filling {
    /// Whether there was room for it.
    fn take(&mut self, entry: SignedEntry, max: usize) -> bool {
        self.bytes += entry.as_bytes().len();
        let room = self.entries.len() < max && self.bytes <= MAX_BATCH_BYTES;
        match room {
            true => self.entries.push(entry.as_bytes().to_vec()),
            false => self.more = true,
        }
        room
    }
}

/// Largest batch, bytes of entries: a body of the API holds it as base64.
const MAX_BATCH_BYTES: usize = 512 * 1024;
