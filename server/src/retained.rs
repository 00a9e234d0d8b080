//! Tells devices something by retained messages: looks what is due, publishes it, waits for more.
//!
//! Each kind of [`News`] says what is due and remembers what was told; the loop here is the same for all.
//! A burst of changes in the registry is looked at once; a fault, of the registry or of the broker, is
//! tried again after a rest, and what was told before it is not told twice.

use std::future::Future;
use std::time::Duration;

use holdfast_broker::{Broker, Message, Qos};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::topic::Topic;
use holdfast_store::StoreError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Rest after a fault.
const RETRY: Duration = Duration::from_secs(2);

/// One message to one device; it holds until the next on its topic, so that a device that is away finds it
/// when it comes.
#[derive(Debug)]
pub struct Retained {
    /// For which device.
    pub device: DeviceId,
    /// On its own branch.
    pub topic: Topic,
    /// Signed as a whole or in its parts; the broker is not trusted for it.
    pub payload: Vec<u8>,
}

/// One kind of what devices are told.
pub trait News: Send {
    /// Something that is due.
    type Due: Send;
    /// What it is about, for the log: "which services are ordered".
    const ABOUT: &'static str;
    /// Rest between a look and the next one, if something changed meanwhile.
    const REST: Duration;

    /// Tells of changes after which something may be due.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What is due, a bounded part of it; nothing once every device was told.
    fn due(&mut self) -> impl Future<Output = Result<Vec<Self::Due>, StoreError>> + Send;

    /// The message that says it.
    fn message(due: &Self::Due) -> Retained;

    /// Notes that it was published.
    fn told(&mut self, due: Self::Due);
}

/// Publishes what is due now and whatever comes later, until `stop`.
pub async fn tell<N: News>(mut news: N, broker: Broker, stop: CancellationToken) {
    let mut changes = news.changes();
    loop {
        changes.mark_unchanged();
        let is_done = publish(&mut news, &broker).await;
        let again = async {
            if !is_done {
                return tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(N::REST).await;
            _ = changes.changed().await;
        };
        if stop.run_until_cancelled(again).await.is_none() {
            return;
        }
    }
}

/// Publishes all that is due; false if it has to be done again.
async fn publish<N: News>(news: &mut N, broker: &Broker) -> bool {
    loop {
        let due = match news.due().await {
            Ok(due) if due.is_empty() => return true,
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, about = N::ABOUT, "cannot read what devices are to be told; trying again");
                return false;
            }
        };
        for one in due {
            let Retained {
                device,
                topic,
                payload,
            } = N::message(&one);
            let message = Message::new(&topic.to_string(), payload);
            let message = message.qos(Qos::AtLeastOnce).retain(true);
            if let Err(error) = broker.publish(message).await {
                tracing::warn!(%device, %error, about = N::ABOUT, "a device could not be told; trying again");
                return false;
            }
            news.told(one);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use holdfast_broker::{Config, Connect, Identity, JournalMedium, Peer, Refusal, Rights};

    use super::*;

    struct Nobody;

    impl Rights for Nobody {
        fn identify(&self, _: &Peer, _: &Connect<'_>) -> Result<Identity, Refusal> {
            Err(Refusal::NotAuthorized)
        }
    }

    /// Devices in parts of two; the first look fails.
    struct Numbered {
        changes: watch::Receiver<u64>,
        devices: Arc<AtomicUsize>,
        told: BTreeSet<usize>,
        looks: Arc<AtomicUsize>,
    }

    impl News for Numbered {
        type Due = usize;
        const ABOUT: &'static str = "a test";
        const REST: Duration = Duration::from_millis(10);

        fn changes(&self) -> watch::Receiver<u64> {
            self.changes.clone()
        }

        async fn due(&mut self) -> Result<Vec<usize>, StoreError> {
            if self.looks.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(StoreError::Closed);
            }
            let all = 0..self.devices.load(Ordering::SeqCst);
            Ok(all.filter(|one| !self.told.contains(one)).take(2).collect())
        }

        fn message(due: &usize) -> Retained {
            let device: DeviceId = format!("{due:032}").parse().expect("an id");
            Retained {
                device,
                topic: Topic::Alternate {
                    site: "bern".parse().expect("a site"),
                    device,
                },
                payload: vec![b'x'],
            }
        }

        fn told(&mut self, due: usize) {
            assert!(self.told.insert(due), "{due} was told twice");
        }
    }

    /// Everything is told once, in parts; after a fault it is tried again; a change brings the next look.
    #[tokio::test]
    async fn what_is_due_is_told_once_and_faults_are_tried_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let medium = JournalMedium::File(folder.path().join("journal.redb"));
        let broker = Broker::open(Config::default(), medium, Arc::new(Nobody)).expect("a broker");
        let (changed, changes) = watch::channel(0);
        let (devices, looks) = (Arc::new(AtomicUsize::new(5)), Arc::new(AtomicUsize::new(0)));
        let news = Numbered {
            changes,
            devices: Arc::clone(&devices),
            told: BTreeSet::new(),
            looks: Arc::clone(&looks),
        };
        let stop = CancellationToken::new();
        let telling = tokio::spawn(tell(news, broker.clone(), stop.clone()));
        let kept = async |count: u64| {
            while broker.metrics().retained != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        kept(5).await;
        let before = looks.load(Ordering::SeqCst);
        tokio::time::sleep(10 * Numbered::REST).await;
        let after = looks.load(Ordering::SeqCst);
        assert!(
            after <= before + 1,
            "it looks without cause: {before} {after}"
        );
        devices.store(7, Ordering::SeqCst);
        changed.send_replace(1);
        kept(7).await;
        stop.cancel();
        telling.await.expect("it ends, and told nothing twice");
    }
}
