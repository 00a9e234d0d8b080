//! A connection that has read more than the journal may have of it at once goes on whenever and however
//! the journal's answers come.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Config, JournalMedium};
use holdfast_store::OpenBackend;
use holdfast_store::fault::CrashBackend;
use redb::{BackendError, StorageBackend};

use crate::common::{Server, publish};

/// What a sync takes.
const SYNC: Duration = Duration::from_millis(3);
/// What other tasks take: longer than the journal for all that it may have of one connection.
const OTHERS: Duration = Duration::from_millis(60);

/// A disk that takes its time.
#[derive(Debug)]
struct Slow(CrashBackend);

impl OpenBackend for Slow {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Opened(self.0.open()?)))
    }
}

#[derive(Debug)]
struct Opened(Box<dyn StorageBackend>);

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        std::thread::sleep(SYNC);
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}

#[tokio::test]
async fn answers_that_come_all_at_once_and_bring_no_packet_wake_a_connection_up() {
    let medium = JournalMedium::Backend(Arc::new(Slow(CrashBackend::new())));
    let mut config = Config::default();
    config.limits.queue_messages = 8;
    let server = Server::on(config, medium).await;
    // A subscriber whose queue is full: whoever publishes to it lets others run first.
    let mut deaf = server.v5("deaf").await;
    deaf.subscribe("live", 1).await;
    let mut giver = server.v5("giver").await;
    for _ in 0..150 {
        giver.publish("live", 1, "m").await;
    }
    let others = tokio::spawn(async {
        loop {
            std::thread::sleep(OTHERS);
            tokio::task::yield_now().await;
        }
    });
    for round in 0..4u8 {
        // The answers to kept messages of QoS 0 are no packets.
        let kept = publish(true, 1, "kept", 0, &[], &[round]);
        let live = publish(true, 0, "live", 0, &[], &[round]);
        let some = [kept.repeat(200), live].concat();
        giver.send(&some.repeat(15)).await;
        giver.nothing().await;
    }
    others.abort();
}
