//! Tests of `alternate`.
