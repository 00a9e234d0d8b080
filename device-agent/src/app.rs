//! The agent as a whole: which parts there are, in what order they begin and end.
//!
//! Called by `cli`. Onboards first, then serves: the sensors fill the outbox, the connection empties
//! it. The first part to end by itself stops the others; the supervisor outside starts the agent
//! again. It decides nothing of the parts' work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::Context;
use holdfast_config::cli::{Misuse, Unavailable};
use holdfast_config::{life, secret_file};
use holdfast_link::discovery::Discovery;
use holdfast_link::time::{Clock, SystemClock, SystemTrust};
use holdfast_link::tls::Anchors;
use holdfast_protocol::certificate::{self, Leaf, Purpose};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::alternates::{Alternates, Servers};
use crate::commands::Commands;
use crate::config::{Config, Destination, Input};
use crate::connection::Connection;
use crate::network::NetworkFile;
use crate::onboard::Onboarding;
use crate::outbox::{Numbering, Outbox, Outboxes};
use crate::renewal::{Ordered, Renewal};
use crate::service::{Desk, File, Net, Pace, Services, Session};
use crate::source;
use crate::status::{Board, Lock, Phase};
use crate::vault::{Identity, Vault};

/// For a renewal by the command line.
const RENEWAL: Duration = Duration::from_secs(60);
/// For an orderly end.
const GRACE: Duration = Duration::from_secs(5);

/// The state folder, made if need be, for this process alone.
///
/// # Errors
/// What the operator must put right: it is not this user's, or another agent has it.
pub(crate) fn claim(state: &Path) -> anyhow::Result<Lock> {
    let shown = state.display();
    let unusable = || format!("cannot use {shown}; give --state a folder that this user owns");
    secret_file::make_folder(state).with_context(unusable)?;
    let lock = Lock::take(state).with_context(unusable)?;
    let taken = || {
        format!(
            "another agent runs on {shown}: stop it, or give this one a folder of its own (--state)"
        )
    };
    Ok(lock.ok_or_else(|| Misuse(taken()))?)
}

/// The parts that live as long as the agent.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    state: PathBuf,
    vault: Vault,
    clock: Arc<SystemClock>,
    discovery: Option<Arc<Discovery>>,
    outboxes: Outboxes,
    board: Board,
    _lock: Lock,
}

impl Agent {
    /// Opens everything on the folder `state`; runs nothing yet.
    ///
    /// # Errors
    /// What the operator must put right: no credential, another agent on the folder, a sensor's file
    /// that is not there, a disk that cannot be written.
    pub fn open(config: Config, state: PathBuf) -> anyhow::Result<Self> {
        let lock = claim(&state)?;
        check_sources(&config)?;
        let vault = Vault::new(&state);
        let contents = vault.load()?;
        let clock = Arc::new(SystemClock::open(&state.join("clock"), SystemTrust::Hint)?);
        let outboxes = outboxes(&config, &state, clock.now().secs)?;
        let board = Board::default();
        show_identity(&board, contents.identity.as_ref());
        board.tell(|status| status.device = Some(contents.device().to_string()));
        let discovery = match config.discovery.enabled {
            true => Some(Arc::new(Discovery::start(&config.discovery.interfaces)?)),
            false => None,
        };
        Ok(Self {
            config,
            state,
            vault,
            clock,
            discovery,
            outboxes,
            board,
            _lock: lock,
        })
    }

