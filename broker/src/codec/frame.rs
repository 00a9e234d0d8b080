//! A stream of bytes to frames: fixed header, remaining length, body.
//!
//! Called with every chunk that comes from a socket. It keeps only what an unfinished frame has sent
//! so far, never allocates by a declared length, and refuses lengths above the bound at once.

use bytes::{Buf, BytesMut};

use super::Fault;

/// The unfinished end of the stream.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    partial: BytesMut,
}

/// What the taker of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Go,
    /// Something slow is to be done before the next frame.
    Pause,
}

/// The head of a frame.
enum Head {
    Incomplete,
    /// Bytes of the head and of the body.
    Whole(usize, usize),
}

impl Frames {
    /// Hands each whole frame of at most `bound` bytes to `take` (first byte, body) and keeps the
    /// rest. When `take` asks for a pause, whole frames may be kept too: true says so, and an empty
    /// chunk goes on with them.
    pub(crate) fn feed(
        &mut self,
        chunk: &[u8],
        bound: usize,
        mut take: impl FnMut(u8, &[u8]) -> Result<Flow, Fault>,
    ) -> Result<bool, Fault> {
        if self.partial.is_empty() {
            let (used, paused) = split(chunk, bound, &mut take)?;
            self.partial.extend_from_slice(&chunk[used..]);
            return Ok(paused);
        }
        self.partial.extend_from_slice(chunk);
        let (used, paused) = split(&self.partial, bound, &mut take)?;
        self.partial.advance(used);
        if self.partial.is_empty() {
            // An idle connection holds no buffer.
            self.partial = BytesMut::new();
        }
        Ok(paused)
    }

    /// The first byte of an unfinished frame.
    pub(crate) fn first_byte(&self) -> Option<u8> {
        self.partial.first().copied()
    }

    /// Bytes kept for an unfinished frame.
    pub(crate) fn held(&self) -> usize {
        self.partial.len()
    }
}

fn split(
    bytes: &[u8],
    bound: usize,
    take: &mut impl FnMut(u8, &[u8]) -> Result<Flow, Fault>,
) -> Result<(usize, bool), Fault> {
    let mut used = 0;
    loop {
        let rest = &bytes[used..];
        let Head::Whole(head, body) = head(rest)? else {
            return Ok((used, false));
        };
        let whole = head + body;
        if whole > bound {
            return Err(Fault::PacketTooLarge);
        }
        if rest.len() < whole {
            return Ok((used, false));
        }
        let flow = take(rest[0], &rest[head..whole])?;
        used += whole;
        if flow == Flow::Pause {
            return Ok((used, true));
        }
    }
}

/// The remaining length has at most four bytes, and no more than needed [MQTT-1.5.5-1].
fn head(bytes: &[u8]) -> Result<Head, Fault> {
    let mut length = 0usize;
    for (index, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return Err(Fault::Malformed);
            }
            return Ok(Head::Whole(index + 2, length));
        }
        if index == 3 {
            return Err(Fault::Malformed);
        }
    }
    Ok(Head::Incomplete)
}
