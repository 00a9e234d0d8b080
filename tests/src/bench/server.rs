//! The two servers under comparison as processes: ours and Debian's mosquitto, with what the system says of them.
//!
//! Called by the experiments. Each has a folder of its own on the disk of the working directory, not in a memory file
//! system, and is ended by exactly the id that was started.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::tls::Papers;
use crate::folder::Folder;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(60);
/// Clock ticks of `/proc` in a second.
const TICKS: f64 = 100.0;

/// Whose server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The library's.
    Ours,
    /// Debian's mosquitto.
    Theirs,
}

/// How it is to be set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup<'a> {
    /// Mutual TLS instead of plain TCP.
    pub papers: Option<&'a Papers>,
    /// Ours: a bridge rule takes all of this filter.
    pub bridge: Option<&'a str>,
    /// Theirs: writes its database at each change, so that nothing is lost by a kill.
    pub autosave: bool,
}

/// Where programs and disks are.
#[derive(Debug, Clone)]
pub struct Site {
    /// Our server's program.
    pub program: PathBuf,
    /// A folder on a real disk.
    pub folder: PathBuf,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    clock: RefCell<Clock>,
    asking: Option<(ChildStdin, BufReader<ChildStdout>)>,
    folder: Option<Folder>,
}

/// The time that each thread of a process has run. The two sums of `/proc/PID/stat` are the same time rounded down to
/// 10 ms each, which is a tenth of what a paced run costs.
#[derive(Debug, Default)]
struct Clock {
    /// By thread; one that has ended keeps what it had when it was last looked at.
    ran: HashMap<String, u64>,
}

impl Clock {
    /// Seconds; `None` where the kernel does not keep it.
    fn read(&mut self, process: u32) -> Option<f64> {
        for thread in fs::read_dir(format!("/proc/{process}/task")).ok()? {
            let name = thread.ok()?.file_name().into_string().ok()?;
            let line = proc(process, &format!("task/{name}/schedstat"));
            // A thread that ended just now has none.
            if let Some(ran) = line.split_whitespace().next() {
                self.ran.insert(name, ran.parse().ok()?);
            }
        }
        let all: u64 = self.ran.values().sum();
        (all > 0).then(|| Duration::from_nanos(all).as_secs_f64())
    }
}

/// Seconds by the clock ticks of `/proc`.
fn ticks(process: u32) -> f64 {
    let stat = proc(process, "stat");
    // The name in parentheses may hold anything; the fields count from behind it.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let ticks = |index: usize| -> f64 {
        fields
            .get(index)
            .and_then(|field| field.parse().ok())
            .unwrap_or(f64::NAN)
    };
    (ticks(11) + ticks(12)) / TICKS
}

fn proc(process: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default()
}

/// What ours says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Commits of the journal.
    pub commits: u64,
    /// Rows in the journal.
    pub rows: u64,
    /// Messages dropped.
    pub dropped: u64,
    /// Sessions.
    pub sessions: u64,
}

impl Server {
    /// Starts one of the two in a new folder.
    ///
    /// # Errors
    /// It does not listen in time.
    pub fn start(site: &Site, whose: Whose, setup: Setup<'_>) -> anyhow::Result<Self> {
        let folder = Folder::new_in(&site.folder, "bench-")?;
        match whose {
            Whose::Ours => {
                let mut server = Self::ours(site, &folder.path().join("journal.redb"), setup)?;
                server.folder = Some(folder);
                Ok(server)
            }
            Whose::Theirs => Self::mosquitto(folder, setup),
        }
    }

