//! `holdfast-gateway`: keeps a site working when its Internet link does not.
//!
//! Gateway (30), local CPS server (50), local rendezvous (70) with its relay, and the LAN's MQTT
//! broker. Its rooms: [`app`] builds and runs it, [`config`] and [`cli`] are what the operator sees,
//! [`identity`] is who it is, [`uplink`] watches the Internet link, [`bridge`] carries messages to
//! the cloud and back, [`discovery`] makes it known on the LAN, [`notices`] tells devices of their
//! services and [`alternates`] of the cloud, [`retired`] is what is left of a gateway that was replaced, [`rights`] answers the broker by certificate, [`intake`] fills the site's own ledger,
//! [`admin`] and [`metrics`] show what goes on.
//!
//! The registry, FDO's owner and the site's certificate authority are in `holdfast-cps`, the same
//! code as in the cloud. Nothing on the local path ever waits for the cloud.

pub mod admin;
pub mod alternates;
pub mod app;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod epoch;
pub mod identity;
pub mod intake;
pub mod metrics;
pub mod notices;
pub mod retired;
pub mod rights;
pub mod uplink;
