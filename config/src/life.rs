//! The life of a daemon: no core dumps, logging, signals, readiness for systemd, watchdog, grace period.
//!
//! Called by each binary's `main`. It starts nothing of the product itself.

use std::future::Future;
use std::io;
use std::time::Duration;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::cli::{Common, LogFormat, Misuse};

/// Keeps this process's memory, with the keys in it, out of core dumps and away from other processes
/// of the same user. Called first by each binary's `main`.
pub fn keep_memory_private() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // A service's sandbox may forbid this call; its unit then sets the limit itself.
    let _ = setrlimit(Resource::Core, none);
    // Also where core dumps go to a program, which the limit does not stop.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Starts logging to standard error in the chosen form.
///
/// # Errors
/// [`Misuse`] when the filter cannot be read.
pub fn start_logging(common: &Common) -> Result<(), Misuse> {
    let filter = EnvFilter::try_new(&common.log).map_err(|error| {
        Misuse(format!(
            "--log {:?}: {error}; write info, or info,holdfast_broker=debug",
            common.log
        ))
    })?;
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // A second call (a test that runs two daemons in one process) keeps the first log.
    let _ = match common.log_format {
        LogFormat::Text => base
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .try_init(),
        LogFormat::Json => base.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// A token that is cancelled by SIGTERM or SIGINT. The listening task ends with the token.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn stop_on_signal() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let stop = token.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = stop.cancelled() => return,
        };
        tracing::info!(signal = name, "stopping");
        stop.cancel();
    });
    Ok(token)
}

/// Tells systemd that the program serves, with a line for `systemctl status`. No-op without systemd.
pub fn tell_ready(status: &str) {
    notify(&[
        sd_notify::NotifyState::Ready,
        sd_notify::NotifyState::Status(status),
    ]);
}

/// Tells systemd that the program is on its way out. No-op without systemd.
pub fn tell_stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// Feeds systemd's watchdog at a third of its period while `alive` answers in time.
///
/// `alive` must go through the parts that matter (the store's writer, say), so that a hung daemon is
/// restarted. Ends at once when no watchdog is configured; else runs until `stop`.
pub async fn feed_watchdog<F, A>(stop: CancellationToken, mut alive: F)
where
    F: FnMut() -> A,
    A: Future<Output = bool>,
{
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut beat = tokio::time::interval(period / 3);
    while stop.run_until_cancelled(beat.tick()).await.is_some() {
        match tokio::time::timeout(period / 3, alive()).await {
            Ok(true) => notify(&[sd_notify::NotifyState::Watchdog]),
            Ok(false) | Err(_) => tracing::error!("a part does not answer; watchdog not fed"),
        }
    }
}

/// Waits for an orderly end, but no longer than `grace`. Says so when time ran out.
pub async fn within_grace(grace: Duration, end: impl Future<Output = ()>) {
    if tokio::time::timeout(grace, end).await.is_err() {
        tracing::warn!(
            ?grace,
            "not everything ended in time; stopping all the same"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn grace_is_bounded() {
        let before = tokio::time::Instant::now();
        within_grace(Duration::from_secs(3), std::future::pending()).await;
        assert_eq!(before.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test]
    async fn sigterm_cancels() {
        let token = stop_on_signal().expect("handlers");
        let pid = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &pid])
            .status();
        assert!(sent.expect("kill runs").success());
        token.cancelled().await;
    }
}
