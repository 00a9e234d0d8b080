//! A connection that has read more than the journal may have of it at once goes on whenever and however
//! late the journal's answers come.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_broker::{Config, JournalMedium};
use holdfast_store::OpenBackend;
use holdfast_store::fault::CrashBackend;
use redb::{BackendError, StorageBackend};

use crate::common::{Hello, Server, publish};
use crate::kit::{VERSIONS, hello};

/// What other tasks take: longer than the journal for all that it may have of one connection.
const OTHERS: Duration = Duration::from_millis(60);

/// A disk that takes its time: so many milliseconds for a sync.
#[derive(Debug, Clone, Default)]
struct Slow(CrashBackend, Arc<AtomicU64>);

impl OpenBackend for Slow {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Opened(self.0.open()?, Arc::clone(&self.1))))
    }
}

#[derive(Debug)]
struct Opened(Box<dyn StorageBackend>, Arc<AtomicU64>);

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
        std::thread::sleep(Duration::from_millis(self.1.load(Ordering::Relaxed)));
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
    let disk = Slow::default();
    disk.1.store(3, Ordering::Relaxed);
    let medium = JournalMedium::Backend(Arc::new(disk));
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

#[tokio::test]
async fn mqtt5_3_1_2_22_who_is_not_heard_because_of_us_is_not_taken_for_silent() {
    let disk = Slow::default();
    let medium = JournalMedium::Backend(Arc::new(disk.clone()));
    let server = Server::on(Config::default(), medium).await;
    for v5 in VERSIONS {
        let mut greeting = Hello::v5("patient");
        greeting.v5 = v5;
        greeting.keep_alive = 1;
        let mut wire = hello(&server, &greeting).await;
        // Longer than one and a half keep-alives for what the journal may have of one connection.
        disk.1.store(1000, Ordering::Relaxed);
        wire.send(&publish(v5, 1, "kept", 0, &[], b"m").repeat(1300))
            .await;
        for _ in 0..7 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            wire.send(&[0xC0, 0]).await;
        }
        disk.1.store(0, Ordering::Relaxed);
        for _ in 0..7 {
            assert_eq!(wire.packet().await, Some((0xD0, Vec::new())), "{v5}");
        }
        // It is heard again, and silence is silence.
        let begun = tokio::time::Instant::now();
        assert_eq!(wire.closed().await, v5.then_some(0x8D));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
