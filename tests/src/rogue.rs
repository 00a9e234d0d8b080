//! Somebody between gateway and cloud: speaks the sync interface by a stock TLS client with the certificate of a gateway
//! whose disk it has read. What it delivers must be refused for what it is. Called by the story.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::wire::cbor::Reader;
use serde_json::{Value, json};

use crate::process::run_at;
use crate::seat::Seat;

/// A cursor that has seen nothing: an empty array of CBOR, in base64.
const NOTHING_SEEN: &str = "gA==";
/// Most entries asked for.
const MOST: usize = 500;

/// The party and whose keys it holds.
#[derive(Debug, Clone)]
pub struct Rogue {
    seat: Seat,
    certificate: PathBuf,
    key: PathBuf,
    gateway: String,
    site: String,
}

/// Signed change entries, each in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries(Vec<String>);

impl Entries {
    /// Signed entries as they are.
    #[must_use]
    pub fn of(entries: &[Vec<u8>]) -> Self {
        Self(entries.iter().map(|entry| STANDARD.encode(entry)).collect())
    }

    /// Only the one at `at` with a character changed near its end, where the signature is.
    #[must_use]
    pub fn tampered_at(&self, at: usize) -> Self {
        let mut entries = self.clone();
        entries.0[at] = Self(vec![self.0[at].clone()]).tampered().0.remove(0);
        entries
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each as it is on the wire.
    ///
    /// # Errors
    /// Somebody delivered no base64.
    pub fn bytes(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let decoded = self.0.iter().map(|entry| Ok(STANDARD.decode(entry)?));
        decoded.collect()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each with one character changed near its end, where the signature is.
    #[must_use]
    pub fn tampered(&self) -> Self {
        let tamper = |entry: &String| {
            let mut text = entry.clone().into_bytes();
            let at = text.len().saturating_sub(9);
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            String::from_utf8(text).expect("ASCII for ASCII")
        };
        Self(self.0.iter().map(tamper).collect())
    }
}

impl Rogue {
    /// Reads a gateway's certificate and key from its state folder; plays at `seat`.
    ///
    /// # Errors
    /// They are not there, or openssl does not read the key.
    pub async fn with_the_keys_of(
        state: &Path,
        gateway: &str,
        site: &str,
        seat: Seat,
    ) -> anyhow::Result<Self> {
        let keys = state.join("keys");
        let key = state.with_extension("rogue.key");
        let file = |path: &Path| path.display().to_string();
        let words = ["pkey", "-inform", "DER", "-in"].map(str::to_owned);
        let mut words = words.to_vec();
        words.extend([
            file(&keys.join("server.key")),
            "-out".to_owned(),
            file(&key),
        ]);
        let told = run_at(&seat, Path::new("openssl"), &words, "").await?;
        told.success("openssl pkey")?;
        Ok(Self {
            seat,
            certificate: keys.join("server.pem"),
            key,
            gateway: gateway.to_owned(),
            site: site.to_owned(),
        })
    }

    /// The same party at another seat.
    #[must_use]
    pub fn at(&self, seat: Seat) -> Self {
        Self {
            seat,
            ..self.clone()
        }
    }

    /// All that the server has of the site's log by this origin.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn pull(&self, door: SocketAddr) -> anyhow::Result<Entries> {
        let (about, turn) = (self.about(), self.turn());
        let body = json!({ "cursor": NOTHING_SEEN, "max": MOST, "about": about, "turn": turn });
        let told = self.post(door, "/api/v1/sync/pull", &body).await?;
        let entries = told["entries"].as_array().into_iter().flatten();
        let entries = entries.filter_map(|one| one.as_str().map(str::to_owned));
        Ok(Entries(entries.collect()))
    }

    /// Delivers entries; the server's report.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn push(&self, door: SocketAddr, entries: &Entries) -> anyhow::Result<Value> {
        let body = json!({ "entries": entries.0, "about": self.about(), "turn": self.turn() });
        let told = self.post(door, "/api/v1/sync/push", &body).await?;
        Ok(told["report"].clone())
    }

    /// The turn that the gateway has, from its disk: who can read that all the time passes for it.
    fn turn(&self) -> Option<Value> {
        /// What stands before and behind the content of a file that is written twice.
        const AROUND: (usize, usize) = (20, 8);
        let copy = |name: &str| std::fs::read(self.certificate.with_file_name(name)).ok();
        // The gateway may be writing one of them.
        let mut tries = (0..100).map(|_| (copy("turn.a"), copy("turn.b")));
        let file = tries.find(|(one, other)| one == other)?.0?;
        let content = file.get(AROUND.0..file.len().checked_sub(AROUND.1)?)?;
        let mut r = Reader::new(content).ok()?;
        r.array(5).ok()?;
        let (_, number) = (r.uint().ok()?, r.uint().ok()?);
        let (last, this) = (r.text(32).ok()?, r.text(32).ok()?);
        let count = r.array_len(16).ok()?;
        let starts: Option<Vec<&str>> = (0..count).map(|_| r.text(32).ok()).collect();
        Some(json!({ "number": number, "last": last, "this": this, "starts": starts? }))
    }

    fn about(&self) -> Value {
        json!({ "server": self.gateway, "site": self.site, "mqtt": [], "https": [] })
    }

    async fn post(&self, door: SocketAddr, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {door}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (door, certificate, key) = (
            door.to_string(),
            self.certificate.display().to_string(),
            self.key.display().to_string(),
        );
        let words = [
            "s_client",
            "-quiet",
            "-connect",
            &door,
            "-cert",
            &certificate,
            "-cert_chain",
            &certificate,
            "-key",
            &key,
        ];
        let told = run_at(&self.seat, Path::new("openssl"), &words, &request).await?;
        let (head, answer) = told
            .out
            .split_once("\r\n\r\n")
            .with_context(|| format!("{door} said nothing: {}", told.err))?;
        ensure!(
            head.starts_with("HTTP/1.1 200"),
            "{door}{path} answered {answer}"
        );
        serde_json::from_str(answer).with_context(|| format!("no JSON: {answer}"))
    }
}
