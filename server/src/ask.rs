//! The running daemon as the command line asks it: over its admin socket, with errors as the operator
//! sees them and the exit code in the type. It opens no store and no key.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_config::cli::{Misuse, Unavailable};
use holdfast_config::show;
use holdfast_cps::http::ask::{self, AskError};
use holdfast_protocol::id::DeviceId;
use serde_json::Value;

/// Longest file read for a command: keys, vouchers, tokens.
const FILE_BYTES: u64 = 1 << 20;

/// Asks the running daemon.
#[derive(Debug)]
pub struct Ask {
    socket: PathBuf,
}

impl Ask {
    /// The daemon that keeps its state in this folder.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self {
            socket: state.join("admin.sock"),
        }
    }

    /// The answer to `GET path`.
    ///
    /// # Errors
    /// What the operator must know, here and below.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        ask::get(&self.socket, path).await.map_err(classify)
    }

    /// The answer to `POST path`.
    ///
    /// # Errors
    /// As above.
    pub async fn post(&self, path: &str, wanted: &Value) -> anyhow::Result<Value> {
        ask::post(&self.socket, path, wanted)
            .await
            .map_err(classify)
    }

    /// A list, as a table or as it is.
    ///
    /// # Errors
    /// As above.
    pub async fn table(&self, path: &str, columns: &[&str], json: bool) -> anyhow::Result<String> {
        let rows = self.get(path).await?;
        Ok(rows_as(&rows, columns, json))
    }

    /// One thing, as lines of facts or as it is.
    ///
    /// # Errors
    /// As above.
    pub async fn facts(&self, path: &str, json: bool) -> anyhow::Result<String> {
        let value = self.get(path).await?;
        Ok(match json {
            true => pretty(&value),
            false => show::facts(&value),
        })
    }

    /// Prints what a device sent, one JSON object a line.
    ///
    /// # Errors
    /// As above.
    pub async fn export(&self, device: DeviceId) -> anyhow::Result<()> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let done = ask::export(&self.socket, device.as_str(), &mut out).await;
        done.map_err(classify)
    }
}

/// `rows` as a table, or as they are.
#[must_use]
pub fn rows_as(rows: &Value, columns: &[&str], json: bool) -> String {
    match json {
        true => pretty(rows),
        false => show::table(rows, columns),
    }
}

/// JSON for people.
#[must_use]
pub fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A text of the answer that must be there.
///
/// # Errors
/// It is not.
pub fn text_of(answer: &Value, field: &str) -> anyhow::Result<String> {
    let text = answer[field].as_str().map(str::to_owned);
    text.with_context(|| {
        format!("the answer holds no {field}; are program and daemon of one version?")
    })
}

/// The content of a file that the operator named; `-` is standard input.
///
/// # Errors
/// It cannot be read or is too long.
pub fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = FILE_BYTES + 1;
    let read = match path.to_str() {
        Some("-") => std::io::stdin().take(most).read_to_end(&mut bytes),
        _ => std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)),
    };
    read.map_err(|error| Misuse(format!("cannot read {}: {error}", path.display())))?;
    if bytes.len() as u64 > FILE_BYTES {
        let path = path.display();
        return Err(Misuse(format!("{path} is longer than {FILE_BYTES} bytes")).into());
    }
    Ok(bytes)
}

/// SubjectPublicKeyInfo of a PEM file.
///
/// # Errors
/// It cannot be read or holds none.
pub fn public_key(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text = String::from_utf8_lossy(&read_file(path)?).into_owned();
    let body = text
        .split_once("-----BEGIN PUBLIC KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"))
        .map(|(body, _)| body.split_whitespace().collect::<String>());
    let der = body.and_then(|body| STANDARD.decode(body).ok());
    der.ok_or_else(|| Misuse(format!("{} holds no PEM block PUBLIC KEY", path.display())).into())
}

/// The exit code follows from whose fault it is.
fn classify(error: AskError) -> anyhow::Error {
    match error {
        AskError::NotRunning { .. } => Unavailable(error.to_string()).into(),
        AskError::Refused(_) => Misuse(error.to_string()).into(),
        AskError::NotAllowed { .. } | AskError::Failed(_) | AskError::Broken(_) => error.into(),
    }
}
