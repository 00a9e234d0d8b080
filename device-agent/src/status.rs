//! What the agent is doing, for people: a small file in the state folder that `status` reads.
//!
//! Every part tells the [`Board`]; one task writes it down, at most once a second and only after a
//! change. The file is a view: nothing is ever decided by it, and a crash may lose its last second.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holdfast_protocol::time::{Time, TimeQuality};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::outbox::{Outbox, Outboxes};

const FILE: &str = "status.json";
const LOCK: &str = "lock";
/// The file is written at most this often.
const PACE: Duration = Duration::from_millis(500);

/// What the agent is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not begun.
    #[default]
    Starting,
    /// Looking for its owner, or talking to it by FDO.
    Onboarding,
    /// Looking for a server.
    Connecting,
    /// Connected.
    Serving,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What the agent is about.
    pub phase: Phase,
    /// Why it is not further, or what it waits for.
    pub detail: String,
    /// The device's id.
    pub device: Option<String>,
    /// Its site.
    pub site: Option<String>,
    /// The server it is connected to.
    pub server: Option<String>,
    /// Its role: `gateway` or `cloud`.
    pub role: Option<String>,
    /// The address that answered.
    pub address: Option<String>,
    /// The servers it knows of, by its onboarding and by what it was told since; the preferred one first.
    pub servers: Vec<String>,
    /// Readings in the outbox.
    pub outbox: u64,
    /// Their bytes.
    pub outbox_bytes: u64,
    /// Readings made durable and numbered, over all topics and this device's life.
    pub published: u64,
    /// Readings that a server has taken over.
    pub acknowledged: u64,
    /// By topic's last part.
    pub topics: BTreeMap<String, TopicStatus>,
    /// By sensor.
    pub sources: BTreeMap<String, SourceStatus>,
    /// Messages received on the device's own topics since the start.
    pub received: u64,
    /// The service that it works for.
    pub service: Option<String>,
    /// How the last order to another service went.
    pub service_state: Option<String>,
    /// Why, or what it waits for.
    pub service_detail: String,
    /// The connection for it.
    pub service_link: Link,
    /// Readings that wait for it, and that it has taken over.
    pub service_outbox: u64,
    /// Taken over by services.
    pub service_acknowledged: u64,
    /// Notices about services since the start that were forged, replayed or for others.
    pub notices_refused: u64,
    /// What somebody should look at: two parties claim the gateway's name on this LAN.
    pub alarm: Option<String>,
    /// Publications refused by a server since the start.
    pub refused: u64,
    /// The end of the certificate, seconds of Unix time.
    pub certificate_expires: Option<u64>,
    /// When this was written, seconds of Unix time by the system's clock.
    pub written: u64,
}

/// The connection by which the device takes a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Which service.
    pub service: Option<String>,
    /// The server that serves it now.
    pub server: Option<String>,
    /// Its role: `gateway` or `cloud`.
    pub role: Option<String>,
    /// The address that answered.
    pub address: Option<String>,
    /// Why it is not there.
    pub detail: String,
}

/// One topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TopicStatus {
    /// The number of the newest reading.
    pub last: u64,
    /// The number acknowledged last.
    pub acknowledged: u64,
    /// How many were acknowledged in all.
    pub count: u64,
}

/// One sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Readings taken.
    pub taken: u64,
    /// Rows left out because they were none.
    pub skipped: u64,
    /// Whether its input has ended.
    pub ended: bool,
}

/// Where the parts tell what they do. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Board {
    status: Arc<watch::Sender<Status>>,
}

