//! The figures as Prometheus metrics, read when they are asked for.
//!
//! Registered by [`crate::Broker::register_metrics`]. Names begin with `broker_`; for each quota there
//! is its limit beside what is used of it: by all, or by the fullest client where each has its own.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::{Broker, Figures};

/// The collector.
#[derive(Debug)]
pub(crate) struct Exposition(pub(crate) Broker);

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let figures = self.0.metrics();
        for (name, help, value) in gauges(&figures) {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("broker_{name}");
            gauge.encode(encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, value) in counters(&figures) {
            let name = format!("broker_{name}");
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(&name, help, None, MetricType::Counter)?)?;
        }
        let limits = figures.quotas.iter().map(|quota| (quota.name, quota.limit));
        by_quota(
            &mut encoder,
            "broker_limit",
            "Quotas, by what they bound",
            limits,
        )?;
        let used = figures.quotas.iter();
        let used = used.filter_map(|quota| Some((quota.name, quota.used?)));
        let help = "Used of the quotas, by the fullest client where each has its own";
        by_quota(&mut encoder, "broker_used", help, used)?;
        let dropped = figures.dropped.iter();
        let dropped = dropped.map(|(reason, count)| (snake(&format!("{reason:?}")), *count));
        by_reason(&mut encoder, "broker_dropped", "Messages dropped", dropped)?;
        let ended = figures.ended.iter();
        let ended = ended.map(|(reason, count)| (snake(&format!("{reason:?}")), *count));
        by_reason(&mut encoder, "broker_ended", "Connections ended", ended)?;
        let named = [
            (
                "broker_acknowledgement_seconds",
                "From a batch of publishes handed to the journal to its acknowledgements",
            ),
            ("broker_commit_seconds", "Commits of the journal"),
        ];
        let kind = MetricType::Histogram;
        let counters = self.0.counters();
        for ((name, help), times) in named.into_iter().zip(counters.times()) {
            times.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        let help = "From the publisher's socket to the receiver's, by the way";
        let mut family = encoder.encode_descriptor("broker_delivery_seconds", help, None, kind)?;
        for (way, times) in counters.deliveries() {
            times.encode(family.encode_family(&[("way", way)])?)?;
        }
        Ok(())
    }
}

fn by_quota(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (&'static str, u64)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (quota, value) in values {
        let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        gauge.encode(family.encode_family(&[("quota", quota)])?)?;
    }
    Ok(())
}

fn by_reason(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    counts: impl Iterator<Item = (String, u64)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (reason, count) in counts {
        let labels = [("reason", reason)];
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

type Line = (&'static str, &'static str, u64);

#[rustfmt::skip]
fn gauges(figures: &Figures) -> [Line; 12] {
    [
        ("connections", "Clients connected now", figures.connections),
        ("sessions", "Sessions now, connected or not", figures.sessions),
        ("subscriptions", "Subscriptions now", figures.subscriptions),
        ("retained_messages", "Retained messages now", figures.retained),
        ("retained_bytes", "Bytes of retained messages now", figures.retained_bytes),
        ("queued_messages", "Messages in memory queues now", figures.queued_messages),
        ("queued_bytes", "Bytes in memory queues and unwritten output now", figures.queued_bytes),
        ("inflight_messages", "Messages sent and not acknowledged now", figures.inflight),
        ("wills_waiting", "Wills that wait for their delay now", figures.wills_waiting),
        ("journal_rows", "Messages waiting in the journal", figures.journal_rows),
        ("journal_bytes", "Bytes waiting in the journal", figures.journal_bytes),
        ("journal_waiting", "Operations waiting for the journal", figures.journal_waiting),
    ]
}

#[rustfmt::skip]
fn counters(figures: &Figures) -> [Line; 9] {
    [
        ("received", "Publishes accepted", figures.received),
        ("sent", "Messages sent to clients", figures.sent),
        ("unfiltered", "Numbered publishes without the repeat filter", figures.unfiltered),
        ("repeats", "Publishes dropped as repeats", figures.repeats),
        ("denied", "Publishes refused for want of rights", figures.denied),
        ("refused_full", "Publishes refused for want of room", figures.refused_full),
        ("refused_subscriptions", "Subscriptions refused for want of room", figures.refused_subscriptions),
        ("commits", "Commits of the journal", figures.commits),
        ("failed_commits", "Failed commits of the journal", figures.failed_commits),
    ]
}

/// A name of the code as a label: `QueueFull` is `queue_full`.
fn snake(name: &str) -> String {
    let mut label = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !label.is_empty() {
            label.push('_');
        }
        label.push(letter.to_ascii_lowercase());
    }
    label
}
