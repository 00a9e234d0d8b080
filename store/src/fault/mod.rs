//! A test kit: backends that crash and fail on purpose. Nothing in a running daemon uses it.
//!
//! [`CrashBackend`] records every write and sync and gives the images a power cut could leave;
//! [`FailingBackend`] fails the n-th call, once or for ever. Both are media for
//! [`crate::Medium::Backend`], so that every crate's durable rooms are tried with the same kit.

mod crash;
mod failing;

pub use crash::{CrashBackend, Image};
pub use failing::{Call, FailingBackend, Fault, Times};
