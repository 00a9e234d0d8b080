//! The command line of `holdfast-cloud`. `run` is the daemon; every other command asks the running
//! daemon over its admin socket (`<state>/admin.sock`) and prints the answer.
//!
//! Called by `main` alone. It opens no store and no key: only one process ever does.

mod certificates;
mod lists;
mod services;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Parser, Subcommand};
use holdfast_config::cli::{Common, Extra, Misuse, Unavailable};
use holdfast_config::{life, secret_file, show};
use holdfast_cps::http::ask::{self, AskError};
use holdfast_protocol::id::{ClientName, DeviceId, ServerId, SiteId};
use serde_json::{Value, json};

use self::certificates::Certificates;
use self::lists::{Installers, Manufacturers, Refusals};
use self::services::Services;
use crate::app;
use crate::config::Config;

/// Name of the program, of its state folder and of its unit.
pub const PROGRAM: &str = "holdfast-cloud";

/// The cloud pair of the Holdfast gateways: onboards devices, keeps their records and telemetry
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

/// What `holdfast-cloud` can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server in the foreground
    Run,
    /// Show how the running server is
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Sites: the places that have a gateway
    #[command(subcommand)]
    Sites(Sites),
    /// Gateways and the tokens by which they enrol
    #[command(subcommand)]
    Gateways(Gateways),
    /// Ownership vouchers of manufactured or bought devices
    #[command(subcommand)]
    Vouchers(Vouchers),
    /// Onboarded devices
    #[command(subcommand)]
    Devices(Devices),
    /// Services that devices work for
    #[command(subcommand)]
    Services(Services),
    /// Ordinary MQTT clients
    #[command(subcommand)]
    Clients(Clients),
    /// Certificates: list them, revoke them
    #[command(subcommand)]
    Certificates(Certificates),
    /// What devices sent
    #[command(subcommand)]
    Telemetry(Telemetry),
    /// Entries of gateways that were not believed
    #[command(subcommand)]
    Refusals(Refusals),
    /// Installers whose vouchers are taken, site by site
    #[command(subcommand)]
    Installers(Installers),
    /// Manufacturers whose devices are believed
    #[command(subcommand)]
    Manufacturers(Manufacturers),
    /// Commands that all Holdfast programs have.
    #[command(flatten)]
    Extra(Extra),
}

