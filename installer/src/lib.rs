//! `holdfast-installer`: what a person who installs devices carries: a signing key and a tool that
//! reads ownership vouchers, checks them, and extends them to the next owner (party 80).
//!
//! Called by `main`. Keys and voucher files need no network; only a gateway whose certificate comes
//! from the pinned root is ever handed a voucher. `pair` and `relay` speak to devices, at the address these
//! have from the factory.

pub mod cli;
mod desk;
mod gateway;
mod handed;
mod key;
mod pair;
mod paper;
mod relay;
mod serve;
mod trust;
