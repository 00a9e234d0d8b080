//! One program of a world: its binary, configuration, state folder and, while it runs, its process.
//! Called by `world`, stories and tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::process::{Finished, Process, binary, run_at};
use crate::seat::Seat;

/// How long a daemon may take until it listens.
const READY: Duration = Duration::from_secs(30);

/// One program of the world: its binary, configuration, state folder and, while it runs, its process.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    pub(super) program: PathBuf,
    /// Where it runs.
    pub seat: Seat,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its state folder.
    pub state: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Part {
    /// The program of this name, called `name` in this world and living at `seat`; nothing is started.
    pub(super) fn new(
        program: &str,
        name: &'static str,
        seat: Seat,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            name,
            program: binary(program).with_context(|| format!("for {name}"))?,
            seat,
            config: folder.join(format!("{name}.toml")),
            state: folder.join(name),
            log: folder.join(format!("{name}.log")),
            process: None,
        })
    }

    /// What it is called in this world.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The command line of this part, for a person to copy.
    #[must_use]
    pub fn command_line(&self, words: &str) -> String {
        format!(
            "{}{} --config {} --state {} {words}",
            self.seat.prefix(),
            self.program.display(),
            self.config.display(),
            self.state.display()
        )
    }

    /// Runs one of its commands to the end.
    ///
    /// # Errors
    /// It cannot be run; its own refusal is in the result.
    pub async fn command(&self, words: &[&str], input: &str) -> anyhow::Result<Finished> {
        self.command_at(&self.seat, words, input).await
    }

    /// Runs one of its commands somewhere else than where it lives, as in the factory.
    ///
    /// # Errors
    /// See [`Self::command`].
    pub async fn command_at(
        &self,
        seat: &Seat,
        words: &[&str],
        input: &str,
    ) -> anyhow::Result<Finished> {
        run_at(seat, &self.program, &self.arguments(words), input).await
    }

    /// Runs one of its commands that must succeed; its output.
    ///
    /// # Errors
    /// What it wrote to standard error.
    pub async fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let what = format!("holdfast-{} {}", self.name, words.join(" "));
        self.command(words, "").await?.success(&what)
    }

    /// `status --json`.
    ///
    /// # Errors
    /// The command failed or printed no JSON.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let said = self.ask(&["status", "--json"]).await?;
        serde_json::from_str(&said).with_context(|| format!("status --json printed {said:?}"))
    }

    /// Starts `run` and, if it has a health page, waits until that and its own commands answer.
    ///
    /// # Errors
    /// It ended, or was not well in time.
    pub async fn start(&mut self, health: Option<SocketAddr>) -> anyhow::Result<()> {
        let mut process = Process::start_at(
            &self.seat,
            self.name,
            &self.program,
            &self.arguments(&["run"]),
            &self.log,
        )?;
        let end = Instant::now() + READY;
        while let Some(door) = health
            && !(self.state.join("admin.sock").exists()
                && self.seat.fetch(door, "/health").await.is_ok())
        {
            if let Some(status) = process.ended()? {
                anyhow::bail!("{} ended with {status}:\n{}", self.name, process.log_end());
            }
            ensure!(
                Instant::now() < end,
                "{} is not well after {READY:?}:\n{}",
                self.name,
                process.log_end()
            );
            sleep(Duration::from_millis(20)).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// The running process.
    ///
    /// # Errors
    /// It was not started.
    pub fn process(&mut self) -> anyhow::Result<&mut Process> {
        self.process
            .as_mut()
            .with_context(|| format!("{} is not running", self.name))
    }

    /// SIGTERM, and waits. Nothing happens if it does not run.
    ///
    /// # Errors
    /// It did not end by itself.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.process.take() {
            process.stop().await?;
        }
        Ok(())
    }

    /// All it has logged.
    #[must_use]
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines it has logged.
    #[must_use]
    pub fn log_end(&self) -> String {
        let text = self.logged();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn arguments(&self, words: &[&str]) -> Vec<String> {
        let mut all = vec!["--config".into(), self.config.display().to_string()];
        all.extend(["--state".into(), self.state.display().to_string()]);
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all
    }
}
