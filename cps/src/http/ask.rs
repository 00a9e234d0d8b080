//! The client side of the admin socket, for the command lines of both daemons: one request, one
//! JSON answer. It knows no verbs and retries nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Longest answer, bytes.
const ANSWER_BYTES: usize = 64 << 20;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("nothing answers at {}: {cause}; is the program running, with the same --state?", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The socket is another user's.
    #[error("{} is not this user's to use: give the command as root, or as the user who runs the program", path.display())]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The program refused; the text is for the operator. Blame: the request.
    #[error("{0}")]
    Refused(String),
    /// The program could not do it.
    #[error("{0}")]
    Failed(String),
    /// The exchange broke.
    #[error("the running program gave no usable answer: {0}")]
    Broken(String),
}

/// `GET path`.
///
/// # Errors
/// See [`AskError`].
pub async fn get(socket: &Path, path: &str) -> Result<Value, AskError> {
    ask(socket, Method::GET, path, None).await
}

/// `POST path` with a JSON body.
///
/// # Errors
/// See [`AskError`].
pub async fn post(socket: &Path, path: &str, body: &Value) -> Result<Value, AskError> {
    ask(socket, Method::POST, path, Some(body)).await
}

/// Writes a source's messages to `out`, one JSON object a line, page by page, so that a long ledger
/// needs no memory. A payload that is JSON is shown as such; the ledger itself never looks.
///
/// # Errors
/// See [`AskError`].
pub async fn export(socket: &Path, source: &str, out: &mut dyn io::Write) -> Result<(), AskError> {
    let failed = |error: io::Error| AskError::Failed(format!("cannot write the answer: {error}"));
    let mut after = Value::Null;
    loop {
        let wanted = serde_json::json!({ "source": source, "after": after });
        let mut page = post(socket, "/v1/telemetry", &wanted).await?;
        for row in page["rows"].as_array_mut().into_iter().flatten() {
            let inner = row["payload"]
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok());
            if let Some(inner) = inner {
                row["payload"] = inner;
            }
            writeln!(out, "{row}").map_err(failed)?;
        }
        after = page["next"].take();
        if after.is_null() {
            return out.flush().map_err(failed);
        }
    }
}

async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, AskError> {
    let broken = |error: &dyn std::fmt::Display| AskError::Broken(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|cause| {
        let path = socket.to_owned();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => AskError::NotAllowed { path },
            _ => AskError::NotRunning { path, cause },
        }
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let text = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "admin")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(text)))
        .map_err(|error| broken(&error))?;
    let exchange = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES)
            .collect()
            .await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    };
    // The connection must be driven while its answer is awaited; it ends with the answer.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    let (status, body) = tokio::select! {
        answer = exchange => answer?,
        () = driven => return Err(AskError::Broken("the connection ended".to_owned())),
        () = tokio::time::sleep(PATIENCE) => {
            return Err(AskError::Broken(format!("none within {PATIENCE:?}")));
        }
    };
    judge(status, &body)
}

fn judge(status: StatusCode, body: &[u8]) -> Result<Value, AskError> {
    let value: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    if status.is_success() {
        return Ok(value);
    }
    if status == StatusCode::NOT_FOUND && value.is_null() {
        let what = "the running program does not know this command: it is of another version; start it anew";
        return Err(AskError::Failed(what.to_owned()));
    }
    let said = value.get("error").and_then(Value::as_str).map_or_else(
        || format!("HTTP {status}: {}", String::from_utf8_lossy(body).trim()),
        str::to_owned,
    );
    Err(if status.is_client_error() {
        AskError::Refused(said)
    } else {
        AskError::Failed(said)
    })
}
