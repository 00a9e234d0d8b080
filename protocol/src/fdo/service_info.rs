//! ServiceInfo: what owner and device tell each other inside TO2's tunnel (wire section 16).
//!
//! Both sides put whole values into an [`Outbox`] and get whole values out of their turn. Cutting
//! into messages that the peer accepts, and joining again, happens here, bounded in every
//! direction: an item, a message's pairs, a session's bytes and rounds.

use std::collections::VecDeque;

use super::Error;
use crate::wire::cbor::{self, CborError, Reader, Writer};

/// Message size that holds when the peer names none, in bytes.
pub const DEFAULT_MTU: u16 = 1300;
/// Smallest message size that a peer may ask for; below it we use this one.
pub const MIN_MTU: u16 = 256;
/// Largest message size that we use or ask for: sealed, it still fits a body of 65535 bytes.
pub const MAX_MTU: u16 = 65_000;
/// Largest value of one item, put together.
pub const MAX_ITEM: usize = 64 * 1024;
/// Most rounds (68/69) of one session.
pub const MAX_ROUNDS: u32 = 1000;
/// Most bytes taken in during one session.
pub const MAX_SESSION_BYTES: usize = 1 << 20;
/// Most bytes waiting in an outbox.
pub const MAX_OUTBOX_BYTES: usize = 1 << 20;
/// Most pairs in one message.
const MAX_PAIRS: usize = 512;
/// Longest `module:message`, in bytes.
const MAX_KEY: usize = 128;
/// Most modules that a device may list.
pub const MAX_MODULES: usize = 64;
/// Longest text in devmod.
const MAX_TEXT: usize = 256;
/// Bytes of a message around the ServiceInfo array, as peers count them.
const FRAME: usize = 3;
/// Heads of one pair at most: array, key, value.
const PAIR_HEADS: usize = 1 + 2 + 3;
/// Head of the ServiceInfo array at most.
const ARRAY_HEAD: usize = 3;
/// A value is not cut into pieces smaller than this.
const LEAST_PIECE: usize = 32;

/// One value under its key `module:message`; the value is one CBOR item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Name of the module, such as `devmod` or `fdo.csr`.
    pub module: String,
    /// Name of the message within the module.
    pub message: String,
    /// The value, encoded.
    pub value: Vec<u8>,
}

/// The outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_OUTBOX_BYTES} bytes wait to be sent, or one value or its key is too long")]
pub struct OutboxFull;

/// Values waiting to be sent, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Item>,
    /// How much of the first item's value has left already.
    sent: usize,
    bytes: usize,
}

impl Outbox {
    /// Adds a value at the end; `value` is one encoded CBOR item.
    pub fn push(&mut self, module: &str, message: &str, value: Vec<u8>) -> Result<(), OutboxFull> {
        debug_assert!(cbor::check(&value).is_ok(), "a value is one CBOR item");
        // A key that leaves no room for its value would wait for ever.
        let key = module.len() + 1 + message.len();
        if key > MAX_KEY || value.len() > MAX_ITEM || self.bytes + value.len() > MAX_OUTBOX_BYTES {
            return Err(OutboxFull);
        }
        self.bytes += value.len();
        self.queue.push_back(Item {
            module: module.to_owned(),
            message: message.to_owned(),
            value,
        });
        Ok(())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes out as much as fits a message of `mtu` bytes, encoded as a ServiceInfo array.
    pub(super) fn fill(&mut self, mtu: u16) -> Vec<u8> {
        let mut room = usize::from(mtu.clamp(MIN_MTU, MAX_MTU)) - FRAME - ARRAY_HEAD;
        let mut pairs = Vec::new();
        while let Some(first) = self.queue.front()
            && pairs.len() < MAX_PAIRS
        {
            let key = format!("{}:{}", first.module, first.message);
            let left = &first.value[self.sent..];
            let space = room.saturating_sub(PAIR_HEADS + key.len());
            if space < left.len().min(LEAST_PIECE) {
                break;
            }
            let piece = &left[..left.len().min(space)];
            room -= PAIR_HEADS + key.len() + piece.len();
            pairs.push(cbor::encode(|w| _ = w.array(2).text(&key).bytes(piece)));
            self.sent += piece.len();
            if self.sent == first.value.len() {
                self.bytes -= first.value.len();
                self.sent = 0;
                self.queue.pop_front();
            }
        }
        cbor::encode(|w| {
            w.array(pairs.len());
            pairs.iter().for_each(|pair| _ = w.raw(pair));
        })
    }
}

/// An empty ServiceInfo.
pub(super) fn nothing() -> Vec<u8> {
    cbor::encode(|w| _ = w.array(0))
}

/// Puts values together and counts what a session takes in.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// Key and bytes of a value that is not complete yet.
    partial: Option<(String, Vec<u8>)>,
    taken: usize,
    rounds: u32,
}

impl Inbox {
    /// Reads one message's ServiceInfo: the values that are complete now. Consecutive pairs with one
    /// key are one stream of CBOR items, also across messages.
    pub(super) fn take(&mut self, r: &mut Reader<'_>) -> Result<Vec<Item>, CborError> {
        let len = r.array_len(MAX_PAIRS)?;
        let mut items = Vec::new();
        for _ in 0..len {
            r.array(2)?;
            let key = r.text(MAX_KEY)?;
            let value = r.bytes(MAX_ITEM)?;
            self.taken += key.len() + value.len();
            self.join(key, value, &mut items)?;
        }
        Ok(items)
    }

