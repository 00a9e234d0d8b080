//! Messages that a remote will never take: kept in a bounded file for the operator, counted.
//!
//! Used by [`super`]. One poison message must neither hold up the others nor vanish unseen. When
//! the file is full the message goes, and the count and the log say so.

use std::fmt::Display;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_broker::Message;

/// Largest size of the file.
const MAX_BYTES: u64 = 16 << 20;

/// The file of dead letters; cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    path: Arc<PathBuf>,
    count: Arc<AtomicU64>,
}

impl DeadLetters {
    /// A file at `path`, made when it is first needed: one JSON object a line.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        // A file that cannot be read counts as empty; writing to it will say why.
        let kept = std::fs::read(&path).unwrap_or_default();
        let lines = kept.iter().filter(|byte| **byte == b'\n').count();
        Self {
            path: Arc::new(path),
            count: Arc::new(AtomicU64::new(lines as u64)),
        }
    }

    /// How many, those that lay in the file at the start among them.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Keeps a message with the reason. Failing to keep it is logged, not an error: its row goes.
    pub(super) async fn keep(&self, remote: &str, message: &Message, why: &impl Display) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (path, why) = (Arc::clone(&self.path), why.to_string());
        tracing::error!(
            remote, topic = %message.topic().escape_debug(), why, file = %path.display(),
            "the remote will never take this message; it was put aside"
        );
        let line = serde_json::json!({
            "remote": remote,
            "topic": message.topic(),
            "why": why,
            "payload_base64": STANDARD.encode(message.payload()),
        });
        let kept = tokio::task::spawn_blocking(move || append(&path, &line.to_string())).await;
        match kept {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => tracing::error!("the file of messages put aside is full; one is lost"),
            Ok(Err(error)) => {
                tracing::error!(%error, "a message could not be put aside; it is lost")
            }
            Err(error) => tracing::error!(%error, "a message could not be put aside; it is lost"),
        }
    }
}

/// False when the file is full.
fn append(path: &PathBuf, line: &str) -> std::io::Result<bool> {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    if file.metadata()?.len() + line.len() as u64 > MAX_BYTES {
        return Ok(false);
    }
    writeln!(file, "{line}")?;
    file.sync_data()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_letter_is_kept_and_counted() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("dead");
        let letters = DeadLetters::at(path.clone());
        letters
            .keep("cloud", &Message::new("a/b", "x"), &"0x87")
            .await;
        let text = std::fs::read_to_string(&path).expect("written");
        let line: serde_json::Value = serde_json::from_str(text.trim()).expect("JSON");
        assert_eq!(line["payload_base64"], "eA==");
        assert_eq!(letters.count(), 1);
        assert_eq!(DeadLetters::at(path).count(), 1, "after a restart");
    }

    #[test]
    fn a_full_file_takes_no_more() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("dead");
        let file = std::fs::File::create(&path).expect("file");
        file.set_len(MAX_BYTES - 3).expect("grow");
        assert!(!append(&path, "1234").expect("append"));
        assert!(append(&path, "123").expect("append"));
    }
}
