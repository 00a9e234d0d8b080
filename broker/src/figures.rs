//! The broker's own figures below `$SYS/`, for those that [`crate::Rights::may_see_figures`] lets.
//!
//! Published by the housekeeping at QoS 0, at most as often as the configuration says. A later
//! subscriber gets the last ones like retained messages; they are never stored.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::broker::Shared;
use crate::rights::FIGURES;
use crate::{Figures, Filter, Message};

/// The figures as they were published last.
#[derive(Debug, Default)]
pub(crate) struct OwnFigures {
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    messages: Vec<Arc<Message>>,
    at: Option<Instant>,
}

impl OwnFigures {
    /// The last ones under a filter.
    pub(crate) fn matching(&self, filter: &Filter) -> Vec<Arc<Message>> {
        if !filter.as_str().starts_with(FIGURES) {
            return Vec::new();
        }
        let last = self.last();
        let found = last
            .messages
            .iter()
            .filter(|message| filter.matches(message.topic()));
        found.cloned().collect()
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Publishes the figures when it is time.
    pub(crate) fn show_figures(&self) {
        let every = self.core.config.figures_every;
        let now = Instant::now();
        {
            let last = self.core.own_figures.last();
            if every.is_zero() || last.at.is_some_and(|at| now.duration_since(at) < every) {
                return;
            }
        }
        let messages: Vec<Arc<Message>> = lines(&self.figures(), self.core.clock.running())
            .into_iter()
            .map(|(name, value)| {
                let topic = format!("{FIGURES}/broker/{name}");
                Arc::new(Message::new(&topic, value).content_type("text/plain"))
            })
            .collect();
        for message in &messages {
            let route = self.core.route(&message.topic);
            self.core
                .deliver(&route, None, vec![Arc::clone(message)], true, None);
        }
        let mut last = self.core.own_figures.last();
        last.messages = messages;
        last.at = Some(now);
    }
}

/// Names as other brokers have them, where they have one.
fn lines(figures: &Figures, seconds: u64) -> Vec<(&'static str, String)> {
    let dropped: u64 = figures.dropped.values().sum();
    let absent = figures.sessions.saturating_sub(figures.connections);
    let numbers = [
        ("clients/connected", figures.connections),
        ("clients/disconnected", absent),
        ("clients/total", figures.sessions),
        ("subscriptions/count", figures.subscriptions),
        ("retained messages/count", figures.retained),
        ("publish/messages/received", figures.received),
        ("publish/messages/sent", figures.sent),
        ("publish/messages/dropped", dropped),
        ("publish/messages/denied", figures.denied),
        ("publish/messages/refused", figures.refused_full),
        ("store/messages/count", figures.journal_rows),
        ("store/messages/bytes", figures.journal_bytes),
    ];
    let mut lines = vec![
        ("version", format!("holdfast {}", env!("CARGO_PKG_VERSION"))),
        ("uptime", format!("{seconds} seconds")),
    ];
    lines.extend(
        numbers
            .into_iter()
            .map(|(name, value)| (name, value.to_string())),
    );
    lines
}
