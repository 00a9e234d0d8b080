//! The command line of `holdfast-gateway`. `enrol` and `run` work on the state folder themselves;
//! every other command asks the running gateway over its admin socket (`<state>/admin.sock`).
//!
//! Called by `main` alone.

mod bridge;
mod certificates;
mod lists;
mod services;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use holdfast_config::cli::{Common, Extra, Misuse, Unavailable};
use holdfast_config::{HostPort, life, secret_file, show};
use holdfast_cps::enrol::Token;
use holdfast_cps::http::ask::{self, AskError};
use holdfast_protocol::id::{ClientName, DeviceId};
use serde_json::{Value, json};

use self::bridge::Bridge;
use self::certificates::Certificates;
use self::lists::{Installers, Manufacturers, Refusals};
use self::services::Services;
use crate::app::{self, BuildError, RunError};
use crate::config::Config;
use crate::{identity, retired};

/// Name of the program, of its state folder and of its unit.
pub const PROGRAM: &str = "holdfast-gateway";

/// A site's gateway: keeps the site working when its Internet link does not
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `holdfast-gateway` can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join this gateway to its site: done once, with a token from the cloud
    Enrol {
        /// Where the cloud's HTTPS listener is reached
        #[arg(long, value_name = "HOST:PORT")]
        cloud: HostPort,
        /// File that holds the token, or - for standard input
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// Run the gateway in the foreground
    Run,
    /// Show how the running gateway is: uplink, backlog, devices, certificates
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Onboarded devices of this site
    #[command(subcommand)]
    Devices(Devices),
    /// Ordinary MQTT clients of this site
    #[command(subcommand)]
    Clients(Clients),
    /// What devices of this site sent lately
    #[command(subcommand)]
    Telemetry(Telemetry),
    /// Installers, and manufacturers, whose vouchers are taken when they are handed in here
    #[command(subcommand)]
    Installers(Installers),
    /// Manufacturers whose devices are believed at this site
    #[command(subcommand)]
    Manufacturers(Manufacturers),
    /// Entries of the cloud that were not believed
    #[command(subcommand)]
    Refusals(Refusals),
    /// Print the certificate that everybody of this installation believes in (PEM)
    Root {
        /// Its SHA-256 instead, for `holdfast-installer trust`
        #[arg(long)]
        fingerprint: bool,
    },
    /// Certificates: list them, revoke them
    #[command(subcommand)]
    Certificates(Certificates),
    /// Services that devices work for
    #[command(subcommand)]
    Services(Services),
    /// Remote brokers: the cloud, and those of [[remote]]
    #[command(subcommand)]
    Bridge(Bridge),
    /// Commands that all Holdfast programs have.
    #[command(flatten)]
    Extra(Extra),
}

/// `devices ...`
#[derive(Debug, Subcommand)]
pub enum Devices {
    /// List the onboarded devices
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `clients ...`
#[derive(Debug, Subcommand)]
pub enum Clients {
    /// Admit an MQTT client and write its certificate and key
    Issue {
        /// Name of the client: lower-case letters, digits, hyphens
        name: ClientName,
        /// Topic filter it may publish to (may be repeated)
        #[arg(long, value_name = "FILTER")]
        publish: Vec<String>,
        /// Topic filter it may subscribe to (may be repeated)
        #[arg(long, value_name = "FILTER")]
        subscribe: Vec<String>,
        /// Folder for ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}

/// `telemetry ...`
#[derive(Debug, Subcommand)]
pub enum Telemetry {
    /// Print what a device sent, one JSON object a line, in order
    Export {
        /// Device, 32 hexadecimal digits
        #[arg(long)]
        device: DeviceId,
    },
}

/// Longest public key file read.
const KEY_BYTES: u64 = 16 * 1024;
/// Longest token read.
const TOKEN_BYTES: u64 = 4096;

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know, with its exit code in the type.
    pub fn execute(self) -> anyhow::Result<()> {
        match &self.command {
            Command::Extra(extra) => extra.run::<Config, Self>(&self.common),
            command => {
                let threads = matches!(command, Command::Run);
                runtime(threads)?.block_on(self.in_runtime())
            }
        }
    }

    async fn in_runtime(self) -> anyhow::Result<()> {
        let state = self.common.state_or_default(PROGRAM);
        let ask = Ask {
            socket: state.join("admin.sock"),
        };
        let text = match self.command {
            Command::Extra(_) => String::new(),
            Command::Run => return run(&self.common, &state).await,
            Command::Enrol { cloud, token_file } => {
                enrol(&self.common, &state, &cloud, &token_file).await?
            }
            Command::Status { json } => ask.facts("/v1/status", json).await?,
            Command::Devices(Devices::List { json }) => {
                let columns = ["device", "site", "info", "onboarded", "server", "standing"];
                ask.table("/v1/devices", &columns, json).await?
            }
            Command::Clients(issue) => ask.client(issue).await?,
            Command::Telemetry(Telemetry::Export { device }) => {
                let mut out = std::io::BufWriter::new(std::io::stdout().lock());
                let done = ask::export(&ask.socket, device.as_str(), &mut out).await;
                return done.map_err(classify);
            }
            Command::Installers(installers) => ask.installers(installers).await?,
            Command::Manufacturers(makers) => ask.manufacturers(makers).await?,
            Command::Refusals(refusals) => ask.refusals(refusals).await?,
            Command::Root { fingerprint } => {
                let root = ask.get("/v1/root").await?;
                match fingerprint {
                    true => format!("{}\n", root["sha256"].as_str().unwrap_or_default()),
                    false => root["pem"].as_str().unwrap_or_default().to_owned(),
                }
            }
            Command::Certificates(what) => what.execute(&ask).await?,
            Command::Services(services) => services.execute(&ask).await?,
            Command::Bridge(bridge) => bridge.execute(&ask).await?,
        };
        std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write the answer")
    }
}

fn runtime(threads: bool) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    builder
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

async fn run(common: &Common, state: &Path) -> anyhow::Result<()> {
    let config: Config = holdfast_config::read(common.config.as_deref())?;
    life::start_logging(common)?;
    let stop = life::stop_on_signal().context("cannot listen to signals")?;
    let metrics = config.listen.metrics;
    let app = match app::build(config, state).await {
        Err(BuildError::Replaced(why)) => {
            return Ok(retired::serve(metrics, state, &why, stop).await?);
        }
        Err(fault) if fault.is_misuse() => return Err(Misuse(fault.to_string()).into()),
        Err(fault) if fault.is_unavailable() => return Err(Unavailable(fault.to_string()).into()),
        built => built?,
    };
    match app.run(stop.clone()).await {
        Err(RunError::Replaced(why)) => Ok(retired::serve(metrics, state, &why, stop).await?),
        ended => Ok(ended?),
    }
}

async fn enrol(
    common: &Common,
    state: &Path,
    cloud: &HostPort,
    token_file: &Path,
) -> anyhow::Result<String> {
    let config: Config = holdfast_config::read(common.config.as_deref())?;
    life::start_logging(common)?;
    let token = read_token(token_file)?;
    match identity::enrol(&config, state, cloud, &token).await {
        Ok(cloud) => Ok(format!(
            "enrolled as {} of site {}; next: holdfast-gateway run\n",
            cloud.gateway(),
            cloud.site()
        )),
        Err(fault) if fault.is_unavailable() => Err(Unavailable(fault.to_string()).into()),
        Err(fault) if fault.is_misuse() => Err(Misuse(fault.to_string()).into()),
        Err(fault) => Err(fault.into()),
    }
}

fn read_token(file: &Path) -> anyhow::Result<Token> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().take(TOKEN_BYTES).read_to_string(&mut text),
        _ => {
            std::fs::File::open(file).and_then(|it| it.take(TOKEN_BYTES).read_to_string(&mut text))
        }
    };
    read.map_err(|error| Misuse(format!("cannot read the token {}: {error}", file.display())))?;
    Ok(text
        .parse()
        .map_err(|bad: holdfast_cps::enrol::BadToken| Misuse(bad.to_string()))?)
}

