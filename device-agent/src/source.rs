//! The sensors: each turns its input into readings and puts them in the outbox, together with the
//! place where it goes on.
//!
//! Started by `app` once the device is onboarded, one task each. After a failed write the durable
//! position decides where to go on, since the write may be in. A sensor waits while the outbox is
//! full; it never drops a reading, and counts the rows that are none.

mod csv;
mod lines;

use holdfast_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::config::{Input, Source};
use crate::outbox::Outbox;
use crate::status::Board;

/// What a sensor remembers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Byte of the input at which it goes on.
    pub offset: u64,
    /// Readings taken so far.
    pub taken: u64,
    /// Rows that were none and were left out.
    pub skipped: u64,
    /// SHA-256 (hex) of the first bytes of the input, so that another file is not taken for it.
    pub start: String,
}

impl Position {
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and text are JSON")
    }

    fn load(outbox: &Outbox, name: &str) -> Result<Option<Self>, StoreError> {
        let stored = outbox.position(name)?;
        Ok(stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }
}

/// Runs a sensor until its input ends.
pub async fn run(source: Source, outbox: Outbox, board: Board) {
    match &source.input {
        Input::Csv {
            file,
            interval,
            follow,
        } => {
            let play = csv::Play {
                name: &source.name,
                file,
                interval: *interval,
                follow: *follow,
            };
            play.run(&outbox, &board).await;
        }
        Input::Stdin => {
            let input = std::io::BufReader::new(std::io::stdin());
            lines::run(&source.name, input, &outbox, &board).await;
        }
    }
    board.source_ended(&source.name);
    tracing::info!(sensor = %source.name, "the sensor's input has ended");
}

#[cfg(test)]
mod tests;
