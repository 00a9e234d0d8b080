//! The bridge: journal -> cloud and cloud -> LAN, over one MQTT connection.
//!
//! Run by [`crate::app`]. Outgoing messages come from durable consumers of the LAN's broker and
//! nowhere else; a journal row goes when the cloud has acknowledged it, never before. What to send
//! next is decided by [`holdfast_protocol::drain`]. An outage is a slow reader: nothing on the LAN
//! waits for anything here. The MQTT client keeps no message; after each loss of the link the same
//! rows are sent again under the same stamps, and the cloud drops those it has.

mod convert;
mod dead_letter;
mod inbound;
mod outlet;

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Broker, Consumer};
use holdfast_link::dial::Endpoint;
use holdfast_link::mqtt::{self, Client, ConnectError, Inbox, Outcome, Publish, Settled};
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_link::time::Clock;
use holdfast_protocol::drain;
use holdfast_protocol::id::{ServerId, SiteId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use convert::Stamp;
pub use dead_letter::DeadLetters;
pub use outlet::{OpenError, Outlet};

use crate::config::{Direction, Rule};
use crate::uplink::{State, health_topic};

/// Name of the built-in rule's consumer; never to be changed, since the journal remembers by it.
const BUILT_IN: &str = "cloud";
/// How long the cloud keeps commands for a gateway that is away.
const SESSION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Waits between attempts to connect: a flapping link costs less than a handshake in two seconds.
const RETRY: Policy = Policy {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(5),
};
/// Rest before refused or faulty messages are tried again.
const REFUSED_REST: Duration = Duration::from_secs(1);
/// Places of the window for the gateway's own words, beside the journal's.
const OWN_PLACES: usize = 2;
/// Tag of the gateway's own words.
const OWN_TAG: u64 = u64::MAX;
/// Time for a goodbye to the cloud.
const GOODBYE: Duration = Duration::from_secs(1);

/// What the bridge works with.
#[derive(Debug)]
pub struct Parts {
    /// The cloud's broker.
    pub cloud: Endpoint,
    /// This gateway.
    pub server: ServerId,
    /// Its site.
    pub site: SiteId,
    /// The LAN's broker.
    pub broker: Broker,
    /// Stamps messages that bear none.
    pub stamp: Stamp,
    /// Dates the last will.
    pub clock: Arc<dyn Clock>,
    /// Rules beside the built-in ones.
    pub rules: Vec<Rule>,
    /// Messages under way at once.
    pub window: usize,
    /// Keeps what the cloud will never take.
    pub dead_letters: DeadLetters,
    /// How often a ping measures the link, and how long it may take.
    pub ping: Duration,
}

/// The bridge, its consumers open.
#[derive(Debug)]
pub struct Bridge {
    parts: Parts,
    outlets: Vec<Outlet>,
    inbound: inbound::Inbound,
    connection: watch::Sender<Option<Client>>,
}

/// How long the backlog is, from any task.
#[derive(Debug, Clone)]
pub struct Backlog(Vec<Consumer>);

impl Backlog {
    /// Messages that wait for the cloud.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.0.iter().map(Consumer::waiting).sum()
    }
}

