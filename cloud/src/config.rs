//! What `holdfast-cloud` can be told in its configuration file; [`Config`] is the entry point.
//!
//! Every key has a default, so that the cloud starts with no file at all. Read by [`crate::cli`],
//! used by [`crate::app`]. The commented sample is `config/cloud.toml`; a test holds the two
//! together. Nothing here opens a socket; of files, only that of `[clients]` is
//! looked at.

mod certificates;

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_config::bounds::{at_least, between};
use holdfast_config::{ByteSize, HostPort, Section, Settings};
use holdfast_protocol::id::{Domain, ServerId};
use holdfast_server::config::{Clients, Journal, Peers, batch};

pub use self::certificates::Certificates;

/// Port of the rendezvous name that every device carries (design: ports and paths).
const FDO_PORT: u16 = 8042;

/// Everything `holdfast-cloud` can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This server's name in entries and certificates.
    pub server: ServerId,
    /// The owner's DNS domain; every certificate name ends in it. Fixed at the first start.
    pub domain: Domain,
    /// Where this process listens.
    pub listen: Listen,
    /// How sites and devices reach it.
    pub advertise: Advertise,
    /// Which parties this process plays.
    pub roles: Roles,
    /// Where this owner's vouchers are registered.
    pub rendezvous: Rendezvous,
    /// What the factory writes into devices.
    pub manufacturing: Manufacturing,
    /// Ordinary MQTT clients, beside those of the house.
    pub clients: Clients,
    /// The broker's durable messages.
    pub journal: Journal,
    /// What is kept of the telemetry.
    pub telemetry: Telemetry,
    /// Bounds on what peers may make this process hold.
    pub limits: Limits,
    /// Lives of certificates.
    pub certificates: Certificates,
}

/// `[listen]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Listen {
    /// What a gateway has as well.
    pub house: holdfast_server::config::Listen,
    /// HTTP: factory initialisation (FDO DI), which asks nobody who he is. Left out: there is none.
    pub manufacturing: Option<SocketAddr>,
}

/// `[advertise]`: the addresses given to gateways and devices. Empty lists mean: the listening
/// address, and when that is the wildcard, every address of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertise {
    /// Reaches `listen.mqtt`.
    pub mqtt: Vec<HostPort>,
    /// Reaches `listen.https`.
    pub https: Vec<HostPort>,
    /// Reaches `listen.fdo`.
    pub fdo: Vec<HostPort>,
}

/// `[roles]`: the parties of the mission that this process plays; all of them by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Owner and registry (40), its API and the MQTT broker.
    pub cps: bool,
    /// Rendezvous server (60).
    pub rendezvous: bool,
    /// Device initialiser (90).
    pub manufacturing: bool,
    /// Voucher management server (110).
    pub vouchers: bool,
}

/// `[rendezvous]`: where the owner registers its vouchers (FDO TO0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Base addresses of the rendezvous server; empty means this process's own FDO listener.
    pub servers: Vec<HostPort>,
    /// How long a registration is asked to last; it is renewed at half of that.
    pub registration: Duration,
}

/// `[manufacturing]`: what factory initialisation (FDO DI) writes into a device, in this order of
/// directives: the gateway's name, the installer's fixed address, the Internet rendezvous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manufacturing {
    /// Name and port under which a site's gateway answers.
    pub gateway: HostPort,
    /// Fixed address of an installer, if the seller's installers have one.
    pub installer: Option<SocketAddr>,
    /// The rendezvous server on the Internet; empty means `advertise.fdo`.
    pub rendezvous: Vec<HostPort>,
    /// How long a device waits after a directive failed before it takes the next.
    pub delay: Duration,
    /// How long a device's factory certificate is valid.
    pub certificate_life: Duration,
    /// Devices made here whose vouchers have not left yet; no more are made then.
    pub stock: u64,
    /// Requests that one address may send each second; a device needs two.
    pub requests_per_address: u32,
}

/// `[telemetry]`: bounds of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telemetry {
    /// Messages kept of each topic of a device; the oldest go first.
    pub messages: u64,
    /// Rows that one commit takes from the journal into the ledger.
    pub batch: usize,
}

/// `[limits]`: bounds on peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits(pub Peers, pub Log);

/// What one gateway may write into its site's log here in a day; the keys of `[limits]` that the cloud
/// alone has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// `log_entries_per_day`.
    pub entries: u64,
    /// `log_bytes_per_day`.
    pub bytes: ByteSize,
}

/// The defaults of all sections, which are also what an empty file means.
impl Default for Config {
    fn default() -> Self {
        Self {
            server: "cloud".parse().expect("a valid label"),
            domain: "holdfast.internal".parse().expect("a valid domain"),
            listen: Listen::default(),
            advertise: Advertise::default(),
            roles: Roles::default(),
            rendezvous: Rendezvous::default(),
            manufacturing: Manufacturing::default(),
            clients: Clients::default(),
            journal: Journal::default(),
            telemetry: Telemetry::default(),
            limits: Limits::default(),
            certificates: Certificates::default(),
        }
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self {
            cps: true,
            rendezvous: true,
            manufacturing: true,
            vouchers: true,
        }
    }
}

impl Default for Rendezvous {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            registration: Duration::from_secs(24 * 3600),
        }
    }
}

