//! The world of a story: a cloud, an uplink that can be cut, a gateway and a device, each the real binary with its own
//! state folder and addresses. Called by the story and by tests; it starts, asks and stops, and judges nothing.

mod asking;
mod newcomers;
mod part;
mod services;
mod turned;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

pub use self::asking::PATIENCE;
pub use self::part::Part;
pub use self::turned::{Hands, TurnedClock, can_be_turned, stock_clock};
use crate::folder::Folder;
use crate::partner::Partner;
use crate::place::{Party, Place, Uplink};
use crate::process::Finished;
use crate::seat::Seat;

/// The site's name in every world.
pub const SITE: &str = "harbour";
/// The gateway's name in every world.
pub const GATEWAY: &str = "gw1";

/// What a world is made with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the parties live.
    pub place: Place,
    /// Name under which the gateway is found by mDNS. `None`: nothing is told or asked by mDNS, so that worlds on one
    /// host do not meet.
    pub rendezvous_name: Option<String>,
    /// Time between two of the device's messages.
    pub pace: Duration,
    /// Time between two messages of a second, slower sensor in every device, if it has one.
    pub pulse: Option<Duration>,
}

impl Plan {
    /// For a test: a network of its own, no mDNS.
    #[must_use]
    pub fn apart() -> Self {
        Self {
            place: Place::of_this_process(),
            rendezvous_name: None,
            pace: Duration::from_millis(25),
            pulse: None,
        }
    }
}

/// The listeners of a server.
#[derive(Debug, Clone, Copy)]
pub struct Doors {
    /// MQTT over TLS.
    pub mqtt: SocketAddr,
    /// HTTPS.
    pub https: SocketAddr,
    /// FDO over HTTP.
    pub fdo: SocketAddr,
    /// The factory's (cloud only).
    pub manufacturing: SocketAddr,
    /// Metrics and health, plain loopback.
    pub metrics: SocketAddr,
}

impl Doors {
    fn of(place: &Place, party: Party) -> anyhow::Result<Self> {
        Ok(Self {
            mqtt: place.socket(party, 8883)?,
            https: place.socket(party, 8443)?,
            fdo: place.socket(party, 8042)?,
            manufacturing: place.socket(party, 8039)?,
            metrics: place.metrics_socket()?,
        })
    }

    fn as_toml(&self) -> String {
        let Self {
            mqtt,
            https,
            fdo,
            metrics,
            ..
        } = self;
        format!(
            "[listen]\nmqtt = \"{mqtt}\"\nhttps = \"{https}\"\nfdo = \"{fdo}\"\nmetrics = \"{metrics}\"\n"
        )
    }
}

/// Everything together. Dropping it kills what it started and removes its folder.
#[derive(Debug)]
pub struct World {
    /// The cloud.
    pub cloud: Part,
    /// The gateway.
    pub gateway: Part,
    /// The thermometer.
    pub agent: Part,
    /// The uplink.
    pub uplink: Uplink,
    /// The cloud's listeners.
    pub cloud_doors: Doors,
    /// The cloud's listeners as the site sees them (metrics unused).
    pub uplink_doors: Doors,
    /// The gateway's listeners.
    pub gateway_doors: Doors,
    plan: Plan,
    folder: Folder,
}

impl World {
    /// Makes folders and configurations and strings the uplink; starts no daemon yet.
    ///
    /// # Errors
    /// A binary is missing, or no port or file can be had.
    pub async fn new(plan: &Plan) -> anyhow::Result<Self> {
        let folder = Folder::new("holdfast-")?;
        let cloud_doors = Doors::of(&plan.place, Party::Cloud)?;
        let gateway_doors = Doors::of(&plan.place, Party::Gateway)?;
        let uplink_doors = Doors::of(&plan.place, Party::Uplink)?;
        let (near, far) = (&uplink_doors, &cloud_doors);
        let wires = [
            (near.mqtt, far.mqtt),
            (near.https, far.https),
            (near.fdo, far.fdo),
        ];
        let uplink = plan.place.string(&wires).await?;
        let server = |name, party| {
            let program = format!("holdfast-{name}");
            Part::new(&program, name, plan.place.seat(party), folder.path())
        };
        let seat = plan.place.station("device-a")?;
        let world = Self {
            cloud: server("cloud", Party::Cloud)?,
            gateway: server("gateway", Party::Gateway)?,
            agent: Part::new("holdfast-agent", "agent", seat, folder.path())?,
            uplink,
            cloud_doors,
            uplink_doors,
            gateway_doors,
            plan: plan.clone(),
            folder,
        };
        world.write_configurations()?;
        Ok(world)
    }

