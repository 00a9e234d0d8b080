//! `certificates ...`: who holds which certificate, and whose is void.

use clap::{Args, Subcommand};
use holdfast_config::show;
use holdfast_protocol::id::{DeviceId, ServerId};
use serde_json::{Value, json};

use crate::ask::Ask;

/// `certificates ...`
#[derive(Debug, Subcommand)]
pub enum Certificates {
    /// List the certificates that were issued, here and elsewhere in this installation
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show who came by a certificate that is not on record yet (at the cloud, until sync brings it)
    Unrecorded {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke for good: live sessions are cut at once, and nobody comes back by it
    Revoke(Whose),
    /// Have a device renew its certificate with a fresh key; the old one is good until the new one was used
    Renew {
        /// Which
        #[arg(long)]
        device: DeviceId,
    },
    /// Show the numbered list of what is revoked, and how old it is
    Revocations {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a damaged list of revocations anew from the log; until then nobody is admitted
    RestoreRevocations,
}

/// What is to be revoked.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Whose {
    /// One certificate, by its serial number as listings show it
    serial: Option<String>,
    /// All certificates of a device, those for its services too
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// All certificates of an MQTT client
    #[arg(long, value_name = "NAME[@SITE]")]
    client: Option<String>,
    /// All certificates of a gateway itself; its devices go on
    #[arg(long, value_name = "GATEWAY")]
    gateway: Option<ServerId>,
}

const COLUMNS: [&str; 7] = [
    "serial",
    "subject",
    "issuer",
    "issued",
    "not_before",
    "not_after",
    "revoked",
];

impl Certificates {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::List { json } => {
                let rows = ask.get("/v1/certificates").await?;
                Ok(match json {
                    true => format!("{rows:#}\n"),
                    false => show::table(&rows, &COLUMNS),
                })
            }
            Self::Unrecorded { json } => {
                let columns = ["serial", "subject", "since"];
                ask.table("/v1/certificates/unrecorded", &columns, json)
                    .await
            }
            Self::Revoke(whose) => {
                let done = ask.post("/v1/certificates/revoke", &whose.wanted()).await?;
                let serials = done["revoked"].as_array().into_iter().flatten();
                let serials: Vec<&str> = serials.filter_map(Value::as_str).collect();
                Ok(match serials.is_empty() {
                    true => "revoked before; nothing changed\n".to_owned(),
                    false => format!("revoked: {}\n", serials.join(" ")),
                })
            }
            Self::Renew { device } => {
                let body = json!({ "device": device.as_str() });
                let done = ask.post("/v1/certificates/renew", &body).await?;
                let serial = done["serial"].as_str().unwrap_or_default();
                Ok(format!("{device} is told to renew certificate {serial}\n"))
            }
            Self::Revocations { json } => {
                let view = ask.get("/v1/revocations").await?;
                Ok(match json {
                    true => format!("{view:#}\n"),
                    false => {
                        let rows = show::table(&view["certificates"], &COLUMNS);
                        show::facts(&view["list"]) + &rows
                    }
                })
            }
            Self::RestoreRevocations => {
                let view = ask.post("/v1/revocations/restore", &json!({})).await?;
                Ok(format!("list number {} holds\n", view["list"]["number"]))
            }
        }
    }
}

impl Whose {
    fn wanted(self) -> Value {
        let client = self.client.as_deref();
        let (name, site) = match client.map(|text| text.split_once('@')) {
            Some(Some((name, site))) => (Some(name), Some(site)),
            _ => (client, None),
        };
        json!({
            "serial": self.serial,
            "device": self.device.as_ref().map(DeviceId::as_str),
            "client": name,
            "site": site,
            "gateway": self.gateway.as_ref().map(ServerId::as_str),
        })
    }
}
