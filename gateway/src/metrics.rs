//! The gateway's own figures on the loopback listener, beside those that every server has: the backlog,
//! the uplink, the remotes, how long the site may stay offline.
//!
//! Built once by [`crate::app`], looked up when asked for. It shows no identity and no content of a
//! message.

use axum::Router;
use holdfast_cps::Cps;
use holdfast_server::metrics;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::app::App;
use crate::bridge::{Backlog, DeadLetters, Watched};
use crate::uplink::State;

/// What is looked at.
#[derive(Debug)]
struct Seen {
    cps: Cps,
    backlog: Backlog,
    dead_letters: DeadLetters,
    remotes: Vec<Watched>,
    uplink: watch::Receiver<State>,
    gauges: Gauges,
}

/// Looked up when asked for.
#[derive(Debug, Clone, Default)]
struct Gauges {
    backlog: Gauge,
    revocations: Gauge,
    revocations_age: Gauge,
    window: Gauge,
    dead_letters: Gauge,
    uplink: Gauge,
    remotes: Remotes,
}

/// One line for each remote.
type PerRemote = Family<Vec<(&'static str, String)>, Gauge>;

#[derive(Debug, Clone, Default)]
struct Remotes {
    up: PerRemote,
    backlog: PerRemote,
    denied: PerRemote,
    dead_letters: PerRemote,
}

impl Remotes {
    fn register(&self, registry: &mut Registry) {
        for (name, help, family) in [
            (
                "remote_up",
                "1 while the bridge is connected to this remote",
                &self.up,
            ),
            (
                "remote_backlog",
                "Messages that wait for this remote",
                &self.backlog,
            ),
            (
                "remote_denied_topics",
                "Topics that this remote denies now",
                &self.denied,
            ),
            (
                "remote_dead_letters",
                "Messages put aside since the start that this remote will never take",
                &self.dead_letters,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }

    fn set(&self, remotes: &[Watched]) {
        for remote in remotes {
            let label = vec![("remote", remote.name().to_owned())];
            let now = remote.now();
            self.up.get_or_create(&label).set(i64::from(now.connected));
            for (family, count) in [
                (&self.backlog, now.waiting),
                (&self.denied, now.denied_topics),
                (&self.dead_letters, now.dead_letters),
            ] {
                family.get_or_create(&label).set(whole(count));
            }
        }
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The router for the loopback listener.
pub fn router(app: &App) -> Router {
    let mut registry = metrics::registry(&app.cps, &app.broker);
    let gauges = Gauges::default();
    gauges.register(registry.sub_registry_with_prefix("holdfast_gateway"));
    let seen = Seen {
        cps: app.cps.clone(),
        backlog: app.backlog(),
        dead_letters: app.dead_letters.clone(),
        remotes: app.remotes(),
        uplink: app.uplink(),
        gauges,
    };
    metrics::router(registry, app.cps.clone(), move || seen.look())
}

impl Gauges {
    fn register(&self, ours: &mut Registry) {
        ours.register(
            "backlog",
            "Messages that wait for the cloud",
            self.backlog.clone(),
        );
        ours.register(
            "revocations_number",
            "Number of the list of revoked certificates",
            self.revocations.clone(),
        );
        ours.register(
            "revocations_age_seconds",
            "Since the cloud was asked for news of that list; -1: not since the start",
            self.revocations_age.clone(),
        );
        ours.register(
            "offline_window_seconds",
            "For so long the site may stay offline; below 90 days it should see its cloud soon",
            self.window.clone(),
        );
        let dead = self.dead_letters.clone();
        ours.register(
            "dead_letters",
            "Messages put aside that a remote will never take",
            dead,
        );
        let uplink = self.uplink.clone();
        ours.register("uplink_up", "1 unless the uplink's mode is outage", uplink);
        self.remotes.register(ours);
    }
}

impl Seen {
    fn look(&self) {
        let gauges = &self.gauges;
        gauges.backlog.set(whole(self.backlog.waiting()));
        let list = self.cps.roster().revocations();
        gauges.revocations.set(whole(list.number));
        let age = list.heard_secs_ago.map_or(-1, whole);
        gauges.revocations_age.set(age);
        let window = self.cps.authority().window().ok().flatten();
        gauges.window.set(window.map_or(-1, whole));
        gauges.dead_letters.set(whole(self.dead_letters.count()));
        gauges.remotes.set(&self.remotes);
        let up = self.uplink.borrow().is_up();
        gauges.uplink.set(i64::from(up));
    }
}
