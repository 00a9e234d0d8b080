//! Steps 8 and 9: two devices that the site has never seen come in the outage. See [`super::Story::run`].

use super::*;
use crate::world::GATEWAY;

impl Story {
    /// In normal times: C is bought, its voucher assigned to the site, and it stays in its box.
    pub(super) async fn c_is_bought(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let part = self.world.another_device(C)?;
        let id = self.world.make(&part, "C-0001").await?;
        let words = ["vouchers", "assign", &id, "--site", SITE];
        self.world.cloud.ask(&words).await?;
        let known = self
            .world
            .gateway
            .wait_device(&id, "C's voucher at the gateway", |_| true);
        let row = known.await?;
        ensure!(row["onboarded"] == false, "C is in its box: {row}");
        notes.figure("C is bought, its voucher extended to the gateway in advance");
        self.newcomers.push(Newcomer { part, id });
        Ok(())
    }

    pub(super) async fn b_arrives(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let world = &self.world;
        let part = world.another_device(B)?;
        let id = world.make(&part, "B-0001").await?;
        let (anna, key) = world.installer("anna").await?;
        let (bert, _) = world.installer("bert").await?;
        let paper = world.sell(&id, &key, "b.ov").await?;
        notes.tell(
            "B comes out of its box, with its voucher as a file made out to the installer Anna",
        );
        let (file, key) = (paper.display().to_string(), key.display().to_string());
        let door = world.gateway_doors.https.to_string();
        let told = ["extend", &file, "--gateway", &door];
        world.trust_root(&anna).await?;
        world.trust_root(&bert).await?;
        bert.refuses(&told, "not for this installer").await?;
        anna.refuses(&told, "installers add").await?;
        let add = ["installers", "add", &key, "--name", "anna"];
        world.gateway.ask(&add).await?;
        notes.tell("refused: another installer's key, and Anna before the operator listed her");
        let took = world.hand_in(&anna, &paper).await?;
        ensure!(took.contains("took the voucher"), "extend said {took:?}");
        let again = anna.ask(&told).await?;
        ensure!(again.contains("already"), "extend again said {again:?}");
        notes.figure("the installer found the gateway by mDNS and extended the voucher to it");
        self.newcomers.push(Newcomer { part, id });
        self.onboards_here(B, notes).await
    }

    pub(super) async fn c_is_powered_on(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        self.onboards_here(C, notes).await
    }

    /// Powered on for the first time, with no way to the cloud: everything comes from the gateway.
    async fn onboards_here(&mut self, name: &str, notes: &mut Notes) -> anyhow::Result<()> {
        let before = self.onboarded_here().await?;
        let began = unix_now();
        self.newcomer_mut(name)?.part.start(None).await?;
        let Newcomer { part, id } = self.newcomer(name)?;
        let lan = &self.witnesses()?.lan;
        let first = self.wait_for_count(lan, id, 1).await;
        first.with_context(|| format!("{name}'s log ends with\n{}", part.log_end()))?;
        notes.figure(format!(
            "first measurement {:.1} s after power-on",
            unix_now() - began
        ));
        let onboarded = |row: &Value| row["onboarded"] == true;
        let row = self
            .world
            .gateway
            .wait_device(id, "onboarded", onboarded)
            .await?;
        ensure!(
            row["standing"] == "proved" && row["server"] == GATEWAY,
            "not onboarded by the gateway with proof: {row}"
        );
        ensure!(
            row["guid"] != id.as_str(),
            "the credential was not replaced: {row}"
        );
        let certificates = row["certificates"].as_array().map_or(0, Vec::len);
        ensure!(certificates > 0, "no certificate: {row}");
        ensure!(
            self.onboarded_here().await? > before,
            "the gateway's CPS counts no onboarding"
        );
        // The cloud cannot have helped: it has not heard of it.
        let rows = self
            .world
            .cloud
            .ask_json(&["devices", "list", "--json"])
            .await?;
        let mut rows = rows.as_array().into_iter().flatten();
        ensure!(
            !rows.any(|row| row["device"] == id.as_str() && row["onboarded"] == true),
            "the cloud knows of it, so the uplink is not cut"
        );
        notes.figure(format!(
            "proved; {certificates} certificate by the site's own authority; unknown to the cloud"
        ));
        part.works().await?;
        let verdict = self.judge(lan, id, 0);
        ensure!(verdict.is_exact(), "on the LAN: {verdict}");
        notes.figure(format!("on the LAN: {verdict}"));
        Ok(())
    }

    /// Devices that the gateway's own CPS has onboarded since it started.
    async fn onboarded_here(&self) -> anyhow::Result<f64> {
        self.counted(Server::Gateway, "holdfast_cps_devices_onboarded_total")
            .await
    }
}
