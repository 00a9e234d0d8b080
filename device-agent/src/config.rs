//! The agent's configuration: every key, its default, and what it must be.
//!
//! Read by `cli` through the common frame, which reports all faults at once. Every key has a sane
//! default but the sensors, of which there may be none.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_config::{ByteSize, Section, Settings};
use holdfast_link::discovery::Interfaces;
use holdfast_link::retry::Policy;
use holdfast_protocol::renewal::Wish;
use holdfast_protocol::topic::TopicName;

/// The least length of a journal of commands.
const LEAST_JOURNAL: u64 = 4 << 10;
/// No certificate is renewed more often than this by its age.
const SHORTEST_LIFE: Duration = Duration::from_secs(3600);
/// The most sensors in one agent.
const MAX_SOURCES: usize = 64;

/// Everything that can be configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// Finding the gateway by mDNS.
    pub discovery: Discovery,
    /// Pauses of onboarding.
    pub onboarding: Onboarding,
    /// The MQTT connection.
    pub connection: Connection,
    /// When the certificate is renewed, beyond the rule.
    pub renewal: Wish,
    /// The durable outbox.
    pub outbox: Outbox,
    /// What becomes of commands.
    pub commands: Commands,
    /// The sensors.
    pub sources: Vec<Source>,
}

impl Settings for Config {
    fn read(section: &mut Section<'_>) -> Self {
        let config = Self {
            discovery: section.section("discovery"),
            onboarding: section.section("onboarding"),
            connection: section.section("connection"),
            renewal: section.section::<Renewal>("renewal").0,
            outbox: section.section("outbox"),
            commands: section.section("commands"),
            sources: section.sections("publish"),
        };
        config.check_sources(section);
        config
    }
}

impl Config {
    fn check_sources(&self, section: &mut Section<'_>) {
        if self.sources.len() > MAX_SOURCES {
            let what = format!("there are {} of them", self.sources.len());
            section.fault("publish", &what, "one agent takes at most 64 sensors");
        }
        let stdin = |source: &&Source| matches!(source.input, Input::Stdin);
        if self.sources.iter().filter(stdin).count() > 1 {
            section.fault(
                "publish",
                "two sensors read standard input",
                "keep stdin = true in one",
            );
        }
        for (index, source) in self.sources.iter().enumerate() {
            if self.sources[..index]
                .iter()
                .any(|other| other.name == source.name)
            {
                let what = format!("two sensors are named {:?}", source.name);
                section.fault("publish", &what, "give each a name of its own");
            }
        }
    }
}

/// `[discovery]`
#[derive(Debug, Clone)]
pub struct Discovery {
    /// Whether to ask by mDNS at all.
    pub enabled: bool,
    /// Where to ask.
    pub interfaces: Interfaces,
    /// How long to wait for answers.
    pub patience: Duration,
}

impl Settings for Discovery {
    fn read(section: &mut Section<'_>) -> Self {
        let interfaces: Vec<String> = section.get("interfaces", Vec::new());
        Self {
            enabled: section.get("enabled", true),
            interfaces: match interfaces.is_empty() {
                true => Interfaces::Lan,
                false => Interfaces::Named(interfaces),
            },
            patience: positive(section, "patience", Duration::from_secs(2)),
        }
    }
}

/// `[onboarding]`
#[derive(Debug, Clone)]
pub struct Onboarding {
    /// Pauses between two rounds over all rendezvous servers.
    pub retry: Policy,
    /// The longest wait for one answer.
    pub deadline: Duration,
}

impl Settings for Onboarding {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            retry: policy(section, Duration::from_secs(1), Duration::from_secs(60)),
            deadline: positive(section, "deadline", Duration::from_secs(15)),
        }
    }
}

/// `[connection]`
#[derive(Debug, Clone)]
pub struct Connection {
    /// The longest silence promised to the server.
    pub keep_alive: Duration,
    /// How often the round trip is measured.
    pub ping_interval: Duration,
    /// An unanswered ping of this age ends the connection.
    pub ping_timeout: Duration,
    /// For DNS, TCP, TLS and CONNACK, per address.
    pub connect_timeout: Duration,
    /// Unacknowledged messages in flight.
    pub window: u16,
    /// Pauses between two attempts.
    pub retry: Policy,
    /// While on the second choice: how often the first is tried.
    pub return_after: Duration,
}

