//! Opening what a server keeps in its state folder: the stores of CPS, and the broker with its journal.
//! Called by each server's `app` when it is built.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_broker::{Broker, JournalMedium, OpenError, Wall};
use holdfast_cps::{Cps, Stores};
use holdfast_store::{Damaged, Medium, Options, Store, StoreError};

use crate::config::{Journal, Peers, users};
use crate::epoch;
use crate::rights::ServerRights;
use crate::users::Users;

/// Disk space kept back for what must get through on a full disk.
const RESERVE: u64 = 8 << 20;

/// The stores of CPS in this folder.
///
/// # Errors
/// One of them cannot be opened.
pub fn stores(state: &Path) -> Result<Stores, StoreError> {
    // What a server knows must never begin empty by itself; what devices sent may.
    let registry = options("registry", Damaged::Refuse);
    let ledger = options("ledger", Damaged::Quarantine);
    Ok(Stores {
        registry: Store::open(medium(state, "registry"), registry, holdfast_cps::prepare)?,
        ledger: Store::open(
            medium(state, "ledger"),
            ledger,
            holdfast_cps::telemetry::prepare,
        )?,
    })
}

/// Where a store's file is.
#[must_use]
pub fn file(state: &Path, name: &str) -> PathBuf {
    state.join(format!("{name}.redb"))
}

/// The same as what a store is opened on.
#[must_use]
pub fn medium(state: &Path, name: &str) -> Medium {
    Medium::File(file(state, name))
}

/// How a store of a server is opened.
#[must_use]
pub fn options(name: &'static str, damaged: Damaged) -> Options {
    Options {
        name,
        damaged,
        reserve_bytes: RESERVE,
        ..Options::default()
    }
}

/// The users of the configured file at this server; none without one. A file that has become faulty
/// since the configuration was read lets nobody in, and says so.
///
/// # Errors
/// No randomness.
pub fn users(
    cps: &Cps,
    wanted: &crate::config::Clients,
) -> Result<Users, holdfast_broker::PasswordsError> {
    let listed = match wanted.file.as_deref().map(users::read) {
        Some(Ok(listed)) => listed,
        Some(Err(faults)) => {
            tracing::error!("nobody with a password is let in until this is corrected: {faults}");
            users::Users(Vec::new())
        }
        None => users::Users(Vec::new()),
    };
    let place = cps.roster().place().clone();
    Users::new(listed, place, wanted.guesses_per_minute)
}

/// The broker, and how often its journal began anew.
///
/// # Errors
/// The journal, or the file with the count.
pub fn broker(
    state: &Path,
    cps: &Cps,
    users: &Users,
    (peers, journal): (&Peers, &Journal),
) -> Result<(Broker, u64), OpenError> {
    let mut wanted = holdfast_broker::Config::default();
    wanted.limits.connections = peers.connections;
    wanted.limits.packet_bytes = usize::try_from(peers.packet.0).unwrap_or(usize::MAX);
    wanted.limits.journal_bytes = journal.max_bytes.0;
    wanted.connect_deadline = peers.handshake;
    // How long the broker was away must not hang on a clock that anybody can turn.
    let clock = Arc::clone(cps.clock());
    wanted.wall = Wall::new(move || clock.certain().secs);
    let rights = ServerRights::new(
        cps.roster().clone(),
        users.clone(),
        cps.config().domain.clone(),
        cps.metrics().clone(),
    );
    let path = file(state, "journal");
    let before = epoch::Before::look(&path);
    let broker = Broker::open(wanted, JournalMedium::File(path.clone()), Arc::new(rights))?;
    let epoch = before.after_opening(&path, &state.join("journal-epoch"))?;
    Ok((broker, epoch))
}
