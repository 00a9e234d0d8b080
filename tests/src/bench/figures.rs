//! The rows of the result: what was measured, what was asked for, whether it held; as a table and as CSV.
//!
//! Filled by the experiments, printed and written by the program.

use std::fmt::Write as _;

use super::statistics::{median, spread};

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Ours by theirs is so much or more.
    RatioAtLeast(f64),
    /// Ours by theirs is so much or less.
    RatioAtMost(f64),
    /// Ours alone is so much or less.
    AtMost(f64),
}

/// One measured figure.
#[derive(Debug, Clone)]
pub struct Row {
    /// As in the CSV file.
    pub name: &'static str,
    /// For people: what and in which unit.
    pub what: &'static str,
    /// Our values, one a run.
    pub ours: Vec<f64>,
    /// What they are compared with; empty when nothing is.
    pub theirs: Vec<f64>,
    /// What is asked.
    pub target: Target,
}

impl Row {
    /// A row without values.
    #[must_use]
    pub fn new(name: &'static str, what: &'static str, target: Target) -> Self {
        Self {
            name,
            what,
            ours: Vec::new(),
            theirs: Vec::new(),
            target,
        }
    }

    /// Median of ours by median of theirs.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.theirs)
    }

    /// Whether it is as asked; a row without values never is.
    #[must_use]
    pub fn held(&self) -> bool {
        match self.target {
            Target::RatioAtLeast(least) => self.ratio() >= least,
            Target::RatioAtMost(most) => self.ratio() <= most,
            Target::AtMost(most) => median(&self.ours) <= most,
        }
    }

    /// How many times better than asked: 1 is just as asked.
    #[must_use]
    pub fn margin(&self) -> f64 {
        match self.target {
            Target::RatioAtLeast(least) => self.ratio() / least,
            Target::RatioAtMost(most) => most / self.ratio(),
            Target::AtMost(most) => most / median(&self.ours),
        }
    }

    fn asked(&self) -> String {
        match self.target {
            Target::RatioAtLeast(least) => format!(">={least}"),
            Target::RatioAtMost(most) => format!("<={most}"),
            Target::AtMost(most) => format!("<={most} alone"),
        }
    }
}

/// `name,ours,theirs,ratio,target,held`: medians; what does not exist is left empty.
#[must_use]
pub fn csv(rows: &[Row]) -> String {
    let mut out = "name,ours,theirs,ratio,target,held\n".to_owned();
    for row in rows {
        let cell = |value: f64| {
            if value.is_finite() {
                short(value)
            } else {
                String::new()
            }
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{},{},{},{},{},{}",
            row.name,
            cell(median(&row.ours)),
            cell(median(&row.theirs)),
            cell(row.ratio()),
            row.asked(),
            if row.held() { "yes" } else { "no" }
        );
    }
    out
}

/// The table for people: medians with their spread.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<22} {:>28} {:>28} {:>8} {:>12}  {}\n",
        "", "ours (least-most)", "compared with", "ratio", "target", "held"
    );
    for row in rows {
        let _ = writeln!(
            out,
            "{:<22} {:>28} {:>28} {:>8} {:>12}  {:<4} {}",
            row.name,
            ranged(&row.ours),
            ranged(&row.theirs),
            if row.theirs.is_empty() {
                "-".to_owned()
            } else {
                short(row.ratio())
            },
            row.asked(),
            if row.held() { "yes" } else { "NO" },
            row.what
        );
    }
    out
}

fn ranged(values: &[f64]) -> String {
    let (least, most) = spread(values);
    match values {
        [] => "-".to_owned(),
        [one] => short(*one),
        _ => format!(
            "{} ({}-{})",
            short(median(values)),
            short(least),
            short(most)
        ),
    }
}

/// Three significant digits, or the whole number when it is large.
fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(target: Target, ours: &[f64], theirs: &[f64]) -> Row {
        Row {
            ours: ours.to_vec(),
            theirs: theirs.to_vec(),
            ..Row::new("n", "w", target)
        }
    }

    #[test]
    fn medians_are_compared_and_targets_point_both_ways() {
        let more = row(Target::RatioAtLeast(2.0), &[1.0, 4.0, 100.0], &[2.0]);
        assert!(more.held() && more.margin() == 1.0);
        assert!(!row(Target::RatioAtLeast(2.1), &[4.0], &[2.0]).held());
        assert!(row(Target::RatioAtMost(0.5), &[1.0], &[2.0]).held());
        assert!(!row(Target::RatioAtMost(0.4), &[1.0], &[2.0]).held());
        assert!(row(Target::AtMost(50.0), &[49.0], &[]).held());
        assert!(!row(Target::AtMost(50.0), &[51.0], &[1.0]).held());
    }

    #[test]
    fn what_was_not_measured_has_not_held() {
        for target in [
            Target::RatioAtLeast(0.0),
            Target::RatioAtMost(9.0),
            Target::AtMost(9.0),
        ] {
            assert!(!row(target, &[], &[]).held());
        }
    }

    #[test]
    fn the_csv_has_the_columns_that_were_agreed() {
        let rows = [
            row(Target::RatioAtLeast(2.0), &[300_000.0], &[100_000.0]),
            row(Target::AtMost(50.0), &[61.5], &[]),
        ];
        assert_eq!(
            csv(&rows),
            "name,ours,theirs,ratio,target,held\n\
             n,300000,100000,3.00,>=2,yes\n\
             n,61.5,,,<=50 alone,no\n"
        );
    }
}