impl Board {
    /// Changes the status.
    pub fn tell(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            let former = status.clone();
            change(status);
            *status != former
        });
    }

    /// What the agent is about, and why it is not further.
    pub fn phase(&self, phase: Phase, detail: impl Into<String>) {
        let detail = detail.into();
        self.tell(|status| {
            status.phase = phase;
            status.detail = detail;
            if phase != Phase::Serving {
                (status.server, status.role, status.address) = (None, None, None);
            }
        });
    }

    /// Who claims the gateway's name; more than one is an alarm, once.
    pub fn rivals(&self, name: &str, claimants: &[String]) {
        let alarm = (claimants.len() > 1).then(|| {
            format!(
                "{} parties answer for {name} on this LAN ({}): find the wrong one, or give the site one gateway",
                claimants.len(),
                claimants.join(", ")
            )
        });
        if let Some(alarm) = alarm
            .as_ref()
            .filter(|alarm| self.now().alarm.as_ref() != Some(alarm))
        {
            tracing::error!("{alarm}");
        }
        self.tell(|status| status.alarm = alarm);
    }

    /// How far a sensor is.
    pub fn source(&self, name: &str, taken: u64, skipped: u64) {
        self.tell(|status| {
            let source = status.sources.entry(name.to_owned()).or_default();
            (source.taken, source.skipped) = (taken, skipped);
        });
    }

    /// A sensor's input has ended.
    pub fn source_ended(&self, name: &str) {
        self.tell(|status| status.sources.entry(name.to_owned()).or_default().ended = true);
    }

    /// The status as it stands.
    #[must_use]
    pub fn now(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Writes the file at every change, with the outboxes' counters, until dropped.
    pub async fn keep(self, state: PathBuf, outboxes: Outboxes) {
        let mut changes = self.status.subscribe();
        let (mut site, mut service) = (outboxes.site.level(), outboxes.service.level());
        loop {
            self.write(&state, Some(&outboxes));
            tokio::time::sleep(PACE).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                _ = site.changed() => {}
                _ = service.changed() => {}
            }
        }
    }

    /// Writes the file now.
    pub fn write(&self, state: &Path, outboxes: Option<&Outboxes>) {
        let mut status = self.now();
        if let Some(outboxes) = outboxes {
            add_counters(&mut status, &outboxes.site);
            status.service_outbox = outboxes.service.level().borrow().rows;
            let taken = outboxes.service.topics().unwrap_or_default();
            status.service_acknowledged = taken.values().map(|topic| topic.count).sum();
        }
        status.written = unix_now();
        if let Err(error) = replace(&state.join(FILE), &status) {
            tracing::debug!(%error, "the status file was not written");
        }
    }
}

fn add_counters(status: &mut Status, outbox: &Outbox) {
    let level = *outbox.level().borrow();
    (status.outbox, status.outbox_bytes) = (level.rows, level.bytes);
    let Ok(topics) = outbox.topics() else { return };
    status.acknowledged = topics.values().map(|topic| topic.count).sum();
    status.published = status.acknowledged + level.rows;
    status.topics = topics
        .into_iter()
        .map(|(name, topic)| {
            let (last, acknowledged, count) = (topic.last, topic.acknowledged, topic.count);
            (
                name,
                TopicStatus {
                    last,
                    acknowledged,
                    count,
                },
            )
        })
        .collect();
}

/// By a rename, so that a reader sees a whole file; not synced, since it is only a view.
fn replace(path: &Path, status: &Status) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    fs::write(&beside, serde_json::to_vec_pretty(status)?)?;
    fs::rename(beside, path)
}

/// Reads what a running agent, or the last one, wrote; `None` when none ever ran.
///
/// # Errors
/// The file cannot be read.
pub fn read(state: &Path) -> io::Result<Option<Status>> {
    match fs::read(state.join(FILE)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The right to run on a state folder: one process at a time. Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it; `None` when another process has it.
    ///
    /// # Errors
    /// The file system's.
    pub fn take(state: &Path) -> io::Result<Option<Self>> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(state.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether an agent runs on the folder.
    #[must_use]
    pub fn is_held(state: &Path) -> bool {
        match File::open(state.join(LOCK)) {
            Ok(file) => matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)),
            Err(_) => false,
        }
    }
}

