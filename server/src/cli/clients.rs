//! `clients ...`: ordinary MQTT clients. `issue` admits one by a certificate and writes what it needs into a
//! folder; `password` makes the hash for one that stands in the file of `[clients]`, `reload` has that
//! file read again.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use holdfast_broker::Passwords;
use holdfast_config::secret_file;
use holdfast_protocol::id::ClientName;
use serde_json::{Value, json};

use super::{Scope, at};
use crate::ask::{Ask, text_of};

/// `clients ...`
#[derive(Debug, Subcommand)]
pub enum Clients<S: Scope> {
    /// Admit an MQTT client and write its certificate and key
    Issue {
        /// Name of the client: lower-case letters, digits, hyphens
        name: ClientName,
        /// Where it belongs.
        #[command(flatten)]
        scope: S,
        /// Topic filter it may publish to (may be repeated)
        #[arg(long, value_name = "FILTER")]
        publish: Vec<String>,
        /// Topic filter it may subscribe to (may be repeated)
        #[arg(long, value_name = "FILTER")]
        subscribe: Vec<String>,
        /// Folder for ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
    /// Print the hash of a password, for a [[client]] in the file that [clients] names
    ///
    /// The password is typed twice and not shown, or read from the first line of standard input.
    Password,
    /// Read the file of clients with passwords again; connections of those who are gone end
    Reload,
}

impl<S: Scope> Clients<S> {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::Issue {
                name,
                scope,
                publish,
                subscribe,
                out,
            } => {
                let wanted =
                    json!({ "name": name.as_str(), "publish": publish, "subscribe": subscribe });
                let answer = ask.post("/v1/clients", &at(&scope, wanted)).await?;
                keep(&answer, &out)?;
                Ok(format!(
                    "client {name}: ca.pem, cert.pem and key.pem are in {}\n",
                    out.display()
                ))
            }
            Self::Password => {
                let password = super::password::read()?;
                Ok(Passwords::hash(&password)? + "\n")
            }
            Self::Reload => {
                let done = ask.post("/v1/clients/reload", &json!({})).await?;
                let (clients, cut) = (&done["clients"], &done["cut"]);
                Ok(format!(
                    "{clients} clients with passwords; {cut} connections were cut\n"
                ))
            }
        }
    }
}

fn keep(answer: &Value, out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for (file, field) in [("key.pem", "key"), ("cert.pem", "cert"), ("ca.pem", "ca")] {
        let (path, text) = (out.join(file), text_of(answer, field)?);
        let kept = match field {
            "key" => secret_file::write(&path, text.as_bytes()),
            _ => secret_file::write_public(&path, text.as_bytes()),
        };
        kept.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
