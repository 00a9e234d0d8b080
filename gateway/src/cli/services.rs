//! `holdfast-gateway services ...`: orders a device to another service and shows its history.

use clap::Subcommand;
use holdfast_config::show;
use holdfast_cps::http::ask;
use holdfast_protocol::id::{Application, DeviceId, ServiceId};
use serde_json::json;

use super::{Ask, classify};

/// `services ...`
#[derive(Debug, Subcommand)]
pub enum Services {
    /// Order a device to a service; the same one again renews its key and certificate
    Change {
        /// Device, 32 hexadecimal digits
        device: DeviceId,
        /// Service that it shall work for: lower-case letters, digits, hyphens
        #[arg(long)]
        service: ServiceId,
        /// Server that provides the service: a server of the site, or where another one is
        #[arg(long, value_name = "ID or NAME@HOST:PORT")]
        server: Option<String>,
        /// Application program that goes with the service
        #[arg(long)]
        application: Option<Application>,
    },
    /// End a device's use of its service: it drops its keys for it and says so; the history gets the end
    End {
        /// Device, 32 hexadecimal digits
        device: DeviceId,
    },
    /// Show which services a device worked for, from when to when and by which certificates
    History {
        /// Device, 32 hexadecimal digits
        device: DeviceId,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

const COLUMNS: [&str; 8] = [
    "service",
    "server",
    "application",
    "start",
    "start_quality",
    "end",
    "end_quality",
    "serials",
];

impl Services {
    pub(super) async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        match self {
            Self::Change {
                device,
                service,
                server,
                application,
            } => {
                let wanted = json!({
                    "device": device.as_str(),
                    "service": service.as_str(),
                    "server": server,
                    "application": application.as_ref().map(Application::as_str),
                });
                ask::post(&ask.socket, "/v1/services/change", &wanted)
                    .await
                    .map_err(classify)?;
                Ok(format!(
                    "ordered: {device} shall work for {service}; next: services history {device}\n"
                ))
            }
            Self::End { device } => {
                let wanted = json!({ "device": device.as_str() });
                ask::post(&ask.socket, "/v1/services/end", &wanted)
                    .await
                    .map_err(classify)?;
                Ok(format!(
                    "ordered: {device} shall work for no service; next: services history {device}\n"
                ))
            }
            Self::History { device, json } => {
                let view = ask.get(&format!("/v1/services/{device}")).await?;
                Ok(match json {
                    true => format!("{view:#}\n"),
                    false => show::table(&view["history"], &COLUMNS),
                })
            }
        }
    }
}
