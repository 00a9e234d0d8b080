//! The command line of `holdfast-agent`.
//!
//! Called by `main` alone. `init` and `run` change the state folder, `status` only reads it and works
//! beside a running agent.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use holdfast_config::cli::{Common, Extra, Misuse, Unavailable};
use holdfast_config::life;
use holdfast_link::fdo;

use crate::app::{Agent, claim};
use crate::config::Config;
use crate::onboard::{self, Fault};
use crate::renewal::Ordered;
use crate::status::{self, Lock};
use crate::vault::{Vault, VaultError};

/// Name of the program, of its state folder and of its unit.
pub const PROGRAM: &str = "holdfast-agent";

/// Port of FDO over HTTP when the URL names none.
const DEFAULT_PORT: u16 = 8042;
/// For the running agent to renew.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one look whether it has to the next.
const POLL: Duration = Duration::from_millis(200);
/// For one answer of the manufacturer.
const DEADLINE: Duration = Duration::from_secs(15);

/// The device side of Holdfast: onboards by FDO, publishes sensor readings, never loses one
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

/// What `holdfast-agent` can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give the device its first credential, as in the factory
    Init {
        /// Where the manufacturer answers, such as http://10.0.0.5:8042
        #[arg(long, value_name = "URL")]
        manufacturer: String,
        /// The device's serial number
        #[arg(long)]
        serial: String,
        /// The device's model
        #[arg(long, default_value = "holdfast-agent")]
        model: String,
    },
    /// Onboard if need be, then publish, in the foreground
    Run,
    /// Renew the device's certificate now, with a fresh key: by the running agent, or without one
    Renew,
    /// Show how the agent is
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Commands that all Holdfast programs have.
    #[command(flatten)]
    Extra(Extra),
}

/// Does what the command line says.
///
/// # Errors
/// As the operator should read them.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    let done = act(cli).await;
    // Whether it comes from `run` or `status`: the operator has to initialise the device first.
    done.map_err(|error| match error.downcast_ref::<VaultError>() {
        Some(VaultError::Missing) => Misuse(error.to_string()).into(),
        _ => error,
    })
}

async fn act(cli: Cli) -> anyhow::Result<()> {
    let state = cli.common.state_or_default(PROGRAM);
    match cli.command {
        Command::Init {
            manufacturer,
            serial,
            model,
        } => init(&state, &manufacturer, &serial, &model).await,
        Command::Run => {
            let config: Config = holdfast_config::read(cli.common.config.as_deref())?;
            life::start_logging(&cli.common)?;
            let stop = life::stop_on_signal()?;
            Agent::open(config, state)?.run(stop).await
        }
        Command::Renew => {
            let config: Config = holdfast_config::read(cli.common.config.as_deref())?;
            renew(config, state).await
        }
        Command::Status { json } => show(&state, json),
        Command::Extra(extra) => extra.run::<Config, Cli>(&cli.common),
    }
}

/// The order is left in the folder first: whoever carries it out, and whenever, it is not lost.
async fn renew(config: Config, state: PathBuf) -> anyhow::Result<()> {
    Vault::new(&state).load()?;
    let ordered = Ordered::of(&state);
    ordered.leave().context("cannot leave the order")?;
    if !Lock::is_held(&state) {
        Agent::open(config, state)?.renew().await?;
        writeln!(std::io::stdout(), "renewed")?;
        return Ok(());
    }
    let carried_out = async {
        while ordered.is_open() {
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(PATIENCE, carried_out).await {
        Ok(()) => writeln!(std::io::stdout(), "renewed by the running agent")?,
        Err(_) => {
            let why = "the running agent has not renewed yet; the order stays open, see its log";
            return Err(Unavailable(why.to_owned()).into());
        }
    }
    Ok(())
}

async fn init(state: &Path, manufacturer: &str, serial: &str, model: &str) -> anyhow::Result<()> {
    let (address, prefix) = manufacturer_at(manufacturer)?;
    let _lock = claim(state)?;
    let vault = Vault::new(state);
    let made = onboard::initialise(&vault, address, &prefix, serial, model, DEADLINE).await;
    let device = made.map_err(|fault| told(fault, manufacturer))?;
    writeln!(std::io::stdout(), "{device}")?;
    Ok(())
}

/// Whose turn it is to do something about a failed initialisation.
fn told(fault: Fault, manufacturer: &str) -> anyhow::Error {
    match fault {
        Fault::Vault(error @ VaultError::Present(_)) => Misuse(error.to_string()).into(),
        Fault::Exchange(error @ fdo::Error::Refused { .. }) => anyhow::Error::new(error)
            .context("the manufacturer refused the device: see its log"),
        Fault::Exchange(error) => anyhow::Error::new(Unavailable(error.to_string())).context(
            format!("no manufacturer answers at {manufacturer}: is it running, and is the address right?"),
        ),
        other => other.into(),
    }
}

/// Splits an http URL into host:port and path.
fn manufacturer_at(url: &str) -> Result<(String, String), Misuse> {
    let wrong = |why: &str| Misuse(format!("--manufacturer {url:?} {why}"));
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => {
            return Err(wrong(
                "must begin with http:// (initialisation protects itself by the factory's network)",
            ));
        }
        None => url,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.is_empty() || authority.contains(['@', '?', '#', ' ']) {
        return Err(wrong("names no host: write http://HOST:PORT"));
    }
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let address = match authority[after_bracket..].rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
        Some(_) => return Err(wrong("names no port from 1 to 65535")),
        None => format!("{authority}:{DEFAULT_PORT}"),
    };
    Ok((address, path.trim_end_matches('/').to_owned()))
}

fn show(state: &Path, json: bool) -> anyhow::Result<()> {
    let running = Lock::is_held(state);
    let kept = status::read(state).with_context(|| {
        let state = state.display();
        format!("cannot read the status in {state}; ask as root, or as the agent's user")
    })?;
    let mut status = match kept {
        Some(status) => status,
        None => {
            // Never ran: the vault alone knows who it is.
            let contents = Vault::new(state).load()?;
            status::Status {
                device: Some(contents.device().to_string()),
                ..status::Status::default()
            }
        }
    };
    if !running {
        (status.server, status.role, status.address) = (None, None, None);
    }
    let mut out = std::io::stdout();
    if json {
        let mut object = serde_json::to_value(&status)?;
        object["running"] = running.into();
        writeln!(out, "{object:#}")?;
    } else {
        write!(out, "{}", status::show(&status, running))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_parser_is_sound_and_urls_are_split() {
        Cli::command().debug_assert();
        let good = |url| manufacturer_at(url).unwrap();
        assert_eq!(
            good("http://10.0.0.5:8042"),
            ("10.0.0.5:8042".into(), String::new())
        );
        assert_eq!(good("factory"), ("factory:8042".into(), String::new()));
        assert_eq!(
            good("http://[::1]/di/"),
            ("[::1]:8042".into(), "/di".into())
        );
        assert_eq!(
            good("http://[::1]:1/a/b"),
            ("[::1]:1".into(), "/a/b".into())
        );
        for bad in [
            "https://x",
            "http://",
            "http://x:port",
            "http://u@x",
            "http:// x",
            "x:0x",
        ] {
            let error = manufacturer_at(bad).unwrap_err().to_string();
            assert!(error.contains("--manufacturer"), "{error}");
        }
    }
}
