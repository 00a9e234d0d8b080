//! The world of a story: a cloud, an uplink that can be cut, a gateway and a device, each the real binary with its own
//! state folder and addresses. Called by the story and by tests; it starts, asks and stops, and judges nothing.

mod newcomers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::place::{Party, Place, local_socket};
use crate::process::{Finished, Process, binary, run};
use crate::proxy::Proxy;
use crate::weather;

/// The site's name in every world.
pub const SITE: &str = "harbour";
/// The gateway's name in every world.
pub const GATEWAY: &str = "gw1";
/// How long a daemon may take until it listens.
const READY: Duration = Duration::from_secs(30);

/// What a world is made with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The loopback network to use.
    pub place: Place,
    /// Name under which the gateway is found by mDNS. `None`: nothing is told or asked by mDNS, so that worlds on one
    /// host do not meet.
    pub rendezvous_name: Option<String>,
    /// Time between two of the device's messages.
    pub pace: Duration,
}

impl Plan {
    /// For a test: a network of its own, no mDNS.
    #[must_use]
    pub fn apart() -> Self {
        Self {
            place: Place::of_this_process(),
            rendezvous_name: None,
            pace: Duration::from_millis(25),
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
    /// Metrics and health, plain loopback.
    pub metrics: SocketAddr,
}

impl Doors {
    fn of(place: &Place, party: Party) -> anyhow::Result<Self> {
        Ok(Self {
            mqtt: place.socket(party, 8883)?,
            https: place.socket(party, 8443)?,
            fdo: place.socket(party, 8042)?,
            metrics: local_socket()?,
        })
    }

    fn as_toml(&self) -> String {
        let Self {
            mqtt,
            https,
            fdo,
            metrics,
        } = self;
        format!(
            "[listen]\nmqtt = \"{mqtt}\"\nhttps = \"{https}\"\nfdo = \"{fdo}\"\nmetrics = \"{metrics}\"\n"
        )
    }
}

/// One program of the world: its binary, configuration, state folder and, while it runs, its process.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    program: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its state folder.
    pub state: PathBuf,
    log: PathBuf,
    process: Option<Process>,
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
    pub uplink: Proxy,
    /// The cloud's listeners.
    pub cloud_doors: Doors,
    /// The near ends of the uplink (metrics unused).
    pub uplink_doors: Doors,
    /// The gateway's listeners.
    pub gateway_doors: Doors,
    folder: TempDir,
}

impl World {
    /// Makes folders and configurations and strings the uplink; starts no daemon yet.
    ///
    /// # Errors
    /// A binary is missing, or no port or file can be had.
    pub async fn new(plan: &Plan) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("holdfast-").tempdir()?;
        let cloud_doors = Doors::of(&plan.place, Party::Cloud)?;
        let gateway_doors = Doors::of(&plan.place, Party::Gateway)?;
        let mut uplink_doors = Doors::of(&plan.place, Party::Uplink)?;
        let mut uplink = Proxy::new();
        uplink_doors.mqtt = uplink.wire(uplink_doors.mqtt, cloud_doors.mqtt).await?;
        uplink_doors.https = uplink.wire(uplink_doors.https, cloud_doors.https).await?;
        uplink_doors.fdo = uplink.wire(uplink_doors.fdo, cloud_doors.fdo).await?;
        let world = Self {
            cloud: Part::new("cloud", folder.path())?,
            gateway: Part::new("gateway", folder.path())?,
            agent: Part::new("agent", folder.path())?,
            uplink,
            cloud_doors,
            uplink_doors,
            gateway_doors,
            folder,
        };
        world.write_configurations(plan)?;
        Ok(world)
    }