/// Asks the running daemon.
struct Ask {
    socket: PathBuf,
}

impl Ask {
    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        ask::get(&self.socket, path).await.map_err(classify)
    }

    async fn post(&self, path: &str, wanted: &Value) -> anyhow::Result<Value> {
        ask::post(&self.socket, path, wanted)
            .await
            .map_err(classify)
    }

    async fn table(&self, path: &str, columns: &[&str], json: bool) -> anyhow::Result<String> {
        let rows = self.get(path).await?;
        Ok(if json {
            format!("{rows:#}\n")
        } else {
            show::table(&rows, columns)
        })
    }

    async fn facts(&self, path: &str, json: bool) -> anyhow::Result<String> {
        let value = self.get(path).await?;
        Ok(if json {
            format!("{value:#}\n")
        } else {
            show::facts(&value)
        })
    }

    async fn client(
        &self,
        Clients::Issue {
            name,
            publish,
            subscribe,
            out,
        }: Clients,
    ) -> anyhow::Result<String> {
        let wanted = json!({ "name": name.as_str(), "publish": publish, "subscribe": subscribe });
        let answer = ask::post(&self.socket, "/v1/clients", &wanted)
            .await
            .map_err(classify)?;
        let keep = |file: &str, field: &str, secret: bool| -> anyhow::Result<()> {
            let path = out.join(file);
            let text = answer[field]
                .as_str()
                .with_context(|| format!("the answer has no {field}"))?;
            let kept = match secret {
                true => secret_file::write(&path, text.as_bytes()),
                false => secret_file::write_public(&path, text.as_bytes()),
            };
            kept.with_context(|| format!("cannot write {}", path.display()))
        };
        std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        keep("key.pem", "key", true)?;
        keep("cert.pem", "cert", false)?;
        keep("ca.pem", "ca", false)?;
        Ok(format!(
            "client {name}: ca.pem, cert.pem and key.pem are in {}\n",
            out.display()
        ))
    }
}

/// The base64 inside a PEM file `PUBLIC KEY`.
fn public_key(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|it| it.take(KEY_BYTES).read_to_string(&mut text))
        .map_err(|error| Misuse(format!("cannot read {}: {error}", file.display())))?;
    let body = text
        .split_once("-----BEGIN PUBLIC KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"));
    let missing = || Misuse(format!("{} holds no PEM block PUBLIC KEY", file.display()));
    let (body, _) = body.ok_or_else(missing)?;
    Ok(body.split_whitespace().collect())
}

/// The exit code follows from whose fault it is.
fn classify(error: AskError) -> anyhow::Error {
    match error {
        AskError::NotRunning { .. } => Unavailable(error.to_string()).into(),
        AskError::Refused(_) => Misuse(error.to_string()).into(),
        AskError::Failed(_) | AskError::Broken(_) => error.into(),
    }
}
