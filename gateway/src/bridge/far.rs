//! The far end of a bridge: the Holdfast cloud, or a foreign broker.
//!
//! Used by [`super::Bridge`]. They differ in how a connection is made, and in that the cloud alone
//! is told how the gateway fares.

use std::sync::Arc;
use std::time::Duration;

use holdfast_link::dial::Endpoint;
use holdfast_link::mqtt::{self, Client, Publish};
use holdfast_link::time::Clock;
use holdfast_protocol::id::{ServerId, SiteId};
use tokio::sync::watch;

use super::foreign::{Connected, Foreign};
use crate::config::CLOUD;
use crate::uplink::{State, health_topic};

/// How long the cloud keeps commands for a gateway that is away.
const SESSION: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the files of a foreign remote are looked at.
const FILE_CHECK: Duration = Duration::from_secs(5);

/// Who is at the other end.
#[derive(Debug)]
pub(super) enum Far {
    /// The Holdfast cloud.
    Home(Box<Home>),
    /// Somebody else's broker.
    Foreign(Box<Foreign>),
}

/// The Holdfast cloud as a remote.
#[derive(Debug)]
pub(super) struct Home {
    /// Its broker.
    pub(super) cloud: Endpoint,
    /// This gateway.
    pub(super) server: ServerId,
    /// Its site.
    pub(super) site: SiteId,
    /// Dates the last will.
    pub(super) clock: Arc<dyn Clock>,
    /// How often a ping measures the link, and how long it may take.
    pub(super) ping: Duration,
    /// What it is told, once somebody watches the uplink.
    pub(super) health: Option<watch::Receiver<State>>,
}

impl Far {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Home(_) => CLOUD,
            Self::Foreign(foreign) => foreign.name(),
        }
    }

    /// Connects; the reason of a failure is one sentence for the operator.
    pub(super) async fn connect(&mut self, window: u16) -> Result<Connected, String> {
        match self {
            Self::Home(home) => home
                .connect(window)
                .await
                .map_err(|error| error.to_string()),
            Self::Foreign(foreign) => {
                let connected = foreign.connect(window).await;
                connected.map_err(|error| error.to_string())
            }
        }
    }

    /// Waits until the connection should be made anew for another reason than its end.
    pub(super) async fn outdated(&mut self) {
        let Self::Foreign(foreign) = self else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(FILE_CHECK).await;
            if foreign.has_new_files() {
                return;
            }
        }
    }

    /// What the far end is told when the gateway stops.
    pub(super) fn last_word(&self) -> Option<Publish> {
        match self {
            Self::Home(home) => Some(home.word(&State::stopped(home.clock.now()))),
            Self::Foreign(_) => None,
        }
    }

    /// What the far end is told about the gateway as it changes.
    pub(super) fn news(&self) -> News {
        match self {
            Self::Home(home) => News(home.health.clone().map(|mut health| {
                health.mark_changed();
                (health, home.site.clone())
            })),
            Self::Foreign(_) => News(None),
        }
    }
}

impl Home {
    async fn connect(&self, window: u16) -> Result<Connected, mqtt::ConnectError> {
        let mut options = mqtt::Options::new(self.cloud.clone(), self.server.as_str());
        options.will = Some(self.word(&State::last_will(self.clock.now())));
        options.session_expiry = SESSION;
        options.ping_interval = self.ping;
        options.ping_timeout = self.ping * 2;
        options.window = window;
        let version = options.version;
        let (client, inbox, granted) = mqtt::connect(options).await?;
        Ok((client, inbox, granted, version))
    }

    fn word(&self, state: &State) -> Publish {
        word(&self.site, state)
    }
}

/// The gateway's news for the far end.
#[derive(Debug)]
pub(super) struct News(Option<(watch::Receiver<State>, SiteId)>);

impl News {
    /// The next; never, for who is told none. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Publish {
        if let Some((health, site)) = &mut self.0
            && health.changed().await.is_ok()
        {
            return word(site, &health.borrow_and_update().clone());
        }
        std::future::pending().await
    }
}

fn word(site: &SiteId, state: &State) -> Publish {
    Publish {
        retain: true,
        content_type: Some("application/json".to_owned()),
        ..Publish::new(health_topic(site), state.to_json())
    }
}

/// The client of the moment, for the uplink's ping.
pub(super) type Line = watch::Sender<Option<Client>>;
