//! The story: from nothing to a device that publishes through the gateway, an outage that loses nothing, and the way
//! back. Called by `drill` (headless) and `demo` (told to a person); every step is checked against what really arrived.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::judge::{Arrival, Verdict, judge};
use crate::process::wait_until;
use crate::proxy::Mode;
use crate::reader::{Reader, Seen, Subscription};
use crate::sheet::{Notes, Sheet};
use crate::weather::Table;
use crate::world::{Plan, SITE, Server, World, number_of};

mod outage;
mod setting_up;

/// Number of steps in the story.
pub const STEPS: usize = 7;

/// Rows that must have arrived on both sides before the uplink is cut.
const ROWS_ONLINE: usize = 300;
/// Rows further on at which the gateway is killed.
const ROWS_BEFORE_KILL: usize = 250;
/// Rows further on at which the uplink returns.
const ROWS_BEFORE_RETURN: usize = 250;
/// A silent cut must be noticed within this time.
const NOTICE: f64 = 5.0;
/// The LAN must not be without a measurement for longer while only the uplink is cut, seconds.
const LONGEST_PAUSE: f64 = 1.5;
/// How long anything that should come by itself may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// The running story: the world, the witnesses on both sides and what must arrive.
#[derive(Debug)]
pub struct Story {
    /// The parts.
    pub world: World,
    table: Table,
    device: String,
    witnesses: Option<Witnesses>,
}

/// The stock clients that write down what arrives.
#[derive(Debug)]
struct Witnesses {
    lan: Reader,
    cloud: Reader,
}

impl Story {
    /// A world for the story, nothing started.
    ///
    /// # Errors
    /// See [`World::new`].
    pub async fn new(plan: &Plan) -> anyhow::Result<Self> {
        let table = Table::of_the_tree()?;
        Ok(Self {
            world: World::new(plan).await?,
            table,
            device: String::new(),
            witnesses: None,
        })
    }

    /// Runs the steps until one does not hold.
    pub async fn run(&mut self, sheet: &mut Sheet) {
        let _ = sheet
            .step(
                "the cloud starts from nothing",
                "root CA and owner keys made, all listeners open, status answers",
                async |notes| self.cloud_starts(notes).await,
            )
            .await
            && sheet
                .step(
                    "the gateway enrols and restarts without the cloud",
                    "one-time token, own certificate and site CA; ready again with the uplink down",
                    async |notes| self.gateway_enrols(notes).await,
                )
                .await
            && sheet
                .step(
                    "thermometer A onboards",
                    "DI, TO0, mDNS, TO1 through the gateway, TO2 with the cloud, certificate, statement, sync",
                    async |notes| self.device_onboards(notes).await,
                )
                .await
            && sheet
                .step(
                    "A publishes real measurements",
                    "count, order and content at mosquitto_sub on the LAN and at the cloud",
                    async |notes| self.measurements_arrive(notes).await,
                )
                .await
            && sheet
                .step(
                    "the uplink is cut silently",
                    "mode outage within 5 s, retained, with reason and since; A is acknowledged, the LAN sees no gap",
                    async |notes| self.uplink_is_cut(notes).await,
                )
                .await
            && sheet
                .step(
                    "the gateway is killed (kill -9) and restarted",
                    "A reconnects by itself; nothing lost, nothing doubled on the LAN",
                    async |notes| self.gateway_is_killed(notes).await,
                )
                .await
            && sheet
                .step(
                    "the uplink returns",
                    "recovering, then online; every message once and in order at the cloud and in its ledger",
                    async |notes| self.uplink_returns(notes).await,
                )
                .await;
    }

    /// The device's id, once it has one.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    async fn measurements_arrive(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let witnesses = self.witnesses()?;
        for (side, reader) in [("the LAN", &witnesses.lan), ("the cloud", &witnesses.cloud)] {
            wait_until(&format!("{ROWS_ONLINE} rows at {side}"), PATIENCE, || {
                reader.count(is_measurement) >= ROWS_ONLINE
            })
            .await
            .with_context(|| format!("{} came", reader.count(is_measurement)))?;
            let verdict = self.judge(reader, ROWS_ONLINE);
            ensure!(verdict.is_exact(), "at {side}: {verdict}");
            notes.figure(format!("at {side}: {verdict}"));
        }
        Ok(())
    }

    fn witnesses(&self) -> anyhow::Result<&Witnesses> {
        self.witnesses
            .as_ref()
            .context("the witnesses are not there yet")
    }

    /// What a reader's ledger holds, against the first `wanted` rows.
    fn judge(&self, reader: &Reader, wanted: usize) -> Verdict {
        let arrivals: Vec<_> = reader
            .seen(is_measurement)
            .into_iter()
            .map(arrival)
            .collect();
        judge(&self.table, &arrivals, wanted)
    }

    /// Messages that the device knows to be acknowledged.
    async fn acknowledged(&self) -> anyhow::Result<u64> {
        let status = self.world.agent.status().await?;
        number_of(&status, &["acknowledged"])
            .with_context(|| format!("no count of acknowledgements in {status}"))
    }
}

fn arrival(seen: Seen) -> Arrival {
    Arrival {
        payload: seen.payload,
        is_repeat_marked: seen.is_dup,
    }
}

fn is_measurement(topic: &str) -> bool {
    topic.ends_with("/up/weather")
}

fn is_health(topic: &str) -> bool {
    topic.ends_with("/gateway/health")
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64())
}

/// A JSON text without its quotes; anything else as JSON.
fn shown(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}
