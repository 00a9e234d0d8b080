//! The bridge to one remote broker, the Holdfast cloud or somebody else's: journal -> remote and
//! remote -> LAN, over one MQTT connection.
//!
//! Run by [`crate::app`], one for each remote. Outgoing messages come from durable consumers of the
//! LAN's broker and nowhere else; a journal row goes when the remote has acknowledged it, never
//! before. What to send next is decided by [`holdfast_protocol::drain`]. An outage is a slow reader:
//! nothing on the LAN waits for anything here. The MQTT client keeps no message; after each loss of
//! the link the same rows are sent again under the same stamps, and the cloud drops those it has.

mod convert;
pub mod credentials;
mod dead_letter;
mod denial;
mod far;
mod foreign;
mod inbound;
pub mod leftover;
mod outbound;
mod outlet;
mod standing;

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Broker, Consumer};
use holdfast_link::dial::Endpoint;
use holdfast_link::mqtt::{Client, Inbox};
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_link::time::Clock;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::rights::{Place, Rights};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use convert::Stamp;
pub use dead_letter::DeadLetters;
pub use outlet::OpenError;
pub use standing::{Standing, Watched};

use crate::config::{CLOUD, Direction, Remote, Rule};
use crate::uplink::State;
use far::{Far, Home};
use foreign::{Connected, Foreign};
use inbound::Inbound;
use outbound::Outbound;
use outlet::{Lane, Outlet};
use standing::Board;

/// Name of the built-in rule's consumer; never to be changed, since the journal remembers by it.
const BUILT_IN: &str = "cloud";
/// Before the name of a rule's consumer.
const RULE: &str = "rule-";
/// Waits between attempts to connect: a flapping link costs less than a handshake in two seconds.
const RETRY: Policy = Policy {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(5),
};
/// Places of the window for the gateway's own words, beside the journal's.
const OWN_PLACES: usize = 2;
/// Time for a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// What every bridge works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// This gateway.
    pub server: ServerId,
    /// Its site.
    pub site: SiteId,
    /// The LAN's broker.
    pub broker: Broker,
    /// Stamps messages that bear none.
    pub stamp: Stamp,
    /// Dates what is told.
    pub clock: Arc<dyn Clock>,
    /// Messages under way at once, for each remote.
    pub window: usize,
    /// How long a denied topic is tried again.
    pub denied_for: Duration,
    /// Keeps what a remote will never take.
    pub dead_letters: DeadLetters,
}

/// A bridge, its consumers open.
#[derive(Debug)]
pub struct Bridge {
    parts: Parts,
    far: Far,
    outlets: Vec<Outlet>,
    inbound: Inbound,
    line: far::Line,
    board: Board,
}

/// How long the backlog is, from any task.
#[derive(Debug, Clone)]
pub struct Backlog(Vec<Consumer>);

impl Backlog {
    /// Messages that wait for the remote.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.0.iter().map(Consumer::waiting).sum()
    }
}

impl Bridge {
    /// The bridge to the Holdfast cloud at `cloud`, with the built-in rules and those that name no
    /// other remote. `ping`: how often one measures the link, and how long it may take.
    ///
    /// # Errors
    /// The journal failed, or a filter is none.
    pub async fn to_cloud(
        parts: Parts,
        rules: &[Rule],
        cloud: Endpoint,
        ping: Duration,
    ) -> Result<Self, OpenError> {
        let site = &parts.site;
        let built_in = Lane {
            name: BUILT_IN.to_owned(),
            filters: vec![
                format!("hf/v1/{site}/+/up/#"),
                format!("hf/v1/{site}/+/service/reported"),
                format!("svc/v1/{site}/+/+/telemetry"),
            ],
            strip: String::new(),
            prefix: String::new(),
            window: parts.window,
            denied_for: parts.denied_for,
        };
        let inbound = Inbound::new(CLOUD, of(rules, CLOUD)).with_commands(site);
        let far = Far::Home(Box::new(Home {
            cloud,
            server: parts.server.clone(),
            site: site.clone(),
            clock: Arc::clone(&parts.clock),
            ping,
            health: None,
        }));
        Self::open(parts, far, (Some(built_in), rules), inbound).await
    }

    /// The bridge to a broker of somebody else.
    ///
    /// # Errors
    /// The journal failed, or a filter is none.
    pub async fn to_remote(
        parts: Parts,
        rules: &[Rule],
        remote: Remote,
    ) -> Result<Self, OpenError> {
        let inbound = Inbound::new(&remote.name, of(rules, &remote.name));
        let id = format!("{}-{}", parts.site, parts.server);
        let far = Foreign::new(remote, id, Arc::clone(&parts.clock));
        Self::open(parts, Far::Foreign(Box::new(far)), (None, rules), inbound).await
    }

    async fn open(
        parts: Parts,
        far: Far,
        (built_in, rules): (Option<Lane>, &[Rule]),
        inbound: Inbound,
    ) -> Result<Self, OpenError> {
        let out = of(rules, far.name()).filter(|rule| rule.direction == Direction::Out);
        let told = out.map(|rule| Lane {
            name: format!("{RULE}{}", rule.name),
            filters: vec![rule.filter.clone()],
            strip: rule.strip.clone(),
            prefix: rule.prefix.clone(),
            window: parts.window,
            denied_for: parts.denied_for,
        });
        let mut outlets = Vec::new();
        for lane in built_in.into_iter().chain(told) {
            outlets.push(Outlet::open(&parts.broker, lane).await?);
        }
        let (line, _) = watch::channel(None);
        let board = Board::new(far.name(), parts.clock.now().secs);
        Ok(Self {
            parts,
            far,
            outlets,
            inbound,
            line,
            board,
        })
    }

