//! What is on its way on one connection, and what became of it.
//!
//! Kept by `connection`. Pure. A server drops every message whose number is not above the highest it
//! has of that topic; so a refused message may only come again under its old number if the server
//! can have none behind it.

use std::collections::{BTreeMap, HashMap};

use holdfast_link::mqtt::{Outcome, ReasonCode, Settled};

use crate::outbox::Row;

/// The messages of one connection.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// Sent and not settled: row id -> lane.
    open: BTreeMap<u64, String>,
    /// The newest row of each lane that the server has or may have.
    taken: HashMap<String, u64>,
    /// Row id -> lane, of those refused.
    refused: BTreeMap<u64, String>,
    /// The first refusal.
    pub(super) refusal: Option<ReasonCode>,
}

impl Flight {
    /// `lane`: what is numbered in one row with it at the server.
    pub(super) fn sent(&mut self, row: &Row, lane: &str) {
        self.open.insert(row.id, lane.to_owned());
    }

    /// Notes outcomes; gives the rows that the server has taken over.
    pub(super) fn settle(&mut self, settled: &[Settled]) -> Vec<u64> {
        let mut acknowledged = Vec::new();
        for Settled { tag, outcome } in settled {
            let Some(name) = self.open.remove(tag) else {
                continue;
            };
            match outcome {
                Outcome::Acknowledged(_) => {
                    self.take(name, *tag);
                    acknowledged.push(*tag);
                }
                Outcome::Lost => self.take(name, *tag),
                Outcome::Refused(code) => {
                    self.refusal.get_or_insert(*code);
                    self.refused.insert(*tag, name);
                }
            }
        }
        acknowledged
    }

    /// Whether the outcome of everything sent is known.
    pub(super) fn is_landed(&self) -> bool {
        self.open.is_empty()
    }

    /// How many were refused.
    pub(super) fn refusals(&self) -> usize {
        self.refused.len()
    }

    /// The connection is over: the refused rows that need a new number, oldest first. What was never
    /// settled may have been taken.
    pub(super) fn overtaken(mut self) -> Vec<u64> {
        for (id, name) in std::mem::take(&mut self.open) {
            self.take(name, id);
        }
        let behind =
            |(id, name): &(&u64, &String)| self.taken.get(*name).is_some_and(|newest| newest > *id);
        self.refused
            .iter()
            .filter(behind)
            .map(|(id, _)| *id)
            .collect()
    }

    fn take(&mut self, name: String, id: u64) {
        let newest = self.taken.entry(name).or_default();
        *newest = (*newest).max(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Outcome = Outcome::Acknowledged(ReasonCode(0));
    const QUOTA: Outcome = Outcome::Refused(ReasonCode(0x97));

    fn flight(rows: &[(u64, &str)]) -> Flight {
        let mut flight = Flight::default();
        for (id, name) in rows {
            let row = Row {
                id: *id,
                name: (*name).to_owned(),
                epoch: 1,
                seq: *id,
                reading: Vec::new(),
            };
            flight.sent(&row, name);
        }
        flight
    }

    fn settle(flight: &mut Flight, outcomes: &[(u64, Outcome)]) -> Vec<u64> {
        let settled: Vec<_> = outcomes
            .iter()
            .map(|(tag, outcome)| Settled {
                tag: *tag,
                outcome: *outcome,
            })
            .collect();
        flight.settle(&settled)
    }

    #[test]
    fn only_refused_rows_with_a_later_one_at_the_server_need_a_new_number() {
        let rows = [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")];
        type Case<'a> = (&'a [(u64, Outcome)], &'a [u64]);
        let cases: [Case<'_>; 6] = [
            (&[(1, OK), (2, OK), (3, OK), (4, OK), (5, OK)], &[]),
            // All refused from one on: they come again as they are.
            (
                &[(1, OK), (2, QUOTA), (3, QUOTA), (4, QUOTA), (5, QUOTA)],
                &[],
            ),
            (
                &[(1, QUOTA), (2, OK), (3, QUOTA), (4, QUOTA), (5, QUOTA)],
                &[1],
            ),
            (
                &[(1, QUOTA), (2, QUOTA), (3, OK), (4, OK), (5, QUOTA)],
                &[1, 2],
            ),
            // Never settled, or lost with the connection: the server may have it.
            (&[(1, QUOTA), (3, QUOTA), (2, Outcome::Lost)], &[1, 3]),
            (&[(1, QUOTA)], &[1]),
        ];
        for (outcomes, expected) in cases {
            let mut flight = flight(&rows);
            let acknowledged = settle(&mut flight, outcomes);
            assert_eq!(
                acknowledged.len(),
                outcomes.iter().filter(|(_, o)| *o == OK).count()
            );
            assert_eq!(flight.overtaken(), expected, "{outcomes:?}");
        }
    }

    #[test]
    fn what_was_not_sent_is_not_settled() {
        let mut flight = flight(&[(1, "a")]);
        assert_eq!(settle(&mut flight, &[(9, OK), (1, OK), (1, OK)]), [1]);
        assert_eq!(flight.refusals(), 0);
    }
}