impl Bridge {
    /// Opens the durable consumers of all outgoing rules.
    ///
    /// # Errors
    /// The journal failed, or a filter is none.
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let site = &parts.site;
        let built_in = [
            format!("hf/v1/{site}/+/up/#"),
            format!("hf/v1/{site}/+/service/reported"),
            format!("svc/v1/{site}/+/+/telemetry"),
        ];
        let window = parts.window;
        let mut outlets = vec![Outlet::open(&parts.broker, BUILT_IN, &built_in, "", window).await?];
        for rule in parts
            .rules
            .iter()
            .filter(|rule| rule.direction == Direction::Out)
        {
            let (name, filters) = (format!("rule-{}", rule.name), [rule.filter.clone()]);
            outlets.push(Outlet::open(&parts.broker, &name, &filters, &rule.prefix, window).await?);
        }
        let inbound = inbound::Inbound::new(&parts.site, &parts.rules);
        let (connection, _) = watch::channel(None);
        Ok(Self {
            parts,
            outlets,
            inbound,
            connection,
        })
    }

    /// The connection of the moment, for the uplink's ping.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Option<Client>> {
        self.connection.subscribe()
    }

    /// The backlog.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        Backlog(self.outlets.iter().map(Outlet::consumer).collect())
    }

    /// Works until cancelled: connects, carries both ways, connects again.
    pub async fn run(mut self, mut health: watch::Receiver<State>, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY);
        loop {
            let connected = stop.run_until_cancelled(self.connect()).await;
            let Some(connected) = connected else { return };
            match connected {
                Ok((client, inbox, granted)) => {
                    tracing::info!(peer = %granted.peer, "bridge connected");
                    backoff.worked();
                    self.connection.send_replace(Some(client.clone()));
                    let why = self
                        .carry(&client, inbox, &granted, &mut health, &stop)
                        .await;
                    self.connection.send_replace(None);
                    self.outlets.iter_mut().for_each(Outlet::link_lost);
                    if stop.is_cancelled() {
                        return;
                    }
                    tracing::warn!(why, "bridge disconnected");
                }
                Err(error) if backoff.failures() == 0 => {
                    tracing::warn!(%error, "the cloud's broker cannot be reached; trying on");
                }
                Err(error) => tracing::debug!(%error, "the cloud's broker cannot be reached"),
            }
            let wait = tokio::time::sleep(backoff.failed(&mut SystemRandom));
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    async fn connect(&self) -> Result<(Client, Inbox, mqtt::Granted), ConnectError> {
        let parts = &self.parts;
        let mut options = mqtt::Options::new(parts.cloud.clone(), parts.server.as_str());
        let will = State::last_will(parts.clock.now());
        options.will = Some(retained(&parts.site, will.to_json()));
        options.session_expiry = SESSION;
        options.ping_interval = parts.ping;
        options.ping_timeout = parts.ping * 2;
        options.window = u16::try_from(parts.window + OWN_PLACES).unwrap_or(u16::MAX);
        mqtt::connect(options).await
    }

    /// Carries both ways over one connection; gives the reason why it ended.
    async fn carry(
        &mut self,
        client: &Client,
        inbox: Inbox,
        granted: &mqtt::Granted,
        health: &mut watch::Receiver<State>,
        stop: &CancellationToken,
    ) -> String {
        let filters = self.inbound.subscriptions();
        let filters: Vec<_> = filters
            .iter()
            .map(|(text, qos)| (text.as_str(), *qos))
            .collect();
        let inbound = self.inbound.run(inbox, self.parts.broker.clone());
        let outbound = Outbound {
            client,
            outlets: &mut self.outlets,
            parts: &self.parts,
            window: usize::from(granted.window)
                .saturating_sub(OWN_PLACES)
                .max(1),
            turn: 0,
        };
        let subscribe = async {
            // A session that the cloud kept has them; saying them again costs nothing and heals.
            if let Err(error) = client.subscribe(&filters).await {
                tracing::error!(%error, "the cloud sends no commands to this gateway");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let goodbye = async {
                    let last = State::stopped(self.parts.clock.now());
                    let word = retained(&self.parts.site, last.to_json());
                    let _ = client.publish_and_wait(word).await;
                    client.disconnect().await;
                };
                let _ = tokio::time::timeout(GOODBYE, goodbye).await;
                "stopped".to_owned()
            }
            why = client.ended() => why.to_string(),
            error = outbound.run(health) => error,
            () = inbound => client.ended().await.to_string(),
            () = subscribe => String::new(),
        }
    }
}

/// The outgoing half of one connection.
struct Outbound<'a> {
    client: &'a Client,
    outlets: &'a mut Vec<Outlet>,
    parts: &'a Parts,
    window: usize,
    /// The outlet that comes first this time, so that a long backlog of one starves no other.
    turn: usize,
}

