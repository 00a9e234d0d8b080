//! Cloud -> LAN: commands to devices, and what incoming rules ask for.
//!
//! Used by [`super::Bridge`]. A message is acknowledged to the cloud only after the LAN's broker has
//! it safe. What the cloud sends outside the subscribed filters is dropped and logged: the cloud is
//! not the LAN's master.

use std::time::Duration;

use holdfast_broker::{Broker, Filter, PublishError};
use holdfast_link::mqtt::{Inbox, Incoming, Qos};
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_protocol::id::SiteId;

use super::convert;
use crate::config::{Direction, Rule};

/// Waits while the LAN's journal cannot take a message.
const RETRY: Policy = Policy {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// The incoming rules: filter at the cloud, prefix on the LAN.
#[derive(Debug)]
pub(super) struct Inbound {
    rules: Vec<(Filter, String)>,
}

impl Inbound {
    pub(super) fn new(site: &SiteId, rules: &[Rule]) -> Self {
        let built_in = [
            format!("hf/v1/{site}/+/down/#"),
            format!("svc/v1/{site}/+/+/command"),
        ];
        let built_in = built_in.into_iter().map(|filter| (filter, String::new()));
        let told = rules.iter().filter(|rule| rule.direction == Direction::In);
        let told = told.map(|rule| (rule.filter.clone(), rule.prefix.clone()));
        let all = built_in.chain(told);
        let rules = all.filter_map(|(filter, prefix)| Some((Filter::new(&filter).ok()?, prefix)));
        Self {
            rules: rules.collect(),
        }
    }

    /// What to subscribe to at the cloud.
    pub(super) fn subscriptions(&self) -> Vec<(String, Qos)> {
        let filters = self
            .rules
            .iter()
            .map(|(filter, _)| filter.as_str().to_owned());
        filters.map(|filter| (filter, Qos::AtLeastOnce)).collect()
    }

    /// Where a message of the cloud belongs on the LAN.
    fn local_topic(&self, topic: &str) -> Option<String> {
        let (_, prefix) = self
            .rules
            .iter()
            .find(|(filter, _)| filter.matches(topic))?;
        Some(format!("{prefix}{topic}"))
    }

    /// Takes messages until the connection ends.
    pub(super) async fn run(&self, mut inbox: Inbox, broker: Broker) {
        while let Some(message) = inbox.next().await {
            match self.local_topic(&message.topic) {
                Some(topic) => deliver(&broker, &message, &topic).await,
                None => tracing::warn!(
                    topic = %message.topic.escape_debug(),
                    "the cloud sent a message that this gateway did not ask for; dropped"
                ),
            }
            inbox.acknowledge(&message).await;
        }
    }
}

/// Publishes on the LAN, durably; waits out a full or failing journal.
async fn deliver(broker: &Broker, message: &Incoming, topic: &str) {
    let mut backoff = Backoff::new(RETRY);
    loop {
        match broker.publish(convert::incoming(message, topic)).await {
            Ok(()) => return,
            Err(PublishError::Topic(topic)) => {
                tracing::warn!(topic = %topic.escape_debug(), "the cloud sent no topic name; dropped");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "a message of the cloud waits");
                tokio::time::sleep(backoff.failed(&mut SystemRandom)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_comes_in() {
        let site = "bern".parse().expect("site");
        let rule = Rule {
            name: "plant".into(),
            direction: Direction::In,
            filter: "orders/+".into(),
            prefix: "cloud/".into(),
        };
        let inbound = Inbound::new(&site, &[rule]);
        let topic = |text| inbound.local_topic(text);
        assert_eq!(topic("orders/7").as_deref(), Some("cloud/orders/7"));
        assert_eq!(
            topic("hf/v1/bern/0123/down/set").as_deref(),
            Some("hf/v1/bern/0123/down/set")
        );
        for foreign in [
            "hf/v1/basel/0123/down/set",
            "hf/v1/bern/0123/up/t",
            "orders/7/x",
            "$SYS/a",
        ] {
            assert_eq!(topic(foreign), None, "{foreign}");
        }
    }
}
