//! Lines of standard input as a sensor: each line is one reading, as it is.
//!
//! What was read before a crash and not yet written is gone with the pipe: whoever pipes wants to see
//! the agent end. Empty lines are left out; lines over the bound are left out and counted.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use super::Position;
use crate::outbox::{Append, MAX_APPEND, MAX_READING, Outbox};
use crate::status::Board;

/// Pause before the store is tried again.
const RETRY: Duration = Duration::from_millis(200);

enum Line {
    Reading(Vec<u8>),
    TooLong,
}

/// Reads to the end of the input; lines that wait share a commit.
///
/// The input has a thread of its own, which outlives this future if it must: a read from a terminal
/// or a pipe cannot be called off. It ends with its input or with the process.
pub(super) async fn run(
    name: &str,
    input: impl BufRead + Send + 'static,
    outbox: &Outbox,
    board: &Board,
) {
    let (lines, mut waiting) = mpsc::channel(MAX_APPEND);
    let sensor = name.to_owned();
    let reader = std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            if let Err(error) = read(input, &lines) {
                warn!(%sensor, %error, "standard input failed");
            }
        });
    if let Err(error) = reader {
        warn!(sensor = name, %error, "standard input cannot be read");
        return;
    }
    let mut position = load(outbox, name).await;
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, MAX_APPEND).await > 0 {
        let mut readings = Vec::new();
        for line in batch.drain(..) {
            match line {
                Line::Reading(reading) => readings.push(reading),
                Line::TooLong => position.skipped += 1,
            }
        }
        position.taken += readings.len() as u64;
        keep(outbox, name, readings, &position).await;
        board.source(name, position.taken, position.skipped);
    }
}

fn read(mut input: impl BufRead, lines: &mpsc::Sender<Line>) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        let bound = MAX_READING as u64 + 2;
        if input.by_ref().take(bound).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        while matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        let line = match line.len() {
            0 => continue,
            1..=MAX_READING => Line::Reading(line),
            _ => {
                if !whole {
                    input.skip_until(b'\n')?;
                }
                Line::TooLong
            }
        };
        if lines.blocking_send(line).is_err() {
            return Ok(());
        }
    }
}

/// Appends until it is in. After a failure the stored count tells whether it already is.
async fn keep(outbox: &Outbox, name: &str, readings: Vec<Vec<u8>>, position: &Position) {
    loop {
        let append = Append {
            name: name.to_owned(),
            readings: readings.clone(),
            position: position.encode(),
        };
        match outbox.append(append).await {
            Ok(()) => return,
            Err(error) => warn!(sensor = name, %error, "will try again"),
        }
        tokio::time::sleep(RETRY).await;
        if load(outbox, name).await == *position {
            return;
        }
    }
}

async fn load(outbox: &Outbox, name: &str) -> Position {
    loop {
        match Position::load(outbox, name) {
            Ok(position) => return position.unwrap_or_default(),
            Err(error) => warn!(sensor = name, %error, "will try again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
