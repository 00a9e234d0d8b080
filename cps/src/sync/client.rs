//! Sync, the gateway's side: pulls what the cloud has, then pushes what it lacks, after each change
//! of ours and at an interval. Owned by the gateway's binary. Never decides what is believed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_link::https;
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::record::{Cursor, EntryId, MAX_ORIGINS};
use holdfast_store::StoreError;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Report, Sync, Wanted};
use crate::http::wire::{Denied, Number, Pull, Pulled, Push, Pushed, Return};
use crate::turns::Turn;

/// How often the cloud is asked when nothing changed here.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often a number that was passed over is asked for, and sent, again.
const WANTED_REST: Duration = Duration::from_secs(60);
/// Most rounds of one exchange, so that a peer that never ends ends here.
const MAX_ROUNDS: usize = 10_000;

/// Why an exchange failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The cloud was not reached.
    #[error("the cloud was not reached: {0}")]
    Link(#[from] https::Error),
    /// The cloud said no.
    #[error("the cloud refused to sync (HTTP {status}): {why}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        why: String,
    },
    /// The cloud says that another machine has our place, and signs it.
    #[error("the cloud refused to sync (HTTP 403): {why}")]
    Replaced {
        /// Its words.
        why: String,
        /// To be verified.
        statement: Vec<u8>,
    },
    /// Its answer makes no sense.
    #[error("the cloud's answer was not understood; it may be of another version")]
    Answer,
    /// This server is no gateway.
    #[error("only a gateway syncs with the cloud by itself")]
    NotHere,
    /// Our own store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What one exchange did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// Entries of the cloud.
    pub pulled: Report,
    /// Our entries, as the cloud reports.
    pub pushed: Report,
}

/// The gateway's side; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    sync: Sync,
    cloud: https::Client,
    /// When the cloud was asked for what we passed over, and sent what it did.
    asked: Arc<Mutex<Option<Instant>>>,
    sent: Arc<Mutex<Option<Instant>>>,
}

/// Whether it is time again; then the rest begins anew.
fn is_due(last: &Mutex<Option<Instant>>) -> bool {
    let (now, mut last) = (
        Instant::now(),
        last.lock().unwrap_or_else(PoisonError::into_inner),
    );
    let due = last.is_none_or(|last| now.duration_since(last) >= WANTED_REST);
    if due {
        *last = Some(now);
    }
    due
}

impl Client {
    /// A client of the cloud at the other end of `cloud`, which shows this gateway's certificate.
    #[must_use]
    pub fn new(cps: &crate::Cps, cloud: https::Client) -> Self {
        Self {
            sync: cps.sync().clone(),
            cloud,
            asked: Arc::default(),
            sent: Arc::default(),
        }
    }

