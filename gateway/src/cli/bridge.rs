//! `holdfast-gateway bridge ...`: how the remotes stand, and what waits for rules that are gone.

use clap::Subcommand;
use holdfast_server::ask::Ask;
use serde_json::json;

/// `bridge ...`
#[derive(Debug, Subcommand)]
pub enum Bridge {
    /// List the remotes: connected or why not, what waits, what they deny
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop what waits for a rule that was removed from the configuration
    Forget {
        /// Name of the rule
        rule: String,
    },
}

const COLUMNS: [&str; 7] = [
    "name",
    "connected",
    "waiting",
    "dead_letters",
    "version",
    "reason",
    "denied",
];

impl Bridge {
    pub(super) async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => ask.table("/v1/bridge", &COLUMNS, json).await,
            Self::Forget { rule } => {
                let wanted = json!({ "rule": rule });
                let answer = ask.post("/v1/bridge/forget", &wanted).await?;
                let dropped = answer["dropped"].as_u64().unwrap_or_default();
                Ok(format!(
                    "rule {rule} is forgotten; {dropped} messages were dropped\n"
                ))
            }
        }
    }
}
