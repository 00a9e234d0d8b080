//! Step 10: A is moved to another service in the outage. See [`super::Story::run`].

use super::*;
use crate::stock::StockClient;

impl Story {
    pub(super) async fn service_changes(&mut self, notes: &mut Notes) -> anyhow::Result<()> {
        let began = unix_now();
        let world = &self.world;
        world.order(&self.device, "civil").await?;
        world.agent.runs("civil").await?;
        notes.figure(format!(
            "A works for civil {:.1} s after the order",
            unix_now() - began
        ));
        let client = self.meddler().await?;
        let desired = |device: &str| format!("hf/v1/{SITE}/{device}/service/desired");
        let old = client.retained(&desired(&self.device)).await?;
        world.order(&self.device, "weather").await?;
        world.agent.runs("weather").await?;
        self.history_is_right(&client, notes).await?;
        // Signed by the gateway, but to somebody else.
        let b = self.newcomer(B)?;
        world.order(&b.id, "civil").await?;
        b.part.runs("civil").await?;
        let for_b = client.retained(&desired(&b.id)).await?;
        let mut forged = client.retained(&desired(&self.device)).await?;
        *forged.last_mut().context("a notice has bytes")? ^= 1;
        let bad: [(&str, &[u8]); 4] = [
            ("replayed", &old),
            ("forged", &forged),
            ("made out to B", &for_b),
            ("garbage", b"go"),
        ];
        self.nothing_moves(&client, &bad).await?;
        notes.figure("notices replayed, forged, made out to B, and garbage: each refused and counted, nothing moved");
        Ok(())
    }

    /// A client that the operator has let publish where notices stand: the broker is not trusted for them.
    async fn meddler(&self) -> anyhow::Result<StockClient> {
        let filter = format!("hf/v1/{SITE}/+/service/#");
        let filters = [filter.as_str()];
        let identity = self
            .world
            .admit(Server::Gateway, "meddler", &filters, &filters);
        Ok(StockClient {
            seat: self.world.seat_near(Server::Gateway)?,
            broker: self.world.gateway_doors.mqtt,
            identity: identity.await?,
            client: "meddler".to_owned(),
        })
    }

    /// Two lines: the first ended when the second began, each with a certificate of its own; what runs is told, retained.
    async fn history_is_right(
        &self,
        client: &StockClient,
        notes: &mut Notes,
    ) -> anyhow::Result<()> {
        let history = self.world.history(&self.device).await?;
        let [first, second] = &history[..] else {
            bail!("not two services but {history:?}");
        };
        ensure!(
            first["service"] == "civil" && second["service"] == "weather",
            "another order: {history:?}"
        );
        ensure!(
            first["until"].is_object()
                && first["until"] == second["from"]
                && second["until"].is_null(),
            "ends and starts do not meet: {history:?}"
        );
        let (old, new) = (&first["serials"][0], &second["serials"][0]);
        ensure!(
            new.is_string() && old.is_string() && new != old,
            "no new certificate: {history:?}"
        );
        let topic = format!("hf/v1/{SITE}/{}/service/reported", self.device);
        let reported = client.retained(&topic).await?;
        let reported: Value = serde_json::from_slice(&reported)?;
        ensure!(
            reported["state"] == "runs" && reported["serial"] == *new,
            "told is {reported}"
        );
        notes
            .figure("then for weather; history: two services, end meets start, a certificate each");
        Ok(())
    }

    /// Publishes each notice on A's topic: the broker takes it, A refuses it.
    async fn nothing_moves(
        &self,
        client: &StockClient,
        bad: &[(&str, &[u8])],
    ) -> anyhow::Result<()> {
        let agent = &self.world.agent;
        let topic = format!("hf/v1/{SITE}/{}/service/desired", self.device);
        let before = self.world.history(&self.device).await?;
        let refused = |status: &Value| status["notices_refused"].as_u64();
        let mut count = refused(&agent.status().await?).context("A does not count refusals")?;
        for (what, payload) in bad {
            client.publish(&topic, payload).await?;
            count += 1;
            let counted = |status: &Value| refused(status) == Some(count);
            let what = format!("A refuses a notice that is {what}");
            agent.wait_status(&what, counted).await?;
        }
        agent.runs("weather").await?;
        let after = self.world.history(&self.device).await?;
        ensure!(before == after, "the history changed: {after:?}");
        Ok(())
    }
}
