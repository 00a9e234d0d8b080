//! What Holdfast's parties say to each other and how they decide, as pure values and functions.
//!
//! FDO 1.1 (onboarding), ownership vouchers, signed records, topics, and the decisions that must be
//! testable without sleeping. Every other crate of the workspace calls this one; it calls none of
//! them and knows no sockets, files, clock or randomness of its own: time and randomness come in as
//! arguments.

pub mod alternate;
pub mod certificate;
pub mod credential;
pub mod crypto;
pub mod csr;
pub mod drain;
pub mod fdo;
#[cfg(test)]
mod fixture;
pub mod id;
pub mod key;
pub mod lan_module;
pub mod lifecycle;
pub mod name;
pub mod notice;
pub mod record;
pub mod renewal;
pub mod rights;
pub mod roots;
pub mod rv;
pub mod site_module;
pub mod succession;
pub mod time;
pub mod topic;
pub mod uplink;
pub mod voucher;
pub mod wire;
