//! What was acknowledged is there: after a power cut at any moment, on a disk that fails, and after a real cut of a real
//! file system. Clients over real sockets keep a ledger of what they were told; afterwards they come back and compare.
//!
//! Each of the three has controls: planted defects, in the tests, that it must catch.

// Helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod failing;
mod images;
mod judge;
mod ledger;
mod power;
