//! The command line of `holdfast-gateway`. `enrol` and `run` work on the state folder themselves;
//! every other command asks the running gateway over its admin socket (`<state>/admin.sock`).
//!
//! Called by `main` alone.

mod authority;
mod bridge;
mod services;

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use holdfast_config::cli::{Common, Extra, Misuse, Unavailable};
use holdfast_config::{HostPort, life};
use holdfast_cps::enrol::Token;
use holdfast_server::ask::{Ask, read_file, text_of};
use holdfast_server::cli::certificates::Certificates;
use holdfast_server::cli::clients::Clients;
use holdfast_server::cli::keys::Keys;
use holdfast_server::cli::lists::{Installers, Manufacturers, Refusals};
use holdfast_server::cli::records::Records;
use holdfast_server::cli::{Devices, OwnSite, Telemetry, print, runtime};

use self::authority::Authority;
use self::bridge::Bridge;
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
        /// Where the cloud's HTTPS listener is reached; without a port it is 8443
        #[arg(long, value_name = "HOST[:PORT]", value_parser = cloud_at)]
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
    Clients(Clients<OwnSite>),
    /// What devices of this site sent lately
    #[command(subcommand)]
    Telemetry(Telemetry),
    /// Installers, and manufacturers, whose vouchers are taken when they are handed in here
    #[command(subcommand)]
    Installers(Installers<OwnSite>),
    /// Manufacturers whose devices are believed at this site
    #[command(subcommand)]
    Manufacturers(Manufacturers),
    /// Entries of the cloud that were not believed
    #[command(subcommand)]
    Refusals(Refusals),
    /// What is on record, in its order, and when that was as far as it is known
    Records(Records),
    /// Print the certificate that everybody of this installation believes in (PEM)
    Root {
        /// Its SHA-256 instead, for `holdfast-installer trust`
        #[arg(long)]
        fingerprint: bool,
    },
    /// Certificates: list them, renew them, revoke them
    #[command(subcommand)]
    Certificates(Certificates),
    /// Owner key and signing key: show them, rotate them
    #[command(subcommand)]
    Keys(Keys),
    /// The site's authority and the roots that are believed
    #[command(subcommand)]
    Authority(Authority),
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
        let ask = Ask::of(&state);
        let text = match self.command {
            Command::Extra(_) => String::new(),
            Command::Run => return run(&self.common, &state).await,
            Command::Enrol { cloud, token_file } => {
                enrol(&self.common, &state, &cloud, &token_file).await?
            }
            Command::Status { json } => ask.facts("/v1/status", json).await?,
            Command::Devices(devices) => devices.execute(&ask).await?,
            Command::Clients(clients) => clients.execute(&ask).await?,
            Command::Telemetry(telemetry) => return telemetry.execute(&ask).await,
            Command::Installers(installers) => installers.execute(&ask).await?,
            Command::Manufacturers(makers) => makers.execute(&ask).await?,
            Command::Refusals(refusals) => refusals.execute(&ask).await?,
            Command::Root { fingerprint } => {
                let root = ask.get("/v1/root").await?;
                match fingerprint {
                    true => text_of(&root, "sha256")? + "\n",
                    false => text_of(&root, "pem")?,
                }
            }
            Command::Certificates(what) => what.execute(&ask).await?,
            Command::Authority(what) => what.execute(&ask).await?,
            Command::Records(records) => records.execute(&ask).await?,
            Command::Keys(keys) => keys.execute(&ask).await?,
            Command::Services(services) => services.execute(&ask).await?,
            Command::Bridge(bridge) => bridge.execute(&ask).await?,
        };
        print(&text)
    }
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

/// Port of the cloud's HTTPS listener where none is named.
const CLOUD_PORT: u16 = 8443;

fn cloud_at(text: &str) -> Result<HostPort, String> {
    let bare = match text.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{CLOUD_PORT}"),
        Err(_) => format!("{text}:{CLOUD_PORT}"),
    };
    let found = text.parse().or_else(|_| bare.parse());
    found.map_err(|_: &str| "write the cloud's name or address, such as \"cloud.example.com\" or \"cloud.example.com:8443\"".to_owned())
}

fn read_token(file: &Path) -> anyhow::Result<Token> {
    let text = String::from_utf8_lossy(&read_file(file)?).into_owned();
    Ok(text
        .parse()
        .map_err(|bad: holdfast_cps::enrol::BadToken| Misuse(bad.to_string()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cloud_is_named_with_or_without_its_port() {
        let at = |text: &str| cloud_at(text).map(|found| found.to_string());
        assert_eq!(
            at("cloud.example.com").as_deref(),
            Ok("cloud.example.com:8443")
        );
        assert_eq!(
            at("cloud.example.com:9443").as_deref(),
            Ok("cloud.example.com:9443")
        );
        assert_eq!(at("10.0.0.1").as_deref(), Ok("10.0.0.1:8443"));
        assert_eq!(at("fe80::1").as_deref(), Ok("[fe80::1]:8443"));
        assert_eq!(at("[fe80::1]:1").as_deref(), Ok("[fe80::1]:1"));
        for bad in [
            "",
            "https://cloud.example.com",
            "cloud.example.com:",
            "a b",
            "cloud:0",
            "-",
        ] {
            assert!(at(bad).is_err(), "{bad}");
        }
    }
}
