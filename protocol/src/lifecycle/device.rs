//! The device's side (210): what it has, what it wants, and what it is to do next.
//!
//! Kept by `device-agent`, which stores it whole ([`Device::to_cbor`]) after every change and before
//! it does what [`Device::next`] asks for. So a device that is killed anywhere goes on where it was:
//! each thing asked for may be done twice. The old key stays until the new certificate has worked.
//! A renewal ([`Device::renew`]) goes the same way for the service that runs.

use super::{
    Answer, Credential, Outcome, Refusal,
    message::{Request, RequestKind},
};
use crate::{
    certificate::{Leaf, Purpose},
    crypto::SigningKey,
    csr,
    id::{DeviceId, Domain, SiteId},
    name::Party,
    notice::{Body, Gate, Marks, Notice},
    record::{Assignment, Serial},
};

mod stored;

/// Where the device is at home: its certificates must say so.
#[derive(Debug, Clone, Copy)]
pub struct Home<'a> {
    /// Its id.
    pub device: DeviceId,
    /// Its site.
    pub site: &'a SiteId,
    /// The domain of its owner.
    pub domain: &'a Domain,
}

/// A service with the key and certificate that it is taken by.
#[derive(Debug, Clone)]
pub struct Running {
    /// Service, server, application.
    pub assignment: Assignment,
    /// The key, made by the device.
    pub key: SigningKey,
    /// DER.
    pub certificate: Vec<u8>,
    /// Intermediates, DER.
    pub chain: Vec<Vec<u8>>,
    /// Of the certificate.
    pub serial: Serial,
}

/// How the last order went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is being carried out.
    Changing,
    /// It runs.
    Runs,
    /// It could not be taken; what ran before runs.
    RolledBack,
    /// The register said no; what ran before runs.
    Refused,
    /// The device works for no service any more, as ordered.
    Ended,
}

impl State {
    /// The word for reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Changing => "changing",
            Self::Runs => "runs",
            Self::RolledBack => "rolled back",
            Self::Refused => "refused",
            Self::Ended => "ended",
        }
    }
}

/// What is told of the last order, on `service/reported`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// What was ordered.
    pub assignment: Assignment,
    /// How it went.
    pub state: State,
    /// Why, if not well.
    pub detail: String,
}

/// What is to be done next.
#[derive(Debug, Clone)]
pub enum Next {
    /// Nothing.
    Rest,
    /// Draw a key pair: [`Event::Key`].
    MakeKey,
    /// Send this to the register: [`Event::Answer`].
    Ask(Request),
    /// Connect by this and publish: [`Event::Tried`].
    Try(Box<Running>),
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A key pair was drawn.
    Key(SigningKey),
    /// The register answered what was asked last.
    Answer(Answer),
    /// The certificate was tried: it works, or why not.
    Tried(Result<(), String>),
}

/// What became of a verified notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It will be carried out. Store first.
    Taken,
    /// It says what is known already, under a newer number. Store the number.
    Known,
    /// A newer number for an order that a later one replaced. Store the number.
    Superseded,
    /// The one acted upon last.
    Repeat,
    /// Older than what was acted upon: a replay.
    Stale,
    /// Not about services.
    Ignored,
}

#[derive(Debug, Clone)]
enum Step {
    Rest,
    Wanted,
    Asking(SigningKey),
    Trying(Box<Running>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    rank: u64,
    /// Nothing: an end of use.
    assignment: Option<Assignment>,
}

/// All that a device knows of its services.
#[derive(Debug, Clone)]
pub struct Device {
    marks: Marks,
    order: Option<Order>,
    credential: Option<Credential>,
    running: Option<Running>,
    step: Step,
    /// Whether the steps are for what runs already, not for the order.
    renews: bool,
    report: Option<(Serial, Outcome)>,
    said: Option<Reported>,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            marks: Marks::default(),
            order: None,
            credential: None,
            running: None,
            step: Step::Rest,
            renews: false,
            report: None,
            said: None,
        }
    }
}

impl Device {
    /// What it works for.
    #[must_use]
    pub fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// How the last order went; none if there never was one.
    #[must_use]
    pub fn reported(&self) -> Option<&Reported> {
        self.said.as_ref()
    }

    /// Whether it has its credential.
    #[must_use]
    pub fn is_activated(&self) -> bool {
        self.credential.is_some()
    }

