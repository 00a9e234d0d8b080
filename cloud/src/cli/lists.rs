//! `holdfast-cloud refusals`, `installers` and `manufacturers`: what sync did not believe, and whom
//! it shall believe.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Subcommand;
use holdfast_cps::{lists, refusals};
use holdfast_protocol::id::{ClientName, DeviceId, SiteId};
use serde_json::{Value, json};

use super::{Ask, Misuse, pretty, public_key, read_file, show, text_of};

/// `refusals ...`
#[derive(Debug, Subcommand)]
pub enum Refusals {
    /// List the entries of gateways that were refused, newest first
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `installers ...`
#[derive(Debug, Subcommand)]
pub enum Installers {
    /// Have a site's gateway take vouchers that were extended with this key
    Add {
        /// Public key as `holdfast-installer key show` prints it
        file: PathBuf,
        /// Name to know it by: lower-case letters, digits, hyphens
        #[arg(long)]
        name: ClientName,
        /// The site; without it vouchers are taken here, at the cloud
        #[arg(long)]
        site: Option<SiteId>,
    },
    /// Take no more vouchers from it; devices that came by it keep working
    Remove {
        /// Its name
        name: ClientName,
        /// The site at which it is listed; without it the cloud
        #[arg(long)]
        site: Option<SiteId>,
    },
    /// List them
    List {
        /// Those of this site alone
        #[arg(long)]
        site: Option<SiteId>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `manufacturers ...`
#[derive(Debug, Subcommand)]
pub enum Manufacturers {
    /// Believe the devices of a manufacturer, those that came before too
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

impl Ask {
    pub(super) async fn refusals(
        &self,
        Refusals::List { json }: Refusals,
    ) -> anyhow::Result<String> {
        self.table("/v1/refusals", &refusals::COLUMNS, json).await
    }

    pub(super) async fn installers(&self, installers: Installers) -> anyhow::Result<String> {
        let name_of = |site: &Option<SiteId>| site.as_ref().map(ToString::to_string);
        match installers {
            Installers::List { site: None, json } => {
                self.table("/v1/installers", &lists::COLUMNS, json).await
            }
            Installers::List {
                site: Some(site),
                json,
            } => {
                let wanted = json!({ "site": site.as_str() });
                let rows = self.post("/v1/installers/of", &wanted).await?;
                Ok(match json {
                    true => pretty(&rows),
                    false => show::table(&rows, &lists::COLUMNS),
                })
            }
            Installers::Add { file, name, site } => {
                let key = STANDARD.encode(public_key(&file)?);
                let wanted = json!({ "name": name.as_str(), "key": key, "site": name_of(&site) });
                let answer = self.post("/v1/installers", &wanted).await?;
                let key = text_of(&answer, "key")?;
                Ok(format!("vouchers extended by {name} ({key}) are taken\n"))
            }
            Installers::Remove { name, site } => {
                let wanted = json!({ "name": name.as_str(), "site": name_of(&site) });
                self.post("/v1/installers/remove", &wanted).await?;
                Ok(format!("{name} is not listed any more\n"))
            }
        }
    }

    pub(super) async fn manufacturers(
        &self,
        manufacturers: Manufacturers,
    ) -> anyhow::Result<String> {
        match manufacturers {
            Manufacturers::List { json } => {
                let columns = lists::MAKER_COLUMNS;
                self.table("/v1/manufacturers", &columns, json).await
            }
            Manufacturers::Add { file, device, name } => {
                let wanted = json!({
                    "name": name.as_str(), "key": file.map(|file| maker(&file)).transpose()?,
                    "device": device.map(|device| device.to_string()),
                });
                let answer = self.post("/v1/manufacturers", &wanted).await?;
                let key = text_of(&answer, "key")?;
                Ok(format!("devices made by {name} ({key}) are believed\n"))
            }
            Manufacturers::Remove { name } => {
                let wanted: Value = json!({ "name": name.as_str() });
                self.post("/v1/manufacturers/remove", &wanted).await?;
                Ok(format!("{name} is not believed any more\n"))
            }
        }
    }
}

/// The key of a PEM file, or the whole of a voucher file, in base64.
fn maker(file: &std::path::Path) -> anyhow::Result<String> {
    let bytes = read_file(file)?;
    if bytes.len() > MAKER_BYTES {
        let file = file.display();
        return Err(Misuse(format!("{file} is too long for a key or a voucher")).into());
    }
    Ok(STANDARD.encode(public_key(file).unwrap_or(bytes)))
}

/// Longest file of a manufacturer read.
const MAKER_BYTES: usize = 256 * 1024;
