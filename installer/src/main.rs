//! The `holdfast-installer` program: parse, do, tell.

use std::process::ExitCode;

use clap::Parser;
use holdfast_installer::cli::Cli;

fn main() -> ExitCode {
    holdfast_config::life::keep_memory_private();
    holdfast_config::cli::exit(Cli::parse().run())
}
