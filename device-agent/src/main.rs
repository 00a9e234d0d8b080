//! The `holdfast-agent` binary: reads the command line, runs it, gives the exit code.

use std::process::ExitCode;
use std::time::Duration;

use holdfast_agent::cli::{self, Cli};

/// For threads that hang in a system call at the end, such as name resolution.
const LAST_PATIENCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    holdfast_config::life::keep_memory_private();
    let cli = match holdfast_config::cli::parse::<Cli>() {
        Ok(cli) => cli,
        Err(ended) => return ended,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return holdfast_config::cli::exit(Err(error.into())),
    };
    let result = runtime.block_on(cli::run(cli));
    runtime.shutdown_timeout(LAST_PATIENCE);
    holdfast_config::cli::exit(result)
}