impl Outbound<'_> {
    /// Sends until the connection ends or the journal fails; says why.
    async fn run(mut self, health: &mut watch::Receiver<State>) -> String {
        health.mark_changed();
        let mut retry = tokio::time::interval(REFUSED_REST);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let more = match self.send().await {
                Ok(more) => more,
                Err(why) => return why,
            };
            let step = tokio::select! {
                settled = self.client.settled() => match settled {
                    Some(settled) => self.settle(settled).await,
                    None => return "the connection is over".to_owned(),
                },
                grown = grown(self.outlets) => {
                    self.outlets[grown].journal_grew();
                    Ok(())
                }
                Ok(()) = health.changed() => {
                    let state = health.borrow_and_update().to_json();
                    self.say(state).await
                }
                () = tokio::task::yield_now(), if more => Ok(()),
                _ = retry.tick() => {
                    self.outlets.iter_mut().for_each(Outlet::retry);
                    Ok(())
                }
            };
            if let Err(why) = step {
                return why;
            }
        }
    }

    /// Fills the window; whether there is more to read and room to send it.
    async fn send(&mut self) -> Result<bool, String> {
        let (count, mut more) = (self.outlets.len(), false);
        self.turn = (self.turn + 1) % count;
        for index in (self.turn..count).chain(0..self.turn) {
            more |= self.outlets[index]
                .fill()
                .await
                .map_err(|error| error.to_string())?;
            loop {
                if self.outlets.iter().map(Outlet::under_way).sum::<usize>() >= self.window {
                    return Ok(false);
                }
                let Some((id, publish)) = self.outlets[index].next(&self.parts.stamp) else {
                    break;
                };
                self.publish(index, id, publish).await?;
            }
        }
        Ok(more)
    }

    async fn publish(
        &mut self,
        index: usize,
        id: drain::RowId,
        publish: Publish,
    ) -> Result<(), String> {
        let publish = Publish {
            tag: tag(index, id),
            ..publish
        };
        match self.client.publish(publish).await {
            Ok(()) => Ok(()),
            Err(mqtt::PublishError::Closed) => Err("the connection is over".to_owned()),
            Err(never) => {
                let outlet = &mut self.outlets[index];
                let dead = outlet.refused(id, drain::Refusal::Never);
                self.parts.dead_letters.keep(dead, &never).await;
                outlet
                    .acknowledge(&[id])
                    .await
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Takes the cloud's answers; acknowledged rows leave the journal in one commit.
    async fn settle(&mut self, settled: Vec<Settled>) -> Result<(), String> {
        let mut done = vec![Vec::new(); self.outlets.len()];
        for Settled { tag, outcome } in settled {
            let Some((index, id)) = untag(tag).filter(|(index, _)| *index < done.len()) else {
                continue;
            };
            let outlet = &mut self.outlets[index];
            match outcome {
                Outcome::Acknowledged(_) => done[index].extend(outlet.acknowledged(id)),
                Outcome::Refused(code) => {
                    if let Some(dead) = outlet.refused(id, convert::refusal(code)) {
                        self.parts.dead_letters.keep(Some(dead), &code).await;
                        done[index].push(id);
                    }
                }
                // The link is gone: all of them are put back together.
                Outcome::Lost => {}
            }
        }
        for (outlet, ids) in self.outlets.iter().zip(&done) {
            outlet
                .acknowledge(ids)
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Tells the cloud how the link is, over the link: its broker keeps the last word.
    async fn say(&self, state: String) -> Result<(), String> {
        let word = Publish {
            tag: OWN_TAG,
            ..retained(&self.parts.site, state)
        };
        self.client
            .publish(word)
            .await
            .map_err(|error| error.to_string())
    }
}

/// Waits until one of the journals has something new.
async fn grown(outlets: &[Outlet]) -> usize {
    let waits = outlets.iter().enumerate().map(|(index, outlet)| {
        Box::pin(async move {
            outlet.ready().await;
            index
        })
    });
    first(waits.collect()).await
}

/// The first of several futures to end.
async fn first<T>(mut all: Vec<std::pin::Pin<Box<impl Future<Output = T>>>>) -> T {
    std::future::poll_fn(|cx| {
        let ended = all.iter_mut().find_map(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        });
        ended.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

fn retained(site: &SiteId, json: String) -> Publish {
    Publish {
        retain: true,
        content_type: Some("application/json".to_owned()),
        ..Publish::new(health_topic(site), json)
    }
}

/// A tag carries the outlet in its highest byte; row ids stay far below.
fn tag(outlet: usize, id: drain::RowId) -> u64 {
    ((outlet as u64) << TAG_SHIFT) | id.0
}

fn untag(tag: u64) -> Option<(usize, drain::RowId)> {
    if tag == OWN_TAG {
        return None;
    }
    let outlet = usize::try_from(tag >> TAG_SHIFT).ok()?;
    Some((outlet, drain::RowId(tag & ((1 << TAG_SHIFT) - 1))))
}

const TAG_SHIFT: u32 = 56;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_carry_outlet_and_row() {
        for (outlet, row) in [(0, 1), (3, 77), (254, (1 << TAG_SHIFT) - 1)] {
            let row = drain::RowId(row);
            assert_eq!(untag(tag(outlet, row)), Some((outlet, row)));
        }
        assert_eq!(untag(OWN_TAG), None);
    }
}
