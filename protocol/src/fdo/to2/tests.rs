//! TO2 tests.
