//! What is wrong with a configuration: a list of faults, each with file, line, key and remedy.
//!
//! Made by [`crate::document`], read by the operator. A fault never stops the search for the next.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file, counted from 1; `None` where the fault is that something is missing.
    pub line: Option<usize>,
    /// Dotted path of the key, such as `listen.mqtt`; empty for the file as a whole.
    pub key: String,
    /// What is wrong, in one clause.
    pub what: String,
    /// What to do about it, in one clause.
    pub remedy: String,
}

/// Everything wrong with one configuration file. Its `Display` is what the operator reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults {
    file: PathBuf,
    faults: Vec<Fault>,
}

impl Faults {
    /// Collects the faults of `file`, in the order of their lines.
    pub(crate) fn new(file: &Path, mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
        Self {
            file: file.to_owned(),
            faults,
        }
    }

    /// The faults, ordered by line; those without a line come first.
    pub fn list(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{}", self.file.display())?;
            if let Some(line) = fault.line {
                write!(out, ":{line}")?;
            }
            if !fault.key.is_empty() {
                write!(out, ": {}", fault.key)?;
            }
            write!(out, ": {}; {}", fault.what, fault.remedy)?;
        }
        Ok(())
    }
}
