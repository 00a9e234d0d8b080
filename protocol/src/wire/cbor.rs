//! Strict, bounded CBOR: one item, definite lengths, shortest forms, no trailing bytes.
//!
//! Every parser of this crate reads through [`Reader`], which checks a whole input once before it
//! hands out the first value, so a half-valid message is never half acted on. minicbor does the
//! decoding of heads. [`Writer`] emits only what [`Reader`] accepts. Nothing here allocates by a
//! length that the peer declared.

use minicbor::data::Type;

/// Deepest nesting accepted within one item; a byte string that wraps CBOR starts anew.
pub const MAX_DEPTH: usize = 16;

/// Why a CBOR text was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// The text ends inside an item.
    #[error("the text ends inside an item")]
    Truncated,
    /// Bytes are left after the item.
    #[error("bytes are left after the item")]
    Trailing,
    /// Not well-formed CBOR.
    #[error("not well-formed CBOR")]
    Malformed,
    /// An integer or length is not in its shortest form.
    #[error("an integer or length is not in its shortest form")]
    NotShortest,
    /// An indefinite length.
    #[error("an indefinite length is not accepted")]
    Indefinite,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested too deep")]
    TooDeep,
    /// Another type than the one named.
    #[error("expected {0}")]
    Expected(&'static str),
    /// A list, string or number exceeds its bound; the name says which.
    #[error("{0} exceeds its bound")]
    TooLong(&'static str),
    /// Well-formed but not a legal value; the name says of what.
    #[error("illegal value: {0}")]
    Value(&'static str),
}

/// Checks that `bytes` are exactly one item within all rules of this room.
pub fn check(bytes: &[u8]) -> Result<(), CborError> {
    let end = item_end(bytes, 0)?;
    if end == bytes.len() {
        Ok(())
    } else {
        Err(CborError::Trailing)
    }
}

/// Length of the item at the head of `bytes`, or none if `bytes` end inside it. For texts that
/// arrive in pieces; a count beyond what has arrived is not an error yet.
pub fn first_item(bytes: &[u8]) -> Result<Option<usize>, CborError> {
    match item_end(bytes, 0) {
        Ok(end) => Ok(Some(end)),
        Err(CborError::Truncated) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Finds the end of the item that starts at `start`, checking it on the way. Iterative: the depth
/// of the input never becomes depth of our stack.
fn item_end(bytes: &[u8], start: usize) -> Result<usize, CborError> {
    let mut open = [0_u64; MAX_DEPTH];
    let mut depth = 0;
    let mut at = start;
    loop {
        let head = Head::read(bytes, at)?;
        at += head.len;
        let children = match head.major {
            2 | 3 => {
                let len = usize::try_from(head.argument).map_err(|_| CborError::Truncated)?;
                let end = at.checked_add(len).filter(|end| *end <= bytes.len());
                let end = end.ok_or(CborError::Truncated)?;
                if head.major == 3 && std::str::from_utf8(&bytes[at..end]).is_err() {
                    return Err(CborError::Malformed);
                }
                at = end;
                0
            }
            4 => head.argument,
            5 => head.argument.checked_mul(2).ok_or(CborError::Truncated)?,
            6 => 1,
            _ => 0,
        };
        if children > 0 {
            // Each child takes a byte at least; a count beyond the text is a lie found early.
            if children > (bytes.len() - at) as u64 {
                return Err(CborError::Truncated);
            }
            if depth == MAX_DEPTH {
                return Err(CborError::TooDeep);
            }
            open[depth] = children;
            depth += 1;
            continue;
        }
        loop {
            if depth == 0 {
                return Ok(at);
            }
            open[depth - 1] -= 1;
            if open[depth - 1] > 0 {
                break;
            }
            depth -= 1;
        }
    }
}

/// Major type, argument and length of one item's head.
struct Head {
    major: u8,
    argument: u64,
    len: usize,
}

impl Head {
    fn read(bytes: &[u8], at: usize) -> Result<Self, CborError> {
        let first = *bytes.get(at).ok_or(CborError::Truncated)?;
        let (major, low) = (first >> 5, first & 0x1f);
        let width = match low {
            0..=23 => {
                return Ok(Self {
                    major,
                    argument: u64::from(low),
                    len: 1,
                });
            }
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            31 if (2..=5).contains(&major) => return Err(CborError::Indefinite),
            _ => return Err(CborError::Malformed),
        };
        let field = bytes
            .get(at + 1..at + 1 + width)
            .ok_or(CborError::Truncated)?;
        let argument = field
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        // For major type 7 the argument is a float or a simple value: only the latter has a rule.
        let least = match (major, width) {
            (7, 1) => 32,
            (7, _) => 0,
            (_, 1) => 24,
            (_, 2) => 1 << 8,
            (_, 4) => 1 << 16,
            _ => 1 << 32,
        };
        if argument < least {
            return Err(CborError::NotShortest);
        }
        Ok(Self {
            major,
            argument,
            len: 1 + width,
        })
    }
}

/// What the next item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Unsigned or negative integer.
    Int,
    /// Byte string.
    Bytes,
    /// Text string.
    Text,
    /// Array.
    Array,
    /// Map.
    Map,
    /// Tagged item.
    Tag,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
    /// Floats, other simple values, or no item at all.
    Other,
}

/// Reads values from a text that was checked as a whole.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    decoder: minicbor::Decoder<'a>,
}

impl<'a> Reader<'a> {
    /// Checks that `bytes` are exactly one well-formed item and starts reading it.
    pub fn new(bytes: &'a [u8]) -> Result<Self, CborError> {
        check(bytes)?;
        Ok(Self {
            decoder: minicbor::Decoder::new(bytes),
        })
    }

    /// What comes next, without reading it.
    pub fn kind(&self) -> Kind {
        match self.decoder.datatype() {
            Ok(
                Type::U8
                | Type::U16
                | Type::U32
                | Type::U64
                | Type::I8
                | Type::I16
                | Type::I32
                | Type::I64
                | Type::Int,
            ) => Kind::Int,
            Ok(Type::Bytes) => Kind::Bytes,
            Ok(Type::String) => Kind::Text,
            Ok(Type::Array) => Kind::Array,
            Ok(Type::Map) => Kind::Map,
            Ok(Type::Tag) => Kind::Tag,
            Ok(Type::Bool) => Kind::Bool,
            Ok(Type::Null) => Kind::Null,
            _ => Kind::Other,
        }
    }

    /// The head of an array of exactly `len` elements.
    pub fn array(&mut self, len: usize) -> Result<(), CborError> {
        if self.array_len(len)? == len {
            Ok(())
        } else {
            Err(CborError::Value("array length"))
        }
    }

    /// The head of an array; its length, at most `max`.
    pub fn array_len(&mut self, max: usize) -> Result<usize, CborError> {
        let len = self
            .decoder
            .array()
            .map_err(|_| CborError::Expected("an array"))?;
        bounded(len, max, "array")
    }

    /// The head of a map; its number of pairs, at most `max`.
    pub fn map_len(&mut self, max: usize) -> Result<usize, CborError> {
        let len = self
            .decoder
            .map()
            .map_err(|_| CborError::Expected("a map"))?;
        bounded(len, max, "map")
    }

    /// An unsigned integer.
    pub fn uint(&mut self) -> Result<u64, CborError> {
        self.decoder
            .u64()
            .map_err(|_| CborError::Expected("an unsigned integer"))
    }

    /// An unsigned integer that fits the asked type (`u8`, `u16`, `u32`).
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T, CborError> {
        T::try_from(self.uint()?).map_err(|_| CborError::TooLong("integer"))
    }

    /// An integer of either sign.
    pub fn int(&mut self) -> Result<i64, CborError> {
        self.decoder
            .i64()
            .map_err(|_| CborError::Expected("an integer"))
    }

    /// A byte string of at most `max` bytes.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], CborError> {
        let bytes = self
            .decoder
            .bytes()
            .map_err(|_| CborError::Expected("a byte string"))?;
        if bytes.len() > max {
            Err(CborError::TooLong("byte string"))
        } else {
            Ok(bytes)
        }
    }

    /// A byte string of exactly `N` bytes.
    pub fn bytes_exact<const N: usize>(&mut self) -> Result<[u8; N], CborError> {
        let bytes = self.bytes(N)?;
        bytes
            .try_into()
            .map_err(|_| CborError::Value("byte string length"))
    }

    /// A text string of at most `max` bytes of UTF-8.
    pub fn text(&mut self, max: usize) -> Result<&'a str, CborError> {
        let text = self
            .decoder
            .str()
            .map_err(|_| CborError::Expected("a text string"))?;
        if text.len() > max {
            Err(CborError::TooLong("text string"))
        } else {
            Ok(text)
        }
    }

    /// `true` or `false`.
    pub fn bool(&mut self) -> Result<bool, CborError> {
        self.decoder
            .bool()
            .map_err(|_| CborError::Expected("true or false"))
    }

    /// Consumes a `null` if it comes next; tells whether it did.
    pub fn null(&mut self) -> bool {
        self.kind() == Kind::Null && self.decoder.null().is_ok()
    }

    /// The tag `number`.
    pub fn tag(&mut self, number: u64) -> Result<(), CborError> {
        let tag = self
            .decoder
            .tag()
            .map_err(|_| CborError::Expected("a tag"))?;
        if tag.as_u64() == number {
            Ok(())
        } else {
            Err(CborError::Value("tag"))
        }
    }

    /// The exact bytes of the next item, skipping it.
    pub fn raw(&mut self) -> Result<&'a [u8], CborError> {
        let start = self.decoder.position();
        let end = item_end(self.decoder.input(), start)?;
        self.decoder.set_position(end);
        Ok(&self.decoder.input()[start..end])
    }

    /// Offset of the next item in the text given to [`Reader::new`].
    pub fn position(&self) -> usize {
        self.decoder.position()
    }

    /// Must be called last: every byte was read.
    pub fn end(self) -> Result<(), CborError> {
        if self.decoder.position() == self.decoder.input().len() {
            Ok(())
        } else {
            Err(CborError::Trailing)
        }
    }
}

