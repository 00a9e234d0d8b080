//! Encodings shared by all signed and sealed things here: bounded CBOR and COSE on top of it.

pub mod cbor;
pub mod cose;
