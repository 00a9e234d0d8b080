//! The log and its folds: round trips, refusals, and the rule for two-sided claims.
