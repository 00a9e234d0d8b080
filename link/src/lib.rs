//! The client side of every wire: time, randomness, the seal of keys, trust, and the clients for HTTPS, FDO, MQTT and mDNS.
//!
//! Called by every daemon of the house. Knows the pure `protocol` crate and no other; never stores a
//! message, never decides what is right or wrong above the wire, never retries by itself: whoever
//! calls keeps the message and asks [`retry::Backoff`] when to try again.

pub mod dial;
pub mod discovery;
pub mod fdo;
pub mod https;
pub mod mqtt;
pub mod random;
pub mod retry;
pub mod seal;
pub mod time;
pub mod tls;
