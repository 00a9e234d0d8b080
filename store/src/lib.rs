//! `holdfast-store`: redb behind one writer thread with group commit, and a log before it for who wants one.
//!
//! Called by `broker` (its journal), `cps` (registry and ledger), and the device agent (its outbox). Knows
//! nobody's tables: the callers declare a [`Schema`] and operations of their own ([`Writer`]), or hand
//! in closures ([`Store`]); both run on the same engine.
//!
//! The promises, which `tests/` and [`fault`] hold it to:
//! - an operation is answered only after the commit that holds it: of the tables (two-phase, with quick repair), or for a
//!   schema that tells its batches in a log first, of its record there;
//! - after any failed I/O the handle counts as poisoned: the batch fails, is never retried, the file
//!   is opened again behind the callers, and [`Health`] tells;
//! - every queue and batch is bounded; a full mailbox makes the sender wait or gives the operation back.
//!
//! It never delays a commit to gather more, never caches more than 16 MiB, and never interprets a value.

pub mod fault;
pub mod twice;

mod engine;
mod error;
mod gather;
mod health;
mod log;
mod medium;
mod reader;
mod reserve;
mod store;
mod writer;

pub use error::{Halt, StoreError, WriteError, Written};
pub use health::{Health, State};
pub use medium::{Damaged, MAX_CACHE_BYTES, Medium, OpenBackend, Options, Quarantined};
pub use reader::Reader;
pub use store::Store;
pub use writer::{PATIENCE, Schema, SendError, TrySendError, Writer};
