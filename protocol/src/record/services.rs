//! Which service a device works for, and which it has worked for: the facts and their fold.
//!
//! Part of a device's record ([`super::DeviceRecord::services`]); written by `cps` when a device is
//! activated, ordered to another service (S340), or given its certificate for one (S320). Numerals:
//! service-providing server 230, history table of claim 3. See rule 5 of the module `record`.

use std::collections::BTreeSet;

use super::{
    change::{Change, Serial},
    entry::{Entry, EntryId, Order, RecordFault},
};
use crate::{
    id::{Application, ServiceId},
    site_module::ServerAddress,
    time::Time,
    wire::cbor::{CborError, Reader, Writer},
};

/// Longest id as text.
const MAX_ID: usize = 80;

/// A service, and where and with what the device takes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Assignment {
    /// Which service.
    pub service: ServiceId,
    /// The service-providing server (230), if it is not the one that serves the device anyway.
    pub server: Option<ServerAddress>,
    /// The application program that goes with it, if another one.
    pub application: Option<Application>,
    /// The service forbids that servers of the site stand in for the one named while it is out of reach.
    pub alone: bool,
}

impl Assignment {
    /// `[service, server / null, application / null]`, and a fourth element `true` if nobody may stand in.
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.array(if self.alone { 4 } else { 3 });
        w.text(self.service.as_str());
        match &self.server {
            Some(server) => server.encode(w),
            None => _ = w.null(),
        }
        match &self.application {
            Some(application) => _ = w.text(application.as_str()),
            None => _ = w.null(),
        }
        if self.alone {
            w.bool(true);
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, RecordFault> {
        let len = r.array_len(4)?;
        if len < 3 {
            return Err(CborError::Value("array length").into());
        }
        Ok(Self {
            service: r.text(MAX_ID)?.parse()?,
            server: match r.null() {
                true => None,
                false => Some(ServerAddress::decode(r).map_err(|_| RecordFault::Address)?),
            },
            application: match r.null() {
                true => None,
                false => Some(r.text(MAX_ID)?.parse()?),
            },
            alone: match len {
                3 => false,
                // One form for one meaning.
                _ if r.bool()? => true,
                _ => return Err(CborError::Value("array length").into()),
            },
        })
    }
}

/// The device was given a credential.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Activation {
    /// Which entry says so.
    pub order: Order,
    /// SHA-256 of the credential: the log never holds the credential itself.
    pub credential: [u8; 32],
}

/// The device shall work for a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceOrder {
    /// Which entry says so; `order.rank` goes into the notice.
    pub order: Order,
    /// When, as well as the server knew.
    pub at: Time,
    /// For which.
    pub assignment: Assignment,
}

/// A turn of the device's history. One entry closes what ran before and opens what runs now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    order: Order,
    at: Time,
    /// What runs from here on, and by which certificate; nothing after an end of use.
    runs: Option<(Assignment, Serial)>,
}

/// One line of the history: a service, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// Service, server, application.
    pub assignment: Assignment,
    /// When it began, as well as the server knew; the order needs no clock.
    pub start: Time,
    /// The entry that says so.
    pub started: EntryId,
    /// When it ended; still runs when `None`.
    pub end: Option<Time>,
    /// The entry that says so.
    pub ended: Option<EntryId>,
    /// All certificates given for it, oldest first, those included that did not work at the device.
    pub serials: Vec<Serial>,
    /// When key and certificate were renewed, oldest first; what the device went back from is not here.
    pub renewals: Vec<Renewed>,
}

/// A new key and certificate for a service that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// The new certificate.
    pub serial: Serial,
    /// When, as well as the server knew.
    pub at: Time,
    /// The entry that says so.
    pub entry: EntryId,
}

impl Period {
    /// The same service again: a renewal, or back to a certificate of before.
    fn go_on(&mut self, turn: &Turn, serial: &Serial) {
        if self.serials.contains(serial) {
            let at = self.renewals.iter().position(|one| one.serial == *serial);
            self.renewals.truncate(at.map_or(0, |at| at + 1));
            return;
        }
        self.serials.push(serial.clone());
        self.renewals.push(Renewed {
            serial: serial.clone(),
            at: turn.at,
            entry: turn.order.id.clone(),
        });
    }
}

/// All that is known of a device's services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    activations: BTreeSet<Activation>,
    orders: BTreeSet<ServiceOrder>,
    /// Orders to work for nothing.
    ends: BTreeSet<Order>,
    turns: BTreeSet<Turn>,
}

