//! Who this gateway is: its enrolment with the cloud, its certificate, the cloud it belongs to.
//!
//! `enrol` is run once by [`crate::cli`]; [`crate::app`] reads what it left. The protocol of the
//! enrolment is in [`holdfast_cps::enrol`]; here are the addresses it tells, the places of the
//! files, and errors that say what to do. Keys lie in `<state>/keys`, every file whole or not at
//! all, so that a kill at any point leaves a folder that the next try completes.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_config::{HostPort, secret_file};
use holdfast_cps::authority::{Followed, RenewalError, WINDOW_WARNING};
use holdfast_cps::enrol::{self, Cloud, EnrolError, Enrolling, Token};
use holdfast_cps::{Advertise, Cps, FdoAddress};
use holdfast_link::discovery::{Interfaces, local_addresses};
use holdfast_link::https;
use holdfast_link::time::{FloorError, SystemClock, SystemTrust};
use holdfast_link::tls::IdentitySlot;
use holdfast_protocol::certificate;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::discovery::Ports;

/// How often the gateway looks whether its certificate is due, and asks the cloud which roots hold.
const RENEWAL_CHECK: Duration = Duration::from_secs(10);
/// How often it looks whether its addresses have changed.
const ADDRESS_CHECK: Duration = Duration::from_secs(5);
/// How often while it has none: without an address nobody is served, and the certificate is empty.
const FIRST_ADDRESS_CHECK: Duration = Duration::from_millis(250);

/// The folder of the keys.
#[must_use]
pub fn keys_folder(state: &Path) -> PathBuf {
    state.join("keys")
}

/// Why the gateway did not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolFault {
    /// Done before.
    #[error(
        "this gateway is enrolled already, as {gateway} of site {site}; to enrol it anew give \
         --state an empty folder"
    )]
    Already {
        /// Its name.
        gateway: String,
        /// Its site.
        site: String,
    },
    /// The state folder belongs to the service's user, and we are another.
    #[error(
        "{} belongs to user {owner}, not to you: the gateway could not read what you leave there; \
         run this as its owner, such as: runuser -u holdfast-gateway -- holdfast-gateway enrol ...",
        path.display()
    )]
    OtherOwner {
        /// The folder.
        path: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// The state folder.
    #[error("cannot use {}: {cause}; give --state a folder that this user owns", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The machine's addresses.
    #[error("cannot tell this machine's addresses: {0}; write advertise.addresses")]
    Interfaces(std::io::Error),
    /// The time floor.
    #[error(transparent)]
    Clock(#[from] FloorError),
    /// The enrolment itself.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
}

impl EnrolFault {
    /// Whether the cloud could not be reached (as opposed to: it, or we, said no).
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Enrol(EnrolError::Unreachable(_)))
    }

    /// Whether the operator's input is at fault.
    #[must_use]
    pub fn is_misuse(&self) -> bool {
        match self {
            Self::Already { .. } | Self::OtherOwner { .. } => true,
            Self::Enrol(error) => {
                matches!(
                    error,
                    EnrolError::OtherGateway { .. } | EnrolError::Refused { .. }
                )
            }
            _ => false,
        }
    }
}

/// Enrols this gateway with the cloud reached at `cloud`.
///
/// # Errors
/// See [`EnrolFault`]; the same folder serves for the next try.
pub async fn enrol(
    config: &Config,
    state: &Path,
    cloud: &HostPort,
    token: &Token,
) -> Result<Cloud, EnrolFault> {
    let keys = keys_folder(state);
    check_owner(state)?;
    secret_file::make_folder(state).map_err(|cause| EnrolFault::Folder {
        path: state.to_owned(),
        cause,
    })?;
    if let Some(cloud) = Cloud::read(&keys).map_err(EnrolError::from)? {
        let (gateway, site) = (cloud.gateway().to_string(), cloud.site().to_string());
        return Err(EnrolFault::Already { gateway, site });
    }
    let clock = Arc::new(SystemClock::open(&state.join("time"), SystemTrust::Hint)?);
    let addresses = lan_addresses(config).map_err(EnrolFault::Interfaces)?;
    let at = |port: u16| {
        addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, port).to_string())
            .collect()
    };
    let enrolling = Enrolling {
        gateway: None,
        cloud: vec![cloud.to_string()],
        addresses: certified(config, addresses.clone()),
        mqtt: at(config.listen.mqtt.port()),
        https: at(config.listen.https.port()),
    };
    Ok(enrol::enrol(&keys, token, enrolling, clock).await?)
}

