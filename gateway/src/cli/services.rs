//! `holdfast-gateway services ...`: orders a device to another service and shows its history.

use clap::Subcommand;
use holdfast_protocol::id::DeviceId;
use holdfast_server::ask::{Ask, rows_as};
use holdfast_server::cli::services::{History, Order};
use serde_json::json;

/// `services ...`
#[derive(Debug, Subcommand)]
pub enum Services {
    /// Order a device to a service; the same one again renews its key and certificate
    Change(Order),
    /// End a device's use of its service: it drops its keys for it and says so; the history gets the end
    End {
        /// Device, 32 hexadecimal digits
        device: DeviceId,
    },
    /// Show which services a device worked for, from when to when and by which certificates
    History(History),
}

impl Services {
    pub(super) async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::Change(order) => {
                order.place(ask).await?;
                let (device, service) = (order.device, order.service);
                Ok(format!(
                    "ordered: {device} shall work for {service}; next: services history {device}\n"
                ))
            }
            Self::End { device } => {
                let wanted = json!({ "device": device.as_str() });
                ask.post("/v1/services/end", &wanted).await?;
                Ok(format!(
                    "ordered: {device} shall work for no service; next: services history {device}\n"
                ))
            }
            Self::History(history) => {
                let view = history.fetch(ask).await?;
                Ok(match history.json {
                    true => rows_as(&view, &[], true),
                    false => rows_as(&view["history"], &History::COLUMNS, false),
                })
            }
        }
    }
}
