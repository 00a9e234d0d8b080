//! Bad input against the real binaries: each is refused with an error that says what to do, logged once, counted, and the
//! daemon goes on as before. One module an area; `watch` holds what "refused well" means.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod configuration;
mod enrolment;
mod fdo;
mod mqtt;
mod vouchers;
mod watch;