/// What root writes into the service user's folder, the service could not read.
fn check_owner(state: &Path) -> Result<(), EnrolFault> {
    // A process's own entry belongs to its effective user.
    let owner = |path: &Path| std::fs::metadata(path).map(|found| found.uid());
    match (owner(state), owner(Path::new("/proc/self"))) {
        (Ok(theirs), Ok(ours)) if theirs != ours => Err(EnrolFault::OtherOwner {
            path: state.to_owned(),
            owner: theirs,
        }),
        // A folder that is not there yet will be ours.
        _ => Ok(()),
    }
}

/// The gateway's addresses on the LAN, sorted: as told, or the listening one, or all.
///
/// # Errors
/// The operating system does not tell.
pub fn lan_addresses(config: &Config) -> std::io::Result<Vec<IpAddr>> {
    let listening = config.listen.mqtt.ip();
    let mut addresses = match (config.advertise.addresses.as_slice(), listening) {
        ([], ip) if !ip.is_unspecified() => vec![ip],
        ([], _) => local_addresses(&Interfaces::Lan)?,
        (told, _) => told.to_vec(),
    };
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

/// What others are told of the gateway: these addresses with the ports that it listens on.
#[must_use]
pub fn advertise(addresses: &[IpAddr], ports: Ports) -> Advertise {
    let at = |port| {
        addresses
            .iter()
            .map(move |ip| SocketAddr::new(*ip, port).to_string())
    };
    let fdo = |ip: &IpAddr| FdoAddress {
        ip: Some(*ip),
        dns: None,
        port: ports.fdo,
        tls: false,
    };
    Advertise {
        fdo: addresses.iter().map(fdo).collect(),
        mqtt: at(ports.mqtt).collect(),
        https: at(ports.https).collect(),
    }
}

/// Keeps what the gateway says of itself fresh and true: its certificate, for which it asks the
/// authority, its own and in need of no cloud, and its addresses, which may come late or change.
#[derive(Debug)]
pub struct Upkeep {
    /// Decides whether the certificate is due, and tells devices the addresses.
    pub cps: Cps,
    /// What the listeners show.
    pub slot: IdentitySlot,
    /// Where the addresses come from.
    pub config: Config,
    /// Bound by the listeners.
    pub ports: Ports,
    /// The cloud's API, for a new authority.
    pub cloud: https::Client,
    /// Learns the bounds of a new authority.
    pub clock: Arc<SystemClock>,
    /// The addresses of the moment, for all who tell them.
    pub lan: watch::Sender<Vec<IpAddr>>,
}

impl Upkeep {
    /// Looks now and then until cancelled. A cloud that does not answer keeps nobody from following
    /// the machine's addresses.
    pub async fn run(self, stop: CancellationToken) {
        let one = Mutex::new(());
        tokio::join!(
            self.keep_addresses(&one, &stop),
            self.keep_authority(&one, &stop)
        );
    }

    async fn keep_addresses(&self, one: &Mutex<()>, stop: &CancellationToken) {
        loop {
            let rest = match self.lan.borrow().is_empty() {
                true => FIRST_ADDRESS_CHECK,
                false => ADDRESS_CHECK,
            };
            let rest = tokio::time::sleep(rest);
            if stop.run_until_cancelled(rest).await.is_none() {
                return;
            }
            if self.follow_addresses() {
                self.renew(one).await;
            }
        }
    }

    async fn keep_authority(&self, one: &Mutex<()>, stop: &CancellationToken) {
        let mut changes = self.cps.authority().changes();
        loop {
            let rest = tokio::time::timeout(RENEWAL_CHECK, changes.changed());
            let Some(rested) = stop.run_until_cancelled(rest).await else {
                return;
            };
            match rested {
                // Somebody changed the authority: the certificate and the clock's bounds follow at once.
                Ok(_) => {
                    if let Ok(chain) = self.cps.authority().chain(self.cps.config().role.site()) {
                        bound_clock(&self.clock, &chain);
                    }
                }
                Err(_) => {
                    let asked = stop.run_until_cancelled(self.renew_authority());
                    if asked.await.is_none() {
                        return;
                    }
                }
            }
            self.renew(one).await;
        }
    }

    /// Takes over the machine's addresses; whether they have changed. A cable pulled out is no
    /// reason to forget them.
    fn follow_addresses(&self) -> bool {
        let Ok(addresses) = lan_addresses(&self.config) else {
            return false;
        };
        if addresses.is_empty() || *self.lan.borrow() == addresses {
            return false;
        }
        tracing::info!(?addresses, "the gateway's addresses have changed");
        self.cps.set_advertise(advertise(&addresses, self.ports));
        self.lan.send_replace(addresses);
        true
    }

    /// The site's intermediate: monthly, and when the cloud has another root, while the cloud is there.
    /// Without it the present one goes on.
    async fn renew_authority(&self) {
        let authority = self.cps.authority();
        match authority.follow(&self.cloud).await {
            Ok(Followed::Nothing) => return,
            // The change is heard by whoever keeps the certificate.
            Ok(Followed::Renewed | Followed::Dropped) => {}
            Err(RenewalError::Link(error)) => {
                tracing::debug!(%error, "the site's authority is renewed when the cloud is back");
            }
            Err(error) => tracing::warn!(%error, "the site's authority was not renewed"),
        }
        if !authority.is_intermediate_due().unwrap_or(false) {
            return;
        }
        let left = authority.window().ok().flatten();
        if let Some(left) = left.filter(|left| *left < WINDOW_WARNING) {
            tracing::warn!(
                days = left / 86_400,
                "the site can stay offline for this long only; let it reach its cloud"
            );
        }
    }

    /// One at a time, so that there is one certificate for one reason.
    async fn renew(&self, one: &Mutex<()>) {
        let _one = one.lock().await;
        let addresses = certified(&self.config, self.lan.borrow().clone());
        match self.cps.authority().own_identity(&addresses).await {
            Ok(identity) => self.slot.set(identity),
            Err(error) => tracing::error!(%error, "the gateway's certificate was not renewed"),
        }
    }
}

/// The site's authority bounds the time on both sides: it began to be valid some time ago, and a
/// time at which it is over is not believed from anybody.
pub fn bound_clock(clock: &SystemClock, chain: &[Vec<u8>]) {
    if let Some((from, to)) = chain.first().and_then(|der| certificate::validity(der)) {
        clock.never_after(to);
        clock.learn_least(from);
    }
}

/// The addresses for the gateway's certificate: those told to devices and those listened on, as far
/// as they are private, which is all that a site's authority may certify.
#[must_use]
pub fn certified(config: &Config, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.extend([config.listen.mqtt.ip(), config.listen.https.ip()]);
    addresses.retain(|address| holdfast_cps::authority::is_private(*address));
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, told: &[&str]) -> Config {
        let mut config = Config::default();
        config.listen.mqtt = listen.parse().expect("address");
        config.listen.https = listen.parse().expect("address");
        config.advertise.addresses = told
            .iter()
            .map(|text| text.parse().expect("address"))
            .collect();
        config
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn told_addresses_come_before_the_listening_one() {
        let told = config("192.168.1.10:1", &["192.168.1.12", "192.168.1.11"]);
        let addresses = lan_addresses(&told).expect("told");
        assert_eq!(texts(&addresses), ["192.168.1.11", "192.168.1.12"]);
        let both = certified(&told, addresses);
        assert_eq!(
            texts(&both),
            ["192.168.1.10", "192.168.1.11", "192.168.1.12"]
        );
        let own = lan_addresses(&config("192.168.1.10:1", &[])).expect("own");
        assert_eq!(texts(&own), ["192.168.1.10"]);
    }

    #[test]
    fn no_public_and_no_wildcard_address_is_certified() {
        let config = config("0.0.0.0:1", &["203.0.113.7", "10.0.0.1"]);
        let addresses = lan_addresses(&config).expect("told");
        assert_eq!(texts(&certified(&config, addresses)), ["10.0.0.1"]);
    }

    #[test]
    fn every_address_is_told_with_the_bound_ports() {
        let ports = Ports {
            fdo: 1,
            https: 2,
            mqtt: 3,
        };
        let told = advertise(&["10.0.0.1".parse().expect("address")], ports);
        assert_eq!(
            (told.mqtt, told.https),
            (vec!["10.0.0.1:3".into()], vec!["10.0.0.1:2".into()])
        );
        assert_eq!((told.fdo[0].port, told.fdo[0].tls), (1, false));
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        check_owner(folder.path()).expect("ours");
        check_owner(&folder.path().join("not there yet")).expect("will be ours");
        // Only root can give a folder away; elsewhere a folder of root stands in.
        let theirs = match std::os::unix::fs::chown(folder.path(), Some(12_345), None) {
            Ok(()) => folder.path(),
            Err(_) => Path::new("/"),
        };
        let fault = check_owner(theirs).expect_err("another user's");
        assert!(
            fault.is_misuse() && fault.to_string().contains("runuser"),
            "{fault}"
        );
    }
}
