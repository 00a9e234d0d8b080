//! `holdfast-gateway`: keeps a site working when its Internet link does not.
//!
//! Gateway (30), local CPS server (50), local rendezvous (70) with its relay, and the LAN's MQTT
//! broker. Its rooms: [`app`] builds and runs it, [`config`] and [`cli`] are what the operator sees,
//! [`identity`] is who it is, [`uplink`] watches the Internet link, [`bridge`] carries messages to
//! the cloud and back, [`discovery`] makes it known on the LAN, [`notices`] tells devices of their
//! services, [`retired`] is what is left of a gateway that was replaced, [`admin`] and [`metrics`]
//! show what goes on.
//!
//! The registry, FDO's owner and the site's certificate authority are in `holdfast-cps`, the rest of
//! what a server is made of in `holdfast-server`, the same code as in the cloud. Nothing on the local
//! path ever waits for the cloud.

pub mod admin;
pub mod app;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod identity;
pub mod metrics;
pub mod notices;
pub mod retired;
pub mod uplink;
