//! The tasks of a daemon and the order in which they stop: stage by stage, each within a grace
//! time, and all of them as soon as the first one ends.
//!
//! Made by the `app` of each daemon. A task that ends before it was asked to is a failure of the
//! daemon: nothing is restarted inside, the service manager does that. A panic is raised again.

use std::fmt::Display;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A task that ended although nobody had asked it to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{task} ended{}; see the log before this line", if why.is_empty() { String::new() } else { format!(": {why}") })]
pub struct Ended {
    /// Its name.
    pub task: &'static str,
    /// Its error, or empty.
    pub why: String,
}

/// What a task leaves behind.
#[derive(Debug)]
struct End {
    stage: usize,
    task: &'static str,
    why: Result<(), String>,
}

/// All tasks of a daemon. Dropping it aborts them.
#[derive(Debug)]
pub struct Stages {
    tasks: JoinSet<End>,
    tokens: Vec<CancellationToken>,
    running: Vec<usize>,
}

impl Stages {
    /// No tasks yet, to be stopped in `stages` stages: stage 0 first.
    #[must_use]
    pub fn new(stages: usize) -> Self {
        Self {
            tasks: JoinSet::new(),
            tokens: (0..stages).map(|_| CancellationToken::new()).collect(),
            running: vec![0; stages],
        }
    }

    /// The token that asks the tasks of `stage` to end.
    #[must_use]
    pub fn token(&self, stage: usize) -> CancellationToken {
        self.tokens[stage].clone()
    }

    /// Starts a task of `stage`; it must end soon after that stage's token is cancelled.
    pub fn spawn<E: Display>(
        &mut self,
        stage: usize,
        task: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.running[stage] += 1;
        self.tasks.spawn(async move {
            let why = work.await.map_err(|error| error.to_string());
            End { stage, task, why }
        });
    }

    /// As [`Stages::spawn`], for a task that cannot fail.
    pub fn spawn_quiet(
        &mut self,
        stage: usize,
        task: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(stage, task, async move {
            work.await;
            Ok::<(), std::convert::Infallible>(())
        });
    }

    /// Waits for `stop` or the first task to end, then stops all, each stage within `grace`.
    ///
    /// # Errors
    /// The task that ended by itself.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) -> Result<(), Ended> {
        let first = tokio::select! {
            () = stop.cancelled() => None,
            Some(end) = self.tasks.join_next() => Some(self.count(end)),
        };
        if let Some(Ended { task, why }) = &first {
            tracing::error!(task, why, "a task ended by itself; stopping");
        }
        for stage in 0..self.tokens.len() {
            self.tokens[stage].cancel();
            crate::life::within_grace(grace, self.drain(stage)).await;
        }
        first.map_or(Ok(()), Err)
    }

    /// Waits until no task of `stage` runs.
    async fn drain(&mut self, stage: usize) {
        while self.running[stage] > 0 {
            let Some(end) = self.tasks.join_next().await else {
                return;
            };
            let Ended { task, why } = self.count(end);
            if !why.is_empty() {
                tracing::warn!(task, why, "a task failed while stopping");
            }
        }
    }

    fn count(&mut self, end: Result<End, JoinError>) -> Ended {
        match end {
            Ok(end) => {
                self.running[end.stage] -= 1;
                Ended {
                    task: end.task,
                    why: end.why.err().unwrap_or_default(),
                }
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn stages_stop_in_order_and_a_stubborn_one_is_left_behind() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut stages = Stages::new(2);
        for (stage, name) in [(1, "writer"), (0, "door")] {
            let (token, order) = (stages.token(stage), Arc::clone(&order));
            stages.spawn_quiet(stage, name, async move {
                token.cancelled().await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                order.lock().expect("lock").push(name);
            });
        }
        stages.spawn_quiet(1, "stubborn", std::future::pending());
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(stages.run(stop, GRACE).await, Ok(()));
        assert_eq!(*order.lock().expect("lock"), ["door", "writer"]);
    }

    #[tokio::test]
    async fn the_first_end_stops_all_and_is_told() {
        let mut stages = Stages::new(1);
        let token = stages.token(0);
        stages.spawn_quiet(0, "well", async move { token.cancelled().await });
        stages.spawn(0, "listener", std::future::ready(Err("no more files")));
        let ended = stages
            .run(CancellationToken::new(), GRACE)
            .await
            .expect_err("ended");
        assert_eq!(
            ended.to_string(),
            "listener ended: no more files; see the log before this line"
        );
    }

    #[tokio::test]
    #[should_panic(expected = "own invariant")]
    async fn a_panic_is_raised_again() {
        let mut stages = Stages::new(1);
        stages.spawn_quiet(0, "broken", async { panic!("own invariant") });
        let _ = stages.run(CancellationToken::new(), GRACE).await;
    }
}
