//! Real networks for one run: cloud, router, gateway, LAN and each machine on it in a network namespace of its own.
//!
//! ```text
//!  cloud 10.88.1.2 --- .1 router 10.88.2.1 --- .2 wan0 gateway lan0 192.168.77.1 --- bridge --- .11 .12 ... stations
//! ```
//!
//! The router cuts the link silently (nft drops what it should carry); the gateway's `wan0` can be taken down. Called by
//! `place`. Namespaces are named after the process that made them, so that what a killed run left behind is known, and
//! removed by the next.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::proxy::Mode;
use crate::seat::{NAMESPACES, Seat};

/// What opens the name of every namespace of ours.
const OURS: &str = "holdfast";
/// The spare machine.
const SPARE: &str = "spare";
/// The first station's last octet.
const FIRST_STATION: u8 = 11;
/// Machines that can be plugged in.
const MOST_STATIONS: usize = 64;

/// The networks of this run. Dropping them ends what still runs in them and removes them.
#[derive(Debug)]
pub struct Networks {
    tag: String,
    stations: Mutex<BTreeMap<String, Seat>>,
}

impl Networks {
    /// The cloud's address.
    pub(crate) const CLOUD: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 2);
    /// The gateway's address on the LAN.
    pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
    /// The address of a spare machine on the LAN.
    pub(crate) const SPARE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
    /// The gateway's interface on the LAN, and every station's.
    pub(crate) const LAN_INTERFACE: &str = "lan0";

    /// Removes what killed runs left, and makes the networks.
    ///
    /// # Errors
    /// This user or machine cannot: says why.
    pub fn make() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "that needs root");
        sweep()?;
        let id = std::process::id();
        let start = start_of(id).context("this process is not in /proc")?;
        let networks = Self {
            tag: format!("{OURS}-{id}-{start}"),
            stations: Mutex::default(),
        };
        networks.lay()?;
        Ok(networks)
    }

    /// Lays all cables. What was made is removed by drop if a later step fails.
    fn lay(&self) -> anyhow::Result<()> {
        let (cloud, router, gateway, lan) = (
            self.name("cloud"),
            self.name("router"),
            self.name("gateway"),
            self.name("lan"),
        );
        for namespace in [&cloud, &router, &gateway, &lan] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        cable((&cloud, "net0"), (&router, "cloud0"))?;
        cable((&gateway, "wan0"), (&router, "site0"))?;
        ip(&["-n", &lan, "link", "add", "lan", "type", "bridge"])?;
        ip(&["-n", &lan, "link", "set", "lan", "up"])?;
        self.plug(&gateway, "gateway", Self::GATEWAY)?;
        for (namespace, interface, address) in [
            (&cloud, "net0", "10.88.1.2/24"),
            (&router, "cloud0", "10.88.1.1/24"),
            (&router, "site0", "10.88.2.1/24"),
            (&gateway, "wan0", "10.88.2.2/24"),
        ] {
            ip(&["-n", namespace, "address", "add", address, "dev", interface])?;
        }
        self.machine(SPARE, Self::SPARE)?;
        route(&cloud, "default", "10.88.1.1")?;
        route(&router, "192.168.77.0/24", "10.88.2.2")?;
        route(&gateway, "default", "10.88.2.1")?;
        for forwards in [&router, &gateway] {
            let words = "echo 1 >/proc/sys/net/ipv4/ip_forward";
            tool("ip", &["netns", "exec", forwards, "sh", "-c", words])?;
        }
        let table = "add table inet uplink; add chain inet uplink carry { type filter hook forward priority 0; policy accept; }";
        tool("ip", &["netns", "exec", &router, "nft", table])
    }

    /// Where the cloud runs.
    pub(crate) fn cloud(&self) -> Seat {
        Seat::within(self.name("cloud"))
    }

    /// Where the gateway runs.
    pub(crate) fn gateway(&self) -> Seat {
        Seat::within(self.name("gateway"))
    }

    /// Where another gateway can be started.
    pub(crate) fn spare(&self) -> Seat {
        Seat::within(self.name(SPARE))
    }

    /// A machine on the LAN, plugged in at the first call.
    pub(crate) fn station(&self, name: &str) -> anyhow::Result<Seat> {
        let mut stations = self.stations.lock().expect("no holder panics");
        if let Some(seat) = stations.get(name) {
            return Ok(seat.clone());
        }
        ensure!(stations.len() < MOST_STATIONS, "the LAN is full");
        let number = u8::try_from(stations.len()).expect("not above the bound");
        let address = Ipv4Addr::new(192, 168, 77, FIRST_STATION + number);
        let seat = self.machine(name, address)?;
        stations.insert(name.to_owned(), seat.clone());
        Ok(seat)
    }

    /// Cuts or mends the link, whatever was before.
    pub(crate) fn set(&self, mode: Mode) -> anyhow::Result<()> {
        let (router, gateway) = (self.name("router"), self.name("gateway"));
        let policy = match mode {
            Mode::Silent => "drop",
            Mode::Open | Mode::Reset => "accept",
        };
        let chain = format!("add chain inet uplink carry {{ policy {policy}; }}");
        tool("ip", &["netns", "exec", &router, "nft", &chain])?;
        if mode == Mode::Reset {
            return ip(&["-n", &gateway, "link", "set", "wan0", "down"]);
        }
        ip(&["-n", &gateway, "link", "set", "wan0", "up"])?;
        // It went with the interface.
        route(&gateway, "default", "10.88.2.1")
    }

    /// A machine on the LAN, which reaches the rest by the gateway.
    fn machine(&self, name: &str, address: Ipv4Addr) -> anyhow::Result<Seat> {
        let namespace = self.name(name);
        ip(&["netns", "add", &namespace])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        self.plug(&namespace, name, address)?;
        route(&namespace, "default", &Self::GATEWAY.to_string())?;
        Ok(Seat::within(namespace))
    }

    /// A cable from the machine to the LAN's bridge.
    fn plug(&self, namespace: &str, port: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let lan = self.name("lan");
        // The kernel takes 15 characters.
        let port: String = port.chars().take(15).collect();
        cable((namespace, Self::LAN_INTERFACE), (&lan, &port))?;
        ip(&["-n", &lan, "link", "set", &port, "master", "lan"])?;
        let address = format!("{address}/24");
        let words = ["address", "add", &address, "brd", "+", "dev"];
        let words = [&["-n", namespace][..], &words, &[Self::LAN_INTERFACE]].concat();
        ip(&words)
    }

    fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.tag)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        let ours = |name: &String| name.starts_with(&format!("{}-", self.tag));
        for namespace in namespaces().iter().filter(|name| ours(name)) {
            if let Err(error) = remove(namespace) {
                eprintln!("network namespace {namespace} stays: {error:#}");
            }
        }
    }
}

