//! `clients issue`: admits an ordinary MQTT client by a certificate and writes what it needs into a folder.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
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
}

impl<S: Scope> Clients<S> {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        let Self::Issue {
            name,
            scope,
            publish,
            subscribe,
            out,
        } = self;
        let wanted = json!({ "name": name.as_str(), "publish": publish, "subscribe": subscribe });
        let answer = ask.post("/v1/clients", &at(&scope, wanted)).await?;
        keep(&answer, &out)?;
        Ok(format!(
            "client {name}: ca.pem, cert.pem and key.pem are in {}\n",
            out.display()
        ))
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
