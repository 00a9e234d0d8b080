//! `holdfast-cloud services ...`: orders a device to another service and shows its history.
//!
//! The order is an entry in the site's log: its gateway takes it by sync and signs the notice. While
//! the site is cut off the order waits, and says so.

use clap::Subcommand;
use holdfast_config::show;
use holdfast_protocol::id::{Application, DeviceId, ServiceId};
use serde_json::{Value, json};

use super::{Ask, pretty};

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
                ask.post("/v1/services/change", &wanted).await?;
                let far = ask.get(&format!("/v1/services/{device}/gateways")).await?;
                Ok(format!(
                    "ordered: {device} shall work for {service}; {}; next: services history {device}\n",
                    how_far(&far)
                ))
            }
            Self::History { device, json } => {
                let mut view = ask.get(&format!("/v1/services/{device}")).await?;
                let far = ask.get(&format!("/v1/services/{device}/gateways")).await?;
                if json {
                    view["gateways"] = far["gateways"].clone();
                    return Ok(pretty(&view));
                }
                let history = show::table(&view["history"], &COLUMNS);
                Ok(match view["desired"].as_str() {
                    Some(wanted) if view["running"] != wanted => {
                        format!("{history}{wanted} is ordered; {}\n", how_far(&far))
                    }
                    _ => history,
                })
            }
        }
    }
}

/// A gateway that asked so lately, in seconds, will have an order soon: it asks every five.
const LATELY: u64 = 15;

/// Where an order is, in words.
fn how_far(far: &Value) -> String {
    let (site, now) = (far["site"].as_str().unwrap_or("-"), far["now"].as_u64());
    let gateways = far["gateways"].as_array().into_iter().flatten();
    let words: Vec<_> = gateways
        .map(|row| {
            let name = row["gateway"].as_str().unwrap_or("-");
            let ago = row["heard"].as_u64().zip(now);
            let ago = ago.map(|(heard, now)| now.saturating_sub(heard));
            match (row["has_it"] == true, ago) {
                (true, _) => format!("gateway {name} has the order"),
                (false, Some(ago)) if ago <= LATELY => {
                    format!("gateway {name} takes the order within seconds")
                }
                (false, Some(ago)) => format!(
                    "the order waits: gateway {name} of site {site} was heard {} ago last, and \
                     takes it when it is back",
                    humantime::format_duration(std::time::Duration::from_secs(ago))
                ),
                (false, None) => format!(
                    "the order waits: gateway {name} of site {site} was not heard since this \
                     server started, and takes it when it is back"
                ),
            }
        })
        .collect();
    match words.as_slice() {
        [] => format!("site {site} has no gateway: the device asks here by itself"),
        words => words.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_an_order_is_is_said() {
        let far = |heard: Option<u64>, has: bool| {
            how_far(&json!({
                "site": "bern", "now": 1000,
                "gateways": [{ "gateway": "gw1", "heard": heard, "has_it": has }],
            }))
        };
        assert_eq!(far(Some(998), true), "gateway gw1 has the order");
        assert!(far(Some(998), false).contains("within seconds"));
        let waits = far(Some(400), false);
        assert!(
            waits.contains("the order waits") && waits.contains("10m ago"),
            "{waits}"
        );
        assert!(far(None, false).contains("not heard since"));
        let none = how_far(&json!({ "site": "bern", "now": 1, "gateways": [] }));
        assert!(none.contains("no gateway"), "{none}");
    }
}
