//! `records`: what is on record, in its order, with the time as far as it is known by now.

use clap::Args;
use holdfast_config::show;
use holdfast_protocol::id::{DeviceId, SiteId};
use serde_json::json;

use crate::ask::Ask;

/// `records ...`
#[derive(Debug, Args)]
pub struct Records {
    /// Of this device alone, 32 hexadecimal digits
    #[arg(long)]
    device: Option<DeviceId>,
    /// The last so many
    #[arg(long, default_value_t = 100)]
    last: usize,
    /// Of this site's log alone
    #[arg(long)]
    site: Option<SiteId>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

const COLUMNS: [&str; 7] = ["rank", "when", "site", "origin", "seq", "device", "what"];

impl Records {
    /// Fetches and shows them.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        let wanted = json!({
            "device": self.device.as_ref().map(DeviceId::as_str),
            "site": self.site.as_ref().map(SiteId::as_str),
            "max": self.last,
        });
        let rows = ask.post("/v1/records", &wanted).await?;
        Ok(match self.json {
            true => format!("{rows:#}\n"),
            false => show::table(&rows, &COLUMNS),
        })
    }
}
