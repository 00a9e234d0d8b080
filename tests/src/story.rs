//! The story: from nothing to a device that publishes through the gateway; an outage that loses nothing, in which others
//! join and one changes its service; the way back, and a gateway that is lost. Called by `drill` (headless) and `demo` (told to a person); every step is checked against what really arrived.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::judge::{Arrival, Verdict, judge};
use crate::partner::Partner;
use crate::process::wait_until;
use crate::proxy::Mode;
use crate::reader::{Reader, Seen, Subscription};
use crate::sheet::{Notes, Sheet};
use crate::weather::Table;
use crate::world::{PATIENCE, Part, Plan, SITE, Server, World, counter};

mod foreign;
mod homecoming;
mod newcomers;
mod outage;
mod replacement;
mod service;
mod setting_up;

/// Number of steps in the story.
pub const STEPS: usize = 13;

/// Pace of every device's second sensor, which outlasts the story.
pub const PULSE: Duration = Duration::from_millis(300);
/// Rows that must have arrived on both sides before the uplink is cut.
const ROWS_ONLINE: usize = 200;
/// Rows further on at which the gateway is killed.
const ROWS_BEFORE_KILL: usize = 150;
/// Rows that must come after the kill.
const ROWS_AFTER_KILL: usize = 150;
/// A silent cut must be noticed within this time.
const NOTICE: f64 = 5.0;
/// The LAN must not be without a measurement for longer while only the uplink is cut, seconds.
const LONGEST_PAUSE: f64 = 1.5;
/// The device that arrives in the outage with its voucher as a file.
const B: &str = "device-b";
/// The device that was bought before and is powered on in the outage.
const C: &str = "device-c";

/// The running story: the world, the witnesses on both sides and what must arrive.
#[derive(Debug)]
pub struct Story {
    /// The parts.
    pub world: World,
    table: Table,
    device: String,
    newcomers: Vec<Newcomer>,
    witnesses: Option<Witnesses>,
    partner: Option<Partner>,
}

