//! Remote -> LAN: commands to devices, and what incoming rules ask for.
//!
//! Used by [`super::Bridge`]. A message is acknowledged to the remote only after the LAN's broker
//! has it safe. What it sends outside the subscribed filters is dropped and logged: no remote is the
//! LAN's master.

use holdfast_broker::{Broker, Filter, PublishError};
use holdfast_link::mqtt::{Inbox, Incoming, Qos};
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_protocol::id::SiteId;
use std::time::Duration;

use super::convert;
use crate::config::{Direction, Rule, moved};

/// Waits while the LAN's journal cannot take a message.
const RETRY: Policy = Policy {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// The incoming rules of one remote.
#[derive(Debug)]
pub(super) struct Inbound {
    remote: String,
    ways: Vec<Way>,
}

/// Filter at the remote, and how a topic becomes one of the LAN.
#[derive(Debug)]
struct Way {
    filter: Filter,
    strip: String,
    prefix: String,
}

impl Inbound {
    /// The rules `told` for this remote.
    pub(super) fn new<'a>(remote: &str, told: impl Iterator<Item = &'a Rule>) -> Self {
        let told = told.filter(|rule| rule.direction == Direction::In);
        let ways = told.filter_map(|rule| {
            Some(Way {
                filter: Filter::new(&rule.filter).ok()?,
                strip: rule.strip.clone(),
                prefix: rule.prefix.clone(),
            })
        });
        Self {
            remote: remote.to_owned(),
            ways: ways.collect(),
        }
    }

    /// Adds what the Holdfast cloud sends to every gateway.
    pub(super) fn with_commands(mut self, site: &SiteId) -> Self {
        let built_in = [
            format!("hf/v1/{site}/+/down/#"),
            format!("svc/v1/{site}/+/+/command"),
        ];
        let built_in = built_in
            .iter()
            .filter_map(|filter| Filter::new(filter).ok());
        let built_in = built_in.map(|filter| Way {
            filter,
            strip: String::new(),
            prefix: String::new(),
        });
        self.ways.splice(0..0, built_in);
        self
    }

    /// What to subscribe to at the cloud.
    pub(super) fn subscriptions(&self) -> Vec<(String, Qos)> {
        let filters = self.ways.iter().map(|way| way.filter.as_str().to_owned());
        filters.map(|filter| (filter, Qos::AtLeastOnce)).collect()
    }

    /// Where a message of the remote belongs on the LAN: where each rule that asked for it says.
    fn local_topics(&self, topic: &str) -> Vec<String> {
        let ways = self.ways.iter().filter(|way| way.filter.matches(topic));
        let topics = ways.filter_map(|way| moved(topic, &way.strip, &way.prefix));
        let mut topics: Vec<_> = topics.filter(|topic| !topic.starts_with('$')).collect();
        topics.sort();
        topics.dedup();
        topics
    }

    /// Takes messages until the connection ends.
    pub(super) async fn run(&self, mut inbox: Inbox, broker: Broker) {
        while let Some(message) = inbox.next().await {
            let topics = self.local_topics(&message.topic);
            if topics.is_empty() {
                tracing::warn!(
                    remote = self.remote, topic = %message.topic.escape_debug(),
                    "the remote sent a message that no rule has a place for; dropped"
                );
            }
            for topic in topics {
                deliver(&broker, &self.remote, &message, &topic).await;
            }
            inbox.acknowledge(&message).await;
        }
    }
}

/// Publishes on the LAN, durably; waits out a full or failing journal.
async fn deliver(broker: &Broker, remote: &str, message: &Incoming, topic: &str) {
    let mut backoff = Backoff::new(RETRY);
    loop {
        match broker.publish(convert::incoming(message, topic)).await {
            Ok(()) => return,
            Err(PublishError::Topic(topic)) => {
                tracing::warn!(remote, topic = %topic.escape_debug(), "the remote sent no topic name; dropped");
                return;
            }
            Err(error) => {
                tracing::warn!(remote, %error, "a message of the remote waits");
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
        let rule = Rule::cloud("plant", Direction::In, "orders/+", "cloud/");
        let stripped = Rule {
            strip: "orders/".to_owned(),
            ..Rule::cloud("short", Direction::In, "orders/7", "")
        };
        let inbound = Inbound::new("cloud", [rule, stripped].iter()).with_commands(&site);
        let topics = |text| inbound.local_topics(text);
        assert_eq!(topics("orders/8"), ["cloud/orders/8"]);
        assert_eq!(topics("orders/7"), ["7", "cloud/orders/7"]);
        let command = "hf/v1/bern/0123/down/set";
        assert_eq!(topics(command), [command]);
        for foreign in [
            "hf/v1/basel/0123/down/set",
            "hf/v1/bern/0123/up/t",
            "orders/7/x",
            "$SYS/a",
        ] {
            assert!(topics(foreign).is_empty(), "{foreign}");
        }
    }
}
