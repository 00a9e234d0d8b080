//! The device's services: hears what is wanted of it, gets key and certificate for it, and switches.
//!
//! Run by `app` beside the connection, which hands it the notices and publishes what it reports. What
//! is to be done is decided in `protocol::lifecycle::Device`; this room stores every change of that
//! state before it acts upon it, so that an agent killed anywhere goes on where it was. A notice
//! counts only by its signature and number: the broker is not trusted for it. The old key stays until
//! the new certificate has carried a message. Before a certificate ends, and late if nobody could be
//! asked, key and certificate are renewed by the same steps (`due`): the register is asked under the
//! device's own certificate, so an end of the service's locks nobody out.

mod due;
mod file;
mod net;
mod session;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_link::time::Clock;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::lifecycle::{
    Answer, Device, Event, Heard, Home, Next, Refusal, Request, RequestKind, Running,
};
use holdfast_protocol::notice::Notice;
use holdfast_protocol::renewal::Wish;
use holdfast_protocol::site_module::SiteConfig;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::signers::Signers;
use crate::status::Board;
use crate::vault::Identity;

use due::Due;
pub use file::{File, FileError, Keep};
pub use net::{Net, Wire};
pub(crate) use net::{client, endpoint};
pub use session::Session;
#[cfg(test)]
pub(crate) use session::identity_for;

/// Notices that wait while one is being stored.
const NOTICES: usize = 16;

/// How patient the room is.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two attempts at anything.
    pub retry: Policy,
    /// Attempts with a new certificate before the old one is gone back to.
    pub tries: u32,
    /// From one question for a missed notice to the next.
    pub poll: Duration,
    /// From one look at the certificate of what runs to the next.
    pub look: Duration,
    /// From one renewal that came to nothing to the next: each costs the register a certificate.
    pub again: Policy,
}

impl Default for Pace {
    /// Half a second doubling to 30 s; six attempts; a question each 15 minutes; a look each 10 s;
    /// renewals half a minute apart, doubling to 15.
    fn default() -> Self {
        Self {
            retry: Policy::default(),
            tries: 6,
            poll: Duration::from_secs(15 * 60),
            look: Duration::from_secs(10),
            again: Policy {
                first: Duration::from_secs(30),
                longest: Duration::from_secs(15 * 60),
            },
        }
    }
}

/// What the connection holds: where notices go, and what is to be published.
#[derive(Debug)]
pub struct Desk {
    /// Payloads of `service/desired`.
    pub notices: mpsc::Sender<Vec<u8>>,
    /// What `service/reported` shall say; JSON.
    pub report: watch::Receiver<Option<Vec<u8>>>,
}

/// The service that runs, with key and certificate; changes when a new one has worked, and not before.
pub type Runs = watch::Receiver<Option<Arc<Running>>>;

/// The room.
#[derive(Debug)]
pub struct Services<W, K> {
    device: Device,
    store: K,
    site: SiteConfig,
    signers: Option<Signers>,
    cps_key: SigningKey,
    wire: W,
    pace: Pace,
    due: Option<Due>,
    board: Board,
    notices: mpsc::Receiver<Vec<u8>>,
    report: watch::Sender<Option<Vec<u8>>>,
    runs: watch::Sender<Option<Arc<Running>>>,
}