fn bounded(len: Option<u64>, max: usize, what: &'static str) -> Result<usize, CborError> {
    let len = len.ok_or(CborError::Indefinite)?;
    usize::try_from(len)
        .ok()
        .filter(|len| *len <= max)
        .ok_or(CborError::TooLong(what))
}

/// Writes shortest-form, definite-length CBOR into a growing buffer. Calls chain.
#[derive(Debug)]
pub struct Writer {
    encoder: minicbor::Encoder<Vec<u8>>,
}

const NEVER_FAILS: &str = "writing to a Vec never fails";

impl Writer {
    /// An empty text.
    pub fn new() -> Self {
        Self {
            encoder: minicbor::Encoder::new(Vec::new()),
        }
    }

    /// Head of an array of `len` elements, which follow.
    pub fn array(&mut self, len: usize) -> &mut Self {
        self.encoder.array(len as u64).expect(NEVER_FAILS);
        self
    }

    /// Head of a map of `pairs` pairs, which follow.
    pub fn map(&mut self, pairs: usize) -> &mut Self {
        self.encoder.map(pairs as u64).expect(NEVER_FAILS);
        self
    }

    /// An unsigned integer.
    pub fn uint(&mut self, value: u64) -> &mut Self {
        self.encoder.u64(value).expect(NEVER_FAILS);
        self
    }

