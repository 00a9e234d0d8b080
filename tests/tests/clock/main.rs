//! The clock turned under the real programs (rows C1, C2, C3, C5 and C8 of the list of tests): 1970 without a network, a
//! clock far ahead, behind the floor, jumping by days under load, and five weeks of outage.
//!
//! The control of each is in the test itself: that the turned clock is really seen, and that what has to be refused is.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod answers;
mod crowd;
mod jumps;
mod kit;
mod weeks;
mod years;