impl<W: Wire, K: Keep> Services<W, K> {
    /// The room of one identity, with what its store holds; does nothing yet.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(
        identity: &Identity,
        mut store: K,
        wire: W,
        pace: Pace,
        board: Board,
    ) -> Result<(Self, Desk), FileError> {
        let device = store.load()?;
        let (sender, notices) = mpsc::channel(NOTICES);
        let (report, reports) = watch::channel(None);
        let (runs, _) = watch::channel(device.running().cloned().map(Arc::new));
        let services = Self {
            device,
            store,
            site: identity.site.clone(),
            signers: None,
            cps_key: identity.key.clone(),
            wire,
            pace,
            due: None,
            board,
            notices,
            report,
            runs,
        };
        let desk = Desk {
            notices: sender,
            report: reports,
        };
        Ok((services, desk))
    }

    /// Believes notices by these keys, as they change, instead of those of the onboarding.
    #[must_use]
    pub fn believing(mut self, signers: Signers) -> Self {
        self.signers = Some(signers);
        self
    }

    /// Renews key and certificate of what runs by the rule on `clock`, and by `wish`; `sessions` counts
    /// those begun with the present certificate.
    #[must_use]
    pub fn renewing(mut self, clock: Arc<dyn Clock>, wish: Wish, sessions: Arc<AtomicU32>) -> Self {
        let (look, again) = (self.pace.look, self.pace.again);
        self.due = Some(Due::new(clock, wish, sessions, look, again));
        self
    }

    /// What runs, now and as it changes.
    #[must_use]
    pub fn runs(&self) -> Runs {
        self.runs.subscribe()
    }

    /// Works until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        _ = stop.run_until_cancelled(self.work()).await;
    }

    async fn work(&mut self) {
        let mut backoff = Backoff::new(self.pace.retry);
        let (mut rest_until, mut tries) = (Instant::now(), 0);
        loop {
            self.tell();
            let next = self.device.next(self.site.device);
            let resting = matches!(next, Next::Rest);
            let (wire, key) = (&self.wire, &self.cps_key);
            let acted = tokio::select! {
                heard = self.notices.recv() => match heard {
                    Some(payload) => {
                        if self.hear(&payload) {
                            (backoff, tries) = (Backoff::new(self.pace.retry), 0);
                            rest_until = Instant::now();
                        }
                        continue;
                    }
                    None => return std::future::pending().await,
                },
                () = renewal(self.due.as_ref(), self.device.running()), if resting => {
                    self.renew();
                    (backoff, tries) = (Backoff::new(self.pace.retry), 0);
                    rest_until = Instant::now();
                    continue;
                }
                acted = act(wire, key, self.site.device, next, rest_until) => acted,
            };
            let done = match acted {
                Acted::Notice(payload) => {
                    let moved = payload.is_some_and(|payload| self.hear(&payload));
                    rest_until = Instant::now();
                    if !moved {
                        rest_until += self.pace.poll;
                    }
                    continue;
                }
                Acted::Event(event) => self.take(event),
                Acted::Failed(why) => {
                    debug!(why, "a service change waits");
                    self.note(&why);
                    false
                }
                Acted::Untried(why) => {
                    tries += 1;
                    warn!(why, tries, "the new certificate does not work yet");
                    tries >= self.pace.tries && self.take(Event::Tried(Err(why)))
                }
            };
            rest_until = Instant::now();
            if done {
                (backoff, tries) = (Backoff::new(self.pace.retry), 0);
            } else {
                rest_until += backoff.failed(&mut SystemRandom);
            }
            if resting {
                rest_until = Instant::now() + self.pace.poll;
            }
        }
    }

    /// Begins a renewal: from here on it goes the way of a change.
    fn renew(&mut self) {
        if let Some(due) = &mut self.due {
            due.begun();
        }
        let mut device = self.device.clone();
        if device.renew() && self.keep(device) {
            info!("key and certificate of the service are due to be renewed");
        }
    }

    /// Takes what claims to be a notice; true if there is something new to do.
    fn hear(&mut self, payload: &[u8]) -> bool {
        let site = &self.site;
        let keys = match &self.signers {
            Some(signers) => signers.trusted(),
            None => site.notice_keys.clone(),
        };
        let notice = match Notice::verify(payload, &keys, &site.site, site.device) {
            Ok(notice) => notice,
            Err(fault) => {
                self.refuse(&fault.to_string());
                return false;
            }
        };
        let mut device = self.device.clone();
        let heard = device.hear(&notice);
        match heard {
            Heard::Repeat | Heard::Ignored => return false,
            Heard::Stale => {
                self.refuse("the notice is older than one acted upon: it was replayed");
                return false;
            }
            Heard::Taken | Heard::Known | Heard::Superseded => {}
        }
        // The number is on the disk before anything follows from it.
        let kept = self.keep(device);
        if kept && heard == Heard::Taken {
            info!(issuer = %notice.issuer, "a service change is ordered");
        }
        kept && heard == Heard::Taken
    }

    fn refuse(&self, why: &str) {
        warn!(why, "a notice about the service is refused");
        self.board.tell(|status| status.notices_refused += 1);
    }

    /// Takes an event; true if it changed something that is now stored.
    fn take(&mut self, event: Event) -> bool {
        if let Event::Answer(Answer::Refused { refusal, text }) = &event {
            warn!(refusal = refusal.word(), text, "the register refuses");
            self.note(text);
        }
        let mut device = self.device.clone();
        let home = Home {
            device: self.site.device,
            site: &self.site.site,
            domain: &self.site.domain,
        };
        device.on(event, home) && self.keep(device)
    }

    /// Stores a new state; it holds only if that worked.
    fn keep(&mut self, device: Device) -> bool {
        match self.store.keep(&device) {
            Ok(()) => {
                self.device = device;
                true
            }
            Err(error) => {
                warn!(%error, "the state of the services cannot be stored; trying again");
                self.note(&error.to_string());
                false
            }
        }
    }

    fn note(&self, why: &str) {
        self.board
            .tell(|status| status.service_detail = why.to_owned());
    }

    /// Brings what people and servers are told up to date.
    fn tell(&mut self) {
        let running = self.device.running();
        let runs = running.map(|it| it.assignment.service.to_string());
        let said = self.device.reported();
        self.board.tell(|status| {
            status.service.clone_from(&runs);
            let state = said.map(|said| said.state.word().to_owned());
            // What was noted before the order came so far is over.
            let is_further = status.service_state != state;
            status.service_state = state;
            if let Some(said) = said.filter(|said| is_further || !said.detail.is_empty()) {
                status.service_detail.clone_from(&said.detail);
            }
        });
        let report = said.map(|said| {
            let wanted = &said.assignment;
            let report = json!({
                "wanted": wanted.service.as_str(),
                "server": wanted.server.as_ref().map(|server| server.server.as_str()),
                "application": wanted.application.as_ref().map(|it| it.as_str()),
                "state": said.state.word(),
                "detail": said.detail,
                "runs": runs,
                "serial": running.map(|it| it.serial.to_string()),
                "in_use": running.is_some(),
            });
            report.to_string().into_bytes()
        });
        let due = self.due.as_mut();
        self.runs.send_if_modified(|known| {
            let changed = known.as_ref().map(|it| &it.serial) != running.map(|it| &it.serial);
            if changed {
                *known = running.cloned().map(Arc::new);
                if let (Some(due), Some(running)) = (due, running) {
                    due.changed(running);
                }
            }
            changed
        });
        self.report.send_if_modified(|kept| {
            let changed = *kept != report;
            *kept = report;
            changed
        });
    }
}

