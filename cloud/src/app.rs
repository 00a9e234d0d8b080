//! The cloud as one value: [`build`] opens everything and binds every socket, [`App::run`] serves
//! until told to stop or until a part ends.
//!
//! Called by [`crate::cli`] and by tests (with port 0). Nothing runs before everything stands; at
//! the end the doors close first, then what moves data, then what keeps it.

mod error;
mod reach;
mod tasks;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::Broker;
use holdfast_config::HostPort;
use holdfast_config::secret_file;
use holdfast_cps::authority::is_private;
use holdfast_cps::{Cps, CpsConfig, FdoAddress, Keys, Role};
use holdfast_link::time::{SystemClock, SystemTrust};
use holdfast_link::tls::{Anchors, IdentitySlot};
use holdfast_server::bind::{self, Bound, Listeners};
use holdfast_server::intake::{Intake, Ledger, Unstamped};
use holdfast_server::opening;
use holdfast_server::reload::Reload;
use holdfast_server::users::Users;
use holdfast_store::Damaged;

pub use error::BuildError;

use crate::config::{Config, Log};
use crate::factory::{Factory, FactoryParts, rendezvous_info};
use crate::seller::Seller;
use crate::stock::Stock;

/// How long each stage of the parts may take to stop.
const GRACE: Duration = Duration::from_secs(6);
/// Under which name the factory of this installation is believed.
const OWN_FACTORY: &str = "own-factory";

/// The cloud, standing but not yet serving.
#[derive(Debug)]
pub struct App {
    pub(crate) config: Config,
    pub(crate) state: PathBuf,
    pub(crate) listeners: Listeners,
    /// Factory initialisation, if it is offered.
    pub(crate) manufacturing: Option<Bound>,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) cps: Cps,
    pub(crate) broker: Broker,
    pub(crate) users: Users,
    pub(crate) stock: Stock,
    pub(crate) factory: Arc<Factory>,
    pub(crate) intake: Intake,
    pub(crate) identity: IdentitySlot,
    pub(crate) anchors: Anchors,
    /// Stands in this server's certificate.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Opens keys and stores in `state`, making them at the first start, and binds all sockets.
///
/// # Errors
/// The first thing that cannot be opened, with what to do about it.
pub async fn build(config: Config, state: &Path) -> Result<App, BuildError> {
    secret_file::make_folder(state).map_err(|cause| BuildError::Folder {
        path: state.to_owned(),
        cause,
    })?;
    claim(state, &config)?;
    has_its_keys(state)?;
    let listeners = Listeners::bind(&config.listen.house, &config.clients).await?;
    let manufacturing = config.listen.manufacturing;
    let manufacturing = bind::some("listen.manufacturing", manufacturing).await?;
    let clock = Arc::new(SystemClock::open(
        &state.join("time"),
        SystemTrust::Vouched,
    )?);
    let reached = Reached::of(&config, &listeners)?;
    let cps = open_cps(&config, &reached, state, Arc::clone(&clock)).await?;
    let addresses = reached.certified(&listeners);
    let identity = IdentitySlot::with(cps.authority().own_identity(&addresses).await?);
    let anchors = cps.authority().trust();
    let users = opening::users(&cps, &config.clients)?;
    let bounds = (&config.limits.0, &config.journal);
    let (broker, epoch) = opening::broker(state, &cps, &users, bounds)?;
    let unstamped = Unstamped {
        server: config.server.clone(),
        epoch,
    };
    let intake = Intake::open(&broker, Ledger::Last, unstamped).await?;
    let (stock, factory) = open_seller(&config, &reached, state, Arc::clone(&clock))?;
    let own = OWN_FACTORY.parse().expect("a name");
    let lists = cps.lists();
    lists
        .believe_own(own, stock.public_key().key().clone())
        .await?;
    Ok(App {
        config,
        state: state.to_owned(),
        listeners,
        manufacturing,
        clock,
        cps,
        broker,
        users,
        stock,
        factory: Arc::new(factory),
        intake,
        identity,
        anchors,
        addresses,
    })
}

impl App {
    /// The sockets, bound.
    #[must_use]
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Where this server listens, as [`Listeners::addresses`] says.
    #[must_use]
    pub fn listening(&self) -> Vec<(String, SocketAddr)> {
        let mut all = self.listeners.addresses();
        let factory = self.manufacturing();
        all.extend(factory.map(|one| ("manufacturing".to_owned(), one)));
        all
    }

    /// The address of the manufacturing listener, if there is one.
    #[must_use]
    pub fn manufacturing(&self) -> Option<SocketAddr> {
        self.manufacturing.as_ref().map(|bound| bound.1)
    }

    /// What reads the clients with passwords again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload {
            file: self.config.clients.file.clone(),
            users: self.users.clone(),
            broker: self.broker.clone(),
        }
    }

    /// The CPS server inside.
    #[must_use]
    pub fn cps(&self) -> &Cps {
        &self.cps
    }

    /// The broker inside.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// The vouchers inside.
    #[must_use]
    pub fn stock(&self) -> &Stock {
        &self.stock
    }
}

/// A state folder belongs to one server of one domain, for all its keys and certificates say so.
fn claim(state: &Path, config: &Config) -> Result<(), BuildError> {
    let path = state.join("installation");
    let ours = format!("{} {}\n", config.server, config.domain);
    match std::fs::read_to_string(&path) {
        Ok(theirs) if theirs == ours => Ok(()),
        Ok(theirs) => Err(BuildError::OtherInstallation {
            state: state.to_owned(),
            found: theirs.trim().to_owned(),
            wanted: ours.trim().to_owned(),
        }),
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
            secret_file::write_public(&path, ours.as_bytes())
                .map_err(|cause| BuildError::Folder { path, cause })
        }
        Err(cause) => Err(BuildError::Folder { path, cause }),
    }
}

