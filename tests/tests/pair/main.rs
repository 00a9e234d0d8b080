//! Cloud and gateway in one process, on loopback, with the uplink through a switch: enrolment,
//! restart without the cloud, the bridge under cuts, commands, poison messages.
//!
//! The drill runs the same programs as processes; here faults are many and quick, and what is inside
//! can be asked. Nothing sleeps for luck: every wait is for a state, with a bound.

mod clients;
mod enrolment;
mod messages;
mod pair;
mod replaced;
mod rules;
mod web;