/// The same report of a device that is being switched off; none if nothing was in use.
pub(crate) fn out_of_use(report: &[u8]) -> Option<Vec<u8>> {
    let mut report: serde_json::Value = serde_json::from_slice(report).ok()?;
    let was = report.get_mut("in_use")?;
    if was.as_bool() != Some(true) {
        return None;
    }
    *was = json!(false);
    Some(report.to_string().into_bytes())
}

/// What came of acting.
enum Acted {
    Event(Event),
    Notice(Option<Vec<u8>>),
    Failed(String),
    Untried(String),
}

/// Returns once what runs is to be renewed, if that is looked after.
async fn renewal(due: Option<&Due>, running: Option<&Running>) {
    match due {
        Some(due) => due.come(running).await,
        None => std::future::pending().await,
    }
}

/// Does what is to be done, not before `rest_until`. Cut off anywhere, it is done again.
async fn act<W: Wire>(
    wire: &W,
    key: &SigningKey,
    device: holdfast_protocol::id::DeviceId,
    next: Next,
    rest_until: Instant,
) -> Acted {
    tokio::time::sleep_until(rest_until).await;
    let request = match next {
        Next::MakeKey => return Acted::Event(Event::Key(SigningKey::generate(&mut SystemRandom))),
        Next::Try(new) => return try_out(wire, &new).await,
        Next::Ask(request) => request,
        // Nothing to do: a notice may have been missed.
        Next::Rest => Request {
            device,
            kind: RequestKind::Poll,
        },
    };
    match wire.ask(request.sign(key)).await {
        Ok(Answer::Notice(notice)) => Acted::Notice(notice),
        Ok(Answer::Refused {
            refusal: Refusal::Unavailable,
            text,
        }) => Acted::Failed(text),
        Ok(answer) => Acted::Event(Event::Answer(answer)),
        Err(why) => Acted::Failed(why),
    }
}

async fn try_out<W: Wire>(wire: &W, new: &Running) -> Acted {
    match wire.try_out(new).await {
        Ok(()) => {
            info!(service = %new.assignment.service, serial = %new.serial, "the new service runs");
            Acted::Event(Event::Tried(Ok(())))
        }
        Err(why) => Acted::Untried(why),
    }
}

#[cfg(test)]
mod tests;
