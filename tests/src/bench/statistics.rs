//! Medians and percentiles of few and of many values.
//!
//! Called by the experiments. Pure.

use std::time::Duration;

/// The middle value, or the mean of the two in the middle; NaN of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// Smallest and largest; NaN of none.
#[must_use]
pub fn spread(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::NAN, f64::min);
    let most = values.iter().copied().fold(f64::NAN, f64::max);
    (least, most)
}

/// Many durations, each known to 1/16 of its size: counted in classes, so that a run of millions costs no memory.
#[derive(Debug, Clone)]
pub struct Durations {
    classes: Vec<u64>,
    count: u64,
}

/// Classes in each doubling.
const STEPS: u32 = 16;

impl Default for Durations {
    fn default() -> Self {
        Self {
            classes: vec![0; (64 * STEPS) as usize],
            count: 0,
        }
    }
}

impl Durations {
    /// Counts `count` durations of one length.
    pub fn add(&mut self, duration: Duration, count: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.classes[class(nanos)] += count;
        self.count += count;
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that `part` (0 to 1) of all are not above, in seconds; NaN of none.
    #[must_use]
    pub fn percentile(&self, part: f64) -> f64 {
        if self.count == 0 {
            return f64::NAN;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among less than 2^52 values"
        )]
        let rank = ((part * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.classes.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_end(index) / 1e9;
            }
        }
        f64::NAN
    }
}

/// The first 16 nanoseconds have classes of their own; from there 16 classes a doubling.
fn class(nanos: u64) -> usize {
    let Some(doubling) = nanos.checked_ilog2().filter(|log| *log >= 4) else {
        return usize::try_from(nanos).expect("below 16");
    };
    let step = (nanos >> (doubling - 4)) & u64::from(STEPS - 1);
    usize::try_from(u64::from((doubling - 3) * STEPS) + step).expect("below 64 * 16")
}

#[expect(clippy::cast_precision_loss, reason = "a class is known to 1/16 only")]
fn upper_end(class: usize) -> f64 {
    let steps = STEPS as usize;
    if class < steps {
        return class as f64;
    }
    let doubling = i32::try_from(class / steps - 1).expect("below 64");
    ((steps + class % steps + 1) as f64) * f64::powi(2.0, doubling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[1.0, 9.0, 2.0, 4.0]), 3.0);
        assert_eq!(spread(&[2.0, 1.0, 9.0]), (1.0, 9.0));
    }

    #[test]
    fn classes_grow_and_hold_their_values() {
        let mut last = 0;
        for exponent in 0..60 {
            for nanos in [1u64 << exponent, (1 << exponent) + (1 << exponent) / 3] {
                let found = class(nanos);
                assert!(found >= last, "{nanos}");
                last = found;
                let end = upper_end(found);
                #[expect(clippy::cast_precision_loss, reason = "compared to 1/16")]
                let value = nanos as f64;
                assert!(end >= value && end <= value * 1.13 + 1.0, "{nanos}: {end}");
            }
        }
        assert!(class(u64::MAX) < 64 * 16);
    }

    #[test]
    fn percentiles_of_many() {
        let mut all = Durations::default();
        assert!(all.percentile(0.5).is_nan());
        for micros in 1..=1000 {
            all.add(Duration::from_micros(micros), 1);
        }
        let near = |found: f64, wanted: f64| (found / wanted - 1.0).abs() < 0.07;
        assert!(near(all.percentile(0.5), 500e-6));
        assert!(near(all.percentile(0.99), 990e-6));
        all.add(Duration::from_secs(1), 1000);
        assert!(near(all.percentile(0.99), 1.0));
        assert_eq!(all.count(), 2000);
    }
}
