//! The machine's own counters: wall clock, time since boot, and which boot it is.
//!
//! Read by [`super::SystemClock`] alone; a seam, so that tests can turn every one of them. The wall
//! clock is anybody's (RTC, NTP, DHCP, a hand); the time since boot is the kernel's own and counts
//! sleep too.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use holdfast_protocol::crypto::{self, HashAlg};
use rustix::time::{ClockId, clock_gettime};

/// Where the kernel tells which boot this is. Hidden from hardened services: then nobody knows.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The counters.
pub(super) trait Machine: Send + Sync + Debug {
    /// Unix seconds of the operating system; may be anything.
    fn wall(&self) -> u64;

    /// Since boot; only ever grows.
    fn uptime(&self) -> Duration;

    /// Which boot this is; 0 if the system does not tell.
    fn boot(&self) -> u64;
}

/// The real ones.
#[derive(Debug)]
pub(super) struct Kernel;

impl Machine for Kernel {
    fn wall(&self) -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }

    fn uptime(&self) -> Duration {
        let at = clock_gettime(ClockId::Boottime);
        let secs = u64::try_from(at.tv_sec).unwrap_or(0);
        Duration::new(secs, u32::try_from(at.tv_nsec).unwrap_or(0))
    }

    fn boot(&self) -> u64 {
        let Ok(id) = std::fs::read(BOOT_ID) else {
            return 0;
        };
        let digest = crypto::hash(HashAlg::Sha256, &id);
        let first: [u8; 8] = digest.value()[..8].try_into().expect("SHA-256 is longer");
        u64::from_be_bytes(first).max(1)
    }
}
