//! Command-line parts that all binaries share: common options, common sub-commands, exit codes.
//!
//! A binary's parser flattens [`Common`] into its options and [`Extra`] into its sub-commands, then
//! hands its result to [`exit`], which prints an error as the operator should read it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::document::{self, Settings};
use crate::fault::Faults;
use crate::manual;

/// Exit code for a wrong command line or configuration (sysexits EX_USAGE).
pub const EXIT_USAGE: u8 = 64;
/// Exit code when something this program needs cannot be reached (sysexits EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: u8 = 69;

/// Options that every binary takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Configuration file (TOML); without it the built-in defaults hold
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Folder for keys and data, readable by this program's user alone; without it /var/lib/PROGRAM
    #[arg(long, global = true, value_name = "FOLDER")]
    pub state: Option<PathBuf>,

    /// What to log: error, warn, info, debug, trace, or a filter such as info,holdfast_broker=debug
    #[arg(long, global = true, value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How log lines look
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

impl Common {
    /// The state folder: `--state`, or `/var/lib/<program>`.
    pub fn state_or_default(&self, program: &str) -> PathBuf {
        self.state
            .clone()
            .unwrap_or_else(|| Path::new("/var/lib").join(program))
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event
    Text,
    /// One JSON object an event
    Json,
}

/// Sub-commands that every binary has.
#[derive(Debug, Clone, Subcommand)]
pub enum Extra {
    /// Read the configuration, report every fault in it, and stop
    CheckConfig,
    /// Print the manual page (roff)
    #[command(hide = true)]
    Man,
    /// Print the completion script for a shell
    #[command(hide = true)]
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

impl Extra {
    /// Does what the sub-command says. `S` is the binary's configuration, `P` its parser.
    ///
    /// # Errors
    /// The configuration's faults, or that standard output cannot be written.
    pub fn run<S: Settings, P: CommandFactory>(&self, common: &Common) -> anyhow::Result<()> {
        let mut command = P::command();
        let mut out = Vec::new();
        match self {
            Self::CheckConfig => {
                document::read::<S>(common.config.as_deref())?;
                let shown = common.config.as_deref().map(Path::display);
                match shown {
                    Some(file) => writeln!(out, "{file}: no faults")?,
                    None => writeln!(out, "no --config given: the built-in defaults hold")?,
                }
            }
            Self::Man => manual::write(command, &mut out)?,
            Self::Completions { shell } => {
                let name = command.get_name().to_owned();
                clap_complete::generate(*shell, &mut command, name, &mut out);
            }
        }
        io::stdout().write_all(&out)?;
        Ok(())
    }
}

/// A failure that is not this program's fault: what it needs cannot be reached. Exit code 69.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// A request that cannot be right, such as a bad token or a name already taken. Exit code 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(pub String);

/// Reads the command line. What was asked for in it, such as `--help`, is printed here.
///
/// # Errors
/// The exit code with which the program ends now: 0 after help, [`EXIT_USAGE`] for a wrong command line.
pub fn parse<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|end| {
        // Nothing is left to do if the terminal is gone.
        let _ = end.print();
        ExitCode::from(usage(&end))
    })
}

fn usage(end: &clap::Error) -> u8 {
    match end.use_stderr() {
        true => EXIT_USAGE,
        false => 0,
    }
}

/// Prints the error, if any, and gives the exit code that belongs to it.
pub fn exit(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    // Nothing is left to do if standard error is gone.
    let _ = writeln!(io::stderr(), "{}", shown(&error));
    ExitCode::from(code(&error))
}

fn code(error: &anyhow::Error) -> u8 {
    let is_usage = error
        .chain()
        .any(|cause| cause.is::<Faults>() || cause.is::<Misuse>());
    let is_unavailable = error.chain().any(|cause| cause.is::<Unavailable>());
    match (is_usage, is_unavailable) {
        (true, _) => EXIT_USAGE,
        (_, true) => EXIT_UNAVAILABLE,
        _ => 1,
    }
}

/// The error as the operator reads it: the sentence, then each deeper cause that adds something.
fn shown(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !last.contains(&cause) {
            text.push_str("\n  because: ");
            text.push_str(&cause);
        }
        last = cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn errors_map_to_exit_codes_through_context() {
        let unavailable = Err::<(), _>(Unavailable("no route".into())).context("cannot enrol");
        assert_eq!(code(&unavailable.expect_err("error")), EXIT_UNAVAILABLE);
        assert_eq!(code(&Misuse("used twice".into()).into()), EXIT_USAGE);
        assert_eq!(code(&anyhow::anyhow!("else")), 1);
    }

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        _common: Common,
    }

    #[test]
    fn a_wrong_command_line_has_the_documented_exit_code_and_help_is_no_fault() {
        let end = |word: &str| usage(&Line::try_parse_from(["x", word]).expect_err(word));
        assert_eq!(end("--nonsense"), EXIT_USAGE);
        assert_eq!(end("--log-format=xml"), EXIT_USAGE);
        assert_eq!(end("--help"), 0);
    }

    #[test]
    fn causes_are_shown_once() {
        let error = anyhow::anyhow!("disk is full").context("cannot keep the key");
        assert_eq!(
            shown(&error),
            "error: cannot keep the key\n  because: disk is full"
        );
        let repeated = anyhow::anyhow!("disk is full").context("cannot keep: disk is full");
        assert_eq!(shown(&repeated), "error: cannot keep: disk is full");
    }
}