    /// Takes a notice that [`Notice::verify`] accepted.
    pub fn hear(&mut self, notice: &Notice) -> Heard {
        let (assignment, rank) = match &notice.body {
            Body::Service { assignment, rank } => (Some(assignment.clone()), rank),
            Body::ServiceEnd { rank } => (None, rank),
            _ => return Heard::Ignored,
        };
        match self.marks.gate(notice) {
            Gate::Store(marks) => self.marks = marks,
            Gate::Repeat => return Heard::Repeat,
            Gate::Stale => return Heard::Stale,
            Gate::Ignore => return Heard::Ignored,
        }
        match &self.order {
            Some(order) if *rank < order.rank => return Heard::Superseded,
            Some(order) if *rank == order.rank && order.assignment == assignment => {
                return Heard::Known;
            }
            _ => {}
        }
        let rank = *rank;
        self.renews = false;
        if assignment.is_none() {
            self.end();
        }
        self.order = Some(Order { rank, assignment });
        if self
            .order
            .as_ref()
            .is_some_and(|order| order.assignment.is_some())
        {
            self.step = Step::Wanted;
            self.say(State::Changing, String::new());
        }
        Heard::Taken
    }

    /// All keys for services go; the certificate given last is reported, since that is what the register takes to run.
    fn end(&mut self) {
        let said = self.order.take().and_then(|order| order.assignment);
        let running = self.running.take();
        let said = running.as_ref().map(|it| it.assignment.clone()).or(said);
        let last = match std::mem::replace(&mut self.step, Step::Rest) {
            Step::Trying(new) => Some(new.serial),
            _ => running.map(|it| it.serial),
        };
        if let Some(serial) = last {
            self.report = Some((serial, Outcome::Ended));
        }
        self.said = said.map(|assignment| Reported {
            assignment,
            state: State::Ended,
            detail: String::new(),
        });
    }

    /// Begins a renewal of key and certificate of what runs; false if nothing does, or other things
    /// come first. Store then.
    pub fn renew(&mut self) -> bool {
        let is_free = matches!(self.step, Step::Rest) && self.report.is_none();
        if is_free && self.running.is_some() {
            self.step = Step::Wanted;
            self.renews = true;
            return true;
        }
        false
    }

    /// Whether what is being done is a renewal.
    #[must_use]
    pub fn is_renewing(&self) -> bool {
        self.renews
    }

    /// What is ordered, if anything.
    fn wanted(&self) -> Option<&Assignment> {
        self.order.as_ref()?.assignment.as_ref()
    }

    /// What the steps are for.
    fn aim(&self) -> Option<&Assignment> {
        match self.renews {
            true => self.running.as_ref().map(|it| &it.assignment),
            false => self.wanted(),
        }
    }

    /// What is to be done, by a device with the given id. Done again after a crash.
    #[must_use]
    pub fn next(&self, device: DeviceId) -> Next {
        let ask = |kind| Next::Ask(Request { device, kind });
        if let Some((serial, outcome)) = &self.report {
            return ask(RequestKind::Report {
                serial: serial.clone(),
                outcome: *outcome,
            });
        }
        match (&self.step, self.aim(), &self.credential) {
            (Step::Rest, _, _) | (_, None, _) => Next::Rest,
            (Step::Trying(new), _, _) => Next::Try(new.clone()),
            (_, Some(wanted), None) => ask(RequestKind::Activate {
                service: Some(wanted.service.clone()),
            }),
            (Step::Wanted, _, Some(_)) => Next::MakeKey,
            (Step::Asking(key), Some(wanted), Some(credential)) => ask(RequestKind::Update {
                service: wanted.service.clone(),
                credential: credential.clone(),
                csr: csr::request(device.as_str(), key),
            }),
        }
    }

    /// Takes what happened; false if it has no place here and nothing changed. Else store.
    pub fn on(&mut self, event: Event, home: Home<'_>) -> bool {
        match event {
            Event::Key(key) => match self.step {
                Step::Wanted if self.report.is_none() && self.credential.is_some() => {
                    self.step = Step::Asking(key);
                    true
                }
                _ => false,
            },
            Event::Answer(answer) if self.report.is_some() => self.on_noted(&answer),
            Event::Answer(answer) => self.on_answer(answer, home),
            Event::Tried(_) if self.report.is_some() => false,
            Event::Tried(tried) => self.on_tried(tried),
        }
    }

