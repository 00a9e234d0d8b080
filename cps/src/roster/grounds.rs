//! On what standing sessions lean, while there are two roots: who has shown a chain to the present one is
//! sure; who has not is cut when the earlier one is believed no longer, and let in again if it has
//! another certificate. Kept by [`super::Roster`], told of roots by `authority`. A session does not
//! keep its chain, so this remembers serial numbers, and only while it matters.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_link::time::Time;
use holdfast_link::tls::{Anchors, PeerFault, Purpose, verify_chain};
use holdfast_protocol::record::Serial;
use tokio::time::Instant;

/// For so long after a root went, whoever comes is looked at: its handshake may have been before.
const WINDOW: Duration = Duration::from_secs(60);
/// Serial numbers remembered; the session of one more is cut when a root goes, and comes back.
const MOST: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Grounds(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Fingerprints are not enough: they are compared and built upon. The present one first.
    roots: Vec<Vec<u8>>,
    /// The present one, and all.
    anchors: Option<(Anchors, Anchors)>,
    /// Who has shown a chain to the present one.
    sure: BTreeSet<String>,
    /// When one went last.
    gone: Option<Instant>,
}

impl State {
    fn is_watchful(&self) -> bool {
        self.roots.len() > 1 || self.gone.is_some_and(|gone| gone.elapsed() < WINDOW)
    }
}

impl Grounds {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These roots are believed from now on, the present one first. Whether one went.
    pub(super) fn believe(&self, roots: Vec<Vec<u8>>) -> bool {
        let mut state = self.lock();
        let new = |root: &Vec<u8>| !state.roots.contains(root);
        let went = state.roots.iter().any(|root| !roots.contains(root));
        if roots.iter().any(new) {
            state.sure.clear();
        }
        if went {
            state.gone = Some(Instant::now());
        }
        let present = Anchors::new(roots.iter().take(1).cloned());
        let all = Anchors::new(roots.iter().cloned());
        state.anchors = present.ok().zip(all.ok());
        state.roots = roots;
        went
    }

    /// Whether who shows this chain leads to a root that is believed; notes whose is the present one.
    pub(super) fn hold(&self, serial: &Serial, chain: &[Vec<u8>], now: Time) -> bool {
        let anchors = {
            let state = self.lock();
            match state.is_watchful() {
                true => state.anchors.clone(),
                false => None,
            }
        };
        let (Some((present, all)), Some((leaf, above))) = (anchors, chain.split_first()) else {
            return true;
        };
        let above: Vec<_> = above.iter().cloned().map(Into::into).collect();
        let leaf = leaf.clone().into();
        let leads = |to: &Anchors| verify_chain(&leaf, &above, to, Purpose::Client, None, now);
        if leads(&present).is_ok() {
            let mut state = self.lock();
            if state.sure.len() < MOST {
                state.sure.insert(serial.to_string());
            }
            return true;
        }
        // Whatever else is wrong with it is not for here.
        let fault = leads(&all);
        !matches!(
            fault,
            Err(PeerFault::UnknownIssuer | PeerFault::BadSignature)
        )
    }

    /// Whether a session by that certificate stands on a root that went.
    pub(super) fn went(&self, serial: &Serial) -> bool {
        let state = self.lock();
        let recently = state.gone.is_some_and(|gone| gone.elapsed() < WINDOW);
        recently && !state.sure.contains(&serial.to_string())
    }
}
