//! A client's keep-alive: how long it may be silent, and whether it has been.
//!
//! Owned by `run`, which says when the client was heard. One timer for many packets: it is not touched
//! when they come.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// A client's keep-alive. One timer for many packets: it is not touched when they come.
pub(super) struct Silence {
    most: Duration,
    pub(super) last_heard: Instant,
    timer: Pin<Box<Sleep>>,
    /// The timer knows whom to wake: a connection has one task all its life.
    armed: bool,
}

impl Silence {
    pub(super) fn new(most: Duration) -> Box<Self> {
        Box::new(Self {
            most,
            last_heard: Instant::now(),
            timer: Box::pin(sleep(most)),
            armed: false,
        })
    }

    /// Ready when the client's time is over; until then the timer is set to when it will be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.armed && !self.timer.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            self.armed = self.timer.as_mut().poll(cx).is_pending();
            if self.armed {
                return Poll::Pending;
            }
            let due = self.last_heard + self.most;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::time::advance;

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_heard_in_time_is_left_alone_and_who_is_not_is_told_of() {
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(Arc::clone(&calls));
        let mut cx = Context::from_waker(&waker);
        let mut silence = Silence::new(Duration::from_secs(10));
        // However often it is looked at: the timer knows the task from the first time.
        for _ in 0..8 {
            assert!(silence.poll(&mut cx).is_pending());
            advance(Duration::from_secs(1)).await;
        }
        silence.last_heard = Instant::now();
        advance(Duration::from_secs(3)).await;
        assert_eq!(calls.0.load(Ordering::Relaxed), 1, "the first ten seconds");
        assert!(silence.poll(&mut cx).is_pending(), "heard three ago");
        assert!(silence.poll(&mut cx).is_pending());
        advance(Duration::from_secs(6)).await;
        assert_eq!(calls.0.load(Ordering::Relaxed), 1);
        advance(Duration::from_secs(2)).await;
        assert_eq!(calls.0.load(Ordering::Relaxed), 2);
        assert!(silence.poll(&mut cx).is_ready());
    }
}
