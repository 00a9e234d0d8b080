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
use holdfast_config::life;
use holdfast_protocol::id::Guid;
use holdfast_protocol::lan_module::Network;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, sleep_until};
use zeroize::Zeroizing;

use crate::cli::progress;
use crate::desk::{Desk, Pairing};
use crate::relay::{self, Server};
use crate::serve::{Counter, serve};
use crate::{key, paper};

/// How long the desk stays after the device was paired.
const FAREWELL: Duration = Duration::from_secs(2);
/// While waiting, a word of life each so often.
const STILL: Duration = Duration::from_secs(15);
/// Longest passphrase file read, bytes.
const PASSPHRASE_FILE: u64 = 256;

/// `pair`
#[derive(Debug, Args)]
pub(crate) struct Pair {
    /// Voucher file of the device, extended to your key
    voucher: PathBuf,
    /// Name of the site's wireless network
    #[arg(long, value_name = "NAME")]
    ssid: String,
    /// File with its passphrase; without it the network is open
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The fixed address that the device has from the factory
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Then stay until the device has asked where its site is, and pass that on: as `relay`
    #[arg(long = "to", value_name = "HOST:PORT")]
    to: Vec<HostPort>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
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
        let signer = key::load(state)?;
        let voucher = paper::read(&self.voucher, &signer.public())?;
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
        let relay = relay_to(&self.to)?;
        runtime()?.block_on(async {
            let (listener, at) = listen(self.listen).await?;
            let counter = Counter::new(Desk::new(at, Some(pairing)), relay);
            progress(&format!(
                "waiting for device {guid} at {at}; Ctrl-C ends it"
            ));
            self.meet(guid, at, listener, &counter).await
        })
    }

    async fn meet(
        &self,
        guid: Guid,
        at: SocketAddr,
        listener: TcpListener,
        counter: &Arc<Counter>,
    ) -> anyhow::Result<String> {
        let stop = life::stop_on_signal()?;
        let mut serving = std::pin::pin!(serve(listener, Arc::clone(counter)));
        let end = Instant::now() + Duration::from_secs(self.patience);
        tokio::select! {
            () = counter.paired.notified() => {}
            error = &mut serving => return Err(error.into()),
            () = stop.cancelled() => anyhow::bail!("ended before device {guid} was paired; run it again"),
            () = late("the device", end) => {
                let text = format!(
                    "device {guid} did not come within {} s; check that it is powered, and that its factory wrote the address {at} into it",
                    self.patience
                );
                return Err(Unavailable(text).into());
            }
        }
        let told = format!("device {guid} has the credentials of {}\n", self.ssid);
        if self.to.is_empty() {
            // The last answer is still on its way; a device that missed it comes again.
            let lingers = tokio::time::timeout(FAREWELL, serving);
            stop.run_until_cancelled(lingers).await;
            return Ok(told);
        }
        progress(&format!(
            "device {guid} has the credentials of {}; it is to ask for its site now",
            self.ssid
        ));
        let by = tokio::select! {
            by = counter.sent_on(guid) => by,
            error = &mut serving => return Err(error.into()),
            () = stop.cancelled() => anyhow::bail!("ended before device {guid} asked for its site; `relay` goes on with it"),
            () = late("its question", end) => {
                let text = format!("{told}but it got no answer where its site is within {} s; `relay` goes on with it", self.patience);
                return Err(Unavailable(text).into());
            }
        };
        let lingers = tokio::time::timeout(FAREWELL, serving);
        stop.run_until_cancelled(lingers).await;
        Ok(format!("{told}{by} told it where its site is\n"))
    }
}

impl Relay {
    /// Relays until it is ended by a signal.
    pub(crate) fn run(&self) -> anyhow::Result<String> {
        let relay = relay_to(&self.to)?;
        runtime()?.block_on(async {
            let (listener, at) = listen(self.listen).await?;
            let stop = life::stop_on_signal()?;
            progress(&format!(
                "relaying rendezvous requests at {at}; Ctrl-C ends it"
            ));
            tokio::select! {
                error = serve(listener, Counter::new(Desk::new(at, None), relay)) => Err(error.into()),
                () = stop.cancelled() => Ok(String::new()),
            }
        })
    }
}

fn relay_to(servers: &[HostPort]) -> Result<relay::Relay, Misuse> {
    if servers.len() > relay::MOST_SERVERS {
        let most = relay::MOST_SERVERS;
        return Err(Misuse(format!("more than {most} --to; name the best ones")));
    }
    Ok(relay::Relay::to(servers.iter().map(Server::at).collect()))
}

/// Waits until `end`, with a word of life now and then.
async fn late(what: &str, end: Instant) {
    let begun = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(end) => return,
            () = sleep(STILL) => {
                let (waited, all) = (begun.elapsed().as_secs(), (end - begun).as_secs());
                progress(&format!("still waiting for {what} ({waited} of {all} s)"));
            }
        }
    }
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
