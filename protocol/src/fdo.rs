//! FDO 1.1 (protocol version 101): messages and both sides' states of DI, TO0, TO1 and TO2.
//!
//! Each protocol has one file: messages, device (or client) side, server side. A state is a value;
//! a step consumes it together with one [`Message`] and gives the next state and the reply, so a
//! message out of order has no code path and a session is over at its first error. Device sides are
//! driven by the device agent and the installer, server sides by the CPS and the manufacturing
//! role. Nothing here knows HTTP; tokens and session tables are the shell's.

pub mod di;
mod eat;
pub mod error;
#[cfg(test)]
mod fuzz;
mod message;
#[cfg(test)]
mod negatives;
pub mod service_info;
pub mod to0;
pub mod to1;
pub mod to2;
#[cfg(test)]
mod transcripts;

pub use error::{Error, ErrorCode, ErrorMessage};
pub use message::{MAX_BODY, Message, MessageType, Nonce};

/// Version of the protocol, in vouchers and in URLs.
pub const PROTOCOL_VERSION: u64 = 101;
