//! Bytes to packets and back.
//!
//! Framing, PUBLISH, the acknowledgements and the pings are our own code (the paths every message
//! takes: no allocation but the message itself, strict about every rule); CONNECT, SUBSCRIBE,
//! UNSUBSCRIBE, DISCONNECT and AUTH are parsed, and the rare answers built, by mqtt-protocol-core.
//! Pure: called by `session`, touches no socket and no clock.

pub(crate) mod property;
