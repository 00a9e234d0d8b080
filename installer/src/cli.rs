//! The command line of the installer's tool.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use holdfast_config::cli::{Common, Extra, Unavailable};
use holdfast_config::{HostPort, Section, Settings};
use holdfast_link::discovery::Interfaces;
use holdfast_link::time::{SystemClock, SystemTrust};

use crate::gateway::Gateway;
use crate::handed::Noted;
use crate::pair::{Pair, Relay};
use crate::{gateway, handed, key, paper, trust};

/// Read ownership vouchers, check them, and hand them on
#[derive(Debug, Parser)]
#[command(name = "holdfast-installer", version)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Your own signing key, to which sellers extend vouchers
    #[command(subcommand)]
    Key(KeyCommand),
    /// Check a voucher file and show what it says
    Show {
        /// Voucher file, PEM or CBOR
        voucher: PathBuf,
    },
    /// Believe in the gateways under one root certificate, from now on
    Trust {
        /// Its file (PEM or DER), or its SHA-256 in hexadecimal digits
        #[arg(value_name = "FILE|FINGERPRINT")]
        root: String,
    },
    /// Extend a voucher that names your key to the site's gateway and hand it in there
    Extend(Extend),
    /// Hand a new device the credentials of the site's network, at the address it has from the factory
    Pair(Pair),
    /// Pass devices' rendezvous requests on, at the address they have from the factory
    Relay(Relay),
    #[command(flatten)]
    Extra(Extra),
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make the key; an existing one is never replaced
    New,
    /// Print its public half as PEM, for the seller
    Show,
}

#[derive(Debug, Args)]
struct Extend {
    /// Voucher file, PEM or CBOR
    voucher: PathBuf,
    /// The gateway's HTTPS listener; without it the LAN is searched
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "to")]
    gateway: Option<HostPort>,
    /// Root certificate to believe in this time (file or fingerprint), instead of the trusted one
    #[arg(long, value_name = "FILE|FINGERPRINT", conflicts_with = "to")]
    root: Option<String>,
    /// Network interface to search on (may be repeated); without it all but the loopback one
    #[arg(long, value_name = "NAME", conflicts_with_all = ["to", "gateway"])]
    interface: Vec<String>,
    /// Write a file for the next owner with this public key (PEM), instead of handing in
    #[arg(long, value_name = "FILE", requires = "out")]
    to: Option<PathBuf>,
    /// Where to write the extended voucher; must not exist
    #[arg(long, value_name = "FILE", requires = "to")]
    out: Option<PathBuf>,
}

/// The installer's tool has no settings beyond its command line: every key is unknown.
#[derive(Debug)]
struct NoSettings;

impl Settings for NoSettings {
    fn read(_section: &mut Section<'_>) -> Self {
        Self
    }
}

impl Cli {
    /// Does what the command line asks.
    ///
    /// # Errors
    /// Each says what is wrong and what to do.
    pub fn run(&self) -> anyhow::Result<()> {
        let state = self.common.state_or_default("holdfast-installer");
        let text = match &self.command {
            Command::Key(KeyCommand::New) => key::to_pem(&key::make(&state)?.public()),
            Command::Key(KeyCommand::Show) => key::to_pem(&key::load(&state)?.public()),
            Command::Show { voucher } => paper::describe(&paper::read(voucher)?),
            Command::Trust { root } => {
                let root = trust::read(root)?;
                trust::pin(&state, root)?;
                format!("gateways under the root {root} are trusted\n")
            }
            Command::Extend(extend) => match (&extend.to, &extend.out) {
                (Some(to), Some(out)) => extend.to_file(&state, to, out)?,
                _ => extend.to_gateway(&state)?,
            },
            Command::Pair(pair) => pair.run(&state)?,
            Command::Relay(relay) => relay.run()?,
            Command::Extra(extra) => return extra.run::<NoSettings, Self>(&self.common),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

impl Extend {
    fn to_file(&self, state: &Path, to: &Path, out: &Path) -> anyhow::Result<String> {
        let next = key::read_public(to)?;
        let signer = key::load(state)?;
        let voucher = paper::extend(&self.voucher, &next, &signer, state, out)?;
        let shown = paper::describe(&voucher);
        Ok(format!("{shown}written to {}\n", out.display()))
    }

    fn to_gateway(&self, state: &Path) -> anyhow::Result<String> {
        let root = match &self.root {
            Some(given) => trust::read(given)?,
            None => trust::pinned(state)?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(self.hand_in(state, root))
    }

    /// Checks all that can be checked without a network first; says what it does as it goes.
    async fn hand_in(&self, state: &Path, root: trust::Root) -> anyhow::Result<String> {
        let voucher = paper::read(&self.voucher)?;
        let guid = voucher.guid();
        let signer = key::load(state)?;
        progress(&format!("voucher of device {guid}: its chain holds"));
        let addresses = match &self.gateway {
            Some(told) => vec![told.to_string()],
            None => {
                progress("searching the LAN for a gateway");
                let interfaces = match self.interface.as_slice() {
                    [] => Interfaces::Lan,
                    named => Interfaces::Named(named.to_vec()),
                };
                gateway::find(&interfaces).await.map_err(unavailable)?
            }
        };
        let clock = Arc::new(SystemClock::open(&state.join("time"), SystemTrust::Hint)?);
        let met = Gateway::meet(&addresses, root, clock)
            .await
            .map_err(unavailable)?;
        progress(&format!("gateway {} at {}", met.name, addresses.join(", ")));
        let (extended, noted) = if voucher.is_owned_by(&met.owner_key) {
            progress("extended to it before");
            (voucher, Noted::Before)
        } else {
            paper::check_ours(&voucher, &self.voucher, &signer.public())?;
            let noted = handed::note(state, guid, &met.owner_key, &met.name)?;
            let extended = paper::sign(&voucher, &self.voucher, &met.owner_key, &signer)?;
            progress("extended to it");
            (extended, noted)
        };
        match met.hand_in(&extended).await {
            Ok(true) => Ok(format!("{} has the voucher of {guid} already\n", met.name)),
            Ok(false) => Ok(format!(
                "{} took the voucher of {guid}; the device can be powered on\n",
                met.name
            )),
            Err(fault) => {
                // What was refused for good is not with that gateway; another may be right.
                if fault.is_refusal() && noted == Noted::Now {
                    handed::forget(state, guid)?;
                }
                Err(unavailable(fault))
            }
        }
    }
}

pub(crate) fn progress(text: &str) {
    // Nothing is lost when nobody reads it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn unavailable(fault: gateway::GatewayFault) -> anyhow::Error {
    match fault.is_unavailable() {
        true => Unavailable(fault.to_string()).into(),
        false => fault.into(),
    }
}
