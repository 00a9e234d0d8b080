//! `holdfast-cloud services ...`: orders a device to another service, ends its use, shows its history.
//!
//! The order is an entry in the site's log: its gateway takes it by sync and signs the notice. While
//! the site is cut off the order waits, and says so.

use clap::Subcommand;
use holdfast_config::show;
use holdfast_protocol::id::DeviceId;
use holdfast_server::ask::{Ask, pretty};
use holdfast_server::cli::services::{End, History, Order};
use serde_json::Value;

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
                let far = gateways(ask, &order.device).await?;
                let (device, service) = (order.device, order.service);
                Ok(format!(
                    "ordered: {device} shall work for {service}; {}; next: services history {device}\n",
                    how_far(&far)
                ))
            }
            Self::End(end) => {
                end.place(ask).await?;
                let (far, device) = (gateways(ask, &end.device).await?, end.device);
                Ok(format!(
                    "ordered: {device} shall work for no service; {}; next: services history {device}\n",
                    how_far(&far)
                ))
            }
            Self::History(asked) => {
                let mut view = asked.fetch(ask).await?;
                let far = gateways(ask, &asked.device).await?;
                if asked.json {
                    view["gateways"] = far["gateways"].clone();
                    return Ok(pretty(&view));
                }
                let history = show::table(&view["history"], &History::COLUMNS);
                Ok(match (view["desired"].as_str(), view["running"].as_str()) {
                    (Some(wanted), running) if running != Some(wanted) => {
                        format!("{history}{wanted} is ordered; {}\n", how_far(&far))
                    }
                    (None, Some(running)) => {
                        format!(
                            "{history}the end of {running} is ordered; {}\n",
                            how_far(&far)
                        )
                    }
                    _ => history,
                })
            }
        }
    }
}

async fn gateways(ask: &Ask, device: &DeviceId) -> anyhow::Result<Value> {
    ask.get(&format!("/v1/services/{device}/gateways")).await
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
    use serde_json::json;

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