/// `sites ...`
#[derive(Debug, Subcommand)]
pub enum Sites {
    /// Add a site and make its issuing certificate
    Add {
        /// Name of the site: lower-case letters, digits, hyphens
        site: SiteId,
    },
    /// List the sites
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `gateways ...`
#[derive(Debug, Subcommand)]
pub enum Gateways {
    /// Print a one-time token by which one gateway may enrol
    Token {
        /// Site the gateway will serve
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway
        #[arg(long)]
        gateway: ServerId,
        /// How long the token may be used
        #[arg(long, default_value = "1h", value_parser = duration)]
        life: Duration,
    },
    /// A gateway's machine is lost: lock it out and print a token for the one in its place
    Replace {
        /// Site of the gateway
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway, which the new machine will carry on
        #[arg(long)]
        gateway: ServerId,
        /// How long the token may be used
        #[arg(long, default_value = "1h", value_parser = duration)]
        life: Duration,
    },
    /// Let a gateway in again that was to be replaced, before anything took its place
    Unlock {
        /// Site of the gateway
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway
        #[arg(long)]
        gateway: ServerId,
    },
    /// List the enrolled gateways
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `vouchers ...`
#[derive(Debug, Subcommand)]
pub enum Vouchers {
    /// List the vouchers kept here
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one voucher
    Show {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
    },
    /// Give a device to a site: its voucher goes to this owner and is registered for onboarding
    Assign {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
        /// Site that the device will belong to
        #[arg(long)]
        site: SiteId,
    },
    /// Extend a kept voucher to another owner's public key, such as an installer's, and print it
    Extend {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
        /// The new owner's public key (PEM, SubjectPublicKeyInfo)
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Write it to this file instead, which must not exist
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Import a voucher that was extended to this owner elsewhere (PEM or CBOR)
    Import {
        /// The voucher file
        file: PathBuf,
    },
    /// Print a voucher as PEM
    Export {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
    },
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
        /// Site the client belongs to; without it the client belongs to the cloud
        #[arg(long)]
        site: Option<SiteId>,
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

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as \"30m\" or \"2h\""))
}

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
        if matches!(self.command, Command::Run) {
            return run(&self.common, &state).await;
        }
        let ask = Ask {
            socket: state.join("admin.sock"),
        };
        let text = match self.command {
            Command::Run | Command::Extra(_) => String::new(),
            Command::Status { json } => ask.facts("/v1/status", json).await?,
            Command::Sites(sites) => ask.sites(sites).await?,
            Command::Gateways(gateways) => ask.gateways(gateways).await?,
            Command::Vouchers(vouchers) => ask.vouchers(vouchers).await?,
            Command::Devices(Devices::List { json }) => {
                let columns = ["device", "site", "info", "onboarded", "server", "standing"];
                ask.table("/v1/devices", &columns, json).await?
            }
            Command::Clients(issue) => ask.client(issue).await?,
            Command::Certificates(what) => what.execute(&ask).await?,
            Command::Services(services) => services.execute(&ask).await?,
            Command::Refusals(refusals) => ask.refusals(refusals).await?,
            Command::Installers(installers) => ask.installers(installers).await?,
            Command::Manufacturers(makers) => ask.manufacturers(makers).await?,
            Command::Telemetry(Telemetry::Export { device }) => return ask.export(device).await,
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
    let app = match app::build(config, state).await {
        Err(fault) if fault.is_misuse() => return Err(Misuse(fault.to_string()).into()),
        Err(fault) if fault.is_unavailable() => return Err(Unavailable(fault.to_string()).into()),
        built => built?,
    };
    Ok(app.run(stop).await?)
}

/// Asks the running daemon.
struct Ask {
    socket: PathBuf,
}

impl Ask {
    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        ask::get(&self.socket, path).await.map_err(classify)
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        ask::post(&self.socket, path, body).await.map_err(classify)
    }

    async fn table(&self, path: &str, columns: &[&str], json: bool) -> anyhow::Result<String> {
        let rows = self.get(path).await?;
        Ok(if json {
            pretty(&rows)
        } else {
            show::table(&rows, columns)
        })
    }

    async fn facts(&self, path: &str, json: bool) -> anyhow::Result<String> {
        let value = self.get(path).await?;
        Ok(if json {
            pretty(&value)
        } else {
            show::facts(&value)
        })
    }

    async fn sites(&self, sites: Sites) -> anyhow::Result<String> {
        match sites {
            Sites::List { json } => self.table("/v1/sites", &["site"], json).await,
            Sites::Add { site } => {
                self.post("/v1/sites", &json!({ "site": site.as_str() }))
                    .await?;
                Ok(format!(
                    "site {site} is there; next: gateways token --site {site} --gateway NAME\n"
                ))
            }
        }
    }

    async fn gateways(&self, gateways: Gateways) -> anyhow::Result<String> {
        match gateways {
            Gateways::List { json } => {
                let columns = ["gateway", "site", "epoch", "enrolled"];
                self.table("/v1/gateways", &columns, json).await
            }
            Gateways::Token {
                site,
                gateway,
                life,
            } => {
                let wanted = json!({
                    "site": site.as_str(), "gateway": gateway.as_str(), "life_secs": life.as_secs(),
                });
                let answer = self.post("/v1/gateways/token", &wanted).await?;
                text_of(&answer, "token").map(|token| token + "\n")
            }
            Gateways::Replace {
                site,
                gateway,
                life,
            } => {
                let wanted = json!({
                    "site": site.as_str(), "gateway": gateway.as_str(), "life_secs": life.as_secs(),
                });
                let answer = self.post("/v1/gateways/replace", &wanted).await?;
                text_of(&answer, "token").map(|token| token + "\n")
            }
            Gateways::Unlock { site, gateway } => {
                let wanted = json!({ "site": site.as_str(), "gateway": gateway.as_str() });
                self.post("/v1/gateways/unlock", &wanted).await?;
                Ok(format!(
                    "gateway {gateway} of site {site} is let in again\n"
                ))
            }
        }
    }