    /// Counts a round; an error when a bound is reached.
    pub(super) fn count(&mut self) -> Result<(), Error> {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            return Err(Error::TooMuch("rounds of service info"));
        }
        if self.taken > MAX_SESSION_BYTES {
            return Err(Error::TooMuch("bytes of service info"));
        }
        Ok(())
    }

    /// Whether the end of a value is still to come.
    pub(super) fn is_mid_value(&self) -> bool {
        self.partial.is_some()
    }

    fn join(&mut self, key: &str, value: &[u8], items: &mut Vec<Item>) -> Result<(), CborError> {
        let mut bytes = match self.partial.take() {
            Some((before, bytes)) if before == key => bytes,
            Some(_) => return Err(CborError::Value("service info value cut short")),
            None => Vec::new(),
        };
        bytes.extend_from_slice(value);
        if bytes.len() > MAX_ITEM {
            return Err(CborError::TooLong("service info value"));
        }
        let (module, message) = split_key(key)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let Some(len) = cbor::first_item(rest)? else {
                self.partial = Some((key.to_owned(), rest.to_vec()));
                break;
            };
            items.push(Item {
                module: module.to_owned(),
                message: message.to_owned(),
                value: rest[..len].to_vec(),
            });
            rest = &rest[len..];
        }
        Ok(())
    }
}

fn split_key(key: &str) -> Result<(&str, &str), CborError> {
    key.split_once(':')
        .filter(|(module, message)| !module.is_empty() && !message.is_empty())
        .ok_or(CborError::Value("service info key"))
}

/// What a device tells of itself before anything else (`devmod`, section 16.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevMod {
    /// Operating system.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Version of the operating system.
    pub version: String,
    /// Model.
    pub device: String,
    /// Serial number, if told.
    pub serial: Option<String>,
    /// Separator of file names.
    pub sep: String,
    /// Kinds of programs that it runs, separated by `;`.
    pub bin: String,
    /// ServiceInfo modules that it speaks.
    pub modules: Vec<String>,
}

impl DevMod {
    /// Puts all of it into the outbox of a device.
    pub fn push_to(&self, outbox: &mut Outbox) -> Result<(), OutboxFull> {
        let mut push = |message: &str, f: &dyn Fn(&mut Writer)| {
            outbox.push("devmod", message, cbor::encode(f))
        };
        push("active", &|w| _ = w.bool(true))?;
        for (message, text) in [
            ("os", &self.os),
            ("arch", &self.arch),
            ("version", &self.version),
            ("device", &self.device),
            ("sep", &self.sep),
            ("bin", &self.bin),
        ] {
            push(message, &|w| _ = w.text(text))?;
        }
        if let Some(serial) = &self.serial {
            push("sn", &|w| _ = w.text(serial))?;
        }
        push("nummodules", &|w| _ = w.uint(self.modules.len() as u64))?;
        push("modules", &|w| {
            w.array(2 + self.modules.len())
                .uint(0)
                .uint(self.modules.len() as u64);
            self.modules.iter().for_each(|name| _ = w.text(name));
        })
    }

    /// Whether the device speaks `module`.
    pub fn speaks(&self, module: &str) -> bool {
        self.modules.iter().any(|name| name == module)
    }
}

/// Collects devmod on the owner's side.
#[derive(Debug, Default)]
pub(super) struct DevModInbox {
    devmod: DevMod,
    active: bool,
    announced: Option<usize>,
}

impl DevModInbox {
    pub(super) fn devmod(&self) -> &DevMod {
        &self.devmod
    }

    /// Whether the device said all that it must say before other modules.
    pub(super) fn is_complete(&self) -> bool {
        self.active && self.announced.is_some()
    }

    /// Takes one item of the module; unknown messages are let pass.
    pub(super) fn take(&mut self, item: &Item) -> Result<(), CborError> {
        let mut r = Reader::new(&item.value)?;
        match item.message.as_str() {
            "active" => {
                self.active = r.bool()?;
                return Ok(());
            }
            "nummodules" => {
                let announced: usize = r.small()?;
                if announced > MAX_MODULES {
                    return Err(CborError::TooLong("devmod:nummodules"));
                }
                self.announced = Some(announced);
                return Ok(());
            }
            "modules" => return self.take_modules(&mut r),
            _ => {}
        }
        let field = match item.message.as_str() {
            "os" => &mut self.devmod.os,
            "arch" => &mut self.devmod.arch,
            "version" => &mut self.devmod.version,
            "device" => &mut self.devmod.device,
            "sep" => &mut self.devmod.sep,
            "bin" => &mut self.devmod.bin,
            "sn" if r.kind() == cbor::Kind::Text => self.devmod.serial.get_or_insert_default(),
            _ => return Ok(()),
        };
        *field = r.text(MAX_TEXT)?.to_owned();
        Ok(())
    }

    /// `[start, count, names...]`; the numbers are informative, names of any kind are let pass.
    fn take_modules(&mut self, r: &mut Reader<'_>) -> Result<(), CborError> {
        let len = r.array_len(MAX_MODULES + 2)?;
        if len < 2 {
            return Err(CborError::Value("devmod:modules"));
        }
        r.uint()?;
        r.uint()?;
        for _ in 2..len {
            let name = r.text(MAX_KEY)?;
            if self.devmod.modules.len() == MAX_MODULES {
                return Err(CborError::TooLong("devmod:modules"));
            }
            self.devmod.modules.push(name.to_owned());
        }
        Ok(())
    }
}
