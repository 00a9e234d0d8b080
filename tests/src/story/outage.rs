//! Steps 5 to 7: the uplink is cut, the gateway is killed, the uplink returns. See [`super::Story::run`].

use super::*;

impl Story {
    pub(super) async fn uplink_is_cut(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let acknowledged = self.acknowledged().await?;
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
        let later = self.acknowledged().await?;
        ensure!(
            later > acknowledged,
            "A got no acknowledgement after the cut: {acknowledged}, then {later}"
        );
        notes.figure(format!(
            "{} acknowledgements to A since the cut",
            later - acknowledged
        ));
        let lan = &self.witnesses()?.lan;
        let verdict = self.judge(lan, 0);
        ensure!(verdict.is_exact(), "on the LAN: {verdict}");
        let pause = longest_pause(lan, cut);
        ensure!(
            pause <= LONGEST_PAUSE,
            "the LAN heard nothing for {pause:.2} s"
        );
        notes.figure(format!("longest pause on the LAN {pause:.2} s"));
        Ok(())
    }

    pub(super) async fn gateway_is_killed(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let before = self.witnesses()?.lan.count(is_measurement);
        let process = self.world.gateway.process()?;
        let id = process.id().context("the gateway runs")?;
        process.kill_nine().await?;
        notes.figure(format!("process {id} killed at row {before}"));
        let killed = unix_now();
        self.world.start_gateway().await?;
        notes.figure(format!("ready again {:.1} s later", unix_now() - killed));
        let lan = &self.witnesses()?.lan;
        wait_until("rows after the restart", PATIENCE, || {
            lan.count(is_measurement) > before
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
        self.wait_for_rows(ROWS_BEFORE_RETURN).await?;
        let verdict = self.judge(&self.witnesses()?.lan, 0);
        ensure!(verdict.is_exact(), "on the LAN: {verdict}");
        notes.figure(format!("on the LAN: {verdict}"));
        notes.tell(format!(
            "the stock client on the LAN was started again {} times",
            self.witnesses()?.lan.restarts()
        ));
        let at_cloud = self.witnesses()?.cloud.count(is_measurement);
        notes.figure(format!(
            "{at_cloud} rows at the cloud, the rest waits in the journal"
        ));
        Ok(())
    }

    pub(super) async fn uplink_returns(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let all = self.table.len();
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
            let arrived =
                wait_until("all rows", PATIENCE, || self.judge(reader, 0).rows >= all).await;
            let verdict = self.judge(reader, all);
            arrived.with_context(|| format!("at {side}: {verdict}"))?;
            ensure!(verdict.is_exact(), "at {side}: {verdict}");
            notes.figure(format!("at {side}: {verdict}"));
        }
        self.wait_acknowledged(all as u64).await?;
        notes.figure(format!("A counts {all} acknowledgements"));
        let verdict = self.judge_ledger().await?;
        ensure!(
            verdict.is_exact() && verdict.rows == all,
            "in the cloud's ledger: {verdict}"
        );
        notes.figure(format!("in the cloud's ledger: {verdict}"));
        Ok(())
    }

    /// Waits until the device says that so many of its messages are acknowledged; it writes its status down at intervals.
    async fn wait_acknowledged(&self, wanted: u64) -> anyhow::Result<()> {
        let mut count = 0;
        for _ in 0..100 {
            count = self.acknowledged().await?;
            if count >= wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("A counts {count} acknowledgements for {wanted} rows")
    }

    /// The cloud's own ledger, as it exports it; settled when it has all rows or no longer grows in time.
    async fn judge_ledger(&self) -> anyhow::Result<Verdict> {
        let mut verdict = Verdict::default();
        for _ in 0..50 {
            let said = self
                .world
                .cloud
                .ask(&["telemetry", "export", "--device", &self.device])
                .await?;
            let rows: Vec<Arrival> = said
                .lines()
                .map(ledger_row)
                .collect::<anyhow::Result<_>>()?;
            verdict = judge(&self.table, &rows, self.table.len());
            if verdict.rows == self.table.len() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(verdict)
    }

    /// The first health message of this mode that the LAN witness saw after `after`.
    async fn wait_for_mode(&self, mode: &str, after: f64) -> anyhow::Result<Seen> {
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
        let wanted = (lan.count(is_measurement) + more).min(self.table.len());
        wait_until(&format!("{wanted} rows on the LAN"), PATIENCE, || {
            lan.count(is_measurement) >= wanted
        })
        .await
        .with_context(|| format!("{} came", lan.count(is_measurement)))
    }
}

/// One line of `telemetry export`: the payload as JSON, or as text that is JSON.
fn ledger_row(line: &str) -> anyhow::Result<Arrival> {
    let row: Value =
        serde_json::from_str(line).with_context(|| format!("no JSON in the ledger: {line}"))?;
    let payload = match &row["payload"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        other => other.clone(),
    };
    Ok(Arrival {
        payload,
        is_repeat_marked: false,
    })
}

/// Longest time between two measurements at the witness from `from` on.
fn longest_pause(reader: &Reader, from: f64) -> f64 {
    let times: Vec<f64> = reader
        .seen(is_measurement)
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

/// Neither absent nor empty.
fn is_said(value: &Value) -> bool {
    !value.is_null() && value != ""
}