/// A device that comes after the first.
#[derive(Debug)]
struct Newcomer {
    part: Part,
    id: String,
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
            newcomers: Vec::new(),
            witnesses: None,
            partner: None,
        })
    }

    /// Runs the steps until one does not hold. Their numbers are those of the promises, told in the order in which
    /// they come true: 8 to 10 lie within the outage of 5, and 7 ends it.
    pub async fn run(&mut self, sheet: &mut Sheet) {
        let _ = self.before_the_outage(sheet).await
            && self.in_the_outage(sheet).await
            && self.after_the_outage(sheet).await;
    }

    async fn before_the_outage(&mut self, sheet: &mut Sheet) -> bool {
        sheet
            .step(
                (1, "the cloud starts from nothing"),
                "root CA and owner keys made, all listeners open, status answers",
                async |notes| self.cloud_starts(notes).await,
            )
            .await
            && sheet
                .step(
                    (2, "the gateway enrols and restarts without the cloud"),
                    "one-time token, own certificate and site CA; ready again with the uplink down",
                    async |notes| self.gateway_enrols(notes).await,
                )
                .await
            && sheet
                .step(
                    (3, "thermometer A onboards; C is bought and stays in its box"),
                    "DI, TO0, mDNS, TO1 through the gateway, TO2 with the cloud, certificate, statement, sync",
                    async |notes| self.device_onboards(notes).await,
                )
                .await
            && sheet
                .step(
                    (4, "A publishes real measurements"),
                    "count, order and content at mosquitto_sub on the LAN and at the cloud",
                    async |notes| self.measurements_arrive(notes).await,
                )
                .await
    }

    async fn in_the_outage(&mut self, sheet: &mut Sheet) -> bool {
        sheet
            .step(
                (5, "the uplink is cut silently"),
                "mode outage within 5 s, retained, with reason and since; A is acknowledged, the LAN sees no gap",
                async |notes| self.uplink_is_cut(notes).await,
            )
            .await
            && sheet
                .step(
                    (6, "in the outage the gateway is killed (kill -9) and restarted"),
                    "A reconnects by itself; nothing lost, nothing doubled on the LAN",
                    async |notes| self.gateway_is_killed(notes).await,
                )
                .await
            && sheet
                .step(
                    (8, "in the outage B arrives with its voucher as a file"),
                    "voucher extended over the LAN; TO1 and TO2 with the gateway alone, certificate, measurements",
                    async |notes| self.b_arrives(notes).await,
                )
                .await
            && sheet
                .step(
                    (9, "in the outage C is powered on for the first time"),
                    "onboarded by the gateway with the voucher that it got in advance",
                    async |notes| self.c_is_powered_on(notes).await,
                )
                .await
            && sheet
                .step(
                    (10, "in the outage A is moved to another service"),
                    "order, notice, new key and certificate, switch, history; forged and replayed notices move nothing",
                    async |notes| self.service_changes(notes).await,
                )
                .await
    }

    async fn after_the_outage(&mut self, sheet: &mut Sheet) -> bool {
        sheet
            .step(
                (7, "the uplink returns"),
                "recovering, then online; every message once and in order at the cloud and in its ledger",
                async |notes| self.uplink_returns(notes).await,
            )
            .await
            && sheet
                .step(
                    (11, "the cloud believes what is proved, and nothing else"),
                    "B and C proved by voucher chain and statement, A's history; tampered and foreign entries refused and \
                     shown; B and C told of the cloud; their new vouchers extended to it",
                    async |notes| self.cloud_believes(notes).await,
                )
                .await
            && sheet
                .step(
                    (12, "the gateway's machine is lost and replaced"),
                    "A, B and C work through the fresh one with the uplink down; the old one is locked out",
                    async |notes| self.gateway_is_replaced(notes).await,
                )
                .await
            && sheet
                .step(
                    (13, "a stock mosquitto as cloud broker"),
                    "a bridge rule with a client certificate, the link taken down and cut silently: each at least once",
                    async |notes| self.bridges_elsewhere(notes).await,
                )
                .await
    }

    /// Stops all daemons in order, devices first.
    ///
    /// # Errors
    /// One of them did not end by itself.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for newcomer in &mut self.newcomers {
            newcomer.part.stop().await?;
        }
        self.world.stop().await
    }

    /// The ends of all logs, for a failure's report.
    #[must_use]
    pub fn log_ends(&self) -> String {
        let mut text = self.world.log_ends();
        for Newcomer { part, .. } in &self.newcomers {
            text += &format!("--- {} log ends with\n{}\n", part.name(), part.log_end());
        }
        text
    }

    /// The device's id, once it has one.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    async fn measurements_arrive(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let witnesses = self.witnesses()?;
        for (side, reader) in [("the LAN", &witnesses.lan), ("the cloud", &witnesses.cloud)] {
            let came = self.wait_for_count(reader, &self.device, ROWS_ONLINE).await;
            came.with_context(|| format!("at {side}"))?;
            let verdict = self.judge(reader, &self.device, ROWS_ONLINE);
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

    fn newcomers(&self) -> impl Iterator<Item = &Newcomer> {
        self.newcomers.iter()
    }

    fn newcomer(&self, name: &str) -> anyhow::Result<&Newcomer> {
        let found = self.newcomers().find(|one| one.part.name() == name);
        found.with_context(|| format!("{name} has not come yet"))
    }

    fn newcomer_mut(&mut self, name: &str) -> anyhow::Result<&mut Newcomer> {
        let mut all = self.newcomers.iter_mut();
        let found = all.find(|one| one.part.name() == name);
        found.with_context(|| format!("{name} has not come yet"))
    }

    /// Waits until so many different measurements of this device have come to a reader.
    async fn wait_for_count(
        &self,
        reader: &Reader,
        device: &str,
        wanted: usize,
    ) -> anyhow::Result<()> {
        let topic = topic_of(device);
        // Marked repeats may be among them: judged only when there can be enough.
        let came = || match reader.count(|it| it == topic) {
            count if count < wanted => count,
            _ => self.judge(reader, device, 0).rows,
        };
        let what = format!("{wanted} measurements");
        let waited = wait_until(&what, PATIENCE, || came() >= wanted).await;
        waited.with_context(|| format!("{} came", came()))
    }

    /// What a reader's ledger holds of this device, against the first `wanted` rows.
    fn judge(&self, reader: &Reader, device: &str, wanted: usize) -> Verdict {
        let topic = topic_of(device);
        let seen = reader.seen(|it| it == topic).into_iter();
        let arrivals: Vec<_> = seen.map(arrival).collect();
        judge(&self.table, &arrivals, wanted)
    }

    /// The cloud's own ledger of this device, as it exports it; settled when it has all `wanted` rows or no longer
    /// grows in time.
    async fn judge_ledger(&self, device: &str, wanted: usize) -> anyhow::Result<Verdict> {
        let mut verdict = Verdict::default();
        let topic = topic_of(device);
        for _ in 0..50 {
            let words = ["telemetry", "export", "--device", device];
            let said = self.world.cloud.ask(&words).await?;
            let mut arrivals = Vec::new();
            for line in said.lines() {
                arrivals.extend(ledger_row(line, &topic)?);
            }
            verdict = judge(&self.table, &arrivals, wanted);
            if verdict.rows >= wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(verdict)
    }

    /// A counter of this server, over all its labels.
    async fn counted(&self, server: Server, name: &str) -> anyhow::Result<f64> {
        let world = &self.world;
        let (part, doors) = match server {
            Server::Cloud => (&world.cloud, &world.cloud_doors),
            Server::Gateway => (&world.gateway, &world.gateway_doors),
        };
        let page = part.seat.fetch(doors.metrics, "/metrics").await?;
        Ok(counter(&page, name))
    }
}

/// One line of `telemetry export` if it is of this topic: the payload as JSON, or as text that is JSON.
fn ledger_row(line: &str, topic: &str) -> anyhow::Result<Option<Arrival>> {
    let row: Value =
        serde_json::from_str(line).with_context(|| format!("no JSON in the ledger: {line}"))?;
    let payload = match &row["payload"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        other => other.clone(),
    };
    Ok((row["topic"] == topic).then_some(Arrival {
        payload,
        is_repeat_marked: false,
    }))
}

/// Neither absent nor empty.
fn is_said(value: &Value) -> bool {
    !value.is_null() && value != ""
}

fn arrival(seen: Seen) -> Arrival {
    Arrival {
        payload: seen.payload,
        is_repeat_marked: seen.is_dup,
    }
}

/// Where a device's measurements are published.
fn topic_of(device: &str) -> String {
    format!("hf/v1/{SITE}/{device}/up/weather")
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
