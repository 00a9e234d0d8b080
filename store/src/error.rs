//! What can go wrong in the store, by whose fault: the disk, the file, another process, the caller.
//!
//! Raised by every room of this crate. Cloneable, because one failed commit answers many callers.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A fault of the store. `Display` is one sentence for the operator.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The device or file system failed a call. The batch is lost; the store reopens by itself.
    #[error("the disk failed the store: {0}; check the disk and its free space")]
    Io(Arc<io::Error>),
    /// An earlier call failed, so this handle takes no more work until it is opened again.
    #[error("the store stopped after an earlier disk error and is being reopened")]
    Poisoned,
    /// The file system has no room left; only essential operations are taken, from the reserve.
    #[error("no space left for the store: free some disk space; it goes on by itself")]
    Full,
    /// The file is not a store of this version, or its content contradicts itself.
    #[error("{}: damaged store: {why}; restore it from a backup (if it is moved away, an empty one takes its place)", path.display())]
    Damaged {
        /// The file, or an empty path for a store without a file.
        path: PathBuf,
        /// What was found.
        why: Arc<str>,
    },
    /// Another process (or another handle in this one) has the file open.
    #[error("the store is in use by another process: stop that one first")]
    InUse,
    /// The writer is gone: it was closed, or its thread has ended.
    #[error("the store is closed")]
    Closed,
    /// A job, a schema or the engine panicked in mid-batch; the batch is lost, the file opened again.
    #[error("a defect stopped a write of the store; nothing of it was kept: please report it")]
    Panicked,
    /// The caller used the engine wrongly (wrong table type, table opened twice...).
    #[error("the store was used wrongly: {0}")]
    Misuse(Arc<str>),
}

impl StoreError {
    /// Whether the handle that raised this must be closed and opened again.
    #[must_use]
    pub fn poisons(&self) -> bool {
        !matches!(self, Self::Misuse(_) | Self::Full | Self::InUse)
    }

    /// Whether the disk refused for want of space.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full => true,
            Self::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ),
            _ => false,
        }
    }

    pub(crate) fn damaged(why: impl Into<String>) -> Self {
        Self::Damaged {
            path: PathBuf::new(),
            why: why.into().into(),
        }
    }

    pub(crate) fn at(self, file: &std::path::Path) -> Self {
        match self {
            Self::Damaged { why, .. } => Self::Damaged {
                path: file.to_owned(),
                why,
            },
            other => other,
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Self::damaged(error.to_string())
            }
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        use redb::Error;
        match error {
            Error::Io(error) => error.into(),
            Error::PreviousIo | Error::LockPoisoned(_) | Error::DatabaseClosed => Self::Poisoned,
            Error::Corrupted(why) => Self::damaged(why),
            Error::UpgradeRequired(version) => Self::damaged(format!("older format {version}")),
            Error::RepairAborted => Self::damaged("its repair was given up"),
            Error::DatabaseAlreadyOpen => Self::InUse,
            other => Self::Misuse(other.to_string().into()),
        }
    }
}

/// Why [`crate::Schema::apply`] stopped in mid-batch.
#[derive(Debug)]
pub enum Halt {
    /// The engine failed: the whole batch fails.
    Store(StoreError),
    /// The operation at this index is refused for a reason of its own: nothing of it stays, the
    /// operations before it are applied again and committed, the ones after it follow.
    Refused(usize),
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Why a [`crate::Store::write`] left nothing behind.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError<E = Infallible> {
    /// The job itself said no; the store is well.
    #[error("{0}")]
    Job(E),
    /// The store failed; after a failed commit whether the write is in is unknown until it is read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a job given to [`crate::Store::write`] returns: `?` works on every engine error; a refusal
/// of the job's own is `Err(WriteError::Job(e))`.
pub type Written<T, E = Infallible> = Result<T, WriteError<E>>;

macro_rules! from_engine {
    ($($kind:ident),*) => {$(
        impl From<redb::$kind> for StoreError {
            fn from(error: redb::$kind) -> Self {
                redb::Error::from(error).into()
            }
        }
        impl From<redb::$kind> for Halt {
            fn from(error: redb::$kind) -> Self {
                Self::Store(error.into())
            }
        }
        impl<E> From<redb::$kind> for WriteError<E> {
            fn from(error: redb::$kind) -> Self {
                Self::Store(error.into())
            }
        }
    )*};
}
from_engine!(
    StorageError,
    TableError,
    TransactionError,
    CommitError,
    CursorError,
    DatabaseError,
    SavepointError,
    SetDurabilityError
);