    /// Folder for whatever the caller wants to keep beside the parts.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder behind when the world ends, and says where.
    pub fn keep(&mut self) {
        self.folder.keep();
        eprintln!("kept: {}", self.folder.path().display());
    }

    fn write_configurations(&self) -> anyhow::Result<()> {
        let Doors {
            mqtt, https, fdo, ..
        } = self.uplink_doors;
        let gateway_fdo = self.gateway_doors.fdo.port();
        let cloud = format!(
            "{}manufacturing = \"{}\"\n[advertise]\nmqtt = [\"{mqtt}\"]\nhttps = [\"{https}\"]\nfdo = [\"{fdo}\"]\n\
             [manufacturing]\ngateway = \"{}:{gateway_fdo}\"\ndelay = \"1s\"\n",
            self.cloud_doors.as_toml(),
            self.cloud_doors.manufacturing,
            self.rendezvous_name(),
        );
        let agent = format!(
            "[discovery]\nenabled = {}\ninterfaces = [\"{}\"]\n{}",
            self.plan.rendezvous_name.is_some(),
            self.plan.place.lan_interface(),
            newcomers::sensors(self.plan.pace, self.plan.pulse),
        );
        for (part, text) in [
            (&self.cloud, cloud),
            (
                &self.gateway,
                self.gateway_configuration(&self.gateway_doors),
            ),
            (&self.agent, agent),
        ] {
            std::fs::write(&part.config, text)?;
        }
        Ok(())
    }

    /// What a gateway with these listeners is configured with.
    fn gateway_configuration(&self, doors: &Doors) -> String {
        format!(
            "{}[advertise]\naddresses = [\"{}\"]\n\
             [discovery]\nenabled = {}\ninterfaces = [\"{}\"]\nhost = \"{}\"\n",
            doors.as_toml(),
            doors.mqtt.ip(),
            self.plan.rendezvous_name.is_some(),
            self.plan.place.lan_interface(),
            self.rendezvous_name(),
        )
    }

    fn rendezvous_name(&self) -> &str {
        let name = self.plan.rendezvous_name.as_deref();
        name.unwrap_or("holdfast-rv.local")
    }

    /// Starts the cloud and waits until it says that it is well.
    ///
    /// # Errors
    /// It ended, or was not well in time.
    pub async fn start_cloud(&mut self) -> anyhow::Result<()> {
        self.cloud.start(Some(self.cloud_doors.metrics)).await
    }

