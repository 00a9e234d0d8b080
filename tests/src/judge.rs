//! The judge of what arrived: every row of the table, once, in order, with its content.
//! Called by the story on the readers' ledgers and on the cloud's export; pure.

use std::fmt;

use serde_json::Value;

use crate::weather::Table;

/// One arrival as the judge sees it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The payload, parsed; `Null` if it is no JSON.
    pub payload: Value,
    /// The sender marked it as sent again (MQTT DUP).
    pub is_repeat_marked: bool,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Different rows that arrived.
    pub rows: usize,
    /// Rows that arrived again without the mark.
    pub doubled: Vec<usize>,
    /// Rows that arrived again, marked as sent again.
    pub marked_repeats: usize,
    /// Rows that did not arrive before a later one did, or at all up to the wanted count.
    pub missing: Vec<usize>,
    /// Rows that arrived after a later row.
    pub late: Vec<usize>,
    /// Arrivals that are no row of the table.
    pub strange: usize,
}

impl Verdict {
    /// Every row once, in order, none strange; repeats that are marked as such are no fault.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.doubled.is_empty()
            && self.missing.is_empty()
            && self.late.is_empty()
            && self.strange == 0
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} rows, {} lost, {} doubled, {} out of order, {} strange",
            self.rows,
            self.missing.len(),
            self.doubled.len(),
            self.late.len(),
            self.strange
        )?;
        if self.marked_repeats > 0 {
            write!(out, ", {} marked repeats", self.marked_repeats)?;
        }
        let mut show = |what: &str, rows: &[usize]| match rows {
            [] => Ok(()),
            [first, ..] => write!(out, "; first {what}: row {}", first + 1),
        };
        show("lost", &self.missing)?;
        show("doubled", &self.doubled)?;
        show("out of order", &self.late)
    }
}

/// Judges the arrivals against the first `wanted` rows of the table. More rows than wanted may have come.
#[must_use]
pub fn judge(table: &Table, arrivals: &[Arrival], wanted: usize) -> Verdict {
    let mut verdict = Verdict::default();
    let mut seen = vec![false; table.len()];
    let mut next = 0;
    for arrival in arrivals {
        let Some(row) = table.row_of(&arrival.payload) else {
            verdict.strange += 1;
            continue;
        };
        if seen[row] {
            if arrival.is_repeat_marked {
                verdict.marked_repeats += 1;
            } else {
                verdict.doubled.push(row);
            }
            continue;
        }
        seen[row] = true;
        verdict.rows += 1;
        if row < next {
            verdict.late.push(row);
        }
        next = next.max(row + 1);
    }
    let end = next.max(wanted).min(table.len());
    verdict.missing = (0..end).filter(|row| !seen[*row]).collect();
    verdict
}

#[cfg(test)]
mod tests {
    use super::{Arrival, judge};
    use crate::weather::Table;
    use serde_json::json;

    fn arrivals(rows: &[(u32, bool)]) -> Vec<Arrival> {
        rows.iter()
            .map(|(n, mark)| Arrival {
                payload: json!({"n": n}),
                is_repeat_marked: *mark,
            })
            .collect()
    }

    fn table() -> Table {
        Table::parse("n\n0\n1\n2\n3\n4\n").unwrap()
    }

    #[test]
    fn all_once_in_order_is_exact() {
        let verdict = judge(
            &table(),
            &arrivals(&[(0, false), (1, false), (2, false)]),
            3,
        );
        assert!(verdict.is_exact(), "{verdict}");
        assert_eq!(verdict.rows, 3);
    }

    #[test]
    fn a_marked_repeat_is_counted_and_forgiven() {
        let verdict = judge(
            &table(),
            &arrivals(&[(0, false), (1, false), (1, true), (2, false)]),
            3,
        );
        assert!(verdict.is_exact());
        assert_eq!(verdict.marked_repeats, 1);
    }

    #[test]
    fn control_each_planted_fault_is_found() {
        let plain = |rows: &[u32]| rows.iter().map(|n| (*n, false)).collect::<Vec<_>>();
        let of = |rows: &[u32], wanted| judge(&table(), &arrivals(&plain(rows)), wanted);
        assert_eq!(of(&[0, 2], 3).missing, [1]);
        assert_eq!(of(&[0, 1], 3).missing, [2], "a lost tail");
        assert_eq!(of(&[0, 1, 1, 2], 3).doubled, [1]);
        assert_eq!(of(&[0, 2, 1], 3).late, [1]);
        assert_eq!(of(&[0, 9], 1).strange, 1);
        assert!(!of(&[], 1).is_exact(), "nothing at all");
    }
}
