//! The file of clients that come with a password: `[[client]]` tables with name, hash and topic filters.
//!
//! Read when the configuration is, at the start and at each reload. A filter is a filter of its own
//! segments from the first on; what would reach the trees of the house is refused unless it is one of
//! the few parts that an ordinary client may have, and written out.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use holdfast_broker::Passwords;
use holdfast_config::{Faults, Section, Settings};
use holdfast_protocol::id::ClientName;
use holdfast_protocol::rights::Patterns;
use holdfast_protocol::topic::{Filter, Topic};

/// Most clients of one file.
const MOST_CLIENTS: usize = 2_000;
/// Most filters of one kind that a client has.
const MOST_FILTERS: usize = 64;
/// Longest client id that a client may be known to say.
const LONGEST_ID: usize = 256;
/// Bits by which everybody may read, write or enter.
const OTHERS: u32 = 0o007;

/// Where a client with a password may publish in the trees of the house: commands, never in the name of
/// a device or of the house.
const MAY_PUBLISH: [&str; 2] = ["hf/v1/+/+/down/#", "svc/v1/+/+/+/command"];
/// What it may read there: what devices say, what they are told to do, how the site is. Never what the
/// house tells its devices about services, servers or keys.
const MAY_SUBSCRIBE: [&str; 6] = [
    "hf/v1/+/+/up/#",
    "hf/v1/+/+/down/#",
    "hf/v1/+/+/service/reported",
    "hf/v1/+/gateway/health",
    "svc/v1/+/+/+/telemetry",
    "svc/v1/+/+/+/command",
];

/// One `[[client]]`.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// Its user name.
    pub name: ClientName,
    /// The argon2id hash of its password, in PHC form.
    pub password: String,
    /// A client id that it says and that is neither its name nor empty.
    pub client_id: Option<String>,
    /// What it may do.
    pub patterns: Patterns,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("client_id", &self.client_id)
            .field("patterns", &self.patterns)
            .finish_non_exhaustive()
    }
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users(pub Vec<User>);

/// Reads the file.
///
/// # Errors
/// Every fault of it, each with its line and remedy.
pub fn read(path: &Path) -> Result<Users, Faults> {
    holdfast_config::read(Some(path))
}

/// Notes whatever is wrong with the file that `key` names.
pub(super) fn check(section: &mut Section<'_>, key: &'static str, path: &Path) {
    let shown = path.display();
    let mode = std::fs::metadata(path).map_or(0, |found| found.mode());
    if mode & OTHERS != 0 {
        let remedy = format!("chmod o-rwx {shown}");
        section.fault(key, &format!("{shown} can be read by everybody"), &remedy);
    }
    for fault in read(path).err().iter().flat_map(Faults::list) {
        let line = fault.line.map_or(String::new(), |line| format!(":{line}"));
        let name = match fault.key.as_str() {
            "" => String::new(),
            name => format!(": {name}"),
        };
        let what = format!("{shown}{line}{name}: {}", fault.what);
        section.fault(key, &what, &fault.remedy);
    }
}

impl Settings for Users {
    fn read(section: &mut Section<'_>) -> Self {
        let clients: Vec<User> = section.sections("client");
        if clients.len() > MOST_CLIENTS {
            let what = format!("holds {} clients", clients.len());
            section.fault("client", &what, &format!("write at most {MOST_CLIENTS}"));
        }
        let mut names = BTreeSet::new();
        for client in &clients {
            if !names.insert(client.name.as_str()) {
                let what = format!("names {} twice", client.name);
                section.fault("client", &what, "give each client a name of its own");
            }
        }
        Self(clients)
    }
}

impl Settings for User {
    fn read(section: &mut Section<'_>) -> Self {
        let name = section.text("name").unwrap_or_else(|| {
            section.required("name", String::new());
            "missing".parse().expect("a name")
        });
        let password: String = section.required("password", String::new());
        if !password.is_empty() && !Passwords::takes(&password) {
            let remedy = "make one with the command: clients password";
            section.fault(
                "password",
                "is no argon2id hash of at most 64 MiB and 10 passes",
                remedy,
            );
        }
        let client_id: Option<String> = section.optional("client_id");
        if let Some(id) = &client_id
            && (id.is_empty() || id.len() > LONGEST_ID || id.contains(char::is_control))
        {
            let remedy = "write 1 to 256 characters, or leave it out";
            section.fault("client_id", "cannot be a client id", remedy);
        }
        let publish = filters(section, "publish", &MAY_PUBLISH);
        let subscribe = filters(section, "subscribe", &MAY_SUBSCRIBE);
        if publish.is_empty() && subscribe.is_empty() {
            let remedy = "write publish = [...] or subscribe = [...]";
            section.fault("publish", "and subscribe name no topic", remedy);
        }
        Self {
            name,
            password,
            client_id,
            patterns: Patterns {
                publish,
                subscribe,
                shared: section.get("shared", false),
            },
        }
    }
}

fn filters(section: &mut Section<'_>, key: &'static str, open: &[&str]) -> Vec<Filter> {
    let filters: Vec<Filter> = section.texts(key);
    if filters.len() > MOST_FILTERS {
        let what = format!("holds {} filters", filters.len());
        section.fault(key, &what, &format!("write at most {MOST_FILTERS}"));
    }
    for filter in &filters {
        if let Err(why) = may_be_granted(filter, open) {
            let (what, remedy) = (format!("{:?} {}", filter.as_str(), why.0), why.1);
            section.fault(key, &what, &remedy);
        }
    }
    filters
}

/// Whether an ordinary client may have this filter; `open` are the parts of the trees that it may have.
fn may_be_granted(filter: &Filter, open: &[&str]) -> Result<(), (&'static str, String)> {
    let text = filter.as_str();
    if text.starts_with('$') {
        let what = "begins with $, which is the broker's own";
        return Err((what, "write topics of the client's".to_owned()));
    }
    if text.starts_with(['+', '#']) {
        let what = "begins with a wildcard, which reaches the trees of the house";
        return Err((what, "write the first level out".to_owned()));
    }
    let open_to_it = |part: &&str| {
        let part: Result<Filter, _> = part.parse();
        part.is_ok_and(|part| part.contains(filter))
    };
    if Topic::claims(text) && !(filter.is_plain() && open.iter().any(open_to_it)) {
        let what = "reaches what is the house's own";
        let remedy = format!("in hf/ and svc/ stay within {}", open.join(", "));
        return Err((what, remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
