//! `make bench`: measures our broker and Debian's mosquitto in one run; prints figures and ratios, writes
//! `target/bench/broker.csv` and `target/bench/broker.svg`. A missed target is said and is no failure: throughput
//! never fails a build. It fails when something could not be measured.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use holdfast_tests::bench::figures::{Row, csv, table};
use holdfast_tests::bench::server::Site;
use holdfast_tests::bench::{Bench, EXPERIMENTS, Progress, chart};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Measures the broker against mosquitto.
#[derive(Debug, Parser)]
struct Options {
    /// Only these experiments or rows (repeat for more); without it, all.
    #[arg(long)]
    only: Vec<String>,
    /// One round of short runs: shows that the bench works; its figures mean little.
    #[arg(long)]
    quick: bool,
    /// Interleaved runs of each row.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where the figures go; on a real disk, since journals are written there too.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// The program of our server.
    #[arg(long, default_value = "target/release/examples/bench_server")]
    server: PathBuf,
    /// Names all experiments and rows, and does nothing.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if options.list {
        for experiment in EXPERIMENTS {
            println!("{}: {}", experiment.name, experiment.rows.join(" "));
        }
        return Ok(());
    }
    raise_open_files()?;
    std::fs::create_dir_all(&options.out)
        .with_context(|| format!("cannot make {}", options.out.display()))?;
    let bench = Bench {
        site: Site {
            program: options.server.clone(),
            folder: options.out.clone(),
        },
        rounds: if options.quick { 1 } else { options.rounds },
        quick: options.quick,
    };
    println!("{}", surroundings());
    let progress = Progress::default();
    let mut rows = Vec::new();
    let mut faults = Vec::new();
    for experiment in EXPERIMENTS {
        let wanted = |name: &str| options.only.iter().any(|only| only == name);
        let whole = options.only.is_empty() || wanted(experiment.name);
        if !whole && !experiment.rows.iter().any(|row| wanted(row)) {
            continue;
        }
        match (experiment.run)(&bench, &progress) {
            Ok(found) => rows.extend(found.into_iter().filter(|row| whole || wanted(row.name))),
            Err(error) => {
                eprintln!("{}: {error:#}", experiment.name);
                faults.push(format!("{}: {error:#}", experiment.name));
            }
        }
        write(options, &rows)?;
    }
    if rows.is_empty() && faults.is_empty() {
        anyhow::bail!("nothing has that name; --list names all");
    }
    println!("{}", table(&rows));
    println!("{}", surroundings());
    let missed: Vec<&str> = rows
        .iter()
        .filter(|row| !row.held())
        .map(|row| row.name)
        .collect();
    println!(
        "{} of {} targets held{}{}; written to {}",
        rows.len() - missed.len(),
        rows.len(),
        if missed.is_empty() { "" } else { "; missed: " },
        missed.join(", "),
        options.out.display()
    );
    if faults.is_empty() {
        Ok(())
    } else {
        anyhow::bail!("not measured: {}", faults.join("; "))
    }
}

fn write(options: &Options, rows: &[Row]) -> anyhow::Result<()> {
    std::fs::write(options.out.join("broker.csv"), csv(rows))?;
    std::fs::write(options.out.join("broker.svg"), chart::svg(rows))?;
    Ok(())
}

/// Thousands of connections need descriptors, here and in the servers, which inherit the limit.
fn raise_open_files() -> anyhow::Result<()> {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}

/// What the figures depend on beside the programs.
fn surroundings() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores, shared by generator and servers; load now {}",
        load.split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(" ")
    )
}