    /// Syncs until cancelled: at once after a change here, else at an interval, with back-off
    /// while the cloud is away.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut backoff = Backoff::new(Policy::default());
        let mut changes = self.sync.core.registry.changes();
        loop {
            changes.mark_unchanged();
            // Into a silent link an exchange may take long; what it left undone is done after the next start.
            let Some(done) = cancel.run_until_cancelled(self.once()).await else {
                return;
            };
            let wait = match done {
                Ok(_) => {
                    backoff.worked();
                    INTERVAL
                }
                Err(error) => {
                    // The uplink's state is told elsewhere; this is a detail of it.
                    tracing::debug!(%error, "sync failed");
                    backoff.failed(&mut SystemRandom)
                }
            };
            let failing = backoff.failures() > 0;
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = changes.changed(), if !failing => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One whole exchange, both ways.
    ///
    /// # Errors
    /// See [`SyncError`]; what was exchanged so far stays.
    pub async fn once(&self) -> Result<Exchange, SyncError> {
        let done = self.exchange().await;
        match &done {
            Ok(_) => {
                self.sync.note_lock(None);
                self.sync.core.roster.revocation_list().heard();
            }
            Err(SyncError::Refused { status: 403, why }) => self.sync.note_lock(Some(why)),
            // Nothing is lost: it is delivered with the next exchanges.
            Err(SyncError::Refused { status: 429, why }) => {
                tracing::warn!(why, "the cloud takes no more of this site's log for now");
            }
            Err(SyncError::Replaced { why, statement }) => {
                self.sync.note_lock(Some(why));
                self.sync.note_replaced(statement);
            }
            Err(_) => {}
        }
        done
    }

    async fn exchange(&self) -> Result<Exchange, SyncError> {
        let site = self
            .sync
            .core
            .config
            .role
            .site()
            .cloned()
            .ok_or(SyncError::NotHere)?;
        let pulled = self.pull(&site).await?;
        let pushed = self.push(&site).await?;
        Ok(Exchange { pulled, pushed })
    }

    fn turn(&self) -> Option<Turn> {
        self.sync.own.as_ref()?.show()
    }

    fn answered(&self, shown: Option<&Turn>) {
        if let (Some(own), Some(shown)) = (&self.sync.own, shown) {
            own.answered(shown);
        }
    }

    async fn pull(&self, site: &SiteId) -> Result<Report, SyncError> {
        let cloud = self
            .sync
            .core
            .cloud
            .as_ref()
            .ok_or(SyncError::NotHere)?
            .server();
        let mut sum = Report::default();
        let mut wanted = self.sync.wanted(site)?;
        if wanted.is_empty() || !is_due(&self.asked) {
            wanted.clear();
        }
        let mut given_back = false;
        for _ in 0..MAX_ROUNDS {
            let cursor = self.sync.cursor(site)?;
            let max = self.sync.core.config.limits.sync_batch;
            let ask = Pull {
                cursor: cursor.to_cbor(),
                max,
                wanted: wanted.drain(..).map(Into::into).collect(),
                about: self.sync.about_us(),
                turn: self.turn(),
                mark: self.sync.mark(site)?,
            };
            let answer: Pulled = self.post("/api/v1/sync/pull", &ask).await?;
            self.answered(ask.turn.as_ref());
            self.sync.heard_of(answer.about).await?;
            if answer.forgotten && !given_back {
                given_back = true;
                self.give_back(site).await?;
                continue;
            }
            let entries: Vec<Vec<u8>> = answer.entries.into_iter().map(|one| one.0).collect();
            if entries.is_empty() {
                return Ok(sum);
            }
            let missing = entry_ids(answer.missing)?;
            let taken = self.sync.accept_with(site, &cloud, &entries, &missing);
            let report = taken.await?;
            // No progress: the rest would be the same again.
            let stuck = self.sync.cursor(site)? == cursor;
            sum.add(report);
            if stuck || !answer.more {
                return Ok(sum);
            }
        }
        Ok(sum)
    }

    /// The cloud was set back to an older copy: what it signed since goes back to it.
    async fn give_back(&self, site: &SiteId) -> Result<(), SyncError> {
        let marks = self.sync.marks(site)?;
        let mut wanted = Wanted::default();
        for _ in 0..MAX_ROUNDS {
            let entries = match wanted.first {
                Some(first) => self.sync.of_cloud_from(site, first)?,
                None => Vec::new(),
            };
            let tell = Return {
                marks: marks.clone(),
                entries: entries.into_iter().map(crate::enrol::Bytes).collect(),
                comparing: wanted.comparing,
                turn: self.turn(),
            };
            let answer: Wanted = self.post("/api/v1/sync/return", &tell).await?;
            self.answered(tell.turn.as_ref());
            if answer.first.is_none() || answer == wanted {
                return Ok(());
            }
            wanted = answer;
        }
        Ok(())
    }

    async fn push(&self, site: &SiteId) -> Result<Report, SyncError> {
        let own = self.sync.core.config.server.clone();
        let epoch = self.sync.core.registry.epoch()?;
        let mut sum = Report::default();
        let (mut theirs, mut again): (Option<Cursor>, Vec<Vec<u8>>) = (None, Vec::new());
        for _ in 0..MAX_ROUNDS {
            let mut batch = match &theirs {
                None => Vec::new(),
                Some(cursor) => self.own_after(site, (&own, epoch), cursor)?,
            };
            batch.splice(0..0, again.drain(..));
            if theirs.is_some() && batch.is_empty() {
                return Ok(sum);
            }
            let entries = batch.into_iter().map(crate::enrol::Bytes).collect();
            let tell = Push {
                entries,
                about: self.sync.about_us(),
                turn: self.turn(),
            };
            let answer: Pushed = self.post("/api/v1/sync/push", &tell).await?;
            self.answered(tell.turn.as_ref());
            let cursor = Cursor::from_cbor(&answer.cursor).map_err(|_| SyncError::Answer)?;
            let wanted = entry_ids(answer.wanted)?;
            if theirs.is_none() && !wanted.is_empty() && is_due(&self.sent) {
                again = self.own_among(site, (&own, epoch), &wanted)?;
            }
            let stuck = theirs.as_ref() == Some(&cursor);
            theirs = Some(cursor);
            sum.add(answer.report);
            if stuck {
                return Ok(sum);
            }
        }
        Ok(sum)
    }

    fn own_after(
        &self,
        site: &SiteId,
        (own, epoch): (&ServerId, u32),
        theirs: &Cursor,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let first = theirs.after(own, epoch).saturating_add(1);
        self.sync.from(site, (own, epoch), first)
    }

    /// Of what the cloud passed over, what we wrote.
    fn own_among(
        &self,
        site: &SiteId,
        (own, epoch): (&ServerId, u32),
        wanted: &[EntryId],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let ours = wanted
            .iter()
            .filter(|id| id.origin == *own && id.epoch == epoch);
        let ours: Vec<_> = ours.take(super::holes::MOST).collect();
        self.sync.core.registry.read(|view| {
            let mut entries = Vec::new();
            for id in ours {
                let entry = view.entry(site, id)?;
                entries.extend(entry.map(|entry| entry.as_bytes().to_vec()));
            }
            Ok(entries)
        })
    }

    async fn post<A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        ask: &impl Serialize,
    ) -> Result<A, SyncError> {
        let body = serde_json::to_vec(ask).expect("plain strings and numbers");
        let response = self.cloud.post(path, "application/json", body).await?;
        if !response.status.is_success() {
            let status = response.status.as_u16();
            let said = serde_json::from_slice::<Denied>(&response.body).unwrap_or_default();
            let why = said.error;
            return Err(match said.replaced {
                Some(statement) => SyncError::Replaced {
                    why,
                    statement: statement.0,
                },
                None => SyncError::Refused { status, why },
            });
        }
        serde_json::from_slice(&response.body).map_err(|_| SyncError::Answer)
    }
}

fn entry_ids(numbers: Vec<Number>) -> Result<Vec<EntryId>, SyncError> {
    let ids = numbers.into_iter().take(super::holes::MOST * MAX_ORIGINS);
    let ids = ids.map(|one| one.try_into().map_err(|_| SyncError::Answer));
    ids.collect()
}

impl Report {
    fn add(&mut self, other: Self) {
        self.taken += other.taken;
        self.repeated += other.repeated;
        self.early += other.early;
        self.refused.extend(other.refused);
    }
}
