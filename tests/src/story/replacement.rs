//! Step 12: the gateway's machine is lost and another takes its place. See [`super::Story::run`].

use super::*;
use crate::world::{GATEWAY, Part};

impl Story {
    pub(super) async fn gateway_is_replaced(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let mut lost = self.world.lose_gateway().await?;
        let began = unix_now();
        notes.tell("the gateway's machine is gone with its disk");
        self.world.replace_gateway().await?;
        notes.figure(format!(
            "a fresh gateway serves {:.1} s after the loss",
            unix_now() - began
        ));
        let ids = [&self.device]
            .into_iter()
            .chain(self.newcomers().map(|one| &one.id));
        for id in ids {
            let proved = |row: &Value| row["standing"] == "proved";
            self.world
                .gateway
                .wait_device(id, "in the fresh registry", proved)
                .await?;
        }
        // With no cloud to lean on, whoever works does so through the fresh gateway.
        self.world.uplink.set(Mode::Reset)?;
        self.all_work().await?;
        notes.figure(format!(
            "A, B and C work through it with the uplink down, {:.1} s after the loss",
            unix_now() - began
        ));
        self.world.uplink.set(Mode::Open)?;
        self.old_one_is_out(&mut lost, notes).await?;
        self.all_work().await?;
        notes.figure("A, B and C go on with the fresh one");
        Ok(())
    }

    /// The fresh gateway acknowledges what each device sends, and the LAN hears it.
    async fn all_work(&self) -> anyhow::Result<()> {
        let lan = &self.witnesses()?.lan;
        let all = [(&self.world.agent, &self.device)];
        let all = all
            .into_iter()
            .chain(self.newcomers().map(|one| (&one.part, &one.id)));
        for (part, id) in all {
            part.works().await?;
            let status = part.status().await?;
            let door = self.world.gateway_doors.mqtt.to_string();
            ensure!(
                status["address"] == door.as_str(),
                "{} is elsewhere: {status}",
                part.name()
            );
            let topic = format!("hf/v1/{SITE}/{id}/up/");
            let heard = || lan.count(|it| it.starts_with(&topic));
            let before = heard();
            let what = format!("the LAN hears {}", part.name());
            wait_until(&what, PATIENCE, || heard() > before).await?;
        }
        Ok(())
    }

    /// Its disk in another machine: it says that it was replaced, and the cloud lets it in nowhere.
    async fn old_one_is_out(&self, lost: &mut Part, notes: &mut Notes) -> anyhow::Result<()> {
        let turned_away = "holdfast_cps_refused_total";
        let before = self.counted(Server::Cloud, turned_away).await?;
        lost.start(None).await?;
        let out = |status: &Value| {
            let why = status["locked_out"].as_str();
            why.is_some_and(|why| why.contains("was replaced"))
        };
        let status = lost
            .wait_status("the old gateway is locked out", out)
            .await?;
        ensure!(status["mode"] != "online", "its bridge is let in: {status}");
        ensure!(
            self.counted(Server::Cloud, turned_away).await? > before,
            "the cloud counts nobody turned away"
        );
        let unlock = ["gateways", "unlock", "--site", SITE, "--gateway", GATEWAY];
        self.world.cloud.refuses(&unlock, "was replaced").await?;
        notes.figure("the old one, started from its disk, says that it was replaced; the cloud turns it away");
        lost.stop().await
    }
}
