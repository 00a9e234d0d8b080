//! Reads a TOML document into a settings type and finds every fault in one pass.
//!
//! serde stops at the first fault; an operator with five of them would need five tries. Here each
//! room reads its own [`Section`]; a faulty value is noted with its line, its default stands in, and
//! reading goes on. [`read`] returns the settings only if nothing was noted, so no stand-in is ever
//! used. When a section is done, every key nobody asked for is an unknown key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

use crate::fault::{Fault, Faults};
use crate::value::Value;

/// Largest configuration file that is read, in bytes; real ones have a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// A group of settings that reads itself from a section.
pub trait Settings: Sized {
    /// Reads every key of the section. Faults are noted in it; the result then goes unused.
    fn read(section: &mut Section<'_>) -> Self;
}

/// Reads the file at `path`, or the defaults when there is none (`None`).
///
/// # Errors
/// Every fault of the file, each with line and remedy; or that it cannot be read.
pub fn read<S: Settings>(path: Option<&Path>) -> Result<S, Faults> {
    let Some(path) = path else {
        return parse(Path::new("defaults"), "");
    };
    let unreadable = |what: String, remedy: &str| {
        let fault = Fault {
            line: None,
            key: String::new(),
            what,
            remedy: remedy.to_owned(),
        };
        Faults::new(path, vec![fault])
    };
    let size = std::fs::metadata(path)
        .map(|found| found.len())
        .map_err(|error| {
            unreadable(
                format!("cannot be read ({error})"),
                "check the path and its rights, or leave --config out to use the defaults",
            )
        })?;
    if size > MAX_FILE {
        return Err(unreadable(
            format!("has {size} bytes"),
            "a configuration has at most 1 MiB: is this the right file?",
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|error| {
        unreadable(
            format!("cannot be read ({error})"),
            "it must be a UTF-8 text file",
        )
    })?;
    parse(path, &text)
}

/// Reads settings from `text`; `path` names the file in faults and anchors relative paths.
///
/// # Errors
/// Every fault of the text, each with line and remedy.
pub fn parse<S: Settings>(path: &Path, text: &str) -> Result<S, Faults> {
    let (table, syntax) = DeTable::parse_recoverable(text);
    let notes = Notes {
        text,
        folder: folder_of(path),
        faults: RefCell::new(Vec::new()),
    };
    for error in syntax {
        let what = error.message().lines().collect::<Vec<_>>().join(", ");
        notes.add(
            error.span(),
            String::new(),
            format!("is not valid TOML: {what}"),
            "correct this line",
        );
    }
    // A file with broken syntax would yield follow-up faults that are not the operator's.
    let broken = !notes.faults.borrow().is_empty();
    let mut root = Section::new(&notes, String::new(), Some(table.get_ref()), None);
    let settings = S::read(&mut root);
    root.finish();
    let mut faults = notes.faults.into_inner();
    if broken {
        faults.retain(|fault| fault.key.is_empty());
    }
    if faults.is_empty() {
        Ok(settings)
    } else {
        Err(Faults::new(path, faults))
    }
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// What all sections of one document share: its text, its folder, the faults found so far.
#[derive(Debug)]
struct Notes<'t> {
    text: &'t str,
    folder: PathBuf,
    faults: RefCell<Vec<Fault>>,
}

impl Notes<'_> {
    fn add(&self, span: Option<Range<usize>>, key: String, what: String, remedy: &str) {
        let line = span.map(|span| {
            let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
            before.iter().filter(|byte| **byte == b'\n').count() + 1
        });
        let fault = Fault {
            line,
            key,
            what,
            remedy: remedy.to_owned(),
        };
        self.faults.borrow_mut().push(fault);
    }
}

/// One table of the document while it is being read. A table that is absent reads as empty.
#[derive(Debug)]
pub struct Section<'a> {
    notes: &'a Notes<'a>,
    path: String,
    table: Option<&'a DeTable<'a>>,
    span: Option<Range<usize>>,
    known: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    fn new(
        notes: &'a Notes<'a>,
        path: String,
        table: Option<&'a DeTable<'a>>,
        span: Option<Range<usize>>,
    ) -> Self {
        Self {
            notes,
            path,
            table,
            span,
            known: BTreeSet::new(),
        }
    }

    /// Reads `key`, or gives `default` when it is not there.
    pub fn get<T: Value>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// Reads `key` if it is there.
    pub fn optional<T: Value>(&mut self, key: &'static str) -> Option<T> {
        let (raw, span) = self.find(key)?;
        let value = T::from_toml(raw);
        if value.is_none() {
            self.note_kind(key, raw, span, T::EXPECTED);
        }
        value
    }

    /// Reads `key`, which must be there. `stand_in` keeps reading possible and is never used.
    pub fn required<T: Value>(&mut self, key: &'static str, stand_in: T) -> T {
        let missing = self.find(key).is_none();
        if missing {
            let remedy = format!("add {key} = ..., {}", T::EXPECTED);
            self.notes.add(
                self.span.clone(),
                self.name_of(key),
                "is missing".to_owned(),
                &remedy,
            );
        }
        self.optional(key).unwrap_or(stand_in)
    }

    /// Reads `key` and checks it; `rule` says what is wrong and what to do, as (what, remedy).
    pub fn get_checked<T: Value>(
        &mut self,
        key: &'static str,
        default: T,
        rule: impl FnOnce(&T) -> Result<(), (String, String)>,
    ) -> T {
        let value = self.get(key, default);
        if let Err((what, remedy)) = rule(&value) {
            self.fault(key, &what, &remedy);
        }
        value
    }

    /// Reads a text value of a type with its own `FromStr`, such as an identifier.
    pub fn text<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        let (raw, span) = self.find(key)?;
        let Some(text) = raw.as_str() else {
            self.note_kind(key, raw, span, String::EXPECTED);
            return None;
        };
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                let what = format!("{text:?} is not valid: {error}");
                self.notes
                    .add(Some(span), self.name_of(key), what, "correct this value");
                None
            }
        }
    }

    /// Reads a list of text values, each of a type with its own `FromStr`.
    pub fn texts<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Vec<T> {
        let Some((raw, span)) = self.find(key) else {
            return Vec::new();
        };
        let Some(items) = raw.as_array() else {
            self.note_kind(key, raw, span, <Vec<String>>::EXPECTED);
            return Vec::new();
        };
        let mut values = Vec::new();
        for item in items.iter() {
            let parsed = match item.get_ref().as_str() {
                Some(text) => text
                    .parse()
                    .map_err(|error| format!("{text:?} is not valid: {error}")),
                None => Err("holds a value that is not text".to_owned()),
            };
            match parsed {
                Ok(value) => values.push(value),
                Err(what) => {
                    let name = self.name_of(key);
                    self.notes
                        .add(Some(item.span()), name, what, "correct this value");
                }
            }
        }
        values
    }

    /// Reads a path; a relative one starts at the folder of the configuration file.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.optional::<PathBuf>(key)
            .map(|path| self.notes.folder.join(path))
    }

    /// Reads the table `[key]`; an absent one gives the defaults.
    pub fn section<S: Settings>(&mut self, key: &'static str) -> S {
        let found = self.find(key);
        let table = found.as_ref().and_then(|(raw, _)| raw.as_table());
        if let (Some((raw, span)), None) = (&found, table) {
            self.note_kind(key, raw, span.clone(), "a table");
        }
        let span = found.map(|(_, span)| span);
        let mut section = Section::new(self.notes, self.name_of(key), table, span);
        let settings = S::read(&mut section);
        section.finish();
        settings
    }

    /// Reads the list of tables `[[key]]`; an absent one is empty.
    pub fn sections<S: Settings>(&mut self, key: &'static str) -> Vec<S> {
        let Some((raw, span)) = self.find(key) else {
            return Vec::new();
        };
        let Some(items) = raw.as_array() else {
            self.note_kind(key, raw, span, "a list of tables");
            return Vec::new();
        };
        let mut all = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(table) = item.get_ref().as_table() else {
                self.note_kind(key, item.get_ref(), item.span(), "a table");
                continue;
            };
            let path = format!("{}[{}]", self.name_of(key), index + 1);
            let mut section = Section::new(self.notes, path, Some(table), Some(item.span()));
            all.push(S::read(&mut section));
            section.finish();
        }
        all
    }

    /// Notes a fault that only the reader can see, such as two keys that contradict each other.
    pub fn fault(&mut self, key: &'static str, what: &str, remedy: &str) {
        let span = self
            .find(key)
            .map(|(_, span)| span)
            .or_else(|| self.span.clone());
        self.notes
            .add(span, self.name_of(key), what.to_owned(), remedy);
    }

    /// Whether something below `key` of this section is faulty already. What follows from its stand-ins is
    /// then no fault of the operator's.
    #[must_use]
    pub fn is_faulty(&self, key: &str) -> bool {
        let name = self.name_of(key);
        let faults = self.notes.faults.borrow();
        faults.iter().any(|fault| {
            let rest = fault.key.strip_prefix(&name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    fn find(&mut self, key: &'static str) -> Option<(&'a DeValue<'a>, Range<usize>)> {
        self.known.insert(key);
        let value = self.table?.get(key)?;
        Some((value.get_ref(), value.span()))
    }

    fn name_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn note_kind(&self, key: &str, raw: &DeValue<'_>, span: Range<usize>, expected: &str) {
        let what = match raw.as_str() {
            Some(text) => format!("{text:?} does not fit"),
            None => format!("a value of kind {} does not fit", raw.type_str()),
        };
        self.notes.add(
            Some(span),
            self.name_of(key),
            what,
            &format!("write {expected}"),
        );
    }

    /// Notes every key that nobody asked for.
    fn finish(self) {
        for key in self.table.into_iter().flat_map(|table| table.keys()) {
            let name: &str = key.get_ref();
            if self.known.contains(name) {
                continue;
            }
            let remedy = match nearest(name, &self.known) {
                Some(near) => format!("did you mean {near}?"),
                None if self.known.is_empty() => "remove it: there are no settings here".to_owned(),
                None => {
                    let known: Vec<_> = self.known.iter().copied().collect();
                    format!("remove it; known here: {}", known.join(", "))
                }
            };
            self.notes.add(
                Some(key.span()),
                self.name_of(name),
                "is not a known key".to_owned(),
                &remedy,
            );
        }
    }
}

/// The known key within two edits of `name`, if there is one.
fn nearest<'k>(name: &str, known: &BTreeSet<&'k str>) -> Option<&'k str> {
    let scored = known.iter().map(|key| (distance(name, key), *key));
    scored
        .min()
        .filter(|(edits, key)| *edits <= 2 && *edits < key.len())
        .map(|(_, key)| key)
}

/// Levenshtein distance, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests;