    /// Starts ours on a journal that may be there already.
    ///
    /// # Errors
    /// It does not listen in time.
    pub fn ours(site: &Site, journal: &Path, setup: Setup<'_>) -> anyhow::Result<Self> {
        let mut command = Command::new(&site.program);
        command.arg(journal);
        if let Some(filter) = setup.bridge {
            command.args(["--bridge", filter]);
        }
        if let Some(papers) = setup.papers {
            command.arg("--tls").args(papers.server_files());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", site.program.display()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes to the server");
        };
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ");
        let Some(address) = address.and_then(|address| address.parse().ok()) else {
            // Not listening: it says why on its own standard error.
            let _ = child.kill();
            let _ = child.wait();
            bail!("our server does not listen: {line:?}");
        };
        Ok(Self {
            address,
            child,
            clock: RefCell::default(),
            asking: Some((stdin, stdout)),
            folder: None,
        })
    }

    fn mosquitto(folder: Folder, setup: Setup<'_>) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let file = folder.path().join("mosquitto.conf");
        fs::write(&file, mosquitto_settings(port, folder.path(), setup))?;
        let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto"]
            .into_iter()
            .find(|path| Path::new(path).is_file())
            .unwrap_or("mosquitto");
        let log = folder.path().join("mosquitto.log");
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start mosquitto: install the Debian package of that name")?;
        let mut server = Self {
            address: port,
            child,
            clock: RefCell::default(),
            asking: None,
            folder: Some(folder),
        };
        let begun = Instant::now();
        while TcpStream::connect(port).is_err() {
            if let Some(status) = server.child.try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("mosquitto ended at once: {status}: {}", said.trim());
            }
            if begun.elapsed() > START {
                bail!("mosquitto does not listen");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// CPU seconds so far: to the nanosecond where the kernel keeps that, else to 10 ms.
    #[must_use]
    pub fn cpu(&self) -> f64 {
        let mut clock = self.clock.borrow_mut();
        clock
            .read(self.child.id())
            .unwrap_or_else(|| ticks(self.child.id()))
    }

    /// Resident memory in KiB.
    #[must_use]
    pub fn resident(&self) -> f64 {
        let status = self.proc("status");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .unwrap_or(f64::NAN)
    }

    fn proc(&self, name: &str) -> String {
        proc(self.child.id(), name)
    }

    /// Our server's own figures; zeros for theirs.
    ///
    /// # Errors
    /// It no longer answers.
    pub fn figures(&mut self) -> anyhow::Result<Figures> {
        let Some((stdin, stdout)) = &mut self.asking else {
            return Ok(Figures::default());
        };
        stdin.write_all(b"\n")?;
        stdin.flush()?;
        let mut line = String::new();
        if stdout.read_line(&mut line)? == 0 {
            bail!("our server is gone");
        }
        let mut figures = Figures::default();
        for (name, value) in line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            let value = value.parse()?;
            match name {
                "commits" => figures.commits = value,
                "rows" => figures.rows = value,
                "dropped" => figures.dropped = value,
                "sessions" => figures.sessions = value,
                _ => {}
            }
        }
        Ok(figures)
    }

    /// Kills it, as a power button would: `kill -9`.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What is measured is over: nobody waits for a farewell.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.folder = None;
    }
}

/// Debian's defaults but for a queue without bound, silence, and what the setup asks.
fn mosquitto_settings(address: SocketAddr, folder: &Path, setup: Setup<'_>) -> String {
    let mut lines = vec![
        format!("listener {} {}", address.port(), address.ip()),
        "allow_anonymous true".to_owned(),
        "user root".to_owned(),
        "log_type error".to_owned(),
        "max_queued_messages 0".to_owned(),
    ];
    if setup.autosave {
        lines.extend([
            "persistence true".to_owned(),
            format!("persistence_location {}/", folder.display()),
            "autosave_interval 1".to_owned(),
            "autosave_on_changes true".to_owned(),
        ]);
    } else {
        lines.push("persistence false".to_owned());
    }
    if let Some(papers) = setup.papers {
        let [anchors, chain, key] = papers.server_files();
        lines.extend([
            format!("cafile {}", anchors.display()),
            format!("certfile {}", chain.display()),
            format!("keyfile {}", key.display()),
            "require_certificate true".to_owned(),
        ]);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fine_clock_is_the_coarse_one_with_more_digits() {
        // A process of its own: this one runs other tests beside this one.
        let mut child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let mut clock = Clock::default();
        std::thread::sleep(Duration::from_millis(700));
        let before = ticks(child.id());
        let fine = clock.read(child.id());
        let after = ticks(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        let Some(fine) = fine else {
            crate::skip::skip("the_fine_clock", "the kernel keeps no run time of threads");
            return;
        };
        // Two fields, each rounded down; and the scheduler brings a running thread's time up to date at ticks.
        assert!(
            before - 0.02 <= fine && fine <= after + 0.03,
            "{before} {fine} {after}"
        );
        assert!(fine > 0.1, "{fine}");
        assert!(ticks(child.id()).is_nan());
    }

    #[test]
    fn a_thread_that_ended_keeps_its_time() {
        let mut clock = Clock::default();
        clock.ran.insert("gone".to_owned(), 2_000_000_000);
        let seconds = clock.read(std::process::id());
        assert!(seconds.is_none_or(|seconds| seconds >= 2.0), "{seconds:?}");
    }

    #[test]
    fn autosave_is_asked_for_only_where_it_is_meant() {
        let address = "127.0.0.1:1".parse().unwrap();
        let plain = mosquitto_settings(address, Path::new("/x"), Setup::default());
        assert!(plain.contains("persistence false") && !plain.contains("autosave"));
        assert!(plain.contains("max_queued_messages 0"));
        let setup = Setup {
            autosave: true,
            ..Setup::default()
        };
        let saving = mosquitto_settings(address, Path::new("/x"), setup);
        assert!(saving.contains("persistence_location /x/\n"));
        assert!(saving.contains("autosave_on_changes true"));
    }
}
