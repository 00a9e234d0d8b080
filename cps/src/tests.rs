//! The CPS server as a whole: cloud and gateway in one process over real HTTP on loopback, with
//! protocol's device states as the device. What each room promises is held here.

mod alternates;
mod api;
mod authority;
mod copies;
mod enrolment;
mod flood;
mod halfway;
mod handover;
mod keys;
mod kit;
mod lifecycle;
mod lists;
mod neighbours;
mod onboarding;
mod record;
mod refusals;
mod registry;
mod rendezvous;
mod renewal;
mod replace;
mod requests;
mod rotation;
mod setback;
mod sync;
mod times;
