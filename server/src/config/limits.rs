//! `[limits]` and `[journal]`: bounds on what peers may make a server hold. Read as a part of each binary's
//! own section, with defaults that suit its size.

use std::time::Duration;

use holdfast_config::bounds::{at_least, between};
use holdfast_config::{ByteSize, Section, Settings};
use holdfast_cps::CpsConfig;

/// The keys of `[limits]` that both servers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peers {
    /// Connections open at once, on each listener.
    pub connections: usize,
    /// Connections of one address open at once, on each listener but MQTT's.
    pub connections_per_address: usize,
    /// HTTP requests (FDO, API) that one address may send each second, on each listener.
    pub requests_per_address: u32,
    /// Largest MQTT packet, in bytes.
    pub packet: ByteSize,
    /// FDO runs under way at once.
    pub fdo_runs: usize,
    /// How long a TLS handshake or a request head may take.
    pub handshake: Duration,
}

impl Peers {
    /// Bounds for so many connections and FDO runs at once, the others as everywhere.
    #[must_use]
    pub fn of(connections: usize, fdo_runs: usize) -> Self {
        Self {
            connections,
            connections_per_address: 256,
            requests_per_address: 500,
            packet: ByteSize(256 << 10),
            fdo_runs,
            handshake: Duration::from_secs(10),
        }
    }

    /// Reads them out of a section that may have keys beside them.
    #[must_use]
    pub fn read(section: &mut Section<'_>, default: Self) -> Self {
        let some = |count: &usize| at_least(*count as u64, 1, "1");
        Self {
            connections: section.get_checked("connections", default.connections, some),
            connections_per_address: section.get_checked(
                "connections_per_address",
                default.connections_per_address,
                some,
            ),
            requests_per_address: section.get_checked(
                "requests_per_address",
                default.requests_per_address,
                |count| at_least(u64::from(*count), 1, "1"),
            ),
            packet: section.get_checked("packet", default.packet, |size| {
                at_least(size.0, 1 << 10, "1KiB")
            }),
            fdo_runs: section.get_checked("fdo_runs", default.fdo_runs, some),
            handshake: section.get_checked("handshake", default.handshake, |time| {
                between(*time, Duration::from_secs(1), Duration::from_secs(120))
            }),
        }
    }

    /// Puts them in the place of the defaults of CPS.
    pub fn fill(&self, wanted: &mut CpsConfig) {
        let limits = &mut wanted.limits;
        limits.connections = self.connections;
        limits.connections_per_address = self.connections_per_address;
        limits.requests_per_address = self.requests_per_address;
        limits.fdo_sessions = self.fdo_runs;
        limits.handshake = self.handshake;
        limits.headers = self.handshake;
    }
}

/// `[journal]`: bounds of the broker's durable messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Journal {
    /// Largest size of the stored messages; above it publishers are refused, nothing is dropped.
    pub max_bytes: ByteSize,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize(4 << 30),
        }
    }
}

impl Settings for Journal {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            max_bytes: section.get_checked("max_bytes", Self::default().max_bytes, |size| {
                at_least(size.0, 16 << 20, "16MiB")
            }),
        }
    }
}

/// `batch` of `[telemetry]`: rows that one commit takes from the journal into the ledger.
pub fn batch(section: &mut Section<'_>, default: usize) -> usize {
    section.get_checked("batch", default, |rows| match *rows {
        1..=10_000 => Ok(()),
        _ => Err((
            format!("{rows} rows"),
            "write a number from 1 to 10000".to_owned(),
        )),
    })
}
