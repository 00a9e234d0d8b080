//! The command line of `holdfast-cloud`. `run` is the daemon; every other command asks the running
//! daemon over its admin socket (`<state>/admin.sock`) and prints the answer.
//!
//! Called by `main` alone. It opens no store and no key: only one process ever does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use holdfast_config::cli::{Common, Extra};
use holdfast_protocol::id::{ClientName, DeviceId, ServerId, SiteId};

use crate::config::Config;

mod show;

/// Name of the program, of its state folder and of its unit.
pub const PROGRAM: &str = "holdfast-cloud";

/// The cloud pair of the Holdfast gateways: onboards devices, keeps their records and telemetry
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

/// What `holdfast-cloud` can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server in the foreground
    Run,
    /// Show how the running server is
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Sites: the places that have a gateway
    #[command(subcommand)]
    Sites(Sites),
    /// Gateways and the tokens by which they enrol
    #[command(subcommand)]
    Gateways(Gateways),
    /// Ownership vouchers of manufactured or bought devices
    #[command(subcommand)]
    Vouchers(Vouchers),
    /// Onboarded devices
    #[command(subcommand)]
    Devices(Devices),
    /// Ordinary MQTT clients
    #[command(subcommand)]
    Clients(Clients),
    /// What devices sent
    #[command(subcommand)]
    Telemetry(Telemetry),
    /// Commands that all Holdfast programs have.
    #[command(flatten)]
    Extra(Extra),
}

/// `sites ...`
#[derive(Debug, Subcommand)]
pub enum Sites {
    /// Add a site and make its issuing certificate
    Add {
        /// Name of the site: lower-case letters, digits, hyphens
        site: SiteId,
    },
    /// List the sites
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `gateways ...`
#[derive(Debug, Subcommand)]
pub enum Gateways {
    /// Print a one-time token by which one gateway may enrol
    Token {
        /// Site the gateway will serve
        #[arg(long)]
        site: SiteId,
        /// Name of the gateway
        #[arg(long)]
        gateway: ServerId,
        /// How long the token may be used
        #[arg(long, default_value = "1h", value_parser = duration)]
        life: Duration,
    },
    /// List the enrolled gateways
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// `vouchers ...`
#[derive(Debug, Subcommand)]
pub enum Vouchers {
    /// List the vouchers kept here
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one voucher
    Show {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
    },
    /// Give a device to a site: its voucher goes to this owner and is registered for onboarding
    Assign {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
        /// Site that the device will belong to
        #[arg(long)]
        site: SiteId,
    },
    /// Extend a kept voucher to another owner's public key and print it
    Extend {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
        /// The new owner's public key (PEM, SubjectPublicKeyInfo)
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Import a voucher that was extended to this owner elsewhere (PEM or CBOR)
    Import {
        /// The voucher file
        file: PathBuf,
    },
    /// Print a voucher as PEM
    Export {
        /// GUID, 32 hexadecimal digits
        guid: DeviceId,
    },
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
        /// Site the client belongs to; without it the client belongs to the cloud
        #[arg(long)]
        site: Option<SiteId>,
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

/// `telemetry ...`
#[derive(Debug, Subcommand)]
pub enum Telemetry {
    /// Print what a device sent, one JSON object a line, in order
    Export {
        /// Device, 32 hexadecimal digits
        #[arg(long)]
        device: DeviceId,
    },
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime_duration(text)
}
