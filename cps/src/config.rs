//! What a CPS server is told when it is opened: who it is, where it can be reached, how long its
//! certificates live and how much it takes on. The binaries fill this from their own TOML
//! sections; nothing here reads files. Every bound of this crate has its name and default here.

use std::net::IpAddr;
use std::time::Duration;

use holdfast_protocol::id::{Domain, ServerId, SiteId};

/// The site label under which a server logs what belongs to no site (its own certificates,
/// clients of the whole domain). No site may carry it, and sync never sends it.
pub const NO_SITE: &str = "servers";

/// One CPS server: the remote one (40) or the local one of a site (50).
#[derive(Clone, Debug)]
pub struct CpsConfig {
    /// This server's name, one DNS label.
    pub server: ServerId,
    /// The DNS domain under which all names of this installation stand.
    pub domain: Domain,
    /// Which of the two it is.
    pub role: Role,
    /// Where devices and the other server reach it.
    pub advertise: Advertise,
    /// Lives of certificates.
    pub lives: Lives,
    /// Whether intermediates carry name constraints. Off only for TLS stacks that refuse them:
    /// a stolen site key can then speak for every other site.
    pub name_constraints: bool,
    /// From whom vouchers are taken that are handed in over the network.
    pub handover: HandoverPolicy,
    /// Bounds.
    pub limits: Limits,
}

impl CpsConfig {
    /// Defaults for everything but the three that have none.
    #[must_use]
    pub fn new(server: ServerId, domain: Domain, role: Role) -> Self {
        Self {
            server,
            domain,
            role,
            advertise: Advertise::default(),
            lives: Lives::default(),
            name_constraints: true,
            handover: HandoverPolicy::default(),
            limits: Limits::default(),
        }
    }
}

/// The two places a CPS server stands at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The remote CPS server (40): root of trust, all sites.
    Cloud,
    /// The local CPS server (50) of one site.
    Gateway {
        /// Its site.
        site: SiteId,
    },
}

impl Role {
    /// The one site of a gateway; none for the cloud, which serves them all.
    #[must_use]
    pub fn site(&self) -> Option<&SiteId> {
        match self {
            Self::Cloud => None,
            Self::Gateway { site } => Some(site),
        }
    }
}

/// From whom a handed-in voucher is taken, its chain being good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HandoverPolicy {
    /// From listed installers, or of listed manufacturers.
    #[default]
    Listed,
    /// From anybody: whoever holds a voucher of any make brings a device into the site.
    AnyChain,
}

/// Where this server is reached.
#[derive(Clone, Debug, Default)]
pub struct Advertise {
    /// FDO addresses, written into the rendezvous entry (TO0) in this order.
    pub fdo: Vec<FdoAddress>,
    /// `host:port` of the MQTT listener, in order of preference.
    pub mqtt: Vec<String>,
    /// `host:port` of the HTTPS listener, in order of preference.
    pub https: Vec<String>,
}

/// One address at which TO2 is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdoAddress {
    /// IP address, when it is fixed.
    pub ip: Option<IpAddr>,
    /// DNS name, when there is one.
    pub dns: Option<String>,
    /// TCP port.
    pub port: u16,
    /// HTTPS instead of HTTP.
    pub tls: bool,
}

/// Lives of what the authority issues.
#[derive(Clone, Debug)]
pub struct Lives {
    /// The root.
    pub root: Duration,
    /// A site's intermediate: the offline window of that site.
    pub issuer: Duration,
    /// Certificates of devices, services and clients.
    pub leaf: Duration,
    /// Certificates of servers and gateways.
    pub server: Duration,
    /// How long after its end a certificate may still be renewed by itself, at the one endpoint for it.
    pub grace: Duration,
    /// How old a site's intermediate grows before it is renewed, the cloud being in reach.
    pub issuer_renewal: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        const DAY: u64 = 24 * 60 * 60;
        Self {
            root: Duration::from_secs(20 * 365 * DAY),
            issuer: Duration::from_secs(3 * 365 * DAY),
            leaf: Duration::from_secs(365 * DAY),
            server: Duration::from_secs(365 * DAY),
            grace: Duration::from_secs(90 * DAY),
            issuer_renewal: Duration::from_secs(30 * DAY),
        }
    }
}

/// Every bound of this crate.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest FDO message body, bytes (go-fdo's default is the same).
    pub fdo_body: usize,
    /// Largest API request body, bytes.
    pub api_body: usize,
    /// Runs of one FDO protocol open at once; the oldest gives way.
    pub fdo_sessions: usize,
    /// How long an FDO run may stay open.
    pub fdo_session_life: Duration,
    /// Longest voucher accepted, bytes: an entry holds two, each extended once more.
    pub voucher_bytes: usize,
    /// Longest life of a rendezvous entry, whatever its owner asks.
    pub rendezvous_life: Duration,
    /// For how long this server asks its own vouchers to be registered.
    pub registration: Duration,
    /// Rendezvous entries in all; this server's own vouchers are registered beyond it. Anybody may
    /// register, so this bounds what strangers can fill the disk with.
    pub rendezvous_entries: u64,
    /// Entries in one sync batch.
    pub sync_batch: usize,
    /// Entries that one gateway may write into its site's log here in a day.
    pub log_entries_per_day: u64,
    /// Bytes of them.
    pub log_bytes_per_day: u64,
    /// Messages kept per (device, topic) in the ledger.
    pub ledger_messages: u64,
    /// Longest wait for a remote rendezvous before the local one answers.
    pub relay_wait: Duration,
    /// Connections served at once by one listener.
    pub connections: usize,
    /// Connections of one address (IPv4, or a /64 network of IPv6) served at once by one listener.
    pub connections_per_address: usize,
    /// TLS handshakes under way at once on one listener.
    pub handshakes: usize,
    /// Those of one address.
    pub handshakes_per_address: usize,
    /// Requests that one address may send to one listener each second; four times as many at once
    /// after a rest.
    pub requests_per_address: u32,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for a request's headers.
    pub headers: Duration,
    /// Time for a whole request, its body included.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            fdo_body: 65_535,
            api_body: 4 * 1024 * 1024,
            fdo_sessions: 1_024,
            fdo_session_life: Duration::from_secs(300),
            voucher_bytes: 20 * 1024,
            rendezvous_life: Duration::from_secs(7 * 24 * 60 * 60),
            registration: Duration::from_secs(7 * 24 * 60 * 60),
            rendezvous_entries: 20_000,
            sync_batch: 500,
            log_entries_per_day: 200_000,
            log_bytes_per_day: 1 << 30,
            ledger_messages: 1_000_000,
            relay_wait: Duration::from_secs(3),
            connections: 512,
            connections_per_address: 256,
            handshakes: 256,
            handshakes_per_address: 64,
            requests_per_address: 500,
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            request: Duration::from_secs(30),
        }
    }
}
