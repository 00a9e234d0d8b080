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
use holdfast_protocol::id::SiteId;

use crate::gateway::Gateway;
use crate::handed::{Noted, Notes};
use crate::pair::{Pair, Relay};
use crate::{gateway, key, paper, trust};

const FIRST_STEPS: &str = "First steps:
  holdfast-installer key new > me.pem     once; the seller and the gateway's operator need me.pem
  holdfast-installer trust root.pem       once; `holdfast-gateway root` prints it
  holdfast-installer extend device.ov     for each device; then power it on
  holdfast-installer pair --help          for a device that has no network yet

Exit codes: 0 done, also if it was done before; 64 wrong command line; 69 nobody reached, try again;
1 refused: the sentence says by whom and what to do.";

const EXTEND: &str = "Examples:
  holdfast-installer extend device.ov                               find the gateway on this LAN
  holdfast-installer extend device.ov --gateway 192.168.1.10:8443   or name it
  holdfast-installer extend device.ov --to next.pem --out next.ov   or write a file for the next owner

Running it again is always safe: it says so if the gateway has the voucher already.";

const PAIR: &str = "Example, after this machine got the address that the device has from its factory:
  holdfast-installer pair device.ov --ssid harbour --passphrase-file pass \\
      --listen 192.168.49.1:8042 --to rv.example.com:8042 --to 192.168.1.10:8042

Both sides prove themselves by the voucher before the device hears of the network. Running it again is safe.";

const RELAY: &str = "Example:
  holdfast-installer relay --listen 192.168.49.1:8042 \\
      --to rv.example.com:8042 --to 192.168.1.10:8042

The first server that knows the device answers; one that is out of reach is passed over.";

/// Read ownership vouchers, check them, and hand them on
#[derive(Debug, Parser)]
#[command(name = "holdfast-installer", version, after_help = FIRST_STEPS)]
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
        /// Voucher file: PEM, CBOR or base64
        voucher: PathBuf,
    },
    /// Believe in the gateways under one root certificate, from now on
    Trust {
        /// Its file (PEM or DER), or its SHA-256 in hexadecimal digits
        #[arg(value_name = "FILE|FINGERPRINT")]
        root: String,
    },
    /// Extend a voucher that names your key to the site's gateway and hand it in there
    #[command(after_help = EXTEND)]
    Extend(Extend),
    /// Hand a new device the credentials of the site's network, at the address it has from the factory
    #[command(after_help = PAIR)]
    Pair(Pair),
    /// Pass devices' rendezvous requests on, at the address they have from the factory
    #[command(after_help = RELAY)]
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
    /// Voucher file: PEM (with several vouchers the one that names your key is taken), CBOR or base64
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
    /// Hand in at this site only: chooses among several gateways, and refuses those of other sites
    #[arg(long, value_name = "SITE", conflicts_with = "to")]
    site: Option<SiteId>,
    /// Extend it although it went to another owner before. Only if that one is lost for good: the device
    /// would follow whichever of the two it meets first
    #[arg(long)]
    anew: bool,
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
            Command::Show { voucher } => paper::describe_all(&paper::read_all(voucher)?),
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
        let voucher = paper::extend(&self.voucher, &next, &signer, self.notes(state), out)?;
        let shown = paper::describe(&voucher);
        Ok(format!("{shown}written to {}\n", out.display()))
    }

    fn to_gateway(&self, state: &Path) -> anyhow::Result<String> {
        let roots = match &self.root {
            Some(given) => trust::read(given)?.into(),
            None => trust::pinned(state)?,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(self.hand_in(state, &roots))
    }

    /// The site's root may be about to change: the pinned one vouches for the next.
    async fn follow_roots(&self, state: &Path, met: &Gateway) -> anyhow::Result<()> {
        if self.root.is_some() {
            return Ok(());
        }
        if let Some((told, crosses)) = met.roots().await
            && trust::follow(state, &told, &crosses)?
        {
            progress("the site's root has changed, vouched for by the trusted one: noted");
        }
        Ok(())
    }

    fn notes<'a>(&self, state: &'a Path) -> Notes<'a> {
        Notes::of(state, self.anew)
    }

    /// Checks all that can be checked without a network first; says what it does as it goes.
    async fn hand_in(&self, state: &Path, roots: &trust::Roots) -> anyhow::Result<String> {
        let signer = key::load(state)?;
        let voucher = paper::read(&self.voucher, &signer.public())?;
        let guid = voucher.guid();
        progress(&format!("voucher of device {guid}: its chain holds"));
        let addresses = match &self.gateway {
            Some(told) => vec![told.to_string()],
            None => {
                let interfaces = match self.interface.as_slice() {
                    [] => Interfaces::Lan,
                    named => Interfaces::Named(named.to_vec()),
                };
                gateway::find(&interfaces, self.site.as_ref())
                    .await
                    .map_err(unavailable)?
            }
        };
        let clock = Arc::new(SystemClock::open(&state.join("time"), SystemTrust::Hint)?);
        let met = Gateway::meet(&addresses, self.site.as_ref(), roots, clock)
            .await
            .map_err(unavailable)?;
        progress(&format!("gateway {} at {}", met.name, addresses.join(", ")));
        let (extended, noted) = if voucher.is_owned_by(&met.owner_key) {
            progress("extended to it before");
            (voucher, Noted::Before)
        } else {
            paper::check_ours(&voucher, &self.voucher, &signer.public())?;
            let noted = self.notes(state).note(guid, &met.owner_key, &met.name)?;
            let extended = paper::sign(&voucher, &self.voucher, &met.owner_key, &signer)?;
            progress("extended to it");
            (extended, noted)
        };
        let handed = met.hand_in(&extended).await;
        if handed.is_ok() {
            self.follow_roots(state, &met).await?;
        }
        match handed {
            Ok(true) => Ok(format!("{} has the voucher of {guid} already\n", met.name)),
            Ok(false) => Ok(format!(
                "{} took the voucher of {guid}; the device can be powered on\n",
                met.name
            )),
            Err(fault) => {
                // What was refused for good is not with that gateway; another may be right.
                if fault.is_refusal() && noted == Noted::Now {
                    self.notes(state).forget(guid)?;
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
