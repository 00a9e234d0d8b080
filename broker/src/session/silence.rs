//! A client's keep-alive: how long it may be silent, and whether it has been.
//!
//! Owned by `run`, which says when the client was heard. One timer for many packets: it is not touched
//! when they come.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// A client's keep-alive. One timer for many packets: it is not touched when they come.
pub(super) struct Silence {
    most: Duration,
    pub(super) last_heard: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    pub(super) fn new(most: Duration) -> Box<Self> {
        Box::new(Self {
            most,
            last_heard: Instant::now(),
            timer: Box::pin(sleep(most)),
        })
    }

    /// Ready when the client's time is over; until then the timer is set to when it will be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.last_heard + self.most;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}
