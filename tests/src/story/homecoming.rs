//! Steps 7 and 11: the uplink returns, and the cloud believes what is proved and nothing else. See
//! [`super::Story::run`].

use super::*;
use crate::rogue::{Entries, Rogue};
use crate::world::GATEWAY;

/// A second site, whose gateway is honest about its name and not about what it delivers.
const OTHER_SITE: &str = "quay";
/// Its gateway.
const OTHER_GATEWAY: &str = "gw2";

impl Story {
    pub(super) async fn uplink_returns(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let all = self.table.len();
        self.others_deliver(notes).await?;
        let mended = unix_now();
        self.world.uplink.set(Mode::Open)?;
        let recovering = self.wait_for_mode("recovering", mended).await?;
        let online = self.wait_for_mode("online", recovering.at).await?;
        notes.figure(format!(
            "recovering after {:.1} s, online after {:.1} s",
            recovering.at - mended,
            online.at - mended
        ));
        for (side, reader) in [
            ("the LAN", &self.witnesses()?.lan),
            ("the cloud", &self.witnesses()?.cloud),
        ] {
            let came = self.wait_for_count(reader, &self.device, all).await;
            let verdict = self.judge(reader, &self.device, all);
            came.with_context(|| format!("at {side}: {verdict}"))?;
            ensure!(verdict.is_exact(), "at {side}: {verdict}");
            notes.figure(format!("at {side}: {verdict}"));
        }
        let wanted = all as u64;
        let told = self.world.agent.wait_status("all acknowledged", |status| {
            status["topics"]["weather"]["count"] == wanted
        });
        told.await?;
        notes.figure(format!("A counts {all} acknowledgements"));
        let verdict = self.judge_ledger(&self.device, all).await?;
        ensure!(
            verdict.is_exact() && verdict.rows == all,
            "in the cloud's ledger: {verdict}"
        );
        notes.figure(format!("in the cloud's ledger: {verdict}"));
        Ok(())
    }

    /// While the true entries still wait at the gateway: somebody who sits between it and the cloud delivers them
    /// changed, and another site's gateway delivers them as they are, as its own site's.
    async fn others_deliver(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let world = &self.world;
        let cloud = world.seat_near(Server::Cloud)?;
        let disk = &world.gateway.state;
        let spy = Rogue::with_the_keys_of(disk, GATEWAY, SITE, world.seat_near(Server::Gateway)?);
        let spy = spy.await?;
        let entries = spy.pull(world.gateway_doors.https).await?;
        ensure!(!entries.is_empty(), "the gateway has written nothing");
        let door = world.cloud_doors.https;
        let report = spy
            .at(cloud.clone())
            .push(door, &entries.tampered())
            .await?;
        let refused = all_refused(&report, &entries)?;
        notes.tell(format!("{refused} entries changed on the way: all refused"));
        let disk = world.enrol_elsewhere(OTHER_SITE, OTHER_GATEWAY).await?;
        let other = Rogue::with_the_keys_of(&disk, OTHER_GATEWAY, OTHER_SITE, cloud).await?;
        let report = other.push(door, &entries).await?;
        all_refused(&report, &entries)?;
        notes.tell("the same, true, by another site's gateway: all refused");
        notes.figure(format!(
            "{refused} entries delivered changed, and as another site's, before the true ones"
        ));
        Ok(())
    }

    pub(super) async fn cloud_believes(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        for newcomer in self.newcomers() {
            self.is_believed(newcomer, notes).await?;
        }
        self.history_is_known(notes).await?;
        self.refusals_are_shown(notes).await
    }

    /// The cloud has verified the device's onboarding for itself, holds its new voucher, and the device knows the cloud.
    async fn is_believed(&self, newcomer: &Newcomer, notes: &mut Notes) -> anyhow::Result<()> {
        let Newcomer { part, id, .. } = newcomer;
        let what = format!("{} is proved at the cloud", part.name());
        let proved = |row: &Value| row["onboarded"] == true && row["standing"] == "proved";
        let row = self.world.cloud.wait_device(id, &what, proved).await?;
        ensure!(row["server"] == GATEWAY, "onboarded elsewhere: {row}");
        ensure!(row["contested"] == false, "contested: {row}");
        let there = self.world.gateway.wait_device(id, &what, proved).await?;
        ensure!(row["guid"] == there["guid"], "two GUIDs: {row} and {there}");
        let guid = row["guid"].as_str().context("a GUID")?;
        let held = format!("the cloud holds the new voucher of {}", part.name());
        let words = ["vouchers", "list", "--json"];
        let voucher = |rows: &Value| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.any(|row| row["guid"] == guid && row["state"] == "held")
        };
        self.world.cloud.wait_json(&words, &held, voucher).await?;
        let told = row["told"].as_array().into_iter().flatten();
        ensure!(
            { told }.any(|server| server == "cloud"),
            "not told of the cloud: {row}"
        );
        // And by the gateway's signed notice, retained on the device's own topic.
        let (lan, topic) = (
            &self.witnesses()?.lan,
            format!("hf/v1/{SITE}/{id}/alternate"),
        );
        let noticed = || lan.count(|it| it == topic) > 0;
        wait_until("the notice of the other server", PATIENCE, noticed).await?;
        let wanted = usize::try_from(part.acknowledged("weather").await?)?;
        let verdict = self.judge_ledger(id, wanted).await?;
        ensure!(
            verdict.is_exact() && verdict.rows >= wanted,
            "of {wanted} rows of {} in the cloud's ledger: {verdict}",
            part.name()
        );
        notes.figure(format!(
            "{}: proved, its new voucher is held by the cloud, it knows the cloud; in the ledger: {verdict}",
            part.name()
        ));
        Ok(())
    }

    /// What A worked for in the outage, as the cloud tells it.
    async fn history_is_known(&self, notes: &mut Notes) -> anyhow::Result<()> {
        let here = self.world.history(&self.device).await?;
        let words = ["services", "history", &self.device, "--json"];
        let same = |there: &Value| there["history"].as_array() == Some(&here);
        let what = "A's history of services at the cloud";
        self.world.cloud.wait_json(&words, what, same).await?;
        notes.figure(format!(
            "A's {} services are known to the cloud",
            here.len()
        ));
        Ok(())
    }

    /// Both deliveries stand in the list of refusals, by reason and device.
    async fn refusals_are_shown(&self, notes: &mut Notes) -> anyhow::Result<()> {
        let words = ["refusals", "list", "--json"];
        let rows = self.world.cloud.ask_json(&words).await?;
        let rows = rows.as_array().context("a list of refusals")?;
        let b = &self.newcomer(B)?.id;
        for reason in ["tampered", "other site"] {
            let of_b = |row: &&Value| row["reason"] == reason && row["device"] == b.as_str();
            let row = rows.iter().find(of_b);
            let row = row.with_context(|| format!("no refusal ({reason}) of B in {rows:?}"))?;
            ensure!(is_said(&row["why"]), "it does not say why: {row}");
            notes.figure(format!("shown as refused: B's entry, {reason}"));
        }
        Ok(())
    }
}

/// Every entry was refused and none taken; how many.
fn all_refused(report: &Value, entries: &Entries) -> anyhow::Result<usize> {
    let refused = report["refused"].as_array().map_or(0, Vec::len);
    ensure!(
        refused == entries.len() && report["taken"] == 0,
        "of {} entries the cloud did not refuse all: {report}",
        entries.len()
    );
    Ok(refused)
}
