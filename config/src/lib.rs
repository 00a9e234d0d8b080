//! The frame that all four binaries share: configuration files, command line, daemon life.
//!
//! - [`document`]: reads a TOML file into a [`Settings`] type and reports every fault at once, each
//!   with its file, line and remedy. Unknown keys are faults.
//! - [`bounds`]: limits that many settings have, with their words.
//! - [`value`]: what a value may be (durations, sizes, addresses, names) and how each is explained.
//! - [`cli`]: options and sub-commands common to all binaries, exit codes, how an error is shown.
//! - [`life`]: logging, signals, readiness, watchdog and the grace period.
//! - `manual`: the manual page, made from the parser.
//! - [`show`]: answers as tables and facts on a terminal.
//! - [`stages`]: a daemon's tasks, and the order in which they stop.
//! - [`secret_file`]: files that only their owner may read, replaced as a whole or not at all.
//!
//! It knows no binary's keys: each room declares its own section by implementing [`Settings`].

pub mod bounds;
pub mod cli;
pub mod document;
pub mod fault;
pub mod life;
mod manual;
pub mod secret_file;
pub mod show;
pub mod stages;
pub mod value;

pub use document::{Section, Settings, parse, read};
pub use fault::{Fault, Faults};
pub use value::{ByteSize, HostPort, Value};
