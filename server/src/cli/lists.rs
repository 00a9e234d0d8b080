//! `refusals`, `installers` and `manufacturers`: what sync did not believe, and whom
//! it shall believe.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use holdfast_config::cli::Misuse;
use holdfast_cps::{lists, refusals};
use holdfast_protocol::id::{ClientName, DeviceId};
use serde_json::json;

use super::{Scope, at};
use crate::ask::{Ask, public_key, read_file, rows_as, text_of};

/// `refusals ...`
#[derive(Debug, Subcommand)]
pub enum Refusals {
    /// List the entries of the other side's log that were refused, newest first
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `installers ...`
#[derive(Debug, Subcommand)]
pub enum Installers<S: Scope> {
    /// Take vouchers that were extended with this key
    Add {
        /// Public key as `holdfast-installer key show` prints it
        file: PathBuf,
        /// Name to know it by: lower-case letters, digits, hyphens
        #[arg(long)]
        name: ClientName,
        /// Where.
        #[command(flatten)]
        scope: S,
    },
    /// Take no more vouchers from it; devices that came by it keep working
    Remove {
        /// Its name
        name: ClientName,
        /// Where.
        #[command(flatten)]
        scope: S,
    },
    /// List them
    List {
        /// Where.
        #[command(flatten)]
        scope: S,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `manufacturers ...`
#[derive(Debug, Subcommand)]
pub enum Manufacturers {
    /// Believe the devices of a manufacturer, those that came before too; each server goes by its own list
    Add {
        /// Its public key (PEM), or a voucher of one of its devices
        #[arg(required_unless_present = "device")]
        file: Option<PathBuf>,
        /// A device of its make that is shown as of an unknown manufacturer, 32 hexadecimal digits
        #[arg(long, conflicts_with = "file")]
        device: Option<DeviceId>,
        /// Name to know it by: lower-case letters, digits, hyphens
        #[arg(long)]
        name: ClientName,
    },
    /// Believe it no more: its devices are shown as of an unknown manufacturer
    Remove {
        /// Its name
        name: ClientName,
    },
    /// List them, and those that devices or gateways name and nobody listed here
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Refusals {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know, here and below.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        let Self::List { json } = self;
        ask.table("/v1/refusals", &refusals::COLUMNS, json).await
    }
}

impl<S: Scope> Installers<S> {
    /// Does what was asked.
    ///
    /// # Errors
    /// As above.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { scope, json } => {
                let rows = match scope.site() {
                    None => ask.get("/v1/installers").await?,
                    Some(_) => {
                        ask.post("/v1/installers/of", &at(&scope, json!({})))
                            .await?
                    }
                };
                Ok(rows_as(&rows, &lists::COLUMNS, json))
            }
            Self::Add { file, name, scope } => {
                let key = STANDARD.encode(public_key(&file)?);
                let wanted = json!({ "name": name.as_str(), "key": key });
                let answer = ask.post("/v1/installers", &at(&scope, wanted)).await?;
                let key = text_of(&answer, "key")?;
                Ok(format!("vouchers extended by {name} ({key}) are taken\n"))
            }
            Self::Remove { name, scope } => {
                let wanted = at(&scope, json!({ "name": name.as_str() }));
                ask.post("/v1/installers/remove", &wanted).await?;
                Ok(format!("{name} is not listed any more\n"))
            }
        }
    }
}

impl Manufacturers {
    /// Does what was asked.
    ///
    /// # Errors
    /// As above.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => {
                let columns = lists::MAKER_COLUMNS;
                ask.table("/v1/manufacturers", &columns, json).await
            }
            Self::Add { file, device, name } => {
                let wanted = json!({
                    "name": name.as_str(), "key": file.map(|file| maker(&file)).transpose()?,
                    "device": device.map(|device| device.to_string()),
                });
                let answer = ask.post("/v1/manufacturers", &wanted).await?;
                let key = text_of(&answer, "key")?;
                Ok(format!("devices made by {name} ({key}) are believed\n"))
            }
            Self::Remove { name } => {
                let wanted = json!({ "name": name.as_str() });
                ask.post("/v1/manufacturers/remove", &wanted).await?;
                Ok(format!("{name} is not believed any more\n"))
            }
        }
    }
}

/// The key of a PEM file, or the whole of a voucher file, in base64.
fn maker(file: &Path) -> anyhow::Result<String> {
    let bytes = read_file(file)?;
    if bytes.len() > MAKER_BYTES {
        let file = file.display();
        return Err(Misuse(format!("{file} is too long for a key or a voucher")).into());
    }
    Ok(STANDARD.encode(public_key(file).unwrap_or(bytes)))
}

/// Longest file of a manufacturer read.
const MAKER_BYTES: usize = 256 * 1024;
