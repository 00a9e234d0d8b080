//! The gateway as one value: [`build`] opens everything and binds every socket, [`App::run`] serves
//! until told to stop or until a part ends.
//!
//! Called by [`crate::cli`] and by tests (with port 0). It needs no cloud: what belongs to the site
//! was learnt at enrolment. At the end the doors close first, then the bridge and what else moves
//! data, then what keeps it; the stores' writers last.

mod error;
mod tasks;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::Broker;
use holdfast_config::{HostPort, secret_file};
use holdfast_cps::enrol::Cloud;
use holdfast_cps::{Cps, CpsConfig, Keys, Role};
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::time::{Clock, Doubting, SystemClock, SystemTrust};
use holdfast_link::tls::{Anchors, IdentitySlot, Trust, client_config};
use holdfast_link::{fdo, https};
use holdfast_server::bind::Listeners;
use holdfast_server::intake::{Intake, Ledger, Unstamped};
use holdfast_server::opening;
use holdfast_server::reload::Reload;
use holdfast_server::users::Users;

pub use error::{BuildError, RunError};

use crate::bridge::{Bridge, DeadLetters, Stamp};
use crate::config::Config;
use crate::discovery::{Announcer, Ports};
use crate::uplink::{self, State, Watch};
use crate::{bridge, identity, retired};

/// How long each stage of the parts may take to stop.
const GRACE: Duration = Duration::from_secs(6);

/// The gateway, standing but not yet serving.
#[derive(Debug)]
pub struct App {
    pub(crate) config: Config,
    pub(crate) state: PathBuf,
    pub(crate) listeners: Listeners,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) cps: Cps,
    pub(crate) broker: Broker,
    pub(crate) users: Users,
    pub(crate) identity: IdentitySlot,
    pub(crate) anchors: Anchors,
    pub(crate) bridge: Bridge,
    /// The bridges to the brokers of others.
    pub(crate) foreign: Vec<Bridge>,
    pub(crate) intake: Option<Intake>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) watch: Watch,
    pub(crate) uplink: tokio::sync::watch::Receiver<State>,
    pub(crate) cloud: https::Client,
    pub(crate) announcer: Option<Announcer>,
    /// The gateway's addresses of the moment.
    pub(crate) lan: tokio::sync::watch::Sender<Vec<IpAddr>>,
}

/// Opens keys and stores in `state` and binds all sockets. The gateway must have enrolled.
///
/// # Errors
/// The first thing that cannot be opened, with what to do about it.
pub async fn build(config: Config, state: &Path) -> Result<App, BuildError> {
    secret_file::make_folder(state).map_err(|cause| BuildError::Folder {
        path: state.to_owned(),
        cause,
    })?;
    let cloud = Cloud::read(&identity::keys_folder(state))?.ok_or(BuildError::NotEnrolled)?;
    if let Some(replaced) = retired::look(state, &cloud)? {
        return Err(BuildError::Replaced(Box::new(replaced)));
    }
    let faults = bridge::beyond_rights(&config.bridge, &cloud.gateway(), &cloud.site());
    if !faults.is_empty() {
        return Err(BuildError::Rules(faults));
    }
    let listeners = Listeners::bind(&config.listen, &config.clients).await?;
    let clock = Arc::new(SystemClock::open(&state.join("time"), SystemTrust::Hint)?);
    let addresses = identity::lan_addresses(&config).map_err(BuildError::Interfaces)?;
    let ports = Ports::of(&listeners);
    let cps = open_cps(
        &config,
        &cloud,
        (&addresses, ports),
        state,
        Arc::clone(&clock),
    )
    .await?;
    identity::bound_clock(&clock, &cps.authority().chain(Some(&cloud.site()))?);
    let certified = identity::certified(&config, addresses.clone());
    let identity = IdentitySlot::with(cps.authority().own_identity(&certified).await?);
    let anchors = cps.authority().trust();
    let users = opening::users(&cps, &config.clients)?;
    let bounds = (&config.limits.peers, &config.journal);
    let (broker, began) = opening::broker(state, &cps, &users, bounds)?;
    // A gateway that was replaced or restored counts on from a higher enrolment.
    let epoch = (u64::from(cloud.epoch) << 32) | began;
    let unstamped = Unstamped {
        server: cloud.gateway(),
        epoch,
    };
    let intake = match config.telemetry.keep {
        true => Some(Intake::open(&broker, Ledger::Copy, unstamped).await?),
        false => None,
    };
    let ways = Ways::new(&config, &cloud, &identity, &anchors, &clock)?;
    cps.relay().set_remote(Some(ways.rendezvous.clone()));
    let dead_letters = DeadLetters::at(state.join("dead-letters.jsonl"));
    let parts = bridge::Parts {
        server: cloud.gateway(),
        site: cloud.site(),
        broker: broker.clone(),
        stamp: Stamp { epoch },
        clock: Arc::<SystemClock>::clone(&clock),
        window: config.limits.bridge_window,
        denied_for: config.limits.denied_for,
        dead_letters: dead_letters.clone(),
    };
    let (mut bridge, foreign) = open_bridges(&config, parts, ways.mqtt).await?;
    let (watch, uplink) = Watch::new(uplink::Parts {
        settings: config.uplink.0.clone(),
        site: cloud.site(),
        broker: broker.clone(),
        clock: Arc::clone(&clock),
        bridge: bridge.connection(),
        cloud: ways.probe,
        stranger: ways.stranger,
    });
    bridge.tell(uplink.clone());
    let (lan, _) = tokio::sync::watch::channel(addresses.clone());
    let announcer = Announcer::start(
        &config.discovery,
        &cloud.gateway(),
        &cloud.site(),
        addresses,
        ports,
    )?;
    Ok(App {
        config,
        state: state.to_owned(),
        listeners,
        clock,
        cps,
        broker,
        users,
        identity,
        anchors,
        bridge,
        foreign,
        intake,
        dead_letters,
        watch,
        uplink,
        cloud: ways.api,
        announcer,
        lan,
    })
}

