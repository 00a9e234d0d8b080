//! The `holdfast-installer` program: parse, do, tell.

use std::process::ExitCode;

use holdfast_config::cli;
use holdfast_installer::cli::Cli;

fn main() -> ExitCode {
    holdfast_config::life::keep_memory_private();
    match cli::parse::<Cli>() {
        Ok(asked) => cli::exit(asked.run()),
        Err(ended) => ended,
    }
}
