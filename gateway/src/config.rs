//! What `holdfast-gateway` can be told in its configuration file; [`Config`] is the entry point.
//!
//! Every key has a default. What belongs to the site (its name, the domain, the cloud's addresses)
//! is not here: the gateway learns it when it enrols ([`crate::identity`]). Read by [`crate::cli`],
//! used by [`crate::app`]. The commented sample is `config/gateway.toml`; a test holds the two
//! together. Nothing here opens a socket; of files, only those that `[[remote]]` and `[clients]`
//! name are looked at.

mod bridge;
mod certificates;
mod loops;
mod remote;

use std::net::IpAddr;
use std::time::Duration;

use holdfast_config::bounds::{at_least, between};
use holdfast_config::{HostPort, Section, Settings};
use holdfast_cps::HandoverPolicy;
use holdfast_protocol::uplink;
use holdfast_server::config::{Clients, Journal, Listen, Peers, batch};

pub use bridge::{Direction, Rule, moved};
pub use remote::{CLOUD, Identity, Login, Remote, Version};

pub use self::certificates::Certificates;

/// Everything `holdfast-gateway` can be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// Where this process listens.
    pub listen: Listen,
    /// How devices reach it.
    pub advertise: Advertise,
    /// How it makes itself known on the LAN.
    pub discovery: Discovery,
    /// The cloud's addresses, where those learned at enrolment do not fit.
    pub cloud: Cloud,
    /// How the state of the Internet link is told.
    pub uplink: Uplink,
    /// Brokers of others.
    pub remotes: Vec<Remote>,
    /// Topic rules beside the built-in ones.
    pub bridge: Vec<Rule>,
    /// From whom vouchers are taken.
    pub vouchers: Vouchers,
    /// Ordinary MQTT clients, beside those of the house.
    pub clients: Clients,
    /// The broker's durable messages.
    pub journal: Journal,
    /// What is kept of the telemetry at the site.
    pub telemetry: Telemetry,
    /// Bounds on what peers may make this process hold.
    pub limits: Limits,
    /// Lives of certificates.
    pub certificates: Certificates,
}

/// `[advertise]`: the LAN addresses given to devices and put into the gateway's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advertise {
    /// Empty means: the listening address, or every address of this machine if that is a wildcard.
    pub addresses: Vec<IpAddr>,
}

/// `[discovery]`: mDNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Whether the gateway answers at all.
    pub enabled: bool,
    /// Names of network interfaces; empty means all but the loopback one.
    pub interfaces: Vec<String>,
    /// The host name that devices carry from the factory.
    pub host: String,
}

/// `[cloud]`: replaces addresses learned at enrolment; empty lists keep them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cloud {
    /// The cloud's MQTT broker.
    pub mqtt: Vec<HostPort>,
    /// The cloud's HTTPS API.
    pub https: Vec<HostPort>,
    /// The rendezvous server that TO1 is relayed to.
    pub fdo: Vec<HostPort>,
}

/// `[uplink]`: how the state of the Internet link is told; see [`uplink::Settings`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uplink(pub uplink::Settings);

/// `[vouchers]`: vouchers that are handed in over the LAN; their chain must hold in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vouchers {
    /// From whom.
    pub from: HandoverPolicy,
}

/// `[telemetry]`: what the site keeps for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telemetry {
    /// Whether devices' messages are kept here too, beside their way to the cloud.
    pub keep: bool,
    /// Messages kept of each topic of a device; the oldest go first.
    pub messages: u64,
    /// Rows that one commit takes from the journal.
    pub batch: usize,
}

/// `[limits]`: bounds on peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Those that the cloud has as well.
    pub peers: Peers,
    /// Messages on their way to each remote that it has not acknowledged yet.
    pub bridge_window: usize,
    /// How long a message that a remote denies is tried again before it is put aside.
    pub denied_for: Duration,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            enabled: true,
            interfaces: Vec::new(),
            host: "holdfast-rv.local".to_owned(),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            keep: true,
            messages: 10_000,
            batch: 512,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers: Peers::of(4096, 128),
            bridge_window: 512,
            denied_for: Duration::from_secs(600),
        }
    }
}