    /// The connection of the moment, for the uplink's ping.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Option<Client>> {
        self.line.subscribe()
    }

    /// The backlog.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        Backlog(self.consumers())
    }

    /// How it stands, from any task.
    #[must_use]
    pub fn watched(&self) -> Watched {
        self.board.watched(self.consumers())
    }

    /// Lets the cloud be told how the uplink fares.
    pub fn tell(&mut self, state: watch::Receiver<State>) {
        if let Far::Home(home) = &mut self.far {
            home.health = Some(state);
        }
    }

    fn consumers(&self) -> Vec<Consumer> {
        self.outlets.iter().map(Outlet::consumer).collect()
    }

    /// Works until cancelled: connects, carries both ways, connects again.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut backoff = Backoff::new(RETRY);
        let window = u16::try_from(self.parts.window + OWN_PLACES).unwrap_or(u16::MAX);
        loop {
            let connected = stop.run_until_cancelled(self.far.connect(window)).await;
            let Some(connected) = connected else { return };
            let now = self.parts.clock.now().secs;
            match connected {
                Ok(connected) => {
                    let (peer, version) = (connected.2.peer, connected.3);
                    tracing::info!(remote = self.board.name(), %peer, ?version, "bridge connected");
                    backoff.worked();
                    self.board.is_up(now, peer, version);
                    self.line.send_replace(Some(connected.0.clone()));
                    self.outlets.iter_mut().for_each(Outlet::link_made);
                    let why = self.carry(connected, &stop).await;
                    self.line.send_replace(None);
                    self.outlets.iter_mut().for_each(Outlet::link_lost);
                    self.board.is_down(self.parts.clock.now().secs, &why);
                    if stop.is_cancelled() {
                        return;
                    }
                    tracing::warn!(remote = self.board.name(), why, "bridge disconnected");
                }
                Err(error) if self.board.is_down(now, &error) => {
                    tracing::warn!(remote = self.board.name(), %error, "the remote cannot be reached; trying on");
                }
                Err(error) => {
                    tracing::debug!(remote = self.board.name(), %error, "the remote cannot be reached");
                }
            }
            let wait = tokio::time::sleep(backoff.failed(&mut SystemRandom));
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    /// Carries both ways over one connection; gives the reason why it ended.
    async fn carry(&mut self, connected: Connected, stop: &CancellationToken) -> String {
        let (client, inbox, granted, _) = connected;
        let goodbye = goodbye(&client, self.far.last_word());
        let news = self.far.news();
        let outbound = Outbound {
            client: &client,
            granted: &granted,
            outlets: &mut self.outlets,
            stamp: self.parts.stamp,
            dead_letters: &self.parts.dead_letters,
            board: &self.board,
            window: usize::from(granted.window)
                .saturating_sub(OWN_PLACES)
                .max(1),
            turn: 0,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _ = tokio::time::timeout(GOODBYE, goodbye).await;
                "stopped".to_owned()
            }
            why = client.ended() => why.to_string(),
            error = outbound.run(news) => error,
            () = take_in(&self.inbound, inbox, &self.parts.broker) => client.ended().await.to_string(),
            () = subscribe(&self.inbound, &client, &self.board) => String::new(),
            () = self.far.outdated() => {
                client.disconnect().await;
                "its certificate files have changed".to_owned()
            }
        }
    }
}

async fn goodbye(client: &Client, last: Option<holdfast_link::mqtt::Publish>) {
    if let Some(word) = last {
        let _ = client.publish_and_wait(word).await;
    }
    client.disconnect().await;
}

async fn take_in(inbound: &Inbound, inbox: Inbox, broker: &Broker) {
    inbound.run(inbox, broker.clone()).await;
}

/// Subscribes to what is wanted; never ends. A session that the remote kept has it; saying it again
/// costs nothing and heals.
async fn subscribe(inbound: &Inbound, client: &Client, board: &Board) {
    for (filter, qos) in inbound.subscriptions() {
        if let Err(error) = client.subscribe(&[(filter.as_str(), qos)]).await {
            tracing::error!(remote = board.name(), %error, "the remote does not send this to the gateway");
            board.refused_subscription(error.to_string());
        }
    }
    std::future::pending::<()>().await;
}

/// What is wrong with rules to the Holdfast cloud: it takes from a gateway, and gives to it, what
/// belongs to the site alone. One sentence for each.
#[must_use]
pub fn beyond_rights(rules: &[Rule], server: &ServerId, site: &SiteId) -> Vec<String> {
    let party = Party::Gateway {
        server: server.clone(),
        site: site.clone(),
    };
    let rights = Rights::compile(&party, None, &Place::Cloud);
    let fault = |rule: &Rule| {
        let (text, allowed) = match rule.direction {
            Direction::Out => (rule.lands_on(), rights.publish()),
            Direction::In => (rule.filter.clone(), rights.subscribe()),
        };
        let filter = text.parse().ok()?;
        if allowed.iter().any(|one| one.contains(&filter)) {
            return None;
        }
        let key = match rule.direction {
            Direction::Out => "prefix",
            Direction::In => "filter",
        };
        Some(format!(
            "rule {:?} carries {text:?} at the Holdfast cloud, where this gateway has no right: begin \
             its {key} with \"ext/v1/{site}/\"",
            rule.name
        ))
    };
    of(rules, CLOUD).filter_map(fault).collect()
}

/// The rules that name this remote.
fn of<'a>(rules: &'a [Rule], remote: &str) -> impl Iterator<Item = &'a Rule> {
    let remote = remote.to_owned();
    rules.iter().filter(move |rule| rule.remote == remote)
}
