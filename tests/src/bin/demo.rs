//! `make demo`: the story told to a person. At the end everything is left running, with what to try next; Ctrl-C stops it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use holdfast_tests::place::Place;
use holdfast_tests::process::told_to_stop;
use holdfast_tests::proxy::Mode;
use holdfast_tests::sheet::Sheet;
use holdfast_tests::skip::has_program;
use holdfast_tests::story::{PULSE, STEPS, Story};
use holdfast_tests::world::{Plan, SITE, Server, World};
use tokio::sync::mpsc;

/// Tells the story of a site that keeps working, with the real binaries.
#[derive(Debug, Parser)]
struct Options {
    /// Milliseconds between two of the device's messages.
    #[arg(long, default_value_t = 25)]
    pace: u64,
    /// Stay on loopback even if network namespaces can be had.
    #[arg(long)]
    loopback: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if !has_program("mosquitto_sub") {
        eprintln!("demo: mosquitto_sub is missing; install the Debian package mosquitto-clients");
        return ExitCode::FAILURE;
    }
    println!("Holdfast: a site keeps working when its Internet link does not.");
    let (place, head) = match options.loopback {
        true => (Place::of_the_demo(), Place::ON_LOOPBACK.to_owned()),
        false => Place::real_or(Place::of_the_demo()),
    };
    println!("Here: a cloud, a gateway and devices as real processes on this machine.\n{head}");
    let plan = Plan {
        place,
        rendezvous_name: Some("holdfast-rv.local".to_owned()),
        pace: Duration::from_millis(options.pace),
        pulse: Some(PULSE),
    };
    let mut story = match Story::new(&plan).await {
        Ok(story) => story,
        Err(error) => {
            eprintln!("demo: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut sheet = Sheet::new(&head, STEPS, true);
    let was_stopped = tokio::select! {
        () = story.run(&mut sheet) => false,
        () = told_to_stop() => true,
    };
    sheet.print();
    if sheet.has_held() && !was_stopped {
        stay(&mut story).await;
    } else if !was_stopped {
        eprintln!("{}", story.log_ends());
    }
    println!("stopping what was started");
    if let Err(error) = story.stop().await {
        eprintln!("demo: {error:#}");
    }
    if sheet.has_held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Leaves everything running until Ctrl-C; takes `cut` and `mend` for the uplink.
async fn stay(story: &mut Story) {
    if let Err(error) = what_to_try(story).await {
        eprintln!("demo: {error:#}");
    }
    let mut lines = typed_lines();
    let mut is_open = true;
    loop {
        let line = tokio::select! {
            line = lines.recv(), if is_open => line,
            () = told_to_stop() => return,
        };
        match line.as_deref().map(str::trim) {
            Some("cut") => turn(&story.world, Mode::Silent, "the uplink is silent"),
            Some("unplug") => turn(&story.world, Mode::Reset, "the uplink is unplugged"),
            Some("mend") => turn(&story.world, Mode::Open, "the uplink is whole"),
            Some("quit") => return,
            Some("") => {}
            Some(other) => println!("{other:?} is none of cut, unplug, mend, quit"),
            // No more input, as under `make demo < /dev/null`: only Ctrl-C is left.
            None => is_open = false,
        }
    }
}

/// What the person types, line by line. The thread ends with the input or with the process.
fn typed_lines() -> mpsc::Receiver<String> {
    let (give, take) = mpsc::channel(8);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if give.blocking_send(line).is_err() {
                return;
            }
        }
    });
    take
}

fn turn(world: &World, mode: Mode, word: &str) {
    match world.uplink.set(mode) {
        Ok(()) => println!("{word}"),
        Err(error) => eprintln!("demo: {error:#}"),
    }
}

async fn what_to_try(story: &Story) -> anyhow::Result<()> {
    let world = &story.world;
    let all = format!("hf/v1/{SITE}/#");
    let identity = world
        .admit(Server::Gateway, "visitor", &[], &[&all])
        .await?;
    let (lan, cloud) = (world.gateway_doors, world.cloud_doors);
    println!("\nEverything is running. What to try next, in another terminal:\n");
    println!("  # see the gateway's mode, its devices, the cloud's view, what the cloud has kept");
    println!("  {}", world.gateway.command_line("status"));
    println!("  {}", world.gateway.command_line("devices list"));
    println!("  {}", world.cloud.command_line("status"));
    println!(
        "  {} | tail -3",
        world
            .cloud
            .command_line(&format!("telemetry export --device {}", story.device()))
    );
    println!("\n  # read along on the LAN as an ordinary MQTT client with a certificate");
    println!(
        "  {}mosquitto_sub -V 5 -h {} -p {} --cafile {id}/ca.pem --cert {id}/cert.pem --key {id}/key.pem -i visitor -v -t '{all}'",
        world.seat_near(Server::Gateway)?.prefix(),
        lan.mqtt.ip(),
        lan.mqtt.port(),
        id = identity.display(),
    );
    println!("\n  # metrics of gateway and cloud");
    println!(
        "  {}curl -s http://{}/metrics",
        world.gateway.seat.prefix(),
        lan.metrics
    );
    println!(
        "  {}curl -s http://{}/metrics",
        world.cloud.seat.prefix(),
        cloud.metrics
    );
    println!(
        "\nType `cut` to cut the uplink in silence, `unplug` to take it down, `mend` to mend it; Ctrl-C (or `quit`) stops everything."
    );
    Ok(())
}
