//! Renewal of the device's certificate, with a fresh key each time: before its end by the rule of
//! `protocol::renewal` and the operator's wish, and after it within the server's grace.
//!
//! Run by `app` beside the connection; when it ends by itself there is a new identity in the vault and
//! the other parts begin anew with it. What the server gave lies in a file of its own until the server
//! has let the device in by it: killed at any step, the device holds a certificate that is accepted,
//! since the old one is void only after the new one was used. It knows nothing of services.

mod ordered;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_config::secret_file;
use holdfast_link::https;
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_link::time::{Clock, Doubting, SystemClock};
use holdfast_link::tls::{self, Anchors, Trust};
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::csr;
use holdfast_protocol::renewal::{BACKDATE, Wish};
use holdfast_protocol::roots;
use holdfast_protocol::site_module::{MAX_LIST, ServerAddress, ServerRole, SiteConfig};
use holdfast_protocol::time::Time;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::onboard::check_certificate;
use crate::service::{client, endpoint};
use crate::vault::{self, Identity, Vault};

pub use ordered::Ordered;

/// From one look at the certificate to the next.
const LOOK: Duration = Duration::from_secs(10);
/// Looks until the time is asked for.
const LOOKS: u32 = 6;
/// How often a server is met for nothing but the roots that it shows.
const ROOTS: Duration = Duration::from_secs(6 * 3600);
/// Pauses after a failure.
const PAUSES: Policy = Policy {
    first: Duration::from_secs(2),
    longest: Duration::from_secs(300),
};
/// How old a certificate is before the roots that servers no longer show are a reason for another.
const SETTLED: u64 = 24 * 3600 + BACKDATE.as_secs();
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// Steps of one renewal by the command line: what was left over, another, and its trial.
const ATTEMPTS: u32 = 4;
/// The file of a certificate that is being tried.
const FILE: &str = "renewal";

/// The room.
#[derive(Debug)]
pub struct Renewal {
    /// Where the identity is.
    pub vault: Vault,
    /// The state folder, for the file of what is being tried.
    pub state: PathBuf,
    /// The present identity.
    pub identity: Identity,
    /// What the operator asks for beyond the rule.
    pub wish: Wish,
    /// Whether somebody wants another certificate now.
    pub ordered: Ordered,
    /// Sessions begun with the present certificate.
    pub sessions: Arc<AtomicU32>,
    /// So many of them count for nothing: 1 after a renewal, which begins a session by itself and must
    /// not be the reason for the next.
    pub own_sessions: u32,
    /// Remembers what the last server showed: another root there is a reason to renew.
    pub met: Anchors,
    /// Judges, and hears the time from whoever answers.
    pub clock: Arc<SystemClock>,
    /// For one address.
    pub connect_timeout: Duration,
}

/// What became of one attempt.
#[derive(Debug)]
enum Outcome {
    /// The new identity is in the vault.
    Renewed,
    /// Another certificate is kept, to be tried.
    Kept,
    /// The server will have none of it.
    Refused(String),
    /// Nobody answered.
    Unreachable(String),
}

impl Renewal {
    /// Looks after the certificate until `stop`, or until there is another one.
    pub async fn run(self, stop: CancellationToken) {
        if stop.run_until_cancelled(self.look_after()).await.is_some() {
            info!("the device's certificate was renewed");
        }
    }

    async fn look_after(&self) {
        let (mut backoff, mut met) = (Backoff::new(PAUSES), Instant::now());
        loop {
            let outcome = match self.left_over() {
                Some(new) => self.try_out(new).await,
                None if self.is_due() => self.renew(&self.identity).await,
                None => {
                    tokio::select! {
                        () = self.ordered.come() => {}
                        () = self.rest(&mut met) => {}
                    }
                    continue;
                }
            };
            match outcome {
                Outcome::Renewed => return self.ordered.done(),
                Outcome::Kept => continue,
                Outcome::Refused(why) => warn!(why, "the device's certificate is not renewed"),
                Outcome::Unreachable(why) => debug!(why, "nobody renews the certificate now"),
            }
            tokio::time::sleep(backoff.failed(&mut SystemRandom)).await;
            self.ask_time().await;
        }
    }

