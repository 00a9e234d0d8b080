//! Tests of `drain`.
