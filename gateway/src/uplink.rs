//! Watches the Internet link: sends the probes that [`holdfast_protocol::uplink`] asks for and
//! tells everybody the mode it decides.
//!
//! Run by [`crate::app`]. The decision is pure and lives in `protocol`; here are only the clock, the
//! two probes (an MQTT ping on the bridge's connection, a request through the cloud's API) and the
//! telling: a watch for the other rooms, and the retained message on the LAN. Nothing waits for the
//! cloud but the probes themselves.

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Broker, Message, Qos};
use holdfast_link::dial::DialError;
use holdfast_link::https;
use holdfast_link::mqtt;
use holdfast_link::time::{Clock as _, SystemClock};
use holdfast_protocol::id::SiteId;
use holdfast_protocol::time::Time;
use holdfast_protocol::topic::Topic;
use holdfast_protocol::uplink::{
    Mode, Outcome, Poll, Probe, ProbeResult, Settings, Transition, Uplink,
};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Path of the request through the cloud.
const HEALTH_PATH: &str = "/api/v1/health";
/// How often the backlog is looked at.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(250);

/// The link as it is now: what is published, shown and counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// online, degraded, outage or recovering.
    pub mode: &'static str,
    /// One sentence.
    pub reason: String,
    /// Unix seconds.
    pub since: u64,
    /// How good the clock was then: none, floor or authenticated.
    pub time_quality: String,
}

impl State {
    fn new(mode: Mode, reason: impl ToString, at: Time) -> Self {
        Self {
            mode: mode.word(),
            reason: reason.to_string(),
            since: at.secs,
            time_quality: at.quality.to_string(),
        }
    }

    /// The payload of the health topic.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain fields")
    }

    /// What the cloud's broker says when the gateway's connection to it ends without goodbye.
    #[must_use]
    pub fn last_will(at: Time) -> Self {
        Self::new(
            Mode::Outage,
            "the gateway's connection to the cloud broke",
            at,
        )
    }

    /// What the gateway tells the cloud when it is stopped.
    #[must_use]
    pub fn stopped(at: Time) -> Self {
        Self::new(Mode::Outage, "the gateway was stopped", at)
    }

    /// Whether the cloud can be counted on.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.mode != Mode::Outage.word()
    }
}

/// The topic of the gateway's health.
#[must_use]
pub fn health_topic(site: &SiteId) -> String {
    Topic::Health { site: site.clone() }.to_string()
}

/// What the watch works with.
#[derive(Debug)]
pub struct Parts {
    /// When to believe what.
    pub settings: Settings,
    /// The site, for the topic.
    pub site: SiteId,
    /// The LAN's broker, for the retained message.
    pub broker: Broker,
    /// Dates transitions, and learns the time that the cloud tells.
    pub clock: Arc<SystemClock>,
    /// The bridge's connection, when there is one.
    pub bridge: watch::Receiver<Option<mqtt::Client>>,
    /// The cloud's API.
    pub cloud: https::Client,
    /// The same, showing no certificate: tells the time when ours has expired meanwhile.
    pub stranger: https::Client,
}

/// The watch over the link.
#[derive(Debug)]
pub struct Watch {
    parts: Parts,
    state: watch::Sender<State>,
    uplink: Uplink,
    start: Instant,
    running: JoinSet<ProbeResult>,
}