impl Settings for Connection {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            keep_alive: positive(section, "keep_alive", Duration::from_secs(30)),
            ping_interval: positive(section, "ping_interval", Duration::from_secs(2)),
            ping_timeout: positive(section, "ping_timeout", Duration::from_secs(3)),
            connect_timeout: positive(section, "connect_timeout", Duration::from_secs(3)),
            window: section.get_checked("window", 256, |window| match window {
                0 => Err(("is zero".to_owned(), "write 1 or more".to_owned())),
                _ => Ok(()),
            }),
            retry: policy(section, Duration::from_millis(200), Duration::from_secs(5)),
            return_after: positive(section, "return_after", Duration::from_secs(60)),
        }
    }
}

/// `[renewal]`: by two thirds of the certificate's life at the latest, and sooner if wished.
#[derive(Debug, Clone, Copy)]
struct Renewal(Wish);

impl Settings for Renewal {
    fn read(section: &mut Section<'_>) -> Self {
        let sessions = section.get("sessions", 0);
        let after: Duration = section.get_checked("after", Duration::ZERO, |after: &Duration| {
            match !after.is_zero() && *after < SHORTEST_LIFE {
                true => Err((
                    "is shorter than an hour".to_owned(),
                    "write \"1h\" or more, or leave it out".to_owned(),
                )),
                false => Ok(()),
            }
        });
        Self(Wish {
            sessions: (sessions > 0).then_some(sessions),
            after: (!after.is_zero()).then_some(after),
        })
    }
}

/// `[outbox]`
#[derive(Debug, Clone)]
pub struct Outbox {
    /// Bytes of readings kept while no server takes them; then the sensors wait.
    pub max_bytes: ByteSize,
    /// The same for readings of the service that the device works for.
    pub service_max_bytes: ByteSize,
}

impl Settings for Outbox {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            max_bytes: section.get("max_bytes", ByteSize(256 << 20)),
            service_max_bytes: section.get("service_max_bytes", ByteSize(64 << 20)),
        }
    }
}

/// `[commands]`
#[derive(Debug, Clone, Copy)]
pub struct Commands {
    /// Where they go.
    pub to: CommandsTo,
    /// Bytes of the journal, the former file included.
    pub max_bytes: ByteSize,
}

/// Where commands go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandsTo {
    /// `commands.jsonl` in the state folder.
    Journal,
    /// The log, shortened.
    Log,
}

impl Settings for Commands {
    fn read(section: &mut Section<'_>) -> Self {
        let to: String = section.get("to", "journal".to_owned());
        let to = match to.as_str() {
            "journal" => CommandsTo::Journal,
            "log" => CommandsTo::Log,
            other => {
                let what = format!("is {other:?}");
                section.fault("to", &what, "write \"journal\" or \"log\"");
                CommandsTo::Log
            }
        };
        let max_bytes = section.get_checked("max_bytes", ByteSize(1 << 20), |size| {
            match size.0 < LEAST_JOURNAL {
                true => Err((
                    "is too little".to_owned(),
                    "write at least \"4KiB\"".to_owned(),
                )),
                false => Ok(()),
            }
        });
        Self { to, max_bytes }
    }
}

/// One `[[publish]]`
#[derive(Debug, Clone)]
pub struct Source {
    /// The last part of its topic; also the name under which its position is remembered.
    pub name: String,
    /// Where its readings come from.
    pub input: Input,
    /// Where they go.
    pub to: Destination,
}

/// For whom a sensor measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The site and its cloud: `up/<name>`.
    Site,
    /// Whatever service the device works for: `svc/.../telemetry`.
    Service,
}

/// Where readings come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Rows of a CSV file, one each interval.
    Csv {
        /// The file; a relative path starts at the configuration's folder.
        file: PathBuf,
        /// From one row to the next.
        interval: Duration,
        /// Whether to wait for more rows at the end of the file.
        follow: bool,
    },
    /// Lines of standard input, as they come.
    Stdin,
}

