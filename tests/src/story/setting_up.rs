//! Steps 1 to 3: the cloud starts, the gateway enrols, the first device onboards. See [`super::Story::run`].

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Filter of everything at the site.
const ALL_OF_SITE: &str = "hf/v1/harbour/#";

impl Story {
    pub(super) async fn cloud_starts(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let began = unix_now();
        self.world.start_cloud().await?;
        notes.figure(format!("listening after {:.1} s", unix_now() - began));
        self.world.cloud.ask(&["status"]).await?;
        let state = &self.world.cloud.state;
        let mode = std::fs::metadata(state)?.permissions().mode();
        ensure!(
            mode & 0o077 == 0,
            "the state folder is open to others: mode {mode:o}"
        );
        let kept = std::fs::read_dir(state)?.count();
        ensure!(kept > 0, "the cloud left nothing in its state folder");
        notes.figure(format!(
            "{kept} entries in a state folder that only its user may open"
        ));
        Ok(())
    }

    pub(super) async fn gateway_enrols(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        self.world.enrol().await?;
        notes.tell("enrolled by a one-time token");
        self.world.start_gateway().await?;
        self.world.gateway.stop().await?;
        notes.tell("now with the uplink down");
        self.world.uplink.set(Mode::Reset)?;
        let began = unix_now();
        let restarted = self.world.start_gateway().await;
        self.world.uplink.set(Mode::Open)?;
        restarted.context("restart with the cloud unreachable")?;
        notes.figure(format!(
            "ready {:.1} s after a restart without the cloud",
            unix_now() - began
        ));
        self.place_witnesses().await?;
        let lan = &self.witnesses()?.lan;
        wait_until("mode online", PATIENCE, || {
            lan.seen(is_health)
                .last()
                .is_some_and(|seen| seen.payload["mode"] == "online")
        })
        .await?;
        notes.figure("mode online once the uplink is there");
        Ok(())
    }

    /// Admits a stock client on each side and waits until both are subscribed.
    async fn place_witnesses(&mut self) -> anyhow::Result<()> {
        let world = &self.world;
        let lan = world
            .admit(Server::Gateway, "lan-witness", &[], &[ALL_OF_SITE])
            .await?;
        let cloud = world
            .admit(Server::Cloud, "cloud-witness", &[], &[ALL_OF_SITE])
            .await?;
        let subscription = |seat, broker, identity, client: &str| Subscription {
            seat,
            broker,
            identity,
            client: client.to_owned(),
            filters: vec![ALL_OF_SITE.to_owned()],
        };
        let lan = subscription(
            world.seat_near(Server::Gateway)?,
            world.gateway_doors.mqtt,
            lan,
            "lan-witness",
        );
        // The witness at the cloud must not be cut with the site: it dials the cloud itself.
        let cloud = subscription(
            world.seat_near(Server::Cloud)?,
            world.cloud_doors.mqtt,
            cloud,
            "cloud-witness",
        );
        let lan = Reader::start("lan-witness", &lan, &world.folder().join("lan.ledger")).await?;
        let cloud = Reader::start(
            "cloud-witness",
            &cloud,
            &world.folder().join("cloud.ledger"),
        )
        .await?;
        lan.wait_subscribed(PATIENCE).await?;
        cloud.wait_subscribed(PATIENCE).await?;
        self.witnesses = Some(Witnesses { lan, cloud });
        Ok(())
    }

    pub(super) async fn device_onboards(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        self.device = self.world.manufacture("A-0001").await?;
        notes.tell(format!("device {} left the factory", self.device));
        let began = unix_now();
        self.world.start_agent().await?;
        let lan = &self.witnesses()?.lan;
        let first = self.wait_for_count(lan, &self.device, 1).await;
        first.with_context(|| format!("A's log ends with\n{}", self.world.agent.log_end()))?;
        notes.figure(format!(
            "first measurement {:.1} s after power-on",
            unix_now() - began
        ));
        self.came_by_the_gateway(notes).await?;
        self.is_known_to_both(notes).await?;
        self.c_is_bought(notes).await
    }

    /// The gateway was found by mDNS and asked the Internet rendezvous on the device's behalf.
    async fn came_by_the_gateway(&self, notes: &mut Notes) -> anyhow::Result<()> {
        let relayed = self
            .counted(Server::Gateway, "holdfast_cps_relay_runs_total")
            .await?;
        ensure!(
            relayed > 0.0,
            "no TO1 went through the gateway; does another gateway answer for its name?"
        );
        notes.figure(format!("{relayed} TO1 relayed by the gateway"));
        Ok(())
    }

    /// Both registries must show the device as onboarded, with proof, a certificate and a new GUID.
    async fn is_known_to_both(&self, notes: &mut Notes) -> anyhow::Result<()> {
        for (name, part) in [
            ("cloud", &self.world.cloud),
            ("gateway", &self.world.gateway),
        ] {
            let what = format!("A is onboarded at the {name}");
            let onboarded = |row: &Value| row["onboarded"] == true;
            let device = part.wait_device(&self.device, &what, onboarded).await?;
            ensure!(
                device["standing"] == "proved",
                "at the {name} the device is not proved: {device}"
            );
            ensure!(
                device["contested"] == false,
                "at the {name} the device is contested: {device}"
            );
            ensure!(
                device["guid"] != self.device.as_str(),
                "the credential was not replaced: {device}"
            );
            let certificates = device["certificates"].as_array().map_or(0, Vec::len);
            ensure!(
                certificates > 0,
                "the {name} knows no certificate of the device: {device}"
            );
            notes.figure(format!(
                "{name}: onboarded, {}, {certificates} certificate",
                shown(&device["standing"])
            ));
        }
        Ok(())
    }
}
