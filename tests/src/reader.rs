//! Stock MQTT clients as witnesses: `mosquitto_sub` with a certificate, its arrivals in a ledger with their times.
//! Called by the story. Nothing of ours is between the broker's socket and the ledger.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::seat::Seat;

/// What opens a line with a message, as against the client's own chatter.
const MARK: &str = "MSG";
/// What it says once it is subscribed.
const SUBSCRIBED: &str = "Subscribed (mid:";
/// Pause before a client that ended is started again.
const AGAIN: Duration = Duration::from_millis(200);
/// Seconds for which the broker keeps the reader's session while it is away.
const SESSION: &str = "3600";

/// Who the reader is and what it reads.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Where the reader runs.
    pub seat: Seat,
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

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            at, topic, payload, ..
        } = self;
        let marks = (self.is_dup, self.is_retained);
        write!(out, "{at:.6} (dup, retained) {marks:?} {topic} {payload}")
    }
}

/// A stock client with a session of its own. Dropping it kills it.
///
/// mosquitto_sub ends when a TLS connection breaks without a goodbye, as it does when a broker is killed. It is started
/// again then, as whoever depends on it would do; the broker has kept its session.
#[derive(Debug)]
pub struct Reader {
    name: String,
    ledger: Arc<Mutex<Ledger>>,
    task: JoinHandle<anyhow::Result<()>>,
}

/// What the client has said so far.
#[derive(Debug, Default)]
struct Ledger {
    seen: Vec<Seen>,
    chatter: String,
    starts: usize,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reader {
    /// Starts the client; its raw output goes to the file `copy` as well.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn start(name: &str, what: &Subscription, copy: &Path) -> anyhow::Result<Self> {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let file = tokio::fs::File::create(copy).await?;
        let errors = std::fs::File::create(copy.with_extension("err"))?;
        let task = tokio::spawn(keep_reading(
            what.clone(),
            file,
            errors,
            Arc::clone(&ledger),
        ));
        Ok(Self {
            name: name.to_owned(),
            ledger,
            task,
        })
    }

    /// Waits until the broker has granted the subscriptions.
    ///
    /// # Errors
    /// The client was not let in within `within`; the error has what it said.
    pub async fn wait_subscribed(&self, within: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + within;
        loop {
            let said = self.read(|ledger| ledger.chatter.clone());
            if said.contains(SUBSCRIBED) {
                return Ok(());
            }
            if self.task.is_finished() || Instant::now() > end {
                bail!(
                    "reader {} was not let in within {within:?}: {}",
                    self.name,
                    said.trim()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often the client had to be started again.
    #[must_use]
    pub fn restarts(&self) -> usize {
        self.read(|ledger| ledger.starts.saturating_sub(1))
    }

    /// All it has seen so far whose topic fits.
    #[must_use]
    pub fn seen(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Seen> {
        let is_wanted = |message: &&Seen| is_wanted(&message.topic);
        self.read(|ledger| ledger.seen.iter().filter(is_wanted).cloned().collect())
    }

    /// How many messages it has seen whose topic fits.
    #[must_use]
    pub fn count(&self, is_wanted: impl Fn(&str) -> bool) -> usize {
        let is_wanted = |message: &&Seen| is_wanted(&message.topic);
        self.read(|ledger| ledger.seen.iter().filter(is_wanted).count())
    }

    fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger.lock().expect("no reader panics"))
    }
}

/// Runs the client, again and again once it was let in.
async fn keep_reading(
    what: Subscription,
    mut copy: tokio::fs::File,
    errors: std::fs::File,
    ledger: Arc<Mutex<Ledger>>,
) -> anyhow::Result<()> {
    loop {
        ledger.lock().expect("no reader panics").starts += 1;
        let mut child = command(&what)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone()?)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start mosquitto_sub (Debian package mosquitto-clients)")?;
        let out = child.stdout.take().context("mosquitto_sub has an output")?;
        write_down(out, &mut copy, &ledger).await;
        let status = child.wait().await?;
        {
            let mut ledger = ledger.lock().expect("no reader panics");
            ledger.chatter.push_str(&format!("ended with {status}\n"));
            if !ledger.chatter.contains(SUBSCRIBED) {
                return Ok(());
            }
        }
        sleep(AGAIN).await;
    }
}

fn command(what: &Subscription) -> Command {
    // Without line buffering the client's word that it is subscribed would come with its first message.
    let mut command = what.seat.command("stdbuf");
    command
        .args(["-oL", "mosquitto_sub"])
        .args(["-V", "5", "-q", "1", "-c", "-x", SESSION, "-k", "5", "-d"])
        .args(["-F", "MSG %U %r %t %x", "-i", &what.client])
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
async fn write_down(out: ChildStdout, copy: &mut tokio::fs::File, ledger: &Mutex<Ledger>) {
    let mut lines = BufReader::new(out).lines();
    let mut is_dup = false;
    while let Ok(Some(line)) = lines.next_line().await {
        let message = line.strip_prefix(MARK).and_then(|rest| parse(rest, is_dup));
        // The copy on disk is for people; the judge reads memory.
        let copied = message.as_ref().map_or(line.clone(), Seen::to_string);
        let _ = copy.write_all(format!("{copied}\n").as_bytes()).await;
        if let Some(message) = message {
            ledger.lock().expect("no reader panics").seen.push(message);
        } else if line.contains("received PUBLISH (") {
            is_dup = line.contains("PUBLISH (d1");
        } else if !line.contains("PUBACK") && !line.contains("PING") {
            let mut ledger = ledger.lock().expect("no reader panics");
            ledger.chatter.push_str(&line);
            ledger.chatter.push('\n');
        }
    }
    let _ = copy.flush().await;
}

/// `<unix time> <retained> <topic> <payload in hex>`: a payload may hold anything, line ends too.
fn parse(rest: &str, is_dup: bool) -> Option<Seen> {
    let mut parts = rest.trim_start().splitn(4, ' ');
    Some(Seen {
        at: parts.next()?.parse().ok()?,
        is_retained: parts.next()? == "1",
        topic: parts.next()?.to_owned(),
        payload: serde_json::from_slice(&bytes_of(parts.next()?)?).unwrap_or(Value::Null),
        is_dup,
    })
}

/// Bytes from hex as the stock clients print it.
pub(crate) fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_line_of_the_stock_client_is_read() {
        let seen = parse(
            " 1700000000.250000000 0 hf/v1/s/d/up/weather 7b2261223a20317d",
            true,
        )
        .unwrap();
        assert!((seen.at - 1_700_000_000.25).abs() < 1e-6);
        assert_eq!(seen.topic, "hf/v1/s/d/up/weather");
        assert_eq!(seen.payload["a"], 1);
        assert!(seen.is_dup && !seen.is_retained);
    }

    #[test]
    fn a_payload_that_is_no_text_is_no_json_and_still_a_message() {
        let seen = parse(" 1.5 1 hf/v1/s/d/service/desired d28a0aff", false).unwrap();
        assert!(seen.payload.is_null() && seen.is_retained);
    }

    #[test]
    fn a_line_that_is_no_message_is_not_read() {
        assert!(parse(" soon 0 t 7b7d", false).is_none());
        assert!(parse(" 1.5 0 t 7b7", false).is_none(), "half a byte");
        assert!(parse("", false).is_none());
    }
}
