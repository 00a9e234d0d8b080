//! `keys ...`: the owner key and the signing key of this server.

use clap::{Subcommand, ValueEnum};
use holdfast_config::show;
use serde_json::{Value, json};

use crate::ask::Ask;

/// `keys ...`
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Show the keys: which is present, which earlier ones are kept, and how many vouchers name them
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a fresh key in the place of the present one; offline it works as well
    Rotate {
        /// Which
        role: Role,
    },
    /// Destroy an earlier owner key for good
    Retire {
        /// Which
        #[arg(value_parser = ["owner"])]
        role: String,
        /// Its fingerprint as `keys show` prints it
        fingerprint: String,
        /// Although vouchers on record name it: their devices cannot be onboarded by them any more
        #[arg(long)]
        force: bool,
    },
}

/// A kind of key.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    /// Vouchers are extended to it; earlier ones are kept while vouchers name them
    Owner,
    /// Signs the log and the notices to devices; the old one is destroyed
    Signing,
}

const COLUMNS: [&str; 5] = ["role", "fingerprint", "state", "since", "vouchers"];

impl Keys {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::Show { json } => {
                let rows = ask.get("/v1/keys").await?;
                Ok(match json {
                    true => format!("{rows:#}\n"),
                    false => show::table(&rows, &COLUMNS),
                })
            }
            Self::Rotate { role } => {
                let role = match role {
                    Role::Owner => "owner",
                    Role::Signing => "signing",
                };
                let done = ask
                    .post("/v1/keys/rotate", &json!({ "role": role }))
                    .await?;
                let part = |name: &str| done[name].as_str().unwrap_or_default().to_owned();
                let extended = match role {
                    "owner" => format!("; {} vouchers extended to it", done["extended"]),
                    _ => String::new(),
                };
                Ok(format!(
                    "{role} key {} gave way to {}{extended}\n",
                    part("old"),
                    part("new")
                ))
            }
            Self::Retire {
                fingerprint, force, ..
            } => {
                let body = json!({ "fingerprint": fingerprint, "force": force });
                let done = ask.post("/v1/keys/retire", &body).await?;
                let left = done["left"].as_array().into_iter().flatten();
                let left: Vec<&str> = left.filter_map(Value::as_str).collect();
                Ok(match left.is_empty() {
                    true => format!("owner key {fingerprint} is destroyed\n"),
                    false => format!(
                        "owner key {fingerprint} is destroyed; no more by their vouchers: {}\n",
                        left.join(" ")
                    ),
                })
            }
        }
    }
}
