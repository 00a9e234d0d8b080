//! The pair under test: two real daemons built in this process, and the switch between them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_broker::Broker;
use holdfast_cloud::config as cloud_config;
use holdfast_cps::Cps;
use holdfast_gateway::bridge::{Backlog, Watched};
use holdfast_gateway::config as gateway_config;
use holdfast_gateway::uplink::State;
use holdfast_protocol::id::SiteId;
use holdfast_protocol::uplink::Settings;
use holdfast_server::config::Listen;
use holdfast_server::reload::Reload;
use holdfast_tests::place::{Party, Place};
use holdfast_tests::proxy::{Mode, Proxy};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The longest that any state is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const SITE: &str = "bern";

/// A daemon that runs in this process.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    pub(crate) cps: Cps,
    pub(crate) broker: Broker,
}

impl Running {
    /// Stops it as SIGTERM does and waits for its end.
    pub(crate) async fn stop(self) {
        let Self {
            stop,
            task,
            cps,
            broker,
        } = self;
        drop((cps, broker));
        stop.cancel();
        within("the daemon to end", task).await.expect("no panic");
    }
}

/// What a gateway shows beside.
pub(crate) struct Gateway {
    pub(crate) daemon: Running,
    pub(crate) uplink: watch::Receiver<State>,
    pub(crate) backlog: Backlog,
    pub(crate) remotes: Vec<Watched>,
    /// The listeners for ordinary clients.
    pub(crate) clients: Vec<(&'static str, SocketAddr)>,
    pub(crate) mqtt: SocketAddr,
    pub(crate) reload: Reload,
}

impl Gateway {
    /// Stops it and lets go of all that holds its files.
    pub(crate) async fn stop(self) {
        drop((self.backlog, self.remotes, self.reload));
        self.daemon.stop().await;
    }

    pub(crate) async fn wait_for(&mut self, mode: &str) {
        let what = format!("mode {mode}");
        within(&what, self.uplink.wait_for(|state| state.mode == mode))
            .await
            .expect("watched");
    }
}

/// A place for a cloud and a gateway, and the switch between them.
pub(crate) struct Pair {
    folder: tempfile::TempDir,
    pub(crate) proxy: Proxy,
    cloud: cloud_config::Config,
    pub(crate) gateway: gateway_config::Config,
    /// The cloud's HTTPS as the site sees it.
    pub(crate) enrol_at: SocketAddr,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let place = Place::of_this_process();
        let free = |party| place.socket(party, 0).expect("a free port");
        let (mqtt, https, fdo) = (free(Party::Cloud), free(Party::Cloud), free(Party::Cloud));
        let mut proxy = Proxy::new();
        let near_mqtt = proxy.wire(free(Party::Uplink), mqtt).await.expect("wire");
        let near_https = proxy.wire(free(Party::Uplink), https).await.expect("wire");
        let metrics = "127.0.0.1:0".parse().expect("address");
        let told = |near: SocketAddr| vec![near.to_string().parse().expect("host and port")];
        let cloud = cloud_config::Config {
            listen: cloud_config::Listen {
                house: Listen {
                    mqtt,
                    https,
                    fdo,
                    metrics,
                },
                manufacturing: None,
            },
            advertise: cloud_config::Advertise {
                mqtt: told(near_mqtt),
                https: told(near_https),
                fdo: told(fdo),
            },
            ..cloud_config::Config::default()
        };
        let at = |port| SocketAddr::from((place.address(Party::Gateway), port));
        let gateway = gateway_config::Config {
            listen: Listen {
                mqtt: at(0),
                https: at(0),
                fdo: at(0),
                metrics,
            },
            discovery: gateway_config::Discovery {
                enabled: false,
                ..Default::default()
            },
            uplink: gateway_config::Uplink(Settings {
                interval: Duration::from_millis(200),
                timeout: Duration::from_millis(200),
                hold: Duration::from_millis(200),
                hold_max: Duration::from_millis(400),
                ..Settings::default()
            }),
            ..gateway_config::Config::default()
        };
        let folder = tempfile::tempdir().expect("folder");
        Self {
            folder,
            proxy,
            cloud,
            gateway,
            enrol_at: near_https,
        }
    }

    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn start_cloud(&self) -> Running {
        let built = holdfast_cloud::app::build(self.cloud.clone(), &self.state("cloud")).await;
        let app = built.expect("the cloud builds");
        let (cps, broker) = (app.cps().clone(), app.broker().clone());
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { app.run(token).await.expect("the cloud runs") });
        Running {
            stop,
            task,
            cps,
            broker,
        }
    }

    /// A token of a running cloud for this pair's site and the gateway `gw1`.
    pub(crate) async fn token(&self, cloud: &Running, life: Duration) -> String {
        let site: SiteId = SITE.parse().expect("site");
        cloud.cps.add_site(&site).await.expect("site added");
        let gateway = "gw1".parse().expect("name");
        let token = cloud.cps.enrolment().token(&site, &gateway, life).await;
        token.expect("token").to_string()
    }

    pub(crate) async fn enrol(
        &self,
        state: &str,
        token: &str,
    ) -> Result<(), holdfast_gateway::identity::EnrolFault> {
        let at = self.enrol_at.to_string().parse().expect("host and port");
        let token = token.parse().expect("a token");
        let state = self.state(state);
        holdfast_gateway::identity::enrol(&self.gateway, &state, &at, &token)
            .await
            .map(drop)
    }

    pub(crate) async fn start_gateway(&self) -> Gateway {
        let built = holdfast_gateway::app::build(self.gateway.clone(), &self.state("gw")).await;
        let app = built.expect("the gateway builds");
        let (cps, broker) = (app.cps().clone(), app.broker().clone());
        let (uplink, backlog, remotes) = (app.uplink(), app.backlog(), app.remotes());
        let (clients, mqtt) = (app.listeners().clients.addresses(), app.listeners().mqtt());
        let reload = app.reload();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move { app.run(token).await.expect("the gateway runs") });
        Gateway {
            daemon: Running {
                stop,
                task,
                cps,
                broker,
            },
            uplink,
            backlog,
            remotes,
            clients,
            mqtt,
            reload,
        }
    }

    /// Cloud up, gateway enrolled, up, and online.
    pub(crate) async fn up(&self) -> (Running, Gateway) {
        let cloud = self.start_cloud().await;
        let token = self.token(&cloud, Duration::from_secs(60)).await;
        self.enrol("gw", &token).await.expect("enrols");
        let mut gateway = self.start_gateway().await;
        gateway.wait_for("online").await;
        (cloud, gateway)
    }

    pub(crate) fn cut(&self, mode: Mode) {
        self.proxy.set(mode);
    }
}

/// Waits for something, within bounds.
pub(crate) async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

/// Looks until it is so, within bounds.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
