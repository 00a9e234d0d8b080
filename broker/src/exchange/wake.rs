//! Telling a receiver that something changed for it.
//!
//! A session has one reader, the task of its connection; an in-process consumer has any number of
//! listeners. A sender that has just woken an idle reader may ask to be woken right after it, so that who
//! is served comes before who is acknowledged, without a turn of the scheduler for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// Who is told.
#[derive(Debug)]
pub(super) enum Wake {
    Reader(Mutex<Reader>),
    Listeners(Box<Notify>),
}

/// What a session's task is about.
#[derive(Debug)]
pub(super) enum Reader {
    /// It works; whether something changed since it last looked.
    Busy(bool),
    /// It waits.
    Idle(Waker),
    /// It was woken and has not begun yet; who comes right after it.
    Woken(Option<Waker>),
}

impl Wake {
    pub(super) fn reader() -> Self {
        Self::Reader(Mutex::new(Reader::Busy(false)))
    }

    pub(super) fn listeners() -> Self {
        Self::Listeners(Box::default())
    }

    /// Something changed.
    pub(super) fn tell(&self) {
        let reader = match self {
            Self::Reader(reader) => reader,
            Self::Listeners(listeners) => {
                listeners.notify_one();
                listeners.notify_waiters();
                return;
            }
        };
        let mut reader = lock(reader);
        match std::mem::replace(&mut *reader, Reader::Busy(true)) {
            Reader::Busy(_) => {}
            Reader::Idle(waker) => {
                *reader = Reader::Woken(None);
                drop(reader);
                waker.wake();
            }
            woken @ Reader::Woken(_) => *reader = woken,
        }
    }

    /// The reader's own wait: ready when something changed since it last looked.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Reader(reader) = self else {
            return Poll::Pending;
        };
        let mut reader = lock(reader);
        match std::mem::replace(&mut *reader, Reader::Busy(false)) {
            Reader::Busy(true) => Poll::Ready(()),
            Reader::Woken(after) => {
                drop(reader);
                // Its task is put behind the one that is running: the reader's.
                after.into_iter().for_each(Waker::wake);
                Poll::Ready(())
            }
            Reader::Idle(waker) if waker.will_wake(cx.waker()) => {
                *reader = Reader::Idle(waker);
                Poll::Pending
            }
            Reader::Busy(false) | Reader::Idle(_) => {
                *reader = Reader::Idle(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The reader goes on for another reason: whether something changed since it last looked, which it is to see now.
    pub(super) fn looks(&self) -> bool {
        let Self::Reader(reader) = self else {
            return false;
        };
        let mut reader = lock(reader);
        let before = std::mem::replace(&mut *reader, Reader::Busy(false));
        drop(reader);
        match before {
            Reader::Busy(changed) => changed,
            Reader::Idle(_) => false,
            Reader::Woken(after) => {
                after.into_iter().for_each(Waker::wake);
                true
            }
        }
    }

    /// The reader's task is over: nobody comes after a turn that it will not have. Whoever reads next looks at once.
    pub(super) fn leaves(&self) {
        let Self::Reader(reader) = self else { return };
        let before = std::mem::replace(&mut *lock(reader), Reader::Busy(true));
        if let Reader::Woken(after) = before {
            after.into_iter().for_each(Waker::wake);
        }
    }

    /// Wakes the sender after the reader's next turn; false when no such turn is certain, or somebody
    /// else comes then.
    pub(super) fn follow(&self, sender: &Waker) -> bool {
        let Self::Reader(reader) = self else {
            return false;
        };
        let mut reader = lock(reader);
        let Reader::Woken(after @ None) = &mut *reader else {
            return false;
        };
        *after = Some(sender.clone());
        true
    }
}

fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl std::task::Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn task() -> (Arc<Calls>, Waker) {
        let calls = Arc::new(Calls::default());
        (Arc::clone(&calls), calls.into())
    }

    fn calls(task: &(Arc<Calls>, Waker)) -> usize {
        task.0.0.load(Ordering::Relaxed)
    }

    fn poll(wake: &Wake, task: &(Arc<Calls>, Waker)) -> Poll<()> {
        wake.poll(&mut Context::from_waker(&task.1))
    }

    #[test]
    fn what_changed_before_the_wait_ends_it_at_once() {
        let (wake, reader) = (Wake::reader(), task());
        assert!(poll(&wake, &reader).is_pending());
        assert!(!wake.looks());
        wake.tell();
        assert_eq!(calls(&reader), 0);
        assert!(wake.looks());
        assert!(!wake.looks(), "it has seen that");
        wake.tell();
        assert!(poll(&wake, &reader).is_ready());
        assert!(poll(&wake, &reader).is_pending());
        wake.tell();
        wake.tell();
        assert_eq!(calls(&reader), 1);
        assert!(poll(&wake, &reader).is_ready());
        assert!(poll(&wake, &reader).is_pending());
    }

    #[test]
    fn a_sender_comes_after_the_reader_that_was_woken_and_after_no_other() {
        let (wake, reader, sender, other) = (Wake::reader(), task(), task(), task());
        wake.tell();
        assert!(!wake.follow(&sender.1), "it works: nobody knows how long");
        assert!(poll(&wake, &reader).is_ready());
        assert!(poll(&wake, &reader).is_pending());
        assert!(!wake.follow(&sender.1), "nobody woke it");
        for waits in [true, false] {
            assert!(poll(&wake, &reader).is_pending());
            let before = calls(&sender);
            wake.tell();
            assert!(wake.follow(&sender.1));
            assert!(!wake.follow(&other.1));
            wake.tell();
            assert_eq!(calls(&sender), before);
            if waits {
                assert!(poll(&wake, &reader).is_ready());
            } else {
                assert!(wake.looks());
            }
            assert_eq!(calls(&sender), before + 1);
        }
        assert_eq!(calls(&other), 0);
    }

    #[test]
    fn nobody_comes_after_a_reader_that_is_gone() {
        let (wake, reader, sender) = (Wake::reader(), task(), task());
        // It ends while a sender comes after it: an abort.
        assert!(poll(&wake, &reader).is_pending());
        wake.tell();
        assert!(wake.follow(&sender.1));
        wake.leaves();
        assert_eq!(calls(&sender), 1);
        // It ends while it waits: what comes then wakes nobody, and nobody is put behind it.
        let next = task();
        assert!(poll(&wake, &next).is_ready());
        assert!(poll(&wake, &next).is_pending());
        wake.leaves();
        wake.tell();
        assert_eq!(calls(&next), 0);
        assert!(!wake.follow(&sender.1));
        // The next connection of the session sees that something came.
        assert!(poll(&wake, &task()).is_ready());
    }
}
