//! Real programs as processes: started with a log file, stopped by exactly the id that was started.
//! Called by `world` and `reader`; it never looks for a process by name.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::seat::Seat;

/// How long a daemon may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(15);
/// How long a command may take.
const COMMAND: Duration = Duration::from_secs(60);
/// Pause between two looks at something that will come.
const LOOK: Duration = Duration::from_millis(20);

/// The binaries under test: `HOLDFAST_BIN_DIR`, or the folder that this program (or test) was built into.
///
/// # Errors
/// The binary has not been built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("HOLDFAST_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => built_folder()?,
    };
    let path = folder.join(name);
    if !path.is_file() {
        bail!(
            "{} is not there: run `cargo build --workspace --bins`",
            path.display()
        );
    }
    Ok(path)
}

fn built_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    let folder = own.parent().context("this program lies in no folder")?;
    let is_test = folder.file_name() == Some(OsStr::new("deps"));
    Ok(if is_test {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    }
    .to_owned())
}

/// A running daemon. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` right here; both its outputs are appended to `log`.
    ///
    /// # Errors
    /// The program cannot be started or the log not be written.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        arguments: &[A],
        log: &Path,
    ) -> anyhow::Result<Self> {
        Self::start_at(&Seat::here(), name, program, arguments, log)
    }

    /// Starts `program` at `seat`.
    ///
    /// # Errors
    /// See [`Self::start`].
    pub fn start_at<A: AsRef<OsStr>>(
        seat: &Seat,
        name: &str,
        program: &Path,
        arguments: &[A],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let out = append(log)?;
        let err = out.try_clone()?;
        let child = command(seat, program, arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id, while it has not been waited for.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// `kill -9` by its id, and waits until it is gone.
    ///
    /// # Errors
    /// It is gone already, or the signal is refused.
    pub async fn kill_nine(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGTERM, then waits; kills it after the grace period and says so.
    ///
    /// # Errors
    /// It did not end by itself.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        if let Ok(status) = timeout(GRACE, self.child.wait()).await {
            return Ok(status?);
        }
        self.child.kill().await?;
        bail!("{} did not end within {GRACE:?} of SIGTERM", self.name)
    }

    /// Waits for `sign` in the log written since `from` (see [`Self::log_length`]).
    ///
    /// # Errors
    /// The process ended first, or the time is over; the error shows the log's end.
    pub async fn wait_for_log(
        &mut self,
        sign: &str,
        from: u64,
        within: Duration,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + within;
        loop {
            if self.log_since(from).contains(sign) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.log_end());
            }
            if Instant::now() > end {
                bail!(
                    "{} did not say {sign:?} within {within:?}:\n{}",
                    self.name,
                    self.log_end()
                );
            }
            sleep(LOOK).await;
        }
    }

    /// The exit status if it has ended.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Bytes in the log so far.
    #[must_use]
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    /// What was logged after the first `from` bytes.
    #[must_use]
    pub fn log_since(&self, from: u64) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let start = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = self.log_since(0);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self
            .child
            .id()
            .with_context(|| format!("{} has ended already", self.name))?;
        let pid = i32::try_from(id)
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }
}

/// What a command that ran to its end left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Finished {
    /// The output if it ended with 0.
    ///
    /// # Errors
    /// What it wrote to standard error.
    pub fn success(self, what: &str) -> anyhow::Result<String> {
        if self.code == Some(0) {
            return Ok(self.out);
        }
        bail!("{what} ended with {:?}: {}", self.code, self.err.trim())
    }
}

/// Runs a command right here to its end, feeding it `input`.
///
/// # Errors
/// It cannot be started or takes too long.
pub async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    input: &str,
) -> anyhow::Result<Finished> {
    run_at(&Seat::here(), program, arguments, input).await
}

/// Runs a command at `seat` to its end, feeding it `input`.
///
/// # Errors
/// See [`run`].
pub async fn run_at<A: AsRef<OsStr>>(
    seat: &Seat,
    program: &Path,
    arguments: &[A],
    input: &str,
) -> anyhow::Result<Finished> {
    let mut child = command(seat, program, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input closes the pipe: not a fault.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = timeout(COMMAND, child.wait_with_output())
        .await
        .with_context(|| format!("{} did not end within {COMMAND:?}", program.display()))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Finished {
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    })
}

/// Waits until `is_so` answers true.
///
/// # Errors
/// It did not come true in time; `what` says what was waited for.
pub async fn wait_until(
    what: &str,
    within: Duration,
    mut is_so: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    while !is_so() {
        if Instant::now() > end {
            bail!("{what}: not within {within:?}");
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
pub async fn told_to_stop() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut stream) => stream.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

fn command<A: AsRef<OsStr>>(seat: &Seat, program: &Path, arguments: &[A]) -> Command {
    let mut command = seat.command(program);
    command
        .args(arguments)
        .kill_on_drop(true)
        .env("NO_COLOR", "1");
    // A proxy of the surroundings must not stand between parts on the loopback.
    for name in [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    command
}

fn append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}
