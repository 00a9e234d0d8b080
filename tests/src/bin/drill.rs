//! `make drill`: the story headless, with the real binaries. Ends with `drill: N of N steps held`, and with 0 only then.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use holdfast_tests::place::Place;
use holdfast_tests::process::told_to_stop;
use holdfast_tests::sheet::Sheet;
use holdfast_tests::skip::has_program;
use holdfast_tests::story::{PULSE, STEPS, Story};
use holdfast_tests::world::Plan;

/// Runs the story headless and checks every step against what really arrived.
#[derive(Debug, Parser)]
struct Options {
    /// Milliseconds between two of the device's messages.
    #[arg(long, default_value_t = 25)]
    pace: u64,
    /// Stay on loopback even if network namespaces can be had.
    #[arg(long)]
    loopback: bool,
    /// Keep the world's folder (logs, ledgers, state) after a failure.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if !has_program("mosquitto_sub") {
        eprintln!("drill: mosquitto_sub is missing; install the Debian package mosquitto-clients");
        return ExitCode::FAILURE;
    }
    let (place, head) = match options.loopback {
        true => (Place::of_this_process(), Place::ON_LOOPBACK.to_owned()),
        false => Place::real_or(Place::of_this_process()),
    };
    eprintln!("{head}");
    let plan = Plan {
        place,
        rendezvous_name: Some("holdfast-rv.local".to_owned()),
        pace: Duration::from_millis(options.pace),
        pulse: Some(PULSE),
    };
    let mut story = match Story::new(&plan).await {
        Ok(story) => story,
        Err(error) => {
            eprintln!("drill: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut sheet = Sheet::new(&head, STEPS, false);
    tokio::select! {
        () = story.run(&mut sheet) => {}
        () = told_to_stop() => eprintln!("drill: stopped by a signal"),
    }
    if !sheet.has_held() {
        eprintln!("{}", story.log_ends());
        if options.keep {
            story.world.keep();
        }
    }
    if let Err(error) = story.stop().await {
        eprintln!("drill: {error:#}");
    }
    sheet.print();
    if sheet.has_held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
