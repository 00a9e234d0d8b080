//! Secrets of the real binaries: at rest, in a core image, in the environment, the logs and what Rust prints of them; and
//! that a cut in the middle of writing one leaves the old or the new. One module a place.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod cores;
mod cuts;
mod finder;
mod printed;
mod rest;