impl Default for Manufacturing {
    fn default() -> Self {
        Self {
            gateway: HostPort {
                host: "holdfast-rv.local".to_owned(),
                port: FDO_PORT,
            },
            installer: None,
            rendezvous: Vec::new(),
            delay: Duration::from_secs(2),
            certificate_life: Duration::from_secs(30 * 365 * 24 * 3600),
            stock: 100_000,
            requests_per_address: 50,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            messages: 1_000_000,
            batch: 512,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let log = Log {
            entries: 200_000,
            bytes: ByteSize(1 << 30),
        };
        Self(Peers::of(8192, 256), log)
    }
}

impl Settings for Config {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            server: section.text("server").unwrap_or(default.server),
            domain: section.text("domain").unwrap_or(default.domain),
            listen: section.section("listen"),
            advertise: section.section("advertise"),
            roles: section.section("roles"),
            rendezvous: section.section("rendezvous"),
            manufacturing: section.section("manufacturing"),
            clients: section.section("clients"),
            journal: section.section("journal"),
            telemetry: section.section("telemetry"),
            limits: section.section("limits"),
            certificates: section.section("certificates"),
        }
    }
}

impl Settings for Listen {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            house: Settings::read(section),
            manufacturing: section.optional("manufacturing"),
        }
    }
}

impl Settings for Advertise {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            mqtt: section.get("mqtt", Vec::new()),
            https: section.get("https", Vec::new()),
            fdo: section.get("fdo", Vec::new()),
        }
    }
}

impl Settings for Roles {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let roles = Self {
            cps: section.get("cps", default.cps),
            rendezvous: section.get("rendezvous", default.rendezvous),
            manufacturing: section.get("manufacturing", default.manufacturing),
            vouchers: section.get("vouchers", default.vouchers),
        };
        if roles.manufacturing && !roles.vouchers {
            let what = "makes vouchers that nobody here would keep";
            section.fault("manufacturing", what, "set roles.vouchers = true as well");
        }
        roles
    }
}

impl Settings for Rendezvous {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            servers: section.get("servers", default.servers),
            registration: section.get_checked("registration", default.registration, |time| {
                between(
                    *time,
                    Duration::from_secs(60),
                    Duration::from_secs(365 * 24 * 3600),
                )
            }),
        }
    }
}

impl Settings for Manufacturing {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            gateway: section.get("gateway", default.gateway),
            installer: section.optional("installer"),
            rendezvous: section.get("rendezvous", default.rendezvous),
            delay: section.get_checked("delay", default.delay, |time| {
                between(*time, Duration::ZERO, Duration::from_secs(3600))
            }),
            certificate_life: section.get("certificate_life", default.certificate_life),
            stock: section.get_checked("stock", default.stock, |count| at_least(*count, 1, "1")),
            requests_per_address: section.get_checked(
                "requests_per_address",
                default.requests_per_address,
                |count| at_least(u64::from(*count), 2, "2"),
            ),
        }
    }
}

impl Settings for Telemetry {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            messages: section.get_checked("messages", default.messages, |count| {
                at_least(*count, 1, "1")
            }),
            batch: batch(section, default.batch),
        }
    }
}

impl Settings for Limits {
    fn read(section: &mut Section<'_>) -> Self {
        let Self(peers, log) = Self::default();
        let peers = Peers::read(section, peers);
        let entries = section.get_checked("log_entries_per_day", log.entries, |count| {
            at_least(*count, 100, "100")
        });
        let bytes = section.get_checked("log_bytes_per_day", log.bytes, |size| {
            at_least(size.0, 1 << 20, "1MiB")
        });
        Self(peers, Log { entries, bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sample() -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/cloud.toml");
        std::fs::read_to_string(path).expect("the sample is there")
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        assert_eq!(
            holdfast_config::parse(Path::new("x"), ""),
            Ok(Config::default())
        );
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        assert_eq!(
            holdfast_config::parse(Path::new("cloud.toml"), &sample()),
            Ok(Config::default())
        );
    }

    /// Every commented line of the sample that looks like a key must be one: a renamed key would
    /// otherwise live on in the sample for ever.
    #[test]
    fn the_sample_with_all_comments_removed_is_valid() {
        let open: String = sample()
            .lines()
            .map(|line| uncommented(line) + "\n")
            .collect();
        let folder = tempfile::tempdir().expect("folder");
        let clients = include_bytes!("../../config/clients.toml");
        holdfast_config::secret_file::write(&folder.path().join("clients.toml"), clients)
            .expect("file");
        let path = folder.path().join("cloud.toml");
        let config: Config = holdfast_config::parse(&path, &open).expect("valid");
        assert!(config.clients.tls.is_some() && config.clients.file.is_some());
        assert!(config.manufacturing.installer.is_some() && !config.advertise.mqtt.is_empty());
    }

    fn uncommented(line: &str) -> String {
        match line.strip_prefix("#") {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest.to_owned(),
            _ => line.to_owned(),
        }
    }

    #[test]
    fn all_faults_come_at_once() {
        let text = "domain = \"a b\"\n[listen]\nmetrics = \"0.0.0.0:1\"\nmqt = \"x\"\n\
                    [roles]\nvouchers = false\n[limits]\nconnections = 0\n";
        let faults = holdfast_config::parse::<Config>(Path::new("c"), text).expect_err("faulty");
        let keys: Vec<_> = faults
            .list()
            .iter()
            .map(|fault| fault.key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "domain",
                "listen.metrics",
                "listen.mqt",
                "roles.manufacturing",
                "limits.connections"
            ]
        );
    }
}
