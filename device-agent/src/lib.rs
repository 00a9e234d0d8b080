//! `holdfast-agent`: the device (party 10 of the onboarding, 210 of the service lifecycle).
//!
//! One process, few rooms: `cli` reads the command line, `app` owns the parts, `vault` holds who the
//! device is, `onboard` finds the owner and becomes its device, `network` keeps the LAN's credentials, `source` turns sensors into readings,
//! `outbox` keeps them until `connection` has had them acknowledged, `service` moves the device from one
//! service to the next and keeps it connected to the one it works for, `commands` keeps what it is told to do, `alternates` which servers it was told of, `status`
//! tells people about it.
//!
//! It never sends a reading that is not on its own disk, and never removes one that nobody has taken
//! over. Imports `protocol`, `config`, `store` and `link`, no other crate of the house.

pub mod alternates;
pub mod app;
pub mod cli;
pub mod commands;
pub mod config;
pub mod connection;
pub mod network;
pub mod onboard;
pub mod outbox;
pub mod renewal;
pub mod service;
pub mod signers;
pub mod source;
pub mod status;
pub mod vault;

#[cfg(test)]
mod kit;
