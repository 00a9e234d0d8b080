//! Vectors of identity against the real binaries: certificates and requests that must lead nowhere, each with its reason
//! in the log and in the counters. `makers` forges, `doors` presents to every mutual-TLS port, one module a question.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod clients;
mod doors;
mod makers;
mod requests;
mod rogues;
mod servers;
mod topics;
