//! `holdfast-gateway services ...`: orders a device to another service, ends its use, shows its history.

use clap::Subcommand;
use holdfast_server::ask::{Ask, rows_as};
use holdfast_server::cli::services::{End, History, Order};

/// `services ...`
#[derive(Debug, Subcommand)]
pub enum Services {
    /// Order a device to a service; the same one again renews its key and certificate
    Change(Order),
    /// End a device's use of its service: it drops its keys for it and says so; the history gets the end
    End(End),
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
            Self::End(end) => {
                end.place(ask).await?;
                let device = end.device;
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
