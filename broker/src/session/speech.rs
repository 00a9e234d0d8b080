//! First and last words: reading through a thread's buffer, refusing, saying goodbye.
//!
//! Used by `run`, which owns the socket.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};

use super::start::v3_code;
use crate::codec::{self, Connack, Fault, code};
use crate::socket::Socket;

/// Bytes that are heard out after our last words, and for how long.
const LAST_BYTES: usize = 4 << 20;
const LAST_TIME: Duration = Duration::from_secs(5);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Bytes read at once.
const READ: usize = 64 << 10;
thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

/// Hands what is there to `take`; `None` at the end of the stream.
pub(super) fn poll_read<T>(
    socket: &mut Socket,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<Option<T>>> {
    READ_BUFFER.with_borrow_mut(|buffer| {
        let length = ready!(socket.poll_read(cx, buffer))?;
        Poll::Ready(Ok((length > 0).then(|| take(&buffer[..length]))))
    })
}

/// A CONNECT that cannot be read is answered only when its version can be told [MQTT-3.1.4-1].
pub(super) async fn tell_refusal(socket: &mut Socket, fault: Fault) {
    let mut out = BytesMut::new();
    match fault {
        Fault::Version => codec::connack(
            &mut out,
            &Connack {
                code: v3_code(code::VERSION),
                ..Connack::default()
            },
            false,
        ),
        Fault::AuthenticationMethod => codec::connack(
            &mut out,
            &Connack {
                // Without a reason: how much the client takes was not read [MQTT-3.2.2-19].
                code: fault.code(),
                ..Connack::default()
            },
            true,
        ),
        _ => return,
    }
    goodbye(socket, &mut out).await;
}

/// Writes the rest and closes, within a bound.
pub(super) async fn goodbye(socket: &mut Socket, out: &mut BytesMut) {
    let last = async {
        while out.has_remaining() {
            let written = std::future::poll_fn(|cx| socket.poll_write(cx, out)).await?;
            if written == 0 {
                break;
            }
            out.advance(written);
        }
        std::future::poll_fn(|cx| socket.poll_flush(cx)).await?;
        std::future::poll_fn(|cx| socket.poll_shutdown(cx)).await
    };
    // A peer that is gone cannot be told.
    let _ = tokio::time::timeout(GOODBYE, last).await;
}

/// A client that is still sending would never see our last words, since closing on unread bytes throws
/// away what is on its way to it: what it says is heard out for a moment.
pub(super) async fn listen_on(socket: &mut Socket) {
    let heard = async {
        let mut left = LAST_BYTES;
        while left > 0 {
            let read = std::future::poll_fn(|cx| poll_read(socket, cx, <[u8]>::len)).await;
            let Ok(Some(length)) = read else { break };
            left = left.saturating_sub(length);
        }
    };
    // More than that, or longer, is its own loss.
    let _ = tokio::time::timeout(LAST_TIME, heard).await;
}
