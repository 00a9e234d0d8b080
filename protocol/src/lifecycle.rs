//! The service lifecycle: activate, update, change, both sides.
//!
//! A device gets a credential once (S310), is told which service is wanted by a signed notice
//! (S340, `notice`), and asks for a certificate for it with a key pair of its own (S320): device id,
//! service id and credential must all match the register. `cps` asks [`decide`] and does what it
//! says; `device-agent` keeps a [`Device`] and does what its [`Device::next`] asks for. Nothing here
//! stores, sends, or reads a clock; the history is a fold in `record`.

mod credential;
mod device;
mod message;
mod register;

pub use credential::Credential;
pub use device::{Device, Event, Heard, Home, Next, Reported, Running, State};
pub use message::{
    Answer, MAX_MESSAGE, MessageFault, Outcome, Refusal, Request, RequestKind, SignedRequest,
};
pub use register::{Decision, decide};

#[cfg(test)]
mod tests;
