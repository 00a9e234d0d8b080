//! Times as a histogram that many threads count into without waiting for each other.
//!
//! Counted a batch at a time, so that a message costs no lock; read by `exposition`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::MetricEncoder;

/// Bounds, in seconds: from a fast disk to the patience of a client, and what waited for one that was
/// away.
pub(crate) const BOUNDS: [f64; 18] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0, 300.0, 3_600.0, 86_400.0,
];

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// By bound, and above all of them.
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Times {
    /// So many took so long.
    pub(crate) fn add(&self, time: Duration, count: u64) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        self.counts[bucket.unwrap_or(BOUNDS.len())].fetch_add(count, Ordering::Relaxed);
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.micros
            .fetch_add(micros.saturating_mul(count), Ordering::Relaxed);
    }

    /// As Prometheus has it.
    pub(crate) fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let above = std::iter::once(f64::MAX);
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = BOUNDS.into_iter().chain(above).zip(counts).collect();
        let all = buckets.iter().map(|(_, count)| count).sum();
        // Whole microseconds of some centuries are exact here.
        #[expect(clippy::cast_precision_loss)]
        let sum = self.micros.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<[(&str, &str); 0]>(sum, all, &buckets, None)
    }
}