    /// An integer of either sign.
    pub fn int(&mut self, value: i64) -> &mut Self {
        self.encoder.i64(value).expect(NEVER_FAILS);
        self
    }

    /// A byte string.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.encoder.bytes(value).expect(NEVER_FAILS);
        self
    }

    /// A text string.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.encoder.str(value).expect(NEVER_FAILS);
        self
    }

    /// `true` or `false`.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.encoder.bool(value).expect(NEVER_FAILS);
        self
    }

    /// `null`.
    pub fn null(&mut self) -> &mut Self {
        self.encoder.null().expect(NEVER_FAILS);
        self
    }

    /// A tag; the tagged item follows.
    pub fn tag(&mut self, number: u64) -> &mut Self {
        self.encoder
            .tag(minicbor::data::Tag::new(number))
            .expect(NEVER_FAILS);
        self
    }

    /// Bytes that are an encoded item already (or several, inside an array).
    pub fn raw(&mut self, encoded: &[u8]) -> &mut Self {
        self.encoder.writer_mut().extend_from_slice(encoded);
        self
    }

    /// The text written so far.
    pub fn into_vec(self) -> Vec<u8> {
        self.encoder.into_writer()
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes with `f` and gives the bytes: `cbor::encode(|w| { w.array(2).uint(1).null(); })`.
pub fn encode(f: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::new();
    f(&mut w);
    w.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_accepts_what_writer_writes() {
        let text = encode(|w| {
            w.array(8)
                .uint(70_000)
                .int(-17)
                .bytes(&[1, 2])
                .text("ü")
                .bool(true)
                .null();
            w.tag(18).array(0).map(1).int(-1).uint(0);
        });
        let mut r = Reader::new(&text).unwrap();
        r.array(8).unwrap();
        assert_eq!(r.small::<u32>().unwrap(), 70_000);
        assert_eq!(r.int().unwrap(), -17);
        assert_eq!(r.bytes_exact::<2>().unwrap(), [1, 2]);
        assert_eq!(r.text(2).unwrap(), "ü");
        assert!(r.bool().unwrap() && r.clone().bool().is_err() && r.null());
        r.tag(18).unwrap();
        r.array(0).unwrap();
        assert_eq!(r.raw().unwrap(), [0xa1, 0x20, 0x00]);
        r.end().unwrap();
    }

    #[test]
    fn each_fault_has_its_own_name() {
        let deep = [[0x81].repeat(MAX_DEPTH), vec![0x80]].concat();
        assert_eq!(check(&deep), Ok(()));
        let deeper = [[0x81].repeat(MAX_DEPTH + 1), vec![0x80]].concat();
        for (text, fault) in [
            (&[][..], CborError::Truncated),
            (&[0x82, 0x00], CborError::Truncated),
            (
                &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                CborError::Truncated,
            ),
            (
                &[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                CborError::Truncated,
            ),
            (&[0x00, 0x00], CborError::Trailing),
            (&[0x18, 0x17], CborError::NotShortest),
            (&[0x19, 0x00, 0xff], CborError::NotShortest),
            (
                &[0x1b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
                CborError::NotShortest,
            ),
            (&[0x58, 0x01, 0x00], CborError::NotShortest),
            (&[0x9f, 0xff], CborError::Indefinite),
            (&[0x5f, 0xff], CborError::Indefinite),
            (&[0xff], CborError::Malformed),
            (&[0x1c], CborError::Malformed),
            (&[0x61, 0xff], CborError::Malformed),
            (&deeper, CborError::TooDeep),
        ] {
            assert_eq!(check(text), Err(fault), "{text:02x?}");
        }
    }

    #[test]
    fn bounds_and_types_are_told_apart() {
        let mut r = Reader::new(&[0x43, 1, 2, 3]).unwrap();
        assert_eq!(r.clone().bytes(2), Err(CborError::TooLong("byte string")));
        assert_eq!(
            r.clone().uint(),
            Err(CborError::Expected("an unsigned integer"))
        );
        assert_eq!(r.clone().end(), Err(CborError::Trailing));
        assert_eq!(r.bytes(3), Ok(&[1, 2, 3][..]));
    }
}
