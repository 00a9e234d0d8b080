//! What `services change`, `end` and `history` ask for at both servers; how far an order has come is each one's
//! own to say.

use clap::Args;
use holdfast_protocol::id::{Application, DeviceId, ServiceId};
use serde_json::{Value, json};

use crate::ask::Ask;

/// `services change ...`
#[derive(Debug, Args)]
pub struct Order {
    /// Device, 32 hexadecimal digits
    pub device: DeviceId,
    /// Service that it shall work for: lower-case letters, digits, hyphens
    #[arg(long)]
    pub service: ServiceId,
    /// Server that provides the service: a server of the site, or where another one is
    #[arg(long, value_name = "ID or NAME@HOST:PORT")]
    server: Option<String>,
    /// Take the service at that server alone: no server of the site stands in while it is out of reach, and what
    /// the device sends waits on the device
    #[arg(long, requires = "server")]
    alone: bool,
    /// Application program that goes with the service
    #[arg(long)]
    application: Option<Application>,
}

impl Order {
    /// Places it.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn place(&self, ask: &Ask) -> anyhow::Result<()> {
        let wanted = json!({
            "device": self.device.as_str(),
            "service": self.service.as_str(),
            "server": self.server,
            "application": self.application.as_ref().map(Application::as_str),
            "alone": self.alone,
        });
        ask.post("/v1/services/change", &wanted).await.map(drop)
    }
}

/// `services end ...`
#[derive(Debug, Args)]
pub struct End {
    /// Device, 32 hexadecimal digits
    pub device: DeviceId,
}

impl End {
    /// Orders it.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn place(&self, ask: &Ask) -> anyhow::Result<()> {
        let wanted = json!({ "device": self.device.as_str() });
        ask.post("/v1/services/end", &wanted).await.map(drop)
    }
}

/// `services history ...`
#[derive(Debug, Args)]
pub struct History {
    /// Device, 32 hexadecimal digits
    pub device: DeviceId,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

impl History {
    /// Columns of the table.
    pub const COLUMNS: [&str; 8] = [
        "service",
        "server",
        "alone",
        "application",
        "from",
        "until",
        "renewals",
        "serials",
    ];

    /// Fetches it.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn fetch(&self, ask: &Ask) -> anyhow::Result<Value> {
        ask.get(&format!("/v1/services/{}", self.device)).await
    }
}
