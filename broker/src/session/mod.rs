//! Clients: their sessions, and the task that serves each connection.
//!
//! Called by `door` with a secured socket. The parts: `inbound` (packets of the client become entries,
//! answers and changes), `handover` (to the journal and back), `outbound` (what waits becomes bytes within the windows), `inflight` (what
//! was sent and is not acknowledged), `registry` (who is here, takeover, expiry), `start` (CONNECT),
//! `run` (the loop over socket, mailbox and timer), `ending` and `wills` (what comes after). Packets and
//! windows are plain code without I/O.

mod delivered;
mod ending;
mod handover;
mod inbound;
mod inflight;
mod keepsake;
mod outbound;
mod registry;
mod run;
mod silence;
mod speech;
mod start;
mod subscriptions;
#[cfg(test)]
mod tests;
mod unwritten;
mod wills;

pub(crate) use registry::{Cell, Held, Sessions};
pub(crate) use run::{Connection, enter};
pub(crate) use subscriptions::subscription;
pub(crate) use wills::Wills;
