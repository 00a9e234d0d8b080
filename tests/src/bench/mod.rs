//! `make bench`: our broker and Debian's mosquitto in one run, by one generator, interleaved.
//!
//! Called by the program `bench`. `load` and its kin make the load, `server` starts and watches the two, the experiments
//! (`throughput`, `durable`, `connects`, `growth`) fill rows, `figures` and `chart` show them. Nothing here reaches into
//! the broker: it is a process like the other.

pub mod chart;
pub mod connects;
pub mod disk;
pub mod durable;
pub mod figures;
pub mod growth;
pub mod load;
pub mod packet;
pub mod server;
pub mod socket;
pub mod statistics;
#[cfg(test)]
mod tests;
pub mod throughput;
pub mod tls;

use std::time::{Duration, Instant};

use figures::Row;
use load::Until;
use server::Site;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Bench {
    /// Programs and disk.
    pub site: Site,
    /// Interleaved runs of each row.
    pub rounds: usize,
    /// Short runs and small crowds: shows that the bench works, its figures mean little.
    pub quick: bool,
}

impl Bench {
    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Of a throughput run: warming up, then measuring.
    #[must_use]
    pub fn timed(&self) -> Until {
        let millis = self.pick((300, 1200), (100, 300));
        Until::Time(
            Duration::from_millis(millis.0),
            Duration::from_millis(millis.1),
        )
    }

    /// Of a paced run.
    #[must_use]
    pub fn paced(&self) -> Until {
        let millis = self.pick((300, 1500), (100, 500));
        Until::Time(
            Duration::from_millis(millis.0),
            Duration::from_millis(millis.1),
        )
    }

    fn durable_ours(&self) -> u64 {
        self.pick(400_000, 40_000)
    }

    fn durable_theirs(&self) -> u64 {
        self.pick(100_000, 20_000)
    }

    /// With autosave mosquitto writes its whole database again and again: the more is queued the slower.
    fn durable_saved(&self) -> u64 {
        self.pick(5000, 1000)
    }

    fn tls_sessions(&self) -> usize {
        self.pick(8000, 400)
    }

    fn plain_sessions(&self) -> usize {
        self.pick(5000, 1000)
    }

    /// Few, many, and so many that their cost shows in clock ticks.
    fn session_growth(&self) -> (usize, usize, usize) {
        self.pick((100, 10_000, 2500), (100, 4000, 1500))
    }

    fn subscription_growth(&self) -> (usize, usize) {
        self.pick((100, 10_000), (100, 2000))
    }

    fn queued(&self) -> u64 {
        self.pick(1_000_000, 50_000)
    }

    fn returning(&self) -> usize {
        self.pick(2000, 200)
    }
}

/// Says what is going on while it goes on.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
        }
    }
}

impl Progress {
    /// One pair of values.
    pub fn say(&self, round: usize, name: &str, ours: f64, theirs: f64) {
        eprintln!(
            "{:>5} s  round {}  {name:<22} {ours:>12.2} {theirs:>12.2}",
            self.begun.elapsed().as_secs(),
            round + 1
        );
    }

    /// Something long without values.
    pub fn note(&self, name: &str, what: &str) {
        eprintln!("{:>5} s  {name}: {what}", self.begun.elapsed().as_secs());
    }

    /// Waits, and says so.
    pub fn wait(&self, name: &str, time: Duration) {
        self.note(name, &format!("waiting {} s", time.as_secs()));
        std::thread::sleep(time);
    }
}

/// An experiment: its name and the names of its rows, and what runs it.
#[derive(Debug, Clone, Copy)]
pub struct Experiment {
    /// As `--only` knows it.
    pub name: &'static str,
    /// Its rows, also known to `--only`.
    pub rows: &'static [&'static str],
    /// Runs all of its rows.
    pub run: fn(&Bench, &Progress) -> anyhow::Result<Vec<Row>>,
}

/// All of them, in the order of the table.
pub const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        name: "rates",
        rows: &[
            "qos0_1_1",
            "qos0_50_1",
            "qos0_1_50",
            "qos1_1_1",
            "qos1_50_1",
            "qos1_1_50",
            "memory_after",
        ],
        run: throughput::rates,
    },
    Experiment {
        name: "durable",
        rows: &[
            "durable_memory",
            "durable_offline",
            "durable_append",
            "durable_autosave",
            "durable_ack_p99",
        ],
        run: durable::rows,
    },
    Experiment {
        name: "cpu",
        rows: &["cpu_qos0", "cpu_qos1", "cpu_1000_qos0", "cpu_1000_qos1"],
        run: throughput::cpu,
    },
    Experiment {
        name: "tls",
        rows: &["tls_connects", "tls_connect_cpu", "memory_tls_8000"],
        run: connects::tls,
    },
    Experiment {
        name: "latency",
        rows: &["latency_p50", "latency_durable_p50"],
        run: throughput::latency,
    },
    Experiment {
        name: "plain",
        rows: &["memory_plain_5000"],
        run: connects::plain,
    },
    Experiment {
        name: "subscriptions",
        rows: &["growth_known_topics", "growth_new_topics"],
        run: growth::subscriptions,
    },
    Experiment {
        name: "sessions",
        rows: &["growth_connect_cpu", "growth_session_memory"],
        run: connects::growth,
    },
    Experiment {
        name: "restart",
        rows: &["restart_1000000"],
        run: growth::restarts,
    },
    Experiment {
        name: "reconnect",
        rows: &["reconnect_2000"],
        run: growth::reconnects,
    },
];