    /// Renews now, once, whatever the rule says: for the command line while no agent runs.
    ///
    /// # Errors
    /// Why not, in words; the order stays open for the agent then.
    pub async fn once(&self) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            let outcome = match self.left_over() {
                // Cut between the vault and the file: it was renewed already.
                Some(new) if new.certificate == self.identity.certificate => {
                    self.forget();
                    Outcome::Renewed
                }
                Some(new) => self.try_out(new).await,
                None => self.renew(&self.identity).await,
            };
            match outcome {
                Outcome::Renewed => {
                    self.ordered.done();
                    return Ok(());
                }
                Outcome::Kept => {}
                Outcome::Refused(why) | Outcome::Unreachable(why) => return Err(why),
            }
        }
        Err("the servers give one certificate after the other, and take none".to_owned())
    }

    /// Until the next look, or until a server has shown another root.
    async fn rest(&self, met: &mut Instant) {
        for _ in 0..LOOKS {
            tokio::time::sleep(LOOK).await;
            if self.is_due() {
                return;
            }
        }
        self.ask_time().await;
        if met.elapsed() >= ROOTS {
            *met = Instant::now();
            self.look_at_roots().await;
        }
    }

    /// A session may last for months: what its server shows now is seen in a handshake of its own.
    async fn look_at_roots(&self) {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let trust = Trust::Anchors(self.met.clone());
        let Ok(tls) = tls::client_config(trust, None, clock) else {
            return;
        };
        for server in gateway_first(&self.identity.site) {
            if self
                .client(&server, &tls)
                .get("/api/v1/health")
                .await
                .is_ok()
            {
                return;
            }
        }
    }

    fn is_due(&self) -> bool {
        if self.ordered.is_open() {
            return true;
        }
        let (now, sessions) = (
            self.clock.certain().secs,
            self.sessions
                .load(Ordering::Relaxed)
                .saturating_sub(self.own_sessions),
        );
        self.wish.is_due(&self.identity.certificate, now, sessions) || self.met_other_roots(now)
    }

    /// Whether the last server showed other roots than we hold. One that follows ours is a reason to
    /// renew now, since it is ours afterwards whatever the answer says. One that is gone waits until
    /// the certificate is a day old: servers may differ for a while.
    fn met_other_roots(&self, now: u64) -> bool {
        let held = &self.identity.site.anchors;
        let (crosses, told) = roots::split(&self.met.shown());
        let believed = roots::believed(held, &told, &crosses);
        if believed.iter().any(|root| !held.contains(root)) {
            return true;
        }
        let begin = holdfast_protocol::certificate::validity(&self.identity.certificate);
        let is_settled = begin.is_some_and(|(from, _)| now.saturating_sub(from) > SETTLED);
        is_settled && !believed.is_empty() && held.iter().any(|root| !believed.contains(root))
    }

    /// What was being tried when the agent ended.
    fn left_over(&self) -> Option<Identity> {
        let bytes = std::fs::read(self.state.join(FILE)).ok()?;
        let found = vault::read_identity(&bytes);
        if found.is_none() {
            warn!("what was kept of a renewal cannot be read; the certificate is renewed again");
            self.forget();
        }
        found
    }

    fn forget(&self) {
        if let Err(error) = secret_file::remove(&self.state.join(FILE)) {
            debug!(%error, "the file of a renewal stays for now");
        }
    }

    /// While no server lets us in: the time may show that the certificate is over. Asked as a
    /// stranger, by the name in the server's certificate.
    async fn ask_time(&self) {
        if self.clock.certain().is_authenticated() && !self.is_over() {
            return;
        }
        let Ok(anchors) = Anchors::new(self.identity.site.anchors.iter().cloned()) else {
            return;
        };
        let clock = Arc::new(Doubting(Arc::clone(&self.clock) as Arc<dyn Clock>));
        let Ok(tls) = tls::client_config(Trust::Anchors(anchors), None, clock) else {
            return;
        };
        for server in gateway_first(&self.identity.site) {
            let client = self.client(&server, &tls);
            let Ok(answer) = client.get("/api/v1/health").await else {
                continue;
            };
            if let Some(told) = told(&answer.body) {
                self.clock.hear(told);
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        let end = holdfast_protocol::certificate::validity(&self.identity.certificate);
        end.is_none_or(|(_, end)| end < self.clock.certain().secs)
    }

    /// Another certificate for whom this identity names: the present one, or the one being tried.
    async fn renew(&self, by: &Identity) -> Outcome {
        let key = SigningKey::generate(&mut SystemRandom);
        let csr = csr::request(self.identity.site.device.as_str(), &key);
        let body = json!({ "csr": STANDARD.encode(csr) }).to_string();
        let mut faults = Vec::new();
        for server in gateway_first(&self.identity.site) {
            let sent = self.post(by, &server, "/api/v1/renew", &body);
            match sent.await {
                Ok(answer) => match self.take(&answer, key.clone()) {
                    Ok(()) => return Outcome::Kept,
                    Err(why) => faults.push(format!("{}: {why}", server.server)),
                },
                Err(Outcome::Refused(why)) => faults.push(format!("{}: {why}", server.server)),
                Err(other) => debug!(server = %server.server, ?other, "no renewal here"),
            }
        }
        match faults.is_empty() {
            true => Outcome::Unreachable("no server answers".to_owned()),
            false => Outcome::Refused(faults.join("; ")),
        }
    }

    /// Checks what came, and keeps it for the trial.
    fn take(&self, answer: &[u8], key: SigningKey) -> Result<(), String> {
        let answer: Value = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
        if let Some(told) = answer["time"].as_str().and_then(Time::from_words) {
            self.clock.hear(told);
        }
        let mut site = self.identity.site.clone();
        site.chain = ders(&answer["chain"])?;
        site.anchors = self.roots_after(&ders(&answer["anchors"])?, &site.chain);
        if let Some(keys) = notice_keys(&answer["notice_keys"])? {
            site.notice_keys = keys;
        }
        let certificate = der(&answer["certificate"])?;
        let now = self.clock.certain();
        check_certificate(&certificate, &site, &key, now).map_err(|fault| fault.to_string())?;
        let new = Identity {
            key,
            certificate,
            site,
        };
        let kept = vault::write_identity(&new)
            .and_then(|bytes| secret_file::write(&self.state.join(FILE), &bytes));
        kept.map_err(|error| format!("it cannot be kept: {error}"))
    }

    /// The roots to believe from now on: told, or shown by the last server, and ours or cross-signed by one
    /// of ours. What nobody tells any more is dropped.
    fn roots_after(&self, told: &[Vec<u8>], chain: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let held = &self.identity.site.anchors;
        let (mut crosses, shown) = roots::split(&self.met.shown());
        crosses.extend(chain.iter().cloned());
        let mut all = told.to_vec();
        all.extend(shown.into_iter().filter(|root| !told.contains(root)));
        match roots::believed(held, &all, &crosses) {
            none if none.is_empty() => held.clone(),
            some => some,
        }
    }

    /// Comes in by the new certificate, which makes the old one void; then the new one holds.
    async fn try_out(&self, new: Identity) -> Outcome {
        if new.certificate == self.identity.certificate {
            // Killed between the vault and the file.
            self.forget();
            return Outcome::Unreachable("it was renewed before".to_owned());
        }
        let mut refusal = None;
        for server in gateway_first(&new.site) {
            match self.post(&new, &server, "/api/v1/renew/done", "").await {
                Ok(_) => {
                    if let Err(error) = self.vault.renew(new) {
                        return Outcome::Refused(error.to_string());
                    }
                    self.forget();
                    return Outcome::Renewed;
                }
                Err(Outcome::Refused(why)) => refusal = Some(why),
                Err(_) => {}
            }
        }
        match refusal {
            Some(why) => self.replace(&new, why).await,
            None => Outcome::Unreachable("nobody tells whether the new one works".to_owned()),
        }
    }

    /// The one being tried is refused: it may have expired while nobody answered, and the present one be
    /// void already, since an answer was lost. So it is renewed in its turn; else the present one is, and
    /// what comes takes its place. Until something did it is kept: a server may be in trouble that
    /// refuses everybody, and what it refuses may be all that we have.
    async fn replace(&self, tried: &Identity, why: String) -> Outcome {
        let still = match self.renew(tried).await {
            Outcome::Refused(still) => still,
            // Tried after a pause: whoever refuses what it has just given must not be asked at full speed.
            _ => return Outcome::Unreachable(why),
        };
        match self.renew(&self.identity).await {
            Outcome::Refused(old) => Outcome::Refused(format!("{why}; {still}; {old}")),
            _ => Outcome::Unreachable(format!("{why}; {still}")),
        }
    }

    async fn post(
        &self,
        identity: &Identity,
        server: &ServerAddress,
        path: &str,
        body: &str,
    ) -> Result<Vec<u8>, Outcome> {
        let refused = |why: String| Outcome::Refused(why);
        let anchors = Anchors::new(identity.site.anchors.iter().cloned());
        let anchors = anchors.map_err(|error| refused(error.to_string()))?;
        let mut chain = vec![identity.certificate.clone()];
        chain.extend(identity.site.chain.iter().cloned());
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let tls = client(&anchors, chain, identity.key.to_pkcs8_der(), &clock).map_err(refused)?;
        let client = self.client(server, &tls);
        let sent = client.post(path, "application/json", body.as_bytes().to_vec());
        let answer = sent.await;
        let answer = answer.map_err(|error| Outcome::Unreachable(error.to_string()))?;
        match answer.status.as_u16() {
            200 => Ok(answer.body.to_vec()),
            // A server in trouble has said nothing about the certificate.
            status @ (400 | 401 | 403) => {
                let said: Option<Value> = serde_json::from_slice(&answer.body).ok();
                let said = said.and_then(|said| said["error"].as_str().map(str::to_owned));
                Err(refused(format!(
                    "{} (HTTP {status})",
                    said.unwrap_or_default()
                )))
            }
            status => Err(Outcome::Unreachable(format!("HTTP {status}"))),
        }
    }

    fn client(&self, server: &ServerAddress, tls: &Arc<rustls::ClientConfig>) -> https::Client {
        let limits = https::Limits {
            per_address: self.connect_timeout,
            body: MAX_ANSWER,
            idle: 0,
            ..https::Limits::default()
        };
        https::Client::new(endpoint(server, server.https.clone(), tls), limits)
    }
}

fn told(body: &[u8]) -> Option<Time> {
    let health: Value = serde_json::from_slice(body).ok()?;
    let (secs, quality) = (health["time"].as_u64()?, health["time_quality"].as_str()?);
    Time::from_words(&format!("{secs} {quality}"))
}

fn der(value: &Value) -> Result<Vec<u8>, String> {
    let text = value.as_str().ok_or("the answer lacks a certificate")?;
    STANDARD.decode(text).map_err(|error| error.to_string())
}

fn ders(value: &Value) -> Result<Vec<Vec<u8>>, String> {
    let list = value.as_array().ok_or("the answer lacks a chain")?;
    if list.len() > MAX_LIST {
        return Err("the answer's chain is too long".to_owned());
    }
    list.iter().map(der).collect()
}

/// The keys by which notices are signed now; servers of before do not tell.
fn notice_keys(value: &Value) -> Result<Option<Vec<VerifyingKey>>, String> {
    if value.as_array().is_none_or(Vec::is_empty) {
        return Ok(None);
    }
    let read = |der: Vec<u8>| VerifyingKey::from_spki_der(&der).map_err(|bad| bad.to_string());
    ders(value)?
        .into_iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map(Some)
}

fn gateway_first(site: &SiteConfig) -> Vec<ServerAddress> {
    let mut servers = site.servers.clone();
    servers.sort_by_key(|server| server.role != ServerRole::Gateway);
    servers
}

#[cfg(test)]
mod tests;
