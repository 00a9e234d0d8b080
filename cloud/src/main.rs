//! The `holdfast-cloud` program: reads the command line and does it. Everything else is the library.

use std::process::ExitCode;

use clap::Parser;
use holdfast_cloud::cli::Cli;

fn main() -> ExitCode {
    holdfast_config::life::keep_memory_private();
    holdfast_config::cli::exit(Cli::parse().execute())
}