impl Settings for Source {
    fn read(section: &mut Section<'_>) -> Self {
        let name: String = section.required("name", String::new());
        if name.parse::<TopicName>().is_err() {
            let remedy = "write 1 to 4 parts of letters, digits, '.', '_' or '-', parted by '/'";
            section.fault("name", &format!("{name:?} cannot end a topic"), remedy);
        }
        let file = section.path("csv");
        let stdin = section.get("stdin", false);
        let interval = section.get("interval", Duration::from_secs(1));
        let follow = section.get("follow", false);
        let input = match (file, stdin) {
            (Some(file), false) => Input::Csv {
                file,
                interval,
                follow,
            },
            (None, true) => Input::Stdin,
            (Some(_), true) => {
                section.fault("stdin", "contradicts csv", "keep one of the two");
                Input::Stdin
            }
            (None, false) => {
                section.fault("csv", "is missing", "write csv = \"FILE\", or stdin = true");
                Input::Stdin
            }
        };
        let to: String = section.get("to", "site".to_owned());
        let to = match to.as_str() {
            "site" => Destination::Site,
            "service" => Destination::Service,
            other => {
                let what = format!("is {other:?}");
                section.fault("to", &what, "write \"site\" or \"service\"");
                Destination::Site
            }
        };
        Self { name, input, to }
    }
}

fn positive(section: &mut Section<'_>, key: &'static str, default: Duration) -> Duration {
    section.get_checked(key, default, |value| match value.is_zero() {
        true => Err(("is zero".to_owned(), "write at least \"1ms\"".to_owned())),
        false => Ok(()),
    })
}

fn policy(section: &mut Section<'_>, first: Duration, longest: Duration) -> Policy {
    let first = positive(section, "retry_first", first);
    let longest = section.get_checked("retry_longest", longest, |longest| match *longest < first {
        true => Err((
            "is shorter than retry_first".to_owned(),
            "make it the longer of the two".to_owned(),
        )),
        false => Ok(()),
    });
    Policy { first, longest }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Result<Config, holdfast_config::Faults> {
        holdfast_config::parse(Path::new("/etc/holdfast/agent.toml"), text)
    }

    #[test]
    fn defaults_and_a_full_file_read() {
        assert!(parse("").unwrap().sources.is_empty());
        let config = parse(
            "[discovery]\ninterfaces = [\"lo\"]\n[connection]\nwindow = 4\n\
             [[publish]]\nname = \"weather\"\ncsv = \"data.csv\"\ninterval = \"20ms\"\n\
             [[publish]]\nname = \"lines\"\nstdin = true\n",
        )
        .unwrap();
        assert_eq!(
            config.discovery.interfaces,
            Interfaces::Named(vec!["lo".into()])
        );
        let file = PathBuf::from("/etc/holdfast/data.csv");
        let interval = Duration::from_millis(20);
        assert_eq!(
            config.sources[0].input,
            Input::Csv {
                file,
                interval,
                follow: false
            }
        );
        assert_eq!(config.sources[1].input, Input::Stdin);
    }

    /// Every commented key of the sample is a key, and shows its default.
    #[test]
    fn the_sample_shows_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/agent.toml");
        let sample = std::fs::read_to_string(path).expect("the sample is there");
        let open = |line: &str| {
            let key = line.strip_prefix("# ").unwrap_or(line);
            let is_key = key.starts_with('[') || key.contains(" = ");
            format!("{}\n", if is_key { key } else { line })
        };
        let open: String = sample.lines().skip(1).map(open).collect();
        let shown = parse(&open).unwrap_or_else(|faults| panic!("{faults}\n{open}"));
        let mut default = parse("").unwrap();
        assert_eq!(shown.sources.len(), 1);
        default.sources.clone_from(&shown.sources);
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = "[commands]\nto = \"exec\"\nmax_bytes = 1\n[connection]\nwindow = 0\nkeep_alive = \"0s\"\n[onboarding]\n\
            retry_first = \"9s\"\nretry_longest = \"1s\"\n[[publish]]\nname = \"a b\"\n\
            [[publish]]\nname = \"x\"\ncsv = \"f\"\nstdin = true\nto = \"moon\"\n\
            [[publish]]\nname = \"x\"\nstdin = true\n";
        let faults = parse(text).unwrap_err().to_string();
        for part in [
            "window",
            "keep_alive",
            "retry_longest",
            "cannot end a topic",
            "csv",
            "contradicts",
            "\"exec\"",
            "is too little",
            "\"moon\"",
            "two sensors read",
            "two sensors are named",
        ] {
            assert!(faults.contains(part), "{part} is missing in:\n{faults}");
        }
    }
}
