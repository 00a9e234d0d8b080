//! `[listen]`: where a server listens for the parties of the house. Read by each binary's configuration,
//! which may have keys beside these.

use std::net::{Ipv4Addr, SocketAddr};

use holdfast_config::bounds::loopback;
use holdfast_config::{Section, Settings};

/// The keys of `[listen]` that both servers have; port 0 takes any free port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// MQTT over TLS.
    pub mqtt: SocketAddr,
    /// HTTPS: API and FDO.
    pub https: SocketAddr,
    /// HTTP: FDO only, which secures itself. No factory initialisation.
    pub fdo: SocketAddr,
    /// Health and metrics; loopback only.
    pub metrics: SocketAddr,
}

/// The ports that docs and firewalls know.
impl Default for Listen {
    fn default() -> Self {
        let all = Ipv4Addr::UNSPECIFIED;
        Self {
            mqtt: (all, 8883).into(),
            https: (all, 8443).into(),
            fdo: (all, 8042).into(),
            metrics: (Ipv4Addr::LOCALHOST, 9464).into(),
        }
    }
}

impl Settings for Listen {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            mqtt: section.get("mqtt", default.mqtt),
            https: section.get("https", default.https),
            fdo: section.get("fdo", default.fdo),
            metrics: section.get_checked("metrics", default.metrics, |address| {
                loopback(*address, "127.0.0.1:9464")
            }),
        }
    }
}
