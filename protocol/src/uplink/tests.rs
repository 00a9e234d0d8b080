//! Tests of `uplink`.
