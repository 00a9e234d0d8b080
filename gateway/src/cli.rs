//! The command line of `holdfast-gateway`. `enrol` and `run` work on the state folder themselves;
//! every other command asks the running gateway over its admin socket (`<state>/admin.sock`).
//!
//! Called by `main` alone.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use holdfast_config::HostPort;
use holdfast_config::cli::{Common, Extra};
use holdfast_protocol::id::ClientName;

/// Name of the program, of its state folder and of its unit.
pub const PROGRAM: &str = "holdfast-gateway";

/// A site's gateway: keeps the site working when its Internet link does not
#[derive(Debug, Parser)]
#[command(name = PROGRAM, version)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `holdfast-gateway` can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join this gateway to its site: done once, with a token from the cloud
    Enrol {
        /// Where the cloud's HTTPS listener is reached
        #[arg(long, value_name = "HOST:PORT")]
        cloud: HostPort,
        /// File that holds the token, or - for standard input
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
    },
    /// Run the gateway in the foreground
    Run,
    /// Show how the running gateway is: uplink, backlog, devices, certificates
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Onboarded devices of this site
    #[command(subcommand)]
    Devices(Devices),
    /// Ordinary MQTT clients of this site
    #[command(subcommand)]
    Clients(Clients),
    /// Commands that all Holdfast programs have.
    #[command(flatten)]
    Extra(Extra),
}

/// `devices ...`
#[derive(Debug, Subcommand)]
pub enum Devices {
    /// List the onboarded devices
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `clients ...`
#[derive(Debug, Subcommand)]
pub enum Clients {
    /// Admit an MQTT client and write its certificate and key
    Issue {
        /// Name of the client: lower-case letters, digits, hyphens
        name: ClientName,
        /// Topic filter it may publish to (may be repeated)
        #[arg(long, value_name = "FILTER")]
        publish: Vec<String>,
        /// Topic filter it may subscribe to (may be repeated)
        #[arg(long, value_name = "FILTER")]
        subscribe: Vec<String>,
        /// Folder for ca.pem, cert.pem and key.pem
        #[arg(long, value_name = "FOLDER")]
        out: PathBuf,
    },
}