    /// Folder for whatever the caller wants to keep beside the parts.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder behind when the world ends, and says where.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        eprintln!("kept: {}", self.folder.path().display());
    }

    fn write_configurations(&self, plan: &Plan) -> anyhow::Result<()> {
        let Doors {
            mqtt, https, fdo, ..
        } = self.uplink_doors;
        let name = plan
            .rendezvous_name
            .as_deref()
            .unwrap_or("holdfast-rv.local");
        let is_told = plan.rendezvous_name.is_some();
        let gateway_fdo = self.gateway_doors.fdo.port();
        let cloud = format!(
            "{}[advertise]\nmqtt = [\"{mqtt}\"]\nhttps = [\"{https}\"]\nfdo = [\"{fdo}\"]\n\
             [manufacturing]\ngateway = \"{name}:{gateway_fdo}\"\ndelay = \"1s\"\n",
            self.cloud_doors.as_toml(),
        );
        let gateway = format!(
            "{}[advertise]\naddresses = [\"{}\"]\n\
             [discovery]\nenabled = {is_told}\ninterfaces = [\"lo\"]\nhost = \"{name}\"\n",
            self.gateway_doors.as_toml(),
            self.gateway_doors.mqtt.ip(),
        );
        let agent = format!(
            "[discovery]\nenabled = {is_told}\ninterfaces = [\"lo\"]\n\
             [[publish]]\nname = \"weather\"\ncsv = {:?}\ninterval = \"{}ms\"\n",
            weather::file(),
            plan.pace.as_millis(),
        );
        for (part, text) in [
            (&self.cloud, cloud),
            (&self.gateway, gateway),
            (&self.agent, agent),
        ] {
            std::fs::write(&part.config, text)?;
        }
        Ok(())
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
        let said = self
            .cloud
            .ask(&["gateways", "token", "--site", SITE, "--gateway", GATEWAY])
            .await?;
        let token = said
            .split_whitespace()
            .find(|word| word.starts_with("hf1."));
        Ok(token
            .with_context(|| format!("no token in {said:?}"))?
            .to_owned())
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

    /// Sends the device through the factory (DI) and assigns it to the site; returns its GUID, 32 hex digits.
    ///
    /// # Errors
    /// What the command that failed said.
    pub async fn manufacture(&mut self, serial: &str) -> anyhow::Result<String> {
        let factory = format!("http://{}", self.cloud_doors.fdo);
        let said = self
            .agent
            .ask(&["init", "--manufacturer", &factory, "--serial", serial])
            .await?;
        let guid = said.trim().to_owned();
        ensure!(guid.len() == 32, "init printed no GUID but {said:?}");
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
            .map(|part| format!("--- {} log ends with\n{}\n", part.name, part.log_end()))
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

impl Part {
    fn new(name: &'static str, folder: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            program: binary(&format!("holdfast-{name}"))?,
            config: folder.join(format!("{name}.toml")),
            state: folder.join(name),
            log: folder.join(format!("{name}.log")),
            process: None,
        })
    }

    /// The command line of this part, for a person to copy.
    #[must_use]
    pub fn command_line(&self, words: &str) -> String {
        format!(
            "{} --config {} --state {} {words}",
            self.program.display(),
            self.config.display(),
            self.state.display()
        )
    }

    /// Runs one of its commands to the end.
    ///
    /// # Errors
    /// It cannot be run; its own refusal is in the result.
    pub async fn command(&self, words: &[&str], input: &str) -> anyhow::Result<Finished> {
        run(&self.program, &self.arguments(words), input).await
    }

    /// Runs one of its commands that must succeed; its output.
    ///
    /// # Errors
    /// What it wrote to standard error.
    pub async fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let what = format!("holdfast-{} {}", self.name, words.join(" "));
        self.command(words, "").await?.success(&what)
    }

    /// `status --json`.
    ///
    /// # Errors
    /// The command failed or printed no JSON.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let said = self.ask(&["status", "--json"]).await?;
        serde_json::from_str(&said).with_context(|| format!("status --json printed {said:?}"))
    }

    /// Starts `run` and, if it has a health page, waits until that and its own commands answer.
    ///
    /// # Errors
    /// It ended, or was not well in time.
    pub async fn start(&mut self, health: Option<SocketAddr>) -> anyhow::Result<()> {
        let mut process = Process::start(
            self.name,
            &self.program,
            &self.arguments(&["run"]),
            &self.log,
        )?;
        let end = Instant::now() + READY;
        while let Some(door) = health
            && !(self.state.join("admin.sock").exists() && fetch(door, "/health").await.is_ok())
        {
            if let Some(status) = process.ended()? {
                anyhow::bail!("{} ended with {status}:\n{}", self.name, process.log_end());
            }
            ensure!(
                Instant::now() < end,
                "{} is not well after {READY:?}:\n{}",
                self.name,
                process.log_end()
            );
            sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// The running process.
    ///
    /// # Errors
    /// It was not started.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process
            .as_mut()
            .with_context(|| format!("{} is not running", self.name))
    }

    /// SIGTERM, and waits. Nothing happens if it does not run.
    ///
    /// # Errors
    /// It did not end by itself.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.stop().await?;
        }
        Ok(())
    }

    /// All it has logged.
    #[must_use]
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let text = self.logged();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn arguments(&self, words: &[&str]) -> Vec<String> {
        let mut all = vec!["--config".into(), self.config.display().to_string()];
        all.extend(["--state".into(), self.state.display().to_string()]);
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all
    }
}

/// The first of these keys that holds a whole number.
#[must_use]
pub fn number_of(value: &Value, keys: &[&str]) -> Option<u64> {
    keys.iter().find_map(|key| value[key].as_u64())
}

/// One plain HTTP request; the answer's body. Enough for metrics and health.
///
/// # Errors
/// No answer in time, or not 200.
pub async fn fetch(door: SocketAddr, path: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(door).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {door}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{door}{path} answered {}",
        head.lines().next().unwrap_or("")
    );
    Ok(body.to_owned())
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
