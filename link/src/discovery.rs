//! Finding and being found on the LAN by mDNS (RFC 6762) and DNS-SD (RFC 6763).
//!
//! Called by the gateway (announces itself) and by agents and the installer (look for it). What is
//! found is a hint where to knock, never a reason to trust.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, HostnameResolutionEvent, IfKind, Receiver, ResolvedService, ServiceDaemon,
    ServiceEvent, ServiceInfo, TxtProperty,
};
use tokio::time::{Instant, timeout_at};

/// The host name under which a gateway plays rendezvous on its LAN.
pub const RENDEZVOUS_HOST: &str = "holdfast-rv.local";
/// The service type under which gateways announce themselves.
pub const SERVICE_TYPE: &str = "_holdfast._tcp.local.";

/// After the first answer others are given this long to speak up.
const OTHERS: Duration = Duration::from_millis(250);
/// For the daemon to say goodbye to the LAN.
const FAREWELL: Duration = Duration::from_secs(1);
/// Addresses or sightings collected in one question; a LAN that tells more is lying.
const MOST_ANSWERS: usize = 64;

/// On which interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Interfaces {
    /// All but loopback.
    #[default]
    Lan,
    /// Only these, by name (`eth0`, `lo`).
    Named(Vec<String>),
}

impl Interfaces {
    fn admits(&self, interface: &if_addrs::Interface) -> bool {
        match self {
            Self::Lan => !interface.is_loopback(),
            Self::Named(names) => names.contains(&interface.name),
        }
    }
}

/// Addresses of this machine on `interfaces` that others can dial: no link-local IPv6, which means
/// nothing without an interface. In the order of the operating system.
///
/// # Errors
/// The operating system does not tell.
pub fn local_addresses(interfaces: &Interfaces) -> io::Result<Vec<IpAddr>> {
    let usable = |interface: &if_addrs::Interface| {
        interfaces.admits(interface)
            && match interface.ip() {
                IpAddr::V4(_) => true,
                IpAddr::V6(ip) => !ip.is_unicast_link_local(),
            }
    };
    Ok(if_addrs::get_if_addrs()?
        .into_iter()
        .filter(usable)
        .map(|interface| interface.ip())
        .collect())
}

/// Why discovery does not run or refuses what it was given.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// None of the interfaces named exists.
    #[error("no interface named {0}: check [discovery] interfaces, or switch discovery off")]
    NoInterface(String),
    /// The responder did not start, has stopped, or refuses a name.
    #[error("mDNS: {0}")]
    Mdns(#[from] mdns_sd::Error),
    /// The operating system does not list its interfaces.
    #[error("cannot list the network interfaces: {0}")]
    Interfaces(#[from] io::Error),
}

/// What a gateway tells about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The instance: the gateway's server id.
    pub instance: String,
    /// The host name to answer for, ending in `.local`.
    pub host: String,
    /// The addresses of the host. Empty: those of the interfaces, as they change.
    pub addresses: Vec<IpAddr>,
    /// The port of the service.
    pub port: u16,
    /// Further facts, as `site` or `https`.
    pub facts: Vec<(String, String)>,
}

/// A gateway seen on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The instance name.
    pub instance: String,
    /// Its host name.
    pub host: String,
    /// Its addresses, sorted.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Further facts.
    pub facts: Vec<(String, String)>,
}

/// The mDNS responder and querier of this process. Dropping it ends it and withdraws what was
/// announced.
pub struct Discovery {
    daemon: ServiceDaemon,
    events: Receiver<DaemonEvent>,
}

impl Discovery {
    /// Starts on the given interfaces.
    ///
    /// # Errors
    /// No socket, or no such interface.
    pub fn start(interfaces: &Interfaces) -> Result<Self, DiscoveryError> {
        let daemon = ServiceDaemon::new()?;
        let events = daemon.monitor()?;
        if let Interfaces::Named(names) = interfaces {
            let present = if_addrs::get_if_addrs()?;
            if !present.iter().any(|interface| interfaces.admits(interface)) {
                return Err(DiscoveryError::NoInterface(names.join(", ")));
            }
            daemon.disable_interface(IfKind::All)?;
            for name in names {
                daemon.enable_interface(IfKind::Name(name.clone()))?;
            }
        } else {
            daemon.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
        }
        Ok(Self { daemon, events })
    }

    /// Asks who is `host` (with or without the last dot); gives every address told shortly after
    /// the first answer, sorted, or none when nobody answers within `patience`. More than one party
    /// may answer: trust is for TLS and FDO.
    ///
    /// # Errors
    /// The name does not end in `.local`, or the responder is gone.
    pub async fn resolve(
        &self,
        host: &str,
        patience: Duration,
    ) -> Result<Vec<IpAddr>, DiscoveryError> {
        let host = dotted(host);
        let answers = self.daemon.resolve_hostname(&host, None)?;
        let mut found = BTreeSet::new();
        let mut deadline = Instant::now() + patience;
        while let Ok(Ok(event)) = timeout_at(deadline, answers.recv_async()).await {
            match event {
                HostnameResolutionEvent::AddressesFound(_, addresses) => {
                    if found.is_empty() {
                        deadline = deadline.min(Instant::now() + OTHERS);
                    }
                    let room = MOST_ANSWERS - found.len();
                    found.extend(addresses.iter().take(room).map(|ip| ip.to_ip_addr()));
                }
                HostnameResolutionEvent::AddressesRemoved(_, addresses) => {
                    for ip in addresses {
                        found.remove(&ip.to_ip_addr());
                    }
                }
                _ => {}
            }
        }
        self.daemon.stop_resolve_hostname(&host)?;
        Ok(found.into_iter().collect())
    }

