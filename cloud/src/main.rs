//! The `holdfast-cloud` program: reads the command line and does it. Everything else is the library.

use std::process::ExitCode;

use holdfast_cloud::cli::Cli;
use holdfast_config::cli;

fn main() -> ExitCode {
    holdfast_config::life::keep_memory_private();
    match cli::parse::<Cli>() {
        Ok(asked) => cli::exit(asked.execute()),
        Err(ended) => ended,
    }
}