/// The status as a person reads it.
#[must_use]
pub fn show(status: &Status, running: bool) -> String {
    let none = || "-".to_owned();
    let phase = match (running, status.phase) {
        (false, _) => "not running".to_owned(),
        (true, Phase::Serving) => format!(
            "connected to {} ({}) at {}",
            status.server.as_deref().unwrap_or("-"),
            status.role.as_deref().unwrap_or("-"),
            status.address.as_deref().unwrap_or("-"),
        ),
        (true, Phase::Starting) => "starting".to_owned(),
        (true, Phase::Onboarding) => format!("onboarding: {}", status.detail),
        (true, Phase::Connecting) => format!("connecting: {}", status.detail),
    };
    let expires = status.certificate_expires.map_or_else(none, |secs| {
        Time::new(secs, TimeQuality::Authenticated).to_string()
    });
    let mut text = format!(
        "device       {}\nsite         {}\nstate        {phase}\noutbox       {} readings, {} bytes\n\
         published    {}\nacknowledged {}\nreceived     {}\nrefused      {}\ncertificate  until {expires}\n",
        status.device.clone().unwrap_or_else(none),
        status.site.clone().unwrap_or_else(none),
        status.outbox,
        status.outbox_bytes,
        status.published,
        status.acknowledged,
        status.received,
        status.refused,
    );
    if let Some(alarm) = &status.alarm {
        text.push_str(&format!("ALARM        {alarm}\n"));
    }
    if status.service.is_some() || status.service_state.is_some() {
        let why = match status.service_detail.as_str() {
            "" => String::new(),
            why => format!(": {why}"),
        };
        text.push_str(&format!(
            "service      {} (last order: {}{why})\n",
            status.service.as_deref().unwrap_or("none"),
            status.service_state.as_deref().unwrap_or("-"),
        ));
        text.push_str(&show_link(status));
    }
    for (name, topic) in &status.topics {
        text.push_str(&format!(
            "topic        {name}: newest {}, acknowledged {}\n",
            topic.last, topic.acknowledged
        ));
    }
    for (name, source) in &status.sources {
        let end = if source.ended { ", ended" } else { "" };
        text.push_str(&format!(
            "sensor       {name}: {} readings, {} rows left out{end}\n",
            source.taken, source.skipped
        ));
    }
    text
}

fn show_link(status: &Status) -> String {
    let link = &status.service_link;
    let at = match (&link.server, &link.address) {
        (Some(server), Some(address)) => format!("connected to {server} at {address}"),
        _ if link.detail.is_empty() => "not connected".to_owned(),
        _ => format!("not connected: {}", link.detail),
    };
    format!(
        "  link       {at}; {} readings wait, {} taken over\n",
        status.service_outbox, status.service_acknowledged
    )
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_told_is_read_and_the_lock_tells_who_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()).unwrap(), None);
        assert!(!Lock::is_held(folder.path()));
        let lock = Lock::take(folder.path()).unwrap().unwrap();
        assert!(Lock::take(folder.path()).unwrap().is_none());
        assert!(Lock::is_held(folder.path()));
        drop(lock);
        assert!(!Lock::is_held(folder.path()));

        let board = Board::default();
        board.tell(|status| {
            status.device = Some("0123".into());
            status.server = Some("gw1".into());
        });
        board.source("weather", 7, 1);
        board.source_ended("weather");
        board.phase(Phase::Connecting, "no server answers");
        board.write(folder.path(), None);
        let status = read(folder.path()).unwrap().unwrap();
        assert_eq!(status.server, None, "a lost connection is not shown");
        assert_eq!(
            status.sources["weather"],
            SourceStatus {
                taken: 7,
                skipped: 1,
                ended: true
            }
        );
        board.rivals("x.local", &["gw1".to_owned()]);
        assert_eq!(board.now().alarm, None);
        board.rivals("x.local", &["gw1".to_owned(), "gw2".to_owned()]);
        assert!(show(&board.now(), true).contains("ALARM        2 parties answer for x.local"));
        let shown = show(&status, true);
        assert!(shown.contains("connecting: no server answers"), "{shown}");
        assert!(show(&status, false).contains("not running"));
    }
}
