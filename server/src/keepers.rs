//! What looks after a server while it runs, the same in both: the time floor, times of records, revoked
//! sessions, clients read again, systemd's watchdog. Spawned by each server's `app` in its last stage.

use std::sync::Arc;

use holdfast_config::life;
use holdfast_config::stages::Stages;
use holdfast_cps::Cps;
use holdfast_link::time::SystemClock;

use crate::reload::Reload;
use crate::rights;

/// Spawns them in `stage`.
pub fn spawn(
    stages: &mut Stages,
    stage: usize,
    cps: &Cps,
    clock: &Arc<SystemClock>,
    reload: Reload,
) {
    let token = stages.token(stage);
    let (clock, stop) = (Arc::clone(clock), token.clone());
    stages.spawn_quiet(stage, "time floor", async move {
        clock.keep_floor_until(stop.cancelled()).await;
    });
    let watch = rights::watch(cps.clone(), reload.broker.clone(), token.clone());
    stages.spawn_quiet(stage, "rights", watch);
    stages.spawn(stage, "clients", reload.run(token.clone()));
    let times = cps.times().clone().keep(token.clone());
    stages.spawn_quiet(stage, "times of records", times);
    let cps = cps.clone();
    stages.spawn_quiet(stage, "watchdog", async move {
        let alive = || async {
            cps.answers().await;
            true
        };
        life::feed_watchdog(token.clone(), alive).await;
        token.cancelled().await;
    });
}