impl App {
    /// The sockets, bound.
    #[must_use]
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
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

    /// The uplink's state as it changes.
    #[must_use]
    pub fn uplink(&self) -> tokio::sync::watch::Receiver<State> {
        self.uplink.clone()
    }

    /// How each remote stands, the cloud first.
    #[must_use]
    pub fn remotes(&self) -> Vec<bridge::Watched> {
        let all = std::iter::once(&self.bridge).chain(&self.foreign);
        all.map(Bridge::watched).collect()
    }

    /// The messages that wait for the cloud.
    #[must_use]
    pub fn backlog(&self) -> bridge::Backlog {
        self.bridge.backlog()
    }
}

/// The bridge to the cloud, and those to the brokers of others.
async fn open_bridges(
    config: &Config,
    parts: bridge::Parts,
    cloud: Endpoint,
) -> Result<(Bridge, Vec<Bridge>), BuildError> {
    bridge::leftover::keep(&parts.broker, &config.bridge).await?;
    let ping = config.uplink.0.timeout;
    let home = Bridge::to_cloud(parts.clone(), &config.bridge, cloud, ping).await?;
    let mut foreign = Vec::new();
    for remote in &config.remotes {
        foreign.push(Bridge::to_remote(parts.clone(), &config.bridge, remote.clone()).await?);
    }
    Ok((home, foreign))
}

/// The ways to the cloud, each by pinned trust; nothing is dialled yet.
#[derive(Debug)]
struct Ways {
    mqtt: Endpoint,
    /// For sync.
    api: https::Client,
    /// For the uplink's probes: impatient.
    probe: https::Client,
    /// The same without a certificate of ours.
    stranger: https::Client,
    rendezvous: fdo::Client,
}

impl Ways {
    fn new(
        config: &Config,
        cloud: &Cloud,
        identity: &IdentitySlot,
        anchors: &Anchors,
        clock: &Arc<SystemClock>,
    ) -> Result<Self, BuildError> {
        let clock: Arc<dyn Clock> = Arc::<SystemClock>::clone(clock);
        let trust = Trust::Anchors(anchors.clone());
        let tls = client_config(trust.clone(), Some(identity.clone()), Arc::clone(&clock))?;
        let bare = client_config(trust, None, Arc::new(Doubting(clock)))?;
        let told = |own: &[HostPort], learnt: &[String]| match own {
            [] => learnt.to_vec(),
            own => own.iter().map(ToString::to_string).collect(),
        };
        let endpoint = |addresses| Endpoint {
            addresses,
            security: Security::Tls {
                name: cloud.name(),
                config: Arc::clone(&tls),
            },
        };
        let api = endpoint(told(&config.cloud.https, &cloud.https));
        let rendezvous = match config.cloud.fdo.as_slice() {
            [] => api.clone(),
            own => Endpoint {
                addresses: own.iter().map(ToString::to_string).collect(),
                security: Security::Plain,
            },
        };
        let patience = config.uplink.0.timeout;
        let impatient = https::Limits {
            per_address: patience,
            deadline: patience,
            idle: 1,
            idle_for: config.uplink.0.interval * 3,
            ..https::Limits::default()
        };
        let stranger = Endpoint {
            security: Security::Tls {
                name: cloud.name(),
                config: bare,
            },
            ..api.clone()
        };
        Ok(Self {
            stranger: https::Client::new(stranger, impatient),
            mqtt: endpoint(told(&config.cloud.mqtt, &cloud.mqtt)),
            probe: https::Client::new(api.clone(), impatient),
            api: https::Client::new(api, https::Limits::default()),
            rendezvous: fdo::Client::new(rendezvous, "", https::Limits::default()),
        })
    }
}

async fn open_cps(
    config: &Config,
    cloud: &Cloud,
    (addresses, ports): (&[IpAddr], Ports),
    state: &Path,
    clock: Arc<SystemClock>,
) -> Result<Cps, BuildError> {
    let role = Role::Gateway { site: cloud.site() };
    let mut wanted = CpsConfig::new(cloud.gateway(), cloud.domain(), role);
    wanted.advertise = identity::advertise(addresses, ports);
    wanted.limits.ledger_messages = config.telemetry.messages;
    wanted.handover = config.vouchers.from;
    config.limits.peers.fill(&mut wanted);
    config.certificates.fill(&mut wanted.lives);
    let keys = Keys::open(&identity::keys_folder(state))?;
    let stores = opening::stores(state)?;
    Ok(Cps::open(wanted, stores, keys, clock).await?)
}
