//! Steps 5 and 6: the uplink is cut in silence, the gateway is killed. See [`super::Story::run`].

use super::*;

impl Story {
    pub(super) async fn uplink_is_cut(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let acknowledged = self.world.agent.acknowledged("weather").await?;
        let cut = unix_now();
        self.world.uplink.set(Mode::Silent)?;
        let told = self.wait_for_mode("outage", cut).await?;
        let noticed = told.at - cut;
        notes.figure(format!(
            "outage told on the LAN {noticed:.1} s after the cut"
        ));
        ensure!(
            noticed <= NOTICE,
            "the cut was noticed after {noticed:.1} s, more than {NOTICE} s"
        );
        ensure!(
            is_said(&told.payload["reason"]),
            "no reason in {}",
            told.payload
        );
        ensure!(
            is_said(&told.payload["since"]),
            "no since in {}",
            told.payload
        );
        notes.figure(format!("reason: {}", shown(&told.payload["reason"])));
        self.is_retained("outage").await?;
        self.wait_for_rows(ROWS_BEFORE_KILL).await?;
        let later = self.world.agent.acknowledged("weather").await?;
        ensure!(
            later > acknowledged,
            "A got no acknowledgement after the cut: {acknowledged}, then {later}"
        );
        notes.figure(format!(
            "{} acknowledgements to A since the cut",
            later - acknowledged
        ));
        let lan = &self.witnesses()?.lan;
        let verdict = self.judge(lan, &self.device, 0);
        ensure!(verdict.is_exact(), "on the LAN: {verdict}");
        let pause = longest_pause(lan, &topic_of(&self.device), cut);
        ensure!(
            pause <= LONGEST_PAUSE,
            "the LAN heard nothing for {pause:.2} s"
        );
        notes.figure(format!("longest pause on the LAN {pause:.2} s"));
        Ok(())
    }

    pub(super) async fn gateway_is_killed(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let topic = topic_of(&self.device);
        let before = self.witnesses()?.lan.count(|it| it == topic);
        let process = self.world.gateway.process()?;
        let id = process.id().context("the gateway runs")?;
        process.kill_nine().await?;
        notes.figure(format!("process {id} killed at row {before}"));
        let killed = unix_now();
        self.world.start_gateway().await?;
        notes.figure(format!("ready again {:.1} s later", unix_now() - killed));
        let lan = &self.witnesses()?.lan;
        wait_until("rows after the restart", PATIENCE, || {
            lan.count(|it| it == topic) > before
        })
        .await?;
        notes.figure(format!(
            "rows flow again after {:.1} s",
            unix_now() - killed
        ));
        ensure!(
            self.world.agent.process()?.ended()?.is_none(),
            "the agent ended"
        );
        self.wait_for_rows(ROWS_AFTER_KILL).await?;
        let verdict = self.judge(&self.witnesses()?.lan, &self.device, 0);
        ensure!(verdict.is_exact(), "on the LAN: {verdict}");
        notes.figure(format!("on the LAN: {verdict}"));
        notes.tell(format!(
            "the stock client on the LAN was started again {} times",
            self.witnesses()?.lan.restarts()
        ));
        let at_cloud = self.witnesses()?.cloud.count(|it| it == topic);
        notes.figure(format!(
            "{at_cloud} rows at the cloud, the rest waits in the journal"
        ));
        Ok(())
    }

    /// The first health message of this mode that the LAN witness saw after `after`.
    pub(super) async fn wait_for_mode(&self, mode: &str, after: f64) -> anyhow::Result<Seen> {
        let lan = &self.witnesses()?.lan;
        let find = || {
            lan.seen(is_health)
                .into_iter()
                .find(|seen| seen.at >= after && seen.payload["mode"] == mode)
        };
        let came = wait_until(&format!("mode {mode}"), PATIENCE, || find().is_some()).await;
        came.with_context(|| format!("health so far: {:?}", modes(lan)))?;
        find().context("a message that was seen stays seen")
    }

    /// A client that comes now is told the mode as well.
    async fn is_retained(&self, mode: &str) -> anyhow::Result<()> {
        let identity = self
            .world
            .admit(
                Server::Gateway,
                "late-witness",
                &[],
                &["hf/v1/harbour/gateway/health"],
            )
            .await?;
        let late = Subscription {
            seat: self.world.seat_near(Server::Gateway)?,
            broker: self.world.gateway_doors.mqtt,
            identity,
            client: "late-witness".to_owned(),
            filters: vec![format!("hf/v1/{SITE}/gateway/health")],
        };
        let reader = Reader::start(
            "late-witness",
            &late,
            &self.world.folder().join("late.ledger"),
        )
        .await?;
        wait_until("the retained mode", PATIENCE, || {
            reader.count(is_health) > 0
        })
        .await?;
        match reader.seen(is_health).first() {
            Some(seen) if seen.is_retained && seen.payload["mode"] == mode => Ok(()),
            other => bail!("a late subscriber was told {other:?}"),
        }
    }

    /// Waits until `more` further rows have come on the LAN.
    async fn wait_for_rows(&self, more: usize) -> anyhow::Result<()> {
        let lan = &self.witnesses()?.lan;
        let topic = topic_of(&self.device);
        let wanted = (lan.count(|it| it == topic) + more).min(self.table.len());
        self.wait_for_count(lan, &self.device, wanted).await
    }
}

/// Longest time between two measurements at the witness from `from` on.
fn longest_pause(reader: &Reader, topic: &str, from: f64) -> f64 {
    let times: Vec<f64> = reader
        .seen(|it| it == topic)
        .iter()
        .map(|seen| seen.at)
        .filter(|at| *at >= from)
        .collect();
    times
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .fold(0.0, f64::max)
}

fn modes(reader: &Reader) -> Vec<String> {
    reader
        .seen(is_health)
        .iter()
        .map(|seen| shown(&seen.payload["mode"]))
        .collect()
}
