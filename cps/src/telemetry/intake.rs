//! Takes messages into the ledger from wherever they wait: read, record, let go. Driven by the
//! binaries, which put their broker's durable consumer behind [`Inbox`]. What was read twice is a
//! repeat that the ledger drops, so a kill at any point loses nothing and doubles nothing.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy};
use holdfast_link::time::Clock;
use holdfast_store::StoreError;
use tokio_util::sync::CancellationToken;

use super::{Ledger, Message};

/// Waits after a fault of the ledger or of what is before it.
const RETRY: Policy = Policy {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(5),
};

/// Where messages wait durably until the ledger has them.
pub trait Inbox: Send {
    /// Why it fails.
    type Error: Display + Send;

    /// Waits for messages and gives at most `max` that were not given yet, each with its row.
    fn next(
        &mut self,
        max: usize,
    ) -> impl Future<Output = Result<Vec<(u64, Message)>, Self::Error>> + Send;

    /// The ledger has these rows: they may go, for good.
    fn done(&mut self, rows: &[u64]) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// What was given and is not done is to be given again.
    fn rewind(&mut self);
}

/// Moves messages from `inbox` into `ledger` until cancelled, at most `batch` in one commit. Faults
/// are waited out: the messages are safe where they are.
pub async fn take_in<I: Inbox>(
    mut inbox: I,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    batch: usize,
    cancel: CancellationToken,
) {
    let mut backoff = Backoff::new(RETRY);
    loop {
        let moved = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            moved = step(&mut inbox, &ledger, &*clock, batch.max(1)) => moved,
        };
        let Err(fault) = moved else {
            backoff.worked();
            continue;
        };
        tracing::warn!(%fault, "telemetry waits in the journal");
        inbox.rewind();
        let wait = tokio::time::sleep(backoff.failed(&mut SystemRandom));
        if cancel.run_until_cancelled(wait).await.is_none() {
            return;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault<E: Display> {
    #[error("{0}")]
    Inbox(E),
    #[error(transparent)]
    Ledger(#[from] StoreError),
}

async fn step<I: Inbox>(
    inbox: &mut I,
    ledger: &Ledger,
    clock: &dyn Clock,
    batch: usize,
) -> Result<(), Fault<I::Error>> {
    let given = inbox.next(batch).await.map_err(Fault::Inbox)?;
    let (rows, messages): (Vec<u64>, Vec<Message>) = given.into_iter().unzip();
    if rows.is_empty() {
        return Ok(());
    }
    ledger.record_all(messages, clock.read()).await?;
    inbox.done(&rows).await.map_err(Fault::Inbox)
}

#[cfg(test)]
mod tests {
    use holdfast_link::time::ManualClock;
    use holdfast_store::{Medium, Options, Store};

    use super::*;
    use crate::metrics::Metrics;
    use crate::telemetry::{Query, prepare};

    /// Ten messages; letting go of them fails at first, after the ledger already has them.
    struct Shelf {
        waiting: Vec<u64>,
        place: usize,
        faults: usize,
        cancel: CancellationToken,
    }

    impl Inbox for Shelf {
        type Error = &'static str;

        async fn next(&mut self, max: usize) -> Result<Vec<(u64, Message)>, &'static str> {
            let rest = &self.waiting[self.place.min(self.waiting.len())..];
            if rest.is_empty() {
                self.cancel.cancel();
                std::future::pending::<()>().await;
            }
            let given: Vec<_> = rest
                .iter()
                .take(max)
                .map(|row| (*row, message(*row)))
                .collect();
            self.place += given.len();
            Ok(given)
        }

        async fn done(&mut self, rows: &[u64]) -> Result<(), &'static str> {
            if self.faults > 0 {
                self.faults -= 1;
                return Err("no space");
            }
            self.waiting.retain(|row| !rows.contains(row));
            self.place = 0;
            Ok(())
        }

        fn rewind(&mut self) {
            self.place = 0;
        }
    }

    fn message(seq: u64) -> Message {
        Message {
            source: "d".into(),
            topic: "t".into(),
            epoch: 1,
            seq,
            payload: vec![0; 8].into(),
        }
    }

    #[tokio::test]
    async fn a_fault_after_recording_doubles_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let medium = Medium::File(folder.path().join("ledger.redb"));
        let store = Store::open(medium, Options::default(), prepare).unwrap();
        let ledger = Ledger::new(store, 100, Metrics::default());
        let cancel = CancellationToken::new();
        let shelf = Shelf {
            waiting: (1..=10).collect(),
            place: 0,
            faults: 2,
            cancel: cancel.clone(),
        };
        let clock = Arc::new(ManualClock::at(1));
        take_in(shelf, ledger.clone(), clock, 4, cancel).await;
        let query = Query {
            source: "d".into(),
            topic: None,
            after: None,
            max: 100,
        };
        let seqs: Vec<u64> = ledger
            .query(&query)
            .unwrap()
            .iter()
            .map(|row| row.message.seq)
            .collect();
        assert_eq!(seqs, (1..=10).collect::<Vec<_>>());
    }
}
