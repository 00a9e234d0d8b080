//! What many peers may cause often is logged once a minute each: a flood must not fill the log, and
//! must not go unseen. Asked by the rooms before they log; the counters count each time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the same thing is not said again.
const REST: Duration = Duration::from_secs(60);
/// Looking through all that was said is worth it so often.
const SWEEP: Duration = Duration::from_secs(1);
/// Most different things remembered; beyond it new ones are counted and not said.
const MOST: usize = 4_096;

/// When what was said last, and how often it happened since.
#[derive(Debug)]
pub(crate) struct Quiet<K>(Mutex<Said<K>>);

#[derive(Debug)]
struct Said<K> {
    about: HashMap<K, (Instant, u64)>,
    /// When what is long past was last forgotten.
    swept: Option<Instant>,
}

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(Mutex::new(Said {
            about: HashMap::new(),
            swept: None,
        }))
    }
}

impl<K: Eq + Hash> Quiet<K> {
    /// Whether this is to be said now; if so, how often it was left unsaid before.
    pub(crate) fn admits(&self, what: K) -> Option<u64> {
        let now = Instant::now();
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match said.about.get_mut(&what) {
            Some((last, unsaid)) if now.duration_since(*last) < REST => {
                *unsaid += 1;
                return None;
            }
            Some((last, unsaid)) => {
                *last = now;
                return Some(std::mem::take(unsaid));
            }
            None => {}
        }
        let due = said
            .swept
            .is_none_or(|last| now.duration_since(last) >= SWEEP);
        if said.about.len() >= MOST && due {
            said.swept = Some(now);
            said.about
                .retain(|_, (last, _)| now.duration_since(*last) < REST);
        }
        if said.about.len() >= MOST {
            return None;
        }
        said.about.insert(what, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn said_once_a_minute_and_how_often_it_was_not() {
        let quiet = Quiet::default();
        assert_eq!(quiet.admits("a"), Some(0));
        assert_eq!(quiet.admits("b"), Some(0));
        for _ in 0..7 {
            assert_eq!(quiet.admits("a"), None);
        }
        tokio::time::advance(REST).await;
        assert_eq!(quiet.admits("a"), Some(7));
        assert_eq!(quiet.admits("a"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_different_things_takes_no_more_memory() {
        let quiet = Quiet::default();
        for number in 0..2 * MOST {
            quiet.admits(number);
        }
        assert_eq!(quiet.0.lock().unwrap().about.len(), MOST);
        tokio::time::advance(REST).await;
        assert_eq!(quiet.admits(usize::MAX), Some(0), "room again");
        assert_eq!(quiet.0.lock().unwrap().about.len(), 1);
    }
}
