//! The `holdfast-gateway` program: reads the command line and does it. Everything else is the library.

use std::process::ExitCode;

use holdfast_config::cli;
use holdfast_gateway::cli::Cli;

fn main() -> ExitCode {
    holdfast_config::life::keep_memory_private();
    match cli::parse::<Cli>() {
        Ok(asked) => cli::exit(asked.execute()),
        Err(ended) => ended,
    }
}
