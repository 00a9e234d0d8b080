//! What servers tell the device to do: kept in a journal of bounded length, or only logged, as configured.
//!
//! Called by `connection` for each message on `down/...` and on a service's `command`. The agent itself executes nothing:
//! whatever works the device reads the journal. A command is acknowledged when it is on the disk, and one whose
//! acknowledgement was lost is there twice.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_protocol::time::{Time, TimeQuality};
use serde_json::{Map, Value, json};
use tracing::info;

use crate::config;

const FILE: &str = "commands.jsonl";
const FORMER: &str = "commands.1.jsonl";
/// Longest part of a command that is logged, in bytes.
const MOST_LOGGED: usize = 256;

/// Takes commands. Clones share the journal.
#[derive(Debug, Clone)]
pub struct Commands(Option<Arc<Mutex<Journal>>>);

#[derive(Debug)]
struct Journal {
    path: PathBuf,
    former: PathBuf,
    /// Of the two files together.
    most: u64,
    open: Option<(File, u64)>,
}

impl Commands {
    /// Only logged.
    #[must_use]
    pub fn logged() -> Self {
        Self(None)
    }

    /// As configured, in the folder `state`.
    #[must_use]
    pub fn of(config: &config::Commands, state: &Path) -> Self {
        match config.to {
            config::CommandsTo::Log => Self::logged(),
            config::CommandsTo::Journal => Self(Some(Arc::new(Mutex::new(Journal {
                path: state.join(FILE),
                former: state.join(FORMER),
                most: config.max_bytes.0,
                open: None,
            })))),
        }
    }

    /// Takes a command; durable when it returns.
    ///
    /// # Errors
    /// The disk's. Nothing is acknowledged then, and the server sends it again.
    pub async fn take(&self, topic: &str, payload: &[u8], at: Time) -> io::Result<()> {
        let Some(journal) = &self.0 else {
            let shown = &payload[..payload.len().min(MOST_LOGGED)];
            info!(topic, command = %String::from_utf8_lossy(shown).escape_debug(), "a command");
            return Ok(());
        };
        let line = line(topic, payload, at);
        let journal = Arc::clone(journal);
        let written = tokio::task::spawn_blocking(move || {
            let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
            let written = journal.append(line.as_bytes());
            if written.is_err() {
                // Opened anew the next time: what is behind the last whole line is looked at then.
                journal.open = None;
            }
            written
        });
        written
            .await
            .unwrap_or_else(|lost| Err(io::Error::other(lost)))
    }
}

/// One line: `{"at", "quality", "topic", "payload" | "payload_hex"}`.
fn line(topic: &str, payload: &[u8], at: Time) -> String {
    let mut fields = Map::new();
    fields.insert("at".to_owned(), json!(at.secs));
    fields.insert("quality".to_owned(), json!(word(at.quality)));
    fields.insert("topic".to_owned(), json!(topic));
    match std::str::from_utf8(payload) {
        Ok(text) => fields.insert("payload".to_owned(), json!(text)),
        Err(_) => {
            let hex: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
            fields.insert("payload_hex".to_owned(), json!(hex))
        }
    };
    format!("{}\n", Value::Object(fields))
}

fn word(quality: TimeQuality) -> &'static str {
    match quality {
        TimeQuality::None => "none",
        TimeQuality::Floor => "floor",
        TimeQuality::Authenticated => "authenticated",
    }
}

impl Journal {
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let (mut file, mut length) = match self.open.take() {
            Some(open) => open,
            None => open(&self.path)?,
        };
        if length > 0 && length + line.len() as u64 > self.most / 2 {
            drop(file);
            std::fs::rename(&self.path, &self.former)?;
            (file, length) = open(&self.path)?;
        }
        file.write_all(line)?;
        file.sync_data()?;
        self.open = Some((file, length + line.len() as u64));
        Ok(())
    }
}

/// The file, behind its last whole line: a line that a crash cut is taken away, its command comes again.
fn open(path: &Path) -> io::Result<(File, u64)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let file = options.open(path)?;
    let written = std::fs::read(path)?;
    let whole = written.iter().rposition(|byte| *byte == b'\n');
    let length = whole.map_or(0, |at| at as u64 + 1);
    file.set_len(length)?;
    // A new file is there after a power cut only when its folder says so.
    if written.is_empty()
        && let Some(folder) = path.parent()
    {
        File::open(folder)?.sync_all()?;
    }
    Ok((file, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_config::ByteSize;

    fn commands(state: &Path, most: u64) -> Commands {
        let config = config::Commands {
            to: config::CommandsTo::Journal,
            max_bytes: ByteSize(most),
        };
        Commands::of(&config, state)
    }

    fn at() -> Time {
        Time::new(1_800_000_000, TimeQuality::Floor)
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[tokio::test]
    async fn commands_are_on_the_disk_in_order_and_never_more_than_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let (now, former) = (folder.path().join(FILE), folder.path().join(FORMER));
        for n in 0..100u32 {
            // Opened anew now and then, as after a restart.
            let commands = commands(folder.path(), 2_000);
            for m in 0..3 {
                let payload = format!("{}", n * 3 + m);
                commands
                    .take("svc/v1/a/b/c/command", payload.as_bytes(), at())
                    .await
                    .unwrap();
            }
            let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
            assert!(length(&now) + length(&former) <= 2_000);
        }
        let kept: Vec<_> = lines(&former).into_iter().chain(lines(&now)).collect();
        let numbers: Vec<u32> = kept
            .iter()
            .map(|line| line["payload"].as_str().unwrap().parse().unwrap())
            .collect();
        assert!(numbers.len() > 8);
        assert!(
            numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "{numbers:?}"
        );
        assert_eq!(numbers.last(), Some(&299));
        assert_eq!(kept[0]["topic"], "svc/v1/a/b/c/command");
        assert_eq!(
            (&kept[0]["at"], &kept[0]["quality"]),
            (&json!(1_800_000_000), &json!("floor"))
        );
    }

    #[tokio::test]
    async fn a_line_that_a_crash_cut_goes_and_bytes_that_are_no_text_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        commands(folder.path(), 10_000)
            .take("t", &[0xff, 0], at())
            .await
            .unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, [&whole[..], &whole[..cut]].concat()).unwrap();
            commands(folder.path(), 10_000)
                .take("t", b"next", at())
                .await
                .unwrap();
            let kept = lines(&path);
            assert_eq!(kept.len(), 2, "cut at {cut}");
            assert_eq!(
                (&kept[0]["payload_hex"], &kept[1]["payload"]),
                (&json!("ff00"), &json!("next"))
            );
        }
        // A command too long for the bound is kept alone.
        commands(folder.path(), 64)
            .take("t", &[b'x'; 500], at())
            .await
            .unwrap();
        assert_eq!(lines(&path).len(), 1);
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("none");
        commands(&nowhere, 100)
            .take("t", b"x", at())
            .await
            .unwrap_err();
        Commands::logged().take("t", b"x", at()).await.unwrap();
    }
}
