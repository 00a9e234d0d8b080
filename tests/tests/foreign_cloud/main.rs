//! A stock mosquitto as foreign cloud: the real gateway bridges to it over mutual TLS, out and in.
//! Outages, `kill -9` of either side, refusals of every kind: each message arrives at least once, in
//! order for its topic, and what is wrong is said.
#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod outages;
mod partner;
mod refusals;
mod site;
mod witness;