impl Settings for Config {
    fn read(section: &mut Section<'_>) -> Self {
        let config = Self {
            listen: section.section("listen"),
            advertise: section.section("advertise"),
            discovery: section.section("discovery"),
            cloud: section.section("cloud"),
            uplink: section.section("uplink"),
            remotes: section.sections("remote"),
            bridge: section.sections("bridge"),
            vouchers: section.section("vouchers"),
            clients: section.section("clients"),
            journal: section.section("journal"),
            telemetry: section.section("telemetry"),
            limits: section.section("limits"),
            certificates: section.section("certificates"),
        };
        bridge::check(section, &config.bridge, &config.remotes);
        config
    }
}

impl Settings for Advertise {
    fn read(section: &mut Section<'_>) -> Self {
        let usable = |list: &Vec<IpAddr>| match list.iter().find(|address| address.is_unspecified())
        {
            Some(address) => Err((
                format!("{address} is no address that a device can dial"),
                "write the gateway's addresses on the LAN".to_owned(),
            )),
            None => Ok(()),
        };
        Self {
            addresses: section.get_checked("addresses", Vec::new(), usable),
        }
    }
}

impl Settings for Discovery {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            enabled: section.get("enabled", default.enabled),
            interfaces: section.get("interfaces", default.interfaces),
            host: section.get_checked("host", default.host, |name| {
                if name.ends_with(".local") && name.len() > ".local".len() {
                    return Ok(());
                }
                let remedy = "mDNS answers only for names that end in \".local\"";
                Err((format!("{name:?} is no mDNS name"), remedy.to_owned()))
            }),
        }
    }
}

impl Settings for Cloud {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            mqtt: section.get("mqtt", Vec::new()),
            https: section.get("https", Vec::new()),
            fdo: section.get("fdo", Vec::new()),
        }
    }
}

impl Settings for Uplink {
    fn read(section: &mut Section<'_>) -> Self {
        let profile = section.get("profile", "standard".to_owned());
        let base = match profile.as_str() {
            "standard" => uplink::Settings::default(),
            "metered" => uplink::Settings::metered(),
            _ => {
                let remedy = "write \"standard\" or \"metered\"";
                section.fault("profile", "is no profile of ours", remedy);
                uplink::Settings::default()
            }
        };
        let settings = uplink::Settings {
            interval: section.get("probe_interval", base.interval),
            timeout: section.get("timeout", base.timeout),
            end_to_end_every: section.get("end_to_end_every", base.end_to_end_every),
            failures: section.get("failures", base.failures),
            successes: section.get("successes", base.successes),
            slow: section.get("slow", base.slow),
            hold: section.get("hold", base.hold),
            hold_max: section.get("hold_max", base.hold_max),
            calm: section.get("calm", base.calm),
            drained: section.get("drained", base.drained),
            notice_limit: base.notice_limit,
        };
        for fault in settings.check() {
            section.fault(
                "probe_interval",
                &format!("does not fit: {fault}"),
                "change these values",
            );
        }
        Self(settings)
    }
}

impl Settings for Vouchers {
    fn read(section: &mut Section<'_>) -> Self {
        let from = match section.get("from", "listed".to_owned()).as_str() {
            "listed" => HandoverPolicy::Listed,
            "anyone" => HandoverPolicy::AnyChain,
            _ => {
                let remedy = "write \"listed\" or \"anyone\"";
                section.fault("from", "is neither of the two", remedy);
                HandoverPolicy::Listed
            }
        };
        Self { from }
    }
}

impl Settings for Telemetry {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            keep: section.get("keep", default.keep),
            messages: section.get_checked("messages", default.messages, |count| {
                at_least(*count, 1, "1")
            }),
            batch: batch(section, default.batch),
        }
    }
}

impl Settings for Limits {
    fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        Self {
            peers: Peers::read(section, default.peers),
            bridge_window: section.get_checked("bridge_window", default.bridge_window, |count| {
                match *count {
                    1..=65_535 => Ok(()),
                    _ => Err((format!("{count} messages"), "write 1 to 65535".to_owned())),
                }
            }),
            denied_for: section.get_checked("denied_for", default.denied_for, |time| {
                between(
                    *time,
                    Duration::from_secs(1),
                    Duration::from_secs(30 * 24 * 3600),
                )
            }),
        }
    }
}

#[cfg(test)]
mod tests;
