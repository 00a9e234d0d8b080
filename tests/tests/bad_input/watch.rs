//! What "refused well" means: one warning in the log, one more in the counters, and the daemon still answers.

use std::net::SocketAddr;
use std::time::Duration;

use holdfast_tests::process::wait_until;
use holdfast_tests::world::{Part, fetch};

/// How long a refusal may take to be logged and counted.
const SOON: Duration = Duration::from_secs(5);
/// A second line for the same refusal would come within this time.
const ECHO: Duration = Duration::from_millis(300);

/// A daemon's log and counters before something bad is sent.
pub(crate) struct Watch {
    warnings: usize,
    refusals: f64,
    metrics: SocketAddr,
}

impl Watch {
    pub(crate) async fn begin(part: &Part, metrics: SocketAddr) -> Self {
        Self {
            warnings: warnings(part).len(),
            refusals: refusals(metrics).await,
            metrics,
        }
    }

    /// Asserts that since the beginning there was exactly one warning, at least one count, and that the daemon is well.
    pub(crate) async fn refused_once(self, part: &Part, what: &str) {
        let came = wait_until("a warning", SOON, || warnings(part).len() > self.warnings).await;
        assert!(
            came.is_ok(),
            "{what}: nothing was logged:\n{}",
            part.logged()
        );
        tokio::time::sleep(ECHO).await;
        let new = &warnings(part)[self.warnings..];
        assert_eq!(
            new.len(),
            1,
            "{what}: logged more than once:\n{}",
            new.join("\n")
        );
        let counted = refusals(self.metrics).await;
        assert!(counted > self.refusals, "{what}: not counted");
        is_well(part, self.metrics).await;
    }
}

/// The daemon answers on its health page and to its own command.
pub(crate) async fn is_well(part: &Part, metrics: SocketAddr) {
    fetch(metrics, "/health")
        .await
        .expect("the health page answers");
    part.ask(&["status"]).await.expect("status answers");
}

fn warnings(part: &Part) -> Vec<String> {
    let is_warning = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    part.logged()
        .lines()
        .filter(is_warning)
        .map(str::to_owned)
        .collect()
}

/// All refusals counted so far, whoever counted them.
async fn refusals(metrics: SocketAddr) -> f64 {
    let page = fetch(metrics, "/metrics")
        .await
        .expect("the metrics page answers");
    let is_refusal = |line: &&str| {
        !line.starts_with('#')
            && line
                .split([' ', '{'])
                .next()
                .is_some_and(|name| name.contains("refus"))
    };
    page.lines()
        .filter(is_refusal)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
