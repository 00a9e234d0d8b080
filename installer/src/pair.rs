//! `pair` and `relay`: the installer at its fixed address, before a device that has no network yet.
//!
//! Called by the command line. What it serves is in [`crate::desk`], how in [`crate::serve`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use holdfast_config::HostPort;
use holdfast_config::cli::{Misuse, Unavailable};
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::fdo::Client;
use holdfast_link::https::Limits;
use holdfast_protocol::lan_module::Network;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify};
use zeroize::Zeroizing;

use crate::desk::{Desk, Pairing};
use crate::serve::{Counter, serve};
use crate::{key, paper};

/// Longest wait for one rendezvous server before the next is asked.
const RELAY_WAIT: Duration = Duration::from_secs(3);
/// How long the desk stays after the device was paired.
const FAREWELL: Duration = Duration::from_secs(2);
/// Longest passphrase file read, bytes.
const PASSPHRASE_FILE: u64 = 256;

/// `pair`
#[derive(Debug, Args)]
pub(crate) struct Pair {
    /// Voucher file of the device, extended to your key
    voucher: PathBuf,
    /// Name of the site's wireless network
    #[arg(long)]
    ssid: String,
    /// File with its passphrase; without it the network is open
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The fixed address that the device has from the factory
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

/// `relay`
#[derive(Debug, Args)]
pub(crate) struct Relay {
    /// The fixed address that devices have from the factory
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// A rendezvous server (FDO over HTTP), best first: the Internet one, then the gateway
    #[arg(long = "to", value_name = "HOST:PORT", required = true)]
    to: Vec<HostPort>,
}

impl Pair {
    /// Waits for the device and hands it the LAN's credentials.
    pub(crate) fn run(&self, state: &Path) -> anyhow::Result<String> {
        let voucher = paper::read(&self.voucher)?;
        let signer = key::load(state)?;
        paper::check_ours(&voucher, &self.voucher, &signer.public())?;
        let guid = voucher.guid();
        let passphrase = self.passphrase_file.as_deref().map(read_passphrase);
        let network = Network::new(self.ssid.clone(), passphrase.transpose()?)
            .map_err(|fault| Misuse(fault.to_string()))?;
        let pairing = Pairing {
            voucher,
            signer,
            network,
        };
        runtime()?.block_on(async {
            let (listener, at) = listen(self.listen).await?;
            let counter = counter(Desk::new(at, Some(pairing), Vec::new()));
            crate::cli::progress(&format!("waiting for device {guid} at {at}"));
            let mut serving = std::pin::pin!(serve(listener, Arc::clone(&counter)));
            tokio::select! {
                () = counter.paired.notified() => {}
                error = &mut serving => return Err(error.into()),
                () = tokio::time::sleep(Duration::from_secs(self.patience)) => {
                    let text = format!(
                        "device {guid} did not come within {} s; check that it is powered, and that its factory wrote the address {at} into it",
                        self.patience
                    );
                    return Err(Unavailable(text).into());
                }
            }
            // The last answer is still on its way; a device that missed it comes again.
            let _ = tokio::time::timeout(FAREWELL, serving).await;
            Ok(format!("device {guid} has the credentials of {}\n", self.ssid))
        })
    }
}

impl Relay {
    /// Relays until it is ended.
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let servers = self.to.iter().map(|server| {
            let endpoint = Endpoint {
                addresses: vec![server.to_string()],
                security: Security::Plain,
            };
            let limits = Limits {
                per_address: RELAY_WAIT,
                deadline: RELAY_WAIT,
                ..Limits::default()
            };
            Client::new(endpoint, "", limits)
        });
        let servers = servers.collect();
        runtime()?.block_on(async {
            let (listener, at) = listen(self.listen).await?;
            crate::cli::progress(&format!(
                "relaying rendezvous requests at {at}; Ctrl-C ends it"
            ));
            Err(serve(listener, counter(Desk::new(at, None, servers)))
                .await
                .into())
        })
    }
}

fn counter(desk: Desk) -> Arc<Counter> {
    Arc::new(Counter {
        desk: Mutex::new(desk),
        paired: Notify::new(),
    })
}

async fn listen(at: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(at).await;
    let listener = listener.map_err(|error| {
        Misuse(format!(
            "cannot listen at {at}: {error}; give this machine that address first"
        ))
    })?;
    let at = listener.local_addr()?;
    Ok((listener, at))
}

fn read_passphrase(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(String::new());
    let file = std::fs::File::open(path);
    let read = file.and_then(|it| it.take(PASSPHRASE_FILE).read_to_string(&mut text));
    read.map_err(|error| Misuse(format!("cannot read {}: {error}", path.display())))?;
    Ok(Zeroizing::new(
        text.trim_end_matches(['\n', '\r']).to_owned(),
    ))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
