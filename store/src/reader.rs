//! Reading beside the writer: snapshots that never wait for a commit.
//!
//! Held by whoever reads; clones are cheap and survive a reopening of the file. A read blocks its
//! thread for page faults only; long scans belong on a blocking thread.

use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadTransaction, ReadableDatabase, WriteTransaction};

use crate::StoreError;

/// Makes read transactions on the current handle of the store.
#[derive(Debug, Clone)]
pub struct Reader {
    slot: Arc<RwLock<Option<Database>>>,
}

impl Reader {
    /// A snapshot of the last commit. It ends with an error when the store is reopened meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`] while the store is being reopened, [`StoreError::Closed`] never.
    pub fn begin(&self) -> Result<ReadTransaction, StoreError> {
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let database = slot.as_ref().ok_or(StoreError::Poisoned)?;
        Ok(database.begin_read()?)
    }

    /// Runs `read` on a fresh snapshot.
    ///
    /// # Errors
    /// Those of [`Reader::begin`] and of `read` itself.
    pub fn read<T, E: From<StoreError>>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, E>,
    ) -> Result<T, E> {
        read(&self.begin()?)
    }

    pub(crate) fn new(database: Database) -> Self {
        Self {
            slot: Arc::new(RwLock::new(Some(database))),
        }
    }

    pub(crate) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        Ok(slot.as_ref().ok_or(StoreError::Poisoned)?.begin_write()?)
    }

    /// Closes the handle, or puts a fresh one in its place.
    pub(crate) fn replace(&self, database: Option<Database>) {
        let former = std::mem::replace(
            &mut *self.slot.write().unwrap_or_else(PoisonError::into_inner),
            database,
        );
        // Dropped outside the lock: closing a redb file may write.
        drop(former);
    }
}
