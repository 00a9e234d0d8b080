//! Statements, configurations and certificate texts: round trips, refusals, mutations.
