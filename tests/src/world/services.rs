//! Services of a world's devices: orders at the gateway, what runs, and the history. Called by stories and tests.

use anyhow::Context;
use serde_json::Value;

use super::{Part, World};

impl World {
    /// The operator orders a device to a service, at the gateway.
    ///
    /// # Errors
    /// What the command said.
    pub async fn order(&self, device: &str, service: &str) -> anyhow::Result<()> {
        let words = ["services", "change", device, "--service", service];
        self.gateway.ask(&words).await.map(|_| ())
    }

    /// The services that the device worked for, as the gateway tells it.
    ///
    /// # Errors
    /// What the command said.
    pub async fn history(&self, device: &str) -> anyhow::Result<Vec<Value>> {
        let words = ["services", "history", device, "--json"];
        let told = self.gateway.ask_json(&words).await?;
        let lines = told["history"].as_array().cloned();
        lines.with_context(|| format!("no history in {told}"))
    }
}

impl Part {
    /// For a device: waits until it works for this service and is at rest.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn runs(&self, service: &str) -> anyhow::Result<Value> {
        let runs =
            |status: &Value| status["service"] == service && status["service_state"] == "runs";
        self.wait_status(&format!("{service} runs"), runs).await
    }
}
