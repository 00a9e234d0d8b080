//! `holdfast-broker`: an MQTT 3.1.1 and 5.0 server as a library.
//!
//! Called by the gateway and the cloud, or by anybody else. It knows certificates, client ids and
//! topics only through the [`Rights`] trait (default deny), nothing of devices or onboarding.
//!
//! The rooms: `door` (accept, TLS, budgets), `session` (one client as a pure state machine and the
//! task around it), `exchange` (who gets what), `journal` (what must survive), `rights`, `events`,
//! `metrics`, and the in-process handle [`Broker`].
//!
//! The promises:
//! - an acknowledgement leaves only after the commit that makes the message safe for every durable
//!   consumer: bridge rules ([`Consumer`]), retained slots, sessions with an expiry above zero;
//! - nobody receives or sends on a topic without the [`Rights`] saying so at that moment;
//! - every queue, quota and wait has a bound in [`Config`], and every drop is counted.

#![deny(missing_docs)]

#[cfg(test)]
extern crate self as holdfast_broker;

mod broker;
mod codec;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
mod config;
mod consumer;
mod door;
mod events;
mod exchange;
mod exposition;
mod figures;
mod housekeeping;
mod journal;
mod message;
mod metrics;
mod passwords;
mod quotas;
mod rare;
mod rights;
mod session;
mod shared;
mod socket;
mod times;
mod topic;
mod websocket;

pub use broker::{Broker, OpenError, PublishError, SessionView};
pub use config::{Config, Limits, RepeatNames, Wall, WhenFull};
pub use consumer::{Consumer, ConsumerError, ConsumerOptions, Row, RowId};
pub use door::{CountedTls, Door, FixedTls, TlsSource};
pub use events::{CutReason, DropReason, Event};
pub use message::{Message, Qos};
pub use metrics::Figures;
pub use passwords::{Guesses, Passwords, PasswordsError};
pub use quotas::Quota;
pub use rights::{Connect, Identity, Password, Peer, Refusal, Rights};
pub use topic::{Filter, NotAFilter};
pub use websocket::Origins;

/// Where the journal lives: a file, or a backend from the store's test kit.
pub use holdfast_store::Medium as JournalMedium;