    /// Announces a service and answers for its host, until withdrawn or dropped. Announcing the
    /// same instance again replaces what was told.
    ///
    /// # Errors
    /// A name is not one, or the responder is gone.
    pub fn announce(&self, announcement: &Announcement) -> Result<(), DiscoveryError> {
        let facts: Vec<TxtProperty> = announcement.facts.iter().map(TxtProperty::from).collect();
        let info = ServiceInfo::new(
            SERVICE_TYPE,
            &announcement.instance,
            &dotted(&announcement.host),
            announcement.addresses.as_slice(),
            announcement.port,
            facts,
        )?;
        let info = if announcement.addresses.is_empty() {
            info.enable_addr_auto()
        } else {
            info
        };
        self.daemon.register(info)?;
        Ok(())
    }

    /// Withdraws an announcement; the LAN is told.
    ///
    /// # Errors
    /// The responder is gone.
    pub async fn withdraw(&self, instance: &str) -> Result<(), DiscoveryError> {
        let done = self
            .daemon
            .unregister(&format!("{instance}.{SERVICE_TYPE}"))?;
        // Whether it was known or not: it is not told any more.
        let _ = timeout_at(Instant::now() + FAREWELL, done.recv_async()).await;
        Ok(())
    }

    /// Gateways announced on the LAN, as seen within `patience`, sorted by instance.
    ///
    /// # Errors
    /// The responder is gone.
    pub async fn browse(&self, patience: Duration) -> Result<Vec<Sighting>, DiscoveryError> {
        let seen = self.daemon.browse(SERVICE_TYPE)?;
        let deadline = Instant::now() + patience;
        let mut sightings: Vec<Sighting> = Vec::new();
        while let Ok(Ok(event)) = timeout_at(deadline, seen.recv_async()).await {
            if let ServiceEvent::ServiceResolved(service) = event
                && let Some(sighting) = sighting(&service)
            {
                sightings.retain(|known| known.instance != sighting.instance);
                if sightings.len() < MOST_ANSWERS {
                    sightings.push(sighting);
                }
            }
        }
        self.daemon.stop_browse(SERVICE_TYPE)?;
        sightings.sort_by(|a, b| a.instance.cmp(&b.instance));
        Ok(sightings)
    }

    /// The next name of ours that another party on the LAN claims: worth an alarm. Our side has
    /// already given way by a suffix to the name (RFC 6762, section 9). `None` when the responder is
    /// gone.
    pub async fn rivals(&self) -> Option<String> {
        loop {
            match self.events.recv_async().await {
                Ok(DaemonEvent::NameChange(change)) => return Some(change.original),
                Ok(DaemonEvent::Error(error)) => tracing::warn!(%error, "mDNS"),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        // Its thread says goodbye for every announcement and ends; nobody waits for it.
        let _ = self.daemon.shutdown();
    }
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Discovery")
    }
}

/// Who claims `host` on this LAN, by what was seen and by the addresses that were told for the name: more than one is
/// worth an alarm. A second gateway of ours gives way by a suffix to the name and counts as claiming it; addresses that
/// belong to no sighting are somebody else's.
#[must_use]
pub fn claimants(host: &str, seen: &[Sighting], told: &[IpAddr]) -> Vec<String> {
    let wanted = host.trim_end_matches('.').to_ascii_lowercase();
    let claims = |one: &&Sighting| is_renamed(&one.host.to_ascii_lowercase(), &wanted);
    let claiming: Vec<_> = seen.iter().filter(claims).collect();
    let known = |ip: &&IpAddr| claiming.iter().any(|one| one.addresses.contains(ip));
    let unknown: Vec<_> = told.iter().filter(|ip| !known(ip)).collect();
    let mut claimants: Vec<_> = claiming
        .iter()
        .map(|one| match one.addresses.first() {
            Some(ip) => format!("{} at {ip}", one.instance),
            None => one.instance.clone(),
        })
        .collect();
    // Nobody announced at all: the addresses may be one party's.
    if !claiming.is_empty() || unknown.len() > MOST_OF_ONE {
        claimants.extend(unknown.iter().map(|ip| format!("somebody at {ip}")));
    }
    claimants
}

/// One machine may have an address of each family on two interfaces.
const MOST_OF_ONE: usize = 4;

/// The name itself, or the name with the suffix by which its second claimant gave way (`name-2`, `name (2)`).
fn is_renamed(host: &str, wanted: &str) -> bool {
    if host == wanted {
        return true;
    }
    let (Some(host), Some(wanted)) = (host.strip_suffix(".local"), wanted.strip_suffix(".local"))
    else {
        return false;
    };
    let rest = host.strip_prefix(wanted).unwrap_or_default();
    let number = rest
        .trim_start_matches([' ', '-', '('])
        .trim_end_matches(')');
    !rest.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

fn dotted(host: &str) -> String {
    format!("{}.", host.trim_end_matches('.'))
}

fn sighting(service: &ResolvedService) -> Option<Sighting> {
    let instance = service.fullname.strip_suffix(SERVICE_TYPE)?;
    let addresses: BTreeSet<_> = service
        .addresses
        .iter()
        .take(MOST_ANSWERS)
        .map(|ip| ip.to_ip_addr())
        .collect();
    Some(Sighting {
        instance: instance.trim_end_matches('.').to_owned(),
        host: service.host.trim_end_matches('.').to_owned(),
        addresses: addresses.into_iter().collect(),
        port: service.port,
        facts: service
            .txt_properties
            .iter()
            .map(|fact| (fact.key().to_owned(), fact.val_str().to_owned()))
            .collect(),
    })
}

#[cfg(test)]
mod tests;