impl Watch {
    /// A watch that has not probed yet: the mode is `outage` until the cloud answers.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, watch::Receiver<State>) {
        let uplink = Uplink::new(parts.settings.clone(), Duration::ZERO);
        let state = State::new(uplink.mode(), uplink.reason(), parts.clock.now());
        let (state, seen) = watch::channel(state);
        let running = JoinSet::new();
        (
            Self {
                parts,
                state,
                uplink,
                start: Instant::now(),
                running,
            },
            seen,
        )
    }

    /// Probes and tells until cancelled. `backlog` gives the messages that wait for the cloud.
    pub async fn run(mut self, backlog: impl Fn() -> u64 + Send, cancel: CancellationToken) {
        self.start = Instant::now();
        self.publish().await;
        let mut look = tokio::time::interval(BACKLOG_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = self.start.elapsed();
            let Poll {
                probes,
                transition,
                wake,
            } = self.uplink.poll(now);
            self.tell(transition).await;
            probes.into_iter().for_each(|probe| self.send(probe));
            let transition = tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep_until(self.start + wake) => None,
                Some(Ok(result)) = self.running.join_next(), if !self.running.is_empty() => {
                    self.uplink.observe(result, self.start.elapsed())
                }
                _ = look.tick() => self.uplink.backlog(backlog(), self.start.elapsed()),
            };
            self.tell(transition).await;
        }
    }

    /// Starts one probe. It ends by itself a little after the decision has counted it as failed.
    fn send(&mut self, probe: Probe) {
        let patience = self.parts.settings.timeout * 2;
        let bridge = self.parts.bridge.borrow().clone();
        let (cloud, stranger) = (self.parts.cloud.clone(), self.parts.stranger.clone());
        let clock = Arc::clone(&self.parts.clock);
        self.running.spawn(async move {
            let sent = Instant::now();
            let answer = async {
                match probe {
                    Probe::Ping => ping(bridge).await,
                    Probe::EndToEnd => request(&cloud, &stranger, &clock).await,
                }
            };
            let answered = tokio::time::timeout(patience, answer)
                .await
                .unwrap_or(false);
            let outcome = match answered {
                true => Outcome::Answered {
                    rtt: sent.elapsed(),
                },
                false => Outcome::Failed,
            };
            ProbeResult { probe, outcome }
        });
    }

    async fn tell(&mut self, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        let Transition {
            from, to, reason, ..
        } = transition;
        tracing::info!(%from, %to, %reason, "uplink");
        self.state
            .send_replace(State::new(to, reason, self.parts.clock.now()));
        self.publish().await;
    }

    async fn publish(&self) {
        let payload = self.state.borrow().to_json();
        let topic = health_topic(&self.parts.site);
        let message = Message::new(&topic, payload)
            .qos(Qos::AtLeastOnce)
            .retain(true)
            .content_type("application/json");
        if let Err(error) = self.parts.broker.publish(message).await {
            tracing::warn!(%error, "the uplink's mode could not be published");
        }
    }
}

async fn ping(bridge: Option<mqtt::Client>) -> bool {
    match bridge {
        Some(client) => client.ping().await.is_ok(),
        None => false,
    }
}

/// The time in an answer about health; whoever does not say how good it is means it.
fn told(health: &serde_json::Value) -> Option<Time> {
    let quality = health["time_quality"].as_str().unwrap_or("authenticated");
    Time::from_words(&format!("{} {quality}", health["time"].as_u64()?))
}

/// The request through the cloud; its answer also tells the time, over verified TLS. A gateway that was
/// away for so long that its certificate has expired is let in by nobody, and one whose counter stood
/// still lets nobody in: as a stranger it hears the time, and then makes itself another.
async fn request(cloud: &https::Client, stranger: &https::Client, clock: &SystemClock) -> bool {
    let answer = match cloud.get(HEALTH_PATH).await {
        Ok(answer) => answer,
        // The link is there, and ends when a certificate is seen.
        Err(
            https::Error::Broken(_)
            | https::Error::Dial(DialError::Untrusted { .. } | DialError::Handshake { .. }),
        ) => {
            if let Ok(answer) = stranger.get(HEALTH_PATH).await {
                hear(&answer, clock);
            }
            return false;
        }
        Err(_) => return false,
    };
    hear(&answer, clock);
    answer.status.is_success()
}

fn hear(answer: &https::Response, clock: &SystemClock) {
    let health: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    if let Some(told) = health.as_ref().and_then(told) {
        clock.hear(told);
    }
}
