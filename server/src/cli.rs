//! Verbs that gateway and cloud both have. Each binary's own `cli` puts them among its commands; they
//! ask the running daemon through [`Ask`](crate::ask::Ask) and give back what is to be printed.

pub mod authority;
pub mod certificates;
pub mod clients;
pub mod keys;
pub mod lists;
mod password;
pub mod records;
pub mod services;

use std::fmt;
use std::io::Write as _;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use holdfast_protocol::id::{DeviceId, SiteId};
use serde_json::Value;

use crate::ask::Ask;

/// What a command runs on: several threads for a daemon, one for a question to it.
///
/// # Errors
/// The system gives no threads.
pub fn runtime(threads: bool) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    builder
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Puts a command's answer out.
///
/// # Errors
/// Standard output takes no more.
pub fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot write the answer")
}

/// Which sites a server's operator can speak of.
pub trait Scope: Args + fmt::Debug + Send + Sync {
    /// The site that was named, if any can be.
    fn site(&self) -> Option<&SiteId>;
}

/// A gateway: its own site alone.
#[derive(Debug, Args)]
pub struct OwnSite {}

impl Scope for OwnSite {
    fn site(&self) -> Option<&SiteId> {
        None
    }
}

/// The cloud: any of its sites, or itself.
#[derive(Debug, Args)]
pub struct AnySite {
    /// The site that is meant; without it the cloud itself
    #[arg(long)]
    site: Option<SiteId>,
}

impl Scope for AnySite {
    fn site(&self) -> Option<&SiteId> {
        self.site.as_ref()
    }
}

/// `body` with the site in it, if one was named.
fn at(scope: &impl Scope, mut body: Value) -> Value {
    if let Some(site) = scope.site() {
        body["site"] = site.as_str().into();
    }
    body
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

impl Devices {
    /// Does what was asked.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<String> {
        let Self::List { json } = self;
        let columns = ["device", "site", "info", "onboarded", "server", "standing"];
        ask.table("/v1/devices", &columns, json).await
    }
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

impl Telemetry {
    /// Does what was asked; it prints by itself, page by page.
    ///
    /// # Errors
    /// What the operator must know.
    pub async fn execute(self, ask: &Ask) -> anyhow::Result<()> {
        let Self::Export { device } = self;
        ask.export(device).await
    }
}
