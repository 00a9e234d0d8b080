//! Topics that the remote denies: tried again for a stated time, since rights may lag behind (they
//! reach the cloud by sync, and a partner's operator corrects a mistake), then given up.
//!
//! Used by [`super::outlet`]. Only time with a connection counts. A restart begins anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::mqtt::ReasonCode;
use holdfast_protocol::drain::Refusal;
use tokio::time::Instant;

/// Topics remembered; one that is forgotten is tried for the whole time again.
const MAX_TOPICS: usize = 4096;

/// The denied topics of one outlet.
#[derive(Debug)]
pub(super) struct Denials {
    patience: Duration,
    topics: BTreeMap<Arc<str>, Denied>,
    /// Time with a connection before the present one.
    before: Duration,
    connected: Option<Instant>,
}

#[derive(Debug)]
struct Denied {
    /// In time with a connection.
    since: Duration,
    code: ReasonCode,
}

impl Denials {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            topics: BTreeMap::new(),
            before: Duration::ZERO,
            connected: None,
        }
    }

    fn now(&self) -> Duration {
        self.before + self.connected.map_or(Duration::ZERO, |at| at.elapsed())
    }

    pub(super) fn link_made(&mut self) {
        self.connected = Some(Instant::now());
    }

    pub(super) fn link_lost(&mut self) {
        self.before = self.now();
        self.connected = None;
    }

    /// Whether to try on. Once the patience is over, every row of the topic is given up at its
    /// first refusal, until one is taken.
    pub(super) fn denied(&mut self, topic: &Arc<str>, code: ReasonCode) -> Refusal {
        let now = self.now();
        if !self.topics.contains_key(topic) && self.topics.len() >= MAX_TOPICS {
            let oldest = self.topics.iter().min_by_key(|(_, denied)| denied.since);
            if let Some(oldest) = oldest.map(|(topic, _)| Arc::clone(topic)) {
                self.topics.remove(&oldest);
            }
        }
        let first = !self.topics.contains_key(topic);
        let denied = self.topics.entry(Arc::clone(topic));
        let denied = denied.or_insert(Denied { since: now, code });
        denied.code = code;
        if first {
            tracing::warn!(
                topic = %topic.escape_debug(), %code, patience = ?self.patience,
                "the remote denies this topic; its messages wait and are tried again"
            );
        }
        match now.saturating_sub(denied.since) >= self.patience {
            true => Refusal::Never,
            false => Refusal::Later,
        }
    }

    pub(super) fn allowed(&mut self, topic: &Arc<str>) {
        if self.topics.remove(topic).is_some() {
            tracing::info!(topic = %topic.escape_debug(), "the remote takes this topic now");
        }
    }

    /// How many, and one of them with the remote's words.
    pub(super) fn summary(&self) -> (usize, Option<String>) {
        let one = self.topics.iter().next();
        let one = one.map(|(topic, denied)| format!("{}: {}", topic.escape_debug(), denied.code));
        (self.topics.len(), one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: ReasonCode = ReasonCode(0x87);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_denied_topic_is_given_up_after_connected_time_only() {
        let topic: Arc<str> = "a".into();
        let mut denials = Denials::new(PATIENCE);
        denials.link_made();
        assert_eq!(denials.denied(&topic, CODE), Refusal::Later);
        tokio::time::advance(Duration::from_secs(6)).await;
        denials.link_lost();
        tokio::time::advance(Duration::from_secs(3600)).await;
        denials.link_made();
        assert_eq!(denials.denied(&topic, CODE), Refusal::Later, "an outage");
        assert_eq!(denials.summary().0, 1);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(denials.denied(&topic, CODE), Refusal::Never);
        assert_eq!(denials.denied(&topic, CODE), Refusal::Never, "the next row");
        denials.allowed(&topic);
        assert_eq!(denials.denied(&topic, CODE), Refusal::Later, "anew");
    }

    #[tokio::test(start_paused = true)]
    async fn the_topics_remembered_are_bounded() {
        let mut denials = Denials::new(PATIENCE);
        denials.link_made();
        for n in 0..2 * MAX_TOPICS {
            tokio::time::advance(Duration::from_micros(1)).await;
            denials.denied(&n.to_string().into(), CODE);
        }
        assert_eq!(denials.summary().0, MAX_TOPICS);
    }
}
