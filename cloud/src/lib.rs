//! `holdfast-cloud`: the cloud pair of the gateways.
//!
//! Roles, all in one process by default: owner and registry (40) with its API and MQTT broker,
//! rendezvous (60), factory initialisation (90), voucher management (110). Its rooms: [`app`] builds
//! and runs it, [`config`] and [`cli`] are what the operator sees, [`factory`], [`seller`] and
//! [`stock`] are the seller's side, [`admin`] and [`metrics`] show what goes on.
//!
//! The registry, FDO's owner and the certificate authority are in `holdfast-cps`, the rest of what a
//! server is made of in `holdfast-server`, the same code as in the gateway; this crate wires them up
//! and adds what only the cloud has.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod factory;
pub mod metrics;
pub mod seller;
pub mod stock;
