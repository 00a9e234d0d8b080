//! A CSV file as a sensor: one row, one reading, a JSON object by the header.
//!
//! Numbers stay numbers, digit by digit; an empty field is null; everything else is text. Reads RFC
//! 4180: quotes, doubled quotes, line breaks in quotes, CRLF. A row that does not fit its header is
//! left out and counted.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use holdfast_protocol::crypto::{HashAlg, hash};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::warn;

use super::Position;
use crate::outbox::{Append, Outbox};
use crate::status::Board;

/// The longest row, in bytes.
const MAX_ROW: u64 = 64 << 10;
/// The most columns.
const MAX_COLUMNS: usize = 1024;
/// Bytes of the file's start by which it is known again.
const START: u64 = 4096;
/// Pause before the file or the store is tried again, and between two looks for more rows.
const RETRY: Duration = Duration::from_millis(500);

/// A file being played.
#[derive(Debug)]
pub(super) struct Play<'a> {
    pub(super) name: &'a str,
    pub(super) file: &'a Path,
    pub(super) interval: Duration,
    pub(super) follow: bool,
}

impl Play<'_> {
    /// Plays to the end; begins again at the durable position after every fault.
    pub(super) async fn run(&self, outbox: &Outbox, board: &Board) {
        // Zero would panic: it means "as fast as the outbox takes them".
        let mut clock = tokio::time::interval(self.interval.max(Duration::from_nanos(1)));
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = String::new();
        loop {
            let fault = match self.play(outbox, board, &mut clock).await {
                Ok(()) => return,
                Err(fault) => fault.to_string(),
            };
            if told != fault {
                warn!(sensor = self.name, file = %self.file.display(), %fault, "will try again");
                told = fault;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn play(
        &self,
        outbox: &Outbox,
        board: &Board,
        clock: &mut Interval,
    ) -> Result<(), Fault> {
        let kept = Position::load(outbox, self.name)?;
        let mut rows = Rows::open(self.file, kept)?;
        board.source(self.name, rows.position.taken, rows.position.skipped);
        loop {
            clock.tick().await;
            let Some(reading) = rows.next(self.follow)? else {
                if !self.follow {
                    return Ok(());
                }
                if rows.was_replaced(self.file)? {
                    return Err(Fault::Replaced);
                }
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let position = rows.position.encode();
            let name = self.name.to_owned();
            outbox
                .append(Append {
                    name,
                    readings: vec![reading],
                    position,
                })
                .await?;
            board.source(self.name, rows.position.taken, rows.position.skipped);
        }
    }
}

/// Why playing stopped in between.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the file cannot be read ({0}): check csv in [[publish]]")]
    File(#[from] io::Error),
    #[error("the file was replaced; beginning with the new one")]
    Replaced,
    #[error("the file has no header row with 1 to {MAX_COLUMNS} different names")]
    Header,
    #[error(transparent)]
    Store(#[from] holdfast_store::StoreError),
}

/// The rows of an open file, from a position on.
#[derive(Debug)]
pub(super) struct Rows {
    input: BufReader<File>,
    columns: Vec<String>,
    /// After the last row given out.
    pub(super) position: Position,
    /// The first bytes of the file, as far as they have been read.
    start: Vec<u8>,
}

impl Rows {
    /// Opens the file at `kept`, or at its first row when it is another file than then.
    pub(super) fn open(path: &Path, kept: Option<Position>) -> Result<Self, Fault> {
        let file = File::open(path)?;
        let mut input = BufReader::new(file);
        let header = read_raw(&mut input)?.ok_or(Fault::Header)?;
        let columns = header_of(header.text()).ok_or(Fault::Header)?;
        let first = header.length;
        let mut rows = Self {
            input,
            columns,
            position: Position::default(),
            start: Vec::new(),
        };
        match kept {
            Some(kept) if rows.knows(&kept)? => rows.position = kept,
            Some(kept) if kept.offset > 0 => {
                warn!(file = %path.display(), "another file than the one played before: beginning with its first row");
                let (taken, skipped) = (kept.taken, kept.skipped);
                rows.position = Position {
                    offset: first,
                    taken,
                    skipped,
                    start: String::new(),
                };
            }
            _ => rows.position.offset = first,
        }
        rows.start = rows.read_start(rows.position.offset)?;
        rows.seal();
        rows.input.seek(SeekFrom::Start(rows.position.offset))?;
        Ok(rows)
    }

    /// The next row as a JSON object; `None` at the end. With `follow` a last line without its line
    /// break is still being written.
    pub(super) fn next(&mut self, follow: bool) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(raw) = read_raw(&mut self.input)? else {
                return Ok(None);
            };
            if !raw.ended && follow {
                self.input.seek(SeekFrom::Start(self.position.offset))?;
                return Ok(None);
            }
            self.advance(&raw);
            if raw.text().is_empty() {
                continue;
            }
            let fields = fields_of(raw.text());
            let fits = |fields: &Vec<String>| fields.len() == self.columns.len() && !raw.too_long;
            let Some(fields) = fields.filter(fits) else {
                self.position.skipped += 1;
                let (offset, columns) = (self.position.offset, self.columns.len());
                warn!(
                    offset,
                    columns, "a row does not fit its header and was left out"
                );
                continue;
            };
            self.position.taken += 1;
            return Ok(Some(object(&self.columns, &fields)));
        }
    }

    /// Whether the path leads to a shorter file than what was read, so to another one.
    fn was_replaced(&self, path: &Path) -> io::Result<bool> {
        Ok(std::fs::metadata(path)?.len() < self.position.offset)
    }

    fn advance(&mut self, raw: &Raw) {
        let room = usize::try_from(START)
            .unwrap_or(0)
            .saturating_sub(self.start.len());
        let grows = room > 0 && self.start.len() as u64 == self.position.offset;
        self.position.offset += raw.length;
        if grows {
            self.start.extend(raw.whole.iter().take(room));
            self.seal();
        }
    }

    fn knows(&mut self, kept: &Position) -> io::Result<bool> {
        if self.input.get_ref().metadata()?.len() < kept.offset {
            return Ok(false);
        }
        Ok(kept.start == fingerprint(&self.read_start(kept.offset)?))
    }

    fn read_start(&mut self, offset: u64) -> io::Result<Vec<u8>> {
        self.input.seek(SeekFrom::Start(0))?;
        let mut start = Vec::new();
        self.input
            .by_ref()
            .take(offset.min(START))
            .read_to_end(&mut start)?;
        Ok(start)
    }

    fn seal(&mut self) {
        self.position.start = fingerprint(&self.start);
    }
}

fn fingerprint(start: &[u8]) -> String {
    hash(HashAlg::Sha256, start)
        .value()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// One row as it stands in the file.
#[derive(Debug)]
struct Raw {
    /// With its line break, in as many bytes as the file has for it.
    whole: Vec<u8>,
    /// In bytes; more than `whole` for a line over the bound.
    length: u64,
    /// Whether it is complete: a line break outside quotes ended it.
    ended: bool,
    /// Over the bound.
    too_long: bool,
}

impl Raw {
    /// The row without its line break.
    fn text(&self) -> &[u8] {
        let end = self
            .whole
            .iter()
            .rposition(|byte| !matches!(byte, b'\n' | b'\r'));
        &self.whole[..end.map_or(0, |end| end + 1)]
    }
}

/// Reads up to a line break outside quotes; `None` at the end of the file.
fn read_raw(input: &mut BufReader<File>) -> io::Result<Option<Raw>> {
    let mut whole = Vec::new();
    let mut open = false;
    loop {
        let from = whole.len();
        let room = MAX_ROW.saturating_sub(from as u64);
        let read = input.by_ref().take(room).read_until(b'\n', &mut whole)?;
        let quotes = whole[from..].iter().filter(|byte| **byte == b'"').count();
        open ^= !quotes.is_multiple_of(2);
        if read == 0 || (!open && whole.last() == Some(&b'\n')) {
            break;
        }
    }
    if whole.is_empty() {
        return Ok(None);
    }
    let ended = !open && whole.last() == Some(&b'\n');
    let length = whole.len() as u64;
    if length < MAX_ROW || ended {
        return Ok(Some(Raw {
            whole,
            length,
            ended,
            too_long: false,
        }));
    }
    first_line_only(input, whole).map(Some)
}

/// A quote that nothing closes must not swallow the rows behind it: only its line is bad.
fn first_line_only(input: &mut BufReader<File>, mut whole: Vec<u8>) -> io::Result<Raw> {
    if let Some(line) = whole.iter().position(|byte| *byte == b'\n') {
        let back = i64::try_from(whole.len() - line - 1).map_err(io::Error::other)?;
        input.seek_relative(-back)?;
        whole.truncate(line + 1);
        let length = whole.len() as u64;
        return Ok(Raw {
            whole,
            length,
            ended: true,
            too_long: true,
        });
    }
    let mut length = whole.len() as u64;
    loop {
        let mut more = Vec::new();
        let read = input.by_ref().take(MAX_ROW).read_until(b'\n', &mut more)?;
        length += read as u64;
        if read == 0 || more.last() == Some(&b'\n') {
            return Ok(Raw {
                whole,
                length,
                ended: read > 0,
                too_long: true,
            });
        }
    }
}

fn header_of(bytes: &[u8]) -> Option<Vec<String>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let columns = fields_of(bytes)?;
    let mut sorted = columns.clone();
    sorted.sort();
    sorted.dedup();
    let good = sorted.len() == columns.len()
        && columns.len() <= MAX_COLUMNS
        && columns.iter().all(|name| !name.is_empty());
    good.then_some(columns)
}

/// The fields of a row; `None` when it is not UTF-8 or its quotes do not match.
fn fields_of(bytes: &[u8]) -> Option<Vec<String>> {
    let mut rest = std::str::from_utf8(bytes).ok()?;
    let mut fields = Vec::new();
    loop {
        let after = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (field, after) = unquote(quoted)?;
                fields.push(field);
                after
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                fields.push(rest[..end].to_owned());
                &rest[end..]
            }
        };
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

fn unquote(mut rest: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    loop {
        let end = rest.find('"')?;
        field.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Some((field, rest)),
        }
    }
}

fn object(columns: &[String], fields: &[String]) -> Vec<u8> {
    let mut text = String::from("{");
    for (column, field) in columns.iter().zip(fields) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&quote(column));
        text.push(':');
        match field.as_str() {
            "" => text.push_str("null"),
            number if is_number(number) => text.push_str(number),
            other => text.push_str(&quote(other)),
        }
    }
    text.push('}');
    text.into_bytes()
}

fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

/// The number grammar of JSON (RFC 8259), so that the digits go out as they came in.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = text.strip_prefix('-').unwrap_or(text);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest.starts_with('0')) {
        return false;
    }
    let mut rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix('.') {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let Some(power) = rest.strip_prefix(['e', 'E']) {
        let power = power.strip_prefix(['+', '-']).unwrap_or(power);
        let count = digits(power);
        return count > 0 && count == power.len();
    }
    rest.is_empty()
}
