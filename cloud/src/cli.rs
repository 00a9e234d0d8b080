//! The command line of `holdfast-cloud`. `run` is the daemon; every other command asks the running
//! daemon over its admin socket (`<state>/admin.sock`) and prints the answer.
//!
//! Called by `main` alone. It opens no store and no key: only one process ever does.

mod authority;
mod gateways;
mod services;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Parser, Subcommand};
use holdfast_config::cli::{Common, Extra, Misuse, Unavailable};
use holdfast_config::{life, secret_file};
use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_server::ask::{Ask, public_key, read_file, text_of};
use holdfast_server::cli::certificates::Certificates;
use holdfast_server::cli::clients::Clients;
use holdfast_server::cli::keys::Keys;
use holdfast_server::cli::lists::{Installers, Manufacturers, Refusals};
use holdfast_server::cli::records::Records;
use holdfast_server::cli::{AnySite, Devices, Telemetry, print, runtime};
use serde_json::json;

use self::authority::Authority;
use self::gateways::Gateways;
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
    Clients(Clients<AnySite>),
    /// Certificates: list them, renew them, revoke them
    #[command(subcommand)]
    Certificates(Certificates),
    /// Roots and intermediates: which hold, and others in their place
    #[command(subcommand)]
    Authority(Authority),
    /// What is on record, in its order, and when that was as far as it is known
    Records(Records),
    /// Owner key and signing key: show them, rotate them
    #[command(subcommand)]
    Keys(Keys),
    /// What devices sent
    #[command(subcommand)]
    Telemetry(Telemetry),
    /// Entries of gateways that were not believed
    #[command(subcommand)]
    Refusals(Refusals),
    /// Installers whose vouchers are taken, site by site
    #[command(subcommand)]
    Installers(Installers<AnySite>),
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
        let ask = Ask::of(&state);
        let text = match self.command {
            Command::Run | Command::Extra(_) => String::new(),
            Command::Status { json } => ask.facts("/v1/status", json).await?,
            Command::Sites(sites) => sites.execute(&ask).await?,
            Command::Gateways(gateways) => gateways.execute(&ask).await?,
            Command::Vouchers(vouchers) => vouchers.execute(&ask).await?,
            Command::Devices(devices) => devices.execute(&ask).await?,
            Command::Clients(clients) => clients.execute(&ask).await?,
            Command::Certificates(what) => what.execute(&ask).await?,
            Command::Authority(what) => what.execute(&ask).await?,
            Command::Records(records) => records.execute(&ask).await?,
            Command::Keys(keys) => keys.execute(&ask).await?,
            Command::Services(services) => services.execute(&ask).await?,
            Command::Refusals(refusals) => refusals.execute(&ask).await?,
            Command::Installers(installers) => installers.execute(&ask).await?,
            Command::Manufacturers(makers) => makers.execute(&ask).await?,
            Command::Telemetry(telemetry) => return telemetry.execute(&ask).await,
        };
        print(&text)
    }
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

impl Sites {
    async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => ask.table("/v1/sites", &["site"], json).await,
            Self::Add { site } => {
                ask.post("/v1/sites", &json!({ "site": site.as_str() }))
                    .await?;
                Ok(format!(
                    "site {site} is there; next: gateways token --site {site} --gateway NAME\n"
                ))
            }
        }
    }
}

impl Vouchers {
    async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => {
                let columns = ["guid", "serial", "info", "site", "state"];
                ask.table("/v1/vouchers", &columns, json).await
            }
            Self::Show { guid } => ask.facts(&format!("/v1/vouchers/{guid}"), false).await,
            Self::Assign { guid, site } => {
                let wanted = json!({ "site": site.as_str() });
                ask.post(&format!("/v1/vouchers/{guid}/assign"), &wanted)
                    .await?;
                Ok(format!(
                    "device {guid} belongs to site {site}; it can be powered on\n"
                ))
            }
            Self::Extend { guid, to, out } => {
                if let Some(taken) = out.as_deref().filter(|out| out.exists()) {
                    let taken = taken.display();
                    return Err(
                        Misuse(format!("{taken} exists already; choose another --out")).into(),
                    );
                }
                let wanted = json!({ "key": STANDARD.encode(public_key(&to)?) });
                let path = format!("/v1/vouchers/{guid}/extend");
                let pem = text_of(&ask.post(&path, &wanted).await?, "pem")?;
                let Some(out) = out else {
                    return Ok(pem);
                };
                secret_file::write(&out, pem.as_bytes())
                    .with_context(|| format!("cannot write {}", out.display()))?;
                Ok(format!("voucher {guid} is in {}\n", out.display()))
            }
            Self::Import { file } => {
                let bytes = read_file(&file)?;
                let wanted = json!({ "file": STANDARD.encode(bytes) });
                let answer = ask.post("/v1/vouchers/import", &wanted).await?;
                let guid = text_of(&answer, "guid")?;
                Ok(format!(
                    "voucher {guid} is kept; next: vouchers assign {guid} --site SITE\n"
                ))
            }
            Self::Export { guid } => text_of(
                &ask.get(&format!("/v1/vouchers/{guid}/export")).await?,
                "pem",
            ),
        }
    }
}
