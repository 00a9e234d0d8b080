//! Where a process runs: right here, or in a network namespace of its own. Called by `place`, `process`, `reader` and
//! `world`; it starts nothing itself and makes no namespace.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::Command;
use tokio::sync::oneshot;

/// Where `ip netns` keeps its namespaces.
pub(crate) const NAMESPACES: &str = "/run/netns";
/// For each step of a plain HTTP exchange.
const ANSWER: Duration = Duration::from_secs(5);

/// A seat at a network. The default is right here, in the namespace of this program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seat {
    namespace: Option<String>,
}

impl Seat {
    /// In the namespace of this program.
    #[must_use]
    pub fn here() -> Self {
        Self::default()
    }

    /// In the namespace that `ip netns` knows by this name.
    pub(crate) fn within(namespace: String) -> Self {
        Self {
            namespace: Some(namespace),
        }
    }

    /// The program, to be run at this seat. It keeps the process id that it is started with.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(file) = self.file() else {
            return Command::new(program);
        };
        let mut option = std::ffi::OsString::from("--net=");
        option.push(file);
        let mut command = Command::new("nsenter");
        command.arg(option).arg("--").arg(program);
        command
    }

    /// What a person types before a command to run it at this seat.
    #[must_use]
    pub fn prefix(&self) -> String {
        let namespace = self.namespace.as_deref();
        namespace.map_or_else(String::new, |name| format!("ip netns exec {name} "))
    }

    /// One plain HTTP request from this seat; the answer's body. Enough for metrics and health.
    ///
    /// # Errors
    /// No answer in time, or not 200.
    pub async fn fetch(&self, door: SocketAddr, path: &str) -> anyhow::Result<String> {
        let (seat, path) = (self.clone(), path.to_owned());
        let (give, take) = oneshot::channel();
        // A thread that entered a namespace must not serve others: it is not one of the runtime's and ends at once.
        std::thread::spawn(move || {
            // Nobody may wait any more: no fault.
            let _ = give.send(seat.take().and_then(|()| exchange(door, &path)));
        });
        take.await.context("the asking thread ended")?
    }

    /// Moves this thread to the seat, for good.
    pub(crate) fn take(&self) -> anyhow::Result<()> {
        if let Some(file) = self.file() {
            let namespace = File::open(&file).with_context(|| format!("no {}", file.display()))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        Ok(())
    }

    fn file(&self) -> Option<PathBuf> {
        let namespace = self.namespace.as_deref()?;
        Some(Path::new(NAMESPACES).join(namespace))
    }
}

fn exchange(door: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&door, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {door}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
    ensure!(
        head.starts_with("HTTP/1.1 200"),
        "{door}{path} answered {}",
        head.lines().next().unwrap_or("")
    );
    Ok(body.to_owned())
}
