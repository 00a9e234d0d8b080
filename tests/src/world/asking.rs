//! What a part says of itself and of devices, and waiting for it. Called by stories and tests.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Part;

/// How long anything that should come by itself may take.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

impl Part {
    /// A command that prints JSON.
    ///
    /// # Errors
    /// The command failed or printed no JSON.
    pub async fn ask_json(&self, words: &[&str]) -> anyhow::Result<Value> {
        let said = self.ask(words).await?;
        serde_json::from_str(&said)
            .with_context(|| format!("{} {} printed {said:?}", self.name(), words.join(" ")))
    }

    /// Asks until the answer is as wanted.
    ///
    /// # Errors
    /// It was not within [`PATIENCE`]; the error has the last answer.
    pub async fn wait_json(
        &self,
        words: &[&str],
        what: &str,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.ask_json(words).await;
            match told {
                Ok(told) if is_wanted(&told) => return Ok(told),
                Ok(told) if Instant::now() > end => {
                    bail!(
                        "{what}: not within {PATIENCE:?}; {} says {told}",
                        self.name()
                    )
                }
                Err(error) if Instant::now() > end => return Err(error.context(what.to_owned())),
                _ => sleep(LOOK).await,
            }
        }
    }

    /// Waits for a status of this part.
    ///
    /// # Errors
    /// See [`Self::wait_json`].
    pub async fn wait_status(
        &self,
        what: &str,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        self.wait_json(&["status", "--json"], what, is_wanted).await
    }

    /// The device's row at this server, once it is as wanted.
    ///
    /// # Errors
    /// See [`Self::wait_json`].
    pub async fn wait_device(
        &self,
        device: &str,
        what: &str,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let find = |rows: &Value| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.find(|row| row["device"] == device).cloned()
        };
        let words = ["devices", "list", "--json"];
        let rows = self
            .wait_json(&words, what, |rows| {
                find(rows).as_ref().is_some_and(&is_wanted)
            })
            .await?;
        find(&rows).context("a row that was found is there")
    }

    /// Runs a command that must fail, saying this.
    ///
    /// # Errors
    /// It worked, or failed for another reason.
    pub async fn refuses(&self, words: &[&str], wanted: &str) -> anyhow::Result<()> {
        let told = self.command(words, "").await?;
        ensure!(told.code != Some(0), "{words:?} worked: {}", told.out);
        ensure!(told.err.contains(wanted), "{words:?} said {}", told.err);
        Ok(())
    }

    /// For a device: readings of this name that a server has acknowledged so far, over its life.
    ///
    /// # Errors
    /// It does not say.
    pub async fn acknowledged(&self, reading: &str) -> anyhow::Result<u64> {
        let status = self.status().await?;
        let count = &status["topics"][reading]["count"];
        Ok(count.as_u64().unwrap_or(0))
    }

    /// For a device: waits until a gateway has acknowledged something to it just now.
    ///
    /// # Errors
    /// None did within [`PATIENCE`].
    pub async fn works(&self) -> anyhow::Result<()> {
        let count = |status: &Value| {
            let by_gateway = status["role"] == "gateway";
            status["acknowledged"].as_u64().filter(|_| by_gateway)
        };
        let first = self
            .wait_status("connected to a gateway", |status| count(status).is_some())
            .await?;
        let grows = |status: &Value| count(status) > count(&first);
        let grown = self.wait_status("acknowledged by a gateway", grows).await;
        grown.map(|_| ())
    }
}
