//! `holdfast-installer`: what a person who installs devices carries: a signing key and a tool that
//! reads ownership vouchers, checks them, and extends them to the next owner (party 80).
//!
//! Called by `main`. It works without any network; nothing here ever speaks to a device.

pub mod cli;
mod key;
mod paper;