    /// Onboards if need be and serves until `stop`.
    ///
    /// # Errors
    /// A part that ended by itself.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut views = JoinSet::new();
        views.spawn(
            self.board
                .clone()
                .keep(self.state.clone(), self.outboxes.clone()),
        );
        let served = self.serve(&stop).await;
        self.board.phase(Phase::Starting, "stopped");
        self.board.write(&self.state, Some(&self.outboxes));
        served
    }

    /// Renews the certificate now, and does nothing else: for `renew` while no agent runs.
    ///
    /// # Errors
    /// No identity yet, or no server that renews.
    pub async fn renew(self) -> anyhow::Result<()> {
        let identity = self.vault.load()?.identity;
        let Some(identity) = identity else {
            return Err(Misuse("this device was not onboarded yet".to_owned()).into());
        };
        let ordered = Ordered::of(&self.state);
        let renewal = self.renewal(&identity, (Arc::default(), Anchors::none()), ordered);
        let done = tokio::time::timeout(RENEWAL, renewal.once()).await;
        let done = done.unwrap_or_else(|_| Err("no server answers in time".to_owned()));
        done.map_err(|why| {
            let told = format!("{why}; the order stays open: the agent renews when it runs");
            Unavailable(told).into()
        })
    }

    async fn serve(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let Some(identity) = stop.run_until_cancelled(self.onboard()).await else {
            return Ok(());
        };
        let mut identity = identity?;
        let mut own_sessions = 0;
        loop {
            self.serve_as(&identity, own_sessions, stop).await?;
            own_sessions = 1;
            let renewed = self.vault.load()?.identity;
            match renewed.filter(|new| new.certificate != identity.certificate) {
                Some(new) if !stop.is_cancelled() => identity = new,
                _ if stop.is_cancelled() => return Ok(()),
                _ => anyhow::bail!("a part of the agent ended by itself"),
            }
        }
    }

    /// Serves under one identity until `stop`, or until a part ends: renewal does when there is another.
    async fn serve_as(
        &self,
        identity: &Identity,
        own_sessions: u32,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        show_identity(&self.board, Some(identity));
        bound_clock(&self.clock, identity);
        let commands = Commands::of(&self.config.commands, &self.state);
        let connection = Connection::new(
            identity.clone(),
            self.outboxes.site.clone(),
            self.config.connection.clone(),
            self.discovery(),
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            self.board.clone(),
        )?;
        let (room, servers) = Alternates::open(&self.state, &identity.site);
        let (services, desk) = self.services(identity, servers.clone())?;
        let in_service = Arc::default();
        let services = services.believing(room.signers()).renewing(
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            self.config.renewal,
            Arc::clone(&in_service),
        );
        let ordered = Ordered::of(&self.state);
        let (sessions, met) = (Arc::default(), connection.anchors());
        let connection = connection
            .with_desk(desk)
            .with_commands(commands.clone())
            .counted_in(Arc::clone(&sessions))
            .with_teller(Arc::clone(&self.clock))
            .renewed_by(ordered.clone())
            .told_by(room, servers.clone());
        let session = self.session(identity, servers, commands, in_service);
        let renewal = Renewal {
            own_sessions,
            ..self.renewal(identity, (sessions, met), ordered)
        };
        let sensors = self.start_sensors(stop);
        let mut parts = JoinSet::new();
        let end = stop.child_token();
        parts.spawn(connection.run(end.clone()));
        parts.spawn(session.run(services.runs(), end.clone()));
        parts.spawn(services.run(end.clone()));
        parts.spawn(renewal.run(end.clone()));
        let floor = Arc::clone(&self.clock).keep_floor_until(end.clone().cancelled_owned());
        parts.spawn(floor);
        life::tell_ready("serving");
        info!(sensors = self.config.sources.len(), "ready");
        let first = parts.join_next().await;
        if stop.is_cancelled() {
            life::tell_stopping();
        }
        end.cancel();
        drop(sensors);
        life::within_grace(GRACE, async { while parts.join_next().await.is_some() {} }).await;
        match first {
            Some(Err(error)) => Err(error).context("a part of the agent failed"),
            _ => Ok(()),
        }
    }

    fn renewal(
        &self,
        identity: &Identity,
        (sessions, met): (Arc<AtomicU32>, Anchors),
        ordered: Ordered,
    ) -> Renewal {
        Renewal {
            vault: self.vault.clone(),
            state: self.state.clone(),
            identity: identity.clone(),
            wish: self.config.renewal,
            ordered,
            sessions,
            own_sessions: 0,
            met,
            clock: Arc::clone(&self.clock),
            connect_timeout: self.config.connection.connect_timeout,
        }
    }

    fn discovery(&self) -> Option<(Arc<Discovery>, Duration)> {
        let discovery = self.discovery.clone();
        discovery.map(|discovery| (discovery, self.config.discovery.patience))
    }

    fn session(
        &self,
        identity: &Identity,
        servers: Servers,
        commands: Commands,
        sessions: Arc<AtomicU32>,
    ) -> Session {
        Session {
            site: identity.site.clone(),
            servers,
            outbox: self.outboxes.service.clone(),
            config: self.config.connection.clone(),
            discovery: self.discovery(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            board: self.board.clone(),
            commands,
            sessions,
        }
    }

    fn services(
        &self,
        identity: &Identity,
        servers: Servers,
    ) -> anyhow::Result<(Services<Net, File>, Desk)> {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let timeout = self.config.connection.connect_timeout;
        let net = Net::new(identity, servers, clock, timeout)?;
        let file = File::new(&self.state);
        let opened = Services::open(identity, file, net, Pace::default(), self.board.clone());
        Ok(opened?)
    }

    /// Cut off wherever they are: what is not yet in the outbox is read again.
    fn start_sensors(&self, stop: &CancellationToken) -> JoinSet<()> {
        let mut sensors = JoinSet::new();
        for sensor in self.config.sources.clone() {
            let outbox = match sensor.to {
                Destination::Site => self.outboxes.site.clone(),
                Destination::Service => self.outboxes.service.clone(),
            };
            let run = source::run(sensor, outbox, self.board.clone());
            let stop = stop.clone();
            sensors.spawn(async move { _ = stop.run_until_cancelled(run).await });
        }
        sensors
    }

    async fn onboard(&self) -> anyhow::Result<Identity> {
        let onboarding = Onboarding {
            vault: self.vault.clone(),
            config: self.config.onboarding.clone(),
            network: NetworkFile::of(&self.state),
            discovery: self.discovery.clone(),
            patience: self.config.discovery.patience,
            clock: Arc::clone(&self.clock),
            board: self.board.clone(),
        };
        Ok(onboarding.run().await?)
    }
}