    async fn vouchers(&self, vouchers: Vouchers) -> anyhow::Result<String> {
        match vouchers {
            Vouchers::List { json } => {
                let columns = ["guid", "serial", "info", "site", "state"];
                self.table("/v1/vouchers", &columns, json).await
            }
            Vouchers::Show { guid } => self.facts(&format!("/v1/vouchers/{guid}"), false).await,
            Vouchers::Assign { guid, site } => {
                let wanted = json!({ "site": site.as_str() });
                self.post(&format!("/v1/vouchers/{guid}/assign"), &wanted)
                    .await?;
                Ok(format!(
                    "device {guid} belongs to site {site}; it can be powered on\n"
                ))
            }
            Vouchers::Extend { guid, to, out } => {
                if let Some(taken) = out.as_deref().filter(|out| out.exists()) {
                    let taken = taken.display();
                    return Err(
                        Misuse(format!("{taken} exists already; choose another --out")).into(),
                    );
                }
                let wanted = json!({ "key": STANDARD.encode(public_key(&to)?) });
                let path = format!("/v1/vouchers/{guid}/extend");
                let pem = text_of(&self.post(&path, &wanted).await?, "pem")?;
                let Some(out) = out else {
                    return Ok(pem);
                };
                secret_file::write(&out, pem.as_bytes())
                    .with_context(|| format!("cannot write {}", out.display()))?;
                Ok(format!("voucher {guid} is in {}\n", out.display()))
            }
            Vouchers::Import { file } => {
                let bytes = read_file(&file)?;
                let wanted = json!({ "file": STANDARD.encode(bytes) });
                let answer = self.post("/v1/vouchers/import", &wanted).await?;
                let guid = text_of(&answer, "guid")?;
                Ok(format!(
                    "voucher {guid} is kept; next: vouchers assign {guid} --site SITE\n"
                ))
            }
            Vouchers::Export { guid } => text_of(
                &self.get(&format!("/v1/vouchers/{guid}/export")).await?,
                "pem",
            ),
        }
    }

    async fn client(
        &self,
        Clients::Issue {
            name,
            site,
            publish,
            subscribe,
            out,
        }: Clients,
    ) -> anyhow::Result<String> {
        let wanted = json!({
            "name": name.as_str(), "site": site.as_ref().map(SiteId::as_str),
            "publish": publish, "subscribe": subscribe,
        });
        let answer = self.post("/v1/clients", &wanted).await?;
        let keep = |file: &str, field: &str, secret: bool| -> anyhow::Result<()> {
            let (path, text) = (out.join(file), text_of(&answer, field)?);
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

    async fn export(&self, device: DeviceId) -> anyhow::Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let done = ask::export(&self.socket, device.as_str(), &mut out).await;
        done.map_err(classify)
    }
}

/// The exit code follows from whose fault it is.
fn classify(error: AskError) -> anyhow::Error {
    match error {
        AskError::NotRunning { .. } => Unavailable(error.to_string()).into(),
        AskError::Refused(_) => Misuse(error.to_string()).into(),
        AskError::Failed(_) | AskError::Broken(_) => error.into(),
    }
}

fn text_of(answer: &Value, field: &str) -> anyhow::Result<String> {
    let text = answer[field].as_str().map(str::to_owned);
    text.with_context(|| {
        format!("the answer holds no {field}; are program and daemon of one version?")
    })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = std::fs::read(path);
    read.map_err(|error| Misuse(format!("cannot read {}: {error}", path.display())).into())
}

/// SubjectPublicKeyInfo of a PEM file.
fn public_key(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text = String::from_utf8_lossy(&read_file(path)?).into_owned();
    let body = text
        .split_once("-----BEGIN PUBLIC KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"))
        .map(|(body, _)| body.split_whitespace().collect::<String>());
    let der = body.and_then(|body| STANDARD.decode(body).ok());
    der.ok_or_else(|| Misuse(format!("{} holds no PEM block PUBLIC KEY", path.display())).into())
}
