//! Who gets what: subscriptions, the queues of the receivers, retained messages.
//!
//! `session` subscribes and delivers here, straight into the receivers' queues; `journal` delivers
//! what it has committed. The tree is read under a shared lock, and a topic's answer is remembered
//! until a subscription or a right changes. It stores nothing and writes to no socket.

mod batch;
mod handed;
mod mailbox;
mod patience;
mod pool;
mod retained;
mod route;
#[cfg(test)]
mod tests;
mod tree;
mod wake;
mod wanted;

pub(crate) use batch::{Batch, Delivery};
pub(crate) use handed::{ConsumerId, Outcome, Place, TailRow, Taken};
pub(crate) use mailbox::{Bounds, Mailbox};
pub(crate) use patience::{Patience, Rest};
pub(crate) use pool::Pool;
pub(crate) use retained::Retained;
pub(crate) use route::{Exchange, Options, Route};
pub(crate) use tree::Subscription;
pub(crate) use wanted::Wanted;