    fn on_noted(&mut self, answer: &Answer) -> bool {
        let settled = match answer {
            Answer::Noted => true,
            Answer::Refused { refusal, .. } => !is_passing(*refusal),
            _ => false,
        };
        if settled {
            self.report = None;
        }
        settled
    }

    fn on_answer(&mut self, answer: Answer, home: Home<'_>) -> bool {
        let wants = self.credential.is_none() && !matches!(self.step, Step::Rest | Step::Trying(_));
        match (&self.step, answer) {
            (_, Answer::Activated { credential, .. }) if wants => {
                self.credential = Some(credential);
                true
            }
            (
                Step::Asking(key),
                Answer::Granted {
                    service,
                    certificate,
                    chain,
                },
            ) if !wants => {
                let key = key.clone();
                match self.check(&certificate, &key, home) {
                    Ok((assignment, serial)) if assignment.service == service => {
                        self.step = Step::Trying(Box::new(Running {
                            assignment,
                            key,
                            certificate,
                            chain,
                            serial,
                        }));
                    }
                    Ok(_) => self.fail(State::Refused, "a certificate for another service came"),
                    Err(why) => self.fail(State::Refused, &why),
                }
                true
            }
            (Step::Wanted | Step::Asking(_), Answer::Refused { refusal, text }) => {
                match refusal {
                    // A renewal is begun again later; until then the device asks for what it may have missed.
                    refusal if is_passing(refusal) => match self.renews {
                        true if refusal != Refusal::Unavailable => self.fail(State::Refused, &text),
                        _ => return false,
                    },
                    // The server that gave it cannot be heard by this one: get another.
                    Refusal::NotActivated => {
                        self.credential = None;
                        self.step = Step::Wanted;
                    }
                    _ => self.fail(State::Refused, &text),
                }
                true
            }
            _ => false,
        }
    }

    fn on_tried(&mut self, tried: Result<(), String>) -> bool {
        let Step::Trying(new) = &self.step else {
            return false;
        };
        let new = (**new).clone();
        match tried {
            Ok(()) => {
                self.report = Some((new.serial.clone(), Outcome::Runs));
                // The old key goes here, and not before.
                self.running = Some(new);
                self.settle(State::Runs, "");
            }
            Err(why) => {
                self.report = Some((new.serial, Outcome::RolledBack));
                self.fail(State::RolledBack, &why);
            }
        }
        true
    }

    /// The new key goes; the old one, if any, was never touched.
    fn fail(&mut self, state: State, why: &str) {
        self.settle(state, why);
    }

    /// Comes to rest. A renewal is no order: what was told of the last one stays.
    fn settle(&mut self, state: State, detail: &str) {
        self.step = Step::Rest;
        if !std::mem::take(&mut self.renews) {
            self.say(state, detail.to_owned());
        }
    }

    fn say(&mut self, state: State, detail: String) {
        self.said = self.wanted().cloned().map(|assignment| Reported {
            assignment,
            state,
            detail: detail.chars().take(MAX_DETAIL).collect(),
        });
    }

    /// Whether a certificate is what was asked for.
    fn check(
        &self,
        certificate: &[u8],
        key: &SigningKey,
        home: Home<'_>,
    ) -> Result<(Assignment, Serial), String> {
        let leaf = Leaf::inspect(certificate, home.domain, Purpose::Client);
        let leaf = leaf.map_err(|fault| format!("the certificate given is bad: {fault}"))?;
        let assignment = self.aim().cloned().ok_or("nothing was ordered")?;
        let party = Party::Service {
            device: home.device,
            service: assignment.service.clone(),
            site: home.site.clone(),
        };
        if leaf.party != party {
            return Err(format!("the certificate given names {}", leaf.party));
        }
        if leaf.key != key.public() {
            return Err("the certificate given is over another key".to_owned());
        }
        Ok((assignment, leaf.serial))
    }
}

/// Longest detail kept and told, in characters.
const MAX_DETAIL: usize = 300;

/// Whether the same request may succeed later without anybody's doing at the device.
fn is_passing(refusal: Refusal) -> bool {
    // A register that was cut off may learn of the device and its order from the other one.
    matches!(
        refusal,
        Refusal::Unavailable
            | Refusal::UnknownDevice
            | Refusal::NoService
            | Refusal::WrongService
            | Refusal::Unknown(_)
    )
}