impl Services {
    /// Adds what an entry says; kinds of change that are not about services are ignored.
    pub(super) fn apply(&mut self, entry: &Entry) {
        let turn = |runs| Turn {
            order: entry.order(),
            at: entry.at,
            runs,
        };
        match &entry.change {
            Change::ServiceActivated { credential } => {
                _ = self.activations.insert(Activation {
                    order: entry.order(),
                    credential: *credential,
                })
            }
            Change::ServiceOrdered(assignment) => {
                _ = self.orders.insert(ServiceOrder {
                    order: entry.order(),
                    at: entry.at,
                    assignment: (**assignment).clone(),
                })
            }
            Change::ServiceStarted { assignment, serial } => {
                self.turns
                    .insert(turn(Some(((**assignment).clone(), serial.clone()))));
            }
            Change::ServiceEnded => _ = self.turns.insert(turn(None)),
            Change::ServiceEndOrdered => _ = self.ends.insert(entry.order()),
            _ => {}
        }
    }

    /// Joins what another side knows. Commutative, associative, idempotent.
    pub(super) fn merge(&mut self, other: &Self) {
        self.activations.extend(other.activations.iter().cloned());
        self.orders.extend(other.orders.iter().cloned());
        self.ends.extend(other.ends.iter().cloned());
        self.turns.extend(other.turns.iter().cloned());
    }

    /// The activation with the highest order.
    #[must_use]
    pub fn activation(&self) -> Option<&Activation> {
        self.activations.last()
    }

    /// Whether the device was given the credential of that digest. Two servers that cannot hear each
    /// other may both have given it one; each is as good.
    #[must_use]
    pub fn knows(&self, digest: &[u8; 32]) -> bool {
        self.activations.iter().any(|one| one.credential == *digest)
    }

    /// The order that holds: the highest, unless it was an order to work for nothing.
    #[must_use]
    pub fn desired(&self) -> Option<&ServiceOrder> {
        self.orders
            .last()
            .filter(|order| self.ends.last() < Some(&order.order))
    }

    /// The order to work for nothing, if that is the one that holds.
    #[must_use]
    pub fn end_ordered(&self) -> Option<&Order> {
        let last = self.orders.last().map(|order| &order.order);
        self.ends.last().filter(|end| Some(*end) > last)
    }

    /// What runs, and by which certificate.
    #[must_use]
    pub fn running(&self) -> Option<(&Assignment, &Serial)> {
        let (assignment, serial) = self.turns.last()?.runs.as_ref()?;
        Some((assignment, serial))
    }

    /// Place of the last start or end.
    #[must_use]
    pub fn last_turn(&self) -> Option<&Order> {
        self.turns.last().map(|turn| &turn.order)
    }

    /// Whether the device was given a certificate for this order since it was given.
    #[must_use]
    pub fn was_granted(&self, order: &ServiceOrder) -> bool {
        let since = self.turns.iter().rev();
        let mut since = since.take_while(|turn| turn.order > order.order);
        since.any(|turn| matches!(&turn.runs, Some((one, _)) if *one == order.assignment))
    }

    /// Where a device goes back to from the certificate `serial`: to the oldest before it that is not
    /// void. Once one works all older ones are void, so that is the one the device holds; what came
    /// between the two was given out and its answer lost.
    #[must_use]
    pub fn before(
        &self,
        serial: &Serial,
        void: &BTreeSet<Serial>,
    ) -> Option<(&Assignment, &Serial)> {
        let runs = self.turns.iter().filter_map(|turn| turn.runs.as_ref());
        let mut earlier = runs.take_while(|(_, one)| one != serial);
        earlier
            .find(|(_, one)| !void.contains(one))
            .map(|(assignment, serial)| (assignment, serial))
    }

    /// The history, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Period> {
        let mut periods: Vec<Period> = Vec::new();
        for turn in &self.turns {
            let open = periods.last_mut().filter(|period| period.end.is_none());
            match (open, &turn.runs) {
                (Some(open), Some((assignment, serial))) if open.assignment == *assignment => {
                    open.go_on(turn, serial);
                    continue;
                }
                (Some(open), _) => {
                    open.end = Some(turn.at);
                    open.ended = Some(turn.order.id.clone());
                }
                (None, _) => {}
            }
            if let Some((assignment, serial)) = &turn.runs {
                periods.push(Period {
                    assignment: assignment.clone(),
                    start: turn.at,
                    started: turn.order.id.clone(),
                    end: None,
                    ended: None,
                    serials: vec![serial.clone()],
                    renewals: Vec::new(),
                });
            }
        }
        periods
    }
}
