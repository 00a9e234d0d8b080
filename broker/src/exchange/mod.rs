//! Who gets what: subscriptions, the queues of the receivers, retained messages.
//!
//! `session` subscribes and delivers here, straight into the receivers' queues; `journal` delivers
//! what it has committed. The tree is read under a shared lock, and a topic's answer is remembered
//! until a subscription or a right changes. It stores nothing and writes to no socket.

mod batch;
mod mailbox;
mod patience;
mod retained;
mod route;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use batch::{Batch, Delivery};
pub(crate) use mailbox::{Bounds, ConsumerId, Mailbox, Outcome, TailRow, Taken};
pub(crate) use patience::{Patience, Rest};
pub(crate) use retained::Retained;
pub(crate) use route::{Exchange, Options, Route};
pub(crate) use tree::Subscription;