/// Keys are made at the first start and never again: a registry without its keys is half a backup, or a
/// folder that is not mounted.
fn has_its_keys(state: &Path) -> Result<(), BuildError> {
    let folder = state.join("keys");
    let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut keys = files.filter(|file| file.path().extension().is_some_and(|it| it == "key"));
    if opening::file(state, "registry").exists() && keys.next().is_none() {
        return Err(BuildError::KeysGone(folder));
    }
    Ok(())
}

/// How others reach the listeners.
#[derive(Debug)]
struct Reached {
    mqtt: Vec<HostPort>,
    https: Vec<HostPort>,
    fdo: Vec<HostPort>,
}

impl Reached {
    fn of(config: &Config, listeners: &Listeners) -> Result<Self, BuildError> {
        let told = &config.advertise;
        Ok(Self {
            mqtt: reach::reached(&told.mqtt, listeners.mqtt.1)?,
            https: reach::reached(&told.https, listeners.https.1)?,
            fdo: reach::reached(&told.fdo, listeners.fdo.1)?,
        })
    }

    /// Addresses for the certificate: those told to others and those listened on. Intermediates
    /// permit private ones only; a public server is known by its name.
    fn certified(&self, listeners: &Listeners) -> Vec<IpAddr> {
        let hosts = self
            .mqtt
            .iter()
            .chain(&self.https)
            .map(|reached| &reached.host);
        let told = hosts.filter_map(|host| host.parse().ok());
        let own = [listeners.mqtt.1.ip(), listeners.https.1.ip()];
        let mut addresses: Vec<IpAddr> = told.chain(own).collect();
        addresses.retain(|address| is_private(*address));
        addresses.sort();
        addresses.dedup();
        addresses
    }
}

async fn open_cps(
    config: &Config,
    reached: &Reached,
    state: &Path,
    clock: Arc<SystemClock>,
) -> Result<Cps, BuildError> {
    let mut wanted = CpsConfig::new(config.server.clone(), config.domain.clone(), Role::Cloud);
    let texts = |list: &[HostPort]| list.iter().map(ToString::to_string).collect();
    wanted.advertise.mqtt = texts(&reached.mqtt);
    wanted.advertise.https = texts(&reached.https);
    wanted.advertise.fdo = reached.fdo.iter().map(fdo_address).collect();
    wanted.limits.ledger_messages = config.telemetry.messages;
    wanted.limits.registration = config.rendezvous.registration;
    config.limits.0.fill(&mut wanted);
    let Log { entries, bytes } = config.limits.1;
    wanted.limits.log_entries_per_day = entries;
    wanted.limits.log_bytes_per_day = bytes.0;
    config.certificates.fill(&mut wanted.lives);
    let keys = Keys::open(&state.join("keys"))?;
    let stores = opening::stores(state)?;
    Ok(Cps::open(wanted, stores, keys, clock).await?)
}

fn fdo_address(reached: &HostPort) -> FdoAddress {
    let ip = reached.host.parse().ok();
    let dns = if ip.is_some() {
        None
    } else {
        Some(reached.host.clone())
    };
    FdoAddress {
        ip,
        dns,
        port: reached.port,
        tls: false,
    }
}

fn open_seller(
    config: &Config,
    reached: &Reached,
    state: &Path,
    clock: Arc<SystemClock>,
) -> Result<(Stock, Factory), BuildError> {
    use holdfast_link::time::Clock as _;
    let seller = Seller::open(&state.join("seller"), clock.now().secs)?;
    let owner = seller.vouchers.public();
    let options = opening::options("vouchers", Damaged::Refuse);
    let medium = opening::medium(state, "vouchers");
    let stock = Stock::open(medium, options, seller.vouchers)?;
    let rendezvous =
        rendezvous_info(&config.manufacturing, &reached.fdo).map_err(|_| BuildError::Directives)?;
    let limits = holdfast_cps::Limits::default();
    let factory = Factory::new(FactoryParts {
        authority: seller.factory,
        owner,
        stock: stock.clone(),
        rendezvous,
        certificate_life: config.manufacturing.certificate_life,
        most_in_stock: config.manufacturing.stock,
        clock,
        most_runs: config.limits.0.fdo_runs,
        run_life: limits.fdo_session_life,
    });
    Ok((stock, factory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_without_its_keys_is_no_cloud() {
        let folder = tempfile::tempdir().expect("folder");
        let (state, keys) = (folder.path(), folder.path().join("keys"));
        assert!(has_its_keys(state).is_ok(), "a first start");
        std::fs::create_dir(&keys).expect("folder");
        std::fs::write(opening::file(state, "registry"), b"x").expect("file");
        for unfit in [None, Some("revocations.a"), Some("ca-root.pem")] {
            if let Some(name) = unfit {
                std::fs::write(keys.join(name), b"x").expect("file");
            }
            let fault = has_its_keys(state).expect_err("no keys");
            assert!(fault.is_misuse(), "{fault}");
        }
        // The first key of a role is gone after it was rotated.
        std::fs::write(keys.join("record-2.key"), b"x").expect("file");
        assert!(has_its_keys(state).is_ok());
    }
}
