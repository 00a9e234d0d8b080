//! What gateway and cloud are both made of. Each of the two binaries wires these rooms up in its own
//! way; nothing else but tests may import this crate (docs/decisions/0007-a-common-crate.md).
//!
//! - [`bind`], [`doors`]: the sockets, and who is asked for what at each; [`opening`]: stores and broker.
//! - [`rights`]: answers the broker by certificate or user, from the one compiler in `holdfast-protocol`;
//!   [`users`]: the clients that come with a password; [`reload`]: reads their file again.
//! - [`intake`]: the broker's journal as the ledger's inbox; [`epoch`]: the count behind its stamps.
//! - [`retained`]: tells devices something by retained messages; [`alternates`]: of the other server, of keys.
//! - [`keepers`], [`metrics`], [`admin`]: what looks after a server, shows it, and is asked of it.
//! - [`config`]: sections of the configuration that both read.
//! - [`ask`] and [`cli`]: the command line's way to the running daemon, and the verbs both have.
//!
//! It has no `main`, opens no store, and never asks which of the two it is in: where they differ,
//! the caller hands in the difference.

pub mod admin;
pub mod alternates;
pub mod ask;
pub mod bind;
pub mod cli;
pub mod config;
pub mod doors;
pub mod epoch;
pub mod intake;
pub mod keepers;
pub mod metrics;
pub mod opening;
pub mod reload;
pub mod retained;
pub mod rights;
pub mod users;