    /// Starts the gateway, which must be enrolled, and waits until it says that it is well.
    ///
    /// # Errors
    /// It ended, or was not well in time.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        self.gateway.start(Some(self.gateway_doors.metrics)).await
    }

    /// Starts the device, which must have been through the factory.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start_agent(&mut self) -> anyhow::Result<()> {
        self.agent.start(None).await
    }

    /// Adds the site and enrols the gateway with a fresh token.
    ///
    /// # Errors
    /// What the command that failed said.
    pub async fn enrol(&mut self) -> anyhow::Result<()> {
        self.cloud.ask(&["sites", "add", SITE]).await?;
        let token = self.token().await?;
        self.enrol_with(&token)
            .await?
            .success("holdfast-gateway enrol")?;
        Ok(())
    }

    /// A one-time token for the gateway.
    ///
    /// # Errors
    /// What the command said.
    pub async fn token(&self) -> anyhow::Result<String> {
        self.token_for(SITE, GATEWAY).await
    }

    async fn token_for(&self, site: &str, gateway: &str) -> anyhow::Result<String> {
        let words = ["gateways", "token", "--site", site, "--gateway", gateway];
        let said = self.cloud.ask(&words).await?;
        let token = said
            .split_whitespace()
            .find(|word| word.starts_with("hf1."));
        Ok(token
            .with_context(|| format!("no token in {said:?}"))?
            .to_owned())
    }

    /// Adds another site and enrols its gateway, which is not of this LAN and does not run; its state folder.
    ///
    /// # Errors
    /// What the command that failed said.
    pub async fn enrol_elsewhere(&self, site: &str, gateway: &str) -> anyhow::Result<PathBuf> {
        let seat = self.plan.place.seat(Party::Cloud);
        let part = Part::new("holdfast-gateway", "other-gateway", seat, self.folder())?;
        std::fs::write(
            &part.config,
            self.gateway_configuration(&self.gateway_doors),
        )?;
        self.cloud.ask(&["sites", "add", site]).await?;
        let token = self.token_for(site, gateway).await? + "\n";
        let cloud = self.cloud_doors.https.to_string();
        let words = ["enrol", "--cloud", &cloud, "--token-file", "-"];
        let told = part.command(&words, &token).await?;
        told.success("holdfast-gateway enrol")?;
        Ok(part.state)
    }

    /// Runs `enrol` with this token, through the uplink.
    ///
    /// # Errors
    /// The command cannot be run; its own refusal is in the result.
    pub async fn enrol_with(&self, token: &str) -> anyhow::Result<Finished> {
        let cloud = self.uplink_doors.https.to_string();
        self.gateway
            .command(
                &["enrol", "--cloud", &cloud, "--token-file", "-"],
                &format!("{token}\n"),
            )
            .await
    }

    /// Sends the thermometer through the factory (DI) and assigns it to the site; returns its GUID, 32 hex digits.
    ///
    /// # Errors
    /// What the command that failed said.
    pub async fn manufacture(&mut self, serial: &str) -> anyhow::Result<String> {
        let guid = self.make(&self.agent, serial).await?;
        self.cloud
            .ask(&["vouchers", "assign", &guid, "--site", SITE])
            .await?;
        Ok(guid)
    }

    /// Admits an MQTT client at `at` and returns the folder with its certificate.
    ///
    /// # Errors
    /// What the command said.
    pub async fn admit(
        &self,
        at: Server,
        name: &str,
        publish: &[&str],
        subscribe: &[&str],
    ) -> anyhow::Result<PathBuf> {
        let out = self.folder().join(name);
        let out_text = out.to_str().context("a readable path")?.to_owned();
        let mut words = vec!["clients", "issue", name, "--site", SITE, "--out", &out_text];
        if at == Server::Gateway {
            // A gateway has one site only.
            words.retain(|word| !["--site", SITE].contains(word));
        }
        for filter in publish {
            words.extend(["--publish", filter]);
        }
        for filter in subscribe {
            words.extend(["--subscribe", filter]);
        }
        match at {
            Server::Cloud => self.cloud.ask(&words).await?,
            Server::Gateway => self.gateway.ask(&words).await?,
        };
        Ok(out)
    }

    /// Where stock clients and their like sit: beside the server, or on its LAN.
    ///
    /// # Errors
    /// The LAN has no room.
    pub fn seat_near(&self, server: Server) -> anyhow::Result<Seat> {
        match server {
            Server::Cloud => Ok(self.plan.place.seat(Party::Cloud)),
            Server::Gateway => self.plan.place.station("witness"),
        }
    }

    /// A partner with a broker of its own in the Internet, and where the gateway dials it. Nothing is started.
    ///
    /// # Errors
    /// No port or file can be had.
    pub async fn partner(&mut self) -> anyhow::Result<(Partner, SocketAddr)> {
        let place = &self.plan.place;
        let tls = place.socket(Party::Cloud, 18_883)?;
        let inside = place.socket(Party::Cloud, 11_883)?;
        let near = self.uplink.reach(place.socket(Party::Uplink, 18_883)?, tls);
        let near = near.await?;
        let seat = place.seat(Party::Cloud);
        Ok((Partner::new(self.folder.path(), seat, tls, inside)?, near))
    }

    /// Adds to the gateway's configuration and starts it anew.
    ///
    /// # Errors
    /// It does not stop, or is not well in time.
    pub async fn configure_gateway(&mut self, more: &str) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.gateway.config)?;
        std::fs::write(&self.gateway.config, format!("{text}\n{more}"))?;
        self.gateway.stop().await?;
        self.start_gateway().await
    }

    /// Stops all daemons in order, device first.
    ///
    /// # Errors
    /// One of them did not end by itself.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for part in [&mut self.agent, &mut self.gateway, &mut self.cloud] {
            part.stop().await?;
        }
        Ok(())
    }

    /// The ends of all logs, for a failure's report.
    #[must_use]
    pub fn log_ends(&self) -> String {
        let parts = [&self.cloud, &self.gateway, &self.agent];
        parts
            .map(|part| format!("--- {} log ends with\n{}\n", part.name(), part.log_end()))
            .concat()
    }
}

/// A server that can be asked to admit a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The cloud.
    Cloud,
    /// The gateway.
    Gateway,
}

/// One plain HTTP request from right here; see [`Seat::fetch`].
///
/// # Errors
/// No answer in time, or not 200.
pub async fn fetch(door: SocketAddr, path: &str) -> anyhow::Result<String> {
    Seat::here().fetch(door, path).await
}

/// The value of a counter in a metrics page: the sum over all its labels; 0 if it is not there.
#[must_use]
pub fn counter(page: &str, name: &str) -> f64 {
    let is_ours = |line: &&str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
    };
    page.lines()
        .filter(is_ours)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