/// Removes the namespaces whose maker has gone without doing so, with what it left running in them.
fn sweep() -> anyhow::Result<()> {
    for namespace in namespaces() {
        let mut words = namespace.split('-');
        if words.next() != Some(OURS) {
            continue;
        }
        let (maker, start) = (words.next(), words.next());
        let maker = maker.and_then(|maker| maker.parse().ok());
        if let (Some(maker), Some(start)) = (maker, start)
            && start_of(maker).as_deref() != Some(start)
            && let Err(error) = remove(&namespace)
            // Another run may sweep at the same time.
            && namespaces().contains(&namespace)
        {
            return Err(error.context(format!("cannot remove the old {namespace}")));
        }
    }
    Ok(())
}

/// Ends what runs in a namespace of ours and removes it.
fn remove(namespace: &str) -> anyhow::Result<()> {
    let pids = output("ip", &["netns", "pids", namespace])?;
    let pids = pids.lines().filter_map(|pid| pid.trim().parse().ok());
    for pid in pids.filter_map(Pid::from_raw) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
    ip(&["netns", "delete", namespace])
}

fn namespaces() -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(NAMESPACES) else {
        return Vec::new();
    };
    let names = folder.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.collect()
}

/// When this process started, in clock ticks since the boot: with its id it names a process for good.
fn start_of(process: u32) -> Option<String> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(format!("{process}/stat"))).ok()?;
    // The second field, the name in brackets, may hold anything; the start is the 22nd.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// A cable between two interfaces, both up.
fn cable(one: (&str, &str), other: (&str, &str)) -> anyhow::Result<()> {
    let ends = ["link", "add", one.1, "netns", one.0, "type", "veth", "peer"];
    ip(&[&ends[..], &["name", other.1, "netns", other.0]].concat())?;
    for (namespace, interface) in [one, other] {
        ip(&["-n", namespace, "link", "set", interface, "up"])?;
    }
    Ok(())
}

fn route(namespace: &str, to: &str, via: &str) -> anyhow::Result<()> {
    ip(&["-n", namespace, "route", "replace", to, "via", via])
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    tool("ip", words)
}

fn tool(program: &str, words: &[&str]) -> anyhow::Result<()> {
    output(program, words).map(|_| ())
}

fn output(program: &str, words: &[&str]) -> anyhow::Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let told = Command::new(program)
        .args(words)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .with_context(|| format!("{program} cannot be run"))?;
    if !told.status.success() {
        let said = String::from_utf8_lossy(&told.stderr);
        bail!("{program} {}: {}", words.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&told.stdout).into_owned())
}

#[cfg(test)]
mod tests;
