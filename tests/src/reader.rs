//! Stock MQTT clients as witnesses: `mosquitto_sub` with a certificate, its arrivals in a ledger with their times.
//! Called by the story. Nothing of ours is between the broker's socket and the ledger.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// What opens a line with a message, as against the client's own chatter.
const MARK: &str = "MSG";
/// Seconds for which the broker keeps the reader's session while it is away.
const SESSION: &str = "3600";

/// Who the reader is and what it reads.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Host and port of the broker.
    pub broker: std::net::SocketAddr,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub identity: PathBuf,
    /// Client id.
    pub client: String,
    /// Topic filters.
    pub filters: Vec<String>,
}

/// One message as the stock client saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Unix time at which the client printed it, seconds.
    pub at: f64,
    /// Topic.
    pub topic: String,
    /// MQTT DUP: the broker marked it as sent again.
    pub is_dup: bool,
    /// MQTT RETAIN as delivered.
    pub is_retained: bool,
    /// Payload as JSON; `Null` if it is none.
    pub payload: Value,
}

/// A running `mosquitto_sub` with a session of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Reader {
    name: String,
    child: Child,
    seen: Arc<Mutex<Vec<Seen>>>,
    chatter: Arc<Mutex<String>>,
    task: JoinHandle<()>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    /// Starts the client; its raw output goes to `ledger` as well.
    ///
    /// # Errors
    /// `mosquitto_sub` cannot be started.
    pub async fn start(name: &str, what: &Subscription, ledger: &Path) -> anyhow::Result<Self> {
        let errors = std::fs::File::create(ledger.with_extension("err"))?;
        let mut child = command(what)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start mosquitto_sub (Debian package mosquitto-clients)")?;
        let out = child.stdout.take().context("mosquitto_sub has an output")?;
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let chatter = Arc::<Mutex<String>>::default();
        let ledger = tokio::fs::File::create(ledger).await?;
        let task = tokio::spawn(write_down(
            out,
            ledger,
            Arc::clone(&seen),
            Arc::clone(&chatter),
        ));
        Ok(Self {
            name: name.to_owned(),
            child,
            seen,
            chatter,
            task,
        })
    }

    /// Waits until the broker has granted every subscription.
    ///
    /// # Errors
    /// The client ended or was not let in within `within`.
    pub async fn wait_subscribed(&mut self, within: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + within;
        loop {
            let said = self.chatter.lock().expect("no reader panics").clone();
            if said.contains("Subscribed (mid:") {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("reader {} ended with {status}: {}", self.name, said.trim());
            }
            if Instant::now() > end {
                bail!(
                    "reader {} was not subscribed within {within:?}: {}",
                    self.name,
                    said.trim()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// All it has seen so far whose topic fits.
    #[must_use]
    pub fn seen(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Seen> {
        let seen = self.seen.lock().expect("no reader panics");
        seen.iter()
            .filter(|message| is_wanted(&message.topic))
            .cloned()
            .collect()
    }

    /// How many messages it has seen whose topic fits.
    #[must_use]
    pub fn count(&self, is_wanted: impl Fn(&str) -> bool) -> usize {
        let seen = self.seen.lock().expect("no reader panics");
        seen.iter()
            .filter(|message| is_wanted(&message.topic))
            .count()
    }
}

fn command(what: &Subscription) -> Command {
    // Without line buffering the client's word that it is subscribed would come with its first message.
    let mut command = Command::new("stdbuf");
    command
        .args(["-oL", "mosquitto_sub"])
        .args(["-V", "5", "-q", "1", "-c", "-x", SESSION, "-k", "5", "-d"])
        .args(["-F", "MSG %U %r %t %p", "-i", &what.client])
        .args([
            "-h",
            &what.broker.ip().to_string(),
            "-p",
            &what.broker.port().to_string(),
        ])
        .arg("--cafile")
        .arg(what.identity.join("ca.pem"))
        .arg("--cert")
        .arg(what.identity.join("cert.pem"))
        .arg("--key")
        .arg(what.identity.join("key.pem"));
    for filter in &what.filters {
        command.args(["-t", filter]);
    }
    command
}

/// Reads the client's output to its end. The chatter line before a message tells whether it was marked as a repeat.
async fn write_down(
    out: ChildStdout,
    mut ledger: tokio::fs::File,
    seen: Arc<Mutex<Vec<Seen>>>,
    chatter: Arc<Mutex<String>>,
) {
    let mut lines = BufReader::new(out).lines();
    let mut is_dup = false;
    while let Ok(Some(line)) = lines.next_line().await {
        // The ledger on disk is for people; the judge reads memory.
        let _ = ledger.write_all(format!("{line}\n").as_bytes()).await;
        if let Some(message) = line.strip_prefix(MARK).and_then(|rest| parse(rest, is_dup)) {
            seen.lock().expect("no reader panics").push(message);
        } else if line.contains("received PUBLISH (") {
            is_dup = line.contains("PUBLISH (d1");
        } else if !line.contains("PUBACK") && !line.contains("PING") {
            let mut chatter = chatter.lock().expect("no reader panics");
            chatter.push_str(&line);
            chatter.push('\n');
        }
    }
    let _ = ledger.flush().await;
}

/// `<unix time> <retained> <topic> <payload>`.
fn parse(rest: &str, is_dup: bool) -> Option<Seen> {
    let mut parts = rest.trim_start().splitn(4, ' ');
    Some(Seen {
        at: parts.next()?.parse().ok()?,
        is_retained: parts.next()? == "1",
        topic: parts.next()?.to_owned(),
        payload: serde_json::from_str(parts.next()?).unwrap_or(Value::Null),
        is_dup,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_line_of_the_stock_client_is_read() {
        let seen = parse(
            " 1700000000.250000000 0 hf/v1/s/d/up/weather {\"a\": 1}",
            true,
        )
        .unwrap();
        assert!((seen.at - 1_700_000_000.25).abs() < 1e-6);
        assert_eq!(seen.topic, "hf/v1/s/d/up/weather");
        assert_eq!(seen.payload["a"], 1);
        assert!(seen.is_dup && !seen.is_retained);
    }

    #[test]
    fn a_line_that_is_no_message_is_not_read() {
        assert!(parse(" soon 0 t {}", false).is_none());
        assert!(parse("", false).is_none());
    }
}