fn outboxes(config: &Config, state: &Path, now: u64) -> anyhow::Result<Outboxes> {
    let sizes = &config.outbox;
    let service = state.join("service");
    secret_file::make_folder(&service)
        .with_context(|| format!("cannot make the folder {}", service.display()))?;
    Ok(Outboxes {
        site: Outbox::open(state, Numbering::Each, sizes.max_bytes.0, now)
            .context("cannot open the outbox")?,
        service: Outbox::open(&service, Numbering::All, sizes.service_max_bytes.0, now)
            .context("cannot open the outbox for services")?,
    })
}

/// A file that is not there at the start is a slip of the configuration; one that goes missing later
/// is waited for.
fn check_sources(config: &Config) -> Result<(), Misuse> {
    for source in &config.sources {
        if let Input::Csv { file, .. } = &source.input
            && !file.is_file()
        {
            return Err(Misuse(format!(
                "the sensor {:?} reads {}, which is no file: correct csv in [[publish]]",
                source.name,
                file.display()
            )));
        }
    }
    Ok(())
}

/// The device's certificate proves that it began to be valid, and a time at which the authority above
/// it is over is not believed from anybody: it would leave the device with nobody to turn to.
fn bound_clock(clock: &SystemClock, identity: &Identity) {
    let validity = |der: &Vec<u8>| certificate::validity(der);
    if let Some((_, end)) = identity.site.chain.first().and_then(validity) {
        clock.never_after(end);
    }
    if let Some((begin, _)) = validity(&identity.certificate) {
        clock.learn_least(begin);
    }
}

fn show_identity(board: &Board, identity: Option<&Identity>) {
    let Some(identity) = identity else { return };
    let site = &identity.site;
    let leaf = Leaf::inspect(&identity.certificate, &site.domain, Purpose::Client);
    if let Err(error) = &leaf {
        warn!(%error, "the device's own certificate looks wrong");
    }
    board.tell(|status| {
        status.device = Some(site.device.to_string());
        status.site = Some(site.site.to_string());
        status.certificate_expires = leaf.ok().map(|leaf| leaf.not_after);
    });
}
