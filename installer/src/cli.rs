//! The command line of the installer's tool.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use holdfast_config::cli::{Common, Extra};
use holdfast_config::{Section, Settings};

use crate::{key, paper};

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
    /// Extend a voucher that names your key to the next owner, such as a gateway
    Extend(Extend),
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
    /// Public key of the next owner (PEM)
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Where to write the extended voucher; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
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
            Command::Extend(extend) => {
                let next = key::read_public(&extend.to)?;
                let signer = key::load(&state)?;
                let voucher = paper::extend(&extend.voucher, &next, &signer, &extend.out)?;
                format!(
                    "{}written to {}\n",
                    paper::describe(&voucher),
                    extend.out.display()
                )
            }
            Command::Extra(extra) => return extra.run::<NoSettings, Self>(&self.common),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}
