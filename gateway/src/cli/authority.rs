//! `authority ...`: the site's authority at its gateway.

use clap::Subcommand;
use holdfast_server::ask::{Ask, text_of};
use holdfast_server::cli::authority::shown;
use serde_json::json;

/// `authority ...`
#[derive(Debug, Subcommand)]
pub enum Authority {
    /// Show the roots that are believed, and to which one this site's authority leads
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// A fresh key for the site's authority now; the cloud must be in reach, for it certifies it
    Rotate,
}

impl Authority {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::Show { json } => shown(ask, json).await,
            Self::Rotate => {
                let answer = ask.post("/v1/authority/renew", &json!({})).await?;
                let serial = text_of(&answer, "intermediate")?;
                Ok(format!("the site's authority is {serial} now\n"))
            }
        }
    }
}
