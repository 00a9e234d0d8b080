//! The broker from outside: every test speaks to it over real sockets, in bytes or with stock
//! clients. Where a test's name holds a number, it is the normative statement of MQTT 5.0 (`mqtt5_`)
//! or 3.1.1 (`mqtt311_`) that it checks.
//!
//! Nothing here looks into the broker except through its public handle.

// Helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod kit;

mod answers;
mod busy;
mod certificates;
mod connect;
mod figures;
mod flow;
mod foreign;
mod full;
mod fuzz;
mod hostile;
mod kept;
mod ledger;
mod legal;
mod memory;
mod publish;
mod quota;
mod reasons;
mod rights;
mod rules;
mod session;
mod shared;
mod stock;
mod subscribe;
mod web;
mod will;
