//! `authority ...`: roots and intermediates at the cloud.

use clap::Subcommand;
use holdfast_protocol::id::SiteId;
use holdfast_server::ask::{Ask, text_of};
use holdfast_server::cli::authority::{names, shown};
use serde_json::{Value, json};

/// `authority ...`
#[derive(Debug, Subcommand)]
pub enum Authority {
    /// Show the roots that are believed, and which one each gateway leads to
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Put another in its place: everybody follows without a visit, what holds goes on meanwhile
    #[command(subcommand)]
    Rotate(Rotate),
    /// Believe an earlier root no longer; refused while somebody on record leans on it
    Retire {
        /// Its SHA-256, or the beginning of it
        root: String,
        /// Lock out whoever still leans on it; they must be enrolled or onboarded anew
        #[arg(long)]
        force: bool,
    },
}

/// What is put in the place of.
#[derive(Debug, Subcommand)]
pub enum Rotate {
    /// The root: its key is destroyed, its certificate believed until it is retired
    Root,
    /// The cloud's own intermediates, for its servers and for each site
    Own,
    /// The intermediates of a site's gateways; each follows when it is next in reach
    Site {
        /// Which site
        site: SiteId,
    },
}

impl Authority {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::Show { json } => shown(ask, json).await,
            Self::Rotate(what) => what.execute(ask).await,
            Self::Retire { root, force } => {
                let wanted = json!({ "root": root, "force": force });
                let answer = ask.post("/v1/authority/retire", &wanted).await?;
                Ok(match names(&answer["locked_out"]) {
                    none if none.is_empty() => format!("root {root} is retired\n"),
                    some => format!("root {root} is retired; locked out: {some}\n"),
                })
            }
        }
    }
}

impl Rotate {
    async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        let rotate = async |wanted: Value| ask.post("/v1/authority/rotate", &wanted).await;
        match self {
            Self::Root => {
                let answer = rotate(json!({ "what": "root" })).await?;
                let root = text_of(&answer, "root")?;
                Ok(format!(
                    "the root is {root} now; when 'authority show' lists nobody who leans on the earlier one, retire that\n"
                ))
            }
            Self::Own => {
                rotate(json!({ "what": "own" })).await?;
                Ok("the cloud's own intermediates have fresh keys\n".to_owned())
            }
            Self::Site { site } => {
                let wanted = json!({ "what": "site", "site": site.as_str() });
                let answer = rotate(wanted).await?;
                let gateways = names(&answer["ordered"]);
                Ok(format!(
                    "ordered for {gateways}; each follows within a minute when it is in reach\n"
                ))
            }
        }
    }
}
