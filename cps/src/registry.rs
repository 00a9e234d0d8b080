//! The registry: an append-only log of signed change entries, and the folds over it. Called by all
//! rooms that change registry truth, and by `sync` for what the other server says. An entry and
//! what follows from it are one commit. Nothing is ever taken out of the log.

mod standing;
mod times;
mod writing;

use std::sync::Arc;

use holdfast_link::time::Clock;
use holdfast_protocol::id::{DeviceId, ServerId, SiteId};
use holdfast_protocol::record::{Change, DeviceRecord, RecordFault};
use holdfast_store::{Store, StoreError, WriteError, Written};
use redb::ReadTransaction;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

pub(crate) use standing::{is_believed, record_of};
pub(crate) use writing::Writing;

use crate::keys::Keys;
use crate::roster::{Content, Roster};
use crate::tables::{Source, Tables};

/// Name of this server's enrolment number among the settings kept in the registry.
const EPOCH: &str = "epoch";

/// Why the registry did not take something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// Our own store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change does not fit into an entry.
    #[error("the change cannot be recorded: {0}")]
    Record(#[from] RecordFault),
}

/// A change to be recorded.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// Whose log; [`SiteId::of_cloud`] for what belongs to no site.
    pub(crate) site: SiteId,
    /// The device that it is about.
    pub(crate) device: Option<DeviceId>,
    /// What changed.
    pub(crate) change: Change,
}

/// The log, its folds, and the one who signs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    store: Store,
    author: Arc<Signing>,
    roster: Roster,
    written: watch::Sender<u64>,
    ordered: watch::Sender<u64>,
    /// Commits under way; each ends by itself.
    writes: TaskTracker,
}

/// Who writes here.
pub(crate) struct Signing {
    pub(crate) server: ServerId,
    pub(crate) keys: Keys,
    /// The log in which every rotation of this server's keys stands.
    pub(crate) home: SiteId,
    /// The cloud believes its own word about manufacturers and devices; a gateway the cloud's and
    /// its site's.
    pub(crate) at_cloud: bool,
    pub(crate) clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Signing")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Registry")
            .field("server", &self.author.server)
            .finish_non_exhaustive()
    }
}

impl Registry {
    pub(crate) fn new(store: Store, author: Signing, roster: Roster) -> Self {
        let author = Arc::new(author);
        Self {
            store,
            author,
            roster,
            written: watch::Sender::new(0),
            ordered: watch::Sender::new(0),
            writes: TaskTracker::new(),
        }
    }

    /// Reads on a snapshot.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(Tables<&ReadTransaction>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.store.read(|tx| read(Tables(tx)))
    }

    /// Records changes in one commit.
    pub(crate) async fn append(&self, drafts: Vec<Draft>) -> Result<(), RegistryError> {
        let done = self
            .write(move |it| -> Result<(), WriteError<RegistryError>> {
                drafts.iter().try_for_each(|draft| it.append(draft.clone()))
            })
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error.into(),
            WriteError::Job(error) => error,
        })
    }

    /// Runs a job over the tables in one commit; it may run more than once, so it must do nothing
    /// but use what it is given. Who asked may go away in the middle, as a peer that hangs up does:
    /// what is committed is told to those who wait for it all the same.
    pub(crate) async fn write<T, E, F>(&self, job: F) -> Written<T, E>
    where
        F: FnMut(&mut Writing<'_>) -> Result<T, WriteError<E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let registry = self.clone();
        let whole = async move { registry.write_and_tell(job).await };
        match self.writes.spawn(whole).await {
            Ok(done) => done,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            // The runtime ends, and with it whoever waits here.
            Err(_) => Err(StoreError::Closed.into()),
        }
    }

    async fn write_and_tell<T, E, F>(&self, mut job: F) -> Written<T, E>
    where
        F: FnMut(&mut Writing<'_>) -> Result<T, WriteError<E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let author = Arc::clone(&self.author);
        let changed = self
            .store
            .write(move |tx| {
                let mut writing = Writing::new(Tables(tx), &author);
                let value = job(&mut writing)?;
                Ok((value, writing.news()))
            })
            .await;
        let (value, news) = changed?;
        self.roster.issued(&news.issued);
        if news.ordered {
            self.ordered.send_modify(|version| *version += 1);
        }
        if news.appended {
            self.written.send_modify(|version| *version += 1);
        }
        if news.grants {
            self.refresh_roster()?;
        }
        Ok(value)
    }

    /// Brings what the brokers ask (revocations, clients, gateways) up to the last commit.
    pub(crate) fn refresh_roster(&self) -> Result<(), StoreError> {
        self.roster.refresh(|| {
            self.read(|view| {
                let certificates = view.certificates()?;
                let list = self.roster.revocation_list();
                let revoked = list.with(&certificates, self.author.clock.certain());
                Ok(Content::new(
                    certificates,
                    view.clients()?,
                    view.gateways()?,
                    &view.locks()?,
                    revoked,
                )
                .witnessed(view.witnessed()?))
            })
        })
    }

    /// Tells of new entries by this server.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Tells of new orders for devices, by whichever server.
    pub(crate) fn orders(&self) -> watch::Receiver<u64> {
        self.ordered.subscribe()
    }

    /// Everything known of one device.
    pub(crate) fn device(&self, device: DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        self.read(|view| record_of(view, device))
    }

    /// Throws all folds away and makes them again from the log.
    pub(crate) async fn rebuild(&self) -> Result<(), StoreError> {
        let done: Written<()> = self.write(|it| Ok(it.fold_all()?)).await;
        done.map_err(own)
    }

    /// This server's enrolment number, 1 at first.
    pub(crate) fn epoch(&self) -> Result<u32, StoreError> {
        self.read(|view| Ok(epoch_of(view.meta(EPOCH)?)))
    }

    pub(crate) async fn set_epoch(&self, epoch: u32) -> Result<(), StoreError> {
        let done: Written<()> = self
            .write(move |it| Ok(it.tables.put_meta(EPOCH, epoch.into())?))
            .await;
        done.map_err(own)
    }
}

fn own(error: WriteError) -> StoreError {
    match error {
        WriteError::Store(error) => error,
        WriteError::Job(never) => match never {},
    }
}

/// This server's enrolment number, 1 at first.
pub(crate) fn epoch_in<S: Source>(view: Tables<S>) -> Result<u32, StoreError> {
    Ok(epoch_of(view.meta(EPOCH)?))
}

fn epoch_of(kept: Option<u64>) -> u32 {
    kept.and_then(|epoch| u32::try_from(epoch).ok())
        .unwrap_or(1)
}
