//! The gateway's side of the counter: which turn it has, in a small doubly written file beside the
//! keys. What is shown is on the disk before, always: a gateway that showed more than its disk
//! knows would look like a copy of itself after a power cut.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::wire::cbor::{self, CborError, Reader};
use holdfast_store::StoreError;
use holdfast_store::twice::Twice;
use rand_core::Rng as _;
use tokio::time::Instant;

use super::{MOST_STARTS, Mark, Turn, bounded};

/// How often a turn is taken while the gateway runs: each is a write to the disk at both ends. Two
/// machines with one state part within this time; one started from a copy parts at once.
pub(crate) const TURN: Duration = Duration::from_secs(600);
/// Name of the file, in the folder of the keys.
const FILE: &str = "turn";
/// Longest mark.
const MAX_MARK: usize = 32;

/// The gateway's counter; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Own(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// None: both copies are bad. It shows nothing then, and the cloud tells an operator.
    file: Option<Twice>,
    /// The enrolment that the counter belongs to.
    epoch: u32,
    /// As on the disk.
    turn: Option<Turn>,
    /// This start of the program.
    start: Mark,
    /// When the cloud first answered the present turn; none: not yet, for all we know.
    answered: Option<Instant>,
    /// Whether this start took a turn of its own.
    began: bool,
}

impl Own {
    /// Opens the file in the folder of the keys; a counter of an earlier enrolment is over.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn open(folder: &Path, epoch: u32) -> Result<Self, StoreError> {
        let opened = match Twice::open(folder.join(FILE)) {
            Ok(file) => decode(file.content()).map(|kept| (file, kept)),
            Err(StoreError::Damaged { .. }) => Err(CborError::Value("turn")),
            Err(other) => return Err(other),
        };
        let (file, turn) = match opened {
            Ok((file, kept)) => {
                let kept = kept.filter(|(of, _)| *of == epoch);
                (Some(file), kept.map(|(_, turn)| turn))
            }
            Err(_) => {
                tracing::error!(folder = %folder.display(),
                    "both copies of this gateway's counter are damaged: the cloud will lock it out until its operator runs 'gateways unlock'");
                (None, None)
            }
        };
        Ok(Self(Arc::new(Mutex::new(State {
            file,
            epoch,
            turn,
            start: mark(),
            answered: None,
            began: false,
        }))))
    }

    /// What to show now: the present turn, or the next if it is time, and then it is on the disk.
    pub(crate) fn show(&self) -> Option<Turn> {
        let mut state = self.lock();
        if let Some(next) = state.next()
            && let Err(error) = state.keep(next)
        {
            tracing::warn!(%error, "the gateway's counter cannot be written; it goes on with the present turn");
        }
        state.turn.clone()
    }

    /// The cloud served who showed this.
    pub(crate) fn answered(&self, shown: &Turn) {
        let mut state = self.lock();
        if state.turn.as_ref() == Some(shown) && state.answered.is_none() {
            state.answered = Some(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The turn to be written, if not the present one goes on.
    fn next(&self) -> Option<Turn> {
        let Some(present) = &self.turn else {
            return Some(Turn {
                number: 1,
                last: Mark::default(),
                this: mark(),
                starts: vec![self.start.clone()],
            });
        };
        if !present.starts.contains(&self.start) {
            let mut again = present.clone();
            again.starts.push(self.start.clone());
            again.starts = bounded(again.starts);
            return Some(again);
        }
        // Only what the cloud answered may be left behind.
        let since = self.answered?.elapsed();
        (!self.began || since >= TURN).then(|| Turn {
            number: present.number + 1,
            last: present.this.clone(),
            this: mark(),
            starts: vec![self.start.clone()],
        })
    }

    fn keep(&mut self, turn: Turn) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.write(&encode(self.epoch, &turn))?;
        let present = self.turn.as_ref().map_or(0, |turn| turn.number);
        if turn.number > present {
            self.began = true;
            self.answered = None;
        }
        self.turn = Some(turn);
        Ok(())
    }
}

fn mark() -> Mark {
    let mut bytes = [0; 16];
    SystemRandom.fill_bytes(&mut bytes);
    Mark::of(bytes)
}

fn encode(epoch: u32, turn: &Turn) -> Vec<u8> {
    cbor::encode(|w| {
        w.array(5).uint(epoch.into()).uint(turn.number);
        w.text(&turn.last.0).text(&turn.this.0);
        w.array(turn.starts.len());
        turn.starts.iter().for_each(|start| _ = w.text(&start.0));
    })
}

/// An empty file is a first start.
fn decode(bytes: &[u8]) -> Result<Option<(u32, Turn)>, CborError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut r = Reader::new(bytes)?;
    r.array(5)?;
    let (epoch, number) = (r.small()?, r.uint()?);
    let mut mark = || -> Result<Mark, CborError> {
        let text = r.text(MAX_MARK)?.to_owned();
        Mark::try_from(text).map_err(CborError::Value)
    };
    let (last, this) = (mark()?, mark()?);
    let len = r.array_len(MOST_STARTS)?;
    let starts = (0..len).map(|_| {
        let text = r.text(MAX_MARK)?.to_owned();
        Mark::try_from(text).map_err(CborError::Value)
    });
    let starts = starts.collect::<Result<_, _>>()?;
    r.end()?;
    let turn = Turn {
        number,
        last,
        this,
        starts,
    };
    Ok(Some((epoch, turn)))
}
