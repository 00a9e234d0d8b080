//! A stock MQTT client that publishes and looks once, with a certificate: `mosquitto_pub` and `mosquitto_sub`.
//! Called by stories and tests; [`crate::reader`] is the one that stays.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::process::run_at;
use crate::reader::bytes_of;
use crate::seat::Seat;

/// Seconds that a retained message may take.
const LOOK: &str = "10";

/// Who it is and where it dials.
#[derive(Debug, Clone)]
pub struct StockClient {
    /// Where it runs.
    pub seat: Seat,
    /// Host and port of the broker.
    pub broker: SocketAddr,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub identity: PathBuf,
    /// Client id.
    pub client: String,
}

impl StockClient {
    /// The bytes of the retained message on this topic.
    ///
    /// # Errors
    /// There is none, or the client is not let in.
    pub async fn retained(&self, topic: &str) -> anyhow::Result<Vec<u8>> {
        let more = ["-C", "1", "-W", LOOK, "-F", "%x"].map(str::to_owned);
        let hex = self.run("mosquitto_sub", topic, &more).await?;
        let hex = hex.trim();
        ensure!(!hex.is_empty(), "nothing is retained on {topic}");
        bytes_of(hex).with_context(|| format!("mosquitto_sub printed {hex:?}"))
    }

    /// Publishes with QoS 1 and waits for the acknowledgement.
    ///
    /// # Errors
    /// It is not let in, or the message is not taken.
    pub async fn publish(&self, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), payload)?;
        let more = ["-f".to_owned(), file.path().display().to_string()];
        self.run("mosquitto_pub", topic, &more).await.map(|_| ())
    }

    async fn run(&self, program: &str, topic: &str, more: &[String]) -> anyhow::Result<String> {
        let file = |name: &str| self.identity.join(name).display().to_string();
        let (host, port) = (self.broker.ip().to_string(), self.broker.port().to_string());
        let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
        let words = [
            "-V",
            "5",
            "-q",
            "1",
            "-i",
            &self.client,
            "-h",
            &host,
            "-p",
            &port,
            "--cafile",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
            "-t",
            topic,
        ];
        let mut words = words.map(str::to_owned).to_vec();
        words.extend_from_slice(more);
        let told = run_at(&self.seat, Path::new(program), &words, "").await?;
        told.success(program)
    }
}
